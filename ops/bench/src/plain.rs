//! Async: the yardstick of ingest: all rows of all tables by the largest statements that each database likes, and nothing else.

use anyhow::Context;
use muster_hub::store::Store;
use sqlx::{
    AssertSqlSafe, Column, Executor, PgPool, Postgres, Row, SqlitePool, TypeInfo, ValueRef,
    postgres::PgArguments,
    query::Query,
    sqlite::{SqliteConnectOptions, SqliteRow},
};
use tokio::time::Instant;

use crate::place::Place;

/// As many rows of a statement as the database likes: SQLite has a limit of variables, PostgreSQL takes arrays.
const SQLITE_ROWS: usize = 100;
const POSTGRES_ROWS: usize = 5_000;
/// As many rows of a transaction as one of our POSTs has.
const TRANSACTION_ROWS: usize = 6_000;

enum Value {
    Null,
    Number(i64),
    Text(String),
    Bytes(Vec<u8>),
}

/// Every table with its rows, those first that others refer to.
pub struct Rows(Vec<Table>);

struct Table {
    name: String,
    columns: Vec<String>,
    rows: Vec<Vec<Value>>,
}

/// Reads all rows of the hub's database in SQLite.
pub async fn dump(url: &str) -> anyhow::Result<Rows> {
    let pool = SqlitePool::connect(url).await?;
    let master =
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name NOT LIKE '_sqlx%' ORDER BY rowid";
    let names: Vec<(String,)> = sqlx::query_as(master).fetch_all(&pool).await?;
    let mut tables = Vec::new();
    for (name,) in names {
        let rows = pool.fetch_all(AssertSqlSafe(format!("SELECT * FROM {name}"))).await?;
        let columns = rows.first().map(|row| row.columns().iter().map(|column| column.name().to_owned()).collect());
        let rows = rows.iter().map(values).collect::<Result<_, _>>()?;
        tables.push(Table { name, columns: columns.unwrap_or_default(), rows });
    }
    pool.close().await;
    Ok(Rows(tables))
}

fn values(row: &SqliteRow) -> anyhow::Result<Vec<Value>> {
    let value = |at: usize| -> anyhow::Result<Value> {
        let raw = row.try_get_raw(at)?;
        Ok(match raw.type_info().name() {
            _ if raw.is_null() => Value::Null,
            "INTEGER" => Value::Number(row.try_get_unchecked(at)?),
            "TEXT" => Value::Text(row.try_get_unchecked(at)?),
            "BLOB" => Value::Bytes(row.try_get_unchecked(at)?),
            other => anyhow::bail!("an unexpected column of type {other}"),
        })
    };
    row.columns().iter().map(|column| value(column.ordinal())).collect()
}

/// Seconds that it takes to insert all of them into the hub's tables.
pub async fn insert(place: &Place, rows: &Rows) -> anyhow::Result<f64> {
    if place.is_sqlite() { into_sqlite(place.url(), rows).await } else { into_postgres(place.url(), rows).await }
}

async fn into_sqlite(url: &str, rows: &Rows) -> anyhow::Result<f64> {
    // The hub's own schema, empty.
    Store::open(url).await?.close().await;
    let pool = SqlitePool::connect_with(url.parse::<SqliteConnectOptions>()?).await?;
    let mut connection = pool.acquire().await?;
    connection.execute("PRAGMA journal_mode=WAL").await?;
    connection.execute("PRAGMA synchronous=FULL").await?;
    connection.execute("PRAGMA foreign_keys=OFF").await?;
    let begin = Instant::now();
    for Table { name, columns, rows } in &rows.0 {
        for transaction in rows.chunks(TRANSACTION_ROWS) {
            connection.execute("BEGIN IMMEDIATE").await?;
            for statement in transaction.chunks(SQLITE_ROWS) {
                let row = format!("({})", vec!["?"; columns.len()].join(","));
                let sql = format!("INSERT OR REPLACE INTO {name} VALUES {}", vec![row; statement.len()].join(","));
                let mut query = sqlx::query(AssertSqlSafe(sql));
                for value in statement.iter().flatten() {
                    query = match value {
                        Value::Null => query.bind(None::<i64>),
                        Value::Number(number) => query.bind(*number),
                        Value::Text(text) => query.bind(text.as_str()),
                        Value::Bytes(bytes) => query.bind(bytes.as_slice()),
                    };
                }
                query.execute(&mut *connection).await?;
            }
            connection.execute("COMMIT").await?;
        }
    }
    let took = begin.elapsed().as_secs_f64();
    drop(connection);
    pool.close().await;
    Ok(took)
}

async fn into_postgres(url: &str, rows: &Rows) -> anyhow::Result<f64> {
    let pool = PgPool::connect(url).await?;
    let mut statements = Vec::new();
    for table in &rows.0 {
        statements.push(statement(&pool, table).await?);
    }
    let begin = Instant::now();
    for (Table { rows, .. }, (sql, types)) in rows.0.iter().zip(&statements) {
        for chunk in rows.chunks(TRANSACTION_ROWS) {
            let mut transaction = pool.begin().await?;
            for chunk in chunk.chunks(POSTGRES_ROWS) {
                let mut query = sqlx::query(AssertSqlSafe(sql.clone()));
                for (at, column) in types.iter().enumerate() {
                    query = bound(query, column, chunk.iter().map(|row| &row[at]))?;
                }
                query.execute(&mut *transaction).await?;
            }
            transaction.commit().await?;
        }
    }
    let took = begin.elapsed().as_secs_f64();
    pool.close().await;
    Ok(took)
}

/// `INSERT INTO … SELECT * FROM UNNEST(…)`, and the types of its columns.
async fn statement(pool: &PgPool, table: &Table) -> anyhow::Result<(String, Vec<String>)> {
    let select =
        "SELECT column_name::text, data_type::text FROM information_schema.columns WHERE table_schema = 'public' AND table_name = $1";
    let known: Vec<(String, String)> = sqlx::query_as(select).bind(&table.name).fetch_all(pool).await?;
    // Narrower numbers are cast as they are put.
    let wide = |data_type: &str| if matches!(data_type, "integer" | "smallint") { "bigint".to_owned() } else { data_type.to_owned() };
    let type_of = |name: &String| known.iter().find(|(known, _)| known == name).map(|(_, data_type)| wide(data_type));
    let types: Option<Vec<String>> = table.columns.iter().map(type_of).collect();
    let types = types.with_context(|| format!("the tables {} differ", table.name))?;
    let arrays: Vec<String> = (1..).zip(&types).map(|(at, data_type)| format!("${at}::{data_type}[]")).collect();
    let (name, columns) = (&table.name, table.columns.join(", "));
    Ok((format!("INSERT INTO {name} ({columns}) SELECT * FROM UNNEST({}) ON CONFLICT DO NOTHING", arrays.join(", ")), types))
}

fn bound<'q>(
    query: Query<'q, Postgres, PgArguments>,
    data_type: &str,
    column: impl Iterator<Item = &'q Value>,
) -> anyhow::Result<Query<'q, Postgres, PgArguments>> {
    Ok(match data_type {
        "bigint" => {
            query.bind(column.map(|value| if let Value::Number(number) = value { Some(*number) } else { None }).collect::<Vec<_>>())
        }
        "text" => {
            query.bind(column.map(|value| if let Value::Text(text) = value { Some(text.as_str()) } else { None }).collect::<Vec<_>>())
        }
        "bytea" => {
            query.bind(column.map(|value| if let Value::Bytes(bytes) = value { Some(bytes.as_slice()) } else { None }).collect::<Vec<_>>())
        }
        other => anyhow::bail!("an unexpected column of type {other}"),
    })
}
