//! Quiet: what can happen in the simulated mesh, and a random run of it.

use muster_mesh::ids::Lane;

/// How far something goes before the next thing happens: a crash or a loss may come between any two steps.
pub type Depth = u8;

/// One thing that happens. Relays, segments and places are numbered as they stand when it happens; out of range it does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Observe(Lane),
    Connect(usize),
    Disconnect,
    /// Sends k batches: 0 pushed, 1 received, 2 committed, 3 acked.
    Up(Lane, usize, Depth),
    Push(Lane, usize),
    RelayReceives,
    RelayCommits,
    AgentReceives,
    /// One POST of k batches: 0 sent, 1 committed at the hub, 2 answered, 3 and the agent heard of it.
    Sync(usize, Lane, usize, Depth),
    Post(usize, Lane, usize),
    HubTakes(usize, Lane),
    Answer(usize, Lane),
    /// The relay gives the POST up; it may still arrive.
    Lose(usize, Lane),
    /// A POST that was given up arrives; its answer goes nowhere.
    Late(usize),
    Free(usize, Lane),
    Backup,
    AgentCrash,
    RelayCrash(usize),
    /// The operating system writes back what was not synced: a crash finds it.
    WriteBack(usize),
    RelayWipe(usize),
    /// A segment can't be read any more.
    RelayRuin(usize, Lane, usize),
    RelayFlip(usize, Lane, usize, usize),
    AgentRuin(Lane, usize),
    AgentFlip(Lane, usize, usize),
    Budget(Lane),
    /// The wall clock steps: new spools.
    Step,
    SaveImage,
    BackToImage,
    /// Silent or announced, to the oldest or the newest backup, the other one kept or not.
    Restore {
        silent: bool,
        oldest: bool,
        keep: bool,
    },
}

/// Chance for the simulation: the same seed gives the same run on every machine.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1)
    }

    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// Faults of which each run has some and not others: a rule often shows only when few things happen at once.
const FAULTS: usize = 11;

/// A random run of up to `steps` actions.
pub fn random_run(seed: u64, steps: usize) -> Vec<Action> {
    let dice = &mut Dice::new(seed);
    let faults: Vec<bool> = (0..FAULTS).map(|_| dice.chance(40)).collect();
    let length = steps / 3 + dice.below(steps - steps / 3 + 1);
    (0..length).map(|_| random_action(dice, &faults)).collect()
}

fn random_action(dice: &mut Dice, faults: &[bool]) -> Action {
    let lane = if dice.below(3) == 0 { Lane::Pictures } else { Lane::Telemetry };
    let (relay, depth) = (dice.below(2), [0, 1, 2, 3, 3, 3][dice.below(6)]);
    let (few, place, segment) = (1 + dice.below(4), dice.below(3), dice.below(4));
    let restore = |dice: &mut Dice, silent| Action::Restore { silent, oldest: dice.chance(50), keep: dice.chance(50) };
    let fault = |at: usize, weight: usize| if faults[at] { weight } else { 0 };
    // In tenths, after the weights of the model that the rules come from.
    let weighted = [
        (200, Action::Observe(lane)),
        (20, Action::Connect(relay)),
        (5, Action::Disconnect),
        (160, Action::Up(lane, few, depth)),
        (120, Action::Sync(relay, lane, few, depth)),
        (20, Action::Push(lane, few)),
        (30, Action::AgentReceives),
        (20, Action::RelayReceives),
        (30, Action::RelayCommits),
        (20, Action::Post(relay, lane, few)),
        (20, Action::HubTakes(relay, lane)),
        (20, Action::Answer(relay, lane)),
        (20, Action::Lose(relay, lane)),
        (15, Action::Late(place)),
        (40, Action::Free(relay, lane)),
        (15, Action::Backup),
        (fault(0, 7), Action::AgentCrash),
        (fault(0, 7), Action::RelayCrash(relay)),
        (fault(0, 7), Action::WriteBack(relay)),
        (fault(1, 7), Action::RelayWipe(relay)),
        (fault(2, 7), Action::RelayRuin(relay, lane, segment)),
        (fault(3, 7), Action::RelayFlip(relay, lane, segment, place)),
        (fault(4, 4), Action::AgentRuin(lane, segment)),
        (fault(5, 4), Action::AgentFlip(lane, segment, place)),
        (fault(6, 14), Action::Budget(lane)),
        (fault(7, 4), Action::SaveImage),
        (fault(7, 4), Action::BackToImage),
        (fault(8, 7), restore(dice, false)),
        (fault(9, 7), restore(dice, true)),
        (fault(10, 4), Action::Step),
    ];
    let total: usize = weighted.iter().map(|(weight, _)| weight).sum();
    let mut at = dice.below(total);
    for (weight, action) in weighted {
        if at < weight {
            return action;
        }
        at -= weight;
    }
    Action::Disconnect
}

/// The smallest part of a failing run that still fails.
pub fn shrink(run: &[Action], fails: impl Fn(&[Action]) -> bool) -> Vec<Action> {
    let mut smallest = run.to_vec();
    let mut chunk = smallest.len().div_ceil(2);
    while chunk > 0 {
        let mut at = 0;
        while at < smallest.len() {
            let mut without = smallest.clone();
            without.drain(at..(at + chunk).min(smallest.len()));
            if fails(&without) { smallest = without } else { at += chunk }
        }
        chunk /= 2;
    }
    smallest
}
