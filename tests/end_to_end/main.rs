//! Async: the whole mesh in real processes: killed, wiped, restored, moved, looked through. One binary; `ops/test` builds the programs first.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod backup;
mod canary;
mod desk;
mod engines;
mod enrolment;
mod faults;
mod full_disks;
mod hostile;
mod kills;
mod line;
mod mistakes;
mod object_store;
mod pictures;
mod quickstart;
mod revoked;
mod rotation;
mod runbooks;
mod small_disk;
mod swarm;
mod sweeps;
