//! Blocking: whether type can be read in what is stored, by tesseract on enlarged pictures. What it reads of the capture shows that it can.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use ab_glyph::FontVec;
use fast_image_resize::{
    FilterType, ResizeAlg, ResizeOptions, Resizer,
    images::{TypedImage, TypedImageRef},
    pixels::U8,
};
use image::{DynamicImage, GrayImage, RgbaImage};

use crate::{
    all, asked, crop, has_program, helper, is_long,
    painter::{self, Painter},
    server::Server,
    skipped,
};

/// Enlarged so many times, and no side longer: beyond it tesseract reads no more, only later.
const ENLARGED: u32 = 8;
const SIDE_MAX: u32 = 8_000;

const SIZES: [u32; 7] = [12, 16, 20, 24, 32, 48, 64];

/// A part of a screen, with type on it.
struct Scene {
    screen: (u32, u32),
    /// The active window, if not all is captured.
    window: Option<(u32, u32)>,
    /// Of the one picture in a short run: the largest type that there is room for.
    size: u32,
}

const WINDOW: Scene = Scene { screen: (1_920, 1_080), window: Some((480, 700)), size: 48 };

#[test]
fn type_on_a_screen_of_1080_lines_cant_be_read_in_what_is_stored() {
    nothing_can_be_read(&Scene { screen: (1_920, 1_080), window: None, size: 64 });
}

#[test]
fn type_on_a_portrait_screen_cant_be_read_in_what_is_stored() {
    nothing_can_be_read(&Scene { screen: (1_080, 1_920), window: None, size: 64 });
}

#[test]
fn type_on_a_4k_screen_cant_be_read_in_what_is_stored() {
    nothing_can_be_read(&Scene { screen: (3_840, 2_160), window: None, size: 64 });
}

#[test]
fn type_in_a_small_window_cant_be_read_in_what_is_stored() {
    nothing_can_be_read(&WINDOW);
}

/// So what it doesn't read isn't read only because it can't.
#[test]
fn the_scanner_reads_type_in_a_blur_half_as_strong() {
    let Some(font) = font() else { return };
    let (width, height) = WINDOW.window.unwrap();
    let words = painter::words(2);
    let page = painter::page(&font, &words, WINDOW.size as f32, width, height).unwrap();
    // 120 pixels a side are kept, and small cells are allowed.
    let gray = DynamicImage::ImageRgba8(page).to_luma8();
    let kept = scaled(&gray, width * 120 / height, 120, FilterType::Box);
    let weaker = scaled(&kept, width, height, FilterType::Bilinear);
    let read = found(&words, &read(&DynamicImage::ImageLuma8(weaker).to_rgba8()));
    assert!(read.len() >= 5, "{read:?} of {words:?}");
}

#[test]
fn with_blur_off_the_same_scanner_reads_it() {
    let Some(font) = font() else { return };
    let Some(server) = Server::xvfb(1_280, 720) else { return };
    let words = painter::words(1);
    let mut painter = Painter::on(server.display());
    painter.show(painter::page(&font, &words, 24.0, 1_280, 720).unwrap(), 0, 0, "page");
    let stored = asked(helper(Some(server.display())), &all(false, &[])).unwrap();
    let read = found(&words, &read(&stored[0].decoded()));
    assert!(read.len() >= 9, "{read:?} of {words:?}");
}

/// None: something is missing, and it was said.
fn font() -> Option<FontVec> {
    let font = painter::font().filter(|_| has_program("tesseract"));
    if font.is_none() {
        skipped("tesseract or the typeface DejaVu isn't installed");
    }
    font
}

fn nothing_can_be_read(scene: &Scene) {
    let Some(font) = font() else { return };
    let Some(server) = Server::xvfb(scene.screen.0, scene.screen.1) else { return };
    let sizes = if is_long() { SIZES.to_vec() } else { vec![scene.size] };
    for size in sizes {
        nothing_of_size_can_be_read(&server, &font, scene, size);
    }
}

/// Ten words on the screen or in the window; none of them in the picture.
fn nothing_of_size_can_be_read(server: &Server, font: &FontVec, scene: &Scene, size: u32) {
    let (width, height) = scene.window.unwrap_or(scene.screen);
    let words = painter::words(u64::from(size) * 10_000 + u64::from(width));
    let name = format!("{size} px on {width}x{height}");
    let Some(page) = painter::page(font, &words, size as f32, width, height) else {
        // There is no room for ten words.
        return assert!(size > scene.size, "{name}");
    };
    let (x, y) = if scene.window.is_some() { (301, 203) } else { (0, 0) };
    let mut painter = Painter::on(server.display());
    painter.show(page, x, y, "page");

    let control = found(&words, &read(&painter.captured(x, y, width as u16, height as u16)));
    assert!(control.len() >= 9, "{name}: of the capture only {control:?} of {words:?} can be read");

    let request = if scene.window.is_some() { crop(x.into(), y.into(), width, height, &[]) } else { all(true, &[]) };
    let stored = asked(helper(Some(server.display())), &request).unwrap();
    assert!(stored[0].header.blurred);
    let text = read(&stored[0].decoded());
    assert_eq!(found(&words, &text), Vec::<&str>::new(), "{name}: {text}");
}

fn found<'a>(words: &[&'a str], text: &str) -> Vec<&'a str> {
    words.iter().copied().filter(|word| text.contains(word)).collect()
}

/// What tesseract reads in it, in small letters.
fn read(picture: &RgbaImage) -> String {
    let enlarged = enlarged(&DynamicImage::ImageRgba8(picture.clone()).to_luma8());
    let mut command = Command::new("tesseract");
    command.args(["stdin", "stdout", "-l", "eng", "--psm", "11"]).env("OMP_THREAD_LIMIT", "1");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "P5 {} {} 255", enlarged.width(), enlarged.height()).unwrap();
    stdin.write_all(enlarged.as_raw()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "tesseract: {:?}", output.status);
    String::from_utf8_lossy(&output.stdout).to_lowercase()
}

fn enlarged(picture: &GrayImage) -> GrayImage {
    let (width, height) = picture.dimensions();
    let factor = f64::from(ENLARGED).min(f64::from(SIDE_MAX) / f64::from(width.max(height)));
    let side = |side: u32| (f64::from(side) * factor) as u32;
    scaled(picture, side(width), side(height), FilterType::CatmullRom)
}

fn scaled(picture: &GrayImage, width: u32, height: u32, filter: FilterType) -> GrayImage {
    let mut pixels = vec![0; width as usize * height as usize];
    let source = TypedImageRef::<U8>::from_buffer(picture.width(), picture.height(), picture.as_raw()).unwrap();
    let mut target = TypedImage::<U8>::from_buffer(width, height, &mut pixels).unwrap();
    Resizer::new().resize_typed(&source, &mut target, &ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter))).unwrap();
    GrayImage::from_raw(width, height, pixels).unwrap()
}
