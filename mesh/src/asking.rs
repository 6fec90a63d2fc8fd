//! Async: asking the hub for a certificate, and renewing it for as long as a program runs, over whatever way leads to the hub.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use muster_certs::{DeviceKey, KeyRequest, Keys};
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    chance,
    clock::{Clock, Reading},
    door::{Answer, Ask, Plea, Refusal, Said, Standing, Wish},
    ids::Version,
    member::{Home, Member, MemberError},
    message::SignedKind,
    papers::Papers,
    renewal::{CHECK_EVERY_MIN, Life, Reckoning},
    seal::SealTo,
};

/// While a device waits for an admin, it asks this often whether it was approved.
const WAITING_EVERY: Duration = Duration::from_secs(20);
/// A hub that says "come again in an hour" is asked again sooner: certificates may live for seconds.
const BUSY_LONGEST: Duration = Duration::from_secs(60);

/// A way to the hub: a door, a relay's connection, HTTPS.
pub trait Way: Send + Sync {
    /// Brings an encoded [`Ask`], and comes back with an encoded [`Answer`]. The error is for people.
    fn ask(&self, ask: Vec<u8>) -> impl Future<Output = Result<Vec<u8>, String>> + Send;
}

impl<W: Way> Way for Arc<W> {
    fn ask(&self, ask: Vec<u8>) -> impl Future<Output = Result<Vec<u8>, String>> + Send {
        self.as_ref().ask(ask)
    }
}

impl<W: Way> Way for &W {
    fn ask(&self, ask: Vec<u8>) -> impl Future<Output = Result<Vec<u8>, String>> + Send {
        (**self).ask(ask)
    }
}

/// All ways of a program to the hub.
pub trait Ways: Send + Sync {
    /// Those that are open now, in the order in which they are tried. The error is for people.
    fn ways(&self) -> Result<Vec<impl Way>, String>;
}

/// The only one.
impl<W: Way> Ways for W {
    fn ways(&self) -> Result<Vec<impl Way>, String> {
        Ok(vec![self])
    }
}

/// Over a line that a member has, or at a door where everybody may ask.
pub enum By<L, D> {
    Line(L),
    Door(D),
}

impl<L: Way, D: Way> Way for By<L, D> {
    async fn ask(&self, ask: Vec<u8>) -> Result<Vec<u8>, String> {
        match self {
            By::Line(line) => line.ask(ask).await,
            By::Door(door) => door.ask(ask).await,
        }
    }
}

/// Why no word of the hub's came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    #[error("the hub can't be asked: {0}")]
    Unreachable(String),
    #[error("the hub is busy: try again in {0} s")]
    Busy(u32),
    /// Sealed for another hub, or a clock stood still between number and plea.
    #[error("the hub can't read what this program asks: is the join token this hub's?")]
    Unreadable,
    #[error("the answer isn't the hub's")]
    NotTheHub,
}

impl AskError {
    /// Of two that came by different ways, the one that says more.
    fn or(self, other: AskError) -> AskError {
        match (&self, &other) {
            (AskError::Busy(one), AskError::Busy(another)) => AskError::Busy(*one.min(another)),
            _ if self.rank() > other.rank() => self,
            _ => other,
        }
    }

    fn rank(&self) -> u8 {
        match self {
            AskError::Unreachable(_) => 0,
            AskError::NotTheHub => 1,
            AskError::Unreadable => 2,
            AskError::Busy(_) => 3,
        }
    }
}

/// Who asks.
pub struct Asking<'a> {
    pub device_key: &'a DeviceKey,
    pub seal: &'a SealTo,
    /// Of the program.
    pub version: &'a str,
    /// The newest bundle of roots that it holds.
    pub bundle: Version,
}

impl Asking<'_> {
    /// Asks by one way after the other until the hub has said something: whoever stands on a way may be cut off from the hub, or not mean it well.
    /// So no answer counts here but the hub's own, and each way is asked for a number of its own.
    pub async fn ask_by(&self, ways: &impl Ways, wish: Wish, request: &KeyRequest) -> Result<Said, AskError> {
        let mut why = AskError::Unreachable("no way is known".to_owned());
        for way in ways.ways().map_err(AskError::Unreachable)? {
            match self.ask(&way, wish.clone(), request).await {
                Ok(said) => return Ok(said),
                Err(error) => why = why.or(error),
            }
        }
        Err(why)
    }

    /// Asks for a number, signs and seals the wish over it, and hears what the hub says.
    pub async fn ask(&self, way: &impl Way, wish: Wish, request: &KeyRequest) -> Result<Said, AskError> {
        let Answer::Nonce(nonce) = exchange(way, &Ask::Nonce).await? else { return Err(AskError::NotTheHub) };
        let plea = Plea {
            wish,
            nonce,
            request: request.request.clone(),
            device_key: self.device_key.public(),
            reply_key: chance::random_32(),
            version: self.version.to_owned(),
            bundle: self.bundle,
        };
        let ask = plea.seal(self.device_key, self.seal).map_err(|_| AskError::Unreadable)?;
        match exchange(way, &ask).await? {
            Answer::Said { body, tag } => plea.said(&body, &tag).map_err(|_| AskError::NotTheHub),
            Answer::Nonce(_) | Answer::Busy { .. } | Answer::Unreadable => Err(AskError::NotTheHub),
        }
    }
}

async fn exchange(way: &impl Way, ask: &Ask) -> Result<Answer, AskError> {
    let asked = ask.bytes().map_err(|error| AskError::Unreachable(error.to_string()))?;
    let answered = way.ask(asked).await.map_err(AskError::Unreachable)?;
    match Answer::read(&answered) {
        Ok(Answer::Busy { seconds }) => Err(AskError::Busy(seconds)),
        Ok(Answer::Unreadable) => Err(AskError::Unreadable),
        Ok(answer) => Ok(answer),
        Err(_) => Err(AskError::NotTheHub),
    }
}

/// Keeps a member's certificate alive. One task per program.
pub struct Renewing<W> {
    pub home: Home,
    pub keys: Arc<Keys>,
    /// What the hub signed: which roots this program holds is told with each request.
    pub papers: Arc<Papers>,
    pub clock: Arc<dyn Clock>,
    pub way: W,
    /// The computer woke up, or its network changed: look at once. Told to those who dial, too, when a certificate that had ended is replaced.
    pub wake: Arc<Notify>,
    pub version: &'static str,
    /// Told of each change.
    pub membership: watch::Sender<Membership>,
}

/// How a member stands with the hub, as its own program knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    pub standing: Standing,
    /// Why there is no new certificate although it is time for one; for people.
    pub trouble: Option<String>,
}

impl Membership {
    /// Of one whose certificate lies in files: whoever wrote them approved it.
    pub const OF_FILES: Membership = Membership { standing: Standing::Approved, trouble: None };

    pub fn of(member: &Member) -> Membership {
        Membership { standing: member.standing, trouble: None }
    }

    pub fn is_approved(&self) -> bool {
        self.standing == Standing::Approved
    }
}

/// What a look came to.
enum Looked {
    /// Not yet time.
    Early,
    Renewed,
    /// Again after this.
    Later(Duration),
    /// Whoever was asked can't ask the hub now: again after this.
    Busy(Duration),
}

impl<W: Ways> Renewing<W> {
    /// Renews until `stop`. A renewal that fails is said once, and tried again.
    pub async fn run(self, stop: CancellationToken) {
        // A clock that is known to be wrong doesn't say how old the certificate is.
        let mut due_ms = if self.keys.clock_is_behind() { i64::MIN } else { self.life().renew_ms(chance::fraction()) };
        let mut reckoning = Reckoning::default();
        let mut moves_to = None;
        let mut came: Option<Reading> = None;
        let mut failures = 0_u32;
        count("renewed", 0);
        count("failed", 0);
        count("busy", 0);
        while !stop.is_cancelled() {
            // A wake while the hub is asked isn't missed.
            let mut woken = pin!(self.wake.notified());
            woken.as_mut().enable();
            let now = self.clock.now();
            let now_ms = reckoning.now_ms(now, self.keys.past_ms());
            // Planned once for each CA: a hub that signs by another than it says isn't asked without end.
            let other = self.papers.issuer().filter(|issuer| self.keys.leaf().issuer.as_ref() != Some(issuer));
            if other.is_some() && other != moves_to {
                due_ms = due_ms.min(self.life().move_ms(now_ms, chance::fraction()));
                moves_to = other;
                came = None;
            }
            let due = now_ms >= due_ms && came.is_none_or(|came| self.life().has_rested(came, now));
            let looked = self.look(due).await;
            failures = if looked.is_err() { failures.saturating_add(1) } else { 0 };
            let every = match looked {
                Ok(Looked::Early) => self.life().check_every(),
                Ok(Looked::Renewed) => {
                    due_ms = self.life().renew_ms(chance::fraction());
                    came = if due { Some(self.clock.now()) } else { came };
                    self.life().check_every()
                }
                Ok(Looked::Later(wait)) => wait,
                Ok(Looked::Busy(wait)) => {
                    count("busy", 1);
                    if now_ms > self.life().late_ms(due_ms) {
                        self.in_trouble("whoever it asks can't reach the hub that issues certificates".to_owned());
                    }
                    wait
                }
                Err(error) => {
                    count("failed", 1);
                    self.in_trouble(error.to_string());
                    self.life().retry_after(failures, now_ms)
                }
            };
            // A branch whose certificates are due together doesn't ask together.
            let wait = every.mul_f64(0.5 + 0.5 * chance::fraction());
            tokio::select! {
                () = stop.cancelled() => return,
                () = woken => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Says it once.
    fn in_trouble(&self, why: String) {
        self.membership.send_if_modified(|known| {
            let is_new = known.trouble.as_ref() != Some(&why);
            if is_new {
                tracing::warn!("the certificate couldn't be renewed yet: {why}");
                known.trouble = Some(why);
            }
            is_new
        });
    }

    fn life(&self) -> Life {
        let leaf = self.keys.leaf();
        Life::of(leaf.not_before_ms, self.keys.not_after_ms())
    }

    async fn look(&self, due: bool) -> anyhow::Result<Looked> {
        let Some(member) = self.home.member()? else { return Ok(Looked::Early) };
        let waiting = member.standing == Standing::Waiting;
        if !due && !waiting {
            return Ok(Looked::Early);
        }
        let request = if due { self.home.request()? } else { member.same_request()? };
        let bundle = self.papers.version(SignedKind::Bundle);
        let asking = Asking { device_key: &self.home.device_key()?, seal: &member.seal, version: self.version, bundle };
        let wish = Wish::Renew { name: member.name.to_string(), join_state: member.join_state };
        match asking.ask_by(&self.way, wish, &request).await {
            Ok(Said::Issued(issued)) => {
                let (identity, had_ended) = (self.keys.identity(), self.keys.expired(self.clock.now().wall_ms));
                let renewed = self.home.joined(&issued, &request, identity.role(), Some(&identity), self.keys.time().clone());
                let renewed = renewed.map_err(|error: MemberError| anyhow::anyhow!("{error}; the old one stays"))?;
                renewed.renew(&self.keys)?;
                if due {
                    count("renewed", 1);
                    tracing::info!(until_ms = self.keys.not_after_ms(), "the certificate was renewed");
                }
                self.membership.send_replace(Membership::of(&renewed));
                if had_ended {
                    // Whoever was turned away with the old one needn't wait for their next try.
                    self.wake.notify_waiters();
                }
                Ok(if due || renewed.standing == Standing::Approved { Looked::Renewed } else { Looked::Later(WAITING_EVERY) })
            }
            Ok(Said::Waiting) => {
                self.in_trouble(
                    "it came back too often after its certificate had ended; an admin has to let it back in once more".to_owned(),
                );
                Ok(Looked::Later(WAITING_EVERY))
            }
            Ok(Said::Refused(refusal)) => Err(refused(refusal)),
            Err(AskError::Busy(seconds)) => Ok(Looked::Busy(Duration::from_secs(seconds.into()).clamp(CHECK_EVERY_MIN, BUSY_LONGEST))),
            Err(error) => Err(error.into()),
        }
    }
}

/// A count that begins at 0 is one whose first step is seen.
fn count(outcome: &'static str, times: u64) {
    metrics::counter!("muster_cert_renewals_total", "outcome" => outcome).increment(times);
}

fn refused(refusal: Refusal) -> anyhow::Error {
    anyhow::anyhow!("{refusal}")
}

#[cfg(test)]
mod patience;
#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use muster_certs::{Identity, Issuer, Requested, Role, SystemTime};
    use tokio::{task::JoinHandle, time::Instant};

    use super::*;
    use crate::{
        clock::{ManualClock, SystemClock},
        door::Issued,
        ids::BootId,
    };

    const NAME: &str = "site/oslo/agent/0190b7e8c4d27d30a5f1c2d3e4f50617";
    const DAY_MS: i64 = 86_400_000;
    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_wake_is_a_look_before_the_next_one_is_due() {
        let agent = Agent::of(30 * DAY_MS, Silence::default());
        sleep(SECOND).await;
        assert_eq!(agent.asked().len(), 0, "it isn't due");
        agent.clock.advance(20 * DAY_MS as u64);
        sleep(SECOND).await;
        assert_eq!(agent.asked().len(), 0, "nobody looks");
        agent.wake.notify_waiters();
        sleep(SECOND).await;
        assert_eq!(agent.asked().len(), 1);
        agent.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_wake_while_the_hub_is_asked_is_not_missed() {
        let wake = Arc::new(Notify::new());
        let agent = Agent::of(30 * DAY_MS, Silence { woken_by_the_first: Some(wake.clone()), ..Silence::default() });
        sleep(SECOND).await;
        agent.clock.advance(20 * DAY_MS as u64);
        agent.wake.notify_waiters();
        sleep(SECOND).await;
        assert_eq!(agent.asked().len(), 2);
        agent.stop().await;
    }

    /// Every min(60 s, a twentieth of its life), or up to twice as often.
    #[tokio::test(start_paused = true)]
    async fn a_certificate_is_looked_at_as_often_as_its_life_asks_for() {
        for (life_ms, every) in [(30 * DAY_MS, 60 * SECOND), (20_000, SECOND)] {
            let agent = Agent::of(life_ms, Silence::default());
            // Due, and alive: once it has ended nobody asks as often.
            agent.clock.advance(life_ms as u64 * 7 / 10);
            sleep(every * 20).await;
            let asked = agent.stop().await;
            let waits: Vec<Duration> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(waits.len() >= 18, "{waits:?}");
            // A timer goes by whole milliseconds.
            let usual = every / 2..=every + Duration::from_millis(1);
            assert!(waits.iter().all(|wait| usual.contains(wait)), "a life of {life_ms} ms: {waits:?}");
        }
    }

    // --- an agent whose hub never answers ---

    struct Agent {
        clock: ManualClock,
        wake: Arc<Notify>,
        asked: Arc<Mutex<Vec<Instant>>>,
        stop: CancellationToken,
        running: JoinHandle<()>,
        _folder: tempfile::TempDir,
    }

    /// When it was asked.
    #[derive(Default)]
    struct Silence {
        asked: Arc<Mutex<Vec<Instant>>>,
        /// Told while the first is under way.
        woken_by_the_first: Option<Arc<Notify>>,
    }

    impl Way for Silence {
        async fn ask(&self, _ask: Vec<u8>) -> Result<Vec<u8>, String> {
            let mut asked = self.asked.lock().unwrap();
            if let Some(wake) = self.woken_by_the_first.as_ref().filter(|_| asked.is_empty()) {
                wake.notify_waiters();
            }
            asked.push(Instant::now());
            Err("nobody is there".to_owned())
        }
    }

    impl Agent {
        /// One whose certificate was issued just now.
        fn of(life_ms: i64, way: Silence) -> Agent {
            let (folder, now) = (tempfile::tempdir().unwrap(), SystemClock::new().now());
            let (root, issuer) = Issuer::in_memory("test.internal", now.wall_ms).unwrap();
            let home = Home::of(folder.path());
            let request = home.request().unwrap();
            let identity = Identity::new("test.internal", NAME.parse().unwrap()).unwrap();
            let chain = issuer.issue_for(&identity, &Requested::read(&request.request).unwrap(), life_ms, now.wall_ms).unwrap();
            let issued = Issued {
                name: NAME.to_owned(),
                chain: chain.pem,
                roots: root.pem().to_owned(),
                join_state: 1,
                standing: Standing::Approved,
                dial: Vec::new(),
                seal: [7; 32],
            };
            let member = home.joined(&issued, &request, Role::Agent, None, Arc::new(SystemTime)).unwrap();
            let keys = member.keys(Arc::new(SystemTime)).unwrap();
            let clock = ManualClock::new(now, BootId([1; 16]));
            let (asked, stop) = (way.asked.clone(), CancellationToken::new());
            let wake = way.woken_by_the_first.clone().unwrap_or_default();
            let renewing = Renewing {
                home,
                papers: Arc::new(Papers::in_memory(keys.clone())),
                keys,
                clock: Arc::new(clock.clone()),
                way,
                wake: wake.clone(),
                version: "0.1.0",
                membership: watch::channel(Membership::of(&member)).0,
            };
            let running = tokio::spawn(renewing.run(stop.clone()));
            Agent { clock, wake, asked, stop, running, _folder: folder }
        }

        fn asked(&self) -> Vec<Instant> {
            self.asked.lock().unwrap().clone()
        }

        async fn stop(self) -> Vec<Instant> {
            let asked = self.asked();
            self.stop.cancel();
            self.running.await.unwrap();
            asked
        }
    }
}
