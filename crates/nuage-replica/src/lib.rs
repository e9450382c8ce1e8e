//! Replication of a journal as pure decisions (docs/protocols/replication.md).
//!
//! [`Policy`] says which copies must hold a write before it is answered, and whom a new head must fence.
//! [`Frame`] is what head and replica say to each other; [`rules`] are the few decisions that keep data safe, shared by
//! the engine, the simulator and the model checker. Nothing here knows a socket, a file or a clock.

mod frame;
mod lease;
mod policy;
pub mod rules;

pub use frame::{Base, FRAME_BYTES_MAX, Frame, FrameError, FrameReader, Marks, Refusal, Tail};
pub use lease::{LEASE_NS, Lease, RELEASED_NS, takeover_wait_ns};
pub use policy::{Copies, Policy, PolicyError, PolicyName};
