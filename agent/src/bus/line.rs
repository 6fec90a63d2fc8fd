//! Blocking: between the collector and the thread that listens to one bus: what is wished for goes one way, what was heard last the other.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use crate::collect::sense::{Backoff, SenseError};

/// The first word after a wish is worth waiting for: a session that is locked must not be looked at in between.
const FIRST_WORD: Duration = Duration::from_millis(500);

/// How much is wished for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// No connection.
    Nothing,
    /// Which services there are; not what they would say.
    Services,
    Everything,
}

/// One wish; the number tells it from the same wish before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wish {
    number: u64,
    depth: Depth,
}

pub struct Line<T> {
    wish: watch::Sender<Wish>,
    /// The answer to the wish.
    word: Mutex<Option<Result<T, SenseError>>>,
    heard: Condvar,
}

/// One try to fulfil a wish.
pub struct Attempt<'a, T> {
    line: &'a Line<T>,
    wish: Wish,
    patience: &'a mut Backoff,
}

impl<T: Clone> Line<T> {
    pub fn new() -> Line<T> {
        let wish = watch::Sender::new(Wish { number: 0, depth: Depth::Nothing });
        Line { wish, word: Mutex::new(None), heard: Condvar::new() }
    }

    /// What was heard last; the first time it waits a moment for it.
    pub fn ask(&self, depth: Depth) -> Result<T, SenseError> {
        let mut word = self.word();
        if self.wish.borrow().depth != depth {
            *word = None;
            self.wish(depth);
            let waited = self.heard.wait_timeout_while(word, FIRST_WORD, |word| word.is_none());
            word = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        word.clone().unwrap_or_else(|| Err(SenseError::Lost("the bus doesn't answer".into())))
    }

    pub fn rest(&self) {
        let mut word = self.word();
        if self.wish.borrow().depth != Depth::Nothing {
            *word = None;
            self.wish(Depth::Nothing);
        }
    }

    fn wish(&self, depth: Depth) {
        self.wish.send_modify(|wish| *wish = Wish { number: wish.number + 1, depth });
    }

    fn word(&self) -> MutexGuard<'_, Option<Result<T, SenseError>>> {
        self.word.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, wish: Wish, told: Result<T, SenseError>) {
        let mut word = self.word();
        // Under the same lock as the wish: a word for an older one is never taken for an answer.
        if *self.wish.borrow() == wish {
            *word = Some(told);
            self.heard.notify_all();
        }
    }

    /// Fulfils each wish by `hear`, which only returns when the bus is lost, until it is dropped.
    pub async fn follow(&self, hear: impl AsyncFn(Attempt<'_, T>) -> SenseError) {
        let mut wishes = self.wish.subscribe();
        loop {
            let wish = *wishes.borrow_and_update();
            tokio::select! {
                biased;
                changed = wishes.changed() => if changed.is_err() { return },
                () = self.fulfil(wish, &hear), if wish.depth != Depth::Nothing => {}
            }
        }
    }

    async fn fulfil(&self, wish: Wish, hear: &impl AsyncFn(Attempt<'_, T>) -> SenseError) {
        let begin = tokio::time::Instant::now();
        let mut patience = Backoff::default();
        loop {
            let error = hear(Attempt { line: self, wish, patience: &mut patience }).await;
            let now_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
            patience.failed(&error, now_ms);
            self.tell(wish, Err(error));
            tokio::time::sleep(Duration::from_millis(patience.due_in_ms(now_ms))).await;
        }
    }
}

impl<T: Clone> Attempt<'_, T> {
    pub fn depth(&self) -> Depth {
        self.wish.depth
    }

    pub fn tell(&mut self, word: T) {
        self.patience.succeeded();
        self.line.tell(self.wish, Ok(word));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
        thread,
    };

    use super::*;

    #[tokio::test]
    async fn a_word_for_an_older_wish_is_no_answer() {
        let line = Line::new();
        line.wish(Depth::Everything);
        let old = *line.wish.borrow();
        line.rest();
        line.tell(old, Ok(1));
        assert_eq!(*line.word(), None);
        line.wish(Depth::Everything);
        line.tell(old, Ok(1));
        assert_eq!(*line.word(), None, "the same wish, later");
        line.tell(*line.wish.borrow(), Ok(2));
        assert_eq!(line.ask(Depth::Everything), Ok(2));
    }

    #[tokio::test]
    async fn a_lost_bus_is_told_and_tried_again_until_it_is_back() {
        let (line, tries) = (Line::new(), AtomicU64::new(0));
        line.wish(Depth::Everything);
        let hear = async |mut attempt: Attempt<'_, u64>| {
            if tries.fetch_add(1, Ordering::Relaxed) > 0 {
                attempt.tell(7);
                std::future::pending::<()>().await;
            }
            SenseError::Lost("gone".into())
        };
        let told = async {
            let mut told: Vec<Result<u64, SenseError>> = Vec::new();
            while told.len() < 2 {
                let word = line.word().clone();
                if let Some(word) = word.filter(|word| told.last() != Some(word)) {
                    told.push(word);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            told
        };
        let told = tokio::select! { told = told => told, () = line.follow(hear) => Vec::new() };
        assert_eq!(told, [Err(SenseError::Lost("gone".into())), Ok(7)]);
        assert_eq!(tries.into_inner(), 2, "it is not tried hot");
    }

    #[test]
    fn the_first_word_is_waited_for_and_nothing_is_heard_at_rest() {
        let line = Arc::new(Line::new());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let listener = thread::spawn({
            let line = line.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let hear = async |mut attempt: Attempt<'_, Depth>| {
                        let depth = attempt.depth();
                        attempt.tell(depth);
                        std::future::pending().await
                    };
                    tokio::select! { _ = stopped => {}, () = line.follow(hear) => {} }
                });
            }
        });
        assert_eq!(line.ask(Depth::Services), Ok(Depth::Services));
        assert_eq!(line.ask(Depth::Everything), Ok(Depth::Everything));
        assert_eq!(line.ask(Depth::Everything), Ok(Depth::Everything));
        line.rest();
        assert_eq!(*line.word(), None);
        assert_eq!(line.ask(Depth::Everything), Ok(Depth::Everything));
        drop(stop);
        listener.join().unwrap();
    }
}
