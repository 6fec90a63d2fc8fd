//! Quiet: good messages of every kind, as small as they can be while every field has something in it.

use bytes::Bytes;
use muster_mesh::{
    batch::{Batch, Envelope, Head, Tail},
    ids::{BootId, DeviceId, InstanceId, Lane, SpoolId, Version},
    message::*,
    record::*,
    relay_list::{RelayAt, RelayList, SiteRelays},
};

pub const NOW: i64 = 1_795_424_402_000;
/// Not a repetition, so that a small batch doesn't get smaller by zlib.
const BOOT: BootId = BootId([0xd3, 0x1f, 0xa0, 0x5b, 0x66, 0x2e, 0x41, 0x97, 0xb8, 0x0c, 0xe5, 0x7d, 0x12, 0xfa, 0x89, 0x34]);
const SPOOL: SpoolId = SpoolId([0x01, 0x92, 0xf3, 0xa4, 0xc0, 0xde, 0x7a, 0x11, 0xbe, 0xad, 0x9c, 0x47, 0x22, 0x33, 0x58, 0x5f]);

/// Every kind of record and every variant of what is in them.
pub fn records() -> Vec<(&'static str, Record)> {
    let focus =
        |application, title: Option<&str>, source| Kind::Focus(Focus { ms: 300_000, application, title: title.map(str::to_owned), source });
    let kinds = vec![
        (
            "heartbeat",
            Kind::Heartbeat(Heartbeat {
                state: State::Active,
                battery: Some(Battery { percent: 80, charging: true }),
                version: "0.1.0".into(),
            }),
        ),
        ("heartbeat bare", Kind::Heartbeat(Heartbeat { state: State::Leaving, battery: None, version: String::new() })),
        (
            "activity",
            Kind::Activity(Activity {
                ms: 60_000,
                keys: 251,
                clicks: 40,
                wheel: 0,
                pointer_moved: true,
                active_ms: 50_000,
                idle_ms: 10_000,
            }),
        ),
        ("focus titled", focus(Application::Named("xterm".into()), Some("plan.txt"), Source::X11)),
        ("focus private", focus(Application::Private, None, Source::Portal)),
        ("focus nothing", focus(Application::None, None, Source::None)),
        (
            "screenshot",
            Kind::Screenshot(Screenshot {
                area: Area::ActiveWindow,
                width: 1_920,
                height: 1_080,
                format: PictureFormat::Jpeg,
                blurred: true,
                why: Why::Interval,
                sha256: [7; 32],
                group: [8; 16],
                part: 1,
                parts: 2,
                bytes: vec![0xff, 0xd8],
            }),
        ),
        ("session start", Kind::Session(Session::Start)),
        ("session stop", Kind::Session(Session::Stop)),
        ("session lock", Kind::Session(Session::Lock)),
        ("session unlock", Kind::Session(Session::Unlock)),
        ("session suspend", Kind::Session(Session::Suspend)),
        ("session resume", Kind::Session(Session::Resume { slept_ms: 70_000 })),
        ("session pause", Kind::Session(Session::Pause)),
        ("session unpause", Kind::Session(Session::Unpause { paused_ms: 5_000_000_000 })),
        (
            "session notice",
            Kind::Session(Session::NoticeAcknowledged {
                sha256: [9; 32],
                language: "en".into(),
                switches: vec!["titles".into(), "counts".into()],
            }),
        ),
        ("network", Kind::Network(Network { addresses: vec!["192.0.2.7".into(), "2001:db8::7".into()] })),
        ("capability", Kind::Capability(Capability { what: "titles".into(), able: false, why: "no display".into() })),
        (
            "gap",
            Kind::Gap(Gap {
                lane: Lane::Pictures,
                numbers: Some(Numbers { spool: SpoolId([5; 16]), first: 3, last: Some(1 << 40) }),
                records: 12,
                bytes: 70_000,
                reason: GapReason::Budget,
            }),
        ),
        (
            "gap open",
            Kind::Gap(Gap {
                lane: Lane::Telemetry,
                numbers: Some(Numbers { spool: SpoolId([5; 16]), first: 3, last: None }),
                records: 0,
                bytes: 0,
                reason: GapReason::Damaged,
            }),
        ),
        ("gap unnumbered", Kind::Gap(Gap { lane: Lane::Telemetry, numbers: None, records: 1, bytes: 0, reason: GapReason::Overflow })),
        ("timer", Kind::Timer(Timer { timer: [4; 16], running: true, task: "invoices".into() })),
        ("entry", Kind::Entry(Entry { entry: [6; 16], ms: 3_600_000, task: "visit".into(), note: "by train".into() })),
        ("gap not taken", Kind::Gap(Gap { lane: Lane::Pictures, numbers: None, records: 1, bytes: 0, reason: GapReason::Failed })),
    ];
    kinds.into_iter().map(|(name, kind)| (name, Record { at: NOW, kind })).collect()
}

pub fn batch(records: Vec<Record>) -> Batch {
    Batch {
        device: DeviceId([1; 16]),
        spool: SpoolId([2; 16]),
        seq: 9,
        lane: Lane::Telemetry,
        policy: Version { epoch: 1, n: 3 },
        notice: Version { epoch: 1, n: 2 },
        erasure: Version { epoch: 1, n: 0 },
        test_mode: true,
        head: Head { boot: BOOT, wall_ms: NOW, boot_ms: 12_345, zone: "Europe/Oslo".into(), offset_s: 3_600, tails: vec![tail()] },
        records,
    }
}

pub fn tail() -> Tail {
    Tail { spool: SPOOL, lane: Lane::Pictures, first_held: 2, next: 4_000, closed: true }
}

/// A sealed batch with every kind of record, which zlib makes smaller, and one with a single record, which is stored.
pub fn envelopes() -> Vec<Envelope> {
    let all = batch(records().into_iter().map(|(_, record)| record).collect());
    let one = batch(vec![records().remove(1).1]);
    vec![all.seal().unwrap(), one.seal().unwrap()]
}

pub fn hello() -> Hello {
    Hello {
        protocols: (1, 1),
        dial: 1_795_424_395_000,
        boot: BootId([3; 16]),
        wall_ms: NOW,
        boot_ms: 12_345,
        zone: "Europe/Oslo".into(),
        versions: vec![held_version()],
        tails: vec![tail()],
    }
}

pub fn held_version() -> HeldVersion {
    HeldVersion { kind: SignedKind::Policy.as_u8(), version: Version { epoch: 1, n: 3 } }
}

pub fn state() -> StateNow {
    StateNow { state: State::Locked, since_ms: NOW, tails: vec![tail()] }
}

pub fn ups() -> Vec<(&'static str, Up)> {
    vec![("hello", Up::Hello(hello())), ("holding", Up::Holding(tail())), ("state", Up::State(state()))]
}

pub fn downs() -> Vec<(&'static str, Down)> {
    let welcome = Welcome {
        protocol: 1,
        limits: Limits { telemetry_raw_max: 131_072, pictures_raw_max: 3_145_728, lane_in_flight: 256 },
        clock_ms: NOW,
        lanes: [LaneState::Open, LaneState::Full],
        claims: vec![Claim { spool: SpoolId([5; 16]), ranges: vec![(1, 11), (300, 70_000)] }],
    };
    let returned = |why| Down::Returned(Returned { spool: SpoolId([5; 16]), numbers: vec![(17, 17)], why });
    vec![
        ("welcome", Down::Welcome(welcome)),
        ("ack", Down::Ack(Ack { lane: Lane::Pictures, count: 300 })),
        ("returned damaged", returned(ReturnReason::Damaged)),
        ("returned ranges", returned(ReturnReason::TooManyRanges)),
        ("lane", Down::Lane(Lane::Telemetry, LaneState::Share)),
        ("signed", Down::Signed(signed().bytes().unwrap().into())),
    ]
}

pub fn signed() -> Signed {
    Signed {
        kind: SignedKind::Ack.as_u8(),
        flags: 1,
        device: Some(DeviceId([1; 16])),
        spool: Some(SpoolId([2; 16])),
        version: Version { epoch: 1, n: 0 },
        body: hub_ack().bytes().unwrap(),
        key: 0,
        signature: Vec::new(),
    }
}

pub fn hub_ack() -> HubAck {
    HubAck { stored: vec![(12, 40)], shown: vec![(18, Verdict::Held, Reason::UnknownVersion)], erasure: Version { epoch: 1, n: 0 } }
}

pub fn facts() -> Facts {
    Facts { receipt_ms: NOW, dial: 1_795_424_395_000, boot: BootId([3; 16]), zero_ms: NOW - 12_345, address: Some("192.0.2.7".into()) }
}

pub fn head() -> PostHead {
    let queue = |lane, answered| QueueState { lane, instance: InstanceId([7; 16]), answered };
    let presence =
        Presence { device: DeviceId([1; 16]), dial: 1_795_424_395_000, state: State::Active, since_ms: NOW, tails: vec![tail()] };
    PostHead {
        lane: Lane::Telemetry,
        number: 412,
        queues: vec![queue(Lane::Telemetry, 411), queue(Lane::Pictures, 57)],
        asks: vec![Ask { device: DeviceId([1; 16]), spool: SpoolId([2; 16]), from: 12 }],
        presence: Some(Snapshot { number: 9_120, full: false, devices: vec![presence], gone: vec![DeviceId([4; 16])] }),
        relay_ms: NOW,
        versions: vec![held_version()],
    }
}

/// A POST's body with these envelopes, whatever is in them.
pub fn post(envelopes: &[Bytes]) -> Bytes {
    let facts = facts().bytes().unwrap();
    head().body(envelopes.iter().map(|envelope| (&facts[..], &envelope[..]))).unwrap()
}

pub fn answers() -> Vec<(&'static str, Answer)> {
    let counts = VerdictCounts { stored: 84, repeat: 2, held: 1, refused: 3, expired: 4, erased: 5, returned: 1 };
    let taken = Taken {
        number: 412,
        counts,
        returned: vec![(17, ReturnReason::Damaged)],
        acks: vec![signed().bytes().unwrap()],
        backed_up: [Some(380), None],
        versions: vec![held_version()],
        signed: vec![vec![1, 2, 3]],
    };
    vec![
        ("taken", Answer::Taken(taken)),
        ("stale", Answer::Stale { number: 420 }),
        ("rewind", Answer::Rewind { queues: vec![(Lane::Pictures, 49)] }),
    ]
}

pub fn bundle() -> Bundle {
    Bundle {
        made_ms: 1_800_000_000_000,
        ca: 2,
        issuer: "9f86d081".to_owned(),
        roots: "root".to_owned(),
        crosses: String::new(),
        controls: vec![ControlChain { n: 1, chain: "chain".to_owned() }],
    }
}

pub fn deny_list() -> DenyList {
    let name = "site/oslo/relay/oslo-1".to_owned();
    DenyList { made_ms: 1_800_000_000_000, denied: vec![Denial { name, issued_before_ms: 1_799_999_999_000, until_ms: 1_807_776_000_000 }] }
}

pub fn relay_list() -> RelayList {
    let at = RelayAt { address: "relay.oslo.example.org:4433".to_owned(), door: "relay.oslo.example.org:4434".to_owned() };
    let oslo = SiteRelays { relays: [("oslo-1".to_owned(), at)].into(), guests: vec!["home".to_owned()] };
    RelayList { made_ms: 1_800_000_000_000, sites: [("oslo".to_owned(), oslo)].into() }
}
