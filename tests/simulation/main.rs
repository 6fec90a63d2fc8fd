//! Blocking: the hop's rules under loss, repeats, crashes, moves, wipes, damage, images and restores, many thousand times a minute.
//!
//! A failing seed shrinks to the trace that is printed. `MUSTER_TEST=long` runs more; `MUSTER_SEED=n` runs one.
#![allow(clippy::print_stdout)]

mod action;
mod hub;
mod oracle;
mod outage;
mod plant;
mod relay;
mod world;

use std::{
    env,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use action::{Action, random_run, shrink};
use plant::Plant;

const STEPS: usize = 90;

#[test]
fn nothing_is_lost_doubled_stuck_or_kept_for_ever() {
    if let Some(seed) = env::var("MUSTER_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return assert_sound(seed, STEPS);
    }
    let long = env::var("MUSTER_TEST").is_ok_and(|kind| kind == "long");
    let seeds = if long { 1_000_000 } else { 50_000 };
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let seed = next.fetch_add(1, Ordering::Relaxed)
                    && seed < seeds
                {
                    assert_sound(seed, if seed % 8 == 0 { 3 * STEPS } else { STEPS });
                }
            });
        }
    });
}

fn assert_sound(seed: u64, steps: usize) {
    let actions = random_run(seed, steps);
    let wrong = oracle::run(&actions, None);
    if wrong.is_empty() {
        return;
    }
    let (trace, wrong) = smallest(&actions, None, &wrong[0]);
    panic!("seed {seed}: {}\n  {}", wrong.join("\n  "), text(&trace));
}

/// The smallest trace that still breaks in the same class.
fn smallest(actions: &[Action], plant: Option<Plant>, first: &str) -> (Vec<Action>, Vec<String>) {
    let class = first.split(':').next().unwrap_or_default().to_owned();
    let fails = |actions: &[Action]| oracle::run(actions, plant).iter().any(|wrong| wrong.starts_with(&class));
    let trace = shrink(actions, fails);
    let wrong = oracle::run(&trace, plant);
    (trace, wrong)
}

fn text(trace: &[Action]) -> String {
    trace.iter().map(|action| format!("{action:?}")).collect::<Vec<_>>().join(" · ")
}

#[test]
fn each_rule_of_the_hop_is_needed() {
    let missed: Vec<String> = Plant::ALL.into_iter().filter_map(|plant| caught(plant).err()).collect();
    assert!(missed.is_empty(), "not caught: {}", missed.join(", "));
}

/// Turns one rule back and looks for a run that shows it, which is sound with the rule.
fn caught(plant: Plant) -> Result<(), String> {
    if let Some(trace) = plant.directed() {
        let sound = oracle::run(&trace, None);
        assert!(sound.is_empty(), "{plant:?}'s trace breaks the sound rules: {}", sound.join(", "));
        let wrong = oracle::run(&trace, Some(plant)).into_iter().next().ok_or(format!("{plant:?}"))?;
        println!("{plant:?}: directed: {wrong}");
        return Ok(());
    }
    let wrong = (0..SEEDS_PER_PLANT).find_map(|seed| Some((seed, oracle::run(&random_run(seed, STEPS), Some(plant)).into_iter().next()?)));
    let (seed, wrong) = wrong.ok_or(format!("{plant:?}"))?;
    println!("{plant:?}: seed {seed}: {wrong}");
    Ok(())
}

const SEEDS_PER_PLANT: u64 = 5_000;
