//! A volume's head: the one writer that orders, journals and replicates its writes and answers its
//! reads. [`Volume`] is what the front ends serve; [`open_volume`] makes one from a directory.
//! Everything runs on one thread; time comes from a [`Clock`], the disk from the journal's port.
// Lengths are bounded by groups; machines take their messages by value; an engine has a `head`.
#![allow(
    clippy::cast_possible_truncation,
    clippy::needless_pass_by_value,
    clippy::struct_field_names,
    clippy::unnecessary_wraps
)]

mod device;
mod extents;
mod head;
mod local;
mod overlay;
mod qos;
mod replicas;
mod server;

pub use device::{ViewDevice, Volume};
pub use head::{
    AckMode, Administration, Clock, CopyOptions, EPOCH_RESTART_BITS, HeadEvent, HeadOptions,
    QUEUE_DEPTH_MAX, VolumeHead, first_epoch, next_epoch,
};
pub use local::{SystemClock, clone_store, create_to_join, create_volume, open_volume};
pub use qos::{Bucket, Budget, Class, Limited, Rate, SharedBucket, SharedBudget, Use};
pub use replicas::{Answering, CUT_OFF_NS, CopyState, CopyStatus, Lag, LagBound, RebuildProgress};
pub use server::{Handover, ReplicaStore, SessionId};
