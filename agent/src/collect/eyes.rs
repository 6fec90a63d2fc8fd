//! Blocking: the senses as the collector's thread uses them, with what is known of their health: who failed is told once, and tried again later.

use muster_mesh::{
    clock::{Reading, Zone},
    policy::{Policy, Switch},
    record::Record,
};

use super::{
    Senses,
    day::Day,
    sense::{
        ActiveWindow, AddressBook, Backoff, CallWatch, ComputerSight, Front, IdleClock, InputCounter, PowerSource, Rectangle, Sample,
        SenseError, SessionWatch,
    },
};

/// All senses of one desktop.
pub struct Eyes {
    window: Sense<dyn ActiveWindow>,
    idle: Sense<dyn IdleClock>,
    input: Sense<dyn InputCounter>,
    session: Sense<dyn SessionWatch>,
    call: Sense<dyn CallWatch>,
    power: Sense<dyn PowerSource>,
    addresses: Sense<dyn AddressBook>,
}

struct Sense<T: ?Sized> {
    name: &'static str,
    sense: Box<T>,
    /// None: it only says what it heard last, and has patience of its own with whom it listens to.
    backoff: Option<Backoff>,
}

impl Eyes {
    pub fn new(senses: Senses) -> Eyes {
        let Senses { window, idle, input, session, call, power, addresses } = senses;
        Eyes {
            window: Sense::asked("window", window),
            idle: Sense::asked("idle", idle),
            input: Sense::asked("input", input),
            session: Sense::heard("lock", session),
            call: Sense::heard("call", call),
            power: Sense::heard("battery", power),
            addresses: Sense::asked("network", addresses),
        }
    }

    /// Says what can be measured here, without looking at anything.
    pub fn probe(&mut self, now: Reading, day: &mut Day, made: &mut Vec<Record>) {
        self.window.ask(now, day, made, |sense| sense.probe());
        self.idle.ask(now, day, made, |sense| sense.probe());
        self.input.ask(now, day, made, |sense| sense.probe());
        self.session.ask(now, day, made, |sense| sense.probe());
        self.call.ask(now, day, made, |sense| sense.probe());
        self.power.ask(now, day, made, |sense| sense.probe());
    }

    /// Asks for what may be kept, and for nothing else.
    pub fn sample(&mut self, now: Reading, zone: &Zone, day: &mut Day, made: &mut Vec<Record>) -> Sample {
        if !day.may_watch(now, zone) {
            self.rest();
            return Sample::default();
        }
        let session = self.session.ask(now, day, made, |sense| sense.session());
        let power = self.power.ask(now, day, made, |sense| sense.power(now.boot_ms));
        day.see_computer(now, ComputerSight { session, power });
        match day.may_observe(now, zone) {
            Some(policy) => self.look(now, &policy, day, made),
            None => {
                self.rest_from_person();
                Sample::default()
            }
        }
    }

    fn look(&mut self, now: Reading, policy: &Policy, day: &mut Day, made: &mut Vec<Record>) -> Sample {
        let call = self.call.ask(now, day, made, |sense| sense.is_held());
        let idle_ms = self.idle.ask(now, day, made, |sense| sense.idle_ms(now.boot_ms));
        let counts = if policy.has(Switch::Counts) {
            self.input.ask(now, day, made, |sense| sense.counts())
        } else {
            self.input.sense.rest();
            None
        };
        let may_read = |class: &str, instance: &str| crate::redact::may_read_title(policy, class, instance);
        let front = policy
            .has(Switch::Applications)
            .then(|| self.window.ask(now, day, made, |sense| sense.front(&may_read)).unwrap_or(Front::Unseen));
        let addresses =
            policy.has(Switch::Addresses).then(|| self.addresses.ask(now, day, made, |sense| sense.addresses(now.boot_ms))).flatten();
        Sample { front, idle_ms, counts, call, addresses }
    }

    /// Where the window in front lies. None: nothing is in front, or it can't be seen.
    pub fn geometry(&mut self) -> Option<Rectangle> {
        self.window.sense.geometry().ok().flatten()
    }

    pub fn rest(&mut self) {
        self.rest_from_person();
        self.session.sense.rest();
        self.power.sense.rest();
    }

    fn rest_from_person(&mut self) {
        self.idle.sense.rest();
        self.input.sense.rest();
        self.call.sense.rest();
    }
}

impl<T: ?Sized> Sense<T> {
    fn asked(name: &'static str, sense: Box<T>) -> Sense<T> {
        Sense { name, sense, backoff: Some(Backoff::default()) }
    }

    fn heard(name: &'static str, sense: Box<T>) -> Sense<T> {
        Sense { name, sense, backoff: None }
    }

    fn ask<A>(
        &mut self,
        now: Reading,
        day: &mut Day,
        made: &mut Vec<Record>,
        ask: impl FnOnce(&mut T) -> Result<A, SenseError>,
    ) -> Option<A> {
        if self.backoff.as_ref().is_some_and(|backoff| !backoff.is_due(now.boot_ms)) {
            return None;
        }
        match ask(&mut self.sense) {
            Ok(answer) => {
                self.backoff = self.backoff.take().map(|_| Backoff::default());
                made.extend(day.sensed(now, self.name, None));
                Some(answer)
            }
            Err(error) => {
                if let Some(backoff) = &mut self.backoff {
                    backoff.failed(&error, now.boot_ms);
                }
                let news = day.sensed(now, self.name, Some(&error.to_string()));
                if news.is_some() {
                    tracing::warn!(sense = self.name, %error, "something can't be observed here");
                }
                made.extend(news);
                None
            }
        }
    }
}
