//! Quiet: what the helper says on stdout.
//!
//! ```text
//! ┌──────────────┬─────────────────────┬───────────────────────────┐
//! │ u32 length   │ header, JSON        │ header.bytes of picture   │  once per monitor, or once for the active window
//! └──────────────┴─────────────────────┴───────────────────────────┘
//! ┌──────────────┬─────────────────────┐
//! │ u32 length   │ {"error", "text"}   │                              instead of all pictures
//! └──────────────┴─────────────────────┘
//! ```
//!
//! Lengths are little-endian. After the last frame the output ends.

use serde::{Deserialize, Serialize};

use crate::request::Format;

/// No header is longer.
pub const HEADER_BYTES_MAX: usize = 4_096;
/// A text of ours is one sentence; what a driver adds is cut, so that a header fits its bound however it is escaped.
const TEXT_CHARS_MAX: usize = 512;

/// Stands before a picture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PictureHeader {
    pub area: Captured,
    pub part: u32,
    pub parts: u32,
    /// Where it was taken, in the root window's pixels.
    pub x: i32,
    pub y: i32,
    /// Of the stored picture.
    pub width: u32,
    pub height: u32,
    pub captured_width: u32,
    pub captured_height: u32,
    pub format: Format,
    pub blurred: bool,
    pub bytes: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Captured {
    Monitor,
    ActiveWindow,
}

/// Why there is no picture. Nothing comes after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
#[error("{text}")]
pub struct Refusal {
    pub error: Reason,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    NoDisplay,
    NotPermitted,
    /// It won't work here at a later try either.
    NotSupported,
    /// It may work at the next try.
    Lost,
    Excluded,
    BadRequest,
}

impl Refusal {
    pub fn new(error: Reason, text: impl Into<String>) -> Refusal {
        let text: String = text.into();
        let text = text.chars().filter(|c| !c.is_control()).take(TEXT_CHARS_MAX).collect();
        Refusal { error, text }
    }

    pub fn frame(&self) -> Vec<u8> {
        frame(self, &[])
    }
}

impl PictureHeader {
    pub fn frame(&self, picture: &[u8]) -> Vec<u8> {
        frame(self, picture)
    }
}

fn frame(header: &impl Serialize, picture: &[u8]) -> Vec<u8> {
    // Headers are structs of numbers and short texts: they always become JSON.
    let header = serde_json::to_vec(header).unwrap_or_default();
    debug_assert!((1..=HEADER_BYTES_MAX).contains(&header.len()));
    let length = header.len() as u32;
    [&length.to_le_bytes(), header.as_slice(), picture].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_length_header_and_picture() {
        let header = PictureHeader {
            area: Captured::ActiveWindow,
            part: 0,
            parts: 1,
            x: -5,
            y: 7,
            width: 640,
            height: 400,
            captured_width: 1280,
            captured_height: 800,
            format: Format::Webp,
            blurred: true,
            bytes: 3,
        };
        let frame = header.frame(b"abc");
        let length = u32::from_le_bytes(frame[..4].try_into().unwrap()) as usize;
        let text = r#"{"area":"active_window","part":0,"parts":1,"x":-5,"y":7,"width":640,"height":400,"captured_width":1280,"captured_height":800,"format":"webp","blurred":true,"bytes":3}"#;
        assert_eq!(std::str::from_utf8(&frame[4..4 + length]).unwrap(), text);
        assert_eq!(&frame[4 + length..], b"abc");
    }

    #[test]
    fn a_refusal_fits_a_header_whatever_its_text() {
        let refusal = Refusal::new(Reason::NotSupported, "\u{10ffff}\"\\\n\0".repeat(5_000));
        let frame = refusal.frame();
        assert!(frame.len() <= 4 + HEADER_BYTES_MAX, "{}", frame.len());
        let read: Refusal = serde_json::from_slice(&frame[4..]).unwrap();
        assert_eq!(read, refusal);
        assert!(std::str::from_utf8(&frame[4..]).unwrap().starts_with(r#"{"error":"not_supported","text":""#));
    }
}
