//! What reads bytes of strangers and of disks, as targets of a fuzzer.
//!
//! A target takes any bytes and panics when a promise breaks: `tools/fuzz` lets libFuzzer look for such bytes, led by
//! the code that they reach; `tests/replay.rs` repeats the seeds and all that was ever found, with no fuzzer. Where a
//! checksum would stop nearly all that is changed, the target changes first and then computes it anew.
//! Nothing of the product needs this crate.
// What a target tests, it asserts; its volumes are small.
#![allow(clippy::missing_panics_doc, clippy::cast_possible_truncation)]

mod input;
mod targets;

pub use targets::{TARGETS, Target};
