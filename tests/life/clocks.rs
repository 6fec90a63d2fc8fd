//! Async: wrong clocks: a branch whose batteries are empty, and one that is ten minutes ahead.

use std::time::Duration;

use muster_certs::{Name, rotation::Kind};
use muster_hub::signer::Lives;
use tokio::time::sleep;

use crate::{
    Branch, World,
    hub::Issued,
    time::{HOUR, MINUTE, Time, Watch, in_virtual_time},
};

const LIVES: Lives = Lives { agent_ms: 60 * 60_000, relay_ms: 40 * 60_000 };
const TEN_MINUTES_MS: i64 = 10 * 60_000;

#[test]
fn a_branch_in_1970_and_one_ten_minutes_ahead_get_back_on_line() {
    in_virtual_time(|time| async move {
        let ahead = Branch { ahead_ms: TEN_MINUTES_MS, ..Branch::new("rome", 1, 2) };
        let mut world = World::new(&time, 3, LIVES, &[Branch::new("oslo", 1, 2), ahead]).await;
        world.start_all();
        sleep(HOUR / 2).await;

        // Off for so short a time that no certificate ends; meanwhile the others' are renewed, by a new issuing CA.
        world.power_fails_in_oslo().await;
        world.hub.rotate(Kind::Issuing).await;
        world.hub.rotate(Kind::Issuing).await;
        sleep(7 * MINUTE).await;
        let before = world.in_oslo().await;
        world.hub.unreachable.lock().unwrap().insert(world.offices[0].card.ip);
        world.oslo_wakes_in_1970(&time);
        sleep(HOUR / 4).await;
        assert!(world.offices[0].backlog().await > 0, "the branch keeps what is collected in it");
        world.hub.unreachable.lock().unwrap().clear();
        sleep(HOUR / 4).await;
        world.oslo_is_on_line(before, 1, 0).await;

        // Off until every certificate of theirs has ended.
        world.power_fails_in_oslo().await;
        sleep(70 * MINUTE).await;
        let before = world.in_oslo().await;
        world.oslo_wakes_in_1970(&time);
        sleep(10 * MINUTE).await;
        world.oslo_is_on_line(before, 1, 1).await;

        // The clocks stay wrong, and certificates are renewed in time.
        let before = world.in_oslo().await;
        sleep(3 * HOUR).await;
        world.oslo_is_on_line(before, 4, 0).await;

        world.all_that_was_kept_arrives().await;
        world.say(&time).await;
        for (name, Issued { recoveries, .. }) in world.hub.issued().await {
            assert_eq!(recoveries, i64::from(name.site() == Some("oslo")), "{name}");
        }
        world.nobody_was_taken_for_a_copy();
        for laptop in &world.laptops[2..] {
            let faults = laptop.notes.lock().unwrap().about_certificates();
            assert_eq!(faults, [] as [String; 0], "{}", laptop.name);
        }
    });
}

impl World {
    async fn power_fails_in_oslo(&mut self) {
        self.offices[0].stop().await;
        for laptop in &mut self.laptops[..2] {
            laptop.stop().await;
        }
    }

    fn oslo_wakes_in_1970(&mut self, time: &Time) {
        self.clocks.offices[0] = Watch::in_1970(time);
        self.clocks.laptops[..2].iter_mut().for_each(|watch| *watch = Watch::in_1970(time));
        self.start_all();
    }

    async fn in_oslo(&self) -> Vec<(Name, Issued)> {
        self.hub.issued().await.into_iter().filter(|(name, _)| name.site() == Some("oslo")).collect()
    }

    /// At least so many certificates and exactly so many recoveries came to everyone there since `before`, and everybody is connected.
    async fn oslo_is_on_line(&self, before: Vec<(Name, Issued)>, certificates: i64, recoveries: i64) {
        for ((name, then), (_, now)) in before.iter().zip(self.in_oslo().await) {
            let (more, back) = (now.certificates - then.certificates, now.recoveries - then.recoveries);
            assert!(more >= certificates && back == recoveries, "{name}: {then:?}, {now:?}, {:?}", self.offices[0].troubles);
        }
        for laptop in &self.laptops[..2] {
            assert!(laptop.is_connected(), "{}: {:?} {:?}", laptop.name, laptop.notes.lock().unwrap().faults.last(), laptop.troubles);
        }
        let waits = self.offices[0].backlog().await;
        assert!(waits < 10, "{waits} batches wait for the hub");
    }
}

const _: () = assert!(LIVES.relay_ms < LIVES.agent_ms && Duration::from_secs(70 * 60).as_millis() as i64 > LIVES.agent_ms);
