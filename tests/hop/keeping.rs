//! Async: the keeper alone, over a folder in memory that can fail.

use std::{sync::Arc, time::Duration};

use muster_agent::{
    batcher::Closed,
    keeper::{Keeper, Keepers, Plan},
    spool::Sizes,
};
use muster_mesh::{
    clock::{Clock, ManualClock, Reading, SystemClock},
    ids::{BootId, Lane},
    record::{Capability, Kind, Record},
};
use tokio::time::{sleep, timeout};

use crate::{DEVICE, SOON, context, disk::Disk};

#[tokio::test]
async fn a_full_disk_waits_in_memory_and_goes_on_by_itself() {
    let drawer = Drawer::new(Arc::new(SystemClock::new()));
    drawer.keep(1, false).await;
    assert_eq!(drawer.held().await, 1);
    drawer.disk.fill(true);
    drawer.keep(3, false).await;
    let standing = drawer.keeper.standing().await.unwrap();
    assert!(standing.disk_full && standing.waiting[0] == (1, 0), "{standing:?}");
    drawer.disk.fill(false);
    drawer.until_held(4).await;
    assert!(!drawer.keeper.standing().await.unwrap().disk_full);
}

#[tokio::test]
async fn after_a_disk_error_the_queue_is_opened_again_under_new_spools() {
    let drawer = Drawer::new(Arc::new(SystemClock::new()));
    drawer.keep(2, false).await;
    let before = drawer.open_spool().await;
    drawer.disk.fail(true);
    drawer.keep(1, false).await;
    assert_eq!(drawer.held().await, 0, "the queue isn't open");
    drawer.disk.fail(false);
    drawer.until_held(3).await;
    assert_ne!(drawer.open_spool().await, before);
}

#[tokio::test]
async fn batches_that_come_together_are_numbered_one_behind_the_other() {
    let drawer = Drawer::new(Arc::new(SystemClock::new()));
    drawer.keep(50, false).await;
    assert_eq!(drawer.held().await, 50);
    let before = drawer.open_spool().await;
    drawer.keep(1, true).await;
    assert_eq!(drawer.held().await, 51);
    assert_ne!(drawer.open_spool().await, before, "the wall clock stepped: the numbers of the old spool are over");
}

#[tokio::test]
async fn a_dial_is_always_higher_than_the_last_whatever_the_clock_says() {
    let clock = ManualClock::new(Reading { wall_ms: 1_000_000, boot_ms: 1 }, BootId([1; 16]));
    let drawer = Drawer::new(Arc::new(clock.clone()));
    let first = drawer.keeper.dialling().await.unwrap().dial;
    assert_eq!(first, 1_000_000);
    clock.set_wall(-5);
    assert_eq!(drawer.keeper.dialling().await.unwrap().dial, first + 1);
    let again = Drawer::on(drawer.disk.clone(), Arc::new(clock.clone()));
    assert_eq!(again.keeper.dialling().await.unwrap().dial, first + 2);
    clock.set_wall(5_000_000);
    assert_eq!(again.keeper.dialling().await.unwrap().dial, 5_000_000);
}

/// A keeper, and the folder of its telemetry.
struct Drawer {
    disk: Disk,
    keeper: Keeper,
    _keepers: Keepers,
}

impl Drawer {
    fn new(clock: Arc<dyn Clock>) -> Drawer {
        Drawer::on(Disk::default(), clock)
    }

    fn on(disk: Disk, clock: Arc<dyn Clock>) -> Drawer {
        let keepers = Keepers::start(clock.clone()).unwrap();
        let telemetry = disk.clone();
        let plan = Plan {
            device: DEVICE,
            open: Box::new(move || Ok([telemetry.clone(), Disk::default()])),
            sizes: Sizes { budgets: [64 << 20; 2], segment_bytes: 8 << 20 },
            context: context(&*clock),
            clock,
            journal: None,
            shown: false,
        };
        Drawer { disk, keeper: keepers.add(plan).unwrap(), _keepers: keepers }
    }

    async fn keep(&self, batches: usize, new_spools: bool) {
        for _ in 0..batches {
            let clock = self.keeper.clock();
            let closed_at = clock.now();
            let kind = Kind::Capability(Capability { what: "test".into(), able: true, why: String::new() });
            let records = vec![Record { at: closed_at.wall_ms, kind }];
            let closed = Closed { lane: Lane::Telemetry, context: context(&**clock), closed_at, records, new_spools };
            self.keeper.keep(closed).await.unwrap();
        }
    }

    async fn held(&self) -> u64 {
        self.keeper.standing().await.unwrap().waiting[0].0
    }

    async fn until_held(&self, batches: u64) {
        let wait = async {
            while self.held().await != batches {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(SOON, wait).await.unwrap();
    }

    /// The newest spool of the telemetry lane.
    async fn open_spool(&self) -> muster_mesh::ids::SpoolId {
        let tails = self.keeper.newest_tails().await.unwrap();
        tails.iter().find(|tail| tail.lane == Lane::Telemetry && !tail.closed).unwrap().spool
    }
}
