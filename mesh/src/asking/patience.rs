//! Async: who else is asked where somebody in between doesn't bring the hub's word, and how often, in virtual time.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU32, Ordering},
};

use muster_certs::{Identity, Issuer, KeyRequest, Name, Requested, Role, Root, Trusted};
use rustls::{pki_types::UnixTime, time_provider::TimeProvider};
use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::{
    clock::{Reading, Zone},
    door::{Dial, Issued},
    doors,
    ids::BootId,
    relay_list::RelayList,
    seal::SealKey,
};

const NOW_MS: i64 = 1_800_000_000_000;
const HOUR_MS: i64 = 3_600_000;
const HOUR: Duration = Duration::from_secs(3_600);
const NAME: &str = "site/oslo/agent/0190b7e8c4d27d30a5f1c2d3e4f50617";
const NONCE: [u8; 32] = [7; 32];
/// Whoever asks more often than that asks without end.
const ASKS_MAX: u32 = 10_000;

#[tokio::test(start_paused = true)]
async fn a_relay_that_does_not_bring_the_hubs_word_keeps_nobody_from_the_next_door() {
    let laptop = Laptop::new(HOUR_MS, 0);
    let own_number = |sealed: Answer| move |ask: &[u8]| if is_nonce(ask) { Answer::Nonce([9; 32]) } else { sealed.clone() };
    let forged = Answer::Said { body: vec![1], tag: [0; 32] };
    let in_between: [(&str, Box<Answers<'_>>); 7] = [
        ("cut off from the hub", Box::new(|_| bytes(&Answer::Busy { seconds: 10 }))),
        (
            "cut off behind the number",
            Box::new(|ask| bytes(&if is_nonce(ask) { Answer::Nonce(NONCE) } else { Answer::Busy { seconds: 10 } })),
        ),
        ("it says that the hub can't read", Box::new(|_| bytes(&Answer::Unreadable))),
        ("it says nothing that reads", Box::new(|_| Ok(vec![99]))),
        ("a number and a word of its own", Box::new(move |ask| bytes(&own_number(forged.clone())(ask)))),
        ("a number of its own, and it is busy", Box::new(move |ask| bytes(&own_number(Answer::Busy { seconds: 1 })(ask)))),
        ("it doesn't answer", Box::new(|_| Err("nobody is there".to_owned()))),
    ];
    for (what, answers) in in_between {
        let said = laptop.ask_at([&*answers, &|ask| bytes(&laptop.hub.answer(ask))]).await;
        assert!(matches!(said, Ok(Said::Issued(_))), "{what}: {said:?}");
    }
    // Where no door has more to say, what is said is what helps most.
    let busy = |seconds| move |_: &[u8]| bytes(&Answer::Busy { seconds });
    assert_eq!(laptop.ask_at([&busy(30), &|_| Ok(vec![99])]).await, Err(AskError::Busy(30)));
    assert_eq!(laptop.ask_at([&busy(30), &busy(7)]).await, Err(AskError::Busy(7)));
    assert_eq!(laptop.ask_at([&|_| bytes(&Answer::Unreadable), &|_| Err("nobody".to_owned())]).await, Err(AskError::Unreadable));
    assert_eq!(laptop.ask_at([&|_| Ok(vec![99]), &|_| Err("nobody".to_owned())]).await, Err(AskError::NotTheHub));
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_says_come_again_in_no_time_is_not_asked_without_end() {
    let laptop = Laptop::new(20_000, 0);
    let asks = laptop.renews_for(Duration::from_secs(60), |_| bytes(&Answer::Busy { seconds: 0 }), async {}).await;
    assert!((20..120).contains(&asks), "{asks} asks in a minute");
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_asks_ever_more_seldom_once_its_certificate_has_ended() {
    let laptop = Laptop::new(2_000, 0);
    let asks = laptop.renews_for(HOUR, |_| Err("the issuing CA has ended".to_owned()), async {}).await;
    assert!((60..160).contains(&asks), "{asks} asks in an hour");
}

#[tokio::test(start_paused = true)]
async fn a_clock_far_ahead_renews_each_certificate_once_and_one_that_is_set_right_doesnt_forget_to() {
    let laptop = Laptop::new(14 * HOUR_MS, 10 * HOUR_MS);
    let issued = || laptop.hub.issued.load(Ordering::Relaxed);
    let day = async {
        sleep(2 * HOUR).await;
        assert_eq!(issued(), 1, "each new certificate was found old");
        laptop.clock.ahead_ms.store(0, Ordering::Relaxed);
        sleep(2 * HOUR).await;
        assert_eq!(issued(), 1, "too early");
        sleep(5 * HOUR).await;
        assert_eq!(issued(), 2, "not yet, nine hours after it came");
    };
    laptop.renews_for(9 * HOUR, |ask| bytes(&laptop.hub.answer(ask)), day).await;
}

/// How somebody answers an ask.
type Answers<'a> = dyn Fn(&[u8]) -> Result<Vec<u8>, String> + Send + Sync + 'a;

fn bytes(answer: &Answer) -> Result<Vec<u8>, String> {
    answer.bytes().map_err(|error| error.to_string())
}

fn is_nonce(ask: &[u8]) -> bool {
    Ask::read(ask) == Ok(Ask::Nonce)
}

struct Line<'a>(&'a Answers<'a>);

impl Way for Line<'_> {
    async fn ask(&self, ask: Vec<u8>) -> Result<Vec<u8>, String> {
        (self.0)(&ask)
    }
}

/// An enrolled program that knows two doors.
struct Laptop {
    _state: TempDir,
    home: Home,
    keys: Arc<Keys>,
    clock: Arc<Virtual>,
    hub: Hub,
}

impl Laptop {
    fn new(life_ms: i64, ahead_ms: i64) -> Laptop {
        let clock = Arc::new(Virtual { began: Instant::now(), ahead_ms: ahead_ms.into() });
        let (state, hub) = (tempfile::tempdir().unwrap(), Hub::new(clock.clone(), life_ms));
        let home = Home::of(state.path());
        let request = home.request().unwrap();
        let member = home.joined(&hub.issue(&request.request), &request, Role::Agent, None, clock.clone()).unwrap();
        let keys = member.keys(clock.clone()).unwrap();
        Laptop { _state: state, home, keys, clock, hub }
    }

    /// What it hears when these two stand at its doors.
    async fn ask_at(&self, answers: [&Answers<'_>; 2]) -> Result<Said, AskError> {
        let (device_key, request) = (self.home.device_key().unwrap(), KeyRequest::generate().unwrap());
        let member = self.home.member().unwrap().unwrap();
        let asking = Asking { device_key: &device_key, seal: &member.seal, version: "1", bundle: Version::default() };
        let wish = Wish::Renew { name: member.name.to_string(), join_state: member.join_state };
        asking.ask_by(&Doors { laptop: self, answers }, wish, &request).await
    }

    /// Renews in virtual time while `meanwhile` goes on beside it. Returns how often it asked.
    async fn renews_for(
        &self,
        length: Duration,
        answers: impl Fn(&[u8]) -> Result<Vec<u8>, String> + Send + Sync,
        meanwhile: impl Future,
    ) -> u32 {
        let (asks, stop) = (AtomicU32::new(0), CancellationToken::new());
        let counted = |ask: &[u8]| {
            if asks.fetch_add(1, Ordering::Relaxed) == ASKS_MAX {
                stop.cancel();
            }
            answers(ask)
        };
        let renewing = Renewing {
            home: self.home.clone(),
            keys: self.keys.clone(),
            papers: Arc::new(Papers::in_memory(self.keys.clone())),
            clock: self.clock.clone(),
            way: Line(&counted),
            wake: Arc::default(),
            version: "1",
            membership: watch::channel(Membership::OF_FILES).0,
        };
        let timed = async {
            stop.run_until_cancelled(async { tokio::join!(sleep(length), meanwhile) }).await;
            stop.cancel();
        };
        tokio::join!(renewing.run(stop.clone()), timed);
        asks.load(Ordering::Relaxed)
    }
}

/// The two doors of a laptop, as it knows them.
struct Doors<'a> {
    laptop: &'a Laptop,
    answers: [&'a Answers<'a>; 2],
}

impl Ways for Doors<'_> {
    fn ways(&self) -> Result<Vec<impl Way>, String> {
        let door = |address: &str, _: &Name, _: &Trusted| Ok(Line(self.answers[usize::from(address == "second:4434")]));
        doors::ways(&self.laptop.home, &self.laptop.keys, &RelayList::default(), door)
    }
}

struct Hub {
    root: Root,
    issuer: Issuer,
    seal: SealKey,
    /// What time it is there.
    clock: Arc<Virtual>,
    life_ms: i64,
    /// Certificates, as answers to asks.
    issued: AtomicU32,
}

impl Hub {
    fn new(clock: Arc<Virtual>, life_ms: i64) -> Hub {
        let (root, issuer) = Issuer::in_memory("test.internal", NOW_MS).unwrap();
        Hub { root, issuer, seal: SealKey::generate().unwrap(), clock, life_ms, issued: AtomicU32::new(0) }
    }

    fn answer(&self, ask: &[u8]) -> Answer {
        let Ask::Sealed(sealed) = Ask::read(ask).unwrap() else { return Answer::Nonce(NONCE) };
        match Plea::open(&sealed, &self.seal) {
            Ok(opened) if opened.plea.nonce == NONCE => {
                self.issued.fetch_add(1, Ordering::Relaxed);
                opened.answer(&Said::Issued(self.issue(&opened.plea.request))).unwrap()
            }
            Ok(_) | Err(_) => Answer::Unreadable,
        }
    }

    fn issue(&self, request: &[u8]) -> Issued {
        let identity = Identity::new("test.internal", NAME.parse().unwrap()).unwrap();
        let chain = self.issuer.issue_for(&identity, &Requested::read(request).unwrap(), self.life_ms, self.clock.right_ms()).unwrap();
        let dial =
            |host: &str| Dial { address: format!("{host}:4433"), door: format!("{host}:4434"), name: format!("site/oslo/relay/{host}") };
        Issued {
            name: NAME.to_owned(),
            chain: chain.pem,
            roots: self.root.pem().to_owned(),
            join_state: 1,
            standing: Standing::Approved,
            dial: vec![dial("first"), dial("second")],
            seal: self.seal.public().0,
        }
    }
}

/// A laptop's clocks, which go by the runtime's time.
#[derive(Debug)]
struct Virtual {
    began: Instant,
    /// The wall clock's error.
    ahead_ms: AtomicI64,
}

impl Virtual {
    fn right_ms(&self) -> i64 {
        NOW_MS.saturating_add_unsigned(self.passed_ms())
    }

    fn passed_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
}

impl Clock for Virtual {
    fn now(&self) -> Reading {
        Reading { wall_ms: self.right_ms() + self.ahead_ms.load(Ordering::Relaxed), boot_ms: self.passed_ms() }
    }

    fn zone(&self) -> Zone {
        Zone { name: "Etc/UTC".to_owned(), offset_s: 0 }
    }

    fn boot(&self) -> BootId {
        BootId([1; 16])
    }
}

impl TimeProvider for Virtual {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.now().wall_ms.unsigned_abs())))
    }
}
