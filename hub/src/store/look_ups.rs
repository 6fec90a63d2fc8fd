//! Async: the numbers of what stands once: names, contexts, devices, spools.
//!
//! Such a row is never deleted and its number never changes, so the number may be remembered once it is committed. What a transaction finds
//! or adds is remembered with its commit and forgotten with its rollback. Two hubs that add the same row agree on its number: the second
//! waits for the first, adds nothing, and reads what is there.

use std::collections::{HashMap, HashSet};

use super::{StoreError, Writing};
use crate::rows::{Shape, Value};

/// Remembered numbers per table; when there are more, they are asked for again.
const REMEMBERED_MAX: usize = 200_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LookUp {
    Relays,
    Zones,
    Applications,
    Versions,
    Contexts,
    Devices,
    Spools,
}

/// Known numbers: of each table by the columns that make a row unique.
#[derive(Default)]
pub struct LookUps(HashMap<LookUp, HashMap<Vec<Value>, i64>>);

impl LookUp {
    fn table(self) -> &'static str {
        match self {
            LookUp::Relays => "relays",
            LookUp::Zones => "zones",
            LookUp::Applications => "applications",
            LookUp::Versions => "versions",
            LookUp::Contexts => "contexts",
            LookUp::Devices => "devices",
            LookUp::Spools => "spools",
        }
    }

    /// The columns that make a row unique.
    fn key(self) -> &'static [(&'static str, Shape)] {
        use Shape::{Blob, Int, Text};
        match self {
            LookUp::Relays | LookUp::Zones | LookUp::Applications | LookUp::Versions => &[("name", Text)],
            LookUp::Contexts => &[
                ("boot", Blob),
                ("zone_id", Int),
                ("offset_s", Int),
                ("policy", Int),
                ("notice", Int),
                ("erasure", Int),
                ("flags", Int),
                ("version", Int),
            ],
            LookUp::Devices => &[("device", Blob)],
            LookUp::Spools => &[("device_id", Int), ("spool", Blob)],
        }
    }

    /// Columns that a new row has besides.
    fn more(self) -> &'static [&'static str] {
        match self {
            LookUp::Spools => &["lane", "numbers", "settled"],
            LookUp::Relays | LookUp::Zones | LookUp::Applications | LookUp::Versions | LookUp::Contexts | LookUp::Devices => &[],
        }
    }
}

impl LookUps {
    fn get(&self, look_up: LookUp, key: &[Value]) -> Option<i64> {
        self.0.get(&look_up)?.get(key).copied()
    }

    fn insert(&mut self, look_up: LookUp, key: Vec<Value>, number: i64) {
        self.0.entry(look_up).or_default().insert(key, number);
    }

    /// Takes over what a committed transaction learned.
    pub fn remember(&mut self, learned: LookUps) {
        for (look_up, numbers) in learned.0 {
            let known = self.0.entry(look_up).or_default();
            if known.len() + numbers.len() > REMEMBERED_MAX {
                known.clear();
            }
            known.extend(numbers);
        }
    }
}

impl Writing<'_> {
    /// The number of each row, in their order; what isn't there is made. A row is its key, then what [`LookUp::more`] names.
    pub async fn numbers(&mut self, look_up: LookUp, rows: Vec<Vec<Value>>) -> Result<Vec<i64>, StoreError> {
        let width = look_up.key().len();
        let unknown: HashSet<&Vec<Value>> = rows.iter().filter(|row| self.number(look_up, &row[..width]).is_none()).collect();
        let mut unknown: Vec<Vec<Value>> = unknown.into_iter().cloned().collect();
        if !unknown.is_empty() {
            unknown.sort_unstable();
            self.learn(look_up, unknown).await?;
        }
        let number = |row: &Vec<Value>| self.number(look_up, &row[..width]).ok_or_else(|| gone(look_up));
        rows.iter().map(number).collect()
    }

    fn number(&self, look_up: LookUp, key: &[Value]) -> Option<i64> {
        self.learned.get(look_up, key).or_else(|| self.store.look_ups().get(look_up, key))
    }

    /// `unknown` is in the order of its keys, so that no two hubs wait for each other.
    async fn learn(&mut self, look_up: LookUp, unknown: Vec<Vec<Value>>) -> Result<(), StoreError> {
        let key_columns: Vec<_> = look_up.key().iter().map(|(column, _)| *column).collect();
        let all_columns = [&key_columns[..], look_up.more()].concat();
        let keys: Vec<_> = unknown.iter().map(|row| row[..key_columns.len()].to_vec()).collect();
        let insert = format!("INSERT INTO {} ({})", look_up.table(), all_columns.join(", "));
        self.put(&insert, &unknown, "ON CONFLICT DO NOTHING").await?;
        let columns = key_columns.join(", ");
        let select = format!("SELECT id, {columns} FROM {} WHERE ({columns}) IN (", look_up.table());
        let shapes: Vec<_> = [Shape::Int].into_iter().chain(look_up.key().iter().map(|(_, shape)| *shape)).collect();
        for mut row in self.find(&select, &keys, ")", &shapes).await? {
            let key = row.split_off(1);
            match row.first() {
                Some(Value::Int(Some(number))) => self.learned.insert(look_up, key, *number),
                _ => return Err(gone(look_up)),
            }
        }
        Ok(())
    }
}

fn gone(look_up: LookUp) -> StoreError {
    StoreError::Other(format!("a row of the table {} that was just made isn't there", look_up.table()))
}
