//! Quiet: makes a picture of which only the layout can be guessed.
//!
//! The picture is cut into cells of at least 32 pixels a side, at most 60 of them in a row or column. Of each cell its average colour is
//! kept, and nothing else; then the averages are spread over the stored picture's pixels. Type of up to 64 pixels can't be read in it,
//! type of 90 may be: it is blur, not redaction.

use fast_image_resize::FilterType;

use crate::picture::Picture;

/// No side of what is kept has more cells. With twice as many, type of 48 pixels was legible on a screen of 1920x1080.
pub const GRID_SIDE_MAX: u32 = 60;
/// No cell is narrower or lower, so that small windows are blurred as much as large screens: at 4 pixels a window's chat was legible.
pub const CELL_SIDE_MIN: u32 = 32;

/// Blurs it; the result is no wider than `width_max`.
pub fn blur(picture: &Picture, width_max: u32) -> Picture {
    let (width, height) = picture.narrow_size(width_max);
    averages(picture).scaled(width, height, FilterType::Bilinear)
}

/// Cells in a row and in a column.
pub fn grid(width: u32, height: u32) -> (u32, u32) {
    // One size of cell for both sides: the longer one says which.
    let cell = CELL_SIDE_MIN.max(width.max(height).div_ceil(GRID_SIDE_MAX));
    ((width / cell).max(1), (height / cell).max(1))
}

/// A pixel for each cell.
fn averages(picture: &Picture) -> Picture {
    let (columns, rows) = grid(picture.width(), picture.height());
    let mut pixels = Vec::with_capacity(columns as usize * rows as usize * 4);
    let mut lines = picture.rows();
    for row in 0..rows {
        let (top, bottom) = (edge(row, rows, picture.height()), edge(row + 1, rows, picture.height()));
        let mut sums = vec![[0_u64; 3]; columns as usize];
        for line in lines.by_ref().take((bottom - top) as usize) {
            add(line, &mut sums, columns, picture.width());
        }
        for (column, sum) in (0..columns).zip(sums) {
            let width = edge(column + 1, columns, picture.width()) - edge(column, columns, picture.width());
            let count = u64::from(width) * u64::from(bottom - top);
            let [red, green, blue] = sum.map(|sum| ((sum + count / 2) / count) as u8);
            pixels.extend([red, green, blue, u8::MAX]);
        }
    }
    // Can't fail: so many were just made.
    Picture::new(columns, rows, pixels).expect("a pixel per cell")
}

/// Adds a line to the sums of the cells that it runs through.
fn add(line: &[[u8; 4]], sums: &mut [[u64; 3]], columns: u32, width: u32) {
    for (column, sum) in (0..columns).zip(sums) {
        let cell = &line[edge(column, columns, width) as usize..edge(column + 1, columns, width) as usize];
        // A line of a cell is at most 65,535 pixels long: 32 bits hold its sum.
        let mut of_line = [0_u32; 4];
        for pixel in cell {
            for (sum, value) in of_line.iter_mut().zip(pixel) {
                *sum += u32::from(*value);
            }
        }
        for (sum, of_line) in sum.iter_mut().zip(of_line) {
            *sum += u64::from(of_line);
        }
    }
}

/// Where cell `n` of `cells` begins.
fn edge(n: u32, cells: u32, side: u32) -> u32 {
    (u64::from(n) * u64::from(side) / u64::from(cells)) as u32
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    const SIDES: [(u32, u32); 9] =
        [(1_920, 1_080), (1_080, 1_920), (3_840, 2_160), (480, 640), (1_366, 768), (63, 65), (31, 31), (1, 5_000), (7_680, 90)];

    fn noise(width: u32, height: u32, seed: u64) -> Picture {
        let mut chance = StdRng::seed_from_u64(seed);
        let mut pixels = vec![0; width as usize * height as usize * 4];
        chance.fill(pixels.as_mut_slice());
        Picture::new(width, height, pixels).unwrap()
    }

    #[test]
    fn no_side_keeps_more_than_60_cells_and_no_cell_is_below_32_pixels() {
        for (width, height) in SIDES.into_iter().chain((1..5_000).map(|side| (side, side * 7 % 3_000 + 1))) {
            let (columns, rows) = grid(width, height);
            assert!((1..=60).contains(&columns) && (1..=60).contains(&rows), "{width}x{height}: {columns}x{rows}");
            for (side, cells) in [(width, columns), (height, rows)] {
                let smallest = (0..cells).map(|n| edge(n + 1, cells, side) - edge(n, cells, side)).min().unwrap();
                assert!(smallest >= side.min(32), "{width}x{height}: a cell of {smallest} pixels");
                assert_eq!((edge(0, cells, side), edge(cells, cells, side)), (0, side));
            }
        }
    }

    #[test]
    fn what_is_kept_has_a_pixel_per_cell() {
        for (width, height) in SIDES {
            let kept = averages(&noise(width, height, 1));
            assert_eq!((kept.width(), kept.height()), grid(width, height));
        }
    }

    #[test]
    fn a_kept_pixel_depends_on_its_cell_alone_and_only_on_its_average() {
        let mut chance = StdRng::seed_from_u64(2);
        for (width, height) in [(480, 330), (97, 131), (40, 64)] {
            let (columns, rows) = grid(width, height);
            let (column, row) = (chance.random_range(0..columns), chance.random_range(0..rows));
            let (left, right) = (edge(column, columns, width), edge(column + 1, columns, width));
            let (top, bottom) = (edge(row, rows, height), edge(row + 1, rows, height));
            let inside = |x: u32, y: u32| (left..right).contains(&x) && (top..bottom).contains(&y);

            // Other noise everywhere but in one cell, whose pixels change places.
            let (picture, other) = (noise(width, height, 3), noise(width, height, 4));
            let at = |picture: &Picture, x: u32, y: u32| picture.rows().nth(y as usize).unwrap()[x as usize];
            let mut pixels = Vec::new();
            for (x, y) in (0..height).flat_map(|y| (0..width).map(move |x| (x, y))) {
                let mirrored = at(&picture, left + right - 1 - x.clamp(left, right - 1), top + bottom - 1 - y.clamp(top, bottom - 1));
                pixels.extend(if inside(x, y) { mirrored } else { at(&other, x, y) });
            }
            let changed = Picture::new(width, height, pixels).unwrap();

            let (kept, kept_of_changed) = (averages(&picture), averages(&changed));
            assert_ne!(kept, kept_of_changed);
            assert_eq!(at(&kept, column, row), at(&kept_of_changed, column, row), "{width}x{height}, cell {column}, {row}");
        }
    }

    #[test]
    fn an_average_is_the_cells_average() {
        // Half of each cell black, half white, in any place.
        let pixels = (0..64_u32).flat_map(|y| (0..64_u32).flat_map(move |x| [if (x + y) % 2 == 0 { 255 } else { 0 }, 10, 20, 0])).collect();
        let kept = averages(&Picture::new(64, 64, pixels).unwrap());
        assert_eq!((kept.width(), kept.height()), (2, 2));
        assert!(kept.rows().flatten().all(|pixel| *pixel == [128, 10, 20, 255]));
    }

    #[test]
    fn a_blurred_picture_has_the_size_of_a_narrowed_one() {
        for (width, height) in SIDES {
            let picture = noise(width, height, 5);
            let blurred = blur(&picture, 1_280);
            assert_eq!((blurred.width(), blurred.height()), picture.narrow_size(1_280));
        }
    }
}
