//! Quiet: what the agent asks for: one line of JSON.

use serde::{Deserialize, Serialize};

use crate::{
    answer::{Reason, Refusal},
    visible::Rect,
};

/// Twice a policy's list of programs with every character escaped is below it.
pub const REQUEST_BYTES_MAX: usize = 256 * 1024;
/// As many names as two policies hold: an agent joins those of the policy in force and of the one that was read about.
const EXCLUDED_MAX: usize = 512;
const WIDTH_DEFAULT: u32 = 1_280;
const WIDTH_MIN: u32 = 16;
/// WebP ends at 16,383 pixels a side, and a portrait screen is higher than it is wide.
const WIDTH_MAX: u32 = 8_192;
/// Below it not even the smallest JPEG of noise would be sure to fit.
const BYTES_MIN: u32 = 4_096;
/// Above any picture that travels.
const BYTES_MAX: u32 = 16 * 1024 * 1024;
/// X11's coordinates are 16 bits wide.
const SIDE_MAX: u32 = 65_535;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub area: Area,
    pub blur: bool,
    pub width_max: u32,
    pub format: Format,
    pub bytes_max: u32,
    /// Names of applications, as they compare: see [`name`].
    pub excluded: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    All,
    /// The active window, in the root window's pixels.
    Crop(Rect),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    Webp,
    Jpeg,
}

impl Request {
    /// Reads the line, without or with its end.
    pub fn read(line: &[u8]) -> Result<Request, Refusal> {
        if line.len() > REQUEST_BYTES_MAX {
            return Err(bad("the request is longer than 256 KiB"));
        }
        // What serde says quotes the request, and that may hold names.
        let line: Line = serde_json::from_slice(line)
            .map_err(|error| bad(&format!("the request isn't one of ours (column {} of its line)", error.column())))?;
        line.check()
    }
}

/// How names of applications compare: whatever their case, and without what a person doesn't see.
pub fn name(name: &str) -> String {
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    name.trim().to_lowercase()
}

/// As it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    area: AreaName,
    x: Option<i32>,
    y: Option<i32>,
    width: Option<u32>,
    height: Option<u32>,
    blur: bool,
    width_max: Option<u32>,
    format: Option<Format>,
    bytes_max: u32,
    /// Not optional: a request that forgets it must not be one that excludes nothing.
    excluded: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum AreaName {
    All,
    Crop,
}

impl Line {
    fn check(self) -> Result<Request, Refusal> {
        let area = match (self.area, self.x, self.y, self.width, self.height) {
            (AreaName::All, None, None, None, None) => Area::All,
            (AreaName::Crop, Some(x), Some(y), Some(width), Some(height)) => {
                let sides = 1..=SIDE_MAX;
                let far = SIDE_MAX as i32;
                let fits = sides.contains(&width) && sides.contains(&height) && (-far..=far).contains(&x) && (-far..=far).contains(&y);
                require(fits, "x, y, width and height are no part of a screen")?;
                Area::Crop(Rect { x, y, width, height })
            }
            (AreaName::All, ..) => return Err(bad("x, y, width and height belong to a crop")),
            (AreaName::Crop, ..) => return Err(bad("a crop has x, y, width and height")),
        };
        let width_max = self.width_max.unwrap_or(WIDTH_DEFAULT);
        require((WIDTH_MIN..=WIDTH_MAX).contains(&width_max), "width_max is not 16 to 8192")?;
        require((BYTES_MIN..=BYTES_MAX).contains(&self.bytes_max), "bytes_max is not 4096 to 16777216")?;
        require(self.excluded.len() <= EXCLUDED_MAX, "excluded holds more than 512 names")?;
        let excluded: Vec<String> = self.excluded.iter().map(|excluded| name(excluded)).collect();
        require(excluded.iter().all(|name| !name.is_empty()), "excluded holds an empty name")?;
        let format = self.format.unwrap_or(Format::Webp);
        Ok(Request { area, blur: self.blur, width_max, format, bytes_max: self.bytes_max, excluded })
    }
}

fn require(fits: bool, what: &str) -> Result<(), Refusal> {
    if fits { Ok(()) } else { Err(bad(what)) }
}

fn bad(what: &str) -> Refusal {
    Refusal::new(Reason::BadRequest, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> String {
        let refusal = Request::read(line.as_bytes()).unwrap_err();
        assert_eq!(refusal.error, Reason::BadRequest, "{line}");
        refusal.text
    }

    #[test]
    fn a_request_is_read_as_the_agent_writes_it() {
        let all = Request::read(br#"{"area":"all","blur":true,"bytes_max":200000,"excluded":[" KeePassXC","\u00dcber\u0007"]}"#).unwrap();
        let excluded = vec!["keepassxc".to_owned(), "über".to_owned()];
        assert_eq!(
            all,
            Request { area: Area::All, blur: true, width_max: 1_280, format: Format::Webp, bytes_max: 200_000, excluded: excluded.clone() }
        );
        let crop = br#"{"area":"crop","x":-3,"y":4,"width":5,"height":6,"blur":false,"width_max":640,"format":"jpeg","bytes_max":4096,"excluded":[]}
"#;
        let area = Area::Crop(Rect { x: -3, y: 4, width: 5, height: 6 });
        assert_eq!(
            Request::read(crop).unwrap(),
            Request { area, blur: false, width_max: 640, format: Format::Jpeg, bytes_max: 4_096, excluded: vec![] }
        );
    }

    #[test]
    fn a_request_out_of_bounds_is_refused_with_the_field() {
        let cases = [
            (r#""area":"crop","blur":true,"bytes_max":9999,"excluded":[]"#, "a crop has x"),
            (r#""area":"crop","x":1,"y":1,"width":0,"height":1,"blur":true,"bytes_max":9999,"excluded":[]"#, "no part of a screen"),
            (r#""area":"crop","x":99999,"y":1,"width":1,"height":1,"blur":true,"bytes_max":9999,"excluded":[]"#, "no part of a screen"),
            (
                r#""area":"crop","x":1,"y":1,"width":4294967295,"height":1,"blur":true,"bytes_max":9999,"excluded":[]"#,
                "no part of a screen",
            ),
            (r#""area":"all","x":1,"blur":true,"bytes_max":9999,"excluded":[]"#, "belong to a crop"),
            (r#""area":"all","blur":true,"bytes_max":4095,"excluded":[]"#, "bytes_max"),
            (r#""area":"all","blur":true,"bytes_max":16777217,"excluded":[]"#, "bytes_max"),
            (r#""area":"all","blur":true,"width_max":15,"bytes_max":9999,"excluded":[]"#, "width_max"),
            (r#""area":"all","blur":true,"width_max":8193,"bytes_max":9999,"excluded":[]"#, "width_max"),
            (r#""area":"all","blur":true,"bytes_max":9999,"excluded":["a"," \u0000"]"#, "empty name"),
            // Nothing that protects someone has a default.
            (r#""area":"all","bytes_max":9999,"excluded":[]"#, "isn't one of ours"),
            (r#""area":"all","blur":true,"bytes_max":9999"#, "isn't one of ours"),
            (r#""area":"all","blur":true,"bytes_max":9999,"excluded":[],"more":1"#, "isn't one of ours"),
        ];
        for (fields, what) in cases {
            let text = refused(&format!("{{{fields}}}"));
            assert!(text.contains(what), "{fields}: {text}");
        }
        let many = format!(r#"{{"area":"all","blur":true,"bytes_max":9999,"excluded":[{}"a"]}}"#, r#""a","#.repeat(EXCLUDED_MAX));
        assert!(refused(&many).contains("512"));
    }

    #[test]
    fn garbage_is_refused_without_quoting_it() {
        let whole = r#"{"area":"all","blur":true,"bytes_max":9999,"excluded":["Secret Diary"]}"#;
        assert!(Request::read(whole.as_bytes()).is_ok());
        for end in 0..whole.len() {
            refused(&whole[..end]);
        }
        for garbage in
            ["null", "[]", "\"Secret Diary\"", "{\"Secret Diary\":1}", "\u{0}", &"[".repeat(10_000), &" ".repeat(REQUEST_BYTES_MAX + 1)]
        {
            assert!(!refused(garbage).contains("Secret"), "{garbage}");
        }
        assert_eq!(Request::read(&[0xff; 64]).unwrap_err().error, Reason::BadRequest);
    }
}
