//! Quiet: pixels in memory.

use fast_image_resize::{
    FilterType, ResizeAlg, ResizeOptions, Resizer,
    images::{TypedImage, TypedImageRef},
    pixels::U8x4,
};

use crate::visible::Rect;

const PIXEL_BYTES: usize = 4;

/// Rows from the top, four bytes a pixel: red, green, blue, and one that says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl Picture {
    /// None: these are not the pixels of such a picture, or it has none.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Option<Picture> {
        let bytes = (width as usize).checked_mul(height as usize)?.checked_mul(PIXEL_BYTES)?;
        (bytes > 0 && pixels.len() == bytes).then_some(Picture { width, height, pixels })
    }

    pub fn width(&self) -> u32 {
        self.width
    }

    pub fn height(&self) -> u32 {
        self.height
    }

    /// Keeps this part of it, in the same memory: a 4K picture is 33 MB. None: it has no such part.
    pub fn crop(mut self, part: Rect) -> Option<Picture> {
        let (left, top) = (usize::try_from(part.x).ok()?, usize::try_from(part.y).ok()?);
        let (width, height) = (part.width as usize, part.height as usize);
        let fits = left + width <= self.width as usize && top + height <= self.height as usize;
        if !fits || width == 0 || height == 0 {
            return None;
        }
        for row in 0..height {
            let from = ((top + row) * self.width as usize + left) * PIXEL_BYTES;
            // A row's new place never lies behind its old one.
            self.pixels.copy_within(from..from + width * PIXEL_BYTES, row * width * PIXEL_BYTES);
        }
        self.pixels.truncate(width * height * PIXEL_BYTES);
        Picture::new(part.width, part.height, self.pixels)
    }

    /// The same picture, no wider than `width_max`. A smaller one stays as it is.
    pub fn narrowed(self, width_max: u32) -> Picture {
        let (width, height) = self.narrow_size(width_max);
        if (width, height) == (self.width, self.height) { self } else { self.scaled(width, height, FilterType::Lanczos3) }
    }

    /// Its sides when it is no wider than `width_max`.
    pub(crate) fn narrow_size(&self, width_max: u32) -> (u32, u32) {
        let width = self.width.min(width_max).max(1);
        let height = (u64::from(self.height) * u64::from(width)).div_ceil(u64::from(self.width));
        // Not above its own height, since width isn't above its own width.
        (width, (height as u32).max(1))
    }

    pub(crate) fn scaled(&self, width: u32, height: u32, filter: FilterType) -> Picture {
        let (width, height) = (width.max(1), height.max(1));
        let mut pixels = vec![0; width as usize * height as usize * PIXEL_BYTES];
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).use_alpha(false);
        // Can't fail: here and in `new` there are as many pixels as the sides say. The type is named so that only its code is made.
        let source = TypedImageRef::<U8x4>::from_buffer(self.width, self.height, &self.pixels).expect("a picture has its pixels");
        let mut target = TypedImage::<U8x4>::from_buffer(width, height, &mut pixels).expect("so many were just made");
        Resizer::new().resize_typed(&source, &mut target, &options).expect("all of a picture");
        Picture { width, height, pixels }
    }

    /// The rows of pixels.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &[[u8; PIXEL_BYTES]]> {
        self.pixels.as_chunks().0.chunks_exact(self.width as usize)
    }

    /// Red, green, blue, and nothing else.
    pub(crate) fn colours(&self) -> Vec<u8> {
        self.pixels.as_chunks::<PIXEL_BYTES>().0.iter().flat_map(|[red, green, blue, _]| [*red, *green, *blue]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each pixel says where it was.
    fn chart(width: u32, height: u32) -> Picture {
        let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, 0, 255])).collect();
        Picture::new(width, height, pixels).unwrap()
    }

    #[test]
    fn a_picture_has_as_many_pixels_as_its_sides_say() {
        assert!(Picture::new(2, 2, vec![0; 16]).is_some());
        for (width, height, bytes) in [(2, 2, 15), (2, 2, 17), (0, 2, 0), (2, 0, 0), (u32::MAX, u32::MAX, 4)] {
            assert_eq!(Picture::new(width, height, vec![0; bytes]), None);
        }
    }

    #[test]
    fn a_crop_is_that_part() {
        let part = chart(10, 8).crop(Rect { x: 3, y: 2, width: 4, height: 5 }).unwrap();
        assert_eq!((part.width(), part.height()), (4, 5));
        for (y, row) in part.rows().enumerate() {
            for (x, pixel) in row.iter().enumerate() {
                assert_eq!(pixel[..2], [x as u8 + 3, y as u8 + 2]);
            }
        }
        assert_eq!(chart(10, 8).crop(Rect { x: 0, y: 0, width: 10, height: 8 }), Some(chart(10, 8)));
        for (x, y, width, height) in [(-1, 0, 2, 2), (9, 0, 2, 1), (0, 7, 1, 2), (0, 0, 0, 1), (0, 0, 1, 0)] {
            assert_eq!(chart(10, 8).crop(Rect { x, y, width, height }), None);
        }
    }

    #[test]
    fn a_picture_is_narrowed_in_proportion_and_never_widened() {
        let sides = |width, height| {
            let narrowed = chart(width, height).narrowed(1_280);
            (narrowed.width(), narrowed.height())
        };
        assert_eq!(sides(1_920, 1_080), (1_280, 720));
        assert_eq!(sides(640, 480), (640, 480));
        assert_eq!(sides(2_560, 1), (1_280, 1));
        let flat = Picture::new(1_920, 1_080, [9, 99, 200, 255].repeat(1_920 * 1_080)).unwrap();
        assert!(flat.narrowed(1_280).rows().flatten().all(|pixel| pixel[..3] == [9, 99, 200]));
    }
}
