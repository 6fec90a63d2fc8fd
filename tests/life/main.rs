//! Async: certificates in virtual time: real QUIC and TLS, the agents' and relays' own tasks and threads, the hub's own signer over a real CA
//! folder, on a network in memory. Years of renewals, rotations of the issuing CA and of the root, outages and wrong clocks pass in seconds.
#![allow(clippy::unwrap_used)]

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use muster_agent::keeper::Keepers;
use muster_certs::rotation::Kind;
use muster_hub::signer::Lives;
use tokio::time::sleep;

use branch::Office;
use chance::Chance;
use hub::{Hub, Issued};
use laptop::Laptop;
use network::{Network, Weather};
use time::{DAY, MINUTE, Time, Watch, in_virtual_time};

mod branch;
mod chance;
mod clocks;
#[allow(dead_code, reason = "its disks never fail here")]
#[path = "../../relay/tests/branch/disk.rs"]
mod disk;
mod hub;
mod laptop;
mod network;
mod outages;
mod time;

/// Years would pass, too, but every quarter of a minute of them has its signs of life.
const LIVES: Lives = Lives { agent_ms: 8 * 60_000, relay_ms: 6 * 60_000 };
const WEATHER: Weather = Weather { lost_per_mille: 10, delay_ms: (5, 40) };
/// Leaves of each member.
const ROTATIONS: i64 = 100;
const ISSUING: u32 = 5;
/// Batches that an agent may hold: one comes every two minutes, and relays post as often.
const WAITING_MAX: u64 = 12;
/// Tries to take the steps of one rotation.
const TRIES_MAX: u32 = 30;
/// The bundle's way (relays post every two minutes), a twentieth of a life, one look more: sooner than all would have renewed anyway.
const MOVED_WITHIN: Duration = Duration::from_secs(210);
const STEP_EVERY: Duration = Duration::from_secs(240);

#[test]
fn a_hundred_leaves_each_five_issuing_cas_and_a_root_are_rotated_under_load_and_nobody_notices() {
    in_virtual_time(|time| async move {
        let mut world = World::new(&time, 1, LIVES, &[Branch::new("oslo", 2, 4)]).await;
        world.start_all();
        let mut too_early = 0;
        while !world.has_rotated_enough().await {
            assert!(time.passed() < DAY, "{}", world.so_far().await);
            world.nobody_was_turned_away();
            world.nothing_waits_long().await;
            sleep(STEP_EVERY - MOVED_WITHIN).await;
            let had_switched = world.hub.has_switched();
            world.rotate().await;
            if world.hub.has_switched() && !had_switched {
                // At once, when nobody has moved: refused.
                assert!(!world.rotate().await, "the old CA was retired under everybody's feet");
                too_early += 1;
            }
            sleep(MOVED_WITHIN).await;
            assert_eq!(world.hub.not_moved().await, [] as [String; 0], "it didn't move to the CA that issues");
        }
        world.all_that_was_kept_arrives().await;
        world.say(&time).await;
        world.nobody_was_turned_away();
        for (name, Issued { recoveries, .. }) in world.hub.issued().await {
            assert_eq!(recoveries, 0, "{name} came back through a door");
        }
        for office in &world.offices {
            let shown = world.hub.ledger().serials[&office.name].len() as i64;
            assert!(shown >= ROTATIONS, "{} has shown the hub {shown} certificates", office.name);
        }
        let ledger = world.hub.ledger();
        assert_eq!(ledger.keys_destroyed as u32, ISSUING + 1, "each old issuing CA's key is gone");
        assert_eq!(too_early, ISSUING + 1, "switches to a new CA");
    });
}

// --- the world ---

struct World {
    hub: Arc<Hub>,
    network: Network,
    keepers: Keepers,
    offices: Vec<Office>,
    laptops: Vec<Laptop>,
    /// Whose clocks are whose.
    clocks: Clocks,
    chance: Chance,
    next_rotation: u32,
    tries: u32,
}

#[derive(Default)]
struct Clocks {
    offices: Vec<Watch>,
    laptops: Vec<Watch>,
}

/// A branch with its own clocks.
struct Branch {
    site: &'static str,
    offices: u8,
    laptops: u8,
    ahead_ms: i64,
}

impl Branch {
    fn new(site: &'static str, offices: u8, laptops: u8) -> Branch {
        Branch { site, offices, laptops, ahead_ms: 0 }
    }
}

impl World {
    /// Everybody has joined; only relays run.
    async fn new(time: &Time, seed: u64, lives: Lives, branches: &[Branch]) -> World {
        let mut chance = Chance::new(seed);
        let network = Network::new(WEATHER, chance.fork());
        let right = Watch::right(time);
        let hub = Hub::open(right.clone(), lives, &network).await;
        let keepers = Keepers::start(Arc::new(right)).unwrap();
        let (offices, laptops, clocks) = (Vec::new(), Vec::new(), Clocks::default());
        let mut world = World { hub, network, keepers, offices, laptops, clocks, chance, next_rotation: 0, tries: 0 };
        for (block, branch) in (1..).zip(branches) {
            world.join(time, block, branch).await;
        }
        world
    }

    async fn join(&mut self, time: &Time, block: u8, branch: &Branch) {
        let watch = Watch::ahead(time, branch.ahead_ms);
        for n in 1..=branch.offices {
            let (id, ip) = (format!("{}-{n}", branch.site), Ipv4Addr::new(10, block, 1, n));
            let mut office = Office::enrol(&self.hub, &self.network, branch.site, &id, ip, &watch).await;
            office.start(&watch);
            self.offices.push(office);
            self.clocks.offices.push(watch.clone());
        }
        for n in 1..=branch.laptops {
            let (person, ip) = (format!("{}.{n}", branch.site), Ipv4Addr::new(10, block, 2, n));
            self.laptops.push(Laptop::enrol(&self.hub, &self.network, branch.site, &person, ip, &watch).await);
            self.clocks.laptops.push(watch.clone());
        }
    }

    fn start_all(&mut self) {
        (0..self.offices.len()).for_each(|n| self.start_office(n));
        (0..self.laptops.len()).for_each(|n| self.start_laptop(n));
    }

    fn start_office(&mut self, n: usize) {
        if !self.offices[n].is_running() {
            self.offices[n].start(&self.clocks.offices[n]);
        }
    }

    fn start_laptop(&mut self, n: usize) {
        if !self.laptops[n].is_running() {
            self.laptops[n].start(&self.keepers, &self.clocks.laptops[n], self.chance.fork());
        }
    }

    /// The next step of a rotation, if nobody is cut off by it; the third is one of the root. False: no step was taken.
    async fn rotate(&mut self) -> bool {
        let is_first_step = !self.hub.is_rotating();
        if is_first_step && self.next_rotation > ISSUING {
            return false;
        }
        let kind = if self.next_rotation == 2 { Kind::Root } else { Kind::Issuing };
        let has_moved = self.hub.rotate(kind).await;
        self.tries += 1;
        assert!(self.tries < TRIES_MAX, "a rotation stands still: {}", self.so_far().await);
        if !is_first_step && !self.hub.is_rotating() {
            (self.next_rotation, self.tries) = (self.next_rotation + 1, 0);
        }
        has_moved
    }

    async fn has_rotated_enough(&self) -> bool {
        self.hub.ledger().rotated == [ISSUING, 1] && self.hub.issued().await.values().all(|issued| issued.certificates > ROTATIONS)
    }

    /// Whatever an agent kept lies at the hub once, the agents know it, and no relay holds anything back.
    async fn all_that_was_kept_arrives(&mut self) {
        self.laptops.iter_mut().for_each(Laptop::end_collecting);
        for _ in 0..120 {
            let (mut waiting, mut backlog) = (0, 0);
            for laptop in &self.laptops {
                waiting += laptop.waiting().await;
            }
            for office in &self.offices {
                backlog += office.backlog().await;
            }
            if (waiting, backlog) == (0, 0) {
                break;
            }
            sleep(MINUTE).await;
        }
        for laptop in &self.laptops {
            assert_eq!(laptop.waiting().await, 0, "{} doesn't know that everything is at the hub", laptop.name);
        }
        self.everything_is_there_once();
    }

    fn everything_is_there_once(&self) {
        let ledger = self.hub.ledger();
        for laptop in &self.laptops {
            let (name, notes) = (&laptop.name, laptop.notes.lock().unwrap());
            let missing: Vec<&String> = notes.kept.iter().filter(|what| !ledger.batches.contains_key(*what)).collect();
            assert_eq!(missing, [] as [&String; 0], "{name}: {:?}", notes.faults.last());
            assert!(notes.kept.len() > 10, "{name} kept only {} batches: nothing was tried", notes.kept.len());
            assert_eq!(notes.unproven, 0, "{name} was told things that aren't the hub's word");
        }
        assert!(ledger.batches.values().all(|times| *times == 1), "a batch was stored twice");
    }

    /// No certificate was refused by anybody, and no renewal came too late.
    fn nobody_was_turned_away(&self) {
        assert_eq!(self.hub.ledger().refused, [] as [String; 0]);
        for laptop in &self.laptops {
            assert_eq!(laptop.notes.lock().unwrap().about_certificates(), [] as [String; 0], "{}", laptop.name);
        }
    }

    /// Whatever was kept is at the hub, and known to be, within minutes.
    async fn nothing_waits_long(&self) {
        for laptop in &self.laptops {
            let (waits, fault) = (laptop.waiting().await, laptop.notes.lock().unwrap().faults.last().cloned());
            assert!(waits < WAITING_MAX, "{waits} batches of {} wait: {fault:?}", laptop.name);
        }
    }

    /// No answer that was lost looks like a copied disk.
    fn nobody_was_taken_for_a_copy(&self) {
        let troubles = self.laptops.iter().map(|laptop| &laptop.troubles).chain(self.offices.iter().map(|office| &office.troubles));
        for trouble in troubles.flat_map(|troubles| troubles.lock().unwrap().clone()) {
            assert!(!trouble.contains("another disk"), "{trouble}");
        }
    }

    async fn so_far(&self) -> String {
        let issued = self.hub.issued().await;
        let ledger = self.hub.ledger();
        format!("{issued:?}, rotated {:?}, refused {:?}", ledger.rotated, ledger.refused.last())
    }

    #[allow(clippy::print_stdout)]
    async fn say(&self, time: &Time) {
        let issued = self.hub.issued().await;
        let certificates: i64 = issued.values().map(|issued| issued.certificates).sum();
        let recoveries: i64 = issued.values().map(|issued| issued.recoveries).sum();
        let (sent, lost) = self.network.count();
        let ledger = self.hub.ledger();
        let troubles: usize = self.laptops.iter().map(|laptop| laptop.troubles.lock().unwrap().len()).sum();
        println!(
            "{} virtual hours: {certificates} certificates, {recoveries} recoveries, rotated {:?}, {} batches, {sent} datagrams, {lost} lost, {} refusals, {troubles} troubles",
            time.passed().as_secs() / 3_600,
            ledger.rotated,
            ledger.batches.len(),
            ledger.refused.len(),
        );
    }
}
