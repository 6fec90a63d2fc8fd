//! Blocking: medians, ratios and memory.

use anyhow::Context;

/// Runs all contenders in turn, three times, and prints each one's median, and its ratio to the first's.
pub fn alternate(unit: &str, contenders: &mut [(&str, &mut dyn FnMut() -> anyhow::Result<f64>)]) -> anyhow::Result<()> {
    let mut results = vec![Vec::new(); contenders.len()];
    for _ in 0..3 {
        for ((_, contender), results) in contenders.iter_mut().zip(&mut results) {
            results.push(contender()?);
        }
    }
    let medians: Vec<f64> = results.iter_mut().map(|results| median(results)).collect();
    for (((name, _), results), median) in contenders.iter().zip(&results).zip(&medians) {
        println!("{name:<58} {median:>12.1} {unit}   {:>5.2} of the first   runs {results:.0?}", median / medians[0]);
    }
    Ok(())
}

/// The most memory that this process ever had, in KiB (Linux's VmHWM).
pub fn resident_max_kb() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("this system doesn't tell a process's memory")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

fn median(results: &mut [f64]) -> f64 {
    results.sort_by(f64::total_cmp);
    results[results.len() / 2]
}
