//! Blocking: a runtime whose time only passes while nobody works, and watches that go by it.

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use muster_mesh::{
    clock::{Clock, Reading, Zone},
    ids::BootId,
};
use rustix::time::{ClockId, clock_gettime};
use rustls::{pki_types::UnixTime, time_provider::TimeProvider};
use tokio::{runtime::Builder, time::Instant};

/// 2026-11-23T09:00:02Z.
pub const BEGIN_MS: i64 = 1_795_424_402_000;
pub const MINUTE: Duration = Duration::from_secs(60);
pub const HOUR: Duration = Duration::from_secs(3_600);
/// No world of these lives longer.
pub const DAY: Duration = Duration::from_secs(24 * 3_600);
const TASKS: &str = "/proc/self/task";
/// To wake a thread takes longer, so in less than this none was given anything to do: most often a timer was only looked at.
const WAKING_NS: u64 = 1_000;
/// One world at a time: which threads are its own can't be seen.
static ONE_WORLD: Mutex<()> = Mutex::new(());

/// The time that has passed since the world began, for threads beside the runtime, too.
#[derive(Clone, Debug, Default)]
pub struct Time(Arc<AtomicU64>);

impl Time {
    pub fn passed(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// Runs a world to its end. Its time stands still while a task or a thread has something to do, and then jumps to whatever is due next.
pub fn in_virtual_time<F: Future<Output = ()>>(world: impl FnOnce(Time) -> F) {
    // A world that panicked has left nothing to others.
    let _one = ONE_WORLD.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let time = Time::default();
    let (told, began, still) = (time.clone(), Mutex::new(None), Arc::new(Stillness::new()));
    let woken = still.clone();
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .on_thread_park(move || still.wait())
        .on_thread_unpark(move || {
            let began = *began.lock().unwrap().get_or_insert_with(Instant::now);
            told.0.store(began.elapsed().as_millis() as u64, Ordering::Relaxed);
            woken.woken();
        })
        .build()
        .unwrap();
    runtime.block_on(world(time));
}

/// Knows whether a thread of this process has something to do: the queues' own threads, and the database's.
struct Stillness {
    own: String,
    threads: Mutex<Threads>,
    /// When the runtime's thread went on last, in nanoseconds of the real clock.
    woken_ns: AtomicU64,
}

#[derive(Default)]
struct Threads {
    /// How many the folder said there are when it was read.
    count: u64,
    stats: HashMap<String, File>,
}

impl Stillness {
    fn new() -> Stillness {
        let own = fs::read_link("/proc/thread-self").unwrap();
        Stillness { own: own.file_name().unwrap().to_string_lossy().into_owned(), threads: Mutex::default(), woken_ns: AtomicU64::new(0) }
    }

    /// Until every other thread sleeps. Whoever is woken counts as running before its waker goes on, so nothing is ever between two threads.
    fn wait(&self) {
        if real_ns().saturating_sub(self.woken_ns.load(Ordering::Relaxed)) < WAKING_NS {
            return;
        }
        while self.is_somebody_busy() {
            thread::yield_now();
        }
    }

    fn woken(&self) {
        self.woken_ns.store(real_ns(), Ordering::Relaxed);
    }

    fn is_somebody_busy(&self) -> bool {
        let mut threads = self.threads.lock().unwrap();
        let count = fs::metadata(TASKS).unwrap().nlink();
        if threads.count != count {
            for entry in fs::read_dir(TASKS).unwrap().flatten() {
                let id = entry.file_name().to_string_lossy().into_owned();
                if id != self.own && !threads.stats.contains_key(&id) {
                    threads.stats.extend(File::open(entry.path().join("stat")).ok().map(|file| (id, file)));
                }
            }
            threads.count = count;
        }
        let (mut busy, before) = (false, threads.stats.len());
        threads.stats.retain(|_, stat| match state(stat) {
            Some(state) => {
                busy |= state != b'S';
                true
            }
            None => false,
        });
        if threads.stats.len() < before {
            // Another may have begun in its place.
            threads.count = 0;
        }
        busy || threads.count == 0
    }
}

fn real_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec * 1_000_000_000 + now.tv_nsec).unsigned_abs()
}

/// The letter behind the name in a thread's `stat`. None: the thread has ended.
fn state(stat: &File) -> Option<u8> {
    // A number, a name of at most fifteen bytes in brackets, a letter.
    let mut bytes = [0; 32];
    let read = stat.read_at(&mut bytes, 0).ok()?;
    let name_ends = bytes[..read].iter().rposition(|byte| *byte == b')')?;
    bytes.get(name_ends + 2).copied().filter(|state| !matches!(state, b'Z' | b'X'))
}

/// A computer's clocks.
#[derive(Clone, Debug)]
pub struct Watch {
    time: Time,
    /// How far the wall clock is ahead, in milliseconds.
    ahead_ms: Arc<AtomicI64>,
    /// Passed when the computer was started.
    started: Duration,
    boot: BootId,
}

impl Watch {
    pub fn right(time: &Time) -> Watch {
        let boot = BootId(muster_mesh::chance::random_16());
        Watch { time: time.clone(), ahead_ms: Arc::default(), started: time.passed(), boot }
    }

    pub fn ahead(time: &Time, ahead_ms: i64) -> Watch {
        let watch = Watch::right(time);
        watch.ahead_ms.store(ahead_ms, Ordering::Relaxed);
        watch
    }

    /// The battery is empty: since the computer was started it is 1970.
    pub fn in_1970(time: &Time) -> Watch {
        let passed_ms = time.passed().as_millis() as i64;
        Watch::ahead(time, -BEGIN_MS - passed_ms)
    }

    pub fn now_ms(&self) -> i64 {
        BEGIN_MS + self.time.passed().as_millis() as i64 + self.ahead_ms.load(Ordering::Relaxed)
    }
}

impl Clock for Watch {
    fn now(&self) -> Reading {
        let boot_ms = (self.time.passed() - self.started).as_millis() as u64;
        Reading { wall_ms: self.now_ms(), boot_ms: boot_ms + 1 }
    }

    fn zone(&self) -> Zone {
        Zone { name: "Etc/UTC".to_owned(), offset_s: 0 }
    }

    fn boot(&self) -> BootId {
        self.boot
    }
}

impl TimeProvider for Watch {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.now_ms().unsigned_abs())))
    }
}
