//! The journal of a volume: format, index, crash recovery, history.
//!
//! A [`Store`] is one copy of a volume in one directory, reached through the [`Disk`] port. It takes
//! [`Group`]s that a head made with a [`GroupBuilder`], makes them durable in order, and answers
//! reads of blocks. It decides nothing about replication, knows no socket, thread or clock, and opens no
//! file itself. Format and rules: docs/protocols/journal.md.
// Lengths are bounded by segments and groups; uuids and names look alike on purpose.
#![allow(
    clippy::cast_possible_truncation,
    clippy::missing_panics_doc,
    clippy::doc_markdown,
    clippy::verbose_bit_mask,
    clippy::similar_names
)]

mod bytes;
mod checkpoint;
mod cipher;
mod compaction;
mod disk;
mod error;
mod first_blocks;
mod history;
mod index;
mod layout;
mod mending;
mod page;
mod reading;
mod rebuild;
mod receipts;
mod recent;
mod recovery;
mod replay;
mod retention;
mod scrubbing;
mod segment;
mod standing;
mod store;
mod superblocks;

pub use checkpoint::{
    Checkpoint, Mark, Position, SideState, Superblock, checkpoint_name, decode_side, encode_side,
};
pub use cipher::{BlockOrigin, Cipher, DataKey, VolumeUuid, block_crc};
pub use disk::{
    BLOCK_BYTES, Content, Disk, DiskError, DiskOperation, DiskResult, FileId, Now, Piece,
};
pub use error::JournalError;
pub use history::{ChainProof, CloneParts, HistoryItem, Point};
pub use index::{Entry, Index, changed_runs};
pub use layout::{
    BlockFacts, Chain, Closing, Descriptor, FLAG_ATOMIC, FLAG_FUA, Group, GroupBuilder, GroupHead,
    GroupInfo, Kind, RESERVATIONS_BYTES_MAX, chain_of,
};
pub use mending::{BlockWish, Damage};
pub use page::PAGE_ENTRIES;
pub use reading::{ReadError, ReadOutcome, Wanted};
pub use rebuild::{BaseOffer, BaseRead, BaseReader};
pub use receipts::{Receipt, ReceiptAct, Told};
pub use recovery::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, TailRule, VolumeSpec, segment_bytes_for};
pub use replay::State;
pub use scrubbing::{ScrubReport, ScrubStep};
pub use segment::{Scan, Scanned, Seal, SegmentHeader, SegmentKind, decode_first_block, scan};
pub use standing::Standing;
pub use store::{Anchor, Retention, Store, StoreEvent};
