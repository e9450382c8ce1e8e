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

fn main() -> ExitCode {
    log::use_json(true);
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
