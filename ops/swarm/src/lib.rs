//! Quiet: load and proof: many agents that live realistic days, and a check that every batch they made became what their journal says.

pub mod check;
pub mod cli;
pub mod day;
pub mod journal;
pub mod pictures;
pub mod run;
