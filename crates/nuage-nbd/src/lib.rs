//! An NBD server without sockets: fixed newstyle handshake, structured replies, block status.
//!
//! The second door to a volume, for QEMU, `nbdcopy` and the kernel's client. Specification: the
//! NBD protocol document of the NetworkBlockDevice project. What is served and what is not:
//! `docs/protocols/nbd.md`.
//!
//! ```text
//!  bytes ──► Server: handshake | requests ── Request ──► BlockDevice
//!  bytes ◄── Output ◄── replies           ◄── Completion ──┘
//! ```

// NBD's flags are independent bits; its names (REQUEST_ONE) are not Rust items.
#![allow(clippy::struct_excessive_bools, clippy::doc_markdown)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod handshake;
mod server;
mod transmission;
pub mod wire;

pub use server::{ConnectionId, Event, Export, ExportId, Server};
