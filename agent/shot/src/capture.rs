//! Blocking: what a monitor shows at this moment, by xcap; the only file that names it.
//!
//! Only on X11. Under Wayland xcap asks GNOME or the portal for a picture, and both lay it into a file first, whole and unblurred.

use std::env;

use xcap::image::RgbaImage;
use xcap::{Monitor as Screen, XCapResult};

use crate::{
    answer::{Reason, Refusal},
    picture::Picture,
    windows::Monitor,
};

/// A screen of 8192x8192. Twice its pixels are in memory while it is captured.
const PIXELS_MAX: u64 = 1 << 26;

/// Whether xcap would go Wayland's way.
pub fn is_wayland() -> bool {
    let says = |name: &str, what: fn(&str) -> bool| env::var_os(name).is_some_and(|value| what(&value.to_string_lossy().to_lowercase()));
    says("XDG_SESSION_TYPE", |kind| kind == "wayland") || says("WAYLAND_DISPLAY", |display| !display.is_empty())
}

/// All of it.
pub fn capture(monitor: Monitor) -> Result<Picture, Refusal> {
    let Some(output) = monitor.output else {
        return Err(Refusal::new(
            Reason::NotSupported,
            "this monitor is a part of another one, made by hand; pictures are taken of whole ones",
        ));
    };
    if monitor.place.area() > PIXELS_MAX {
        return Err(Refusal::new(Reason::NotSupported, "a monitor of more than 67 million pixels isn't captured"));
    }
    let image = image_of(output).map_err(|error| Refusal::new(Reason::Lost, format!("the monitor can't be captured: {error}")))?;
    let (width, height) = image.dimensions();
    let changed = || Refusal::new(Reason::Lost, "the monitor has changed its size meanwhile");
    if (width, height) != (monitor.place.width, monitor.place.height) {
        return Err(changed());
    }
    Picture::new(width, height, image.into_raw()).ok_or_else(changed)
}

fn image_of(output: u32) -> XCapResult<RgbaImage> {
    for screen in Screen::all()? {
        if screen.id()? == output {
            return screen.capture_image();
        }
    }
    Err(xcap::XCapError::new("it was unplugged"))
}
