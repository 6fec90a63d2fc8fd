//! Async: the way to the hub: one POST in flight per lane, over HTTP/2 and mutual TLS. The only file that names reqwest.
//!
//! What an answer means for a queue is decided in `mesh::link::relay_sync`; here it is asked, carried and spread.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use muster_certs::{DIALLED_NAME, Keys, Name, Trusted, client_config, handshake_words, stranger_config};
use muster_mesh::{
    chance,
    clock::Clock,
    complaint::Complaint,
    door::{DOOR_CONTENT_TYPE, DOOR_PROTOCOL},
    ids::Lane,
    limits,
    message::{
        Answer, CloseCode, HeldVersion, PostHead, SIGNED_CONTENT_TYPE, SIGNED_PROTOCOL, SYNC_CONTENT_TYPE, SYNC_PROTOCOL, Snapshot, Taken,
    },
    papers::Papers,
};
use reqwest::{
    StatusCode,
    dns::{Addrs, Resolve, Resolving},
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use rustls::time_provider::TimeProvider;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    agents::Agents,
    writer::{Closed, LaneInbox, Posting},
};

mod pace;

pub use pace::{FIRST_RETRY, Pace};

/// ALPN, the better first.
const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From the first byte of a POST to the last of its answer: 8 MiB over a poor line, and the hub's commit.
const POST_TIMEOUT: Duration = Duration::from_secs(120);
/// A connection is asked for life this often, and dropped when it doesn't answer for as long again.
const ALIVE_EVERY: Duration = Duration::from_secs(15);
/// A POST that carried this many envelopes or bytes was worth sending at once, and so is the next.
const WORTH_ENVELOPES: usize = limits::POST_ENVELOPES_MAX / 4;
const WORTH_BYTES: usize = limits::POST_BYTES_MAX / 4;
/// After an answer that asks for the same again: a hub that always does isn't asked in a circle.
const AGAIN: Duration = Duration::from_millis(100);
/// A hub that doesn't take over what it is shown is shown it again after this.
const SHOW_EVERY: Duration = Duration::from_secs(15);
/// Presence of many devices with many tails must leave room for the rest of the head.
const PRESENCE_BYTES_MAX: usize = 2 << 20;
/// Asks, versions and queue states: an ask has at most 16 + 16 + 9 bytes.
const HEAD_REST_BYTES_MAX: usize = limits::ASKS_MAX * 48 + 64 * 1_024;
const _: () = assert!(PRESENCE_BYTES_MAX + HEAD_REST_BYTES_MAX <= limits::POST_HEAD_BYTES_MAX);
/// A hub's words in a log.
const WORDS_MAX: usize = 200;

/// Where the hub is, and who it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubAddress {
    /// `host:port`
    pub address: String,
    pub name: Name,
}

/// What both lanes' syncs share.
pub struct HubSync {
    pub line: Arc<Line>,
    pub agents: Arc<Agents>,
    pub lanes: [LaneInbox; 2],
    pub clock: Arc<dyn Clock>,
    /// What the hub signed.
    pub papers: Arc<Papers>,
    /// While there is something to sync.
    pub interval: Duration,
    /// While the hub doesn't answer, the first retry comes within this: usually [`FIRST_RETRY`].
    pub first_retry: Duration,
}

impl HubSync {
    /// Syncs one lane until `stop`. A POST in flight is given up: its envelopes go again after the start.
    pub async fn run(self: Arc<Self>, lane: Lane, stop: CancellationToken) {
        let pace = Pace::new(self.first_retry);
        let mut lane =
            LaneSync { sync: self, lane, pace, bytes_max: limits::POST_BYTES_MAX, presence_at: Instant::now(), show_at: Instant::now() };
        // Closed: the program stops anyway.
        let _ = stop.run_until_cancelled(lane.run()).await;
    }
}

/// One lane's sync.
struct LaneSync {
    sync: Arc<HubSync>,
    lane: Lane,
    pace: Pace,
    /// A hub may take less than we would send.
    bytes_max: usize,
    /// Telemetry: presence is due then.
    presence_at: Instant,
    /// What the hub doesn't know is shown from here on.
    show_at: Instant,
}

/// A POST that was put together.
struct Prepared {
    /// 0: it carries no envelopes.
    number: u64,
    envelopes: usize,
    bytes: usize,
    body: Bytes,
    snapshot: Option<Snapshot>,
    waiting: u64,
}

impl LaneSync {
    async fn run(&mut self) -> Result<(), Closed> {
        let mut due = Instant::now();
        loop {
            sleep_until(due).await;
            due = Instant::now() + self.once().await?;
        }
    }

    /// One POST, if there is anything to say. Returns when the next may go.
    async fn once(&mut self) -> Result<Duration, Closed> {
        let Some(prepared) = self.prepare().await? else { return Ok(self.sync.interval) };
        let began = Instant::now();
        let outcome = self.sync.line.post(prepared.body.clone()).await;
        let outcome_name = outcome.as_ref().map_or_else(PostError::name, answer_name);
        metrics::counter!("muster_relay_posts_total", "lane" => self.lane.name(), "outcome" => outcome_name).increment(1);
        metrics::histogram!("muster_relay_post_seconds", "lane" => self.lane.name()).record(began.elapsed().as_secs_f64());
        match outcome {
            Ok(Answer::Taken(taken)) if taken.number != prepared.number => {
                let error = PostError::Nonsense(format!("it speaks of POST {}, and {} was sent", taken.number, prepared.number));
                self.unanswered(error, &prepared)
            }
            Ok(answer) => self.answered(answer, prepared).await,
            Err(error) => self.unanswered(error, &prepared),
        }
    }

    // --- before ---

    async fn prepare(&mut self) -> Result<Option<Prepared>, Closed> {
        let telemetry = self.lane == Lane::Telemetry;
        let agents = &self.sync.agents;
        let own = &self.sync.lanes[self.lane.index()];
        let Posting { post, queue, waiting } = own.post(self.bytes_max - head_bytes_max(self.lane)).await?;
        let presence_is_due = telemetry && (agents.has_presence_news() || Instant::now() >= self.presence_at);
        if post.is_none() && !presence_is_due {
            return Ok(None);
        }
        let mut queues = Vec::new();
        for lane in &self.sync.lanes {
            queues.push(if lane.lane() == self.lane { queue } else { lane.queue().await? });
        }
        let head = PostHead {
            lane: self.lane,
            number: post.as_ref().map_or(0, |post| post.number),
            queues,
            asks: if telemetry { agents.asks(limits::ASKS_MAX) } else { Vec::new() },
            presence: telemetry.then(|| fitting(agents.snapshot(limits::PRESENCE_MAX))),
            relay_ms: self.sync.clock.now().wall_ms,
            versions: agents.versions(),
        };
        let entries = post.map(|post| post.entries).unwrap_or_default();
        let bytes = entries.iter().map(|(facts, envelope)| facts.len() + envelope.len()).sum();
        let body = match head.body(entries.iter().map(|(facts, envelope)| (facts.as_ref(), envelope.as_ref()))) {
            Ok(body) => body,
            Err(error) => {
                tracing::error!(lane = %self.lane, %error, "a POST came out too long");
                own.failed()?;
                return Ok(None);
            }
        };
        Ok(Some(Prepared { number: head.number, envelopes: entries.len(), bytes, body, snapshot: head.presence, waiting }))
    }

    // --- after ---

    async fn answered(&mut self, answer: Answer, prepared: Prepared) -> Result<Duration, Closed> {
        if self.pace.well() {
            tracing::info!(lane = %self.lane, "the hub answers again");
        }
        match answer {
            Answer::Taken(taken) => self.taken(taken, prepared),
            Answer::Stale { number } => {
                tracing::warn!(lane = %self.lane, number, "the hub has seen a later POST of this queue: it is sent again under a higher number");
                self.sync.lanes[self.lane.index()].stale(number)?;
                self.lost(&prepared);
                Ok(AGAIN)
            }
            Answer::Rewind { queues } => {
                tracing::warn!("the hub was rolled back: what lies here is sent again");
                self.sync.lanes[self.lane.index()].failed()?;
                for (lane, number) in queues {
                    self.sync.lanes[lane.index()].rewind(number).await?;
                }
                self.lost(&prepared);
                // Their hub's acks may be from before: they say again what they hold, and are told again what lies here.
                self.sync.agents.end_all_slowly(CloseCode::ClaimsChanged);
                Ok(AGAIN)
            }
        }
    }

    fn taken(&mut self, taken: Taken, prepared: Prepared) -> Result<Duration, Closed> {
        let sync = self.sync.clone();
        let counts = taken.counts;
        let named = [
            ("stored", counts.stored),
            ("repeat", counts.repeat),
            ("held", counts.held),
            ("refused", counts.refused),
            ("expired", counts.expired),
            ("erased", counts.erased),
            ("returned", counts.returned),
        ];
        for (verdict, count) in named.into_iter().filter(|(_, count)| *count > 0) {
            metrics::counter!("muster_relay_verdicts_total", "lane" => self.lane.name(), "verdict" => verdict).increment(count.into());
        }
        metrics::counter!("muster_relay_posted_total", "lane" => self.lane.name()).increment(prepared.envelopes as u64);
        if prepared.number > 0 {
            sync.lanes[self.lane.index()].taken(taken.number, taken.returned)?;
        }
        for lane in &sync.lanes {
            lane.backed_up(taken.backed_up[lane.lane().index()])?;
        }
        // An ack may be signed with a key that only the newest bundle names.
        self.signed(taken.signed);
        self.show(&taken.versions);
        sync.agents.acks(taken.acks);
        if let Some(snapshot) = &prepared.snapshot {
            sync.agents.snapshot_taken(snapshot);
            self.presence_at = Instant::now() + limits::PRESENCE_EVERY.saturating_sub(sync.interval.min(limits::PRESENCE_EVERY / 2));
        }
        self.bytes_max = limits::POST_BYTES_MAX.min(self.bytes_max * 2);
        let worth = prepared.envelopes >= WORTH_ENVELOPES || prepared.bytes >= WORTH_BYTES;
        Ok(if worth && prepared.waiting > 0 { Duration::ZERO } else { sync.interval })
    }

    /// What the hub signed is believed here before it is obeyed, kept, and passed on.
    fn signed(&self, signed: Vec<Vec<u8>>) {
        let sync = &self.sync;
        let mut believed = Vec::new();
        for bytes in signed {
            let bytes = Bytes::from(bytes);
            match sync.papers.take(&bytes, sync.clock.now().wall_ms) {
                Ok(paper) => {
                    sync.papers.keep(&paper.signed, &bytes);
                    believed.push(bytes);
                }
                Err(error) => {
                    metrics::counter!("muster_relay_unproven_total", "why" => error.name()).increment(1);
                    tracing::warn!(%error, "the hub's answer holds something that isn't the hub's word: it is neither obeyed nor passed on");
                }
            }
        }
        // A bundle may have ended the key under what was passed on until now.
        sync.agents.only(&sync.papers.held());
        sync.agents.signed(believed);
    }

    /// A hub that says less than a hub of this mesh has signed is shown it: one that was put back from a backup lets nobody in again.
    fn show(&mut self, hub: &[HeldVersion]) {
        let unknown = self.sync.papers.unknown_to(hub);
        if unknown.is_empty() || self.lane != Lane::Telemetry || Instant::now() < self.show_at {
            return;
        }
        self.show_at = Instant::now() + SHOW_EVERY;
        tracing::warn!(count = unknown.len(), "the hub says less than it has signed before: it is shown what lies here");
        let line = self.sync.line.clone();
        // Beside the next POST: what is shown is short.
        tokio::spawn(async move {
            for bytes in unknown {
                if let Err(error) = line.show(bytes).await {
                    tracing::warn!(%error, "the hub doesn't take what it has signed before; it is shown again");
                    return;
                }
            }
        });
    }

    fn unanswered(&mut self, error: PostError, prepared: &Prepared) -> Result<Duration, Closed> {
        let first = self.pace.failures() == 0;
        let chance = [chance::fraction(), chance::fraction()];
        let retry_after = if let PostError::Busy(retry_after) = &error { *retry_after } else { None };
        let wait = self.pace.failed(self.sync.clock.now().boot_ms, retry_after, chance);
        match &error {
            PostError::TooLarge => {
                self.bytes_max = (self.bytes_max / 2).max(limits::POST_HEAD_BYTES_MAX + limits::COMMIT_BYTES_MAX);
                tracing::warn!(lane = %self.lane, "the hub takes no POST of {} bytes: smaller ones are tried", prepared.body.len());
            }
            // Once, and then only while somebody looks closely.
            _ if first => tracing::warn!(lane = %self.lane, %error, "the hub takes nothing now: everything is kept, and tried again"),
            _ => tracing::debug!(lane = %self.lane, %error, wait_ms = wait.as_millis() as u64, "the hub takes nothing yet"),
        }
        if prepared.number > 0 {
            self.sync.lanes[self.lane.index()].failed()?;
        }
        self.lost(prepared);
        Ok(wait)
    }

    /// The hub may not have seen this POST's presence.
    fn lost(&self, prepared: &Prepared) {
        if prepared.snapshot.is_some() {
            self.sync.agents.snapshot_lost();
        }
    }
}

/// What a head may take of a POST: asks and presence ride with telemetry.
fn head_bytes_max(lane: Lane) -> usize {
    match lane {
        Lane::Telemetry => PRESENCE_BYTES_MAX + HEAD_REST_BYTES_MAX,
        Lane::Pictures => 64 * 1_024,
    }
}

/// As many devices as fit into a head; the others stay to be said.
fn fitting(mut snapshot: Snapshot) -> Snapshot {
    let mut left = PRESENCE_BYTES_MAX;
    let fits = snapshot.devices.iter().take_while(|presence| {
        let bytes = 64 + 40 * presence.tails.len();
        left = left.saturating_sub(bytes);
        left > 0
    });
    let fits = fits.count();
    snapshot.devices.truncate(fits);
    snapshot
}

fn answer_name(answer: &Answer) -> &'static str {
    match answer {
        Answer::Taken(_) => "taken",
        Answer::Stale { .. } => "stale",
        Answer::Rewind { .. } => "rewind",
    }
}

// --- HTTP ---

/// The line to the hub.
pub struct Line {
    client: reqwest::Client,
    url: String,
    door: String,
    signed: String,
}

/// A line to the hub's door, for who has no certificate.
pub struct StrangersLine {
    client: reqwest::Client,
    door: String,
}

/// A POST that wasn't answered as one, as the next step needs to know it. The envelopes stay in each case.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    #[error("it can't be reached: {0}")]
    Unreachable(String),
    #[error("it is busy")]
    Busy(Option<Duration>),
    #[error("it doesn't speak /sync/{SYNC_PROTOCOL}: {0}")]
    Protocol(String),
    #[error("the POST is too large for it")]
    TooLarge,
    #[error("it turns this relay away: {0}")]
    Forbidden(String),
    #[error("its answer can't be understood: {0}")]
    Nonsense(String),
}

impl PostError {
    fn name(&self) -> &'static str {
        match self {
            PostError::Unreachable(_) => "unreachable",
            PostError::Busy(_) => "busy",
            PostError::Protocol(_) => "protocol",
            PostError::TooLarge => "too_large",
            PostError::Forbidden(_) => "forbidden",
            PostError::Nonsense(_) => "nonsense",
        }
    }
}

impl Line {
    /// A line to the hub at `hub.address`, where exactly `hub.name` must answer.
    pub fn new(keys: &Arc<Keys>, hub: &HubAddress) -> Result<Line, Complaint> {
        let wrong = |why: String| {
            Complaint::new(format!("the hub can't be dialled with these keys: {why}"), "Name a relay's certificate in [agents]")
        };
        let port = port_of(&hub.address).ok_or_else(|| {
            Complaint::new(format!("`hub.address` is {:?}, which is no host and port", hub.address), "Write it as hub.example.org:8444")
        })?;
        let tls = client_config(keys, &hub.name, ALPN).map_err(|error| wrong(error.to_string()))?;
        let client = client(tls, &hub.address).map_err(|error| wrong(error.to_string()))?;
        // The name says nothing: whom it reaches is configured, and who answers is checked in the handshake.
        let url = |path: &str, protocol: u16| format!("https://{DIALLED_NAME}:{port}/{path}/{protocol}");
        Ok(Line { client, url: url("sync", SYNC_PROTOCOL), door: url("door", DOOR_PROTOCOL), signed: url("signed", SIGNED_PROTOCOL) })
    }

    /// Carries an ask for a certificate, and its answer back.
    pub async fn ask(&self, ask: Bytes) -> Result<Bytes, PostError> {
        ask_at(&self.client, &self.door, ask).await
    }

    /// Shows the hub what a hub of this mesh has signed.
    pub async fn show(&self, signed: Bytes) -> Result<(), PostError> {
        let sent = self.client.post(&self.signed).header(CONTENT_TYPE, SIGNED_CONTENT_TYPE).body(signed).send().await;
        let response = sent.map_err(unreachable)?;
        let (status, retry_after) = (response.status(), retry_after(&response));
        let bytes = whole(response).await?;
        match status {
            StatusCode::OK | StatusCode::NO_CONTENT => Ok(()),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Err(PostError::Busy(retry_after)),
            StatusCode::NOT_FOUND => Err(PostError::Protocol(words(&bytes))),
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Err(PostError::Forbidden(words(&bytes))),
            other => Err(PostError::Nonsense(format!("status {other}: {}", words(&bytes)))),
        }
    }

    /// Sends one POST and reads its answer.
    pub async fn post(&self, body: Bytes) -> Result<Answer, PostError> {
        let sent = self.client.post(&self.url).header(CONTENT_TYPE, SYNC_CONTENT_TYPE).body(body).send().await;
        let response = sent.map_err(unreachable)?;
        let (status, retry_after) = (response.status(), retry_after(&response));
        let bytes = whole(response).await?;
        match status {
            StatusCode::OK | StatusCode::CONFLICT => Answer::read(&bytes).map_err(|error| PostError::Nonsense(error.to_string())),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Err(PostError::Busy(retry_after)),
            StatusCode::NOT_FOUND => Err(PostError::Protocol(words(&bytes))),
            StatusCode::PAYLOAD_TOO_LARGE => Err(PostError::TooLarge),
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Err(PostError::Forbidden(words(&bytes))),
            other => Err(PostError::Nonsense(format!("status {other}"))),
        }
    }
}

impl StrangersLine {
    /// A line to the door at `address`, where exactly `name` must answer, with one of the trusted roots behind it.
    pub fn new(address: &str, trusted: &Trusted, name: &Name, time: Arc<dyn TimeProvider>) -> Result<StrangersLine, Complaint> {
        let wrong = |why: String| Complaint::new(format!("the hub's door can't be dialled: {why}"), "Ask for a new join token");
        let port = port_of(address).ok_or_else(|| wrong(format!("{address:?} is no host and port")))?;
        let tls = stranger_config(trusted, name, time, ALPN).map_err(|error| wrong(error.to_string()))?;
        let client = client(tls, address).map_err(|error| wrong(error.to_string()))?;
        Ok(StrangersLine { client, door: format!("https://{DIALLED_NAME}:{port}/door/{DOOR_PROTOCOL}") })
    }

    pub async fn ask(&self, ask: Bytes) -> Result<Bytes, PostError> {
        ask_at(&self.client, &self.door, ask).await
    }
}

async fn ask_at(client: &reqwest::Client, url: &str, ask: Bytes) -> Result<Bytes, PostError> {
    let sent = client.post(url).header(CONTENT_TYPE, DOOR_CONTENT_TYPE).body(ask).send().await;
    let response = sent.map_err(unreachable)?;
    let (status, retry_after) = (response.status(), retry_after(&response));
    let bytes = whole(response).await?;
    match status {
        StatusCode::OK => Ok(bytes),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Err(PostError::Busy(retry_after)),
        StatusCode::NOT_FOUND => Err(PostError::Protocol(words(&bytes))),
        other => Err(PostError::Nonsense(format!("status {other}"))),
    }
}

fn port_of(address: &str) -> Option<u16> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse().ok().filter(|_| !host.is_empty())
}

fn client(tls: rustls::ClientConfig, address: &str) -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .dns_resolver(Configured(address.into()))
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(POST_TIMEOUT)
        .http2_keep_alive_interval(ALIVE_EVERY)
        .http2_keep_alive_timeout(ALIVE_EVERY)
        .build()
}

fn retry_after(response: &reqwest::Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The answer's body, up to its bound.
async fn whole(mut response: reqwest::Response) -> Result<Bytes, PostError> {
    let mut bytes = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(unreachable)? {
        if bytes.len() + piece.len() > limits::ANSWER_BYTES_MAX {
            return Err(PostError::Nonsense("it is longer than an answer may be".to_owned()));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.into())
}

/// The innermost causes say what happened ("connection refused", "unknown certificate"); reqwest's own words don't.
fn unreachable(error: reqwest::Error) -> PostError {
    let mut causes = Vec::new();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&error);
    while let Some(inner) = cause {
        causes.push(inner.to_string());
        cause = inner.source();
    }
    let innermost = causes.pop().unwrap_or_else(|| error.without_url().to_string());
    PostError::Unreachable(words(handshake_words(&innermost).as_bytes()))
}

fn words(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * WORDS_MAX)]).into_owned();
    text.chars().take(WORDS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}

/// Whatever name is asked for, the configured host is what is looked up.
struct Configured(Arc<str>);

impl Resolve for Configured {
    fn resolve(&self, _: reqwest::dns::Name) -> Resolving {
        let address = self.0.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host(&*address).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}
