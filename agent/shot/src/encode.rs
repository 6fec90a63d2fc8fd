//! Quiet: a picture as bytes, no more than were asked for. Nothing but the pixels is in them: no EXIF, no XMP, no colour profile.

use fast_image_resize::FilterType;
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use webp::WebPConfig;

use crate::{
    answer::{Reason, Refusal},
    picture::Picture,
    request::Format,
};

/// Tried in this order. Below the last one a smaller picture shows more.
const QUALITIES: [u8; 3] = [60, 45, 30];
/// libwebp's own scale from fast (0) to small (6).
const WEBP_METHOD: i32 = 2;
/// A picture that doesn't fit becomes smaller by this much, until it does …
const SMALLER: (u32, u32) = (3, 4);
/// … or has no side above this: that always fits where [`crate::request::Request`] allows `bytes_max`.
const SIDE_MIN: u32 = 16;

pub struct Encoded {
    pub bytes: Vec<u8>,
    /// Of the picture in the bytes.
    pub width: u32,
    pub height: u32,
}

pub fn encode(picture: &Picture, format: Format, bytes_max: u32) -> Result<Encoded, Refusal> {
    for quality in QUALITIES {
        if let Some(encoded) = fitting(picture, format, quality, bytes_max)? {
            return Ok(encoded);
        }
    }
    let (mut width, mut height) = (picture.width(), picture.height());
    while width.max(height) > SIDE_MIN {
        (width, height) = (smaller(width), smaller(height));
        let picture = picture.scaled(width, height, FilterType::Lanczos3);
        if let Some(encoded) = fitting(&picture, format, QUALITIES[QUALITIES.len() - 1], bytes_max)? {
            return Ok(encoded);
        }
    }
    Err(Refusal::new(Reason::NotSupported, format!("no picture fits {bytes_max} bytes")))
}

fn smaller(side: u32) -> u32 {
    (side * SMALLER.0 / SMALLER.1).max(1)
}

/// None: it is too long.
fn fitting(picture: &Picture, format: Format, quality: u8, bytes_max: u32) -> Result<Option<Encoded>, Refusal> {
    let bytes = match format {
        Format::Webp => webp(picture, quality)?,
        Format::Jpeg => jpeg(picture, quality)?,
    };
    let fits = bytes.len() <= bytes_max as usize;
    Ok(fits.then_some(Encoded { bytes, width: picture.width(), height: picture.height() }))
}

fn webp(picture: &Picture, quality: u8) -> Result<Vec<u8>, Refusal> {
    let mut config = WebPConfig::new().map_err(|()| failed("WebP", "its defaults are missing"))?;
    config.method = WEBP_METHOD;
    config.quality = f32::from(quality);
    let colours = picture.colours();
    let encoder = webp::Encoder::from_rgb(&colours, picture.width(), picture.height());
    let bytes = encoder.encode_advanced(&config).map_err(|error| failed("WebP", &format!("{error:?}")))?;
    Ok(bytes.to_vec())
}

fn jpeg(picture: &Picture, quality: u8) -> Result<Vec<u8>, Refusal> {
    let side = |side: u32| u16::try_from(side).map_err(|_| failed("JPEG", "it is too large"));
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, quality);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    // Optimised tables together with this sampling came out as garbage elsewhere.
    encoder.set_optimized_huffman_tables(false);
    let (width, height) = (side(picture.width())?, side(picture.height())?);
    encoder.encode(&picture.colours(), width, height, ColorType::Rgb).map_err(|error| failed("JPEG", &error.to_string()))?;
    Ok(bytes)
}

fn failed(format: &str, why: &str) -> Refusal {
    Refusal::new(Reason::NotSupported, format!("the picture can't be made a {format}: {why}"))
}

#[cfg(test)]
mod tests {
    use image::{ImageFormat, RgbImage};
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    const FORMATS: [(Format, ImageFormat); 2] = [(Format::Webp, ImageFormat::WebP), (Format::Jpeg, ImageFormat::Jpeg)];

    /// Smooth in both directions, with a hard edge, so that a wrong row, column or colour is seen.
    fn painting(width: u32, height: u32) -> Picture {
        let pixel = move |x: u32, y: u32| {
            let edge = if x > width / 2 && y > height / 3 { 90 } else { 0 };
            [(x * 160 / width) as u8 + edge, (y * 160 / height) as u8 + edge, 200 - (x * 100 / width) as u8, 255]
        };
        let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y))).collect();
        Picture::new(width, height, pixels).unwrap()
    }

    fn noise(width: u32, height: u32) -> Picture {
        let mut chance = StdRng::seed_from_u64(11);
        let mut pixels = vec![0; width as usize * height as usize * 4];
        chance.fill(pixels.as_mut_slice());
        Picture::new(width, height, pixels).unwrap()
    }

    fn decoded(encoded: &Encoded, format: ImageFormat) -> RgbImage {
        assert_eq!(image::guess_format(&encoded.bytes).unwrap(), format);
        let decoded = image::load_from_memory_with_format(&encoded.bytes, format).unwrap().to_rgb8();
        assert_eq!(decoded.dimensions(), (encoded.width, encoded.height));
        decoded
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same_picture() {
        for (format, known_as) in FORMATS {
            // Sides that aren't multiples of the encoders' blocks, and single pixels.
            for (width, height) in [(640, 360), (333, 251), (17, 1), (1, 1)] {
                let picture = painting(width, height);
                let decoded = decoded(&encode(&picture, format, 1 << 20).unwrap(), known_as);
                let differs = |(pixel, of_picture): (&image::Rgb<u8>, &[u8; 4])| -> u64 {
                    pixel.0.iter().zip(of_picture).map(|(a, b)| u64::from(a.abs_diff(*b))).sum()
                };
                let sum: u64 = decoded.pixels().zip(picture.rows().flatten()).map(differs).sum();
                let mean = sum as f64 / f64::from(width * height * 3);
                assert!(mean < 4.0, "{known_as:?} {width}x{height}: a value is {mean} off in the mean");
            }
        }
    }

    #[test]
    fn what_is_too_long_becomes_coarser_then_smaller_until_it_fits() {
        for (format, known_as) in FORMATS {
            let picture = noise(400, 300);
            let whole = encode(&picture, format, 1 << 20).unwrap();
            assert_eq!((whole.width, whole.height), (400, 300));
            let coarser = encode(&picture, format, whole.bytes.len() as u32 - 1).unwrap();
            assert_eq!((coarser.width, coarser.height), (400, 300));
            for bytes_max in [whole.bytes.len() as u32 / 4, 20_000, 4_096] {
                let smaller = encode(&picture, format, bytes_max).unwrap();
                assert!(smaller.bytes.len() <= bytes_max as usize && smaller.width < 400, "{known_as:?} {bytes_max}");
                decoded(&smaller, known_as);
            }
        }
    }

    #[test]
    fn the_smallest_picture_fits_the_smallest_bound() {
        for (format, known_as) in FORMATS {
            for (width, height) in [(16, 16), (5_000, 20), (20, 5_000)] {
                let encoded = encode(&noise(width, height), format, 4_096).unwrap();
                decoded(&encoded, known_as);
            }
        }
    }

    #[test]
    fn there_is_nothing_but_pixels_in_it() {
        let webp = encode(&painting(320, 200), Format::Webp, 1 << 20).unwrap().bytes;
        assert_eq!((&webp[..4], &webp[8..12]), (&b"RIFF"[..], &b"WEBP"[..]));
        // One chunk, the pixels, up to the end: metadata would be chunks of their own.
        assert_eq!(&webp[12..16], b"VP8 ");
        let length = u32::from_le_bytes(webp[16..20].try_into().unwrap());
        assert_eq!(20 + length.next_multiple_of(2) as usize, webp.len());

        let jpeg = encode(&painting(320, 200), Format::Jpeg, 1 << 20).unwrap().bytes;
        let mut at = 2;
        let mut kinds = Vec::new();
        while jpeg[at + 1] != 0xda {
            assert_eq!(jpeg[at], 0xff);
            kinds.push(jpeg[at + 1]);
            at += 2 + usize::from(u16::from_be_bytes(jpeg[at + 2..at + 4].try_into().unwrap()));
        }
        // JFIF's head, tables and the frame; no APP1 to APP15, no comment.
        let plain = |kind: &u8| [0xe0, 0xdb, 0xc0, 0xc4].contains(kind);
        assert!(kinds.iter().all(plain), "{kinds:x?}");
    }
}
