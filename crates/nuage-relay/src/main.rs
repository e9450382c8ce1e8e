//! The relay of one V-node (docs/design/vnode.md, "Disks at another site").
//!
//! It is started by the V-node's agent and goes on without it, takes the iSCSI connections of guests that
//! the packet filter leads to it, and carries each over TLS to the storage daemon that serves the portal.

mod options;
mod orders;
mod pipe;
mod relay;

use nuage_io::log;
use nuage_io::socket::{Endpoint, Listener};
use nuage_io::tls::Trust;
use nuage_io::user::become_user;
use options::{Command, Options};
use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

fn main() -> ExitCode {
    log::use_json(true);
    let options = match options::parse(std::env::args().skip(1)) {
        Ok(Command::Serve(options)) => options,
        Ok(Command::Help) => return say(options::USAGE),
        Ok(Command::Version) => return say(concat!("nuage-relay ", env!("CARGO_PKG_VERSION"))),
        Err(error) => {
            log::error("command_line", &[("error", error.into())]);
            return ExitCode::from(2);
        }
    };
    match serve(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error("failed", &[("error", error.to_string().into())]);
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) -> ExitCode {
    match writeln!(io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve(options: &Options) -> io::Result<()> {
    let listener = Listener::bind(&options.listen)?;
    let trust = Trust::load(options.tls.clone()).map_err(io::Error::other)?;
    let control = Listener::bind(&Endpoint::Unix(options.control.clone()))?;
    become_user(options.uid, options.gid)?;
    let (signals, rings) = UnixStream::pair()?;
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::low_level::pipe::register(signal, rings.try_clone()?)?;
    }
    relay::Relay::new(listener, control, signals, trust)?.run()
}
