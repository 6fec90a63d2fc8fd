//! Quiet: what must be true when a run has drained. It knows what was made and what was destroyed, and looks at the three places by itself.

use muster_mesh::{ids::Lane, limits};

use crate::{
    action::Action,
    plant::Plant,
    world::{DEVICE, World},
};

/// Runs the actions, drains, and says what is wrong: one line each, the first word names its class.
pub fn run(actions: &[Action], plant: Option<Plant>) -> Vec<String> {
    let mut world = World::new(plant);
    actions.iter().for_each(|action| world.act(*action));
    world.drain();
    check(&world)
}

fn check(world: &World) -> Vec<String> {
    let mut wrong = world.violations.clone();
    check_numbers(world, &mut wrong);
    check_contents(world, &mut wrong);
    check_forgetting(world, &mut wrong);
    wrong
}

/// Every number is in the hub, or excused by its maker, or shown as missing because its copies were destroyed.
fn check_numbers(world: &World, wrong: &mut Vec<String>) {
    let at_agent = world.held_at_agent();
    for (&(spool, seq), &digest) in &world.made {
        let row = world.hub.state.rows.get(&(DEVICE, spool));
        let in_hub = world.hub.state.contents.contains_key(&(spool, seq, digest)) || world.hub.state.held.contains(&(spool, seq, digest));
        if in_hub {
            continue;
        }
        let at_relay = world.relays.iter().flat_map(|relay| &relay.buffers).any(|buffer| {
            let waits = |segment: u64| segment >= buffer.sync().position().segment;
            buffer
                .queue()
                .segments()
                .any(|(segment, sidecar)| waits(segment) && sidecar.numbers(DEVICE, spool).contains(seq) && buffer.has_backlog())
        });
        let excused = row.is_some_and(|row| row.excused().contains(seq));
        let was_destroyed = world.was_destroyed((spool, seq));
        let shown = row.is_some_and(|row| row.missing().announced.contains(seq) || row.missing().lost.contains(seq));
        if at_agent.contains(&(spool, seq)) && !world.agent.side().is_aside(spool, seq) {
            wrong.push(format!("STALL: {spool} {seq} is on the laptop and never arrives"));
        } else if at_relay {
            wrong.push(format!("STALL: {spool} {seq} is in a relay and never arrives"));
        } else if excused {
            continue;
        } else if !was_destroyed {
            wrong.push(format!("LOST: {spool} {seq}"));
        } else if !shown && !world.restored && !world.forgotten.contains(&(spool, seq)) {
            wrong.push(format!("HOLE: {spool} {seq} is gone, no Gap names it, and the hub doesn't show it"));
        }
    }
}

/// No content twice, and no number with two contents.
fn check_contents(world: &World, wrong: &mut Vec<String>) {
    let mut last = None;
    for (&(spool, seq, digest), &times) in &world.hub.state.contents {
        if times > 1 {
            wrong.push(format!("TWICE: {spool} {seq} has its rows {times} times"));
        }
        if last == Some((spool, seq)) {
            wrong.push(format!("TWO CONTENTS: {spool} {seq}"));
        }
        if world.made.get(&(spool, seq)).is_none_or(|made| *made != digest) && !world.forgotten.contains(&(spool, seq)) {
            wrong.push(format!("MADE UP: {spool} {seq} was never made like this"));
        }
        last = Some((spool, seq));
    }
}

/// What the hub has is deleted at the agent, spools that are over are forgotten, and relays have nothing to send.
fn check_forgetting(world: &World, wrong: &mut Vec<String>) {
    for lane in Lane::ALL {
        let queue = world.agent.queue(lane);
        for (segment, sidecar) in queue.segments().filter(|(segment, _)| Some(*segment) != queue.tail()) {
            let in_hub = |spool, seq| world.hub.state.rows.get(&(DEVICE, spool)).is_some_and(|row| row.stored().contains(seq));
            if sidecar.ranges.iter().all(|(key, ranges)| ranges.numbers().take(limits::BATCH_RECORDS_MAX).all(|seq| in_hub(key.1, seq))) {
                wrong.push(format!("KEPT FOR EVER: {lane} segment {segment}, though all of it is in the hub"));
            }
        }
        if let Some((spool, _)) = world.agent.side().stubs(lane).next() {
            wrong.push(format!("KEPT FOR EVER: the stub of {spool}"));
        }
        for (number, relay) in world.relays.iter().enumerate() {
            if let Some((segment, _)) = relay.buffers[lane.index()].queue().segments().find(|(_, sidecar)| sidecar.closed) {
                wrong.push(format!("KEPT FOR EVER: relay {number}'s {lane} segment {segment}, though every backup contains it"));
            }
        }
        if let Some(relay) = world.relays.iter().position(|relay| relay.buffers[lane.index()].has_backlog()) {
            wrong.push(format!("STALL: relay {relay} keeps a backlog of {lane}"));
        }
    }
}
