//! Async: every path of the web port on one page. Filters are mounted from this table, the access matrix walks it, and a route that shows
//! personal data can't answer before the look is written down.

use std::{collections::HashMap, sync::Arc};

use bytes::{Buf, Bytes};
use serde::de::DeserializeOwned;
use serde_json::Value;
use warp::{Filter, Rejection, Reply, filters::path::FullPath, reject, reply::Response};

use super::{Route, body, problem::ApiError};
use crate::{hub::Hub, serve::Peer, store::Look, token::Caller};

/// A request's body, but for relays' POSTs.
const BODY_BYTES_MAX: usize = 64 * 1_024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Post,
}

/// Who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Anyone,
    Admin,
}

/// The operation ids, one per route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    Login,
    ListDevices,
    ShowDevice,
    ShowDay,
    ShowMissing,
    ListLooks,
    ShowPolicy,
    ShowSummary,
    CheckSpools,
}

#[derive(Debug)]
pub struct Entry {
    pub method: Method,
    /// `{name}` stands for one segment.
    pub path: &'static str,
    pub access: Access,
    pub operation: Operation,
    /// Whether its answers are personal data: each is a row in `looks`, on the disk before the answer.
    pub looks: bool,
}

#[rustfmt::skip]
pub const ROUTES: &[Entry] = &[
    Entry { method: Method::Post, path: "/api/v1/login",                         access: Access::Anyone, operation: Operation::Login,       looks: false },
    Entry { method: Method::Get,  path: "/api/v1/devices",                       access: Access::Admin,  operation: Operation::ListDevices, looks: true  },
    Entry { method: Method::Get,  path: "/api/v1/devices/{device}",              access: Access::Admin,  operation: Operation::ShowDevice,  looks: true  },
    Entry { method: Method::Get,  path: "/api/v1/devices/{device}/days/{day}",   access: Access::Admin,  operation: Operation::ShowDay,     looks: true  },
    Entry { method: Method::Get,  path: "/api/v1/devices/{device}/missing",      access: Access::Admin,  operation: Operation::ShowMissing, looks: true  },
    Entry { method: Method::Get,  path: "/api/v1/looks",                         access: Access::Admin,  operation: Operation::ListLooks,   looks: false },
    Entry { method: Method::Get,  path: "/api/v1/policy",                        access: Access::Admin,  operation: Operation::ShowPolicy,  looks: false },
    Entry { method: Method::Get,  path: "/api/v1/summary",                       access: Access::Admin,  operation: Operation::ShowSummary, looks: false },
    Entry { method: Method::Post, path: "/api/v1/check/spools",                  access: Access::Admin,  operation: Operation::CheckSpools, looks: true  },
];

impl Operation {
    /// The id, as the API's description names it.
    pub fn id(self) -> &'static str {
        match self {
            Operation::Login => "login",
            Operation::ListDevices => "listDevices",
            Operation::ShowDevice => "showDevice",
            Operation::ShowDay => "showDay",
            Operation::ShowMissing => "showMissing",
            Operation::ListLooks => "listLooks",
            Operation::ShowPolicy => "showPolicy",
            Operation::ShowSummary => "showSummary",
            Operation::CheckSpools => "checkSpools",
        }
    }
}

/// A request that may be answered.
pub struct Call {
    /// What stands for `{name}` in the path, in order.
    pub segments: Vec<String>,
    pub query: HashMap<String, String>,
    pub body: Bytes,
    pub peer: Peer,
}

/// An answer.
pub struct Said {
    json: Value,
    about: Option<About>,
}

/// Whose data an answer shows.
pub struct About {
    /// None: more than one device.
    pub device_id: Option<i64>,
    pub whom: String,
}

impl Said {
    /// An answer that shows nobody's data.
    pub fn plain(json: Value) -> Said {
        Said { json, about: None }
    }

    pub fn about(about: About, json: Value) -> Said {
        Said { json, about: Some(about) }
    }
}

impl Call {
    /// The nth `{name}` of the path.
    pub fn segment(&self, n: usize) -> &str {
        self.segments.get(n).map_or("", String::as_str)
    }

    pub fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.body).map_err(|error| ApiError::Body(error.to_string()))
    }

    /// A value of the query. Names that the route doesn't know are refused by [`Call::only`].
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    pub fn only(&self, names: &[&'static str]) -> Result<(), ApiError> {
        match self.query.keys().find(|name| !names.contains(&name.as_str())) {
            Some(_) => Err(ApiError::Field("query", format!("only these are known: {}", names.join(", ")))),
            None => Ok(()),
        }
    }
}

/// Mounts an operation as its row in [`ROUTES`] says.
pub fn mount<F, A>(hub: &Arc<Hub>, operation: Operation, answer: F) -> Route
where
    F: Fn(Arc<Hub>, Call) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Result<Said, ApiError>> + Send + 'static,
{
    let Some(entry) = ROUTES.iter().find(|entry| entry.operation == operation) else {
        // An operation without a row doesn't exist for anyone outside.
        return warp::any().and_then(async || Err::<Response, _>(reject::not_found())).boxed();
    };
    let hub = hub.clone();
    let method = match entry.method {
        Method::Get => warp::get().boxed(),
        Method::Post => warp::post().boxed(),
    };
    path(entry.path)
        .and(method)
        .and(warp::header::optional("authorization"))
        .and(warp::ext::optional())
        .and(warp::query::raw().or(warp::any().map(String::new)).unify())
        .and(warp::body::stream())
        .then(move |segments, authorization, peer, query, stream| {
            let (hub, answer) = (hub.clone(), answer.clone());
            async move {
                let asked = Asked { entry, segments, authorization, peer, query };
                asked.answer(hub, stream, answer).await.unwrap_or_else(|error| error.response())
            }
        })
        .boxed()
}

struct Asked {
    entry: &'static Entry,
    segments: Vec<String>,
    authorization: Option<String>,
    peer: Option<Peer>,
    query: String,
}

impl Asked {
    async fn answer<F, A>(
        self,
        hub: Arc<Hub>,
        stream: impl futures_util::Stream<Item = Result<impl Buf, warp::Error>>,
        answer: F,
    ) -> Result<Response, ApiError>
    where
        F: Fn(Arc<Hub>, Call) -> A,
        A: Future<Output = Result<Said, ApiError>>,
    {
        let peer = self.peer.ok_or_else(|| ApiError::Inside("a request without a peer".into()))?;
        let caller = match self.entry.access {
            Access::Anyone => None,
            Access::Admin => Some(caller(&hub, self.authorization.as_deref()).await?),
        };
        let query = parse_query(&self.query)?;
        let body = body::collect(stream, BODY_BYTES_MAX).await?;
        let said = answer(hub.clone(), Call { segments: self.segments, query, body, peer }).await?;
        if self.entry.looks {
            let (Some(caller), Some(about)) = (caller, said.about) else {
                return Err(ApiError::Inside(format!("{} doesn't say whose data it shows", self.entry.operation.id())));
            };
            // Only what is on record is shown.
            hub.store
                .add_look(&Look {
                    at_ms: hub.now_ms(),
                    admin_id: caller.admin_id,
                    who: caller.name,
                    device_id: about.device_id,
                    whom: about.whom,
                    what: self.entry.operation.id().into(),
                })
                .await?;
        }
        let reply = warp::reply::json(&said.json);
        Ok(warp::reply::with_header(reply, "cache-control", "no-store").into_response())
    }
}

async fn caller(hub: &Hub, authorization: Option<&str>) -> Result<Caller, ApiError> {
    let token = authorization.and_then(|header| header.strip_prefix("Bearer ")).ok_or(ApiError::SignIn)?;
    let caller = hub.tokens.check(token, hub.now_ms()).map_err(|_| ApiError::SignIn)?;
    match hub.store.is_admin(caller.admin_id, &caller.name).await? {
        true => Ok(caller),
        false => Err(ApiError::SignIn),
    }
}

/// A filter of exactly this path; gives what stands for its `{name}`s.
fn path(template: &'static str) -> warp::filters::BoxedFilter<(Vec<String>,)> {
    warp::path::full()
        .and_then(
            move |path: FullPath| async move { segments(template, path.as_str()).ok_or_else(reject::not_found) as Result<_, Rejection> },
        )
        .boxed()
}

fn segments(template: &str, path: &str) -> Option<Vec<String>> {
    let (mut wanted, mut given) = (template.split('/'), path.split('/'));
    let mut names = Vec::new();
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(names),
            (Some(wanted), Some(given)) if wanted.starts_with('{') && !given.is_empty() => names.push(given.to_owned()),
            (Some(wanted), Some(given)) if wanted == given => {}
            (Some(_), _) | (None, Some(_)) => return None,
        }
    }
}

/// `name=value&…`, with percent signs as usual; a name given twice is refused.
fn parse_query(query: &str) -> Result<HashMap<String, String>, ApiError> {
    let mut values = HashMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let wrong = || ApiError::Field("query", "it doesn't read".into());
        let (name, value) = (unescape(name).ok_or_else(wrong)?, unescape(value).ok_or_else(wrong)?);
        if values.insert(name, value).is_some() {
            return Err(ApiError::Field("query", "a name is given twice".into()));
        }
    }
    Ok(values)
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        let (byte, after) = match first {
            b'%' => {
                let (digits, after) = behind.split_at_checked(2)?;
                (u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?, after)
            }
            b'+' => (b' ', behind),
            other => (*other, behind),
        };
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_matches_segment_by_segment() {
        let template = "/api/v1/devices/{device}/missing";
        assert_eq!(segments(template, "/api/v1/devices/ab/missing"), Some(vec!["ab".into()]));
        for other in ["/api/v1/devices//missing", "/api/v1/devices/ab", "/api/v1/devices/ab/missing/", "/api/v1/devices/a/b/missing"] {
            assert_eq!(segments(template, other), None, "{other}");
        }
    }

    #[test]
    fn a_query_is_unescaped_and_a_name_stands_once() {
        let query = parse_query("since=2026-11-23T10%3A00%3A02%2B01%3A00&x=a+b").unwrap();
        assert_eq!((query["since"].as_str(), query["x"].as_str()), ("2026-11-23T10:00:02+01:00", "a b"));
        for bad in ["a=1&a=2", "a=%4", "a=%zz", "a=%ff"] {
            assert!(parse_query(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_operation_stands_once_in_the_table() {
        for (i, entry) in ROUTES.iter().enumerate() {
            let same = |other: &Entry| other.operation == entry.operation || (other.method == entry.method && other.path == entry.path);
            assert!(!ROUTES[..i].iter().any(same), "{}", entry.path);
            assert!(!entry.looks || entry.access != Access::Anyone, "{}", entry.path);
        }
    }
}
