//! Blocking: the collector on a real display: an Xvfb with openbox, in which xdotool types and clicks.
//!
//! Needs xvfb, openbox, xdotool and xterm. Without them it is skipped with a line, and fails where `CI` is set.
// Deadlines of real processes.
#![allow(clippy::disallowed_methods)]
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod stage;

use muster_mesh::record::{Application, Kind, Record, Session, Source, State};

use self::stage::{Agent, CAPABILITY, Desktop, POLICY};

#[tokio::test(flavor = "multi_thread")]
async fn a_real_desktop_is_counted_exactly_and_a_pause_is_not_seen() {
    let Some(mut desktop) = Desktop::start() else { return };
    desktop.window("Writer", "control letter");
    let agent = Agent::start(desktop.alone(), POLICY).await;
    agent.read_notice().await;
    agent.seconds(2).await;

    desktop.xdotool("mousemove_relative 5 5");
    desktop.xdotool(&format!("key --delay 5 {}", vec!["a"; 100].join(" ")));
    desktop.xdotool("click --repeat 40 --delay 5 1");
    desktop.xdotool("click --repeat 10 --delay 5 4");
    agent.seconds(2).await;

    agent.asker.pause(None).await.unwrap();
    desktop.window("Hidden", "canary of the pause");
    desktop.xdotool(&format!("key --delay 5 {}", vec!["b"; 50].join(" ")));
    agent.seconds(2).await;
    desktop.window("SecretApp", "canary of the excluded");
    agent.asker.resume().await.unwrap();
    agent.seconds(7).await;

    let observed = agent.stop().await;
    assert_eq!(observed.input(), (100, 40, 10, true), "{:#?}", observed.records);
    let writer = Application::Named("Writer".into());
    assert!(observed.focus_ms(|application, title| *application == writer && title == Some("control letter")) >= 2_000);
    assert!(observed.focus_ms(|application, title| *application == Application::Private && title.is_none()) >= 5_000);
    let text = format!("{:?}", observed.records);
    assert!(!text.contains("canary") && !text.contains("Hidden") && !text.to_lowercase().contains("secretapp"), "{text}");
    assert!(text.contains("state: Idle"), "seven seconds without input are idle: {text}");
    let paused = observed.records.iter().find_map(|record| match &record.kind {
        Kind::Session(Session::Unpause { paused_ms }) => Some(*paused_ms),
        _ => None,
    });
    assert!(paused.is_some_and(|ms| (2_000..30_000).contains(&ms)), "{paused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_display_that_dies_is_told_and_is_seen_again_when_it_is_back() {
    let display = format!(":{}", 1_000 + std::process::id() % 30_000);
    let Some(mut desktop) = Desktop::named(&display) else { return };
    desktop.window("Writer", "control letter");
    let agent = Agent::start(desktop.alone(), POLICY).await;
    agent.read_notice().await;
    // Of window, idle, input, lock, call and battery.
    let told = 6;
    agent.until_observed(CAPABILITY, told).await;
    agent.seconds(2).await;
    drop(desktop);
    agent.until_observed(CAPABILITY, told + 3).await;
    // Longer than a person may be without input before they are idle.
    agent.seconds(5).await;
    let mut desktop = Desktop::named(&display).unwrap();
    desktop.window("Writer", "second letter");
    agent.until_observed(CAPABILITY, told + 6).await;
    agent.seconds(2).await;
    let observed = agent.stop().await;
    for what in ["window", "idle", "input"] {
        assert_eq!(observed.able(what), [true, false, true], "{what}: {:#?}", observed.records);
    }
    let unseen = |record: &Record| matches!(&record.kind, Kind::Focus(focus) if focus.source == Source::None && focus.application == Application::None);
    assert!(observed.records.iter().any(unseen), "{:#?}", observed.records);
    assert!(observed.focus_ms(|_, title| title == Some("second letter")) > 0, "{:#?}", observed.records);
    let told_of_idle = |record: &Record| matches!(&record.kind, Kind::Capability(told) if told.what == "idle");
    let told: Vec<usize> = (0..).zip(&observed.records).filter(|(_, record)| told_of_idle(record)).map(|(place, _)| place).collect();
    let idle = |&(place, state): &(usize, State)| state == State::Idle && (told[1]..told[2]).contains(&place);
    assert!(!observed.beats().iter().any(idle), "cannot see is never idle: {:#?}", observed.records);
    assert!(matches!(observed.records.last(), Some(Record { kind: Kind::Session(Session::Stop), .. })), "{:?}", observed.records);
}
