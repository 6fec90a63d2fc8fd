//! Blocking: a join token as somebody gives it to a program. Its format is [`muster_certs::join`]'s.

use std::path::Path;

pub use muster_certs::join::{JoinToken, Kind, TokenError};
use muster_certs::{files, join::looks_like_one};

use crate::complaint::Complaint;

/// The token that was given: itself, or a file that holds it.
pub fn given(token: &str) -> Result<String, Complaint> {
    if looks_like_one(token) {
        return Ok(token.to_owned());
    }
    files::read_secret(Path::new(token)).map_err(|error| {
        Complaint::new(
            format!("{token:.60?} is neither a join token nor a file with one ({error})"),
            "Copy all of the token, or name the file",
        )
    })
}
