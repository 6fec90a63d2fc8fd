//! Quiet: whether a picture is what its record says, and nothing else.
//!
//! What is kept is served to people's browsers one day, so that a file which another program reads as a page, a script or an archive never
//! becomes a row. Only the plainest forms pass: one WebP frame without the extended header, or a JPEG of tables, frame and scan. Metadata,
//! colour profiles, thumbnails and comments have no business here: the helper writes none.
//!
//! Nothing is decoded. A decoder over strangers' bytes is the widest door that a hub could have; what it would find besides, pixels that make
//! no picture, is what the agent sent, as the digest says, and harms no browser more than any picture of the web.

use aws_lc_rs::digest::{SHA256, digest};
use muster_mesh::record::{PictureFormat, Screenshot};

/// The longest side; a monitor has a quarter of it.
pub const SIDE_MAX: u32 = 16 * 1_024;
/// What a browser may have to allocate for it: a header of a few bytes can ask for a gibibyte.
pub const DECODED_BYTES_MAX: u64 = 128 << 20;

/// Why a picture is held unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Unfit {
    #[error("its bytes don't have the SHA-256 that its record says")]
    Digest,
    #[error("it isn't of the type that its record says")]
    Type,
    #[error("its header doesn't have the size that its record says")]
    Size,
    #[error("its header asks for more pixels than any screen has")]
    TooLarge,
    #[error("it ends too early, or its parts don't fit together")]
    Structure,
    #[error("something stands behind its end")]
    BehindEnd,
    #[error("it has metadata, a second frame or another part that none of ours has")]
    Extras,
    #[error("another program would read it as something else")]
    Disguise,
    #[error("a batch has one picture")]
    Several,
}

impl Unfit {
    /// The name that metrics use.
    pub fn name(self) -> &'static str {
        match self {
            Unfit::Digest => "digest",
            Unfit::Type => "type",
            Unfit::Size => "size",
            Unfit::TooLarge => "too_large",
            Unfit::Structure => "structure",
            Unfit::BehindEnd => "behind_end",
            Unfit::Extras => "extras",
            Unfit::Disguise => "disguise",
            Unfit::Several => "several",
        }
    }
}

/// The type's name in HTTP.
pub fn content_type(format: PictureFormat) -> &'static str {
    match format {
        PictureFormat::Webp => "image/webp",
        PictureFormat::Jpeg => "image/jpeg",
    }
}

/// Checks a picture from its cheapest property to its dearest.
pub fn check(picture: &Screenshot) -> Result<(), Unfit> {
    let Screenshot { width, height, format, sha256, bytes, .. } = picture;
    let (found_width, found_height) = match format {
        PictureFormat::Webp => webp_size(bytes)?,
        PictureFormat::Jpeg => jpeg_size(bytes)?,
    };
    let decoded_bytes = u64::from(found_width) * u64::from(found_height) * 4;
    if found_width > SIDE_MAX || found_height > SIDE_MAX || decoded_bytes > DECODED_BYTES_MAX {
        return Err(Unfit::TooLarge);
    }
    if (found_width, found_height) != (*width, *height) || decoded_bytes == 0 {
        return Err(Unfit::Size);
    }
    if is_disguised(bytes) {
        return Err(Unfit::Disguise);
    }
    if digest(&SHA256, bytes).as_ref() != sha256 { Err(Unfit::Digest) } else { Ok(()) }
}

// --- WebP ---

const RIFF_HEADER: usize = 12;
const CHUNK_HEADER: usize = 8;

/// `RIFF size WEBP`, then exactly one chunk: `VP8 ` (lossy) or `VP8L` (lossless).
fn webp_size(bytes: &[u8]) -> Result<(u32, u32), Unfit> {
    if bytes.get(..4) != Some(b"RIFF") || bytes.get(8..RIFF_HEADER) != Some(b"WEBP") {
        return Err(Unfit::Type);
    }
    end_is(bytes, 8 + u64::from(le_u32(bytes, 4)?))?;
    let kind = bytes.get(RIFF_HEADER..RIFF_HEADER + 4).ok_or(Unfit::Structure)?;
    let length = u64::from(le_u32(bytes, RIFF_HEADER + 4)?);
    let frame = &bytes[RIFF_HEADER + CHUNK_HEADER..];
    if !matches!(kind, b"VP8 " | b"VP8L") {
        return Err(Unfit::Extras);
    }
    match (frame.len() as u64).checked_sub(length) {
        Some(0) if length % 2 == 0 => {}
        Some(1) if length % 2 == 1 && frame.last() == Some(&0) => {}
        Some(_) => return Err(Unfit::Extras),
        None => return Err(Unfit::Structure),
    }
    if kind == b"VP8 " { vp8_size(frame) } else { vp8l_size(frame) }
}

/// Frame tag and start code, then 14 bits of each side.
const VP8_HEADER: usize = 10;
/// Profiles of the format; the frame tag has room for more.
const VP8_PROFILE_MAX: u32 = 3;

/// A key frame that is to be shown, whose first partition lies inside it.
fn vp8_size(frame: &[u8]) -> Result<(u32, u32), Unfit> {
    let Some(&[t0, t1, t2, 0x9d, 0x01, 0x2a, w0, w1, h0, h1]) = frame.first_chunk::<VP8_HEADER>() else { return Err(Unfit::Structure) };
    // Not a key frame: 1 bit; profile: 3; shown: 1; length of the first partition: 19.
    let tag = u32::from_le_bytes([t0, t1, t2, 0]);
    let (is_between, profile, is_shown, first_partition) = (tag & 1 != 0, tag >> 1 & 7, tag >> 4 & 1 != 0, tag >> 5);
    let room = frame.len() - VP8_HEADER;
    if is_between || profile > VP8_PROFILE_MAX || !is_shown || first_partition == 0 || first_partition as usize > room {
        return Err(Unfit::Structure);
    }
    let side = |low, high| u32::from(u16::from_le_bytes([low, high]) & 0x3fff);
    Ok((side(w0, w1), side(h0, h1)))
}

/// Signature, then 14 bits of each side less one, alpha, version.
fn vp8l_size(frame: &[u8]) -> Result<(u32, u32), Unfit> {
    let Some(&[0x2f, a, b, c, d]) = frame.first_chunk() else { return Err(Unfit::Structure) };
    let bits = u32::from_le_bytes([a, b, c, d]);
    if bits >> 29 != 0 {
        return Err(Unfit::Structure);
    }
    Ok(((bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1))
}

fn le_u32(bytes: &[u8], at: usize) -> Result<u32, Unfit> {
    let four = bytes.get(at..).and_then(<[u8]>::first_chunk).ok_or(Unfit::Structure)?;
    Ok(u32::from_le_bytes(*four))
}

fn end_is(bytes: &[u8], end: u64) -> Result<(), Unfit> {
    match (bytes.len() as u64).cmp(&end) {
        std::cmp::Ordering::Less => Err(Unfit::Structure),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(Unfit::BehindEnd),
    }
}

// --- JPEG ---

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const APP0: u8 = 0xe0;
/// `JFIF`, version, density, and a thumbnail of 0 by 0.
const JFIF_BYTES: usize = 14;

/// What a frame's header has before its components, and for each of them: precision, sides, how many; identity, sampling, table.
const FRAME_FIXED: usize = 6;
const FRAME_COMPONENT: usize = 3;

/// SOI, segments, at least one scan with its data, EOI as the last two bytes.
fn jpeg_size(bytes: &[u8]) -> Result<(u32, u32), Unfit> {
    if bytes.get(..3) != Some(&[0xff, SOI, 0xff]) {
        return Err(Unfit::Type);
    }
    let (mut at, mut size, mut is_scanned) = (2, None, false);
    loop {
        let Some(&[0xff, marker]) = bytes.get(at..).and_then(<[u8]>::first_chunk) else { return Err(Unfit::Structure) };
        at += 2;
        if marker == EOI {
            end_is(bytes, at as u64)?;
            return size.filter(|_| is_scanned).ok_or(Unfit::Structure);
        }
        let length = usize::from(be_u16(bytes, at)?);
        let segment = bytes.get(at + 2..at + length.max(2)).ok_or(Unfit::Structure)?;
        at += length.max(2);
        match marker {
            // Quantisation and Huffman tables, restart interval.
            0xdb | 0xc4 | 0xdd => {}
            APP0 if segment.len() == JFIF_BYTES && segment.starts_with(b"JFIF\0") && segment.ends_with(&[0, 0]) => {}
            // Baseline, extended, progressive; one frame.
            0xc0..=0xc2 if size.is_none() => size = Some(frame_size(segment)?),
            SOS if size.is_some() => {
                let end = scan_end(bytes, at);
                is_scanned |= end > at;
                at = end;
            }
            0xe0..=0xef | 0xfe => return Err(Unfit::Extras),
            _ => return Err(Unfit::Structure),
        }
    }
}

/// Eight bits a sample, grey or three colours, and nothing behind its components.
fn frame_size(segment: &[u8]) -> Result<(u32, u32), Unfit> {
    let Some(&[8, h0, h1, w0, w1, components @ (1 | 3)]) = segment.first_chunk::<FRAME_FIXED>() else { return Err(Unfit::Structure) };
    if segment.len() != FRAME_FIXED + FRAME_COMPONENT * usize::from(components) {
        return Err(Unfit::Structure);
    }
    Ok((u32::from(u16::from_be_bytes([w0, w1])), u32::from(u16::from_be_bytes([h0, h1]))))
}

/// Behind a scan's data: the next marker that isn't a stuffed byte or a restart.
fn scan_end(bytes: &[u8], from: usize) -> usize {
    let is_marker = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0x00 | 0xd0..=0xd7);
    let rest = bytes.get(from..).unwrap_or_default();
    from + rest.windows(2).position(is_marker).unwrap_or(rest.len())
}

fn be_u16(bytes: &[u8], at: usize) -> Result<u16, Unfit> {
    let two = bytes.get(at..).and_then(<[u8]>::first_chunk).ok_or(Unfit::Structure)?;
    Ok(u16::from_be_bytes(*two))
}

// --- what else it could be taken for ---

/// Readers of PDF look for its head this far.
const PDF_HEAD_WITHIN: usize = 1_024;
const ZIP_END: &[u8] = b"PK\x05\x06";
const ZIP_END_BYTES: usize = 22;
/// Long enough that compressed pixels don't hold one by chance once in a million pictures.
const TAGS: [&[u8]; 7] = [b"<script", b"<!doctype", b"<svg xmlns", b"<html>", b"<html ", b"<?xml ", b"<?php "];

/// Whether a sound picture holds, within its own data, what makes it a document, a page or an archive as well.
fn is_disguised(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(PDF_HEAD_WITHIN)];
    contains(head, b"%PDF-") || has_tag(bytes) || is_zip(bytes)
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

fn has_tag(bytes: &[u8]) -> bool {
    let tags_at = |at: usize| TAGS.iter().any(|tag| bytes[at..].get(..tag.len()).is_some_and(|found| found.eq_ignore_ascii_case(tag)));
    bytes.iter().enumerate().filter(|(_, byte)| **byte == b'<').any(|(at, _)| tags_at(at))
}

/// An archive is found from its end: a record whose comment reaches exactly there (or to a chunk's padding before it).
fn is_zip(bytes: &[u8]) -> bool {
    let ends_well = |at: usize| {
        let Some(&[low, high]) = bytes.get(at + ZIP_END_BYTES - 2..).and_then(<[u8]>::first_chunk) else { return false };
        let end = at + ZIP_END_BYTES + usize::from(u16::from_le_bytes([low, high]));
        // JPEG's own end, or one byte of padding, may stand behind it.
        (end..=end + 2).contains(&bytes.len())
    };
    bytes.windows(ZIP_END.len()).enumerate().any(|(at, window)| window == ZIP_END && ends_well(at))
}

#[cfg(test)]
mod tests {
    use image::{ExtendedColorType, ImageEncoder, codecs};
    use muster_mesh::record::{Area, Why};

    use super::*;

    const WIDTH: u32 = 64;
    const HEIGHT: u32 = 40;

    #[test]
    fn sound_pictures_of_both_types_pass() {
        assert_eq!(check(&of(PictureFormat::Webp, webp())), Ok(()));
        assert_eq!(check(&of(PictureFormat::Webp, lossy())), Ok(()));
        assert_eq!(check(&of(PictureFormat::Jpeg, jpeg())), Ok(()));
    }

    #[test]
    fn whatever_is_not_the_plain_picture_of_its_record_is_unfit() {
        use PictureFormat::{Jpeg, Webp};
        let cases: Vec<(&str, PictureFormat, Vec<u8>, Unfit)> = vec![
            ("nothing", Webp, vec![], Unfit::Type),
            ("a page", Webp, b"<html><script>alert(1)</script></html>".to_vec(), Unfit::Type),
            ("a drawing", Webp, b"<svg xmlns=\"http://www.w3.org/2000/svg\" onload=\"alert(1)\"/>".to_vec(), Unfit::Type),
            ("a document", Jpeg, b"%PDF-1.7\n%%EOF".to_vec(), Unfit::Type),
            ("an archive", Jpeg, zip(), Unfit::Type),
            ("a GIF with a script", Jpeg, b"GIF89a/*\x01\x00\x01\x00\x80\x00\x00*/=1;alert(1)".to_vec(), Unfit::Type),
            ("a JPEG that says WebP", Webp, jpeg(), Unfit::Type),
            ("a WebP that says JPEG", Jpeg, webp(), Unfit::Type),
            ("a WebP cut at its half", Webp, half(webp()), Unfit::Structure),
            ("a JPEG cut at its half", Jpeg, half(jpeg()), Unfit::Structure),
            ("a JPEG without its end", Jpeg, without_last(jpeg(), 2), Unfit::Structure),
            ("an archive behind a WebP", Webp, [lossy(), zip()].concat(), Unfit::BehindEnd),
            ("an archive behind a JPEG", Jpeg, [jpeg(), zip()].concat(), Unfit::BehindEnd),
            ("a page behind a JPEG", Jpeg, [jpeg(), b"<script>alert(1)</script>".to_vec()].concat(), Unfit::BehindEnd),
            ("a second JPEG", Jpeg, [jpeg(), jpeg()].concat(), Unfit::BehindEnd),
            ("one byte behind a WebP", Webp, [webp(), vec![0]].concat(), Unfit::BehindEnd),
            ("EXIF in a WebP", Webp, with_chunk(lossy(), b"EXIF", b"Exif\0\0II*\0"), Unfit::Extras),
            ("a document in a chunk of a WebP", Webp, with_chunk(lossy(), b"XMP ", b"%PDF-1.7"), Unfit::Extras),
            ("an extended WebP", Webp, extended(lossy()), Unfit::Extras),
            ("EXIF in a JPEG", Jpeg, with_segment(jpeg(), 0xe1, b"Exif\0\0II*\0"), Unfit::Extras),
            ("a page in a JPEG's comment", Jpeg, with_segment(jpeg(), 0xfe, b"<script>alert(1)</script>"), Unfit::Extras),
            ("a colour profile", Jpeg, with_segment(jpeg(), 0xe2, b"ICC_PROFILE\0\x01\x01"), Unfit::Extras),
            ("a document in a JPEG's table", Jpeg, with_segment(jpeg(), 0xdb, b"%PDF-1.7"), Unfit::Disguise),
            ("an archive inside a WebP's frame", Webp, in_frame(lossy(), &zip()), Unfit::Disguise),
            ("a page inside a WebP's frame", Webp, in_frame(lossy(), b"<ScRiPt>alert(1)"), Unfit::Disguise),
            ("a partition that is longer than its frame", Webp, with_tag(lossy(), |tag| tag | 0xff_ffe0), Unfit::Structure),
            ("a frame cut short and closed again", Webp, riff(b"VP8 ", &frame(&lossy())[..40]), Unfit::Structure),
            ("a frame that needs another before it", Webp, with_tag(lossy(), |tag| tag | 1), Unfit::Structure),
            ("a frame that isn't to be shown", Webp, with_tag(lossy(), |tag| tag & !0x10), Unfit::Structure),
            ("a frame of no known profile", Webp, with_tag(lossy(), |tag| tag | 0xe), Unfit::Structure),
            ("a frame without its start code", Webp, riff(b"VP8 ", &[0; 64]), Unfit::Structure),
            ("a JPEG without a scan", Jpeg, without_scan(jpeg()), Unfit::Structure),
            ("a JPEG whose scan is empty", Jpeg, with_empty_scan(jpeg()), Unfit::Structure),
            ("a JPEG of 12 bits a sample", Jpeg, with_frame_byte(jpeg(), 0, 12), Unfit::Structure),
            ("a JPEG of more colours than its frame names", Jpeg, with_frame_byte(jpeg(), 5, 4), Unfit::Structure),
        ];
        for (what, format, bytes, unfit) in cases {
            assert_eq!(check(&of(format, bytes)), Err(unfit), "{what}");
        }
    }

    #[test]
    fn the_record_and_the_header_agree_or_it_is_unfit() {
        let good = of(PictureFormat::Webp, webp());
        assert_eq!(check(&Screenshot { width: WIDTH + 1, ..good.clone() }), Err(Unfit::Size));
        assert_eq!(check(&Screenshot { height: HEIGHT - 1, ..good.clone() }), Err(Unfit::Size));
        assert_eq!(check(&Screenshot { sha256: [7; 32], ..good }), Err(Unfit::Digest));
        let mut jpeg = of(PictureFormat::Jpeg, jpeg());
        jpeg.height = 0;
        assert_eq!(check(&jpeg), Err(Unfit::Size));
    }

    /// A header of a few bytes that asks for a gibibyte of whoever opens it.
    #[test]
    fn a_header_that_asks_for_more_than_may_be_decoded_is_unfit() {
        let lossless = |width: u32, height: u32| {
            let bits = (width - 1) | ((height - 1) << 14);
            Screenshot { width, height, ..of(PictureFormat::Webp, riff(b"VP8L", &[&[0x2f][..], &bits.to_le_bytes(), &[0; 9]].concat())) }
        };
        assert_eq!(check(&lossless(16_384, 16_384)), Err(Unfit::TooLarge));
        assert_eq!(check(&lossless(16_384, 2_049)), Err(Unfit::TooLarge));
        // Within the bound it may be a picture without sense: it is what its agent sent.
        assert_eq!(check(&lossless(16_384, 2)), Ok(()));
        let mut bomb = jpeg();
        let frame = bomb.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        bomb[frame + 5..frame + 9].copy_from_slice(&[0xff; 4]);
        assert_eq!(check(&Screenshot { width: 65_535, height: 65_535, ..of(PictureFormat::Jpeg, bomb) }), Err(Unfit::TooLarge));
    }

    #[test]
    fn no_byte_that_is_changed_or_cut_makes_it_panic() {
        for (format, good) in [(PictureFormat::Webp, lossy()), (PictureFormat::Webp, webp()), (PictureFormat::Jpeg, jpeg())] {
            for at in 0..good.len() {
                assert!(check(&of(format, good[..at].to_vec())).is_err(), "cut at {at}");
                let mut changed = good.clone();
                changed[at] ^= 0x55;
                let _ = check(&of(format, changed));
            }
        }
    }

    fn of(format: PictureFormat, bytes: Vec<u8>) -> Screenshot {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest(&SHA256, &bytes).as_ref());
        Screenshot {
            area: Area::Monitor,
            width: WIDTH,
            height: HEIGHT,
            format,
            blurred: true,
            why: Why::Interval,
            sha256,
            group: [0; 16],
            part: 0,
            parts: 1,
            bytes,
        }
    }

    fn pixels() -> Vec<u8> {
        (0..WIDTH * HEIGHT).flat_map(|i| [(i % WIDTH * 4) as u8, (i / WIDTH * 6) as u8, (i % 251) as u8]).collect()
    }

    fn webp() -> Vec<u8> {
        let mut bytes = Vec::new();
        codecs::webp::WebPEncoder::new_lossless(&mut bytes).encode(&pixels(), WIDTH, HEIGHT, ExtendedColorType::Rgb8).unwrap();
        bytes
    }

    /// 64 by 40, by libwebp.
    fn lossy() -> Vec<u8> {
        include_bytes!("../tests/lossy.webp").to_vec()
    }

    fn jpeg() -> Vec<u8> {
        let mut bytes = Vec::new();
        codecs::jpeg::JpegEncoder::new(&mut bytes).write_image(&pixels(), WIDTH, HEIGHT, ExtendedColorType::Rgb8).unwrap();
        bytes
    }

    fn zip() -> Vec<u8> {
        let mut bytes = ZIP_END.to_vec();
        bytes.resize(ZIP_END_BYTES, 0);
        bytes
    }

    fn half(bytes: Vec<u8>) -> Vec<u8> {
        bytes[..bytes.len() / 2].to_vec()
    }

    fn without_last(bytes: Vec<u8>, count: usize) -> Vec<u8> {
        bytes[..bytes.len() - count].to_vec()
    }

    /// A whole file around one chunk.
    fn riff(kind: &[u8; 4], chunk: &[u8]) -> Vec<u8> {
        let padding = &[0][..chunk.len() % 2];
        let size = (4 + CHUNK_HEADER + chunk.len() + padding.len()) as u32;
        [b"RIFF", &size.to_le_bytes()[..], b"WEBP", kind, &(chunk.len() as u32).to_le_bytes(), chunk, padding].concat()
    }

    fn frame(webp: &[u8]) -> &[u8] {
        let length = le_u32(webp, RIFF_HEADER + 4).unwrap() as usize;
        &webp[RIFF_HEADER + CHUNK_HEADER..][..length]
    }

    fn with_chunk(webp: Vec<u8>, kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let mut bytes = [&webp[..], kind, &(data.len() as u32).to_le_bytes(), data, &[0][..data.len() % 2]].concat();
        let size = (bytes.len() - 8) as u32;
        bytes[4..8].copy_from_slice(&size.to_le_bytes());
        bytes
    }

    fn extended(webp: Vec<u8>) -> Vec<u8> {
        let header = [&[0, 0, 0, 0][..], &(WIDTH - 1).to_le_bytes()[..3], &(HEIGHT - 1).to_le_bytes()[..3]].concat();
        let bytes = riff(b"VP8X", &header);
        with_chunk(bytes, b"VP8 ", frame(&webp))
    }

    fn with_segment(jpeg: Vec<u8>, marker: u8, data: &[u8]) -> Vec<u8> {
        let length = (data.len() as u16 + 2).to_be_bytes();
        [&jpeg[..2], &[0xff, marker], &length, data, &jpeg[2..]].concat()
    }

    fn in_frame(webp: Vec<u8>, data: &[u8]) -> Vec<u8> {
        riff(b"VP8 ", &[frame(&webp), data].concat())
    }

    fn with_tag(webp: Vec<u8>, change: impl Fn(u32) -> u32) -> Vec<u8> {
        let mut chunk = frame(&webp).to_vec();
        let tag = change(u32::from_le_bytes([chunk[0], chunk[1], chunk[2], 0]));
        chunk[..3].copy_from_slice(&tag.to_le_bytes()[..3]);
        riff(b"VP8 ", &chunk)
    }

    fn place_of(jpeg: &[u8], marker: u8) -> usize {
        jpeg.windows(2).position(|pair| pair == [0xff, marker]).unwrap()
    }

    fn without_scan(jpeg: Vec<u8>) -> Vec<u8> {
        [&jpeg[..place_of(&jpeg, SOS)], &[0xff, EOI]].concat()
    }

    fn with_empty_scan(jpeg: Vec<u8>) -> Vec<u8> {
        let scan = place_of(&jpeg, SOS);
        let header = 2 + usize::from(be_u16(&jpeg, scan + 2).unwrap());
        [&jpeg[..scan + header], &[0xff, EOI]].concat()
    }

    /// A byte of the frame's header, counted from its precision.
    fn with_frame_byte(mut jpeg: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
        let frame = place_of(&jpeg, 0xc0);
        jpeg[frame + 4 + at] = byte;
        jpeg
    }
}
