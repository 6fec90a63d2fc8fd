//! Async: the one place that makes an error's two messages: one for whoever asked (RFC 9457), one for the log.

use serde::Serialize;
use utoipa::ToSchema;
use warp::{
    Reply,
    http::{HeaderValue, StatusCode, header},
    reply::Response,
};

use crate::{objects::ObjectError, store::StoreError};

/// Why a request isn't answered.
#[derive(Debug)]
pub enum ApiError {
    /// Nothing here: also what may not be seen.
    NotFound,
    Method,
    /// No token, or one that isn't good.
    SignIn,
    /// Wrong name or password; which of them isn't said.
    WrongPassword,
    /// Too many tries: wait so many milliseconds.
    Wait(i64),
    /// A field, and what is wrong with it.
    Field(&'static str, String),
    /// It may be seen only by who says why.
    Reason,
    /// The body isn't what it should be.
    Body(String),
    TooLarge,
    /// Not at this port.
    OtherHost,
    /// It took too long.
    Slow,
    /// A relay's protocol that this hub doesn't speak.
    Protocol,
    /// Not a relay.
    NotARelay,
    /// The same again, a little later.
    Later(String),
    /// Ours: what it was stands in the log.
    Inside(String),
}

/// RFC 9457.
#[derive(Serialize, ToSchema)]
pub struct Problem {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
}

/// Seconds after which a busy hub is asked again.
const LATER_S: i64 = 2;

impl ApiError {
    pub fn response(&self) -> Response {
        self.log();
        let (status, code, title, detail) = self.outside();
        let problem = Problem { kind: format!("urn:muster:problem:{code}"), title, status: status.as_u16(), detail };
        let mut response = warp::reply::with_status(warp::reply::json(&problem), status).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after_s() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }

    fn outside(&self) -> (StatusCode, &'static str, &'static str, String) {
        let plain = |status, code, title| (status, code, title, String::new());
        match self {
            ApiError::NotFound => plain(StatusCode::NOT_FOUND, "not-found", "There is nothing here"),
            ApiError::Method => plain(StatusCode::METHOD_NOT_ALLOWED, "method", "This can't be done here"),
            ApiError::SignIn => plain(StatusCode::UNAUTHORIZED, "sign-in", "Sign in first"),
            ApiError::WrongPassword => plain(StatusCode::UNAUTHORIZED, "wrong-password", "Name or password is wrong"),
            ApiError::Wait(_) => plain(StatusCode::TOO_MANY_REQUESTS, "wait", "Too many tries; wait a little"),
            ApiError::Field(field, what) => (StatusCode::UNPROCESSABLE_ENTITY, "field", "A field can't be so", format!("{field}: {what}")),
            ApiError::Reason => {
                let detail =
                    "give `reason` in the query or the header muster-reason: 1 to 200 characters in one line; it is written down".into();
                (StatusCode::BAD_REQUEST, "reason", "Say why you look", detail)
            }
            ApiError::Body(what) => (StatusCode::BAD_REQUEST, "body", "The request doesn't read", what.clone()),
            ApiError::TooLarge => plain(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The request is too large"),
            ApiError::OtherHost => plain(StatusCode::MISDIRECTED_REQUEST, "other-host", "This is another host"),
            ApiError::Slow => plain(StatusCode::SERVICE_UNAVAILABLE, "slow", "It took too long"),
            ApiError::Protocol => {
                let spoken = muster_mesh::message::SYNC_PROTOCOL;
                let detail = format!("this hub speaks /sync/{spoken} to /sync/{spoken}");
                (StatusCode::NOT_FOUND, "protocol", "Another protocol", detail)
            }
            ApiError::NotARelay => plain(StatusCode::FORBIDDEN, "not-a-relay", "Only relays may do this"),
            ApiError::Later(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "later", "Not now; try again a little later"),
            ApiError::Inside(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "inside", "Something went wrong here; it is in the log"),
        }
    }

    fn retry_after_s(&self) -> Option<i64> {
        match self {
            ApiError::Wait(ms) => Some(ms.saturating_add(999) / 1_000),
            ApiError::Later(_) | ApiError::Slow => Some(LATER_S),
            _ => None,
        }
    }

    fn log(&self) {
        match self {
            ApiError::Later(why) => tracing::warn!(%why, "asked to try again later"),
            ApiError::Inside(why) => tracing::error!(%why, "a request failed inside"),
            ApiError::Slow => tracing::warn!("a request took too long"),
            other => tracing::debug!(?other, "a request was refused"),
        }
    }
}

impl From<ObjectError> for ApiError {
    fn from(error: ObjectError) -> ApiError {
        match error {
            // Its row went while it was being read.
            ObjectError::Missing => ApiError::NotFound,
            ObjectError::NotNow(_) => ApiError::Later(error.to_string()),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> ApiError {
        if error.is_passing() { ApiError::Later(error.to_string()) } else { ApiError::Inside(error.to_string()) }
    }
}
