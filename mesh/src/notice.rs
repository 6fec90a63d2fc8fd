//! Quiet: the notice that a person reads before anything is observed, and what a read notice allows.
//!
//! The text is made from the policy and from what this build serves, so that it can't promise or conceal anything else. Whatever a hub sends
//! later, an agent observes no more than the policy whose text its person has read ([`allowed`]).

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    ids::Version,
    policy::{KindRetention, PictureArea, Pictures, Policy, PolicyError, Switch},
};

/// BCP 47 tag of the only language that this build writes.
pub const LANGUAGE: &str = "en";

/// Width of the text in characters: it fits a small terminal window.
const WIDTH: usize = 110;
const INDENT: usize = 20;

/// The text for one policy and one build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub version: Version,
    pub language: &'static str,
    pub text: String,
    /// Over the text's UTF-8 bytes.
    pub sha256: [u8; 32],
    /// What the text says is recorded: nothing else may be observed under it.
    pub switches: Vec<Switch>,
}

/// That this person has read a notice: kept by the agent, and told to the hub as a `Session` record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged {
    pub notice: Version,
    pub language: String,
    pub sha256: [u8; 32],
    /// Names, since an older or newer build may have written it.
    pub switches: Vec<String>,
    /// Milliseconds UTC.
    pub at_ms: i64,
    /// The policy that the text was made from.
    pub policy: Policy,
}

impl Notice {
    /// `serves` is what this build can observe at all.
    pub fn of(policy: &Policy, serves: &[Switch]) -> Notice {
        let policy_served = policy.only(serves);
        let switches = policy_served.switches();
        let text = text(&policy_served);
        Notice { version: policy.notice, language: LANGUAGE, sha256: Sha256::digest(&text).into(), text, switches }
    }

    /// What is kept when the person has answered.
    pub fn acknowledge(&self, policy: &Policy, at_ms: i64) -> Acknowledged {
        Acknowledged {
            notice: self.version,
            language: self.language.into(),
            sha256: self.sha256,
            switches: self.switches.iter().map(|switch| switch.name().into()).collect(),
            at_ms,
            policy: policy.clone(),
        }
    }
}

/// What of a policy may be observed now. None: no notice was read, so nothing.
///
/// The notice's number isn't asked: even a hub that forgets to raise it can only narrow what was read.
pub fn allowed(policy: &Policy, acknowledged: Option<&Acknowledged>) -> Option<Policy> {
    let acknowledged = acknowledged?;
    let named: Vec<Switch> = acknowledged.switches.iter().filter_map(|name| Switch::of_name(name)).collect();
    Some(policy.narrowed_by(&acknowledged.policy).only(&named))
}

/// Whether the person is to be asked (again): a notice with a higher number, a policy that observes more than the one read, or a build that
/// serves a switch which the read text didn't name. A restored hub's new epoch alone asks nobody: `n` goes on above all that was ever given.
pub fn asks(policy: &Policy, acknowledged: Option<&Acknowledged>, serves: &[Switch]) -> bool {
    let Some(read) = acknowledged else { return true };
    let named = |switch: &Switch| read.switches.iter().any(|name| name == switch.name());
    policy.notice.n > read.notice.n || policy.observes_more_than(&read.policy) || !policy.only(serves).switches().iter().all(named)
}

// --- the text ---

fn text(policy: &Policy) -> String {
    let number = format!("notice {}, in English", policy.notice.n);
    let mut text = format!("What this computer records while you work{number:>69}\n\n");
    text += &opening(policy);
    if policy.test_mode {
        text += "\nThis is test mode: made for trying muster out, not for people at work.\n";
    }
    text.push('\n');
    part(&mut text, "Recorded", &recorded(policy));
    part(&mut text, "Not recorded", &[not_recorded(policy)]);
    part(&mut text, "When", &[format!("{}. Outside these hours nothing.", policy.hours)]);
    part(&mut text, "Private", &[private(policy)]);
    part(
        &mut text,
        "Who can see it",
        &["you, on this computer, as counts; and who administers the hub. Each look there is written down.".into()],
    );
    part(&mut text, "How long", &[how_long(policy)]);
    part(&mut text, "Your rights", &[format!("to see it, correct it, take it with you, have it deleted: ask {}.", policy.purpose.contact)]);
    text
}

fn opening(policy: &Policy) -> String {
    let purpose = &policy.purpose;
    let who = match purpose.organisation.as_str() {
        "" => "Your employer".to_owned(),
        name => format!("Your employer, {name},"),
    };
    let mut opening = wrap(&format!("{who} records the following on this computer, openly, for this reason:"), 0);
    opening += &wrap(&format!("  {} ({})", purpose.text, purpose.legal_ground), 2);
    opening
}

fn recorded(policy: &Policy) -> Vec<String> {
    let idle = duration(policy.idle_after_s);
    let mut lines = vec![format!(
        "that the computer is on and you are active, idle (no input for {idle}), in a call or playing media, or away (locked, asleep), and \
         the battery's level, every {}, and when it changes",
        duration(policy.heartbeat_s)
    )];
    if policy.has(Switch::Counts) {
        lines.push("how many keys and clicks per minute: never which keys, never what you write".into());
    }
    if policy.has(Switch::Titles) {
        lines.push("which program is in front, and the titles of its windows".into());
    } else if policy.has(Switch::Applications) {
        lines.push("which program is in front: not the titles of its windows".into());
    }
    if policy.has(Switch::Pictures) {
        lines.push(pictures(&policy.pictures));
    }
    if policy.has(Switch::Addresses) {
        lines.push("the network addresses of this computer".into());
    }
    lines
}

/// It is blur, not redaction, and the person is told so.
fn pictures(pictures: &Pictures) -> String {
    let area = match pictures.area {
        PictureArea::ActiveWindow => "the window in front",
        PictureArea::All => "your screens",
    };
    let logs = match pictures.detailed_logs_per_day {
        0 => None,
        1 => Some("once a day at a time that nobody knows before".to_owned()),
        n => Some(format!("{n} times a day at times that nobody knows before")),
    };
    let interval = (pictures.interval_s > 0).then(|| format!("every {}", duration(pictures.interval_s)));
    let when = [logs, interval].into_iter().flatten().collect::<Vec<_>>().join(", and ");
    let seen = if pictures.blur {
        "blurred before they are kept: text can't be read, very large type and the layout can be guessed"
    } else {
        "not blurred: what stands there can be read"
    };
    format!("pictures of {area}, {when}, {seen}")
}

fn not_recorded(policy: &Policy) -> String {
    let off = |switch, what| if policy.has(switch) { None } else { Some(what) };
    let windows = [
        off(Switch::Applications, "which programs you use"),
        // With programs on, their line says what holds for titles.
        off(Switch::Applications, "the titles of windows"),
    ];
    let rest = [Some("your camera"), Some("your microphone"), Some("your messages"), off(Switch::Addresses, "where you are")];
    let counts = off(Switch::Counts, "how much you type and click");
    let pictures = off(Switch::Pictures, "pictures of your screen");
    let not: Vec<&str> = [counts].into_iter().chain(windows).chain([pictures]).chain(rest).flatten().collect();
    not.join(", ")
}

fn how_long(policy: &Policy) -> String {
    let KindRetention { titles_days, pictures_days, network_days } = policy.retention;
    let shorter = |switch, what: &str, kept| (policy.has(switch) && kept < policy.retention_days).then(|| format!("{what} {}", days(kept)));
    let shorter: Vec<String> = [
        shorter(Switch::Titles, "the titles of windows", titles_days),
        shorter(Switch::Pictures, "pictures", pictures_days),
        shorter(Switch::Addresses, "network addresses", network_days),
    ]
    .into_iter()
    .flatten()
    .collect();
    let all = format!("{}, then it is deleted", days(policy.retention_days));
    if shorter.is_empty() { format!("{all}.") } else { format!("{all}; {} only.", shorter.join(", ")) }
}

fn private(policy: &Policy) -> String {
    let paused = "everything you pause for: only that it happened, and for how long";
    let (windows, pictures) = (policy.has(Switch::Applications), policy.has(Switch::Pictures));
    if policy.excluded.is_empty() || !(windows || pictures) {
        return paused.into();
    }
    let unseen = if pictures { "; no picture is taken while one of these programs can be seen" } else { "" };
    format!("{} and {paused}{unseen}", policy.excluded.join(", "))
}

fn duration(seconds: u32) -> String {
    match seconds {
        60 => "minute".into(),
        3_600 => "hour".into(),
        s if s % 3_600 == 0 => format!("{} hours", s / 3_600),
        s if s % 60 == 0 => format!("{} minutes", s / 60),
        1 => "second".into(),
        s => format!("{s} seconds"),
    }
}

fn days(days: u16) -> String {
    if days == 1 { "One day".into() } else { format!("{days} days") }
}

/// A part of the notice: its name in a column of its own, and its lines beside it.
fn part(text: &mut String, name: &str, lines: &[String]) {
    for (i, line) in lines.iter().enumerate() {
        let name = if i == 0 { name } else { "" };
        *text += &wrap(&format!("  {name:<18}{line}"), INDENT);
    }
}

/// Cuts a line at spaces where it is too long; what follows stands below, indented.
fn wrap(line: &str, indent: usize) -> String {
    let mut wrapped = String::new();
    let mut column = 0;
    for (place, word) in line.split(' ').enumerate() {
        let length = word.chars().count();
        if place > 0 && column + 1 + length > WIDTH && column > indent {
            wrapped.push('\n');
            wrapped.extend(std::iter::repeat_n(' ', indent));
            column = indent;
        } else if place > 0 {
            wrapped.push(' ');
            column += 1;
        }
        wrapped += word;
        column += length;
    }
    wrapped.push('\n');
    wrapped
}

// --- the acknowledgement's file ---

#[derive(Serialize, Deserialize)]
struct Stored {
    notice: Version,
    language: String,
    /// 64 lower-case hex digits.
    sha256: String,
    switches: Vec<String>,
    at_ms: i64,
    policy: serde_json::Value,
}

/// A file that holds no acknowledgement: it then counts as not given.
#[derive(Debug, thiserror::Error)]
pub enum AcknowledgedError {
    #[error("it isn't readable as JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("its sha256 isn't 64 hex digits")]
    Sha256,
    #[error("its policy: {0}")]
    Policy(#[from] PolicyError),
}

impl Acknowledged {
    pub fn to_json(&self) -> Result<String, AcknowledgedError> {
        let sha256 = self.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        let policy = serde_json::from_slice(&self.policy.to_bytes())?;
        let stored = Stored {
            notice: self.notice,
            language: self.language.clone(),
            sha256,
            switches: self.switches.clone(),
            at_ms: self.at_ms,
            policy,
        };
        Ok(serde_json::to_string_pretty(&stored)?)
    }

    pub fn from_json(text: &str) -> Result<Acknowledged, AcknowledgedError> {
        let stored: Stored = serde_json::from_str(text)?;
        Ok(Acknowledged {
            notice: stored.notice,
            language: stored.language,
            sha256: hex32(&stored.sha256).ok_or(AcknowledgedError::Sha256)?,
            switches: stored.switches,
            at_ms: stored.at_ms,
            policy: Policy::from_bytes(&serde_json::to_vec(&stored.policy)?)?,
        })
    }
}

fn hex32(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::WorkingHours;

    const SERVES: [Switch; 4] = [Switch::Presence, Switch::Counts, Switch::Applications, Switch::Titles];

    fn policy() -> Policy {
        let text = r#"
            [purpose]
            organisation = "Fjord AS"
            text = "Working hours are recorded as the law asks"
            legal_ground = "Working Environment Act § 10-7"
            contact = "Kari in room 2"
            [when]
            working_hours = { days = "mon-fri", from = "07:00", to = "17:00" }
            [windows]
            applications = true
            excluded = ["KeePassXC"]
            [input]
            counts = true
            [pictures]
            detailed_logs_per_day = 2
        "#;
        let mut policy = Policy::from_toml(text).unwrap();
        policy.notice = Version { epoch: 1, n: 3 };
        policy
    }

    #[test]
    fn the_text_says_what_this_build_does_under_this_policy() {
        let notice = Notice::of(&policy(), &SERVES);
        for says in [
            "notice 3, in English",
            "Your employer, Fjord AS, records the following",
            "(Working Environment Act § 10-7)",
            "every 5 minutes",
            "how many keys and clicks per minute",
            "not the titles of its windows",
            "Not recorded pictures of your screen, your camera, your microphone, your messages, where you are",
            "Monday to Friday, 07:00-17:00. Outside these hours nothing.",
            "KeePassXC and everything you pause for",
            "45 days, then it is deleted.",
            "ask Kari in room 2.",
        ] {
            let flat = notice.text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(flat.contains(says), "{says} is missing in:\n{}", notice.text);
        }
        assert!(notice.text.lines().all(|line| line.chars().count() <= WIDTH), "{}", notice.text);
        assert_eq!(
            notice.switches,
            [Switch::Presence, Switch::Counts, Switch::Applications],
            "pictures can't be served, so they aren't named"
        );
        assert!(!notice.text.contains("test mode"));
    }

    #[test]
    fn the_text_says_what_pictures_show_and_how_long_they_are_kept() {
        let mut policy = policy();
        policy.retention.pictures_days = 7;
        let flat = |policy: &Policy| Notice::of(policy, &Switch::ALL).text.split_whitespace().collect::<Vec<_>>().join(" ");
        let blurred = flat(&policy);
        for says in [
            "pictures of the window in front, 2 times a day at times that nobody knows before, blurred before they are kept",
            "very large type and the layout can be guessed",
            "45 days, then it is deleted; pictures 7 days only.",
            "no picture is taken while one of these programs can be seen",
        ] {
            assert!(blurred.contains(says), "{says} is missing in:\n{blurred}");
        }
        policy.pictures = Pictures { detailed_logs_per_day: 0, interval_s: 600, area: PictureArea::All, blur: false };
        assert!(flat(&policy).contains("pictures of your screens, every 10 minutes, not blurred: what stands there can be read"));
    }

    #[test]
    fn another_policy_is_another_text() {
        let mut titles = policy();
        titles.titles = true;
        let (old, new) = (Notice::of(&policy(), &SERVES), Notice::of(&titles, &SERVES));
        assert_ne!(old.sha256, new.sha256);
        assert!(new.text.contains("and the titles of its windows") && new.switches.contains(&Switch::Titles));
    }

    #[test]
    fn nothing_is_allowed_before_the_notice_and_no_more_than_was_read_after_it() {
        assert_eq!(allowed(&policy(), None), None);
        assert!(asks(&policy(), None, &SERVES));

        let read = Notice::of(&policy(), &SERVES).acknowledge(&policy(), 5);
        assert!(!asks(&policy(), Some(&read), &SERVES));
        let under_it = allowed(&policy(), Some(&read)).unwrap();
        assert_eq!(under_it.switches(), [Switch::Presence, Switch::Counts, Switch::Applications]);

        // A hub that widens everything without a new number gets nothing more, and the person is asked.
        let mut wide = policy();
        wide.titles = true;
        wide.excluded.clear();
        wide.hours = WorkingHours::always();
        assert!(asks(&wide, Some(&read), &SERVES));
        let narrowed = allowed(&wide, Some(&read)).unwrap();
        assert_eq!(narrowed.hours, policy().hours);
        assert!(!narrowed.titles && narrowed.excludes("keepassxc"));

        let mut narrow = policy();
        narrow.counts = false;
        narrow.notice.epoch = 2;
        assert!(!asks(&narrow, Some(&read), &SERVES), "less, and a restored hub's epoch, ask nobody");
        assert!(!allowed(&narrow, Some(&read)).unwrap().counts);
    }

    #[test]
    fn a_build_that_newly_serves_a_switch_asks_first() {
        let read = Notice::of(&policy(), &SERVES).acknowledge(&policy(), 5);
        let newer = Switch::ALL;
        assert!(asks(&policy(), Some(&read), &newer));
        assert!(!allowed(&policy(), Some(&read)).unwrap().has(Switch::Pictures));
    }

    #[test]
    fn an_acknowledgement_survives_its_file() {
        let read = Notice::of(&policy(), &SERVES).acknowledge(&policy(), 5);
        let text = read.to_json().unwrap();
        assert_eq!(Acknowledged::from_json(&text).unwrap(), read);
        assert!(Acknowledged::from_json("{}").is_err());
        assert!(Acknowledged::from_json(&text[..text.len() / 2]).is_err());
    }
}
