//! Async: `POST /sync/1`, where relays bring what they have.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::Stream;
use muster_mesh::{
    limits,
    message::{Answer, SYNC_CONTENT_TYPE, SYNC_PROTOCOL},
};
use tokio::{sync::Semaphore, time::timeout};
use warp::{
    Filter, Reply,
    http::{HeaderValue, StatusCode, header},
    reply::Response,
};

use super::{Route, body, problem::ApiError};
use crate::{hub::Hub, ingest::IngestError, serve::Peer};

/// POSTs whose bodies are in memory at once: 8 MiB each, and about as much again when opened.
const POSTS_MAX: usize = 16;
const WAIT: std::time::Duration = std::time::Duration::from_secs(15);

/// All protocol numbers: those that aren't ours are answered with the one that is.
pub fn routes(hub: &Arc<Hub>) -> Route {
    let (hub, slots) = (hub.clone(), Arc::new(Semaphore::new(POSTS_MAX)));
    warp::path!("sync" / String)
        .and(warp::post())
        .and(warp::ext::optional())
        .and(warp::header::optional("content-type"))
        .and(warp::body::stream())
        .then(move |protocol: String, peer: Option<Peer>, content_type: Option<String>, stream| {
            let (hub, slots) = (hub.clone(), slots.clone());
            async move {
                let post = Post { protocol, peer, content_type };
                post.answer(hub, slots, stream).await.unwrap_or_else(|error| error.response())
            }
        })
        .boxed()
}

struct Post {
    protocol: String,
    peer: Option<Peer>,
    content_type: Option<String>,
}

impl Post {
    async fn answer(
        self,
        hub: Arc<Hub>,
        slots: Arc<Semaphore>,
        stream: impl Stream<Item = Result<impl Buf, warp::Error>>,
    ) -> Result<Response, ApiError> {
        let relay = self.peer.and_then(|peer| peer.name).ok_or(ApiError::NotARelay)?.to_string();
        if self.protocol != SYNC_PROTOCOL.to_string() {
            return Err(ApiError::Protocol);
        }
        if self.content_type.as_deref() != Some(SYNC_CONTENT_TYPE) {
            return Err(ApiError::Body(format!("its content type isn't {SYNC_CONTENT_TYPE}")));
        }
        let slot = timeout(WAIT, slots.acquire_owned()).await.map_err(|_| ApiError::Later("all slots for POSTs are taken".into()))?;
        let body = body::collect(stream, limits::POST_BYTES_MAX).await?;
        // A task of its own: a relay that hangs up doesn't stop a commit half-way.
        let taking = tokio::spawn(async move {
            let answer = hub.ingest.post(&relay, body).await;
            drop(slot);
            answer
        });
        let answer = taking.await.map_err(|error| ApiError::Inside(error.to_string()))??;
        let status = match answer {
            Answer::Taken(_) => StatusCode::OK,
            Answer::Stale { .. } | Answer::Rewind { .. } => StatusCode::CONFLICT,
        };
        let bytes: Bytes = answer.bytes().map_err(|error| ApiError::Inside(error.to_string()))?;
        let mut response = warp::reply::with_status(bytes.to_vec(), status).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(SYNC_CONTENT_TYPE));
        Ok(response)
    }
}

impl From<IngestError> for ApiError {
    fn from(error: IngestError) -> ApiError {
        match error {
            IngestError::Malformed(error) => ApiError::Body(error.to_string()),
            // Also what the database refuses: the relay keeps it, and the next build may take it.
            IngestError::Store(error) => ApiError::Later(error.to_string()),
            IngestError::Stopped => ApiError::Later(error.to_string()),
        }
    }
}
