//! Blocking: a request becomes pictures, or the reason why there are none.

use crate::{
    answer::{Captured, PictureHeader, Reason, Refusal},
    blur::blur,
    capture::{capture, is_wayland},
    encode::encode,
    picture::Picture,
    request::{Area, Request},
    visible::{Rect, Sight, sight},
    windows::{Display, Monitor},
};

/// Windows may move while a picture is taken; then it is thrown away and taken again, so many times in all.
const TRIES: usize = 5;

/// What is captured of a monitor.
struct Part {
    monitor: Monitor,
    captured: Captured,
    /// In the root window's pixels, and no more than the monitor.
    place: Rect,
}

/// All frames of the answer. As long as one part isn't sure to show nothing excluded, there is none.
pub fn take(request: &Request) -> Result<Vec<u8>, Refusal> {
    let display = Display::open()?;
    if is_wayland() || display.is_wayland()? {
        return Err(wayland(request));
    }
    if !request.excluded.is_empty() {
        display.watch()?;
    }
    let parts = parts(&display.monitors()?, request.area)?;
    let mut frames = Vec::new();
    for (n, part) in (0..).zip(&parts) {
        frames.extend(frame(&display, request, part, n, parts.len() as u32)?);
    }
    Ok(frames)
}

fn wayland(request: &Request) -> Refusal {
    if request.excluded.is_empty() {
        return Refusal::new(
            Reason::NotSupported,
            "Wayland hands out pictures of the screen only through files, and pictures here never lie in one unblurred",
        );
    }
    Refusal::new(Reason::NotPermitted, "Wayland doesn't tell which windows are visible, so a picture could show an excluded application")
}

fn parts(monitors: &[Monitor], area: Area) -> Result<Vec<Part>, Refusal> {
    match area {
        Area::All => {
            let whole = |monitor: &Monitor| Part { monitor: *monitor, captured: Captured::Monitor, place: monitor.place };
            let parts: Vec<Part> = monitors.iter().filter(|monitor| monitor.output.is_some()).map(whole).collect();
            if parts.is_empty() { Err(Refusal::new(Reason::NotSupported, "none of the monitors can be captured")) } else { Ok(parts) }
        }
        Area::Crop(window) => {
            let seen = monitors.iter().filter_map(|monitor| Some((monitor, monitor.place.common(window)?)));
            let Some((monitor, place)) = seen.max_by_key(|(_, place)| place.area()) else {
                return Err(Refusal::new(Reason::Lost, "the active window is on no monitor"));
            };
            Ok(vec![Part { monitor: *monitor, captured: Captured::ActiveWindow, place }])
        }
    }
}

fn frame(display: &Display, request: &Request, part: &Part, n: u32, parts: u32) -> Result<Vec<u8>, Refusal> {
    let picture = decent(display, request, part)?;
    let (captured_width, captured_height) = (picture.width(), picture.height());
    let picture = if request.blur { blur(&picture, request.width_max) } else { picture.narrowed(request.width_max) };
    let encoded = encode(&picture, request.format, request.bytes_max)?;
    let header = PictureHeader {
        area: part.captured,
        part: n,
        parts,
        x: part.place.x,
        y: part.place.y,
        width: encoded.width,
        height: encoded.height,
        captured_width,
        captured_height,
        format: request.format,
        blurred: request.blur,
        bytes: encoded.bytes.len() as u32,
    };
    Ok(header.frame(&encoded.bytes))
}

/// A picture that shows nothing excluded.
fn decent(display: &Display, request: &Request, part: &Part) -> Result<Picture, Refusal> {
    if request.excluded.is_empty() {
        return cropped(part);
    }
    for _ in 0..TRIES {
        // What happened earlier is of no interest.
        display.changes()?;
        let before = display.windows(&request.excluded)?;
        if sight(&before, &before, &[], part.place) == Sight::Excluded {
            return Err(excluded());
        }
        let picture = cropped(part)?;
        let after = display.windows(&request.excluded)?;
        match sight(&before, &after, &display.changes()?, part.place) {
            Sight::Clear => return Ok(picture),
            Sight::Excluded => return Err(excluded()),
            Sight::Unsure => {}
        }
    }
    Err(Refusal::new(Reason::Excluded, "windows kept moving, so that one of an excluded application may have been visible"))
}

fn excluded() -> Refusal {
    Refusal::new(Reason::Excluded, "a window of an excluded application is visible")
}

fn cropped(part: &Part) -> Result<Picture, Refusal> {
    let picture = capture(part.monitor)?;
    if part.place == part.monitor.place {
        return Ok(picture);
    }
    let (x, y) = (part.place.x - part.monitor.place.x, part.place.y - part.monitor.place.y);
    let outside = || Refusal::new(Reason::Lost, "the active window isn't on its monitor any more");
    picture.crop(Rect { x, y, ..part.place }).ok_or_else(outside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn monitor(x: i32, width: u32, output: Option<u32>) -> Monitor {
        Monitor { place: Rect { x, y: 0, width, height: 100 }, output }
    }

    fn places(monitors: &[Monitor], area: Area) -> Result<Vec<Rect>, Reason> {
        parts(monitors, area).map(|parts| parts.iter().map(|part| part.place).collect()).map_err(|refusal| refusal.error)
    }

    #[test]
    fn all_is_each_monitor_that_can_be_captured() {
        let (left, made, right) = (monitor(0, 100, Some(1)), monitor(100, 50, None), monitor(150, 200, Some(2)));
        assert_eq!(places(&[left, made, right], Area::All), Ok(vec![left.place, right.place]));
        assert_eq!(places(&[made], Area::All), Err(Reason::NotSupported));
    }

    #[test]
    fn a_window_is_cropped_from_the_monitor_that_shows_most_of_it() {
        let monitors = [monitor(0, 100, Some(1)), monitor(100, 200, Some(2))];
        let crop = |x, y, width, height| places(&monitors, Area::Crop(Rect { x, y, width, height }));
        assert_eq!(crop(10, 10, 20, 20), Ok(vec![Rect { x: 10, y: 10, width: 20, height: 20 }]));
        assert_eq!(crop(60, -10, 100, 50), Ok(vec![Rect { x: 100, y: 0, width: 60, height: 40 }]));
        assert_eq!(crop(90, 90, 15, 50), Ok(vec![Rect { x: 90, y: 90, width: 10, height: 10 }]));
        assert_eq!(crop(300, 0, 10, 10), Err(Reason::Lost));
        assert_eq!(crop(-50, 0, 50, 10), Err(Reason::Lost));
    }
}
