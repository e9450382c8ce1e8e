//! Every target by its name.

mod control;
mod iscsi;
mod journal;
mod nbd;
mod replication;
mod store;

/// One thing to feed bytes to.
pub struct Target {
    pub name: &'static str,
    /// Panics when a promise breaks.
    pub run: fn(&[u8]),
    /// Inputs to begin with, made by the product's own encoders.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Longest input that is worth a try.
    pub bytes_max: usize,
}

pub const TARGETS: &[Target] = &[
    Target {
        name: "iscsi-pdu",
        run: iscsi::pdus,
        seeds: iscsi::pdu_seeds,
        bytes_max: 2048,
    },
    Target {
        name: "iscsi-login",
        run: iscsi::login,
        seeds: iscsi::login_seeds,
        bytes_max: 2048,
    },
    Target {
        name: "iscsi-session",
        run: iscsi::session,
        seeds: iscsi::session_seeds,
        bytes_max: 2048,
    },
    Target {
        name: "nbd",
        run: nbd::run,
        seeds: nbd::seeds,
        bytes_max: 1024,
    },
    Target {
        name: "replica-frames",
        run: replication::frames,
        seeds: replication::frame_seeds,
        bytes_max: 1024,
    },
    Target {
        name: "replication",
        run: replication::session,
        seeds: replication::session_seeds,
        bytes_max: 1024,
    },
    Target {
        name: "journal-formats",
        run: journal::run,
        seeds: journal::seeds,
        bytes_max: 8704,
    },
    Target {
        name: "journal-store",
        run: store::run,
        seeds: store::seeds,
        bytes_max: 512,
    },
    Target {
        name: "control",
        run: control::run,
        seeds: control::seeds,
        bytes_max: 1024,
    },
];
