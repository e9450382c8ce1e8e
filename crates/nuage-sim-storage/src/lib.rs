//! The storage engine under a virtual clock, on disks that lose and tear, over a network that stalls and breaks.
//!
//! `run(seed)` plays one world: three nodes, a volume, a client; crashes, partitions and failovers come
//! from the seed. The engine is the product's own. It fails with the first broken invariant; the same seed
//! plays the same run again.
#![allow(clippy::cast_possible_truncation, clippy::missing_panics_doc)]

mod checker;
mod disk;
mod prng;
mod world;

pub use checker::Checker;
pub use disk::{Medium, SimDisk};
pub use prng::Prng;
pub use world::{Outcome, replay, run};
