//! Async: many rows with one statement: the one place that writes another text for each engine.
//!
//! | | rows in a statement | parameters |
//! |---|---|---|
//! | SQLite | `VALUES (?, …), (?, …)` in runs of a few lengths, so that each table has a few texts, each prepared once | one per field: plain `?`, since it is quadratic in numbered ones |
//! | PostgreSQL | `SELECT * FROM UNNEST($1::text::bigint[], …)` | one text per column, an array's literal: so it goes through the same transaction as all the rest |

use std::fmt::Write;

use sqlx::{Any, AnyConnection, Row, any::AnyRow, query::Query};

use super::{StoreError, engine::Engine};
use crate::rows::{Shape, Value};

/// Rows per statement in SQLite, longest first: at most 20 columns, far below its 32,766 parameters.
const RUNS: [usize; 4] = [500, 50, 5, 1];
/// Rows per statement in PostgreSQL: what one POST brings, and no more memory than that.
const UNNEST_MAX: usize = 4_096;

/// Runs `before <rows> after` until all rows are through. The rows of a column all have the same type.
pub async fn execute(
    connection: &mut AnyConnection,
    engine: Engine,
    before: &str,
    rows: &[Vec<Value>],
    after: &str,
) -> Result<u64, StoreError> {
    let mut affected = 0;
    for run in runs(engine, rows) {
        let statement = Statement::new(engine, before, run, after);
        affected += statement.query().execute(&mut *connection).await?.rows_affected();
    }
    Ok(affected)
}

/// Runs `before <rows> after` for all keys and reads the rows that it answers.
pub async fn select(
    connection: &mut AnyConnection,
    engine: Engine,
    before: &str,
    keys: &[Vec<Value>],
    after: &str,
    shapes: &[Shape],
) -> Result<Vec<Vec<Value>>, StoreError> {
    let mut found = Vec::with_capacity(keys.len());
    for run in runs(engine, keys) {
        let statement = Statement::new(engine, before, run, after);
        for row in statement.query().fetch_all(&mut *connection).await? {
            found.push(values(&row, shapes)?);
        }
    }
    Ok(found)
}

/// Rows in the pieces that one statement takes.
fn runs(engine: Engine, mut rows: &[Vec<Value>]) -> Vec<&[Vec<Value>]> {
    let mut runs = Vec::new();
    while !rows.is_empty() {
        let length = match engine {
            Engine::Sqlite => RUNS.into_iter().find(|run| *run <= rows.len()).unwrap_or(1),
            Engine::Postgres => rows.len().min(UNNEST_MAX),
        };
        let (run, rest) = rows.split_at(length);
        runs.push(run);
        rows = rest;
    }
    runs
}

struct Statement {
    text: String,
    values: Vec<Value>,
}

impl Statement {
    fn new(engine: Engine, before: &str, rows: &[Vec<Value>], after: &str) -> Statement {
        let Some(first) = rows.first() else { return Statement { text: String::new(), values: Vec::new() } };
        match engine {
            Engine::Sqlite => {
                let row = format!("({})", vec!["?"; first.len()].join(","));
                let text = format!("{before} VALUES {} {after}", vec![row; rows.len()].join(","));
                Statement { text, values: rows.iter().flatten().cloned().collect() }
            }
            Engine::Postgres => {
                let casts = first.iter().zip(1..).map(|(value, n)| format!("${n}::text::{}[]", type_of(value)));
                let text = format!("{before} SELECT * FROM UNNEST({}) {after}", casts.collect::<Vec<_>>().join(","));
                let columns = 0..first.len();
                let arrays = columns.map(|column| array(rows.iter().map(|row| &row[column])));
                Statement { text, values: arrays.map(|array| Value::Text(Some(array))).collect() }
            }
        }
    }

    fn query(self) -> Query<'static, Any, sqlx::any::AnyArguments> {
        self.values.into_iter().fold(sqlx::query(sqlx::AssertSqlSafe(self.text)), bind)
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Int(_) => "bigint",
        Value::Text(_) => "text",
        Value::Blob(_) => "bytea",
    }
}

/// An array as PostgreSQL reads it from a text. Texts and bytes are quoted, so that nothing in them has a meaning.
fn array<'a>(column: impl Iterator<Item = &'a Value>) -> String {
    let mut array = String::from("{");
    for value in column {
        if array.len() > 1 {
            array.push(',');
        }
        push(&mut array, value);
    }
    array.push('}');
    array
}

fn push(array: &mut String, value: &Value) {
    match value {
        Value::Int(None) | Value::Text(None) | Value::Blob(None) => array.push_str("NULL"),
        // Writing into a String has no failing case.
        Value::Int(Some(number)) => drop(write!(array, "{number}")),
        Value::Text(Some(text)) => {
            array.push('"');
            for character in text.chars() {
                if matches!(character, '"' | '\\') {
                    array.push('\\');
                }
                array.push(character);
            }
            array.push('"');
        }
        Value::Blob(Some(bytes)) => {
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            array.push_str("\"\\\\x");
            for byte in bytes {
                array.push(char::from(DIGITS[usize::from(byte >> 4)]));
                array.push(char::from(DIGITS[usize::from(byte & 15)]));
            }
            array.push('"');
        }
    }
}

fn bind(query: Query<'static, Any, sqlx::any::AnyArguments>, value: Value) -> Query<'static, Any, sqlx::any::AnyArguments> {
    match value {
        Value::Int(number) => query.bind(number),
        Value::Text(text) => query.bind(text),
        Value::Blob(bytes) => query.bind(bytes),
    }
}

/// A row as values of the given shapes, column by column.
pub fn values(row: &AnyRow, shapes: &[Shape]) -> Result<Vec<Value>, StoreError> {
    let value = |(i, shape): (usize, &Shape)| {
        Ok(match shape {
            Shape::Int => Value::Int(row.try_get(i)?),
            Shape::Text => Value::Text(row.try_get(i)?),
            Shape::Blob => Value::Blob(row.try_get(i)?),
        })
    };
    shapes.iter().enumerate().map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{blob, int, text};

    #[test]
    fn nothing_in_a_text_has_a_meaning_in_an_array() {
        let texts = [text(r#"a"b\c,{d}"#), Value::Text(None), text("NULL"), text("")];
        assert_eq!(array(texts.iter()), r#"{"a\"b\\c,{d}",NULL,"NULL",""}"#);
        assert_eq!(array([blob(&[0, 255]), Value::Blob(None)].iter()), r#"{"\\x00ff",NULL}"#);
        assert_eq!(array([int(-1), Value::Int(None), int(i64::MIN)].iter()), "{-1,NULL,-9223372036854775808}");
    }

    #[test]
    fn each_row_is_in_one_run() {
        for count in [0, 1, 4, 56, 1_111, 9_000] {
            let rows: Vec<_> = (0..count).map(|n| vec![int(n)]).collect();
            for engine in [Engine::Sqlite, Engine::Postgres] {
                assert_eq!(runs(engine, &rows).into_iter().flatten().count() as i64, count, "{engine:?}");
            }
        }
    }
}
