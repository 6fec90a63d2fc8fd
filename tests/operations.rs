//! Blocking: what operators are given beside the programs: alert rules, units, the page of keys, runbooks. Each is held against the sources that
//! it speaks of, and shown to the programs that read it.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

// --- alert rules ---

const RULES: &str = "ops/monitoring/muster.rules.yml";
const RULES_TEST: &str = "ops/monitoring/muster.test.yml";

#[test]
fn prometheus_reads_the_rules_and_each_alert_fires_when_it_should() {
    if is_missing("promtool", "prometheus") {
        return;
    }
    for (words, file) in [(["check", "rules"], RULES), (["test", "rules"], RULES_TEST)] {
        let done = Command::new("promtool").args(words).arg(root().join(file)).output().unwrap();
        assert!(done.status.success(), "{}", said(&done));
    }
    let tried = read(RULES_TEST);
    for alert in alerts() {
        let expected = format!("alertname=\"{}\"", alert.name);
        assert!(tried.contains(&expected), "{} never fires in {RULES_TEST}", alert.name);
    }
}

#[test]
fn no_alert_waits_for_a_metric_that_no_program_tells() {
    let told: BTreeSet<String> = product_sources().iter().flat_map(|source| metrics(source, '"')).collect();
    let mut waited = BTreeSet::new();
    for file in [RULES, RULES_TEST] {
        waited.extend(metrics(&read(file), ' ').into_iter().filter(|name| !name.ends_with('_')));
    }
    assert!(waited.len() > 10 && told.len() > waited.len(), "only {waited:?} of {told:?} were found");
    for name in waited {
        let whole = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
        assert!(told.contains(&name) || told.contains(whole), "an alert waits for {name}, and no program tells it");
    }
}

#[test]
fn each_alert_says_what_to_do_and_where_more_stands() {
    let alerts = alerts();
    assert!(alerts.len() > 10);
    for Alert { name, summary, runbook, severity } in alerts {
        assert!(summary.len() > 80 && summary.ends_with('.'), "{name}: {summary:?} doesn't say what to do");
        assert!(root().join(&runbook).is_file(), "{name} names {runbook:?}, which isn't there");
        assert!(["critical", "warning", "info"].contains(&severity.as_str()), "{name}: {severity:?}");
    }
}

struct Alert {
    name: String,
    summary: String,
    runbook: String,
    severity: String,
}

fn alerts() -> Vec<Alert> {
    let text = read(RULES);
    let field = |part: &str, name: &str| {
        let value = part.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap_or_default();
        value.trim().trim_end_matches(" }").trim_matches('"').to_owned()
    };
    let alert = |part: &str| Alert {
        name: part.lines().next().unwrap().trim().to_owned(),
        summary: field(part, "summary:"),
        runbook: field(part, "runbook:"),
        severity: field(part, "labels: { severity:"),
    };
    text.split("- alert:").skip(1).map(alert).collect()
}

/// Names that begin with `muster_`; with `"` before it, only whole texts of the source.
fn metrics(text: &str, before: char) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("muster_") {
        let begins = match before {
            '"' => text[..at].ends_with('"'),
            _ => !text[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_'),
        };
        let name: String = text[at..].chars().take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_').collect();
        if begins {
            found.push(name);
        }
    }
    found
}

// --- units ---

/// Unit, whose manager reads it, and the highest exposure that `systemd-analyze security` may find, in tenths.
const UNITS: [(&str, &str, u32); 3] =
    [("muster-hub.service", "--system", 15), ("muster-relay.service", "--system", 15), ("muster-agent.service", "--user", 70)];

#[test]
fn systemd_takes_the_units() {
    if is_missing("systemd-analyze", "systemd") {
        return;
    }
    // It wants to see the programs that units name: here they are others, at a place of their own.
    let place = tempfile::tempdir().unwrap();
    for (unit, manager, exposure_max) in UNITS {
        let text = read(&format!("ops/systemd/{unit}"));
        let program = unit.strip_suffix(".service").unwrap();
        fs::write(place.path().join(program), "#!/bin/sh\n").unwrap();
        fs::set_permissions(place.path().join(program), PermissionsExt::from_mode(0o755)).unwrap();
        let installed = format!("/usr/bin/{program}");
        assert!(text.contains(&installed), "{unit} doesn't start {installed}");
        let here = place.path().join(unit);
        fs::write(&here, text.replace(&installed, place.path().join(program).to_str().unwrap())).unwrap();
        let analyze = |words: &[&str]| {
            let mut command = Command::new("systemd-analyze");
            command.arg(manager).args(words).arg(&here).env("XDG_RUNTIME_DIR", place.path()).env("SYSTEMD_COLORS", "0");
            command.output().unwrap()
        };
        let verified = analyze(&["verify", "--man=no"]);
        assert!(verified.status.success() && verified.stderr.is_empty(), "{unit}: {}", said(&verified));
        let looked = analyze(&["security", "--offline=true", "--no-pager", &format!("--threshold={exposure_max}")]);
        assert!(looked.status.success(), "{unit} is more exposed than {exposure_max} tenths: {}", said(&looked));
        let shown = said(&looked);
        println!("{}", shown.lines().find(|line| line.contains("Overall")).unwrap_or_default());
    }
}

#[test]
fn the_units_state_folders_and_users_are_those_of_the_examples() {
    let users = read("ops/systemd/muster.sysusers.conf");
    for (program, verb) in [("hub", "serve $MUSTER_HUB_SERVE"), ("relay", "run")] {
        let unit = read(&format!("ops/systemd/muster-{program}.service"));
        let example: toml::Table = read(&format!("ops/examples/{program}.toml")).parse().unwrap();
        assert_eq!(example["state"].as_str().unwrap(), format!("/var/lib/muster-{program}"));
        for line in [
            format!("ExecStart=/usr/bin/muster-{program} {verb} --config /etc/muster/{program}.toml"),
            format!("StateDirectory=muster-{program}"),
            format!("User=muster-{program}"),
        ] {
            assert!(unit.lines().any(|found| found == line), "muster-{program}.service doesn't say {line}");
        }
        assert!(users.contains(&format!("u muster-{program} ")), "nobody makes the user muster-{program}");
    }
}

/// The hub with the issuing key renews its own pair and writes the CA's lists; its unit lets it write below its state folder alone.
#[test]
fn what_a_hub_writes_lies_where_its_unit_lets_it_write() {
    assert!(read("ops/systemd/muster-hub.service").lines().any(|line| line == "ProtectSystem=strict"));
    let example: toml::Table = read("ops/examples/hub.toml").parse().unwrap();
    assert!(example.contains_key("signer"));
    let (mesh, signer, store) = (&example["mesh"], &example["signer"], &example["store"]);
    let written = [&mesh["certificate"], &mesh["key"], &mesh["roots"], &signer["ca"], &example["issued"], &store["objects"], &store["url"]];
    for path in written.map(|value| value.as_str().unwrap()) {
        let path = path.strip_prefix("sqlite://").unwrap_or(path);
        assert!(path.starts_with("/var/lib/muster-hub/"), "the hub writes {path}, and its unit doesn't let it");
    }
}

// --- keys ---

const KEYS: &str = "ops/KEYS.md";

/// File names of keys that the product or its examples name, whoever gives them: none is without a home on that page.
#[test]
fn every_key_file_stands_on_the_page_of_keys() {
    let page = read(KEYS);
    let mut named = BTreeSet::new();
    let examples = ["hub", "relay", "agent"].map(|program| read(&format!("ops/examples/{program}.toml")));
    for text in product_sources().iter().chain(&examples) {
        named.extend(key_files(text));
    }
    for known in ["root.key", "issuing.key", "device.key", "seal.key", "token.key", "asked.key", "web.key"] {
        assert!(named.contains(known), "{known} is named nowhere: are the sources read in the right way? {named:?}");
    }
    for name in named {
        assert!(page.contains(&format!("`{name}`")) || page.contains(&format!("/{name}`")), "{name} has no home in {KEYS}");
    }
}

/// `seal.key` in a text, a comment or a path; and `issuing` with the extension `key`.
fn key_files(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices(".key") {
        let ends = text[at + 4..].chars().next().is_none_or(|after| !after.is_ascii_alphanumeric() && !"_.(".contains(after));
        let stem: String = text[..at].chars().rev().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
        let before = text[..at - stem.len()].chars().next_back();
        // `self.key` and `issued.key` are fields; a file stands in a text, a path, or a picture of a folder.
        let in_text = before.is_some_and(|before| "\"/ `".contains(before)) && !is_field(text, at - stem.len(), at + 4);
        if ends && in_text && !stem.is_empty() {
            found.insert(stem.chars().rev().collect::<String>() + ".key");
        }
    }
    found
}

/// Whether it stands in code: no quote, slash, backtick or comment before it in its line.
fn is_field(text: &str, begin: usize, end: usize) -> bool {
    let line = &text[text[..begin].rfind('\n').map_or(0, |at| at + 1)..begin];
    let comment = line.trim_start().starts_with("//") || line.trim_start().starts_with('#');
    let quoted = line.matches('"').count() % 2 == 1;
    !(comment || quoted || text[end..].starts_with('`'))
}

// --- the tree ---

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The programs' own sources, without the tests at their ends.
fn product_sources() -> Vec<String> {
    let mut sources = Vec::new();
    let mut folders: Vec<PathBuf> =
        ["certs", "mesh", "agent", "agent/shot", "relay", "hub"].map(|part| root().join(part).join("src")).into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") && !path.ends_with("tests.rs") {
                let text = fs::read_to_string(&path).unwrap();
                let end = text.find("\n#[cfg(test)]\nmod ").unwrap_or(text.len());
                sources.push(text[..end].to_owned());
            }
        }
    }
    assert!(sources.len() > 100, "only {} sources were found", sources.len());
    sources
}

fn is_missing(program: &str, package: &str) -> bool {
    let missing = Command::new(program).arg("--version").output().is_err();
    if missing {
        println!("skipped: {program} isn't here; Debian's package {package} has it");
    }
    missing
}

fn said(done: &Output) -> String {
    [&done.stdout, &done.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).join("\n")
}
