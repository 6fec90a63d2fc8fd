//! Async: wrong clocks: a branch whose batteries are empty, and one that is ten minutes ahead.

use std::{ops::Range, time::Duration};

use muster_certs::{Name, rotation::Kind};
use muster_hub::signer::Lives;
use tokio::time::sleep;

use crate::{
    Branch, World,
    hub::Issued,
    time::{HOUR, MINUTE, Watch, in_virtual_time},
};

const LIVES: Lives = Lives { agent_ms: 60 * 60_000, relay_ms: 40 * 60_000 };
const TEN_MINUTES_MS: i64 = 10 * 60_000;

/// Each with a relay and [`LAPTOPS`].
const OSLO: usize = 0;
const ROME: usize = 1;
const LAPTOPS: usize = 2;

#[test]
fn a_branch_in_1970_and_one_ten_minutes_ahead_get_back_on_line() {
    in_virtual_time(|time| async move {
        let ahead = Branch { ahead_ms: TEN_MINUTES_MS, ..Branch::new("rome", 1, LAPTOPS as u8) };
        let mut world = World::new(&time, 3, LIVES, &[Branch::new("oslo", 1, LAPTOPS as u8), ahead]).await;
        let in_1970 = || Watch::in_1970(&time);
        let ten_minutes_ahead = || Watch::ahead(&time, TEN_MINUTES_MS);
        world.start_all();
        sleep(HOUR / 2).await;

        // Off for so short a time that no certificate ends; meanwhile the others' are renewed, by a new issuing CA.
        world.power_fails_in(OSLO).await;
        world.hub.rotate(Kind::Issuing).await;
        world.hub.rotate(Kind::Issuing).await;
        sleep(7 * MINUTE).await;
        let before = world.issued_in(OSLO).await;
        world.hub.unreachable.lock().unwrap().insert(world.offices[OSLO].card.ip);
        world.wakes(OSLO, in_1970);
        sleep(HOUR / 4).await;
        assert!(world.offices[OSLO].backlog().await > 0, "the branch keeps what is collected in it");
        world.hub.unreachable.lock().unwrap().clear();
        sleep(HOUR / 4).await;
        world.is_on_line(OSLO, before, 1, 0).await;
        world.nobody_is_refused_in_rome();

        // Off until every certificate of theirs has ended.
        for branch in [OSLO, ROME] {
            world.power_fails_in(branch).await;
        }
        sleep(70 * MINUTE).await;
        let (oslo, rome) = (world.issued_in(OSLO).await, world.issued_in(ROME).await);
        world.wakes(OSLO, in_1970);
        world.wakes(ROME, ten_minutes_ahead);
        sleep(10 * MINUTE).await;
        world.is_on_line(OSLO, oslo, 1, 1).await;
        world.is_on_line(ROME, rome, 1, 1).await;
        // Until they had come back they were, rightly.
        world.laptops[laptops_of(ROME)].iter().for_each(|laptop| laptop.notes.lock().unwrap().faults.clear());

        // The clocks stay wrong, and certificates are renewed in time.
        let (oslo, rome) = (world.issued_in(OSLO).await, world.issued_in(ROME).await);
        sleep(3 * HOUR).await;
        world.is_on_line(OSLO, oslo, 4, 0).await;
        world.is_on_line(ROME, rome, 4, 0).await;
        world.nobody_is_refused_in_rome();

        world.all_that_was_kept_arrives().await;
        world.say(&time).await;
        for (name, Issued { recoveries, .. }) in world.hub.issued().await {
            assert_eq!(recoveries, i64::from(name.site().is_some()), "{name}");
        }
        world.nobody_was_taken_for_a_copy();
    });
}

impl World {
    async fn power_fails_in(&mut self, branch: usize) {
        self.offices[branch].stop().await;
        for laptop in &mut self.laptops[laptops_of(branch)] {
            laptop.stop().await;
        }
    }

    fn wakes(&mut self, branch: usize, watch: impl Fn() -> Watch) {
        self.clocks.offices[branch] = watch();
        self.start_office(branch);
        for n in laptops_of(branch) {
            self.clocks.laptops[n] = watch();
            self.start_laptop(n);
        }
    }

    async fn issued_in(&self, branch: usize) -> Vec<(Name, Issued)> {
        let site = self.offices[branch].name.site();
        self.hub.issued().await.into_iter().filter(|(name, _)| name.site() == site).collect()
    }

    /// At least so many certificates and exactly so many recoveries came to everyone there since `before`, and everybody is connected.
    async fn is_on_line(&self, branch: usize, before: Vec<(Name, Issued)>, certificates: i64, recoveries: i64) {
        let office = &self.offices[branch];
        for ((name, then), (_, now)) in before.iter().zip(self.issued_in(branch).await) {
            let (more, back) = (now.certificates - then.certificates, now.recoveries - then.recoveries);
            assert!(more >= certificates && back == recoveries, "{name}: {then:?}, {now:?}, {:?}", office.troubles);
        }
        for laptop in &self.laptops[laptops_of(branch)] {
            assert!(laptop.is_connected(), "{}: {:?} {:?}", laptop.name, laptop.notes.lock().unwrap().faults.last(), laptop.troubles);
        }
        let waits = office.backlog().await;
        assert!(waits < 10, "{waits} batches wait for the hub");
    }

    fn nobody_is_refused_in_rome(&self) {
        for laptop in &self.laptops[laptops_of(ROME)] {
            let faults = laptop.notes.lock().unwrap().about_certificates();
            assert_eq!(faults, [] as [String; 0], "{}", laptop.name);
        }
    }
}

fn laptops_of(branch: usize) -> Range<usize> {
    branch * LAPTOPS..(branch + 1) * LAPTOPS
}

const _: () = assert!(LIVES.relay_ms < LIVES.agent_ms && Duration::from_secs(70 * 60).as_millis() as i64 > LIVES.agent_ms);
