//! Quiet: a branch of 500 agents whose line to the hub is down for a day, in virtual time.

use muster_agent::spool::{BatchContext, Birth, Sizes, Spool};
use muster_mesh::{
    batch::Envelope,
    clock::{Reading, Zone},
    ids::{BootId, DeviceId, InstanceId, Lane, SpoolId, Version},
    link::{
        agent_side::{Place, Rules},
        relay_side::ConnectionId,
    },
    message::{Answer, Down, Hello, HubAck, LaneState, Limits, Signed, Welcome},
    queue::memory::Memory,
    record::{Activity, Kind, Record},
};

use crate::{hub::Hub, relay::Relay};

const AGENTS: u16 = 500;
const MINUTE_MS: i64 = 60_000;
const DAY_MINUTES: i64 = 24 * 60;
/// A realistic day makes about 480 batches: one every three minutes.
const BATCH_EVERY_MINUTES: i64 = 3;
/// A fifth of a thousandth of the default budget of 20 GiB is enough for a day of 500 people.
const RELAY_BUDGET: u64 = 128 << 20;

#[test]
fn a_branch_of_500_keeps_a_day_without_its_line_and_drains_by_itself() {
    let mut branch = Branch::new();
    for minute in 0..DAY_MINUTES {
        branch.minute(minute);
        // The line is down: each POST is lost before it arrives.
        branch.lost_post(minute * MINUTE_MS);
    }
    let made = i64::from(AGENTS) * DAY_MINUTES / BATCH_EVERY_MINUTES;
    assert_eq!(branch.relay.buffers[0].backlog(), made as u64);
    assert!(branch.relay.buffers[0].queue().used_bytes() < RELAY_BUDGET && !branch.relay.buffers[0].is_full());
    for agent in &branch.agents {
        assert_eq!(agent.spool.side().backlog(Lane::Telemetry), (480, 480), "all of it is in the branch, none of it in the hub");
        let spool = agent.spool.open_spool(Lane::Telemetry);
        assert_eq!(agent.spool.side().place(spool, 1), (Place::Branch, None));
    }

    let mut rounds = 0;
    while branch.relay.buffers[0].has_backlog() || branch.agents.iter().any(|agent| agent.spool.side().backlog(Lane::Telemetry).0 > 0) {
        branch.answered_post(DAY_MINUTES * MINUTE_MS + rounds * 5_000);
        rounds += 1;
        assert!(rounds < 2_000, "the branch doesn't drain");
    }
    assert_eq!(branch.hub.state.contents.len() as i64, made);
    assert!(branch.hub.state.contents.values().all(|times| *times == 1));
    let spool = branch.agents[0].spool.open_spool(Lane::Telemetry);
    assert_eq!(branch.agents[0].spool.side().place(spool, 480), (Place::Hub, None));
}

struct Branch {
    agents: Vec<Agent>,
    relay: Relay,
    hub: Hub,
}

struct Agent {
    spool: Spool<Memory>,
    connection: ConnectionId,
}

impl Branch {
    fn new() -> Self {
        let mut relay =
            Relay::open_sized([Memory::default(), Memory::default()], [InstanceId([1; 16]), InstanceId([2; 16])], RELAY_BUDGET, 4 << 20);
        let agents: Vec<Agent> = (0..AGENTS).map(|number| Agent::connect(number, &mut relay)).collect();
        Branch { agents, relay, hub: Hub::new(None) }
    }

    /// Everyone whose turn it is makes a batch and sends it; one group commit takes them all.
    fn minute(&mut self, minute: i64) {
        for (number, agent) in self.agents.iter_mut().enumerate() {
            if minute % BATCH_EVERY_MINUTES == number as i64 % BATCH_EVERY_MINUTES {
                for envelope in agent.observe(minute * MINUTE_MS) {
                    self.relay.side.received(agent.connection, envelope.header().spool, envelope.header().seq);
                    self.relay.inbox.push((agent.connection, Lane::Telemetry, envelope));
                }
            }
        }
        self.relay.commit().expect("memory has room");
        self.hear();
    }

    fn hear(&mut self) {
        for agent in &mut self.agents {
            while let Some(down) = self.relay.side.next_control(agent.connection) {
                agent.hear(down);
            }
            while let Some(tail) = agent.spool.side_mut().next_holding() {
                self.relay.side.holding(agent.connection, &tail);
            }
        }
    }

    fn lost_post(&mut self, now_ms: i64) {
        self.relay.post(Lane::Telemetry, 100, now_ms, &mut self.hub);
        self.relay.posts = [None, None];
        self.relay.buffers[0].failed();
    }

    fn answered_post(&mut self, now_ms: i64) {
        self.relay.post(Lane::Telemetry, 2_000, now_ms, &mut self.hub);
        if let Some(post) = self.relay.posts[0].as_mut() {
            post.answer = Some(self.hub.take(&post.head, &post.posted));
            assert!(matches!(post.answer, Some(Answer::Taken(_))));
        }
        self.relay.answer(Lane::Telemetry, now_ms, &mut self.hub);
        self.hear();
    }
}

impl Agent {
    fn connect(number: u16, relay: &mut Relay) -> Self {
        let mut device = [0xa; 16];
        device[..2].copy_from_slice(&number.to_be_bytes());
        let random = |lane: u8| {
            let mut random = [lane; 10];
            random[1..3].copy_from_slice(&number.to_be_bytes());
            random
        };
        let sizes = Sizes { budgets: [8 << 20; 2], segment_bytes: 1 << 20 };
        let context = BatchContext {
            policy: Version::default(),
            notice: Version::default(),
            erasure: Version::default(),
            test_mode: true,
            boot: BootId([1; 16]),
            zone: Zone { name: "Europe/Oslo".into(), offset_s: 3_600 },
        };
        let birth = Birth { now: reading(0), random: [random(1), random(2)] };
        let directories = [Memory::default(), Memory::default()];
        let (mut spool, _) = Spool::open(DeviceId(device), directories, sizes, context, birth, Rules::default()).expect("memory opens");
        let connection = ConnectionId(u64::from(number) + 1);
        let hello = Hello {
            protocols: (1, 1),
            dial: 1,
            boot: BootId([1; 16]),
            wall_ms: 0,
            boot_ms: 0,
            zone: String::new(),
            versions: Vec::new(),
            tails: spool.side_mut().hello_tails(),
        };
        relay.side.hello(connection, DeviceId(device), &hello, 0);
        let welcome = Welcome { protocol: 1, limits: Limits::OURS, clock_ms: 0, lanes: [LaneState::Open; 2], claims: Vec::new() };
        spool.on_welcome(0, &welcome, birth).expect("memory has room");
        Agent { spool, connection }
    }

    fn observe(&mut self, now_ms: i64) -> Vec<Envelope> {
        let activity = Activity { ms: 60_000, keys: 38, clicks: 9, wheel: 3, pointer_moved: true, active_ms: 50_000, idle_ms: 10_000 };
        let sealed = self
            .spool
            .seal(Lane::Telemetry, vec![Record { at: now_ms, kind: Kind::Activity(activity) }], reading(now_ms))
            .expect("it seals");
        self.spool.commit(&sealed).expect("memory has room");
        self.spool.next_run(Lane::Telemetry, 99, usize::MAX, reading(now_ms), &mut Vec::new()).expect("memory reads")
    }

    fn hear(&mut self, down: Down) {
        match down {
            Down::Ack(ack) => drop(self.spool.on_ack(ack.lane, ack.count).expect("the relay acks what was sent")),
            Down::Signed(bytes) => {
                let signed = Signed::read(&bytes).expect("the hub's ack decodes");
                let spool: SpoolId = signed.spool.expect("an ack names its spool");
                let ack = HubAck::read(&signed.body).expect("the hub's ack decodes");
                let birth = Birth { now: reading(0), random: [[9; 10]; 2] };
                self.spool.on_hub_ack(spool, signed.version.epoch, &ack, birth).expect("memory has room");
            }
            Down::Welcome(_) | Down::Returned(_) | Down::Lane(..) | Down::Answer(_) => panic!("unexpected in a sound run"),
        }
    }
}

fn reading(now_ms: i64) -> Reading {
    Reading { wall_ms: now_ms, boot_ms: now_ms as u64 }
}
