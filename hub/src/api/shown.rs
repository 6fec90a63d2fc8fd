//! Async: `POST /signed/1`, where a relay shows what a hub of this mesh signed, because this hub says less.

use std::sync::Arc;

use bytes::Buf;
use futures_util::Stream;
use muster_mesh::{
    limits,
    message::{SIGNED_CONTENT_TYPE, SIGNED_PROTOCOL},
};
use tokio::sync::Semaphore;
use warp::{Filter, Reply, http::StatusCode, reply::Response};

use super::{Route, body, problem::ApiError};
use crate::{control::ControlError, hub::Hub, serve::Peer};

/// Shown at once: each is a signature and a transaction, and relays come again.
const SHOWN_MAX: usize = 4;

/// All protocol numbers: those that aren't ours are answered with the one that is.
pub fn routes(hub: &Arc<Hub>) -> Route {
    let (hub, slots) = (hub.clone(), Arc::new(Semaphore::new(SHOWN_MAX)));
    warp::path!("signed" / String)
        .and(warp::post())
        .and(warp::ext::optional())
        .and(warp::header::optional("content-type"))
        .and(warp::body::stream())
        .then(move |protocol: String, peer: Option<Peer>, content_type: Option<String>, stream| {
            let (hub, slots) = (hub.clone(), slots.clone());
            async move { answer(protocol, peer, content_type, hub, slots, stream).await.unwrap_or_else(|error| error.response()) }
        })
        .boxed()
}

async fn answer(
    protocol: String,
    peer: Option<Peer>,
    content_type: Option<String>,
    hub: Arc<Hub>,
    slots: Arc<Semaphore>,
    stream: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Result<Response, ApiError> {
    peer.and_then(|peer| peer.name).ok_or(ApiError::NotARelay)?;
    if protocol != SIGNED_PROTOCOL.to_string() {
        return Err(ApiError::Protocol);
    }
    if content_type.as_deref() != Some(SIGNED_CONTENT_TYPE) {
        return Err(ApiError::Body(format!("its content type isn't {SIGNED_CONTENT_TYPE}")));
    }
    let slot = slots.try_acquire_owned().map_err(|_| ApiError::Later("others are showing what was signed".into()))?;
    let bytes = body::collect(stream, limits::CONTROL_BYTES_MAX).await?;
    // A task of its own: a relay that hangs up doesn't stop a commit half-way.
    let taking = tokio::spawn(async move {
        let taken = hub.shown(&bytes).await;
        drop(slot);
        taken
    });
    match taking.await.map_err(|error| ApiError::Inside(error.to_string()))? {
        Ok(()) => Ok(StatusCode::NO_CONTENT.into_response()),
        Err(error @ (ControlError::Message(_) | ControlError::Unproven(_) | ControlError::Highest)) => {
            Err(ApiError::Body(error.to_string()))
        }
        Err(error @ (ControlError::Store(_) | ControlError::Sign(_) | ControlError::Full)) => Err(ApiError::Later(error.to_string())),
    }
}
