//! Async: nodes that are switched off or cut off and return, some after their certificate's end.

use std::time::Duration;

use tokio::time::sleep;

use crate::{
    Branch, ISSUING, LIVES, STEP_EVERY, World,
    hub::Issued,
    time::{DAY, MINUTE, in_virtual_time},
};

/// Minutes between two outages of a node, and of an outage: a node is down for a third of the time. The longest is longer than any leaf's life.
const UP: (u64, u64) = (10, 34);
const DOWN: (u64, u64) = (3, 18);

#[test]
fn the_same_with_a_third_of_all_nodes_down_and_returning_loses_nothing() {
    in_virtual_time(|time| async move {
        let mut world = World::new(&time, 2, LIVES, &[Branch::new("oslo", 2, 4)]).await;
        world.start_all();
        let mut outages = Outages::new(&mut world);
        let (mut approved, mut next_step) = (0, STEP_EVERY);
        while !world.has_rotated_enough().await {
            assert!(time.passed() < DAY, "{}", world.so_far().await);
            sleep(MINUTE).await;
            outages.go_on(&mut world, time.passed()).await;
            approved += world.hub.approve_those_who_wait().await;
            if time.passed() >= next_step {
                next_step += STEP_EVERY;
                world.rotate().await;
            }
        }
        outages.end(&mut world).await;
        // Who is still waiting for an admin is let in.
        for _ in 0..30 {
            sleep(MINUTE).await;
            approved += world.hub.approve_those_who_wait().await;
        }
        world.all_that_was_kept_arrives().await;
        world.say(&time).await;
        assert!(outages.offs > 30 && outages.cuts > 30, "{} and {}", outages.offs, outages.cuts);
        let share = outages.down_minutes as f64 / outages.minutes as f64;
        assert!((0.2..0.4).contains(&share), "{share} of the nodes were down: another world was meant");
        for (name, Issued { recoveries, .. }) in world.hub.issued().await {
            assert!(recoveries > 0, "{name} never came back after its certificate had ended");
        }
        assert!(approved > 0, "nobody came back for the third time, when an admin is needed");
        assert_eq!(world.hub.ledger().rotated, [ISSUING, 1]);
        world.nobody_was_taken_for_a_copy();
    });
}

/// Who is down until when.
struct Outages {
    nodes: Vec<Node>,
    offs: u32,
    cuts: u32,
    minutes: u64,
    down_minutes: u64,
}

struct Node {
    which: Which,
    state: State,
    until: Duration,
}

#[derive(Clone, Copy)]
enum Which {
    Office(usize),
    Laptop(usize),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    /// Switched off.
    Off,
    /// It works on, and reaches nobody.
    Cut,
}

impl Outages {
    fn new(world: &mut World) -> Outages {
        let all = (0..world.offices.len()).map(Which::Office).chain((0..world.laptops.len()).map(Which::Laptop));
        let nodes: Vec<Which> = all.collect();
        let nodes = nodes.into_iter().map(|which| Node { which, state: State::Up, until: minutes(world, UP) }).collect();
        Outages { nodes, offs: 0, cuts: 0, minutes: 0, down_minutes: 0 }
    }

    /// A minute has passed.
    async fn go_on(&mut self, world: &mut World, passed: Duration) {
        for node in &mut self.nodes {
            self.minutes += 1;
            self.down_minutes += u64::from(node.state != State::Up);
            if passed < node.until {
                continue;
            }
            let down = if world.chance.below(2) == 0 { State::Off } else { State::Cut };
            let next = if node.state == State::Up { down } else { State::Up };
            self.offs += u32::from(next == State::Off);
            self.cuts += u32::from(next == State::Cut);
            node.turn(world, next).await;
            node.until = passed + minutes(world, if next == State::Up { UP } else { DOWN });
        }
    }

    /// Everybody is back.
    async fn end(&mut self, world: &mut World) {
        for node in &mut self.nodes {
            node.turn(world, State::Up).await;
        }
    }
}

impl Node {
    async fn turn(&mut self, world: &mut World, next: State) {
        match (self.which, self.state, next) {
            (Which::Office(n), State::Up, State::Off) => world.offices[n].stop().await,
            (Which::Laptop(n), State::Up, State::Off) => world.laptops[n].stop().await,
            (Which::Office(n), _, _) => world.offices[n].cut(next == State::Cut),
            (Which::Laptop(n), _, _) => world.laptops[n].cut(next == State::Cut),
        }
        self.state = next;
        if next == State::Up {
            match self.which {
                Which::Office(n) => world.start_office(n),
                Which::Laptop(n) => world.start_laptop(n),
            }
        }
    }
}

fn minutes(world: &mut World, (least, most): (u64, u64)) -> Duration {
    MINUTE * (least + world.chance.below(most - least + 1)) as u32
}
