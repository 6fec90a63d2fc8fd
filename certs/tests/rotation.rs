//! Blocking: rotations of the issuing CA and of the root in virtual time, with a real CA folder and real handshakes between holders of either.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use muster_certs::chain::check_chain;
use muster_certs::leaf::issuer_key;
use muster_certs::rotation::{Kind, Phase, RotationError, State, Why};
use muster_certs::*;
use rustls::time_provider::TimeProvider;

use wire::{Clock, meet};

mod wire;

const DOMAIN: &str = "test.internal";
const NOW_MS: i64 = 1_800_000_000_000;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;
const RELAY: &str = "site/oslo/relay/oslo-1";
const AGENT: &str = "site/oslo/agent/0190b7e8c4d27d30a5f1c2d3e4f50617";
const AGENTS: &[Role] = &[Role::Agent];
const ALPN: &[&[u8]] = &[b"muster/1"];

#[test]
fn the_issuing_ca_is_rotated_and_nobody_notices() {
    let mut world = World::new();
    let (old_relay, old_agent) = (world.node(RELAY), world.node(AGENT));
    let old = world.ca.issuer().pem().to_owned();

    world.ca.start_issuing(&world.root).unwrap();
    assert_eq!(world.phase(), Some((Kind::Issuing, Phase::Prepared)));
    assert_eq!(world.ca.issuer().pem(), old, "the old one goes on issuing");
    world.ca.advance(None, false).unwrap();
    assert_eq!(world.phase(), Some((Kind::Issuing, Phase::Switched)));
    assert_ne!(world.ca.issuer().pem(), old);
    let (new_relay, new_agent) = (world.node(RELAY), world.node(AGENT));
    for relay in [&old_relay, &new_relay] {
        for agent in [&old_agent, &new_agent] {
            meets(agent, relay).unwrap();
        }
    }
    assert_eq!(new_relay.chain.len(), 2, "no cross certificate is needed below one root");

    // Nobody holds an old leaf any more.
    let report = world.report([&new_relay, &new_agent]);
    let moved = world.ca.advance(Some(&report), false).unwrap();
    assert_eq!(moved.destroyed, [world.dir().join("issuing/issuing.key")]);
    assert_eq!((world.phase(), world.ca.bundle_version()), (None, 1));
    assert!(!world.dir().join("issuing/issuing.key").exists());
    assert!(world.dir().join("issuing/issuing.pem").exists(), "the certificate is kept");
    assert_eq!(world.ca.settle().unwrap(), [] as [PathBuf; 0]);
    meets(&world.node(AGENT), &old_relay).unwrap();
}

#[test]
fn retiring_the_issuing_ca_too_early_is_refused_with_names() {
    let mut world = World::new();
    let (relay, agent) = (world.node(RELAY), world.node(AGENT));
    world.ca.start_issuing(&world.root).unwrap();
    world.ca.advance(None, false).unwrap();
    let blind = world.ca.advance(None, false).unwrap_err();
    assert!(matches!(blind, CaError::Rotation(RotationError::NeedsReport(_))), "{blind}");
    assert!(blind.to_string().contains("muster-hub member list --json"), "{blind}");

    let new_relay = world.node(RELAY);
    let report = world.report([&new_relay, &agent]);
    let error = world.ca.advance(Some(&report), false).unwrap_err();
    assert_eq!(names(&error), [(AGENT.to_owned(), Why::OldLeaf)]);
    assert!(error.to_string().contains(AGENT), "{error}");

    // A leaf that has ended holds nothing back, one in its last second does.
    let mut at_its_end = report.clone();
    at_its_end.members[1].not_after_ms = Some(world.now_ms());
    assert_eq!(names(&world.ca.advance(Some(&at_its_end), false).unwrap_err()).len(), 1);
    // Nor does who was denied; who has no leaf yet neither.
    let mut denied = report.clone();
    denied.members[1].denied = true;
    world.ca.advance(Some(&denied), false).unwrap();
    drop(relay);
}

#[test]
fn a_hub_whose_certificate_lies_in_a_file_counts_although_no_hub_reports_it() {
    let mut world = World::new();
    world.ca.issue_hub("hub-1").unwrap();
    world.ca.start_issuing(&world.root).unwrap();
    world.ca.advance(None, false).unwrap();
    let report = world.report([]);
    assert_eq!(names(&world.ca.advance(Some(&report), false).unwrap_err()), [("hub/hub-1".to_owned(), Why::OldLeaf)]);
    // Its renewal stopped half-way: the old one may be in use still.
    let new = world.ca.reissue(&["hub/hub-1".parse().unwrap()]).unwrap();
    assert_eq!(names(&world.ca.advance(Some(&report), false).unwrap_err()), [("hub/hub-1".to_owned(), Why::OldLeaf)]);
    world.ca.replaced(&new).unwrap();
    world.ca.advance(Some(&report), false).unwrap();
}

#[test]
fn after_the_old_issuing_cas_end_nobody_needs_to_be_asked() {
    let mut world = World::new();
    world.clock.set(NOW_MS + 300 * DAY_MS);
    world.ca.start_issuing(&world.root).unwrap();
    world.ca.advance(None, false).unwrap();
    world.clock.set(world.ca.state().issuing.not_after_ms);
    assert!(world.ca.advance(None, false).is_err(), "in its last second it still counts");
    world.clock.set(world.ca.state().issuing.not_after_ms + 1000);
    world.ca.advance(None, false).unwrap();
    assert_eq!(world.phase(), None);
}

#[test]
fn the_root_is_rotated_while_one_holder_knows_only_the_old_one_all_the_time() {
    let mut world = World::new();
    // Somebody who was away all the time, and one whose leaf is renewed without the bundle.
    let (away, old_agent) = (world.node(RELAY), world.node(AGENT));
    let old_roots = away.roots.clone();

    world.ca.start_root(&world.root).unwrap();
    assert_eq!((world.phase(), world.ca.bundle_version()), (Some((Kind::Root, Phase::Prepared)), 2));
    let prepared = world.node(RELAY);
    assert_eq!(prepared.roots.matches("BEGIN CERTIFICATE").count(), 2);
    assert_eq!(prepared.chain.len(), 2);
    meets(&old_agent, &prepared).unwrap();

    world.ca.advance(None, false).unwrap();
    let switched = world.node(AGENT);
    assert_eq!(switched.chain.len(), 3, "leaf, issuing CA, cross certificate");
    meets(&switched, &away).unwrap();
    meets(&switched, &prepared).unwrap();
    meets(&old_agent, &world.node(RELAY)).unwrap();

    // Retiring cuts off who holds an old leaf.
    let report = world.report([&away, &switched]);
    assert_eq!(names(&world.ca.advance(Some(&report), false).unwrap_err()), [(RELAY.to_owned(), Why::OldLeaf)]);
    // Its leaf ends (14 days), its site is still away.
    world.clock.set(NOW_MS + 15 * DAY_MS);
    let report = world.report([&away, &switched]);
    world.ca.advance(Some(&report), false).unwrap();
    assert_eq!((world.phase(), world.ca.bundle_version()), (Some((Kind::Root, Phase::Retired)), 3));
    assert!(!world.dir().join("issuing/issuing.key").exists());
    let retired = world.node("site/oslo/relay/oslo-2");
    assert_eq!(retired.roots.matches("BEGIN CERTIFICATE").count(), 1);
    assert!(!old_roots.contains(&retired.roots));
    assert_eq!(retired.chain.len(), 3, "the cross certificate stays");

    // Who holds only the old root still checks everybody, by the cross certificate: in a handshake with a leaf of its own that was renewed
    // without the bundle, and at a door that shows only the new root.
    let lagging = Node { roots: old_roots.clone(), ..world.node(AGENT) };
    meets(&lagging, &retired).unwrap();
    knocks(&old_roots, &retired).unwrap();
    assert!(meets(&old_agent, &retired).is_err(), "its own leaf is of the old issuing CA");

    // The cross certificate goes when nobody holds the old bundle.
    let mut report = world.report([&away, &retired]);
    assert_eq!(names(&world.ca.advance(Some(&report), false).unwrap_err()), [(RELAY.to_owned(), Why::OldBundle)]);
    report.members[0].bundle_version = None;
    assert_eq!(names(&world.ca.advance(Some(&report), false).unwrap_err()), [(RELAY.to_owned(), Why::OldBundle)]);
    let returned = world.node(RELAY);
    let report = world.report([&returned, &retired]);
    world.ca.advance(Some(&report), false).unwrap();
    assert_eq!(world.phase(), None);
    let done = world.node(AGENT);
    assert_eq!(done.chain.len(), 2);
    meets(&done, &returned).unwrap();
    meets(&done, &retired).unwrap();
    assert!(meets(&lagging, &world.node("site/oslo/relay/oslo-3")).is_err(), "without it the old root says nothing");

    // The next rotation goes on from there.
    world.ca.start_issuing(&world.root).unwrap();
    world.ca.advance(None, false).unwrap();
    meets(&world.node(AGENT), &returned).unwrap();
}

#[test]
fn there_is_a_way_back_from_each_phase() {
    let mut world = World::new();
    let old = [world.node(RELAY), world.node(AGENT)];
    let old_agent = world.node(AGENT);
    world.ca.start_root(&world.root).unwrap();
    let prepared = [world.node(RELAY), world.node(AGENT)];
    world.ca.advance(None, false).unwrap();
    let switched = [world.node(RELAY), world.node(AGENT)];

    world.ca.back().unwrap();
    assert_eq!(world.phase(), Some((Kind::Root, Phase::Prepared)));
    let back = [world.node(RELAY), world.node(AGENT)];
    assert_eq!(back[0].chain.len(), 2);
    world.ca.back().unwrap();
    assert_eq!((world.phase(), world.ca.bundle_version()), (None, 3));
    let given_up = [world.node(RELAY), world.node(AGENT)];
    assert_eq!(given_up[0].roots, old[0].roots);
    let all = [old, prepared, switched, back, given_up];
    for [relay, _] in &all {
        for [_, agent] in &all {
            meets(agent, relay).unwrap();
        }
    }
    assert!(matches!(world.ca.back(), Err(CaError::Rotation(RotationError::None))));

    // Forwards again, and too far.
    world.ca.start_root(&world.root).unwrap();
    world.ca.advance(None, false).unwrap();
    let [.., [relay, _]] = &all;
    let forced = world.ca.advance(None, true).unwrap();
    assert_eq!(forced.cut_off, [], "nobody reported anybody");
    let retired = [world.node(RELAY), world.node(AGENT)];
    assert!(meets(&retired[1], relay).is_err(), "force does cut off");

    // Whoever was cut off is let in again, and whoever never hears of the step back, too.
    let moved = world.ca.back().unwrap();
    assert_eq!((world.phase(), moved.destroyed), (Some((Kind::Root, Phase::Switched)), vec![]));
    let again = [world.node(RELAY), world.node(AGENT)];
    assert_eq!(again[0].roots.matches("BEGIN CERTIFICATE").count(), 2);
    for [_, agent] in all.iter().chain([&retired, &again]) {
        meets(agent, &again[0]).unwrap();
    }
    for [relay, _] in all.iter().chain([&retired, &again]) {
        meets(&again[1], relay).unwrap();
    }

    // The old issuing CA's key is gone, and some hold the new root alone.
    let error = world.ca.back().unwrap_err();
    assert!(matches!(error, CaError::Rotation(RotationError::NoWayBack)));
    assert!(error.to_string().contains("there is no further way back"), "{error}");
    assert_eq!(world.ca.state().kept_keys().len(), 1);
    let report = world.report([&old_agent, &again[0]]);
    assert_eq!(names(&world.ca.advance(Some(&report), false).unwrap_err()), [(AGENT.to_owned(), Why::OldLeaf)]);
    world.ca.advance(None, true).unwrap();
    assert_eq!((world.phase(), world.ca.bundle_version()), (Some((Kind::Root, Phase::Retired)), 7));
    world.ca.advance(None, true).unwrap();
    assert_eq!(world.phase(), None);
    meets(&world.node(AGENT), &retired[0]).unwrap();
}

#[test]
fn an_issuing_ca_is_given_up_from_each_phase() {
    let mut world = World::new();
    let old = [world.node(RELAY), world.node(AGENT)];
    world.ca.start_issuing(&world.root).unwrap();
    world.ca.advance(None, false).unwrap();
    let new = [world.node(RELAY), world.node(AGENT)];
    world.ca.back().unwrap();
    let moved = world.ca.back().unwrap();
    assert_eq!(moved.destroyed.len(), 1);
    assert_eq!(std::fs::read_dir(world.dir().join("issuing")).unwrap().count(), 3, "the old pair, and the certificate of the new one");
    let back = [world.node(RELAY), world.node(AGENT)];
    for [relay, _] in [&old, &new, &back] {
        for [_, agent] in [&old, &new, &back] {
            meets(agent, relay).unwrap();
        }
    }
}

#[test]
fn force_says_whom_it_cuts_off() {
    let mut world = World::new();
    let agent = world.node(AGENT);
    world.ca.start_issuing(&world.root).unwrap();
    world.ca.advance(None, false).unwrap();
    let report = world.report([&agent]);
    let moved = world.ca.advance(Some(&report), true).unwrap();
    assert_eq!(moved.cut_off.len(), 1);
    assert_eq!(moved.cut_off[0].name.to_string(), AGENT);
}

#[test]
fn a_report_of_last_week_decides_nothing() {
    let mut world = World::new();
    world.ca.start_issuing(&world.root).unwrap();
    world.ca.advance(None, false).unwrap();
    let report = world.report([]);
    world.clock.set(NOW_MS + 7 * DAY_MS);
    assert!(matches!(world.ca.advance(Some(&report), true), Err(CaError::Report(_))));
}

#[test]
fn a_report_from_before_the_hub_had_noticed_decides_nothing() {
    let mut world = World::new();
    world.clock.set(NOW_MS + 1000);
    let before = world.report([]);
    world.clock.set(NOW_MS + 2000);
    world.ca.start_root(&world.root).unwrap();
    world.ca.advance(Some(&before), false).unwrap();
    let lags = |world: &mut World, report: &Report| match world.ca.advance(Some(report), false) {
        Err(CaError::Rotation(error @ (RotationError::HubLags | RotationError::EarlyReport))) => error,
        other => panic!("{other:?}"),
    };
    // Somebody who was enrolled since holds a certificate of the old issuing CA, and isn't in it.
    assert_eq!(lags(&mut world, &before), RotationError::HubLags);
    let unsaid = Report { signer_key: None, ..world.report([]) };
    assert_eq!(lags(&mut world, &unsaid), RotationError::EarlyReport);
    let switched = world.report([]);
    world.ca.advance(Some(&switched), false).unwrap();
    world.clock.set(NOW_MS + 3000);
    let early = Report { at_ms: NOW_MS + 1999, ..world.report([]) };
    assert_eq!(lags(&mut world, &early), RotationError::EarlyReport);
    world.clock.set(NOW_MS + 62_000);
    let unsaid = Report { signer_key: None, ..world.report([]) };
    world.ca.advance(Some(&unsaid), false).unwrap();
}

#[test]
fn one_rotation_at_a_time_and_one_command_at_a_time() {
    let mut world = World::new();
    let mut other = world.open();
    world.ca.start_issuing(&world.root).unwrap();
    assert!(matches!(world.ca.start_root(&world.root), Err(CaError::Rotation(RotationError::UnderWay(Kind::Issuing)))));
    assert!(matches!(other.start_root(&world.root), Err(CaError::Overtaken)));
}

#[test]
fn a_rotation_starts_with_the_offline_folder_and_goes_on_without() {
    let mut world = World::new();
    let offline = world.folder.path().join("stick");
    std::fs::rename(&world.root, &offline).unwrap();
    let error = world.ca.start_root(&world.root).unwrap_err();
    assert!(matches!(error, CaError::NoRootKey(_)) && error.to_string().contains("--root"), "{error}");
    assert_eq!(world.phase(), None);
    world.ca.start_root(&offline).unwrap();
    assert_eq!(std::fs::read_dir(&offline).unwrap().count(), 4, "both roots and their keys lie there");
    std::fs::rename(&offline, world.folder.path().join("safe")).unwrap();
    world.ca.advance(None, false).unwrap();
    world.ca.advance(None, true).unwrap();
    world.ca.advance(None, true).unwrap();
    assert_eq!(world.phase(), None);
}

#[test]
fn a_running_signer_notices_and_opens_again() {
    let mut world = World::new();
    let mut running = world.open();
    assert!(!running.changed());
    world.ca.start_root(&world.root).unwrap();
    assert!(running.changed());
    running = world.open();
    assert!(!running.changed());
    world.ca.advance(None, false).unwrap();
    assert!(running.changed());
    running = world.open();
    let request = KeyRequest::generate().unwrap();
    let identity = Identity::new(DOMAIN, RELAY.parse().unwrap()).unwrap();
    let chain = running.issuer().issue_for(&identity, &Requested::read(&request.request).unwrap(), DAY_MS, world.now_ms()).unwrap();
    assert_eq!((chain.ders.len(), chain.pem.matches("BEGIN CERTIFICATE").count()), (3, 3));
    assert_eq!(running.roots_pem().matches("BEGIN CERTIFICATE").count(), 2);
    assert_eq!(running.issuer().pem(), world.ca.issuer().pem());
}

#[test]
#[allow(clippy::print_stdout)]
fn a_key_that_root_makes_belongs_to_whom_the_folder_belongs() {
    const SOMEBODY: u32 = 54_321;
    let mut world = World::new();
    let folder = world.dir().join("issuing");
    if std::os::unix::fs::chown(&folder, Some(SOMEBODY), Some(SOMEBODY)).is_err() {
        println!("skipped: only root can play another user");
        return;
    }
    world.ca.start_issuing(&world.root).unwrap();
    let file = &world.ca.state().turn.as_ref().unwrap().issuing.file;
    let key = std::fs::metadata(folder.join(format!("{file}.key"))).unwrap();
    assert_eq!((key.uid(), key.gid(), key.mode() & 0o777), (SOMEBODY, SOMEBODY, 0o600));
}

#[test]
fn what_a_crash_left_is_put_right_by_the_next_step() {
    let mut world = World::new();
    let key = std::fs::read(world.dir().join("issuing/issuing.key")).unwrap();
    world.ca.start_root(&world.root).unwrap();
    world.ca.advance(None, false).unwrap();
    let both = std::fs::read(world.dir().join("roots.pem")).unwrap();
    world.ca.advance(None, true).unwrap();
    // As if it had stopped right after rotation.json.
    files::write_public(&world.dir().join("roots.pem"), &both).unwrap();
    files::write_secret(&world.dir().join("issuing/issuing.key"), &key).unwrap();
    let opened = world.open();
    assert_eq!(opened.roots_pem().matches("BEGIN CERTIFICATE").count(), 1, "rotation.json says what is in force");
    assert_eq!(opened.settle().unwrap(), [world.dir().join("issuing/issuing.key")]);
    assert_eq!(std::fs::read_to_string(world.dir().join("roots.pem")).unwrap(), opened.roots_pem());
}

#[test]
fn a_state_that_cannot_be_is_refused() {
    let mut world = World::new();
    world.ca.start_issuing(&world.root).unwrap();
    let path = world.dir().join("rotation.json");
    let good = std::fs::read_to_string(&path).unwrap();
    let of = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Ca::open_at(&world.dir(), world.clock.provider()).unwrap_err()
    };
    let file = world.ca.state().turn.as_ref().unwrap().issuing.file.clone();
    for bad in ["{}", "", &good.replace("\"version\": 1,\n  \"step\"", "\"version\": 2,\n  \"step\""), &good.replace(&file, "../../etc")] {
        assert!(matches!(of(bad), CaError::State { .. }), "{bad}");
    }
    std::fs::write(&path, &good).unwrap();
    let read: State = serde_json::from_str(&good).unwrap();
    assert_eq!(&read, world.open().state());
}

#[test]
fn a_node_knows_its_end_by_its_own_roots_and_not_by_the_cross_certificate() {
    // The old root has a year left, so the cross certificate has, too.
    let mut world = World::new();
    world.clock.set(NOW_MS + 3640 * DAY_MS);
    world.ca.start_issuing(&world.root).unwrap();
    world.ca.advance(None, false).unwrap();
    world.ca.advance(None, true).unwrap();
    world.ca.start_root(&world.root).unwrap();
    world.ca.advance(None, false).unwrap();
    let relay = world.node("hub/hub-1");
    let (both, only_old) = (relay.keys(&world.clock), relay.clone().with_roots(&world.ca.state().root.pem).keys(&world.clock));
    assert_eq!(both.not_after_ms(), world.now_ms() + 90 * DAY_MS);
    assert_eq!(only_old.not_after_ms(), world.ca.state().root.not_after_ms);
    assert!(only_old.not_after_ms() < both.not_after_ms());
}

/// Whatever order the steps, renewals and days come in: as long as nobody forces, everybody whose certificate hasn't ended is understood by
/// everybody, whichever bundle they hold; and the doctor knows it.
#[test]
fn no_order_of_steps_cuts_anybody_off() {
    let mut refused = 0;
    let mut finished = 0;
    for seed in 1..=8 {
        let mut chance = Chance(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let mut world = World::new();
        let mut nodes: Vec<Node> = (0..6).map(|n| world.node(&name_of(n))).collect();
        for step in 0..80 {
            let all: Vec<&Node> = nodes.iter().collect();
            let report = world.report_of(&all);
            let had = world.ca.state().turn.as_ref().map(|turn| turn.phase);
            let moved = match chance.below(10) {
                0 => world.ca.start_issuing(&world.root).map(drop),
                1 => world.ca.start_root(&world.root).map(drop),
                2 | 3 => world.ca.advance(Some(&report), false).map(drop),
                4 if chance.below(3) == 0 => world.ca.back().map(drop),
                4..=6 => {
                    // About two renew: with the bundle, or without it when the line was cut meanwhile.
                    for node in &mut nodes {
                        if chance.below(3) == 0 {
                            let new = world.node(&node.name.to_string());
                            let lags = chance.below(6) == 0;
                            *node = if lags { Node { roots: node.roots.clone(), bundle: node.bundle, ..new } } else { new };
                        }
                    }
                    Ok(())
                }
                7 => {
                    let at = chance.below(nodes.len() as u64) as usize;
                    (nodes[at].roots, nodes[at].bundle) = (world.ca.roots_pem().to_owned(), world.ca.bundle_version());
                    Ok(())
                }
                _ => {
                    world.clock.set(world.now_ms() + i64::try_from(chance.below(4)).unwrap() * DAY_MS);
                    Ok(())
                }
            };
            match moved {
                Err(CaError::Rotation(RotationError::CutsOff(_))) => refused += 1,
                Err(CaError::Rotation(_)) => {}
                other => {
                    other.unwrap();
                    world.all_understand_each_other(&nodes, &format!("seed {seed}, step {step}"));
                }
            }
            finished += usize::from(had.is_some_and(|phase| phase != Phase::Prepared) && world.ca.state().turn.is_none());
        }
    }
    assert!(refused > 20 && finished >= 5, "{refused} refused, {finished} rotations finished: nothing was tried");
}

/// A CA in a folder, in virtual time, and certificates for whoever asks, as the hub's signer makes them.
struct World {
    folder: tempfile::TempDir,
    clock: Clock,
    ca: Ca,
    root: PathBuf,
}

/// Somebody's certificate and roots.
#[derive(Clone)]
struct Node {
    name: Name,
    pem: String,
    key_pem: String,
    roots: String,
    bundle: u64,
    chain: Vec<rustls_pki_types::CertificateDer<'static>>,
    not_after_ms: i64,
    clock: Clock,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::at(NOW_MS);
        let ca = Ca::init_at(&folder.path().join("ca"), DOMAIN, clock.provider()).unwrap();
        let root = folder.path().join("ca/root");
        World { folder, clock, ca, root }
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("ca")
    }

    fn open(&self) -> Ca {
        Ca::open_at(&self.dir(), self.clock.provider()).unwrap()
    }

    fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    fn phase(&self) -> Option<(Kind, Phase)> {
        self.ca.state().turn.as_ref().map(|turn| (turn.kind(), turn.phase))
    }

    fn node(&self, name: &str) -> Node {
        let request = KeyRequest::generate().unwrap();
        let name: Name = name.parse().unwrap();
        let identity = Identity::new(DOMAIN, name.clone()).unwrap();
        let life_ms = issuer::leaf_life_ms(name.role());
        let requested = Requested::read(&request.request).unwrap();
        let chain = self.ca.issuer().issue_for(&identity, &requested, life_ms, self.now_ms()).unwrap();
        Node {
            name,
            pem: chain.pem,
            key_pem: request.key_pem,
            roots: self.ca.roots_pem().to_owned(),
            bundle: self.ca.bundle_version(),
            chain: chain.ders,
            not_after_ms: chain.not_after_ms,
            clock: self.clock.clone(),
        }
    }

    /// By `check_chain` and by the doctor's reckoning, which must agree.
    fn all_understand_each_other(&self, nodes: &[Node], when: &str) {
        let all: Vec<&Node> = nodes.iter().collect();
        let holders = self.report_of(&all).holders().unwrap();
        let now = self.clock.current_time().unwrap();
        for (shown, holder) in nodes.iter().zip(&holders).filter(|(_, holder)| holder.is_alive(self.now_ms())) {
            for (eyes, other) in nodes.iter().zip(&holders) {
                let roots = material::root_store(&eyes.roots).unwrap();
                let good = check_chain(&shown.chain[0], &shown.chain[1..], &roots, shown.name.role(), now);
                assert_eq!(good, Ok(()), "{when}: {} in the eyes of {}", shown.name, eyes.name);
                assert_eq!(self.ca.state().good_until_ms(holder, other), Some(shown.not_after_ms), "{when}: {} {}", shown.name, eyes.name);
            }
        }
    }

    /// As the hub would print it.
    fn report<const N: usize>(&self, nodes: [&Node; N]) -> Report {
        self.report_of(&nodes)
    }

    fn report_of(&self, nodes: &[&Node]) -> Report {
        let member = |node: &&Node| Member {
            name: node.name.to_string(),
            bundle_version: Some(node.bundle),
            issuer_key: issuer_key(&node.chain[0]).unwrap(),
            serial: Some(read_leaf(&node.chain[0]).unwrap().serial),
            not_after_ms: Some(node.not_after_ms),
            last_seen_ms: Some(self.now_ms()),
            denied: false,
            earlier: Vec::new(),
        };
        let signer_key = Some(self.ca.state().issuer().key.clone());
        Report {
            domain: DOMAIN.into(),
            at_ms: self.now_ms(),
            signer_key,
            keys: Vec::new(),
            certificates: Vec::new(),
            members: nodes.iter().map(member).collect(),
        }
    }
}

impl Node {
    fn keys(&self, clock: &Clock) -> Arc<Keys> {
        Keys::from_pem(&self.pem, &self.key_pem, &self.roots, self.name.role(), clock.provider()).unwrap()
    }

    fn with_roots(mut self, roots: &str) -> Node {
        self.roots = roots.to_owned();
        self
    }
}

/// A real handshake, both sides checking; and the same by `check_chain` alone.
fn meets(agent: &Node, relay: &Node) -> Result<(), String> {
    let (client, server) = (agent.keys(&agent.clock), relay.keys(&relay.clock));
    let met = meet(client_config(&client, &relay.name, ALPN).unwrap(), server_config(&server, AGENTS, ALPN).unwrap());
    let now = agent.clock.current_time().unwrap();
    let by_chain = [(agent, relay), (relay, agent)].map(|(shown, eyes)| {
        let roots = material::root_store(&eyes.roots).unwrap();
        check_chain(&shown.chain[0], &shown.chain[1..], &roots, shown.name.role(), now)
    });
    assert_eq!(met.is_ok(), by_chain.iter().all(Result::is_ok), "{met:?} {by_chain:?}");
    met.map(drop).map_err(|error| format!("{error:?}"))
}

/// Somebody without a certificate, who holds these roots, at this relay's door.
fn knocks(roots: &str, relay: &Node) -> Result<(), String> {
    let trusted = Trusted::of_roots(DOMAIN, roots).unwrap();
    let client = stranger_config(&trusted, &relay.name, relay.clock.provider(), ALPN).unwrap();
    meet(client, door_config(&relay.keys(&relay.clock), ALPN).unwrap()).map(drop).map_err(|error| format!("{error:?}"))
}

/// Chance that a seed repeats.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn name_of(n: usize) -> String {
    if n < 2 { format!("site/oslo/relay/oslo-{n}") } else { format!("site/oslo/agent/{}", format!("{n:02x}").repeat(16)) }
}

fn names(error: &CaError) -> Vec<(String, Why)> {
    let CaError::Rotation(RotationError::CutsOff(cut)) = error else { panic!("{error}") };
    cut.who.iter().map(|cut| (cut.name.to_string(), cut.why)).collect()
}

#[test]
fn a_folder_of_the_first_version_opens_and_rotates() {
    // What version 0.1.0 wrote: no list of certificates, no rotation.json.
    let mut world = World::new();
    let files: Vec<String> =
        std::fs::read_dir(world.dir()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(files.len(), 4, "{files:?}");
    std::fs::write(world.dir().join("issued.jsonl"), old_line()).unwrap();
    world.ca.start_issuing(&world.root).unwrap();
    world.ca.advance(None, false).unwrap();
    let report = world.report([]);
    assert_eq!(names(&world.ca.advance(Some(&report), false).unwrap_err()), [(AGENT.to_owned(), Why::OldLeaf)]);
    assert!(Path::new(&world.dir().join("rotation.json")).exists());
}

fn old_line() -> String {
    let device = AGENT.rsplit('/').next().unwrap();
    format!(r#"{{"device":"{device}","site":"oslo","person":"kari","name":"Kari","not_after_ms":{}}}"#, NOW_MS + DAY_MS) + "\n"
}
