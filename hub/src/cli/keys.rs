//! Async: `muster-hub key`: the keys under what comes down and under people's tokens, of all hubs of the database, and their end.

use clap::Subcommand;
use muster_certs::{Name, material::utc_text};
use muster_mesh::{
    clock::{Clock, SystemClock},
    complaint::Complaint,
};
use serde::Serialize;

use crate::{
    config::Config,
    control::{self, DenyError},
    running::TOKEN_KEY,
    store::{ControlKeyRow, Store, TokenKeyRow},
    token,
};

/// Token keys that are shown, the newest first.
const SHOWN_MAX: i64 = 256;
const TOKEN: &str = "token/";

#[derive(Debug, Subcommand)]
pub enum KeyVerb {
    /// All of them, also those that count no more
    List {
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Lets nothing count any more that a key signs: within a second at each hub, with the hub's next answer at each relay and agent
    End {
        /// As `list` shows it: control/2, token/9f86d081884c7d65
        key: String,
    },
}

/// What `key list --json` prints.
#[derive(Serialize)]
struct Keys {
    keys: Vec<Key>,
}

#[derive(Serialize)]
struct Key {
    /// `control/2`, `token/9f86d081884c7d65`
    key: String,
    /// Whether this hub signs with it.
    here: bool,
    counts: bool,
    since_ms: i64,
    /// When it ends or has ended. None: when its certificate does, which is renewed.
    ends_ms: Option<i64>,
}

pub async fn key(config: &Config, verb: KeyVerb) -> anyhow::Result<()> {
    let store = Store::open(&config.store.url).await?;
    let now_ms = SystemClock::new().now().wall_ms;
    let done = match verb {
        KeyVerb::List { json } => list(config, &store, json, now_ms).await,
        KeyVerb::End { key } => end(config, &store, &key, now_ms).await,
    };
    store.close().await;
    done
}

async fn list(config: &Config, store: &Store, json: bool, now_ms: i64) -> anyhow::Result<()> {
    let keys = Keys { keys: keys(config, store, now_ms).await? };
    if json {
        println!("{}", serde_json::to_string_pretty(&keys)?);
        return Ok(());
    }
    for Key { key, here, counts, since_ms, ends_ms } in keys.keys {
        let ends = match (counts, ends_ms) {
            (false, Some(ends_ms)) => format!("ended {}", utc_text(ends_ms)),
            (true, Some(ends_ms)) => format!("until {}", utc_text(ends_ms)),
            (_, None) => "counts".to_owned(),
        };
        println!("{key:<24}  since {}  {ends:<31}{}", utc_text(since_ms), if here { "  this hub's" } else { "" });
    }
    Ok(())
}

async fn keys(config: &Config, store: &Store, now_ms: i64) -> anyhow::Result<Vec<Key>> {
    let (own_control, own_token) = (control::own_number(config), token::kid_of(&config.state.join(TOKEN_KEY))?);
    let controls = store.control_keys_ever().await?.into_iter().map(|ControlKeyRow { n, since_ms, ended_ms, .. }| Key {
        key: Name::Control { n }.to_string(),
        here: own_control == Some(n),
        counts: ended_ms.is_none(),
        since_ms,
        ends_ms: ended_ms,
    });
    let tokens = store.token_keys(i64::MIN, SHOWN_MAX).await?.into_iter().map(|TokenKeyRow { kid, since_ms, ends_ms, .. }| Key {
        key: format!("{TOKEN}{kid}"),
        here: own_token.as_ref() == Some(&kid),
        counts: ends_ms > now_ms,
        since_ms,
        ends_ms: Some(ends_ms),
    });
    Ok(controls.chain(tokens).collect())
}

async fn end(config: &Config, store: &Store, key: &str, now_ms: i64) -> anyhow::Result<()> {
    let control = key.parse().ok().and_then(|name| if let Name::Control { n } = name { Some(n) } else { None });
    let ended = match (control, key.strip_prefix(TOKEN)) {
        (Some(n), _) if config.control.is_some() && control::own_number(config) == Some(n) => {
            let what = format!("this hub signs with {key}, and can't make itself another");
            let todo = "Issue one (`muster-certs issue control`), put it into the files of [control], which the hub takes within a second; then end the old one";
            return Err(Complaint::new(what, todo).into());
        }
        (Some(n), _) => control::end_key(store, n, now_ms).await.map_err(complaint)?,
        (None, Some(kid)) => store.end_token_key(kid, now_ms).await?,
        (None, None) => false,
    };
    if !ended {
        return Err(Complaint::new(format!("there is no key {key} that counts"), "See: muster-hub key list").into());
    }
    println!("Nothing counts any more that {key} signs.");
    match control {
        Some(_) => println!("A hub with [signer] makes itself another at once; one with [control] has to be given one."),
        None => println!("Its hub makes itself another at once; who was signed in there signs in again."),
    }
    Ok(())
}

fn complaint(error: DenyError) -> anyhow::Error {
    match error {
        DenyError::Full(_) => Complaint::new(error.to_string(), "See: muster-certs rotate start").into(),
        DenyError::Store(_) | DenyError::Message(_) => error.into(),
    }
}
