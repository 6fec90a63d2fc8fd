//! Async: `POST /door/1`, where those ask who want a certificate: a relay for its agents and for itself, and at the door whoever has none.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::Stream;
use muster_mesh::{
    door::{Answer, DOOR_CONTENT_TYPE, DOOR_PROTOCOL},
    limits,
};
use tokio::sync::Semaphore;
use warp::{
    Filter, Reply,
    http::{HeaderValue, header},
    reply::Response,
};

use super::{Route, body, problem::ApiError};
use crate::hub::Hub;

/// Asks under way at once: each takes a signature and a transaction, or waits a moment for another hub's.
const ASKS_MAX: usize = 32;
/// Whoever comes while all places are taken comes again after this.
const BUSY_S: u32 = 10;

/// All protocol numbers: those that aren't ours are answered with the one that is.
pub fn routes(hub: &Arc<Hub>) -> Route {
    let (hub, slots) = (hub.clone(), Arc::new(Semaphore::new(ASKS_MAX)));
    warp::path!("door" / String)
        .and(warp::post())
        .and(warp::header::optional("content-type"))
        .and(warp::body::stream())
        .then(move |protocol: String, content_type: Option<String>, stream| {
            let (hub, slots) = (hub.clone(), slots.clone());
            async move { answer(protocol, content_type, hub, slots, stream).await.unwrap_or_else(|error| error.response()) }
        })
        .boxed()
}

async fn answer(
    protocol: String,
    content_type: Option<String>,
    hub: Arc<Hub>,
    slots: Arc<Semaphore>,
    stream: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Result<Response, ApiError> {
    if protocol != DOOR_PROTOCOL.to_string() {
        return Err(ApiError::Protocol);
    }
    if content_type.as_deref() != Some(DOOR_CONTENT_TYPE) {
        return Err(ApiError::Body(format!("its content type isn't {DOOR_CONTENT_TYPE}")));
    }
    let ask = body::collect(stream, limits::DOOR_BYTES_MAX).await?;
    let answer = match slots.try_acquire_owned() {
        // A task of its own: whoever hangs up doesn't stop a commit half-way.
        Ok(slot) => {
            let asking = tokio::spawn(async move {
                let answer = hub.ask(&ask).await;
                drop(slot);
                answer
            });
            asking.await.map_err(|error| ApiError::Inside(error.to_string()))?
        }
        Err(_) => Answer::Busy { seconds: BUSY_S },
    };
    said(&answer)
}

/// "Come again in so many seconds", in the words that an asker understands.
pub fn busy(seconds: u32) -> Result<Response, ApiError> {
    said(&Answer::Busy { seconds })
}

fn said(answer: &Answer) -> Result<Response, ApiError> {
    let bytes: Bytes = answer.bytes().map_err(|error| ApiError::Inside(error.to_string()))?.into();
    let mut response = warp::reply::Response::new(bytes.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(DOOR_CONTENT_TYPE));
    Ok(response.into_response())
}
