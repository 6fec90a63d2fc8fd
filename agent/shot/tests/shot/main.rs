//! Blocking: the helper as the agent starts it, on displays of the tests' own.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod painter;
mod reading;
mod server;
mod windows;
mod writing;

use std::{
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use image::RgbaImage;
use muster_shot::answer::{HEADER_BYTES_MAX, PictureHeader, Reason, Refusal};

use crate::server::Server;

/// A picture as it was stored.
struct Stored {
    header: PictureHeader,
    bytes: Vec<u8>,
}

impl Stored {
    fn decoded(&self) -> RgbaImage {
        let decoded = image::load_from_memory(&self.bytes).unwrap().to_rgba8();
        assert_eq!(decoded.dimensions(), (self.header.width, self.header.height));
        decoded
    }
}

/// The helper on that display, or on none.
fn helper(display: Option<&str>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster-shot"));
    on_display(&mut command, display);
    command
}

/// Whatever desktop the tests run on.
fn on_display(command: &mut Command, display: Option<&str>) {
    command.env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY").env_remove("XDG_SESSION_TYPE");
    if let Some(display) = display {
        command.env("DISPLAY", display);
    }
}

fn said_to(mut command: Command, request: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(request).unwrap();
    child.wait_with_output().unwrap()
}

/// What it answers to one line; what it says otherwise is a fault.
fn asked(command: Command, request: &str) -> Result<Vec<Stored>, Refusal> {
    let output = said_to(command, format!("{request}\n").as_bytes());
    assert!(output.status.success(), "{:?}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    frames(&output.stdout)
}

fn frames(mut output: &[u8]) -> Result<Vec<Stored>, Refusal> {
    let mut stored: Vec<Stored> = Vec::new();
    while !output.is_empty() {
        let length = u32::from_le_bytes(output[..4].try_into().unwrap()) as usize;
        assert!(length <= HEADER_BYTES_MAX);
        let (header, rest) = output[4..].split_at(length);
        let Ok(header) = serde_json::from_slice::<PictureHeader>(header) else {
            assert!(stored.is_empty() && rest.is_empty(), "a refusal stands alone");
            return Err(serde_json::from_slice(header).unwrap());
        };
        assert_eq!(header.part as usize, stored.len());
        let (bytes, rest) = rest.split_at(header.bytes as usize);
        stored.push(Stored { header, bytes: bytes.to_vec() });
        output = rest;
    }
    assert!(stored.iter().all(|one| one.header.parts as usize == stored.len()), "the answer is cut short");
    Ok(stored)
}

fn all(blur: bool, excluded: &[&str]) -> String {
    format!(r#"{{"area":"all","blur":{blur},"bytes_max":200000,"excluded":{excluded:?}}}"#)
}

fn crop(x: i32, y: i32, width: u32, height: u32, excluded: &[&str]) -> String {
    let place = format!(r#""x":{x},"y":{y},"width":{width},"height":{height}"#);
    format!(r#"{{"area":"crop",{place},"blur":true,"bytes_max":200000,"excluded":{excluded:?}}}"#)
}

#[test]
fn without_a_display_it_says_so() {
    for display in [None, Some(""), Some(":54321")] {
        let refusal = asked(helper(display), &all(true, &[])).err().unwrap();
        assert_eq!(refusal.error, Reason::NoDisplay, "{refusal}");
    }
}

#[test]
fn garbage_is_a_bad_request() {
    for garbage in [&b"\n"[..], b"", b"pictures, please\n", b"\xff\xfe\0\n", &[b' '; 1 << 20], br#"{"area":"all"}"#] {
        let mut command = helper(None);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // It may not want to read it all.
        let _ = child.stdin.take().unwrap().write_all(garbage);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(frames(&output.stdout).err().unwrap().error, Reason::BadRequest);
    }
}

#[test]
fn under_wayland_there_is_no_picture_and_never_one_that_could_show_too_much() {
    let Some(server) = Server::xvfb(640, 480) else { return };
    for (variable, value) in [("XDG_SESSION_TYPE", "wayland"), ("WAYLAND_DISPLAY", "wayland-0"), ("WAYLAND_DISPLAY", "compositor-7")] {
        let refusal = |request: &str| {
            let mut command = helper(Some(server.display()));
            command.env(variable, value);
            asked(command, request).err().unwrap().error
        };
        assert_eq!(refusal(&all(true, &[])), Reason::NotSupported);
        assert_eq!(refusal(&all(true, &["diary"])), Reason::NotPermitted);
    }
}

#[test]
fn a_picture_is_as_small_as_was_asked_for_in_both_formats() {
    let Some(server) = Server::xvfb(800, 600) else { return };
    let mut painter = painter::Painter::on(server.display());
    painter.show(painter::noise(800, 600, 3), 0, 0, "noise");
    for (format, width_max, bytes_max) in [("webp", 640, 400_000), ("webp", 640, 30_000), ("jpeg", 320, 400_000), ("jpeg", 800, 30_000)] {
        let request =
            format!(r#"{{"area":"all","blur":false,"width_max":{width_max},"format":"{format}","bytes_max":{bytes_max},"excluded":[]}}"#);
        let stored = asked(helper(Some(server.display())), &request).unwrap();
        let [Stored { header, bytes }] = stored.as_slice() else { panic!("{} pictures", stored.len()) };
        assert!(bytes.len() <= bytes_max && header.width <= width_max, "{header:?}");
        assert_eq!((header.captured_width, header.captured_height, header.blurred), (800, 600, false));
        let known_as = if format == "webp" { image::ImageFormat::WebP } else { image::ImageFormat::Jpeg };
        assert_eq!(image::guess_format(bytes).unwrap(), known_as);
        stored[0].decoded();
    }
}

#[test]
fn a_helper_whose_agent_says_nothing_ends_by_itself() {
    let mut child = helper(None).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // Taken out, so that `wait` doesn't close it.
    let _stdin = child.stdin.take();
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

/// Says why a test can't be run.
fn skipped(why: &str) {
    println!("skipped: {why}");
}

fn is_long() -> bool {
    std::env::var("MUSTER_TEST").is_ok_and(|kind| kind == "long")
}

fn has_program(name: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| Path::new(&folder).join(name).is_file())
}
