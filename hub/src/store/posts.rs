//! Async: what one POST reads and writes, in one transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use muster_mesh::{
    batch::{Batch, FLAG_TEST_MODE, VERSION},
    ids::{BootId, DeviceId, InstanceId, Lane, SpoolId},
    link::hub_ranges::SpoolRow,
    message::{Ask, QueueState, Reason, Verdict},
    record::{Focus, Kind, Record},
};
use sqlx::Row;

use super::{Store, StoreError, Writing, bulk, look_ups::LookUp};
use crate::{
    ingest::{
        placing::Placed,
        plan::{Kept, Known, SpoolKey},
    },
    rows::{self, Ids, Shape, Table, Value, blob, int, text},
};

/// `title_key` of a row whose title's time was up before its own.
pub const TITLE_EXPIRED: i64 = 0;

/// A batch whose records become rows.
pub struct NewBatch<'a> {
    pub batch: &'a Batch,
    pub placed: Placed,
    pub records: &'a [Kept],
    /// The relay's clock at its receipt.
    pub receipt_ms: i64,
    /// Where the batch's picture lies, if it has one: put there before this transaction began.
    pub object: Option<&'a NewObject>,
}

/// A picture in the object store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewObject {
    pub key: String,
    /// What the API calls it: random, so that it tells nothing.
    pub id: [u8; 16],
}

/// An envelope that is kept unread.
pub struct NewHold<'a> {
    pub key: SpoolKey,
    pub seq: u64,
    pub digest: [u8; 8],
    pub reason: Reason,
    pub facts: Vec<u8>,
    pub envelope: &'a [u8],
    pub alarm: bool,
}

/// A number that is kept with its verdict alone.
pub struct NewLine {
    pub key: SpoolKey,
    pub seq: u64,
    pub verdict: Verdict,
    pub reason: Reason,
}

/// All that one POST adds.
#[derive(Default)]
pub struct PostRows<'a> {
    pub batches: Vec<NewBatch<'a>>,
    pub holds: Vec<NewHold<'a>>,
    pub lines: Vec<NewLine>,
    /// Names and how much they rise.
    pub counters: Vec<(&'static str, u64)>,
}

/// Rows that the transaction touches, as they were before it: only what changes is written.
pub struct Loaded {
    spools: HashMap<SpoolKey, Vec<u8>>,
    boots: HashSet<(DeviceId, BootId)>,
    numbers: HashMap<SpoolKey, i64>,
    devices: HashMap<DeviceId, i64>,
}

impl Writing<'_> {
    pub async fn relay(&mut self, name: &str) -> Result<i64, StoreError> {
        let numbers = self.numbers(LookUp::Relays, vec![vec![text(name)]]).await?;
        numbers.first().copied().ok_or_else(|| StoreError::Other("a relay without a number".into()))
    }

    /// The last committed POST number of each of a relay's queues; 0 for one that isn't known. Until the commit no other hub changes them.
    pub async fn post_numbers(&mut self, relay_id: i64, queues: &[QueueState]) -> Result<HashMap<InstanceId, u64>, StoreError> {
        let mut rows: Vec<_> =
            queues.iter().map(|queue| vec![blob(&queue.instance.0), int(relay_id), int(i64::from(queue.lane.as_u8())), int(0)]).collect();
        rows.sort_unstable();
        // A row that isn't there can't be locked.
        let insert = "INSERT INTO instances (instance, relay_id, lane, number)";
        self.put(insert, &rows, "ON CONFLICT DO NOTHING").await?;
        let keys: Vec<_> = rows.iter().map(|row| row[..2].to_vec()).collect();
        let select = "SELECT instance, number FROM instances WHERE (instance, relay_id) IN (";
        let locking = format!(") ORDER BY instance {}", self.store.engine.locking());
        let mut numbers = HashMap::new();
        for found in self.find(select, &keys, &locking, &[Shape::Blob, Shape::Int]).await? {
            let [Value::Blob(Some(instance)), Value::Int(Some(number))] = &found[..] else { continue };
            if let Ok(instance) = instance.as_slice().try_into() {
                numbers.insert(InstanceId(instance), *number as u64);
            }
        }
        Ok(numbers)
    }

    pub async fn set_post_number(&mut self, relay_id: i64, instance: InstanceId, lane: Lane, number: u64) -> Result<(), StoreError> {
        let statement = "INSERT INTO instances (instance, relay_id, lane, number) VALUES ($1, $2, $3, $4) \
                         ON CONFLICT (instance, relay_id) DO UPDATE SET number = excluded.number";
        sqlx::query(statement)
            .bind(instance.0.to_vec())
            .bind(relay_id)
            .bind(i64::from(lane.as_u8()))
            .bind(number as i64)
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }

    /// Loads the rows of these spools in key order, and makes those that aren't there. `arriving` are the numbers that will be judged.
    pub async fn load(
        &mut self,
        keys: &BTreeMap<SpoolKey, Lane>,
        boots: &[(DeviceId, BootId)],
        arriving: &[(SpoolKey, u64)],
    ) -> Result<(Loaded, Known), StoreError> {
        let named: BTreeSet<DeviceId> = keys.keys().map(|key| key.0).chain(boots.iter().map(|boot| boot.0)).collect();
        let devices: HashMap<_, _> = self.numbers_of(LookUp::Devices, named, |device| vec![blob(&device.0)]).await?;
        let empty = SpoolRow::default().to_bytes();
        let row = |(key, lane): (&SpoolKey, &Lane)| {
            vec![int(devices[&key.0]), blob(&key.1.0), int(i64::from(lane.as_u8())), blob(&empty), int(1)]
        };
        let numbers = self.numbers(LookUp::Spools, keys.iter().map(row).collect()).await?;
        let key_of: HashMap<i64, SpoolKey> = numbers.iter().copied().zip(keys.keys().copied()).collect();
        let numbers: HashMap<SpoolKey, i64> = keys.keys().copied().zip(numbers).collect();
        let mut wanted: Vec<_> = key_of.keys().map(|number| vec![int(*number)]).collect();
        wanted.sort_unstable();
        let select = "SELECT id, numbers FROM spools WHERE id IN (";
        let locking = format!(") ORDER BY id {}", self.store.engine.locking());
        let (mut known, mut spools) = (Known::default(), HashMap::with_capacity(wanted.len()));
        for mut found in self.find(select, &wanted, &locking, &[Shape::Int, Shape::Blob]).await? {
            let (Some(Value::Blob(Some(bytes))), Some(Value::Int(Some(number)))) = (found.pop(), found.pop()) else { continue };
            let Some(key) = key_of.get(&number) else { continue };
            let row = SpoolRow::from_bytes(&bytes).map_err(|error| StoreError::Other(error.to_string()))?;
            known.spools.insert(*key, row);
            spools.insert(*key, bytes);
        }
        self.load_digests(&mut known, &numbers, &key_of, arriving).await?;
        known.boots = self.load_boots(&devices, boots).await?;
        let boots = known.boots.keys().copied().collect();
        Ok((Loaded { spools, boots, numbers, devices }, known))
    }

    /// The digests of arriving numbers that are stored already: few, unless an answer was lost.
    async fn load_digests(
        &mut self,
        known: &mut Known,
        numbers: &HashMap<SpoolKey, i64>,
        key_of: &HashMap<i64, SpoolKey>,
        arriving: &[(SpoolKey, u64)],
    ) -> Result<(), StoreError> {
        let is_stored = |key: &SpoolKey, seq: u64| known.spools.get(key).is_some_and(|row| row.stored().contains(seq));
        let again = arriving.iter().filter(|(key, seq)| is_stored(key, *seq));
        let mut wanted: Vec<_> = again.map(|(key, seq)| vec![int(numbers[key]), int(*seq as i64)]).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let select = "SELECT spool_id, seq, digest FROM digests WHERE (spool_id, seq) IN (";
        for found in self.find(select, &wanted, ")", &[Shape::Int, Shape::Int, Shape::Blob]).await? {
            let [Value::Int(Some(spool_id)), Value::Int(Some(seq)), Value::Blob(Some(digest))] = &found[..] else { continue };
            let row = key_of.get(spool_id).and_then(|key| known.spools.get_mut(key));
            if let (Some(row), Ok(digest)) = (row, digest.as_slice().try_into()) {
                row.know_digest(*seq as u64, digest);
            }
        }
        Ok(())
    }

    async fn load_boots(
        &mut self,
        devices: &HashMap<DeviceId, i64>,
        boots: &[(DeviceId, BootId)],
    ) -> Result<HashMap<(DeviceId, BootId), i64>, StoreError> {
        let device_of: HashMap<i64, DeviceId> = devices.iter().map(|(device, number)| (*number, *device)).collect();
        let wanted: Vec<_> = boots.iter().map(|(device, boot)| vec![int(devices[device]), blob(&boot.0)]).collect();
        let select = "SELECT device_id, boot, zero_ms FROM boots WHERE (device_id, boot) IN (";
        let mut measured = HashMap::new();
        for found in self.find(select, &wanted, ")", &[Shape::Int, Shape::Blob, Shape::Int]).await? {
            let [Value::Int(Some(device)), Value::Blob(Some(boot)), Value::Int(Some(zero_ms))] = &found[..] else { continue };
            if let Ok(boot) = boot.as_slice().try_into() {
                measured.insert((device_of[device], BootId(boot)), *zero_ms);
            }
        }
        Ok(measured)
    }

    /// Writes the rows that changed since they were loaded.
    pub async fn save(&mut self, before: &Loaded, known: &mut Known, now_ms: i64) -> Result<(), StoreError> {
        let (mut changed, mut digests, mut over) = (Vec::new(), Vec::new(), Vec::new());
        for (key, row) in &mut known.spools {
            let (number, known) = (before.numbers[key], row.take_digests());
            let bytes = row.to_bytes();
            if before.spools.get(key) == Some(&bytes) {
                continue;
            }
            let settled = row.needs_no_digests(now_ms);
            if settled {
                over.push(number);
            } else {
                digests.extend(known.into_iter().map(|(seq, digest)| vec![int(number), int(seq as i64), blob(&digest)]));
            }
            changed.push(vec![int(number), Value::Blob(Some(bytes)), int(i64::from(settled))]);
        }
        let update = ") UPDATE spools SET numbers = v.numbers, settled = v.settled FROM v WHERE spools.id = v.id";
        self.put("WITH v (id, numbers, settled) AS (", &changed, update).await?;
        digests.sort_unstable();
        let insert = "INSERT INTO digests (spool_id, seq, digest)";
        self.put(insert, &digests, "ON CONFLICT DO NOTHING").await?;
        self.forget_digests(&over).await?;
        let new = known.boots.iter().filter(|(boot, _)| !before.boots.contains(boot));
        let mut rows: Vec<_> =
            new.map(|((device, boot), zero_ms)| vec![int(before.devices[device]), blob(&boot.0), int(*zero_ms)]).collect();
        rows.sort_unstable();
        let insert = "INSERT INTO boots (device_id, boot, zero_ms)";
        // Another hub measured one of them a moment ago, and the first measurement stays: all is decided again, by that one.
        if self.put(insert, &rows, "ON CONFLICT DO NOTHING").await? < rows.len() as u64 { Err(StoreError::Busy) } else { Ok(()) }
    }

    /// Forgets the digests of spools that need none any more.
    pub async fn forget_digests(&mut self, spools: &[i64]) -> Result<(), StoreError> {
        for spool_id in spools {
            sqlx::query("DELETE FROM digests WHERE spool_id = $1").bind(*spool_id).execute(&mut *self.transaction).await?;
        }
        Ok(())
    }

    /// Writes what a POST adds.
    pub async fn add(&mut self, loaded: &Loaded, relay_id: i64, now_ms: i64, rows: PostRows<'_>) -> Result<(), StoreError> {
        self.add_batches(loaded, relay_id, now_ms, &rows.batches).await?;
        self.add_holds(loaded, relay_id, now_ms, &rows.holds).await?;
        let lines = rows.lines.iter();
        let lines = lines.map(|line| {
            let (verdict, reason) = (verdict_number(line.verdict), reason_number(line.reason));
            vec![int(loaded.numbers[&line.key]), int(line.seq as i64), int(verdict), int(reason), int(now_ms)]
        });
        let insert = "INSERT INTO dropped (spool_id, seq, verdict, reason, hub_ms)";
        self.put(insert, &lines.collect::<Vec<_>>(), "").await?;
        self.count(&rows.counters).await
    }

    async fn add_batches(&mut self, loaded: &Loaded, relay_id: i64, now_ms: i64, batches: &[NewBatch<'_>]) -> Result<(), StoreError> {
        if batches.is_empty() {
            return Ok(());
        }
        let contexts = self.contexts(batches).await?;
        let ids = self.ids(loaded, batches).await?;
        let mut batch_rows = Vec::with_capacity(batches.len());
        let mut record_rows: BTreeMap<Table, Vec<Vec<Value>>> = BTreeMap::new();
        for (new, context_id) in batches.iter().zip(contexts) {
            let batch = new.batch;
            let spool_id = loaded.numbers[&(batch.device, batch.spool)];
            let (seq, day) = (int(batch.seq as i64), int(new.placed.day));
            batch_rows.push(vec![
                int(spool_id),
                seq.clone(),
                int(loaded.devices[&batch.device]),
                day.clone(),
                int(context_id),
                int(relay_id),
                int(batch.head.boot_ms as i64),
                int(batch.head.wall_ms),
                int(new.receipt_ms),
                int(now_ms),
                int(new.placed.shift_ms),
                int(new.placed.why.number()),
                int(batch.records.len() as i64),
                int((batch.records.len() - new.records.len()) as i64),
            ]);
            for kept in new.records {
                let (table, fields) = fields(new, kept, &ids).ok_or_else(|| StoreError::Other("a record without a table".into()))?;
                let mut row = Vec::with_capacity(4 + fields.len());
                row.extend([day.clone(), int(spool_id), seq.clone(), int(kept.idx as i64)]);
                row.extend(fields);
                record_rows.entry(table).or_default().push(row);
            }
        }
        // In key order: neighbours lie on the same page.
        batch_rows.sort_unstable();
        let insert = "INSERT INTO batches (spool_id, seq, device_id, day, context_id, relay_id, boot_ms, wall_ms, relay_ms, hub_ms, \
                      shift_ms, shift_why, records, left_out)";
        self.put(insert, &batch_rows, "").await?;
        for (table, mut rows) in record_rows {
            rows.sort_unstable();
            let columns = [&["day", "spool_id", "seq", "idx"], table.columns(), beside(table)].concat();
            let insert = format!("INSERT INTO {} ({})", table.name(), columns.join(", "));
            self.put(&insert, &rows, "").await?;
        }
        Ok(())
    }

    /// The context of each batch, in their order.
    async fn contexts(&mut self, batches: &[NewBatch<'_>]) -> Result<Vec<i64>, StoreError> {
        let zones: BTreeSet<&str> = batches.iter().map(|new| new.batch.head.zone.as_str()).collect();
        let zones = self.numbers_of(LookUp::Zones, zones, |zone| vec![text(zone)]).await?;
        let context = |new: &NewBatch<'_>| {
            let Batch { head, policy, notice, erasure, test_mode, .. } = new.batch;
            let flags = if *test_mode { FLAG_TEST_MODE } else { 0 };
            let versions = [policy, notice, erasure].map(|version| int(version.number()));
            let mut key = vec![blob(&head.boot.0), int(zones[head.zone.as_str()]), int(i64::from(head.offset_s))];
            key.extend(versions);
            key.extend([int(i64::from(flags)), int(i64::from(VERSION))]);
            key
        };
        self.numbers(LookUp::Contexts, batches.iter().map(context).collect()).await
    }

    async fn ids(&mut self, loaded: &Loaded, batches: &[NewBatch<'_>]) -> Result<Ids, StoreError> {
        let (mut applications, mut versions) = (BTreeSet::new(), BTreeSet::new());
        for record in batches.iter().flat_map(|new| new.records.iter().map(|kept| &new.batch.records[kept.idx])) {
            match &record.kind {
                Kind::Heartbeat(heartbeat) => {
                    versions.insert(heartbeat.version.clone());
                }
                Kind::Focus(focus) => {
                    if let muster_mesh::record::Application::Named(name) = &focus.application {
                        applications.insert(name.clone());
                    }
                }
                Kind::Activity(_) | Kind::Screenshot(_) | Kind::Session(_) | Kind::Network(_) | Kind::Capability(_) => {}
                Kind::Gap(_) | Kind::Timer(_) | Kind::Entry(_) => {}
            }
        }
        Ok(Ids {
            applications: self.numbers_of(LookUp::Applications, applications, |name| vec![text(name)]).await?,
            versions: self.numbers_of(LookUp::Versions, versions, |name| vec![text(name)]).await?,
            spools: loaded.numbers.clone(),
        })
    }

    async fn add_holds(&mut self, loaded: &Loaded, relay_id: i64, now_ms: i64, holds: &[NewHold<'_>]) -> Result<(), StoreError> {
        for hold in holds {
            let spool_id = loaded.numbers[&hold.key];
            let statement = "INSERT INTO holds (spool_id, seq, digest, reason, relay_id, hub_ms, facts, envelope) \
                             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING";
            sqlx::query(statement)
                .bind(spool_id)
                .bind(hold.seq as i64)
                .bind(hold.digest.to_vec())
                .bind(reason_number(hold.reason))
                .bind(relay_id)
                .bind(now_ms)
                .bind(hold.facts.clone())
                .bind(hold.envelope.to_vec())
                .execute(&mut *self.transaction)
                .await?;
            if hold.alarm {
                let statement =
                    "INSERT INTO alarms (at_ms, device_id, spool_id, seq, what) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
                sqlx::query(statement)
                    .bind(now_ms)
                    .bind(loaded.devices[&hold.key.0])
                    .bind(spool_id)
                    .bind(hold.seq as i64)
                    .bind(hold.reason.name())
                    .execute(&mut *self.transaction)
                    .await?;
            }
        }
        Ok(())
    }

    async fn count(&mut self, counters: &[(&'static str, u64)]) -> Result<(), StoreError> {
        for (name, more) in counters.iter().filter(|(_, more)| *more > 0) {
            let statement = "INSERT INTO counters (name, n) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET n = counters.n + excluded.n";
            sqlx::query(statement).bind(*name).bind(*more as i64).execute(&mut *self.transaction).await?;
        }
        Ok(())
    }

    async fn numbers_of<T: Clone + Eq + std::hash::Hash>(
        &mut self,
        look_up: LookUp,
        things: impl IntoIterator<Item = T>,
        key: impl Fn(&T) -> Vec<Value>,
    ) -> Result<HashMap<T, i64>, StoreError> {
        let things: Vec<T> = things.into_iter().collect();
        let numbers = self.numbers(look_up, things.iter().map(key).collect()).await?;
        Ok(things.into_iter().zip(numbers).collect())
    }
}

impl Store {
    /// The rows of the spools that a relay asks for; what isn't known is left out.
    pub async fn spool_rows(&self, asks: &[Ask]) -> Result<HashMap<SpoolKey, SpoolRow>, StoreError> {
        let mut connection = self.readers.acquire().await?;
        let wanted: Vec<_> = asks.iter().map(|ask| vec![blob(&ask.device.0), blob(&ask.spool.0)]).collect();
        let select =
            "SELECT d.device, s.spool, s.numbers FROM devices d JOIN spools s ON s.device_id = d.id WHERE (d.device, s.spool) IN (";
        let mut rows = HashMap::new();
        for found in bulk::select(&mut connection, self.engine, select, &wanted, ")", &[Shape::Blob; 3]).await? {
            let [Value::Blob(Some(device)), Value::Blob(Some(spool)), Value::Blob(Some(numbers))] = &found[..] else { continue };
            let (Ok(device), Ok(spool)) = (device.as_slice().try_into(), spool.as_slice().try_into()) else { continue };
            let row = SpoolRow::from_bytes(numbers).map_err(|error| StoreError::Other(error.to_string()))?;
            rows.insert((DeviceId(device), SpoolId(spool)), row);
        }
        Ok(rows)
    }

    /// The first measurement of each of these boots, as far as there is one.
    pub async fn boots(&self, boots: &[(DeviceId, BootId)]) -> Result<HashMap<(DeviceId, BootId), i64>, StoreError> {
        let mut connection = self.readers.acquire().await?;
        let wanted: Vec<_> = boots.iter().map(|(device, boot)| vec![blob(&device.0), blob(&boot.0)]).collect();
        let select = "SELECT d.device, b.boot, b.zero_ms FROM devices d JOIN boots b ON b.device_id = d.id WHERE (d.device, b.boot) IN (";
        let shapes = [Shape::Blob, Shape::Blob, Shape::Int];
        let mut measured = HashMap::new();
        for found in bulk::select(&mut connection, self.engine, select, &wanted, ")", &shapes).await? {
            let [Value::Blob(Some(device)), Value::Blob(Some(boot)), Value::Int(Some(zero_ms))] = &found[..] else { continue };
            if let (Ok(device), Ok(boot)) = (device.as_slice().try_into(), boot.as_slice().try_into()) {
                measured.insert((DeviceId(device), BootId(boot)), *zero_ms);
            }
        }
        Ok(measured)
    }

    /// The last committed POST number of each of a relay's queues, without a transaction of its own.
    pub async fn post_numbers(&self, relay: &str, instances: &[InstanceId]) -> Result<HashMap<InstanceId, u64>, StoreError> {
        let mut numbers = HashMap::new();
        for instance in instances {
            let statement = "SELECT i.number FROM instances i JOIN relays r ON r.id = i.relay_id WHERE i.instance = $1 AND r.name = $2";
            let row = sqlx::query(statement).bind(instance.0.to_vec()).bind(relay).fetch_optional(&self.readers).await?;
            let number: i64 = row.map_or(Ok(0), |row| row.try_get(0))?;
            numbers.insert(*instance, number as u64);
        }
        Ok(numbers)
    }
}

/// Columns of a table that no record has.
fn beside(table: Table) -> &'static [&'static str] {
    match table {
        Table::Focus => &["title_key"],
        Table::Screenshot => &["object", "object_id"],
        Table::Heartbeat | Table::Activity | Table::Session | Table::Network | Table::Capability | Table::Gap => &[],
    }
}

/// What a row of the table holds behind its key: the record's fields, then what stands [`beside`] them.
fn fields(new: &NewBatch<'_>, kept: &Kept, ids: &Ids) -> Option<(Table, Vec<Value>)> {
    let record = &new.batch.records[kept.idx];
    let table = Table::of(record)?;
    let untitled = if kept.titled { None } else { without_title(record) };
    let mut fields = rows::fields(untitled.as_ref().unwrap_or(record), new.batch.device, ids)?;
    match table {
        Table::Focus => fields.push(Value::Int(untitled.map(|_| TITLE_EXPIRED))),
        Table::Screenshot => {
            let object = new.object?;
            fields.extend([text(&object.key), blob(&object.id)]);
        }
        Table::Heartbeat | Table::Activity | Table::Session | Table::Network | Table::Capability | Table::Gap => {}
    }
    Some((table, fields))
}

/// The same without its title; None where it has none.
fn without_title(record: &Record) -> Option<Record> {
    match &record.kind {
        Kind::Focus(focus) if focus.title.is_some() => {
            Some(Record { at: record.at, kind: Kind::Focus(Focus { title: None, ..focus.clone() }) })
        }
        _ => None,
    }
}

pub fn verdict_number(verdict: Verdict) -> i64 {
    verdict as i64
}

pub fn verdict_of(number: i64) -> Option<Verdict> {
    Verdict::ALL.get(usize::try_from(number).ok()?).copied()
}

pub fn reason_number(reason: Reason) -> i64 {
    reason as i64
}

pub fn reason_of(number: i64) -> Option<Reason> {
    Reason::ALL.get(usize::try_from(number).ok()?).copied()
}
