//! Blocking: a join token as somebody gives it to a program. Its format is [`muster_certs::join`]'s.

use std::path::Path;

pub use muster_certs::join::{JoinToken, Kind, TokenError};
use muster_certs::{
    files,
    join::{looks_like_one, may_be_a_piece_of_one},
};

use crate::complaint::Complaint;

/// The token that was given: itself, or a file that holds it.
pub fn given(token: &str) -> Result<String, Complaint> {
    if looks_like_one(token) {
        return Ok(token.to_owned());
    }
    files::read_secret(Path::new(token)).map_err(|error| {
        let what = if may_be_a_piece_of_one(token) {
            "what was given is neither a whole join token nor a file with one".to_owned()
        } else {
            format!("{token:?} is neither a join token nor a file with one ({error})")
        };
        Complaint::new(what, "Copy all of the token, or name the file")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_lost_its_beginning_is_not_repeated() {
        let piece = "AQEBAQEBAQECAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgD9AKC4MEYDAAAPbXVzdGVyLmludGVybmFs";
        let said = given(piece).unwrap_err().to_string();
        assert!(said.contains("whole join token") && !said.contains("AgICAg"), "{said}");
        let said = given("token.txt").unwrap_err().to_string();
        assert!(said.contains("token.txt"), "{said}");
    }
}
