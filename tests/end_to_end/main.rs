//! Async: the whole mesh in real processes: killed, wiped, restored, moved, looked through. One binary; `ops/test` builds the programs first.

mod canary;
mod faults;
mod kills;
mod swarm;
