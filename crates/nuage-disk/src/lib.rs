//! Files behind the journal's [`Disk`](nuage_journal::Disk) port.
//!
//! Writes go past the page cache (`O_DIRECT`) and are durable when they complete, by a sync behind each; what reads
//! blocks reads through it: the host's free memory is the read cache. What means the medium (scrubbing,
//! recovery) reads past it, and so are segments prepared. Reads and writes run on
//! an io_uring; where that is forbidden (many containers) a few threads do them. Preparing
//! segments and writing checkpoints is a thread's work in both cases. `FileDisk::open` chooses.
// io_uring is a name, not code.
#![allow(clippy::doc_markdown, clippy::struct_field_names)]

mod directory;
mod file_disk;
mod ring;
mod threads;

pub use directory::{BASE_FOLDER, Directory, link_file};
pub use file_disk::{FileDisk, Method};
