//! Async: many rows with one statement.
//!
//! SQLite takes plain `?` at any number of rows, and is quadratic in numbered ones; PostgreSQL will have its own way here (UNNEST). Rows go
//! in runs of a few fixed lengths, so that each table has a few texts and each text is prepared once.

use sqlx::{Any, AnyConnection, Row, any::AnyRow, query::Query};

use super::StoreError;
use crate::rows::{Shape, Value};

/// Rows per statement, longest first: at most 12 columns, far below SQLite's 32,766 parameters.
const RUNS: [usize; 4] = [500, 50, 5, 1];

/// Runs `before (?, ?, …), (?, ?, …) after` until all rows are through.
pub async fn execute(
    connection: &mut AnyConnection,
    before: &str,
    columns: usize,
    rows: Vec<Vec<Value>>,
    after: &str,
) -> Result<u64, StoreError> {
    let mut left = rows.len();
    let mut rows = rows.into_iter();
    let mut affected = 0;
    while left > 0 {
        let run = RUNS.into_iter().find(|run| *run <= left).unwrap_or(1);
        let statement = text(before, columns, run, after);
        let mut query = sqlx::query(sqlx::AssertSqlSafe(statement));
        for value in rows.by_ref().take(run).flatten() {
            query = bind(query, value);
        }
        affected += query.execute(&mut *connection).await?.rows_affected();
        left -= run;
    }
    Ok(affected)
}

/// Runs `before (?, ?, …), … after` for all keys and reads the rows that it answers.
pub async fn select(
    connection: &mut AnyConnection,
    before: &str,
    keys: &[Vec<Value>],
    after: &str,
    shapes: &[Shape],
) -> Result<Vec<Vec<Value>>, StoreError> {
    let Some(columns) = keys.first().map(Vec::len) else { return Ok(Vec::new()) };
    let mut found = Vec::with_capacity(keys.len());
    let mut at = 0;
    while at < keys.len() {
        let left = keys.len() - at;
        let run = RUNS.into_iter().find(|run| *run <= left).unwrap_or(1);
        let statement = text(before, columns, run, after);
        let mut query = sqlx::query(sqlx::AssertSqlSafe(statement));
        for value in keys[at..at + run].iter().flatten() {
            query = bind(query, value.clone());
        }
        for row in query.fetch_all(&mut *connection).await? {
            found.push(values(&row, shapes)?);
        }
        at += run;
    }
    Ok(found)
}

fn text(before: &str, columns: usize, rows: usize, after: &str) -> String {
    let row = format!("({})", vec!["?"; columns].join(","));
    format!("{before} {} {after}", vec![row; rows].join(","))
}

pub fn bind<'q>(query: Query<'q, Any, sqlx::any::AnyArguments>, value: Value) -> Query<'q, Any, sqlx::any::AnyArguments> {
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
