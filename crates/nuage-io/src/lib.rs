//! Sockets, threads and time: the loop that feeds the storage machines, and nothing that decides.
//!
//! One thread serves all: sessions and devices run to completion on it ([`serve`]); blocking file
//! work runs on small pools that wake it through descriptors.

pub mod clear;
pub mod doors;
pub mod file;
pub mod link;
pub mod log;
pub mod path;
pub mod patience;
pub mod poller;
pub mod process;
pub mod revocation;
pub mod serve;
pub mod socket;
pub mod tls;
pub mod user;
