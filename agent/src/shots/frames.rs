//! Quiet: the words between the agent and its helper `muster-shot`: one line of JSON out, frames back, each checked against what was asked for.
//!
//! ```text
//! request   {"area":"all","blur":true,"width_max":1280,"format":"webp","bytes_max":1048576,"excluded":["KeePassXC"]}\n
//! frame     length of the header u32 | header, JSON | header.bytes bytes of picture
//! header    {"area":"monitor","part":0,"parts":2,"width":1280,"height":720,"format":"webp","blurred":true,"bytes":11873, …}
//! error     {"error":"no_display","text":"…"}, and nothing after it
//! ```
//!
//! Little-endian. The helper reads pixels and decodes nothing of ours; still its answer is bounded like a stranger's, and a picture that isn't
//! blurred although blur was asked for is no picture.

use muster_mesh::record::PictureFormat;
use serde::{Deserialize, Serialize};

use super::camera::{CameraError, Of, PICTURE_BYTES_MAX, PICTURE_WIDTH_MAX, PICTURES_MAX, Picture, Request};

const HEADER_BYTES_MAX: usize = 4 << 10;
/// What people are told of the helper's trouble.
const TEXT_CHARS_MAX: usize = 200;
/// The longest side that the hub takes.
const SIDE_MAX: u32 = 16_384;

/// The helper's answer, as far as it has come.
#[derive(Debug)]
pub struct Frames {
    asked: Request,
    buffer: Vec<u8>,
    pictures: Vec<Picture>,
    parts: usize,
    trouble: Option<CameraError>,
}

#[derive(Serialize)]
struct Line<'a> {
    area: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    x: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    y: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    width: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    height: Option<u32>,
    blur: bool,
    width_max: u32,
    format: &'static str,
    bytes_max: usize,
    excluded: &'a [String],
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Header {
    Picture(PictureHeader),
    Trouble { error: String, text: String },
}

#[derive(Deserialize)]
struct PictureHeader {
    area: String,
    part: usize,
    parts: usize,
    width: u32,
    height: u32,
    format: String,
    blurred: bool,
    bytes: usize,
}

/// The line that asks.
pub fn request_line(request: &Request) -> String {
    let (x, y, width, height) = match request.of {
        Of::AllMonitors => (None, None, None, None),
        Of::Window { x, y, width, height } => (Some(x), Some(y), Some(width), Some(height)),
    };
    let line = Line {
        area: if request.of == Of::AllMonitors { "all" } else { "crop" },
        x,
        y,
        width,
        height,
        blur: request.blur,
        width_max: PICTURE_WIDTH_MAX,
        format: format_name(request.format),
        bytes_max: PICTURE_BYTES_MAX,
        excluded: &request.excluded,
    };
    // Plain fields into memory have no failing case.
    serde_json::to_string(&line).unwrap_or_default() + "\n"
}

impl Frames {
    pub fn new(asked: Request) -> Frames {
        Frames { asked, buffer: Vec::new(), pictures: Vec::new(), parts: 0, trouble: None }
    }

    /// Takes what came. An error: the answer makes no sense, and the rest of it isn't worth reading.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), CameraError> {
        self.buffer.extend_from_slice(bytes);
        while let Some(frame) = self.next_frame()? {
            self.take(frame)?;
        }
        if self.is_complete() && !self.buffer.is_empty() {
            return Err(senseless("it says more than was asked for"));
        }
        Ok(())
    }

    /// All that was asked for is here.
    pub fn is_complete(&self) -> bool {
        self.trouble.is_some() || (self.parts > 0 && self.pictures.len() == self.parts)
    }

    /// Nothing more comes.
    pub fn finish(self) -> Result<Vec<Picture>, CameraError> {
        if let Some(trouble) = self.trouble {
            return Err(trouble);
        }
        if self.is_complete() { Ok(self.pictures) } else { Err(senseless("its answer is cut off")) }
    }

    /// A header with its bytes, once all of it is here.
    fn next_frame(&mut self) -> Result<Option<(Header, Vec<u8>)>, CameraError> {
        let Some(length) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > HEADER_BYTES_MAX || self.is_complete() {
            return Err(senseless("a header is too long, or one too many"));
        }
        let Some(header) = self.buffer.get(4..4 + length) else { return Ok(None) };
        let header: Header = serde_json::from_slice(header).map_err(|_| senseless("a header can't be read"))?;
        let bytes = match &header {
            Header::Picture(header) => self.check(header).map(|()| header.bytes)?,
            Header::Trouble { .. } => 0,
        };
        let end = 4 + length + bytes;
        if self.buffer.len() < end {
            return Ok(None);
        }
        let rest = self.buffer.split_off(end);
        let frame = std::mem::replace(&mut self.buffer, rest);
        Ok(Some((header, frame[4 + length..].to_vec())))
    }

    fn check(&self, header: &PictureHeader) -> Result<(), CameraError> {
        let Request { of, blur, format, .. } = &self.asked;
        let area = if *of == Of::AllMonitors { "monitor" } else { "active_window" };
        let parts_max = if *of == Of::AllMonitors { PICTURES_MAX } else { 1 };
        let is_in_order = header.part == self.pictures.len() && (self.parts == 0 || header.parts == self.parts);
        let sides = 1..=SIDE_MAX;
        if *blur && !header.blurred {
            return Err(senseless("it didn't blur"));
        }
        let is_sound = header.area == area
            && is_in_order
            && (1..=parts_max).contains(&header.parts)
            && sides.contains(&header.width)
            && sides.contains(&header.height)
            && header.format == format_name(*format)
            && (1..=PICTURE_BYTES_MAX).contains(&header.bytes);
        if is_sound { Ok(()) } else { Err(senseless("a picture isn't what was asked for")) }
    }

    fn take(&mut self, (header, bytes): (Header, Vec<u8>)) -> Result<(), CameraError> {
        match header {
            Header::Trouble { error, text } => {
                // All of them, or none.
                self.pictures.clear();
                self.trouble = Some(trouble(&error, &text));
            }
            Header::Picture(header) => {
                if !is_of(self.asked.format, &bytes) {
                    return Err(senseless("a picture isn't what was asked for"));
                }
                self.parts = header.parts;
                self.pictures.push(Picture {
                    area: self.asked.of.area(),
                    width: header.width,
                    height: header.height,
                    format: self.asked.format,
                    blurred: header.blurred,
                    bytes,
                });
            }
        }
        Ok(())
    }
}

fn trouble(error: &str, text: &str) -> CameraError {
    let text: String = text.chars().filter(|c| !c.is_control()).take(TEXT_CHARS_MAX).collect();
    match error {
        "excluded" => CameraError::Excluded,
        "no_display" => CameraError::NoDisplay(text),
        "not_permitted" => CameraError::NotPermitted(text),
        "not_supported" => CameraError::NotSupported(text),
        _ => CameraError::Lost(text),
    }
}

pub(super) fn senseless(what: &str) -> CameraError {
    CameraError::Lost(format!("muster-shot doesn't work: {what}"))
}

fn format_name(format: PictureFormat) -> &'static str {
    match format {
        PictureFormat::Webp => "webp",
        PictureFormat::Jpeg => "jpeg",
    }
}

/// By its first bytes.
fn is_of(format: PictureFormat, bytes: &[u8]) -> bool {
    match format {
        PictureFormat::Webp => bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP"),
        PictureFormat::Jpeg => bytes.starts_with(&[0xff, 0xd8, 0xff]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked() -> Request {
        Request { of: Of::AllMonitors, blur: true, format: PictureFormat::Webp, excluded: vec!["Key\"Pass".into()] }
    }

    fn frame(header: &serde_json::Value, bytes: &[u8]) -> Vec<u8> {
        let header = header.to_string();
        [&(header.len() as u32).to_le_bytes(), header.as_bytes(), bytes].concat()
    }

    const WEBP: &[u8] = b"RIFF\x04\0\0\0WEBP";

    fn header(part: usize, parts: usize) -> serde_json::Value {
        json!({ "area": "monitor", "part": part, "parts": parts, "x": 0, "y": 0, "width": 1280, "height": 720, "captured_width": 1920,
            "captured_height": 1080, "format": "webp", "blurred": true, "bytes": WEBP.len() })
    }

    fn read(bytes: &[u8], step: usize) -> Result<Vec<Picture>, CameraError> {
        let mut frames = Frames::new(asked());
        bytes.chunks(step).try_for_each(|chunk| frames.push(chunk))?;
        frames.finish()
    }

    #[test]
    fn the_request_is_one_line_of_json() {
        let line = request_line(&asked());
        assert_eq!(line.matches('\n').count(), 1);
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&said["area"], &said["blur"], &said["excluded"][0]), (&json!("all"), &json!(true), &json!("Key\"Pass")));
        assert!(said.get("x").is_none());
        let crop = request_line(&Request { of: Of::Window { x: -5, y: 6, width: 7, height: 8 }, ..asked() });
        assert!(crop.contains(r#""area":"crop","x":-5,"y":6,"width":7,"height":8"#), "{crop}");
    }

    #[test]
    fn pictures_are_read_whatever_the_pieces_are() {
        let answer = [frame(&header(0, 2), WEBP), frame(&header(1, 2), WEBP)].concat();
        for step in [1, 7, answer.len()] {
            let pictures = read(&answer, step).unwrap();
            assert_eq!((pictures.len(), pictures[1].width, &pictures[1].bytes[..]), (2, 1_280, WEBP));
        }
    }

    #[test]
    fn an_error_is_told_by_its_kind_and_leaves_no_picture() {
        let error = |kind: &str| frame(&json!({ "error": kind, "text": "in\u{1b}[2J words" }), b"");
        assert_eq!(read(&error("no_display"), 3), Err(CameraError::NoDisplay("in[2J words".into())));
        assert_eq!(read(&error("excluded"), 3), Err(CameraError::Excluded));
        let late = [frame(&header(0, 2), WEBP), error("excluded")].concat();
        assert_eq!(read(&late, 5), Err(CameraError::Excluded));
    }

    #[test]
    fn rubbish_is_no_picture() {
        let with = |field: &str, value: serde_json::Value| {
            let mut header = header(0, 1);
            header[field] = value;
            frame(&header, WEBP)
        };
        let cut = frame(&header(0, 1), WEBP);
        for (what, answer) in [
            ("silence", Vec::new()),
            ("cut in the header", cut[..20].to_vec()),
            ("cut in the picture", cut[..cut.len() - 1].to_vec()),
            ("a second part that never comes", frame(&header(0, 2), WEBP)),
            ("a header of 4 GiB", vec![0xff; 8]),
            ("no JSON", [&5u32.to_le_bytes()[..], b"abcde"].concat()),
            ("too many bytes", with("bytes", json!(PICTURE_BYTES_MAX + 1))),
            ("no bytes", with("bytes", json!(0))),
            ("not blurred", with("blurred", json!(false))),
            ("another format", with("format", json!("jpeg"))),
            ("another area", with("area", json!("active_window"))),
            ("too many parts", with("parts", json!(PICTURES_MAX + 1))),
            ("no parts", with("parts", json!(0))),
            ("a part out of order", with("part", json!(1))),
            ("no width", with("width", json!(0))),
            ("too wide", with("width", json!(SIDE_MAX + 1))),
            ("another kind of file", frame(&header(0, 1), b"<svg>aaaaaaa")),
            ("one frame too many", [frame(&header(0, 1), WEBP), frame(&header(0, 1), WEBP)].concat()),
            ("a byte too many", [frame(&header(0, 1), WEBP), vec![0]].concat()),
        ] {
            for step in [1, answer.len().max(1)] {
                let read = read(&answer, step);
                assert!(matches!(&read, Err(CameraError::Lost(why)) if why.starts_with("muster-shot doesn't work")), "{what}: {read:?}");
            }
        }
    }
}
