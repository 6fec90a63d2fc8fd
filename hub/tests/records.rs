//! Async: whatever an agent may record comes out of the database's rows as the very records.
#![allow(clippy::unwrap_used)]

mod world;

use muster_hub::{
    rows::{self, Table},
    store::Answered,
};
use muster_mesh::{
    ids::{Lane, SpoolId},
    record::{self, *},
};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use world::*;

#[tokio::test]
async fn any_records_come_back_bit_by_bit() {
    each_store(async |mut world: World| {
        let mut runner = TestRunner::new(Config::default());
        for seq in 1..=24 {
            let records = prop::collection::vec(any_record(), 1..60).new_tree(&mut runner).unwrap().current();
            let envelope = batch(seq, records.clone()).seal().unwrap();
            // Whatever their times, nothing here is too old: a relay whose clock is off expires nothing.
            let mut head = world.head(RELAY, true);
            head.number = seq;
            head.relay_ms = NOW - DAY_MS;
            world.send(RELAY, &head, &[envelope]).await;
            let kept = world.hub.store.kept_numbers(device(1), spool(1), seq, seq).await.unwrap();
            let Some(Answered::Rows(again)) = kept.first().map(|kept| &kept.answered) else { panic!("{kept:?} of {records:?}") };
            assert_eq!(*again, records);
            assert_eq!(record::digest(again), record::digest(&records));
        }
    })
    .await;
}

#[test]
fn a_row_that_another_hand_changed_is_no_record() {
    let ids = rows::Ids::default();
    let fields = rows::fields(&activity(NOW, 3), device(1), &ids).unwrap();
    assert_eq!(rows::record(Table::Activity, fields.clone()), Ok(activity(NOW, 3)));
    for cut in 0..fields.len() {
        assert!(rows::record(Table::Activity, fields[..cut].to_vec()).is_err());
        for wrong in [rows::int(-1), rows::int(i64::MAX), rows::text("x"), rows::blob(b"x"), rows::Value::Int(None)] {
            let mut changed = fields.clone();
            changed[cut] = wrong;
            // Never a panic; a number where any number may stand is another record.
            let _ = rows::record(Table::Activity, changed);
        }
    }
    assert!(rows::record(Table::Session, vec![rows::int(0), rows::int(99)]).is_err());
}

fn any_record() -> impl Strategy<Value = Record> {
    (prop_oneof![Just(i64::MIN), Just(i64::MAX), any::<i64>(), NOW - 1_000..NOW], any_kind()).prop_map(|(at, kind)| Record { at, kind })
}

fn any_kind() -> impl Strategy<Value = Kind> {
    let state = prop::sample::select(State::ALL.to_vec());
    let battery = prop::option::of((any::<u8>(), any::<bool>()).prop_map(|(percent, charging)| Battery { percent, charging }));
    let heartbeat =
        (state, battery, any_text()).prop_map(|(state, battery, version)| Kind::Heartbeat(Heartbeat { state, battery, version }));
    let counts = (any::<[u32; 6]>(), any::<bool>());
    let activity = counts.prop_map(|([ms, keys, clicks, wheel, active_ms, idle_ms], pointer_moved)| {
        Kind::Activity(Activity { ms, keys, clicks, wheel, pointer_moved, active_ms, idle_ms })
    });
    let application = prop_oneof![any_text().prop_map(Application::Named), Just(Application::Private), Just(Application::None)];
    let source = prop::sample::select(vec![Source::X11, Source::Portal, Source::None]);
    let focus = (any::<u32>(), application, prop::option::of(any_text()), source)
        .prop_map(|(ms, application, title, source)| Kind::Focus(Focus { ms, application, title, source }));
    let network = any_list().prop_map(|addresses| Kind::Network(Network { addresses }));
    let capability = (any_text(), any::<bool>(), any_text()).prop_map(|(what, able, why)| Kind::Capability(Capability { what, able, why }));
    prop_oneof![heartbeat, activity, focus, any_session().prop_map(Kind::Session), network, capability, any_gap().prop_map(Kind::Gap)]
}

fn any_session() -> impl Strategy<Value = Session> {
    let plain = prop::sample::select(vec![Session::Start, Session::Stop, Session::Lock, Session::Unlock, Session::Suspend, Session::Pause]);
    let resume = number().prop_map(|slept_ms| Session::Resume { slept_ms });
    let unpause = number().prop_map(|paused_ms| Session::Unpause { paused_ms });
    let acknowledged = (any::<[u8; 32]>(), any_text(), any_list()).prop_map(|(sha256, language, switches)| Session::NoticeAcknowledged {
        sha256,
        language,
        switches,
    });
    prop_oneof![plain, resume, unpause, acknowledged]
}

fn any_gap() -> impl Strategy<Value = Gap> {
    let lane = prop::sample::select(Lane::ALL.to_vec());
    let reasons = GapReason::ALL.to_vec();
    let numbers =
        prop::option::of((any::<[u8; 16]>(), 1..1_000_000u64, prop::option::of(0..1_000u64)).prop_map(|(spool, first, more)| Numbers {
            spool: SpoolId(spool),
            first,
            last: more.map(|more| first + more),
        }));
    (lane, numbers, number(), number(), prop::sample::select(reasons)).prop_map(|(lane, numbers, records, bytes, reason)| Gap {
        lane,
        numbers,
        records,
        bytes,
        reason,
    })
}

/// A u64 that the format allows.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(i64::MAX as u64), 0..=i64::MAX as u64]
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), Just("\u{202e}gnp.exe \"'; DROP TABLE focus; -- \u{1f600} ﷺ é e\u{301}".to_owned()), "[^\0]{0,40}",]
}

fn any_list() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(any_text(), 0..4)
}
