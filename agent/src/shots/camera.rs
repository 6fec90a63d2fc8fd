//! Quiet: what is asked of whoever takes pictures, and what comes back.

use muster_mesh::{
    limits,
    record::{Area, PictureFormat},
};

/// One stored picture; 1,280 pixels wide it has some 80 KB, and it must fit a batch whole.
pub const PICTURE_BYTES_MAX: usize = 1 << 20;
/// Pictures are scaled to this width.
pub const PICTURE_WIDTH_MAX: u32 = 1_280;
/// Monitors of one computer.
pub const PICTURES_MAX: usize = 16;

const _: () = assert!(PICTURE_BYTES_MAX + (64 << 10) <= limits::PICTURES_RAW_MAX);

/// What to take, and how to make it unreadable before it leaves the memory it was taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub of: Of,
    pub blur: bool,
    pub format: PictureFormat,
    /// Programs: while one of them can be seen, nothing is taken.
    pub excluded: Vec<String>,
}

/// In the coordinates of the whole desktop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    AllMonitors,
    Window { x: i32, y: i32, width: u32, height: u32 },
}

/// One picture, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    pub area: Area,
    pub width: u32,
    pub height: u32,
    pub format: PictureFormat,
    pub blurred: bool,
    pub bytes: Vec<u8>,
}

/// Why there is no picture; the texts are for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CameraError {
    /// Nothing is wrong: an excluded program could be seen.
    #[error("an excluded program can be seen")]
    Excluded,
    #[error("{0}")]
    NoDisplay(String),
    #[error("{0}")]
    NotPermitted(String),
    #[error("{0}")]
    NotSupported(String),
    /// It worked before, or might have.
    #[error("{0}")]
    Lost(String),
}

/// Takes one set of pictures at a time: all of them, or none.
pub trait Camera: Send {
    /// Begins. What was under way is given up.
    fn begin(&mut self, request: &Request);
    /// None: it isn't done, or nothing was begun.
    fn poll(&mut self) -> Option<Result<Vec<Picture>, CameraError>>;
    /// Gives up at once; no picture comes any more.
    fn cancel(&mut self);
}

impl Of {
    pub fn area(self) -> Area {
        match self {
            Of::AllMonitors => Area::Monitor,
            Of::Window { .. } => Area::ActiveWindow,
        }
    }
}
