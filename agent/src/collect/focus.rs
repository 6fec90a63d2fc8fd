//! Quiet: what was in front, as spans: the same thing is one span, cut every five minutes so that a kill loses at most that.

use muster_mesh::{
    clock::Reading,
    record::{Focus, Kind, Record},
};

use crate::redact::Shown;

const SPAN_MS_MAX: u64 = 300_000;

/// The span under way.
#[derive(Debug, Default)]
pub struct Spans {
    open: Option<Span>,
    last: Option<Reading>,
}

#[derive(Debug)]
struct Span {
    begin: Reading,
    shown: Shown,
}

impl Spans {
    /// Takes what is in front now. None: it wasn't asked for.
    pub fn tick(&mut self, now: Reading, shown: Option<Shown>) -> Option<Record> {
        let Some(shown) = shown else { return self.cut() };
        self.last = Some(now);
        match &self.open {
            Some(open) if open.shown == shown && now.boot_ms.saturating_sub(open.begin.boot_ms) < SPAN_MS_MAX => None,
            Some(_) | None => {
                let over = self.open.replace(Span { begin: now, shown });
                over.and_then(|span| span.record(now))
            }
        }
    }

    /// The span up to the last tick at which something was seen.
    pub fn cut(&mut self) -> Option<Record> {
        let Spans { open, last } = std::mem::take(self);
        open?.record(last?)
    }
}

impl Span {
    fn record(self, end: Reading) -> Option<Record> {
        let ms = u32::try_from(end.boot_ms.saturating_sub(self.begin.boot_ms)).unwrap_or(u32::MAX);
        let Shown { application, title, source } = self.shown;
        let focus = Focus { ms, application, title, source };
        (ms > 0).then_some(Record { at: self.begin.wall_ms, kind: Kind::Focus(focus) })
    }
}

#[cfg(test)]
mod tests {
    use muster_mesh::record::{Application, Source};

    use super::*;

    fn at(ms: u64) -> Reading {
        Reading { wall_ms: ms as i64, boot_ms: 5_000_000 + ms }
    }

    fn window(name: &str) -> Option<Shown> {
        Some(Shown { application: Application::Named(name.into()), title: None, source: Source::X11 })
    }

    fn play(spans: &mut Spans, ticks: impl IntoIterator<Item = (u64, Option<Shown>)>) -> Vec<(i64, u32, Application)> {
        let made: Vec<Record> = ticks.into_iter().filter_map(|(ms, shown)| spans.tick(at(ms), shown)).collect();
        made.into_iter().map(span).collect()
    }

    fn span(record: Record) -> (i64, u32, Application) {
        match record.kind {
            Kind::Focus(focus) => (record.at, focus.ms, focus.application),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_same_window_is_one_span_and_a_change_ends_it() {
        let mut spans = Spans::default();
        let made = play(&mut spans, (0..20).map(|s| (s * 1_000, window(if s < 12 { "a" } else { "b" }))));
        assert_eq!(made, [(0, 12_000, Application::Named("a".into()))]);
        assert_eq!(spans.cut().map(span), Some((12_000, 7_000, Application::Named("b".into()))));
        assert_eq!(spans.cut(), None);
    }

    #[test]
    fn a_long_span_is_cut_every_five_minutes_without_a_hole() {
        let mut spans = Spans::default();
        let made = play(&mut spans, (0..700).map(|s| (s * 1_000, window("a"))));
        assert_eq!(made.iter().map(|(at, ms, _)| (*at, *ms)).collect::<Vec<_>>(), [(0, 300_000), (300_000, 300_000)]);
        assert_eq!(spans.cut().map(|record| span(record).1), Some(99_000));
    }

    #[test]
    fn what_cannot_be_seen_is_a_span_that_says_so() {
        let unseen = || Some(Shown { application: Application::None, title: None, source: Source::None });
        let mut spans = Spans::default();
        let shown = |s| if (3..9).contains(&s) { unseen() } else { window("a") };
        let mut made: Vec<Record> = (0..12).filter_map(|s| spans.tick(at(s * 1_000), shown(s))).collect();
        made.extend(spans.cut());
        let sources: Vec<(u32, Source)> =
            made.into_iter().map(|record| if let Kind::Focus(focus) = record.kind { (focus.ms, focus.source) } else { panic!() }).collect();
        assert_eq!(sources, [(3_000, Source::X11), (6_000, Source::None), (2_000, Source::X11)]);
    }

    #[test]
    fn a_span_ends_at_the_last_sight() {
        let mut spans = Spans::default();
        let made = play(&mut spans, [(0, window("a")), (1_000, window("a")), (9_000, None), (10_000, None), (11_000, window("a"))]);
        assert_eq!(made, [(0, 1_000, Application::Named("a".into()))]);
    }
}
