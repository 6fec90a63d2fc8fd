//! Async: a request's body, collected with a cap, whatever its headers say of its length.

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};

use super::problem::ApiError;

/// The whole body; more than `most` bytes end the request.
pub async fn collect(stream: impl Stream<Item = Result<impl Buf, warp::Error>>, most: usize) -> Result<Bytes, ApiError> {
    let mut stream = std::pin::pin!(stream);
    let mut body = BytesMut::new();
    while let Some(piece) = stream.next().await {
        let mut piece = piece.map_err(|error| ApiError::Body(format!("its body broke off ({error})")))?;
        if body.len() + piece.remaining() > most {
            return Err(ApiError::TooLarge);
        }
        while piece.has_remaining() {
            let chunk = piece.chunk();
            body.extend_from_slice(chunk);
            let length = chunk.len();
            piece.advance(length);
        }
    }
    Ok(body.freeze())
}
