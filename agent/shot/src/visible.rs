//! Quiet: whether an excluded window can be seen on what was captured.
//!
//! When it can't be said, it can be seen. A window is hidden only by windows above it that together cover all of it; where something else
//! puts the screen together (a compositor: windows may be translucent, in motion, or shown once more in an overview), by nothing.
//! What X11 has no way to tell: a covering window that never paints itself shows what lies beneath.

/// In the root window's pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rect {
    pub x: i32,
    pub y: i32,
    pub width: u32,
    pub height: u32,
}

/// A child of the root window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopLevel {
    pub id: u32,
    /// It is on the screen, unless something covers it.
    pub viewable: bool,
    /// With its border.
    pub outer: Rect,
    /// What it hides of the windows below it; none: it may be translucent, or has holes.
    pub cover: Option<Rect>,
    /// It is an excluded application's, or has such a window in it.
    pub excluded: bool,
}

/// What happened to children of the root window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Mapped(u32),
    /// Moved, restacked, gone …
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    Clear,
    Excluded,
    /// What lay where while the picture was taken isn't known.
    Unsure,
}

/// A covered window in more pieces than that counts as visible: so the work is bounded.
const PIECES_MAX: usize = 4_096;

/// What a picture of `captured` shows. `before` and `after` are all children of the root window, the lowest first, as they were just before
/// and just after it was taken; `changes` came between the begin of the first and the end of the second.
pub fn sight(before: &[TopLevel], after: &[TopLevel], changes: &[Change], captured: Rect) -> Sight {
    if is_any_visible(before, captured) || is_any_visible(after, captured) {
        return Sight::Excluded;
    }
    if changes.is_empty() {
        return Sight::Clear;
    }
    // What covered it may have been away for a moment, or it was here and went back.
    let hidden_or_elsewhere = [before, after].into_iter().flatten().any(|window| window.excluded && window.viewable);
    let came_and_went = changes.iter().any(|change| match change {
        Change::Mapped(id) => after.iter().find(|window| window.id == *id).is_none_or(|window| window.excluded),
        Change::Other => false,
    });
    if hidden_or_elsewhere || came_and_went { Sight::Unsure } else { Sight::Clear }
}

fn is_any_visible(windows: &[TopLevel], captured: Rect) -> bool {
    let excluded = windows.iter().enumerate().filter(|(_, window)| window.excluded && window.viewable);
    excluded.filter_map(|(at, window)| Some((at, window.outer.common(captured)?))).any(|(at, part)| {
        let above = windows[at + 1..].iter().filter(|window| window.viewable && !window.excluded);
        !is_covered(part, above.filter_map(|window| window.cover))
    })
}

/// Whether nothing of it is left when all the covers are cut out of it.
fn is_covered(part: Rect, covers: impl Iterator<Item = Rect>) -> bool {
    let mut left = vec![part];
    for cover in covers {
        left = left.into_iter().flat_map(|piece| piece.without(cover)).collect();
        if left.is_empty() {
            return true;
        }
        if left.len() > PIECES_MAX {
            return false;
        }
    }
    false
}

impl Rect {
    /// None: they have no pixel in common.
    pub fn common(self, other: Rect) -> Option<Rect> {
        let (left, top) = (self.x.max(other.x), self.y.max(other.y));
        let (right, bottom) = (self.right().min(other.right()), self.bottom().min(other.bottom()));
        let side = |from: i32, to: i64| u32::try_from(to - i64::from(from)).ok().filter(|side| *side > 0);
        Some(Rect { x: left, y: top, width: side(left, right)?, height: side(top, bottom)? })
    }

    pub fn area(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    /// What is left of it: above, below, left and right of the hole.
    fn without(self, hole: Rect) -> Vec<Rect> {
        let Some(hole) = self.common(hole) else { return vec![self] };
        let between = |from: i64, to: i64| (to - from) as u32;
        let (left, top) = (i64::from(self.x), i64::from(self.y));
        let (hole_left, hole_top) = (i64::from(hole.x), i64::from(hole.y));
        let pieces = [
            Rect { height: between(top, hole_top), ..self },
            Rect { y: hole.bottom() as i32, height: between(hole.bottom(), self.bottom()), ..self },
            Rect { y: hole.y, height: hole.height, width: between(left, hole_left), ..self },
            Rect { x: hole.right() as i32, y: hole.y, height: hole.height, width: between(hole.right(), self.right()) },
        ];
        pieces.into_iter().filter(|piece| piece.area() > 0).collect()
    }

    fn right(self) -> i64 {
        i64::from(self.x) + i64::from(self.width)
    }

    fn bottom(self) -> i64 {
        i64::from(self.y) + i64::from(self.height)
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    const SCREEN: Rect = rect(0, 0, 40, 30);

    const fn rect(x: i32, y: i32, width: u32, height: u32) -> Rect {
        Rect { x, y, width, height }
    }

    fn window(id: u32, place: Rect) -> TopLevel {
        TopLevel { id, viewable: true, outer: place, cover: Some(place), excluded: false }
    }

    fn excluded(id: u32, place: Rect) -> TopLevel {
        TopLevel { excluded: true, ..window(id, place) }
    }

    fn still(windows: &[TopLevel]) -> Sight {
        sight(windows, windows, &[], SCREEN)
    }

    #[test]
    fn one_uncovered_pixel_is_enough() {
        let secret = excluded(1, rect(5, 5, 10, 10));
        assert_eq!(still(std::slice::from_ref(&secret)), Sight::Excluded);
        assert_eq!(still(&[secret.clone(), window(2, rect(5, 5, 10, 10))]), Sight::Clear);
        assert_eq!(still(&[window(2, rect(5, 5, 10, 10)), secret.clone()]), Sight::Excluded);
        for almost in [rect(6, 5, 9, 10), rect(5, 6, 10, 9), rect(5, 5, 9, 10), rect(5, 5, 10, 9)] {
            assert_eq!(still(&[secret.clone(), window(2, almost)]), Sight::Excluded, "{almost:?}");
        }
        // Together they cover it.
        assert_eq!(still(&[secret.clone(), window(2, rect(0, 0, 10, 30)), window(3, rect(9, 0, 20, 30))]), Sight::Clear);
        assert_eq!(still(&[secret, window(2, rect(0, 0, 10, 30)), window(3, rect(11, 0, 20, 30))]), Sight::Excluded);
    }

    #[test]
    fn only_what_hides_for_sure_hides() {
        let secret = excluded(1, rect(5, 5, 10, 10));
        let over = window(2, SCREEN);
        assert_eq!(still(&[secret.clone(), over.clone()]), Sight::Clear);
        assert_eq!(still(&[secret.clone(), TopLevel { cover: None, ..over.clone() }]), Sight::Excluded);
        assert_eq!(still(&[secret.clone(), TopLevel { viewable: false, ..over }]), Sight::Excluded);
        // An excluded window is hidden by another excluded one, and that one is seen.
        assert_eq!(still(&[secret, excluded(3, SCREEN)]), Sight::Excluded);
    }

    #[test]
    fn only_what_was_captured_counts() {
        assert_eq!(still(&[excluded(1, rect(40, 0, 10, 10))]), Sight::Clear);
        assert_eq!(still(&[excluded(1, rect(39, 0, 10, 10))]), Sight::Excluded);
        assert_eq!(still(&[TopLevel { viewable: false, ..excluded(1, SCREEN) }]), Sight::Clear);
        // The part beyond the screen needs no cover.
        assert_eq!(still(&[excluded(1, rect(30, 20, 50, 50)), window(2, rect(30, 20, 10, 10))]), Sight::Clear);
        assert_eq!(still(&[excluded(1, rect(i32::MIN, i32::MIN, u32::MAX, u32::MAX))]), Sight::Excluded);
    }

    #[test]
    fn it_counts_if_it_was_there_before_or_after() {
        let hidden = [excluded(1, rect(5, 5, 10, 10)), window(2, SCREEN)];
        let shown = [hidden[1].clone(), hidden[0].clone()];
        assert_eq!(sight(&hidden, &shown, &[Change::Other], SCREEN), Sight::Excluded);
        assert_eq!(sight(&shown, &hidden, &[Change::Other], SCREEN), Sight::Excluded);
    }

    #[test]
    fn a_change_meanwhile_makes_unsure_where_it_could_have_shown_something() {
        let plain = [window(2, SCREEN)];
        assert_eq!(sight(&plain, &plain, &[Change::Other], SCREEN), Sight::Clear);
        assert_eq!(sight(&plain, &plain, &[Change::Mapped(2)], SCREEN), Sight::Clear);
        // Mapped, and gone when it could have been asked its name.
        assert_eq!(sight(&plain, &plain, &[Change::Mapped(9), Change::Other], SCREEN), Sight::Unsure);
        // Mapped for a moment.
        let away = [TopLevel { viewable: false, ..excluded(1, SCREEN) }, window(2, SCREEN)];
        assert_eq!(sight(&away, &away, &[Change::Mapped(1), Change::Other], SCREEN), Sight::Unsure);
        assert_eq!(sight(&away, &away, &[Change::Other], SCREEN), Sight::Clear);
        // Hidden all the time, or not?
        let hidden = [excluded(1, rect(5, 5, 10, 10)), window(2, SCREEN)];
        assert_eq!(sight(&hidden, &hidden, &[], SCREEN), Sight::Clear);
        assert_eq!(sight(&hidden, &hidden, &[Change::Other], SCREEN), Sight::Unsure);
        let elsewhere = [excluded(1, rect(100, 100, 10, 10)), window(2, SCREEN)];
        assert_eq!(sight(&elsewhere, &elsewhere, &[Change::Other], SCREEN), Sight::Unsure);
    }

    #[test]
    fn covering_agrees_with_counting_pixels() {
        let mut chance = StdRng::seed_from_u64(7);
        let mut seen = [0; 2];
        for _ in 0..3_000 {
            let mut any = |largest: u32| {
                let (width, height) = (chance.random_range(1..=largest), chance.random_range(1..=largest));
                rect(chance.random_range(-8..40), chance.random_range(-8..30), width, height)
            };
            let windows: Vec<_> = (0..8).map(|id| if id % 5 == 0 { excluded(id, any(6)) } else { window(id, any(30)) }).collect();
            // Who painted each pixel last.
            let painter = |x: i32, y: i32| windows.iter().rev().find(|window| window.outer.common(rect(x, y, 1, 1)).is_some());
            let is_seen =
                (0..30).flat_map(|y| (0..40).map(move |x| (x, y))).any(|(x, y)| painter(x, y).is_some_and(|window| window.excluded));
            let expected = if is_seen { Sight::Excluded } else { Sight::Clear };
            assert_eq!(still(&windows), expected, "{windows:?}");
            seen[usize::from(is_seen)] += 1;
        }
        assert!(seen.iter().all(|count| *count > 100), "{seen:?}");
    }

    #[test]
    fn a_window_in_too_many_pieces_is_visible() {
        let stripes = (0..PIECES_MAX as i32 + 1).map(|n| window(n as u32 + 2, rect(4 * n + 1, 0, 1, 10)));
        let wide = rect(0, 0, 4 * PIECES_MAX as u32 + 4, 10);
        let mut windows: Vec<_> = std::iter::once(excluded(1, wide)).chain(stripes).collect();
        windows.push(window(0, wide));
        assert_eq!(sight(&windows, &windows, &[], wide), Sight::Excluded);
    }
}
