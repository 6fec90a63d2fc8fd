//! Async: `POST /sync/1`, where relays bring what they have.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::Stream;
use muster_mesh::{
    ids::Lane,
    limits,
    message::{Answer, SYNC_CONTENT_TYPE, SYNC_PROTOCOL},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use warp::{
    Filter, Reply,
    http::{HeaderValue, StatusCode, header},
    reply::Response,
};

use super::{Route, body, problem::ApiError};
use crate::{
    hub::Hub,
    ingest::{self, IngestError},
    serve::Peer,
};

/// POSTs whose bodies are in memory at once: 8 MiB each, and about as much again when opened.
const POSTS_MAX: usize = 16;
/// POSTs of pictures among and beside them: where the object store is slow they pile up here, and telemetry passes by.
const PICTURES_POSTS_MAX: usize = 8;
const WAIT: std::time::Duration = std::time::Duration::from_secs(15);

/// All protocol numbers: those that aren't ours are answered with the one that is.
pub fn routes(hub: &Arc<Hub>) -> Route {
    let (hub, slots) = (hub.clone(), Slots::default());
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

/// Places for POSTs.
#[derive(Clone)]
struct Slots {
    all: Arc<Semaphore>,
    pictures: Arc<Semaphore>,
}

impl Default for Slots {
    fn default() -> Slots {
        Slots { all: Arc::new(Semaphore::new(POSTS_MAX)), pictures: Arc::new(Semaphore::new(PICTURES_POSTS_MAX)) }
    }
}

impl Slots {
    async fn any(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let slot = timeout(WAIT, self.all.clone().acquire_owned()).await;
        slot.ok().and_then(Result::ok).ok_or_else(|| ApiError::Later("all slots for POSTs are taken".into()))
    }

    /// A POST of pictures leaves its slot to others as soon as it is known for what it is: it may wait for the object store for long.
    fn of_lane(&self, lane: Lane, slot: OwnedSemaphorePermit) -> Result<OwnedSemaphorePermit, ApiError> {
        match lane {
            Lane::Telemetry => Ok(slot),
            Lane::Pictures => {
                let slot = self.pictures.clone().try_acquire_owned();
                slot.map_err(|_| ApiError::Later("all slots for POSTs of pictures are taken".into()))
            }
        }
    }
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
        slots: Slots,
        stream: impl Stream<Item = Result<impl Buf, warp::Error>>,
    ) -> Result<Response, ApiError> {
        let relay = self.peer.and_then(|peer| peer.name).ok_or(ApiError::NotARelay)?.to_string();
        if self.protocol != SYNC_PROTOCOL.to_string() {
            return Err(ApiError::Protocol);
        }
        if self.content_type.as_deref() != Some(SYNC_CONTENT_TYPE) {
            return Err(ApiError::Body(format!("its content type isn't {SYNC_CONTENT_TYPE}")));
        }
        let slot = slots.any().await?;
        let body = body::collect(stream, limits::POST_BYTES_MAX).await?;
        let post = ingest::Post::read(body).await?;
        let slot = slots.of_lane(post.lane(), slot)?;
        // A task of its own: a relay that hangs up doesn't stop a commit half-way.
        let taking = tokio::spawn(async move {
            let answer = hub.ingest.take(&relay, post).await;
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
            IngestError::Objects(error) => ApiError::Later(error.to_string()),
            IngestError::Sign(error) => ApiError::Later(error.to_string()),
            IngestError::Stopped => ApiError::Later(error.to_string()),
        }
    }
}
