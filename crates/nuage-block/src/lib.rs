//! What a front end (iSCSI, NBD) and a storage engine say to each other.
//!
//! A front end turns its wire's commands into [`Request`]s; an engine answers each with one
//! [`Completion`], in any order. Both live on one thread: `submit` never blocks, and completions
//! are drained with `poll`, which the loop calls once after each batch of `submit`s: the natural
//! place to close a group. Requests take effect in the order of their submission. Nothing here
//! knows a socket, a file or a clock.
//!
//! Addresses and lengths are bytes and multiples of 512; the engine's own block is 4096 bytes and
//! it merges smaller writes itself.

mod buffer;
mod crc;
pub mod memory;
mod output;
mod pages;

pub use buffer::{Buffer, PAGE_BYTES};
pub use crc::{crc32c, crc32c_append};
pub use output::Output;
pub use pages::Pages;

/// Bytes that several hold.
pub use bytes::Bytes;

use std::sync::Arc;
use std::time::Duration;

/// Chosen by the front end, unique among its requests in flight.
pub type Tag = u64;

/// One operation on a volume. `fua`: durable by the volume's policy before it completes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    Read {
        offset: u64,
        length: u32,
    },
    Write {
        offset: u64,
        data: Buffer,
        fua: bool,
    },
    /// All writes completed before this one are durable once it completes.
    Flush,
    /// Reads give zeros afterwards; space is given back (UNMAP, NBD TRIM).
    Unmap {
        offset: u64,
        length: u64,
    },
    /// Reads give zeros afterwards; `allocate` keeps the space (WRITE SAME of zeros).
    WriteZeroes {
        offset: u64,
        length: u64,
        allocate: bool,
        fua: bool,
    },
    /// Compare and log under one lock; a mismatch writes nothing (SBC-3 COMPARE AND WRITE).
    CompareAndWrite {
        offset: u64,
        expected: Vec<u8>,
        data: Buffer,
        fua: bool,
    },
    /// Keep the target's persistent-reservation state (SPC-4, APTPL) as a journal record.
    StoreReservations {
        state: Vec<u8>,
    },
    /// Give back what `StoreReservations` kept last.
    LoadReservations,
    /// Which ranges hold data: answered by `Outcome::Extents`.
    BlockStatus {
        offset: u64,
        length: u64,
    },
}

/// An operation with the tag that its completion will carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub tag: Tag,
    pub operation: Operation,
}

/// A run of bytes that is mapped (holds data) or not (reads as zeros).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub length: u64,
    pub mapped: bool,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Data(Vec<u8>),
    Extents(Vec<Extent>),
    Reservations(Vec<u8>),
    /// COMPARE AND WRITE: first byte that differs, counted from the start of the range.
    Miscompare {
        at: u32,
    },
    Failed(Failure),
}

/// Why a request failed; a front end maps it to its wire's codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("the range lies outside the volume")]
    OutOfRange,
    #[error("the medium could not be read or written")]
    Medium,
    /// A block is damaged, and no copy has it; `offset`: the first such byte of what was asked for.
    #[error("no copy has the block at {offset} undamaged")]
    Checksum { offset: u64 },
    #[error("no space left for this volume")]
    NoSpace,
    #[error("the volume is read-only")]
    ReadOnly,
    #[error("this head has been fenced by a newer epoch")]
    Fenced,
    #[error("not enough replicas answer")]
    Unavailable,
}

/// The answer to the request of the same tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    pub tag: Tag,
    pub outcome: Outcome,
}

/// What a front end tells its initiators about a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    pub size_bytes: u64,
    /// 512 (512e) or 4096 (4Kn).
    pub logical_block_bytes: u32,
    /// Identity of the volume: the same on every portal and after a failover.
    pub uuid: [u8; 16],
    pub name: Arc<str>,
    pub read_only: bool,
    /// True when completed writes may be volatile until a flush (WCE=1).
    pub write_cache: bool,
}

/// A volume served on one thread. The engine implements it; so do test doubles.
pub trait BlockDevice {
    fn geometry(&self) -> Geometry;
    /// Take a request; never blocks. The engine bounds what it holds and completes the rest with
    /// `Failed`, so a front end limits its own queue (`queue_depth_max`).
    fn submit(&mut self, request: Request);
    /// Move what has completed since the last call to the end of `completions`.
    fn poll(&mut self, completions: &mut Vec<Completion>);
    /// Requests in flight that the engine accepts at once.
    fn queue_depth_max(&self) -> usize;
    /// A file descriptor that becomes readable when `poll` has something to give, for the loop to
    /// sleep on. It is watched level-triggered and belongs to the device, which makes it silent
    /// again inside `poll`. `None`: everything completes inside `submit` or `poll`.
    fn wake_fd(&self) -> Option<i32> {
        None
    }
    /// Longest sleep until `poll` must be called again although the descriptor stays silent
    /// (a lease to renew, a group to close). `None`: sleep for as long as you like.
    fn poll_within(&self) -> Option<Duration> {
        None
    }
}
