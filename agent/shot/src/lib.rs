//! Quiet: takes pictures of the screen for the agent, in a process of its own, and hands them over small and, as a rule, blurred.
//!
//! ```text
//! request ─▶ look ─▶ capture ─▶ look ─▶ crop ─▶ blur or scale ─▶ encode ─▶ frames on stdout
//!              └── an excluded window can be seen: no picture ──┘
//! ```
//!
//! Nothing is ever written to a file: what was captured is given back when the process ends. There is no way past the second look, and
//! no byte of a picture goes out before the last part has passed it.

pub mod answer;
mod blur;
mod capture;
mod encode;
mod picture;
pub mod request;
pub mod shot;
pub mod visible;
mod windows;

pub use blur::{CELL_SIDE_MIN, GRID_SIDE_MAX, blur, grid};
pub use encode::{Encoded, encode};
pub use picture::Picture;
