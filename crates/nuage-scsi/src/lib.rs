//! An iSCSI target and the SCSI disk behind it, without sockets, threads or clocks.
//!
//! ```text
//!  bytes ──► PduReader ──► Server ── Request ──► BlockDevice
//!  bytes ◄── Output    ◄──   │   ◄── Completion ──┘
//!                            └── LogicalUnit: CDB → Step → Reply
//! ```
//!
//! [`Server`] holds every target of a daemon, their sessions and tasks; the loop in `nuage-io`
//! feeds it bytes and completions and takes bytes and requests. Specifications: RFC 7143 (iSCSI),
//! SAM-5, SPC-4, SBC-3. What is left out, and why: `docs/protocols/iscsi.md`.

// The wire's own names (StatSN, CmdSN, EDTL) are not Rust items; its flags are what they are.
#![cfg_attr(test, allow(clippy::unwrap_used))]
#![allow(
    clippy::doc_markdown,
    clippy::struct_excessive_bools,
    clippy::verbose_bit_mask
)]

mod block;
pub mod chap;
pub mod inquiry;
pub mod login;
mod manage;
mod mode;
pub mod negotiate;
pub mod opcodes;
pub mod pdu;
pub mod reservation;
mod respond;
pub mod sense;
mod server;
mod session;
pub mod text;
pub mod unit;

pub use login::Access;
pub use server::{ConnectionId, Event, Server, SessionInfo, TargetId};
pub use unit::{AccessState, Alua, PortGroup};
