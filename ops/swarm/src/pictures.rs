//! Quiet: pictures of screens that never were, as muster-shot makes them: real WebP and JPEG of the usual sizes, a few different ones.

use jpeg_encoder::{ColorType, Encoder};
use muster_mesh::record::{Area, PictureFormat, Screenshot, Why};
use sha2::{Digest, Sha256};
use webp::WebPConfig;

use crate::day::Dice;

const WIDTH: u32 = 1280;
const HEIGHT: u32 = 720;
/// A blurred picture knows no more than so many points across.
const BLUR_WIDTH: usize = 60;
const BLUR_HEIGHT: usize = 34;
/// Enough that a mix-up of two pictures is seen by their bytes, few enough to be drawn in a second.
const PICTURES: u64 = 4;
const WEBP_QUALITY: f32 = 60.0;
const WEBP_METHOD: i32 = 2;
/// On battery, where JPEG is taken for its cheapness.
const JPEG_QUALITY: u8 = 20;

/// What the policy of a swarm says of pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Look {
    /// About 12 KB each.
    Blurred,
    /// About 80 KB each.
    Sharp,
}

/// The pictures that a swarm's agents send, again and again.
#[derive(Debug, Clone)]
pub struct Album {
    look: Look,
    pictures: Vec<Picture>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Picture {
    format: PictureFormat,
    bytes: Vec<u8>,
}

impl Album {
    /// The same on every machine.
    pub fn draw(look: Look) -> Result<Album, EncodeError> {
        let pictures = (0..PICTURES).map(|number| Picture::draw(look, number)).collect::<Result<_, _>>()?;
        Ok(Album { look, pictures })
    }

    /// The one picture of a detailed log.
    pub fn shot(&self, dice: &mut Dice) -> Screenshot {
        let Picture { format, bytes } = &self.pictures[dice.below(self.pictures.len() as u64) as usize];
        let mut group = [0; 16];
        group[..8].copy_from_slice(&dice.draw().to_le_bytes());
        group[8..].copy_from_slice(&dice.draw().to_le_bytes());
        Screenshot {
            area: Area::Monitor,
            width: WIDTH,
            height: HEIGHT,
            format: *format,
            blurred: self.look == Look::Blurred,
            why: Why::DetailedLog,
            sha256: Sha256::digest(bytes).into(),
            group,
            part: 0,
            parts: 1,
            bytes: bytes.clone(),
        }
    }
}

/// An encoder refused what it was given.
#[derive(Debug, thiserror::Error)]
#[error("a picture can't be encoded: {0}")]
pub struct EncodeError(String);

impl Picture {
    fn draw(look: Look, number: u64) -> Result<Picture, EncodeError> {
        let mut dice = Dice::new(number ^ 0x7069_6374);
        let pixels = match look {
            Look::Blurred => blurred(&mut dice),
            Look::Sharp => sharp(&mut dice),
        };
        let format = if number == 0 { PictureFormat::Jpeg } else { PictureFormat::Webp };
        let bytes = match format {
            PictureFormat::Webp => webp(&pixels)?,
            PictureFormat::Jpeg => jpeg(&pixels)?,
        };
        Ok(Picture { format, bytes })
    }
}

fn webp(pixels: &[u8]) -> Result<Vec<u8>, EncodeError> {
    let mut config = WebPConfig::new().map_err(|()| EncodeError("libwebp's configuration".into()))?;
    config.quality = WEBP_QUALITY;
    config.method = WEBP_METHOD;
    let encoded = webp::Encoder::from_rgb(pixels, WIDTH, HEIGHT).encode_advanced(&config);
    encoded.map(|memory| memory.to_vec()).map_err(|error| EncodeError(format!("{error:?}")))
}

fn jpeg(pixels: &[u8]) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = Vec::new();
    let encoder = Encoder::new(&mut bytes, JPEG_QUALITY);
    encoder.encode(pixels, WIDTH as u16, HEIGHT as u16, ColorType::Rgb).map_err(|error| EncodeError(error.to_string()))?;
    Ok(bytes)
}

/// Windows of plain colours with lines of something like type: many small edges, as a screen has them.
fn sharp(dice: &mut Dice) -> Vec<u8> {
    const LINE: usize = 22;
    const GLYPH: usize = 9;
    let (width, height) = (WIDTH as usize, HEIGHT as usize);
    let mut pixels = windows(dice, width, height);
    for top in (30..height - LINE).step_by(LINE) {
        let end = width / 3 + dice.below(width as u64 / 2) as usize;
        for left in (20..end).step_by(GLYPH) {
            // A space now and then.
            if dice.below(6) == 0 {
                continue;
            }
            let strokes = dice.draw();
            for (y, x) in (0..10).flat_map(|y| (0..6).map(move |x| (y, x))) {
                if strokes >> (y * 6 + x) & 1 == 1 {
                    let at = ((top + y) * width + left + x) * 3;
                    pixels[at..at + 3].copy_from_slice(&[30, 30, 40]);
                }
            }
        }
    }
    pixels
}

/// The same, known only by a few points, between which the colours run.
fn blurred(dice: &mut Dice) -> Vec<u8> {
    let mut points = windows(dice, BLUR_WIDTH, BLUR_HEIGHT);
    points.iter_mut().for_each(|value| *value = value.saturating_sub(dice.below(24) as u8));
    let (width, height) = (WIDTH as usize, HEIGHT as usize);
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        let (row, below) = (y * (BLUR_HEIGHT - 1) / height, (y * (BLUR_HEIGHT - 1) % height) as u32);
        for x in 0..width {
            let (column, beside) = (x * (BLUR_WIDTH - 1) / width, (x * (BLUR_WIDTH - 1) % width) as u32);
            for channel in 0..3 {
                let point = |row: usize, column: usize| u32::from(points[(row * BLUR_WIDTH + column) * 3 + channel]);
                let along = |row: usize| point(row, column) * (WIDTH - beside) + point(row, column + 1) * beside;
                let between = u64::from(along(row)) * u64::from(HEIGHT - below) + u64::from(along(row + 1)) * u64::from(below);
                pixels.push((between / u64::from(WIDTH * HEIGHT)) as u8);
            }
        }
    }
    pixels
}

/// A background and some windows on it.
fn windows(dice: &mut Dice, width: usize, height: usize) -> Vec<u8> {
    let mut pixels = [70, 90, 120].repeat(width * height);
    for _ in 0..5 {
        let colour = [0; 3].map(|_| 150 + dice.below(106) as u8);
        let (left, top) = (dice.below(width as u64 / 2) as usize, dice.below(height as u64 / 2) as usize);
        let (right, bottom) = (left + width / 3 + width / 9, top + height / 3 + height / 9);
        for y in top..bottom.min(height) {
            for x in left..right.min(width) {
                pixels[(y * width + x) * 3..][..3].copy_from_slice(&colour);
            }
        }
    }
    pixels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(look: Look) -> Vec<usize> {
        let album = Album::draw(look).unwrap();
        for Picture { format, bytes } in &album.pictures {
            let image = match format {
                PictureFormat::Webp => image::load_from_memory_with_format(bytes, image::ImageFormat::WebP).unwrap(),
                PictureFormat::Jpeg => image::load_from_memory_with_format(bytes, image::ImageFormat::Jpeg).unwrap(),
            };
            assert_eq!((image.width(), image.height()), (WIDTH, HEIGHT));
        }
        album.pictures.iter().map(|picture| picture.bytes.len()).collect()
    }

    #[test]
    fn pictures_are_real_and_have_the_usual_sizes() {
        let (blurred, sharp) = (sizes(Look::Blurred), sizes(Look::Sharp));
        let within = |sizes: &[usize], from, to| sizes.iter().all(|bytes| (from..to).contains(bytes));
        assert!(within(&blurred, 8_000, 24_000) && within(&sharp, 60_000, 130_000), "{blurred:?}, {sharp:?}");
    }

    #[test]
    fn no_two_pictures_are_the_same_and_the_same_dice_give_the_same_shot() {
        let album = Album::draw(Look::Blurred).unwrap();
        for (place, picture) in album.pictures.iter().enumerate() {
            assert!(!album.pictures[..place].contains(picture));
        }
        let shot = |seed| album.shot(&mut Dice::new(seed));
        assert_eq!(shot(1), shot(1));
        assert_ne!(shot(1).group, shot(2).group);
        assert_eq!(shot(1).sha256, <[u8; 32]>::from(Sha256::digest(shot(1).bytes)));
    }
}
