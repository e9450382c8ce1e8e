//! The relay of one V-node (docs/design/vnode.md, "Disks at another site").
//!
//! It is started by the V-node's agent and goes on without it, takes the iSCSI connections of guests that
//! the packet filter leads to it, and carries each over TLS to the storage daemon that serves the portal.

mod options;
mod orders;
mod pipe;
mod relay;

use nuage_io::log;
use nuage_io::process::{self, say};
use nuage_io::socket::{Endpoint, Listener};
use nuage_io::tls::Trust;
use nuage_io::user::become_user;
use options::{Command, Options};
use std::io;
use std::process::ExitCode;

/// Freed memory that stays for the next records. Left to itself the allocator gives it back at 128 KiB, with each burst,
/// and each page is taken anew for the next one.
const KEPT_BYTES: libc::c_int = 4 << 20;

fn keep_buffers() {
    // Setting one of both ends the allocator's own idea of the other.
    // SAFETY: settings of the allocator by value, before there is another thread.
    let are_taken = unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES) == 1
            && libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT_BYTES) == 1
    };
    if !are_taken {
        log::warn("buffers_not_kept", &[]);
    }
}

fn main() -> ExitCode {
    log::use_json(true);
    keep_buffers();
    let options = match options::parse(std::env::args().skip(1)) {
        Ok(Command::Serve(options)) => options,
        Ok(Command::Help) => return say(options::USAGE),
        Ok(Command::Version) => return say(concat!("nuage-relay ", env!("CARGO_PKG_VERSION"))),
        Err(error) => return process::refused(&error),
    };
    process::ended(serve(&options))
}

fn serve(options: &Options) -> io::Result<()> {
    let listener = Listener::bind(&options.listen)?;
    let trust = Trust::load(options.tls.clone()).map_err(io::Error::other)?;
    let control = Listener::bind(&Endpoint::Unix(options.control.clone()))?;
    become_user(options.uid, options.gid)?;
    relay::Relay::new(listener, control, process::signals()?, trust)?.run()
}
