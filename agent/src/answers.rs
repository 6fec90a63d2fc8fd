//! Async: what the running agent answers to the person's verbs (`status`, `today`, `shots`, `notice`, `pause`,
//! `resume`), over the control socket.
//!
//! A question is `{"verb": …}`; an answer has `text` for the person, or `error` as { what, todo }.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use muster_mesh::{
    clock::{Clock, Zone},
    complaint::Complaint,
    ids::SpoolId,
    policy::Policy,
    record::{KIND_NAMES, State},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    collect::{AskError, Asker, NoticeNow, Snapshot},
    daylog::{DAYLOG_BYTES_MAX, DayLog, Remembered},
    diary::{self, SharedDiary},
    run::Collecting,
    shots::album::{self, Shot},
    today::{self, Place},
};

/// What the uplink knows about each batch, and about itself.
pub trait Whereabouts: Send + Sync {
    fn place(&self, spool: SpoolId, seq: u64) -> Place;
    /// One line for the person, without its end of line.
    fn connection(&self) -> String;
    fn is_connected(&self) -> bool;
}

/// A question of the command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase", deny_unknown_fields)]
pub enum Question {
    Status,
    Today,
    /// The pictures of the last two days, and where each is now.
    Shots,
    Notice,
    /// The text with this SHA-256 (64 hex digits) was read.
    Acknowledge {
        sha256: String,
    },
    /// None: until the person resumes.
    Pause {
        for_ms: Option<u64>,
    },
    Resume,
    /// Ends collection, and goes on delivering until the program is stopped.
    Leave,
}

/// Answers questions; clones answer for the same agent.
#[derive(Clone)]
pub struct Answers {
    pub asker: Asker,
    pub clock: Arc<dyn Clock>,
    pub whereabouts: Arc<dyn Whereabouts>,
    /// The state folder, below which the day log lies.
    pub state: PathBuf,
    pub diary: SharedDiary,
    pub collecting: Collecting,
}

impl Answers {
    pub async fn answer(&self, question: Value) -> Value {
        let answered = match serde_json::from_value(question) {
            Ok(question) => self.answer_one(question).await,
            Err(_) => Err(complaint("that question isn't known here", "Use the muster-agent of the same version as the running one")),
        };
        answered.unwrap_or_else(|(what, todo)| json!({ "error": { "what": what, "todo": todo } }))
    }

    async fn answer_one(&self, question: Question) -> Result<Value, Told> {
        match question {
            Question::Status => Ok(self.status()),
            Question::Today => self.today().await,
            Question::Shots => self.shots().await,
            Question::Notice => self.asker.notice().await.map(|notice| notice_json(&notice)).map_err(told),
            Question::Acknowledge { sha256 } => {
                let sha256 = hex32(&sha256).ok_or_else(|| told(AskError::Changed))?;
                self.asker.acknowledge(sha256).await.map_err(told)?;
                Ok(json!({ "text": "Thank you. It is noted; what the notice says is observed from now on." }))
            }
            Question::Pause { for_ms } => {
                self.asker.pause(for_ms).await.map_err(told)?;
                Ok(json!({ "text": self.paused_text(for_ms) }))
            }
            Question::Resume => {
                self.asker.resume().await.map_err(told)?;
                Ok(json!({ "text": "The pause is over." }))
            }
            Question::Leave => {
                let broken = |error: anyhow::Error| complaint(&format!("collection can't be ended: {error:#}"), "Stop muster-agent");
                self.collecting.end().await.map_err(broken)?;
                Ok(json!({ "text": "Nothing is collected any more, until muster-agent is started again." }))
            }
        }
    }

    fn status(&self) -> Value {
        let snapshot = self.asker.snapshot().borrow().clone();
        let connection = self.whereabouts.connection();
        let text = status_text(&snapshot, &connection);
        let observed: serde_json::Map<String, Value> =
            KIND_NAMES.iter().zip(snapshot.observed).map(|(name, count)| ((*name).into(), count.into())).collect();
        json!({
            "text": text,
            "state": snapshot.state.name(),
            "since_ms": snapshot.since_ms,
            "test_mode": snapshot.test_mode,
            "policy": snapshot.policy,
            "notice_read": snapshot.read.map(|(notice, _)| notice),
            "notice_waits": snapshot.waits,
            "observed": observed,
            "connected": self.whereabouts.is_connected(),
            "journey": diary::journey(&self.diary),
        })
    }

    async fn today(&self) -> Result<Value, Told> {
        let (now, zone) = (self.clock.now(), self.clock.zone());
        let day = remembered(&self.state, now.wall_ms, &zone).await?;
        let snapshot = self.asker.snapshot().borrow().clone();
        let text = today::text(&today::View {
            now_ms: now.wall_ms,
            zone: &zone,
            test_mode: snapshot.test_mode,
            effective: snapshot.effective.as_deref(),
            read: snapshot.read.map(|(notice, at_ms)| (notice.n, at_ms)),
            waits: snapshot.waits.is_some(),
            day: &day,
            place: &|spool, seq| self.whereabouts.place(spool, seq),
            connection: &self.whereabouts.connection(),
        });
        Ok(json!({ "text": text }))
    }

    async fn shots(&self) -> Result<Value, Told> {
        let state = self.state.clone();
        let listed = tokio::task::spawn_blocking(move || album::list(&state)).await;
        let unreadable = |why: String| (format!("the pictures here can't be read: {why}"), "Look after the state folder".to_owned());
        let shots = listed.map_err(|error| unreadable(error.to_string()))?.map_err(|error| unreadable(error.to_string()))?;
        let place = |shot: &Shot| self.whereabouts.place(shot.spool, shot.seq);
        let placed: Vec<(Shot, Place)> = shots.into_iter().map(|shot| (shot.clone(), place(&shot))).collect();
        let snapshot = self.asker.snapshot().borrow().clone();
        let text = today::shots_text(&placed, &self.clock.zone(), snapshot.effective.as_deref());
        let listed: Vec<Value> = placed.iter().map(|(shot, place)| json!({ "shot": shot, "place": place.name() })).collect();
        Ok(json!({ "text": text, "shots": listed }))
    }

    fn paused_text(&self, for_ms: Option<u64>) -> String {
        let zone = self.clock.zone();
        match for_ms {
            Some(for_ms) => {
                let until = today::clock_time(self.clock.now().wall_ms.saturating_add_unsigned(for_ms), &zone);
                format!("Paused until {until}. Nothing is collected; only the length of the pause is noted.")
            }
            None => "Paused until you say: muster-agent resume. Nothing is collected; only the length of the pause is noted.".into(),
        }
    }
}

type Told = (String, String);

fn complaint(what: &str, todo: &str) -> Told {
    (what.into(), todo.into())
}

fn told(error: AskError) -> Told {
    let todo = match error {
        AskError::Stopping => "Start it again: muster-agent run",
        AskError::NoPolicy => "Look at the connection: muster-agent status",
        AskError::Changed => "Read it again: muster-agent notice",
        AskError::Disk(_) => "Look after the disk and the state folder; it holds until muster-agent ends",
    };
    (error.to_string(), todo.into())
}

/// What the person is told, made of an answer.
pub fn understood(answer: &Value) -> Result<&Value, Complaint> {
    match answer.get("error") {
        Some(error) => {
            let part = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            Err(Complaint::new(part("what"), part("todo")))
        }
        None => Ok(answer),
    }
}

fn notice_json(now: &NoticeNow) -> Value {
    let sha256: String = now.notice.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    json!({
        "text": now.notice.text,
        "number": now.notice.version.n,
        "sha256": sha256,
        "read_at_ms": now.read_at_ms,
        "observed_before": now.observed_before,
    })
}

async fn remembered(state: &Path, now_ms: i64, zone: &Zone) -> Result<Remembered, Told> {
    let (state, date) = (state.to_path_buf(), today::civil_date(now_ms, zone));
    let read = tokio::task::spawn_blocking(move || DayLog::open(&state, DAYLOG_BYTES_MAX)?.day(date)).await;
    let unreadable = |why: String| (format!("what was collected today can't be read: {why}"), "Look after the state folder".to_owned());
    read.map_err(|error| unreadable(error.to_string()))?.map_err(|error| unreadable(error.to_string()))
}

fn status_text(snapshot: &Snapshot, connection: &str) -> String {
    let mut lines = vec![state_line(snapshot)];
    if snapshot.test_mode {
        lines.push("This is test mode.".into());
    }
    lines.push(match (snapshot.waits, snapshot.read) {
        (Some(waits), _) => format!("Notice {} waits to be read: muster-agent notice", waits.n),
        (None, Some((read, _))) => format!("You have read notice {}.", read.n),
        (None, None) => "No notice has come yet.".into(),
    });
    lines.push(match (&snapshot.effective, snapshot.policy) {
        (Some(policy), Some(version)) => format!("Policy {version}: {}.", observed(policy)),
        (None, Some(version)) => format!("Policy {version}: nothing is observed yet."),
        (_, None) => "No policy has come from the hub yet: nothing is observed.".into(),
    });
    lines.push(connection.into());
    lines.join("\n")
}

fn state_line(snapshot: &Snapshot) -> String {
    match snapshot.state {
        State::WaitingForNotice => "Waiting for the notice to be read: nothing is recorded.".into(),
        State::Paused => match snapshot.paused.flatten() {
            Some(left_ms) => format!("Paused, for another {} min: nothing is collected.", left_ms.div_ceil(60_000)),
            None => "Paused, until you say: muster-agent resume. Nothing is collected.".into(),
        },
        State::OutsideHours => "Outside working hours: nothing is observed.".into(),
        State::Active => "You are active.".into(),
        State::Idle => "You are idle.".into(),
        State::Leaving => "Stopping.".into(),
        State::Call | State::Locked | State::Asleep | State::BatteryLow => format!("State: {}.", snapshot.state.name()),
    }
}

fn observed(policy: &Policy) -> String {
    let names: Vec<&str> = policy.switches().into_iter().map(|switch| switch.name()).collect();
    format!("{} observed, {}", names.join(", "), policy.hours)
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

    #[test]
    fn questions_cross_the_socket_unchanged() {
        for question in [
            Question::Status,
            Question::Today,
            Question::Shots,
            Question::Notice,
            Question::Acknowledge { sha256: "00".repeat(32) },
            Question::Pause { for_ms: Some(5) },
            Question::Pause { for_ms: None },
            Question::Resume,
            Question::Leave,
        ] {
            let sent = serde_json::to_value(&question).unwrap();
            assert_eq!(serde_json::from_value::<Question>(sent).unwrap(), question);
        }
        assert!(serde_json::from_value::<Question>(json!({ "verb": "erase" })).is_err());
    }

    #[test]
    fn an_error_is_a_line_for_the_person() {
        let (what, todo) = told(AskError::Changed);
        let answer = json!({ "error": { "what": what, "todo": todo } });
        let line = understood(&answer).unwrap_err().to_string();
        assert_eq!(line, "the notice has changed while it was read. Read it again: muster-agent notice.");
    }
}
