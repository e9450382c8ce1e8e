//! What can go wrong with a journal, by what the caller does about it.

use crate::disk::DiskError;

/// Errors of format, store and recovery.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// The disk failed. The store has stopped: leave the set, rebuild elsewhere.
    #[error("disk: {0}")]
    Disk(#[from] DiskError),
    /// Bytes that had been durable are damaged: fetch them from a peer.
    #[error("damaged {what} in segment {segment} at byte {offset}")]
    Corrupt {
        what: &'static str,
        segment: u64,
        offset: u64,
    },
    /// No valid superblock, or a directory of another volume.
    #[error("not a journal of this volume: {0}")]
    NotThisVolume(String),
    /// Bytes that are no group, descriptor or frame of ours.
    #[error("malformed {what}: {reason}")]
    Malformed {
        what: &'static str,
        reason: &'static str,
    },
    /// A writer with an epoch below the promised one.
    #[error("epoch {offered} is stale: {promised} has been promised")]
    StaleEpoch { offered: u64, promised: u64 },
    /// The group does not follow the tail: catch up first.
    #[error("group starts at {found}, the tail is at {tail}")]
    OutOfOrder { tail: u64, found: u64 },
    /// The group's previous chain is not ours: the histories diverge.
    #[error("histories diverge after seq {seq}")]
    Diverged { seq: u64 },
    /// Nothing but the reserve is left.
    #[error("no space left for this volume")]
    NoSpace,
    /// The point lies before the horizon or after the tail.
    #[error("history reaches from {horizon} to {tail}, not to {asked}")]
    OutOfHistory { horizon: u64, tail: u64, asked: u64 },
    /// The copy knows that it lacks what had been acknowledged, and no other is there that has it.
    #[error(
        "what this volume held is lost here: its copy is empty or damaged, and no other has everything"
    )]
    Lost,
    /// The store has stopped after a failure.
    #[error("the store has stopped")]
    Stopped,
}

impl JournalError {
    /// The disk is full: what was asked may succeed later.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace | Self::Disk(DiskError::NoSpace))
    }
}

pub(crate) fn malformed(what: &'static str, reason: &'static str) -> JournalError {
    JournalError::Malformed { what, reason }
}
