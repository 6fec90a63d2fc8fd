//! Blocking: until when a branch can stay alone, beside real handshakes on a clock that is turned until the first one fails; and what the doctor
//! finds besides.
#![allow(clippy::unwrap_used)]

use muster_certs::doctor::{Branch, Checkup, FindingKind, checkup};
use muster_certs::leaf::issuer_key;
use muster_certs::ledger::Backups;
use muster_certs::*;

use wire::{Clock, meet};

mod wire;

const DOMAIN: &str = "test.internal";
const NOW_MS: i64 = 1_800_000_000_000;
const HOUR_MS: i64 = 60 * 60 * 1000;
const DAY_MS: i64 = 24 * HOUR_MS;
const MINUTE_MS: i64 = 60 * 1000;
const AGENTS: &[Role] = &[Role::Agent];
const ALPN: &[&[u8]] = &[b"muster/1"];

#[test]
fn a_branch_stays_alone_until_its_first_handshake_fails() {
    let mut world = World::new();
    let relay = world.node("site/oslo/relay/oslo-1");
    world.pass(3 * DAY_MS + 17 * HOUR_MS);
    let agents = [world.node(&agent(1)), world.node(&agent(2))];
    // The relay's ends first: 14 days after its issue.
    let branch = world.agrees(&[&relay], &[&agents[0], &agents[1]]);
    assert_eq!(branch.alone_until_ms, Some(relay.not_after_ms));
    // A relay that was renewed an hour ago outlives an agent that was issued 20 days ago.
    world.pass(20 * DAY_MS);
    let relay = world.node("site/oslo/relay/oslo-1");
    world.pass(HOUR_MS);
    let branch = world.agrees(&[&relay], &[&agents[0], &agents[1]]);
    assert_eq!((branch.alone_until_ms, branch.agents_out), (Some(agents[0].not_after_ms), 0));
}

#[test]
fn an_agent_that_has_been_asleep_past_its_end_does_not_count_and_is_told() {
    let mut world = World::new();
    let asleep = world.node(&agent(1));
    world.pass(31 * DAY_MS);
    let (relay, awake) = (world.node("site/oslo/relay/oslo-1"), world.node(&agent(2)));
    let branch = world.agrees(&[&relay], &[&asleep, &awake]);
    assert_eq!((branch.agents, branch.agents_out), (2, 1));
    let branch = world.agrees(&[&relay], &[&asleep]);
    assert_eq!((branch.agents_out, branch.alone_until_ms), (1, None));
}

#[test]
fn with_two_relays_a_branch_stays_alone_as_long_as_one_of_them_answers() {
    let mut world = World::new();
    let first = world.node("site/oslo/relay/oslo-1");
    world.pass(5 * DAY_MS);
    let second = world.node("site/oslo/relay/oslo-2");
    let awake = world.node(&agent(2));
    let branch = world.agrees(&[&first, &second], &[&awake]);
    assert_eq!((branch.relays, branch.alone_until_ms), (2, Some(second.not_after_ms)));
}

#[test]
fn the_end_of_the_cross_certificate_ends_a_branch_whose_agents_know_only_the_old_root() {
    let mut world = World::new();
    // The first root has ten years; its last year's leaves outlive it.
    world.pass(3560 * DAY_MS);
    world.rotate_issuing();
    let lagging = world.node(&agent(1));
    world.pass(20 * DAY_MS);
    let old_bundle = world.ca.bundle_version();
    world.ca.start_root(&world.ca.root_folder()).unwrap();
    world.ca.advance(None, false).unwrap();
    world.pass(62 * DAY_MS);
    let relay = world.node("site/oslo/relay/oslo-1");
    let lagging = Node { bundle: old_bundle, roots: lagging.roots, ..world.node(&agent(1)) };
    let up_to_date = world.node(&agent(2));
    let branch = world.agrees(&[&relay], &[&lagging, &up_to_date]);
    let cross_end_ms = world.ca.state().turn.as_ref().unwrap().issuing.crossed.as_ref().unwrap().not_after_ms;
    assert_eq!(branch.alone_until_ms, Some(cross_end_ms));
    assert!(cross_end_ms < relay.not_after_ms);
    assert_eq!(world.agrees(&[&relay], &[&up_to_date]).alone_until_ms, Some(relay.not_after_ms));
}

#[test]
fn after_the_old_root_is_retired_an_old_leaf_meets_nobody_who_learned_it() {
    let mut world = World::new();
    let old_agent = world.node(&agent(1));
    let old_relay = world.node("site/oslo/relay/oslo-1");
    world.ca.start_root(&world.ca.root_folder()).unwrap();
    world.ca.advance(None, false).unwrap();
    world.ca.advance(None, true).unwrap();
    let (new_agent, new_relay) = (world.node(&agent(2)), world.node("site/oslo/relay/oslo-1"));
    let branch = world.agrees(&[&new_relay], &[&old_agent, &new_agent]);
    assert_eq!((branch.agents_out, branch.alone_until_ms), (1, Some(new_relay.not_after_ms)));
    // A site that was away all the time goes on among itself.
    let branch = world.agrees(&[&old_relay], &[&old_agent]);
    assert_eq!((branch.agents_out, branch.alone_until_ms), (0, Some(old_relay.not_after_ms)));
}

#[test]
fn a_rotation_that_was_given_up_leaves_nobody_alone() {
    let mut world = World::new();
    let (old_agent, old_relay) = (world.node(&agent(1)), world.node("site/oslo/relay/oslo-1"));
    world.ca.start_root(&world.ca.root_folder()).unwrap();
    world.ca.advance(None, false).unwrap();
    let (new_agent, new_relay) = (world.node(&agent(2)), world.node("site/oslo/relay/oslo-2"));
    world.ca.back().unwrap();
    world.agrees(&[&old_relay, &new_relay], &[&old_agent, &new_agent]);
    world.ca.back().unwrap();
    let third = world.node(&agent(3));
    let branch = world.agrees(&[&new_relay], &[&old_agent, &new_agent, &third]);
    assert_eq!((branch.agents_out, branch.alone_until_ms), (0, Some(new_relay.not_after_ms)));
}

#[test]
fn what_ends_is_told_by_time_and_only_what_nobody_renews() {
    let mut world = World::new();
    let (relay, laptop) = (world.node("site/oslo/relay/oslo-1"), world.node(&agent(1)));
    world.ca.issue_hub("hub-1").unwrap();
    let found = |world: &World, nodes: &[&Node]| -> (bool, Vec<(FindingKind, String, bool)>) {
        let checkup = world.checkup(nodes);
        let ends: Vec<i64> = checkup.findings.iter().map(|finding| finding.at_ms).collect();
        assert!(ends.is_sorted(), "{ends:?}");
        (checkup.soon, checkup.findings.into_iter().map(|it| (it.kind, it.what, it.breaks)).collect())
    };
    let own = |ends: &[(FindingKind, &str, bool)]| {
        ends.iter().map(|(kind, what, breaks)| (*kind, (*what).to_owned(), *breaks)).collect::<Vec<_>>()
    };
    let hub = (FindingKind::Leaf, "hub/hub-1", true);
    let issuing = (FindingKind::IssuingCa, "the issuing CA (issuing)", true);
    let root = (FindingKind::Root, "the root (root)", true);

    assert_eq!(found(&world, &[&relay, &laptop]), (false, own(&[hub, issuing, root])), "those who were enrolled renew by themselves");
    world.pass(12 * DAY_MS);
    let late = (FindingKind::Leaf, "site/oslo/relay/oslo-1", true);
    assert_eq!(found(&world, &[&relay, &laptop]), (true, own(&[late, hub, issuing, root])), "a relay that is late");
    world.pass(12 * DAY_MS);
    let relay = world.node("site/oslo/relay/oslo-1");
    let sleeps = (FindingKind::Leaf, "site/oslo/agent/01010101010101010101010101010101", false);
    assert_eq!(found(&world, &[&relay, &laptop]), (false, own(&[sleeps, hub, issuing, root])), "a laptop that sleeps breaks nothing");
    world.pass(37 * DAY_MS);
    let relay = world.node("site/oslo/relay/oslo-1");
    assert_eq!(found(&world, &[&relay]), (true, own(&[hub, issuing, root])), "a file that nobody renews, within 30 days");
    world.ca.revoke(&"hub/hub-1".parse().unwrap(), "replaced").unwrap();
    assert_eq!(found(&world, &[&relay]), (false, own(&[issuing, root])), "whoever was revoked ends anyway");
    world.pass(275 * DAY_MS);
    assert!(found(&world, &[]).0, "the issuing CA has less than 30 days");
}

#[test]
fn who_renews_by_itself_is_late_by_its_own_certificates_life() {
    let mut world = World::new();
    let relay = world.node_for("site/oslo/relay/oslo-1".parse().unwrap(), 3 * DAY_MS);
    let late = |world: &World| world.checkup(&[&relay]).findings.iter().any(|it| it.what == relay.name.to_string());
    assert!(!late(&world), "a hub whose relays live for three days calls each of them late");
    world.pass(2 * DAY_MS - MINUTE_MS);
    assert!(!late(&world));
    world.pass(2 * MINUTE_MS);
    assert!(late(&world));
}

#[test]
fn the_hubs_own_certificates_are_told_of_where_somebody_has_to_do_something() {
    let mut world = World::new();
    let end_ms = NOW_MS + 90 * DAY_MS;
    let of = |what: &str, renews_ms| HubCertificate { what: what.into(), not_after_ms: end_ms, renews_ms };
    let certificates = vec![of("web", None), of("control", Some(NOW_MS + 45 * DAY_MS))];
    let told = |world: &World| {
        let report = Report { certificates: certificates.clone(), ..world.report(&[]) };
        let checkup = checkup(DOMAIN, world.ca.state(), Some(&report), &[], &Backups::default(), world.clock.now_ms());
        let own = checkup.findings.into_iter().filter(|it| it.kind == FindingKind::Leaf);
        (checkup.soon, own.map(|it| (it.what, it.at_ms, it.breaks, it.todo)).collect::<Vec<_>>())
    };
    let get = "get another from the organisation's CA into the same files: ops/runbooks/hub-certificate.md";
    let web = ("web".to_owned(), end_ms, true, get.to_owned());
    assert_eq!(told(&world), (false, vec![web.clone()]));
    world.pass(60 * DAY_MS - 1);
    assert_eq!(told(&world), (false, vec![web.clone()]), "the hub may renew the other one still");
    world.pass(1);
    let control = ("control".to_owned(), end_ms, true, "it hasn't been renewed: look at the hub's log".to_owned());
    assert_eq!(told(&world), (true, vec![control, web]));
}

#[test]
fn a_key_without_a_note_of_its_backup_is_named_until_there_is_one() {
    let mut world = World::new();
    let whose = |checkup: &Checkup| checkup.without_backup.iter().map(|key| key.what.clone()).collect::<Vec<_>>();
    let fresh = whose(&world.checkup(&[]));
    assert_eq!(
        fresh,
        ["the root (root)", "the issuing CA (issuing)", "the hub's sealing key (seal.key)", "the hub's control key (control.key)"]
    );
    assert_eq!(fresh.len(), keys_that_need_a_backup().len(), "one for each row of the page of keys");
    for (row, what) in keys_that_need_a_backup().iter().zip(&fresh) {
        assert!(what.contains(row), "{row}: {what}");
    }
    let mut noted = Backups::default();
    for key in world.checkup(&[]).without_backup {
        noted.keys.insert(key.key, NOW_MS);
    }
    world.ca.start_issuing(&world.ca.root_folder()).unwrap();
    let after = checkup(DOMAIN, world.ca.state(), None, &[], &noted, NOW_MS);
    assert_eq!(after.without_backup.len(), 1, "the new key has none yet");
    assert!(!after.hub_keys_known, "without a report");
    let all = checkup(DOMAIN, world.ca.state(), Some(&world.report(&[])), &[], &noted, NOW_MS);
    assert_eq!((all.without_backup.len(), all.hub_keys_known), (1, true), "those of the hub are noted");
}

/// The rows of ops/KEYS.md whose fourth column says yes, in its order.
fn keys_that_need_a_backup() -> Vec<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../ops/KEYS.md")).unwrap();
    let rows = page.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split('|').map(|column| column.trim().trim_start_matches("**")).collect();
        columns.get(4).filter(|backup| backup.starts_with("yes")).map(|_| columns[1].split("**").next().unwrap().to_owned())
    });
    rows.collect()
}

fn hub_keys() -> Vec<HubKey> {
    let key = |what: &str, key: &str| HubKey { what: what.into(), key: key.repeat(32) };
    vec![key("the hub's sealing key (seal.key)", "5e"), key("the hub's control key (control.key)", "c0")]
}

struct World {
    _folder: tempfile::TempDir,
    clock: Clock,
    ca: Ca,
}

#[derive(Clone)]
struct Node {
    name: Name,
    pem: String,
    key_pem: String,
    roots: String,
    bundle: u64,
    leaf: rustls_pki_types::CertificateDer<'static>,
    issued_ms: i64,
    not_after_ms: i64,
    clock: Clock,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::at(NOW_MS);
        let ca = Ca::init_at(&folder.path().join("ca"), DOMAIN, clock.provider()).unwrap();
        World { _folder: folder, clock, ca }
    }

    fn pass(&mut self, ms: i64) {
        self.clock.set(self.clock.now_ms() + ms);
    }

    fn rotate_issuing(&mut self) {
        self.ca.start_issuing(&self.ca.root_folder()).unwrap();
        self.ca.advance(None, false).unwrap();
        self.ca.advance(None, true).unwrap();
    }

    fn node(&self, name: &str) -> Node {
        let name: Name = name.parse().unwrap();
        let life_ms = issuer::leaf_life_ms(name.role());
        self.node_for(name, life_ms)
    }

    fn node_for(&self, name: Name, life_ms: i64) -> Node {
        let request = KeyRequest::generate().unwrap();
        let identity = Identity::new(DOMAIN, name.clone()).unwrap();
        let requested = Requested::read(&request.request).unwrap();
        let chain = self.ca.issuer().issue_for(&identity, &requested, life_ms, self.clock.now_ms()).unwrap();
        Node {
            name,
            pem: chain.pem,
            key_pem: request.key_pem,
            roots: self.ca.roots_pem().to_owned(),
            bundle: self.ca.bundle_version(),
            leaf: chain.ders[0].clone(),
            issued_ms: self.clock.now_ms(),
            not_after_ms: chain.not_after_ms,
            clock: self.clock.clone(),
        }
    }

    fn report(&self, nodes: &[&Node]) -> Report {
        let member = |node: &&Node| Member {
            name: node.name.to_string(),
            bundle_version: Some(node.bundle),
            issuer_key: issuer_key(&node.leaf).unwrap(),
            serial: None,
            not_after_ms: Some(node.not_after_ms),
            last_seen_ms: Some(node.issued_ms),
            denied: false,
            earlier: Vec::new(),
        };
        Report {
            domain: DOMAIN.into(),
            at_ms: self.clock.now_ms(),
            signer_key: None,
            keys: hub_keys(),
            certificates: Vec::new(),
            members: nodes.iter().map(member).collect(),
        }
    }

    fn checkup(&self, nodes: &[&Node]) -> Checkup {
        let report = self.report(nodes);
        let holders = self.ca.holders(Some(&report)).unwrap();
        checkup(DOMAIN, self.ca.state(), Some(&report), &holders, &Backups::default(), self.clock.now_ms())
    }

    /// The doctor's word on the one branch, which the first failing handshake must confirm within a minute.
    fn agrees(&self, relays: &[&Node], agents: &[&Node]) -> Branch {
        let [branch] = self.checkup(&[relays, agents].concat()).branches.try_into().unwrap();
        let now_ms = self.clock.now_ms();
        let meets_one = |agent: &Node| relays.iter().any(|relay| meets(agent, relay));
        let alive: Vec<&&Node> = agents.iter().filter(|agent| meets_one(agent)).collect();
        assert_eq!(branch.agents_out, agents.len() - alive.len());
        // The first second at which one of them meets nobody.
        let all_meet = |at_ms: i64| {
            self.clock.set(at_ms);
            alive.iter().all(|agent| meets_one(agent))
        };
        let (mut good, mut bad) = (now_ms, now_ms + 400 * DAY_MS);
        if !alive.is_empty() {
            assert!(all_meet(good) && !all_meet(bad));
            while bad - good > 1000 {
                let middle = good + (bad - good) / 2000 * 1000;
                if all_meet(middle) { good = middle } else { bad = middle }
            }
            let until_ms = branch.alone_until_ms.unwrap();
            assert!((bad - until_ms).abs() <= MINUTE_MS, "the doctor says {until_ms}, the first handshake fails at {bad}");
        }
        self.clock.set(now_ms);
        branch
    }
}

fn meets(agent: &Node, relay: &Node) -> bool {
    let keys = |node: &Node| Keys::from_pem(&node.pem, &node.key_pem, &node.roots, node.name.role(), node.clock.provider()).unwrap();
    let server = server_config(&keys(relay).to_owned(), AGENTS, ALPN).unwrap();
    meet(client_config(&keys(agent).to_owned(), &relay.name, ALPN).unwrap(), server).is_ok()
}

fn agent(n: u8) -> String {
    format!("site/oslo/agent/{}", format!("{n:02x}").repeat(16))
}
