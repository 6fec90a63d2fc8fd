//! Async: one POST of a relay, from its bytes to the answer.
//!
//! Read and open (no lock held) → of the pictures' lane: put the objects ([`pictures`]) → one transaction: compare, load, decide ([`plan`]),
//! write → commit → answer. Only what was committed is answered for.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use muster_certs::Name;
use muster_mesh::{
    clock::Clock,
    control_key::SignError,
    ids::{DeviceId, InstanceId, Lane, Version},
    limits,
    link::hub_ranges::{self, Comparison, SpoolRow},
    message::{Answer, Ask, HubAck, MessageError, PostHead, ReturnReason, Signed, SignedKind, Taken, Verdict, VerdictCounts},
};
use tokio::{sync::Mutex, time::Instant};

use self::{
    pictures::Pictures,
    plan::{Arrival, Keep, Known, Outcome, Picture, Rules, SpoolKey, Whole},
};
use crate::{
    control::Control,
    issued::IssuedSince,
    objects::ObjectError,
    policy::Policies,
    presence::Presences,
    store::{NewBatch, NewHold, NewLine, NewObject, PostRows, Store, StoreError, Writing},
};

pub mod attempts;
pub mod pictures;
pub mod placing;
pub mod plan;

/// Kinds of `Signed` that a relay may report: more than there will be.
const VERSIONS_MAX: usize = 64;

/// What takes POSTs.
pub struct Ingest {
    pub store: Arc<Store>,
    pub clock: Arc<dyn Clock>,
    pub policies: Arc<Policies>,
    pub control: Arc<Control>,
    pub presences: Arc<Mutex<Presences>>,
    pub pictures: Pictures,
    /// Who was denied and has a certificate from after that is welcome again.
    pub issued: IssuedSince,
    pub test_mode: bool,
}

/// A POST whose bytes have been read.
pub struct Post {
    head: PostHead,
    arrivals: Vec<Arrival>,
    begun: Instant,
}

/// A POST that was not answered for; nothing of it was committed, or all that was committed comes again as a repeat.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// It isn't a POST of this protocol.
    #[error("the POST doesn't read: {0}")]
    Malformed(#[from] MessageError),
    /// The same again, a little later.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Pictures only: the same again, a little later.
    #[error(transparent)]
    Objects(#[from] ObjectError),
    #[error("the answer can't be signed: {0}")]
    Sign(#[from] SignError),
    #[error("the POST was given up inside the hub")]
    Stopped,
}

/// What one transaction settled.
struct Settled {
    outcomes: Vec<Outcome>,
    spools: BTreeMap<SpoolKey, SpoolRow>,
}

impl Post {
    /// Reads a POST and opens its envelopes, on a thread of its own: inflating is slow.
    pub async fn read(body: Bytes) -> Result<Post, IngestError> {
        let begun = Instant::now();
        let (head, arrivals) = tokio::task::spawn_blocking(move || read(body)).await.map_err(|_| IngestError::Stopped)??;
        Ok(Post { head, arrivals, begun })
    }

    pub fn lane(&self) -> Lane {
        self.head.lane
    }
}

impl Ingest {
    /// Takes a POST of the relay with this name (`site/oslo/relay/oslo-1`).
    pub async fn post(&self, relay: &str, body: Bytes) -> Result<Answer, IngestError> {
        self.take(relay, Post::read(body).await?).await
    }

    pub async fn take(&self, relay: &str, post: Post) -> Result<Answer, IngestError> {
        let Post { head, mut arrivals, begun } = post;
        let now_ms = self.clock.now().wall_ms;
        self.control.held(relay, &head.versions, now_ms, head.relay_ms).await?;
        let answer = match head.lane {
            _ if arrivals.is_empty() => self.compare_only(relay, &head, false).await?,
            Lane::Telemetry => {
                let rules = self.rules(relay, &head, &arrivals, now_ms).await?;
                self.commit(relay, &head, &arrivals, &rules).await?
            }
            Lane::Pictures => {
                let rules = self.rules(relay, &head, &arrivals, now_ms).await?;
                self.commit_pictures(relay, &head, &mut arrivals, &rules).await?
            }
        };
        let answer = match answer {
            Ok(settled) => {
                if let Some(snapshot) = &head.presence {
                    self.presences.lock().await.take(relay, snapshot, now_ms);
                }
                Answer::Taken(self.taken(&head, &arrivals, settled).await?)
            }
            Err(refused) => refused,
        };
        metrics::histogram!("muster_hub_post_seconds", "lane" => head.lane.name()).record(begun.elapsed().as_secs_f64());
        Ok(answer)
    }

    /// A POST without envelopes commits nothing.
    async fn compare_only(&self, relay: &str, head: &PostHead, has_envelopes: bool) -> Result<Result<Settled, Answer>, StoreError> {
        let numbers = self.store.post_numbers(relay, &instances(head)).await?;
        Ok(match compared(head, has_envelopes, &numbers) {
            Some(refused) => Err(refused),
            None => Ok(Settled { outcomes: Vec::new(), spools: BTreeMap::new() }),
        })
    }

    /// The objects, then the rows that name them. It is decided twice: before, from what can be known without a transaction, so that no
    /// picture is put that the database has already, won't take, or would delete at once; then inside it.
    async fn commit_pictures(
        &self,
        relay: &str,
        head: &PostHead,
        arrivals: &mut [Arrival],
        rules: &Rules,
    ) -> Result<Result<Settled, Answer>, IngestError> {
        if let Err(refused) = self.compare_only(relay, head, true).await? {
            return Ok(Err(refused));
        }
        let keys: HashSet<SpoolKey> = arrivals.iter().filter_map(Arrival::whole).map(Whole::key).collect();
        let asks: Vec<Ask> = keys.into_iter().map(|(device, spool)| Ask { device, spool, from: 1 }).collect();
        let spools = self.store.spool_rows(&asks).await?.into_iter().collect();
        let boots = self.store.boots(&plan::boots(arrivals)).await?;
        let expected = plan::decide(arrivals, &mut Known { spools, boots }, rules);
        self.pictures.claim(&self.store).await??;
        self.pictures.bring(arrivals, &expected).await?;
        let done = self.commit(relay, head, arrivals, rules).await;
        if !matches!(done, Ok(Ok(_))) {
            self.pictures.give_back(arrivals);
        }
        Ok(done?)
    }

    async fn commit(
        &self,
        relay: &str,
        head: &PostHead,
        arrivals: &[Arrival],
        rules: &Rules,
    ) -> Result<Result<Settled, Answer>, StoreError> {
        match self.commit_together(relay, head, arrivals, rules).await {
            Err(error) if !error.is_passing() => {
                tracing::warn!(%error, relay, "a POST didn't fit into one transaction; its batches go one by one");
                self.commit_one_by_one(relay, head, arrivals, rules).await
            }
            done => done,
        }
    }

    async fn commit_together(
        &self,
        relay: &str,
        head: &PostHead,
        arrivals: &[Arrival],
        rules: &Rules,
    ) -> Result<Result<Settled, Answer>, StoreError> {
        let mut writing = self.store.write().await?;
        let relay_id = writing.relay(relay).await?;
        let numbers = writing.post_numbers(relay_id, &head.queues).await?;
        if let Some(refused) = compared(head, true, &numbers) {
            return Ok(Err(refused));
        }
        let settled = self.apply(&mut writing, relay_id, arrivals, rules, plan::decide).await?;
        set_number(&mut writing, relay_id, head).await?;
        writing.commit().await?;
        count(head.lane, &settled.outcomes);
        Ok(Ok(settled))
    }

    /// One batch that the database won't take must not stop the others: it is held, and they go on.
    async fn commit_one_by_one(
        &self,
        relay: &str,
        head: &PostHead,
        arrivals: &[Arrival],
        rules: &Rules,
    ) -> Result<Result<Settled, Answer>, StoreError> {
        let mut writing = self.store.write().await?;
        let relay_id = writing.relay(relay).await?;
        let numbers = writing.post_numbers(relay_id, &head.queues).await?;
        if let Some(refused) = compared(head, true, &numbers) {
            return Ok(Err(refused));
        }
        writing.commit().await?;
        let mut all = Settled { outcomes: Vec::new(), spools: BTreeMap::new() };
        for arrival in arrivals {
            let settled = self.commit_one(relay_id, std::slice::from_ref(arrival), rules).await?;
            all.outcomes.extend(settled.outcomes);
            all.spools.extend(settled.spools);
        }
        let mut writing = self.store.write().await?;
        let numbers = writing.post_numbers(relay_id, &head.queues).await?;
        // A later POST may have come in between: its number stays.
        if compared(head, true, &numbers).is_none() {
            set_number(&mut writing, relay_id, head).await?;
        }
        writing.commit().await?;
        count(head.lane, &all.outcomes);
        Ok(Ok(all))
    }

    async fn commit_one(&self, relay_id: i64, arrival: &[Arrival], rules: &Rules) -> Result<Settled, StoreError> {
        match self.attempt(relay_id, arrival, rules, plan::decide).await {
            Err(error) if !error.is_passing() => {
                tracing::warn!(%error, "a batch is held: its transaction failed twice");
                self.attempt(relay_id, arrival, rules, plan::hold).await
            }
            done => done,
        }
    }

    async fn attempt(&self, relay_id: i64, arrival: &[Arrival], rules: &Rules, decide: Decide) -> Result<Settled, StoreError> {
        let mut writing = self.store.write().await?;
        let settled = self.apply(&mut writing, relay_id, arrival, rules, decide).await?;
        writing.commit().await.map(|()| settled)
    }

    /// Loads, decides and writes, inside the transaction.
    async fn apply(
        &self,
        writing: &mut Writing<'_>,
        relay_id: i64,
        arrivals: &[Arrival],
        rules: &Rules,
        decide: Decide,
    ) -> Result<Settled, StoreError> {
        let (loaded, mut known) = writing.load(&plan::touched(arrivals), &plan::boots(arrivals), &plan::numbers(arrivals)).await?;
        let outcomes = decide(arrivals, &mut known, rules);
        let rows = post_rows(arrivals, &outcomes, self.clock.now().boot_ms)?;
        writing.add(&loaded, relay_id, rules.now_ms, rows).await?;
        writing.save(&loaded, &mut known, rules.now_ms).await?;
        Ok(Settled { outcomes, spools: known.spools })
    }

    async fn rules(&self, relay: &str, head: &PostHead, arrivals: &[Arrival], now_ms: i64) -> Result<Rules, StoreError> {
        let retention = self.policies.current().retention();
        let denied = self.denied(relay, arrivals).await?;
        Ok(Rules { now_ms, relay_ms: head.relay_ms, test_mode: self.test_mode, retention, denied })
    }

    /// Devices of this POST that are denied, and since when, by its own clock, this relay has had the list that says so. What came to it before
    /// is kept; a relay that never said it has the list brings what came to it at any time, and is shown as behind. By which certificate a batch
    /// came nobody says here: a device by files that was given another one since its denial isn't denied any more, as in each handshake.
    async fn denied(&self, relay: &str, arrivals: &[Arrival]) -> Result<BTreeMap<DeviceId, i64>, StoreError> {
        let all = self.control.denied().borrow().clone();
        if all.is_empty() {
            return Ok(BTreeMap::new());
        }
        let brought: HashSet<DeviceId> = arrivals.iter().filter_map(Arrival::whole).map(|whole| whole.envelope.header().device).collect();
        let issued = self.issued.load_full();
        let is_back = |device: &DeviceId, before_ms: i64| issued.get(device).is_some_and(|since_ms| *since_ms >= before_ms);
        let named = |name: &Name| name.device().map(DeviceId).filter(|device| brought.contains(device));
        let still = |(name, before_ms)| Some((named(name).filter(|device| !is_back(device, before_ms))?, name));
        let mut denied = BTreeMap::new();
        for (device, name) in all.iter().filter_map(still) {
            let Some(first) = self.store.first_denied(&name.to_string()).await? else { continue };
            if let Some(since_ms) = self.store.held_since(relay, SignedKind::Deny.as_u8(), first).await? {
                denied.insert(device, since_ms);
            }
        }
        Ok(denied)
    }

    async fn taken(&self, head: &PostHead, arrivals: &[Arrival], settled: Settled) -> Result<Taken, IngestError> {
        let papers = self.policies.current().papers();
        let mut counts = VerdictCounts::default();
        settled.outcomes.iter().for_each(|outcome| counts.add(outcome.verdict));
        let returned = settled.outcomes.iter().enumerate().filter_map(|(i, outcome)| match outcome.keep {
            Keep::Back(why) => Some((i as u32, why)),
            Keep::Rows { .. } | Keep::Envelope { .. } | Keep::Line | Keep::Nothing => None,
        });
        let number = if arrivals.is_empty() { 0 } else { head.number };
        Ok(Taken {
            number,
            counts,
            returned: returned.collect::<Vec<(u32, ReturnReason)>>(),
            acks: self.acks(head, arrivals, &settled).await?,
            backed_up: [None, None],
            versions: self.control.versions(&papers),
            signed: self.control.newer_than(&head.versions, &papers)?,
        })
    }

    /// Acks for the spools of this POST and for those that are asked for.
    async fn acks(&self, head: &PostHead, arrivals: &[Arrival], settled: &Settled) -> Result<Vec<Vec<u8>>, IngestError> {
        let mut from: BTreeMap<SpoolKey, u64> = BTreeMap::new();
        for whole in arrivals.iter().filter_map(Arrival::whole) {
            let seq = whole.envelope.header().seq;
            from.entry(whole.key()).and_modify(|lowest| *lowest = seq.min(*lowest)).or_insert(seq);
        }
        from.extend(head.asks.iter().map(|ask| ((ask.device, ask.spool), ask.from)));
        let asked: HashSet<SpoolKey> = from.keys().filter(|key| !settled.spools.contains_key(key)).copied().collect();
        let asked: Vec<Ask> = asked.into_iter().map(|(device, spool)| Ask { device, spool, from: 1 }).collect();
        let known = self.store.spool_rows(&asked).await?;
        let ack = |(key, from): (SpoolKey, u64)| {
            let row = settled.spools.get(&key).or_else(|| known.get(&key));
            (key, row.map_or_else(HubAck::default, |row| row.ack(from)))
        };
        let acks: Vec<(SpoolKey, HubAck)> = from.into_iter().map(ack).collect();
        let (control, epoch) = (self.control.clone(), self.policies.current().epoch);
        // Thousands of signatures are work for a thread of its own.
        let signing = move || acks.into_iter().map(|(key, ack)| signed_ack(&control, key, ack, epoch)).collect();
        tokio::task::spawn_blocking(signing).await.map_err(|_| IngestError::Stopped)?
    }
}

/// How a transaction decides.
type Decide = fn(&[Arrival], &mut Known, &Rules) -> Vec<Outcome>;

/// Reads a POST and opens its envelopes: work for a thread of its own, since inflating is slow.
fn read(body: Bytes) -> Result<(PostHead, Vec<Arrival>), MessageError> {
    let (head, posted) = PostHead::read(body)?;
    check_lists(&head)?;
    let lane = head.lane;
    let arrivals = posted.into_iter().map(|posted| match posted {
        Ok(posted) if posted.envelope.header().lane == lane => Arrival::Whole(Box::new(Whole {
            digest: posted.envelope.digest(),
            opened: posted.envelope.open(),
            picture: Picture::None,
            facts: posted.facts,
            envelope: posted.envelope,
        })),
        Ok(_) | Err(_) => Arrival::Damaged,
    });
    Ok((head, arrivals.collect()))
}

/// Lists that each cost a look at the database or memory for as long as the hub runs.
fn check_lists(head: &PostHead) -> Result<(), MessageError> {
    let devices = head.presence.as_ref().map_or(0, |snapshot| snapshot.devices.len());
    let tails = head.presence.iter().flat_map(|snapshot| &snapshot.devices).map(|presence| presence.tails.len()).max().unwrap_or(0);
    let lists = [
        (head.queues.len(), Lane::ALL.len()),
        (head.versions.len(), VERSIONS_MAX),
        (devices, limits::PRESENCE_MAX),
        (tails, limits::STATE_TAILS_MAX),
    ];
    match lists.into_iter().find(|(length, most)| length > most) {
        Some((length, _)) => Err(MessageError::TooLong(length)),
        None if head.queues.iter().any(|queue| queue.lane == head.lane) => Ok(()),
        None => Err(MessageError::Cut),
    }
}

fn instances(head: &PostHead) -> Vec<InstanceId> {
    head.queues.iter().map(|queue| queue.instance).collect()
}

/// The answer to a POST that may not be committed.
fn compared(head: &PostHead, has_envelopes: bool, numbers: &HashMap<InstanceId, u64>) -> Option<Answer> {
    let number_of = |instance| numbers.get(&instance).copied().unwrap_or(0);
    match hub_ranges::compare(head, has_envelopes, number_of) {
        Comparison::Fresh => None,
        Comparison::Stale { number } => Some(Answer::Stale { number }),
        Comparison::Rewind { queues } => {
            tracing::warn!("a relay was answered for more than this database knows: it sends again what it still has");
            Some(Answer::Rewind { queues })
        }
    }
}

async fn set_number(writing: &mut Writing<'_>, relay_id: i64, head: &PostHead) -> Result<(), StoreError> {
    match head.queues.iter().find(|queue| queue.lane == head.lane) {
        Some(queue) => writing.set_post_number(relay_id, queue.instance, head.lane, head.number).await,
        None => Err(StoreError::Other("a POST without the queue of its lane".into())),
    }
}

fn post_rows<'a>(arrivals: &'a [Arrival], outcomes: &'a [Outcome], now_boot_ms: u64) -> Result<PostRows<'a>, StoreError> {
    let mut rows = PostRows::default();
    let (mut repeats, mut returned, mut left_out) = (0, 0, 0);
    for (arrival, outcome) in arrivals.iter().zip(outcomes) {
        let Some(whole) = arrival.whole() else {
            returned += 1;
            continue;
        };
        let (key, seq) = (whole.key(), whole.envelope.header().seq);
        match &outcome.keep {
            Keep::Rows { placed, records } => {
                // Only an opened batch is judged to become rows.
                let Ok(batch) = &whole.opened else { continue };
                left_out += (batch.records.len() - records.len()) as u64;
                rows.batches.push(NewBatch {
                    batch,
                    placed: *placed,
                    records,
                    receipt_ms: whole.facts.receipt_ms,
                    object: if plan::names_object(whole, outcome) { object_of(whole, now_boot_ms)? } else { None },
                });
            }
            Keep::Envelope { alarm } => rows.holds.push(NewHold {
                key,
                seq,
                digest: whole.digest,
                reason: outcome.reason,
                facts: whole.facts.bytes().map_err(|error| StoreError::Other(error.to_string()))?.to_vec(),
                envelope: whole.envelope.bytes(),
                alarm: *alarm,
            }),
            Keep::Line => rows.lines.push(NewLine { key, seq, verdict: outcome.verdict, reason: outcome.reason }),
            Keep::Nothing => repeats += 1,
            Keep::Back(_) => returned += 1,
        }
    }
    rows.counters = vec![("repeated_batches", repeats), ("returned_batches", returned), ("expired_records_left_out", left_out)];
    Ok(rows)
}

/// Where the picture of a batch lies.
fn object_of(whole: &Whole, now_boot_ms: u64) -> Result<Option<&NewObject>, StoreError> {
    match &whole.picture {
        Picture::Put(attempt) if attempt.may_commit(now_boot_ms) => Ok(Some(&attempt.object)),
        // It took too long: by now the object may be taken for a stray. The same again puts another.
        Picture::Put(_) => Err(StoreError::Busy),
        Picture::Unfit(_) => Ok(None),
        // When the pictures were brought no row was expected: its number was known, or the policy kept pictures for a shorter time.
        Picture::None => Err(StoreError::Busy),
    }
}

fn signed_ack(control: &Control, (device, spool): SpoolKey, ack: HubAck, epoch: u32) -> Result<Vec<u8>, IngestError> {
    let mut signed = Signed::new(SignedKind::Ack, Version { epoch, n: 0 }, ack.bytes()?);
    signed.device = Some(device);
    signed.spool = Some(spool);
    Ok(control.sign(&signed)?)
}

fn count(lane: Lane, outcomes: &[Outcome]) {
    let lane = lane.name();
    let (mut counts, mut rows): (HashMap<(Verdict, &'static str), u64>, u64) = Default::default();
    for outcome in outcomes {
        let reason = match outcome.keep {
            Keep::Back(why) => why.name(),
            Keep::Rows { .. } | Keep::Envelope { .. } | Keep::Line | Keep::Nothing => outcome.reason.name(),
        };
        *counts.entry((outcome.verdict, reason)).or_default() += 1;
        if let Keep::Rows { records, .. } = &outcome.keep {
            rows += records.len() as u64;
        }
        if outcome.keep == (Keep::Envelope { alarm: true }) {
            tracing::warn!("other content under a known number: two computers with one identity, or a copied disk");
        }
    }
    for ((verdict, reason), n) in counts {
        match verdict {
            Verdict::Stored => metrics::counter!("muster_hub_stored_batches_total", "lane" => lane).increment(n),
            Verdict::Repeat => metrics::counter!("muster_hub_repeated_batches_total", "lane" => lane).increment(n),
            Verdict::Held => metrics::counter!("muster_hub_held_batches_total", "lane" => lane, "reason" => reason).increment(n),
            Verdict::Refused => metrics::counter!("muster_hub_refused_batches_total", "lane" => lane, "reason" => reason).increment(n),
            Verdict::Expired => metrics::counter!("muster_hub_expired_batches_total", "lane" => lane).increment(n),
            Verdict::Erased => metrics::counter!("muster_hub_erased_batches_total", "lane" => lane).increment(n),
            Verdict::Returned => metrics::counter!("muster_hub_returned_batches_total", "lane" => lane, "reason" => reason).increment(n),
        }
    }
    metrics::counter!("muster_hub_records_total", "lane" => lane).increment(rows);
}
