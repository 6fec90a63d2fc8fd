//! Blocking: pictures over a state folder, with a camera that plays a script, in time that stands until it is moved.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use muster_mesh::{policy::WorkingHours, record::Area};

use super::*;
use crate::collect::sense::tests::policy;

/// Monday, 23 November 2026, 08:00 UTC.
const EIGHT: i64 = 1_795_420_800_000;
const SECOND: u64 = 1_000;

/// What was asked of the camera, and what it plays.
#[derive(Debug, Default)]
pub(crate) struct Film {
    pub(crate) asked: Vec<Request>,
    cancelled: usize,
    pub(crate) answers: VecDeque<Result<Vec<Picture>, CameraError>>,
    under_way: bool,
}

/// A camera that plays it. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Script(pub(crate) Arc<Mutex<Film>>);

impl Camera for Script {
    fn begin(&mut self, request: &Request) {
        let mut film = self.0.lock().unwrap();
        film.asked.push(request.clone());
        film.under_way = true;
    }

    fn poll(&mut self) -> Option<Result<Vec<Picture>, CameraError>> {
        let mut film = self.0.lock().unwrap();
        let answer = if film.under_way { film.answers.pop_front() } else { None };
        film.under_way &= answer.is_none();
        answer
    }

    fn cancel(&mut self) {
        let mut film = self.0.lock().unwrap();
        film.cancelled += 1;
        film.under_way = false;
    }
}

struct Desk {
    shots: Shots,
    film: Script,
    policy: Policy,
    state: State,
    on_battery: bool,
    front: Option<Rectangle>,
    ms: u64,
    made: Vec<Made>,
    dir: tempfile::TempDir,
}

pub(crate) fn picture(byte: u8) -> Picture {
    Picture { area: Area::Monitor, width: 1_280, height: 720, format: PictureFormat::Webp, blurred: true, bytes: vec![byte; 20] }
}

/// Every 15 s of observed time, all day long.
pub(crate) fn every_15_s() -> Policy {
    let pictures = Pictures { detailed_logs_per_day: 0, interval_s: 15, area: PictureArea::All, blur: true };
    Policy { pictures, ..policy() }
}

/// Detailed logs only.
pub(crate) fn logs(per_day: u8) -> Policy {
    let pictures = Pictures { detailed_logs_per_day: per_day, interval_s: 0, area: PictureArea::All, blur: true };
    Policy { pictures, ..policy() }
}

/// The first chance chooses the minute, the second its first second.
pub(crate) fn at_once() -> Box<dyn FnMut() -> f64 + Send> {
    Box::new(|| 0.0)
}

impl Desk {
    fn new(policy: Policy, narrowing: Narrowing) -> Desk {
        let dir = tempfile::tempdir().unwrap();
        let film = Script::default();
        let shots = Shots::with_chance(dir.path(), narrowing, Some(Box::new(film.clone())), at_once());
        let front = Some(Rectangle { x: -5, y: 6, width: 70, height: 80 });
        Desk { shots, film, policy, state: State::Active, on_battery: false, front, ms: 0, made: Vec::new(), dir }
    }

    fn restart(&mut self) {
        self.film = Script::default();
        self.shots = Shots::with_chance(self.dir.path(), Narrowing::default(), Some(Box::new(self.film.clone())), at_once());
    }

    fn answer(&mut self, answer: Result<Vec<Picture>, CameraError>) -> &mut Desk {
        self.film.0.lock().unwrap().answers.push_back(answer);
        self
    }

    fn ticks(&mut self, seconds: u64) -> &mut Desk {
        for _ in 0..seconds {
            self.ms += SECOND;
            self.tick();
        }
        self
    }

    fn tick(&mut self) -> &mut Desk {
        let front = self.front;
        let made = self.shots.tick(Sight {
            now: Reading { wall_ms: EIGHT + self.ms as i64, boot_ms: 9_000_000 + self.ms },
            zone: &Zone { name: "Etc/UTC".into(), offset_s: 0 },
            state: self.state,
            policy: Some(&self.policy),
            on_battery: self.on_battery,
            front: &mut || front,
        });
        self.made.push(made);
        self
    }

    fn asked(&self) -> usize {
        self.film.0.lock().unwrap().asked.len()
    }

    fn last_asked(&self) -> Request {
        self.film.0.lock().unwrap().asked.last().unwrap().clone()
    }

    fn records(&self) -> impl Iterator<Item = &Record> {
        self.made.iter().flat_map(|made| &made.records)
    }

    fn screenshots(&self) -> Vec<(i64, Screenshot)> {
        let screenshot = |record: &Record| if let Kind::Screenshot(shot) = &record.kind { Some((record.at, shot.clone())) } else { None };
        self.records().filter_map(screenshot).collect()
    }

    fn gaps(&self) -> Vec<(GapReason, u64)> {
        let gap = |record: &Record| match &record.kind {
            Kind::Gap(Gap { lane: Lane::Pictures, numbers: None, records, bytes: 0, reason }) => Some((*reason, *records)),
            _ => None,
        };
        self.records().filter_map(gap).collect()
    }

    fn abilities(&self) -> Vec<Result<(), String>> {
        self.made.iter().filter_map(|made| made.ability.clone()).collect()
    }

    fn told(&self) -> Vec<(bool, &str)> {
        let mut told = Vec::new();
        for record in self.records() {
            if let Kind::Capability(capability) = &record.kind {
                told.push((capability.able, capability.why.as_str()));
            }
        }
        told
    }
}

#[test]
fn pictures_at_an_interval_become_one_record_per_monitor() {
    let mut desk = Desk::new(every_15_s(), Narrowing::default());
    desk.ticks(15);
    assert_eq!(desk.asked(), 0);
    desk.ticks(1);
    let asked = desk.last_asked();
    assert_eq!(
        (asked.of, asked.blur, asked.format, &asked.excluded[..]),
        (Of::AllMonitors, true, PictureFormat::Webp, &["KeePassXC".to_owned()][..])
    );
    desk.ticks(3);
    assert_eq!(desk.screenshots().len(), 0, "it isn't done");
    desk.answer(Ok(vec![picture(1), picture(2)])).ticks(1);
    assert_eq!(desk.screenshots().len(), 0, "a lock that is told late still finds it");
    desk.ticks(1);
    let made = desk.screenshots();
    assert_eq!(made.iter().map(|(at, shot)| (at - EIGHT, shot.part, shot.parts)).collect::<Vec<_>>(), [(16_000, 0, 2), (16_000, 1, 2)]);
    assert_eq!(made[0].1.group, made[1].1.group);
    assert_eq!((made[0].1.why, made[0].1.blurred, made[0].1.sha256), (Why::Interval, true, <[u8; 32]>::from(Sha256::digest([1; 20]))));
    assert!(desk.made.iter().all(|made| !made.turns), "only a detailed log cuts what is under way");
    assert_eq!((desk.gaps(), desk.abilities()), (vec![], vec![Ok(())]));
    desk.answer(Ok(vec![picture(3)])).ticks(15);
    assert_eq!((desk.asked(), desk.screenshots().len()), (2, 3));
    assert_ne!(desk.screenshots()[2].1.group, made[0].1.group);
}

#[test]
fn a_detailed_log_cuts_what_is_under_way_and_is_not_taken_again_after_a_restart() {
    let mut desk = Desk::new(logs(1), Narrowing::default());
    desk.answer(Ok(vec![picture(1)])).ticks(5);
    assert_eq!((desk.asked(), desk.made.iter().filter(|made| made.turns).count()), (1, 1));
    assert_eq!(desk.screenshots()[0].1.why, Why::DetailedLog);
    desk.restart();
    desk.ticks(3_600);
    assert_eq!((desk.asked(), desk.gaps()), (0, vec![]));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(desk.dir.path().join(BOOK)).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_log_that_a_kill_broke_off_is_told_as_failed_and_not_taken_again() {
    let mut desk = Desk::new(logs(1), Narrowing::default());
    desk.ticks(3);
    assert_eq!(desk.asked(), 1);
    desk.restart();
    desk.ticks(3_600);
    assert_eq!((desk.asked(), desk.screenshots().len(), desk.gaps()), (0, 0, vec![(GapReason::Failed, 1)]));
}

#[test]
fn a_moment_at_which_nothing_may_be_seen_is_told_with_its_reason() {
    for (state, reason) in
        [(State::Paused, GapReason::Paused), (State::Locked, GapReason::Locked), (State::BatteryLow, GapReason::BatteryLow)]
    {
        let mut desk = Desk::new(logs(1), Narrowing::default());
        desk.state = state;
        desk.ticks(120);
        assert_eq!((desk.asked(), desk.gaps()), (0, vec![(reason, 1)]), "{state:?}");
        desk.state = State::Active;
        desk.ticks(120);
        assert_eq!((desk.asked(), desk.gaps().len()), (0, 1), "{state:?}: it was had");
    }
}

#[test]
fn after_hours_nothing_is_told_until_the_next_morning() {
    let mut desk = Desk::new(logs(1), Narrowing::default());
    desk.state = State::OutsideHours;
    desk.ticks(120);
    assert_eq!(desk.gaps(), []);
    desk.restart();
    desk.ticks(120);
    assert_eq!(desk.gaps(), [], "who restarts at night isn't told of either");
    desk.state = State::Active;
    desk.ticks(1);
    assert_eq!((desk.asked(), desk.gaps()), (0, vec![(GapReason::OutsideHours, 1)]));
}

#[test]
fn a_picture_that_ends_in_a_pause_is_thrown_away() {
    for (state, reason) in [
        (State::Paused, GapReason::Paused),
        (State::Locked, GapReason::Locked),
        (State::Asleep, GapReason::Asleep),
        (State::BatteryLow, GapReason::BatteryLow),
        (State::OutsideHours, GapReason::OutsideHours),
    ] {
        // It is still taken, or it is done already and waits for its second look.
        for done in [false, true] {
            let mut desk = Desk::new(every_15_s(), Narrowing::default());
            desk.ticks(16);
            if done {
                desk.answer(Ok(vec![picture(1)])).ticks(1);
            }
            desk.state = state;
            desk.tick();
            assert_eq!(desk.film.0.lock().unwrap().cancelled, 1, "{state:?}");
            desk.answer(Ok(vec![picture(1)]));
            desk.state = State::Active;
            desk.tick().ticks(2);
            assert_eq!((desk.screenshots().len(), desk.gaps()), (0, vec![(reason, 1)]), "{state:?}, done {done}");
        }
    }
}

#[test]
fn a_sleep_while_it_is_taken_throws_it_away() {
    let mut desk = Desk::new(every_15_s(), Narrowing::default());
    desk.ticks(16).answer(Ok(vec![picture(1)]));
    desk.ms += 3_600 * SECOND;
    desk.ticks(3);
    assert_eq!((desk.screenshots().len(), desk.gaps()), (0, vec![(GapReason::Asleep, 1)]));
}

#[test]
fn a_policy_that_changes_meanwhile_throws_it_away() {
    let mut desk = Desk::new(every_15_s(), Narrowing::default());
    desk.ticks(16).answer(Ok(vec![picture(1)]));
    desk.policy.excluded.push("signal".into());
    desk.ticks(3);
    assert_eq!((desk.screenshots().len(), desk.gaps()), (0, vec![(GapReason::Failed, 1)]));
}

#[test]
fn an_excluded_window_costs_the_picture_and_is_no_failure() {
    let mut desk = Desk::new(every_15_s(), Narrowing::default());
    desk.ticks(16).answer(Err(CameraError::Excluded)).ticks(15);
    assert_eq!((desk.asked(), desk.gaps(), desk.abilities()), (2, vec![(GapReason::Excluded, 1)], vec![]));
}

#[test]
fn a_camera_that_fails_says_so_and_is_tried_with_patience() {
    let mut desk = Desk::new(every_15_s(), Narrowing::default());
    for _ in 0..20 {
        desk.answer(Err(CameraError::NotSupported("no picture under this desktop".into())));
    }
    desk.ticks(500);
    assert_eq!((desk.asked(), desk.gaps()), (1, vec![(GapReason::Failed, 1)]), "what this desktop can't do, it seldom learns");
    assert_eq!(desk.abilities(), [Err("no picture under this desktop".to_owned())]);
    desk.film.0.lock().unwrap().answers.clear();
    desk.answer(Ok(vec![picture(1)])).ticks(200);
    assert_eq!((desk.screenshots().len(), desk.abilities().len()), (1, 2));
    assert_eq!(desk.abilities()[1], Ok(()));
}

#[test]
fn the_own_file_only_narrows_and_the_hub_sees_it() {
    let narrowing = Narrowing { off: false, blur: true, interval_min_s: 40 };
    let mut clear = every_15_s();
    clear.pictures.blur = false;
    let mut desk = Desk::new(clear, narrowing);
    desk.ticks(40);
    assert_eq!(desk.asked(), 0);
    desk.ticks(1);
    assert!(desk.last_asked().blur);
    assert_eq!(desk.told(), [(true, "blurred by this computer's own file; by this computer's own file at most every 40 seconds")]);
    assert_eq!(desk.shots.serves(), Ok(()));

    let mut narrower = Desk::new(Policy { pictures: Pictures { interval_s: 60, ..every_15_s().pictures }, ..policy() }, narrowing);
    narrower.ticks(59);
    assert_eq!((narrower.asked(), narrower.told()), (0, vec![]), "the policy is narrower than the file");

    let mut off = Desk::new(logs(24), Narrowing { off: true, ..Narrowing::default() });
    off.ticks(3_600);
    assert_eq!((off.asked(), off.gaps(), off.shots.serves()), (0, vec![], Err(SWITCHED_OFF)));
    assert_eq!(Shots::none().serves(), Err(NOT_INSTALLED));
}

#[test]
fn the_window_in_front_is_asked_for_by_its_place_and_jpeg_is_for_batteries() {
    let mut policy = every_15_s();
    policy.pictures.area = PictureArea::ActiveWindow;
    let mut desk = Desk::new(policy, Narrowing::default());
    desk.on_battery = true;
    desk.ticks(16);
    assert_eq!((desk.last_asked().of, desk.last_asked().format), (Of::Window { x: -5, y: 6, width: 70, height: 80 }, PictureFormat::Jpeg));
    desk.answer(Ok(vec![picture(1)])).ticks(2);
    desk.front = None;
    desk.ticks(15);
    assert_eq!((desk.asked(), desk.gaps()), (1, vec![(GapReason::Failed, 1)]), "with nothing in front there is nothing to take");
}

#[test]
fn unobserved_time_is_no_time_of_the_interval() {
    let mut desk = Desk::new(every_15_s(), Narrowing::default());
    desk.ticks(10);
    desk.state = State::Paused;
    desk.ticks(600);
    desk.state = State::Active;
    desk.ticks(5);
    assert_eq!((desk.asked(), desk.gaps()), (0, vec![]), "nothing was asked for in the pause");
    desk.ticks(2);
    assert_eq!(desk.asked(), 1);
}

#[test]
fn where_it_cannot_be_remembered_no_log_is_taken() {
    let mut desk = Desk::new(logs(1), Narrowing::default());
    std::fs::create_dir(desk.dir.path().join(BOOK)).unwrap();
    desk.ticks(5);
    assert_eq!((desk.asked(), desk.gaps()), (0, vec![(GapReason::Failed, 1)]));
}

#[test]
fn both_kinds_are_taken_one_after_the_other() {
    let mut both = every_15_s();
    (both.pictures.detailed_logs_per_day, both.pictures.interval_s) = (1, 1);
    both.hours = WorkingHours::parse("mon-sun", "08:01", "17:00").unwrap();
    let mut desk = Desk::new(both, Narrowing::default());
    for byte in 0..40 {
        desk.answer(Ok(vec![picture(byte)]));
    }
    desk.ticks(100);
    let logs = desk.screenshots().iter().filter(|(_, shot)| shot.why == Why::DetailedLog).count();
    assert_eq!(logs, 1);
    assert!(desk.screenshots().len() > 20);
}
