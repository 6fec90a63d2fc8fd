//! Async: every path of the web port on one page. Filters are mounted from this table, the access matrix walks it, and a route that shows
//! personal data can't answer before the look is written down.

use std::{collections::HashMap, sync::Arc};

use bytes::{Buf, Bytes};
use muster_mesh::record::PictureFormat;
use serde::{Serialize, de::DeserializeOwned};
use warp::{
    Filter, Rejection, Reply,
    filters::path::FullPath,
    http::{HeaderMap, HeaderValue, header},
    reject,
    reply::Response,
};

use super::{Route, body, problem::ApiError};
use crate::{hub::Hub, images, serve::Peer, store::Look, token::Caller};

/// A request's body, but for relays' POSTs.
const BODY_BYTES_MAX: usize = 64 * 1_024;
/// A reason is a sentence.
const REASON_CHARS_MAX: usize = 200;
/// Where a reason may stand instead of in the query.
pub const REASON_HEADER: &str = "muster-reason";
/// A picture is shown and does nothing, whatever it holds.
const PICTURE_POLICY: &str = "sandbox; default-src 'none'";

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

/// What is written down of a request before it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Looks {
    /// Nobody's data.
    Never,
    /// Who looked at whom, or changed what: a row in `looks`, on the disk before the answer.
    Written,
    /// That, and why: without a reason there is no answer.
    WithReason,
}

/// The operation ids, one per route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    Login,
    ListDevices,
    ShowDevice,
    ShowDay,
    ShowFocus,
    ListPictures,
    ShowPicture,
    ListCapabilities,
    ShowMissing,
    ListDeleted,
    ListLooks,
    ShowPolicy,
    ShowSummary,
    CheckSpools,
    MakeToken,
    ListTokens,
    EndToken,
    ListMembers,
    ApproveMember,
    DenyMember,
    ListRelays,
    SetRelay,
    RemoveRelay,
    SetGuests,
}

#[derive(Debug)]
pub struct Entry {
    pub method: Method,
    /// `{name}` stands for one segment.
    pub path: &'static str,
    pub access: Access,
    pub operation: Operation,
    pub looks: Looks,
    /// The names that its query may have.
    pub query: &'static [&'static str],
}

#[rustfmt::skip]
pub const ROUTES: &[Entry] = &[
    Entry { method: Method::Post, path: "/api/v1/login",                                    access: Access::Anyone, operation: Operation::Login,            looks: Looks::Never,      query: &[] },
    Entry { method: Method::Get,  path: "/api/v1/devices",                                  access: Access::Admin,  operation: Operation::ListDevices,      looks: Looks::Written,    query: &["after", "limit"] },
    Entry { method: Method::Get,  path: "/api/v1/devices/{device}",                         access: Access::Admin,  operation: Operation::ShowDevice,       looks: Looks::Written,    query: &[] },
    Entry { method: Method::Get,  path: "/api/v1/devices/{device}/days/{day}",              access: Access::Admin,  operation: Operation::ShowDay,          looks: Looks::Written,    query: &[] },
    Entry { method: Method::Get,  path: "/api/v1/devices/{device}/days/{day}/focus",        access: Access::Admin,  operation: Operation::ShowFocus,        looks: Looks::Written,    query: &[] },
    Entry { method: Method::Get,  path: "/api/v1/devices/{device}/days/{day}/pictures",     access: Access::Admin,  operation: Operation::ListPictures,     looks: Looks::WithReason, query: &["reason"] },
    Entry { method: Method::Get,  path: "/api/v1/devices/{device}/pictures/{picture}",      access: Access::Admin,  operation: Operation::ShowPicture,      looks: Looks::WithReason, query: &["reason"] },
    Entry { method: Method::Get,  path: "/api/v1/devices/{device}/capabilities",            access: Access::Admin,  operation: Operation::ListCapabilities, looks: Looks::Written,    query: &[] },
    Entry { method: Method::Get,  path: "/api/v1/devices/{device}/missing",                 access: Access::Admin,  operation: Operation::ShowMissing,      looks: Looks::Written,    query: &[] },
    Entry { method: Method::Get,  path: "/api/v1/looks",                                    access: Access::Admin,  operation: Operation::ListLooks,        looks: Looks::Never,      query: &["device", "limit"] },
    Entry { method: Method::Get,  path: "/api/v1/policy",                                   access: Access::Admin,  operation: Operation::ShowPolicy,       looks: Looks::Never,      query: &[] },
    Entry { method: Method::Get,  path: "/api/v1/summary",                                  access: Access::Admin,  operation: Operation::ShowSummary,      looks: Looks::Never,      query: &["since"] },
    Entry { method: Method::Get,  path: "/api/v1/deleted",                                  access: Access::Admin,  operation: Operation::ListDeleted,      looks: Looks::Never,      query: &["limit"] },
    Entry { method: Method::Post, path: "/api/v1/check/spools",                             access: Access::Admin,  operation: Operation::CheckSpools,      looks: Looks::Written,    query: &[] },
    Entry { method: Method::Post, path: "/api/v1/tokens",                                   access: Access::Admin,  operation: Operation::MakeToken,        looks: Looks::Written,    query: &[] },
    Entry { method: Method::Get,  path: "/api/v1/tokens",                                   access: Access::Admin,  operation: Operation::ListTokens,       looks: Looks::Written,    query: &[] },
    Entry { method: Method::Post, path: "/api/v1/tokens/{token}/end",                       access: Access::Admin,  operation: Operation::EndToken,         looks: Looks::Written,    query: &[] },
    Entry { method: Method::Get,  path: "/api/v1/members",                                  access: Access::Admin,  operation: Operation::ListMembers,      looks: Looks::Written,    query: &["after", "limit"] },
    Entry { method: Method::Post, path: "/api/v1/members/approve",                          access: Access::Admin,  operation: Operation::ApproveMember,    looks: Looks::Written,    query: &[] },
    Entry { method: Method::Post, path: "/api/v1/members/deny",                             access: Access::Admin,  operation: Operation::DenyMember,       looks: Looks::Written,    query: &[] },
    Entry { method: Method::Get,  path: "/api/v1/relays",                                   access: Access::Admin,  operation: Operation::ListRelays,       looks: Looks::Never,      query: &[] },
    Entry { method: Method::Post, path: "/api/v1/relays/set",                               access: Access::Admin,  operation: Operation::SetRelay,         looks: Looks::Written,    query: &[] },
    Entry { method: Method::Post, path: "/api/v1/relays/remove",                            access: Access::Admin,  operation: Operation::RemoveRelay,      looks: Looks::Written,    query: &[] },
    Entry { method: Method::Post, path: "/api/v1/relays/guests",                            access: Access::Admin,  operation: Operation::SetGuests,        looks: Looks::Written,    query: &[] },
];

impl Operation {
    /// The id, as the API's description names it.
    pub fn id(self) -> &'static str {
        match self {
            Operation::Login => "login",
            Operation::ListDevices => "listDevices",
            Operation::ShowDevice => "showDevice",
            Operation::ShowDay => "showDay",
            Operation::ShowFocus => "showFocus",
            Operation::ListPictures => "listPictures",
            Operation::ShowPicture => "showPicture",
            Operation::ListCapabilities => "listCapabilities",
            Operation::ShowMissing => "showMissing",
            Operation::ListDeleted => "listDeleted",
            Operation::ListLooks => "listLooks",
            Operation::ShowPolicy => "showPolicy",
            Operation::ShowSummary => "showSummary",
            Operation::CheckSpools => "checkSpools",
            Operation::MakeToken => "makeToken",
            Operation::ListTokens => "listTokens",
            Operation::EndToken => "endToken",
            Operation::ListMembers => "listMembers",
            Operation::ApproveMember => "approveMember",
            Operation::DenyMember => "denyMember",
            Operation::ListRelays => "listRelays",
            Operation::SetRelay => "setRelay",
            Operation::RemoveRelay => "removeRelay",
            Operation::SetGuests => "setGuests",
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
    /// The admin who asks. None where anyone may.
    pub admin: Option<String>,
}

/// An answer.
pub struct Said {
    shown: Shown,
    about: Option<About>,
}

enum Shown {
    Json(Bytes),
    Picture { name: String, format: PictureFormat, bytes: Bytes },
}

/// Whose data an answer shows.
pub struct About {
    /// None: more than one device.
    pub device_id: Option<i64>,
    pub whom: String,
}

impl Said {
    /// An answer that shows nobody's data.
    pub fn plain(answer: &impl Serialize) -> Result<Said, ApiError> {
        Ok(Said { shown: json(answer)?, about: None })
    }

    pub fn about(about: About, answer: &impl Serialize) -> Result<Said, ApiError> {
        Ok(Said { shown: json(answer)?, about: Some(about) })
    }

    /// `name` is what a browser calls it when it is saved, without what says the type.
    pub fn picture(about: About, name: String, format: PictureFormat, bytes: Bytes) -> Said {
        Said { shown: Shown::Picture { name, format, bytes }, about: Some(about) }
    }

    fn response(self) -> Result<Response, ApiError> {
        Ok(match self.shown {
            Shown::Json(json) => with_headers(json, "application/json", "no-store"),
            Shown::Picture { name, format, bytes } => {
                let content_type = images::content_type(format);
                let ending = content_type.rsplit('/').next().unwrap_or_default();
                let disposition = HeaderValue::try_from(format!("inline; filename=\"{name}.{ending}\""));
                let disposition = disposition.map_err(|error| ApiError::Inside(error.to_string()))?;
                let mut response = with_headers(bytes, content_type, "private, no-store");
                response.headers_mut().insert(header::CONTENT_DISPOSITION, disposition);
                response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PICTURE_POLICY));
                response
            }
        })
    }
}

fn with_headers(body: Bytes, content_type: &'static str, cache_control: &'static str) -> Response {
    let mut response = warp::http::Response::new(body).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static(cache_control));
    response
}

fn json(answer: &impl Serialize) -> Result<Shown, ApiError> {
    serde_json::to_vec(answer).map(|json| Shown::Json(json.into())).map_err(|error| ApiError::Inside(error.to_string()))
}

impl Call {
    /// The nth `{name}` of the path.
    pub fn segment(&self, n: usize) -> &str {
        self.segments.get(n).map_or("", String::as_str)
    }

    pub fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.body).map_err(|error| ApiError::Body(error.to_string()))
    }

    /// A value of the query. Names that the route's row doesn't have are refused before.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
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
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional())
        .and(warp::query::raw().or(warp::any().map(String::new)).unify())
        .and(warp::body::stream())
        .then(move |segments, headers, peer, query, stream| {
            let (hub, answer) = (hub.clone(), answer.clone());
            async move {
                let asked = Asked { entry, segments, headers, peer, query };
                asked.answer(hub, stream, answer).await.unwrap_or_else(|error| error.response())
            }
        })
        .boxed()
}

struct Asked {
    entry: &'static Entry,
    segments: Vec<String>,
    headers: HeaderMap,
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
        let peer = self.peer.clone().ok_or_else(|| ApiError::Inside("a request without a peer".into()))?;
        // Read also where it will be refused: a connection with an unread body closes under whoever asks next.
        let body = body::collect(stream, BODY_BYTES_MAX).await?;
        let caller = match self.entry.access {
            Access::Anyone => None,
            Access::Admin => Some(caller(&hub, self.header("authorization")).await?),
        };
        let query = parse_query(&self.query)?;
        if query.keys().any(|name| !self.entry.query.contains(&name.as_str())) {
            return Err(ApiError::Field("query", format!("only these are known: {}", self.entry.query.join(", "))));
        }
        let reason = match self.entry.looks {
            Looks::Never | Looks::Written => None,
            Looks::WithReason => Some(reason(query.get("reason").map(String::as_str).or(self.header(REASON_HEADER)))?),
        };
        let admin = caller.as_ref().map(|caller| caller.name.clone());
        let said = answer(hub.clone(), Call { segments: self.segments.clone(), query, body, peer, admin }).await?;
        if self.entry.looks != Looks::Never {
            let (Some(caller), Some(about)) = (caller, &said.about) else {
                return Err(ApiError::Inside(format!("{} doesn't say whose data it shows", self.entry.operation.id())));
            };
            // Only what is on record is shown.
            hub.store
                .add_look(&Look {
                    at_ms: hub.now_ms(),
                    admin_id: caller.admin_id,
                    who: caller.name,
                    device_id: about.device_id,
                    whom: about.whom.clone(),
                    what: self.entry.operation.id().into(),
                    reason,
                })
                .await?;
        }
        said.response()
    }

    /// A header that is text.
    fn header(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.headers.get(name)?.as_bytes()).ok()
    }
}

/// Why somebody looks, in their words.
fn reason(given: Option<&str>) -> Result<String, ApiError> {
    let reason = given.unwrap_or_default().trim();
    let length = reason.chars().count();
    if (1..=REASON_CHARS_MAX).contains(&length) && !reason.contains(char::is_control) {
        Ok(reason.to_owned())
    } else {
        Err(ApiError::Reason)
    }
}

async fn caller(hub: &Hub, authorization: Option<&str>) -> Result<Caller, ApiError> {
    let token = authorization.and_then(|header| header.strip_prefix("Bearer ")).ok_or(ApiError::SignIn)?;
    let caller = hub.tokens.check(token, hub.now_ms()).await.map_err(|_| ApiError::SignIn)?;
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
    fn a_reason_is_one_line_of_1_to_200_characters() {
        assert_eq!(reason(Some("  Kari asked for it ")).unwrap(), "Kari asked for it");
        assert_eq!(reason(Some(&"å".repeat(200))).unwrap().chars().count(), 200);
        for bad in [None, Some(""), Some("   "), Some("two\nlines"), Some(&*"å".repeat(201))] {
            assert!(matches!(reason(bad), Err(ApiError::Reason)), "{bad:?}");
        }
    }

    #[test]
    fn every_operation_stands_once_in_the_table() {
        for (i, entry) in ROUTES.iter().enumerate() {
            let same = |other: &Entry| other.operation == entry.operation || (other.method == entry.method && other.path == entry.path);
            assert!(!ROUTES[..i].iter().any(same), "{}", entry.path);
            assert!(entry.looks == Looks::Never || entry.access != Access::Anyone, "{}", entry.path);
            assert_eq!(entry.looks == Looks::WithReason, entry.query.contains(&"reason"), "{}", entry.path);
        }
    }
}
