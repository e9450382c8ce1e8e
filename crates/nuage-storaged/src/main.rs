//! The storage daemon of one `IaaS` on one IO-node (docs/protocols/storaged.md).
//!
//! It is started by the IO-node agent, holds the volumes' journals, and serves them over iSCSI and
//! NBD on one thread. It decides nothing about where data lies: epochs, policies and replicas come
//! through the control socket.

mod catalogue;
mod clones;
mod control;
mod daemon;
mod data;
mod disks;
mod fill;
mod filling;
mod heads;
mod keys;
mod limits;
mod memory;
mod metrics;
mod options;
mod past;
mod quarantine;
mod receipts;
mod replication;
mod report;
mod rivals;
mod scrubbing;
mod standby;
mod tidying;
mod turns;
mod views;

use nuage_io::clear::ClearFrom;
use nuage_io::doors::Doors;
use nuage_io::log;
use nuage_io::process::{self, say};
use nuage_io::serve::{Door, EventLoop};
use nuage_io::socket::{Endpoint, Listener};
use nuage_io::tls::Trust;
use nuage_io::user::become_user;
use options::{Command, Options};
use std::io;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let options = match options::parse(std::env::args().skip(1)) {
        Ok(Command::Serve(options)) => options,
        Ok(Command::Help) => return say(options::USAGE),
        Ok(Command::Version) => return say(concat!("nuage-storaged ", env!("CARGO_PKG_VERSION"))),
        Err(error) => return process::refused(&error.to_string()),
    };
    log::use_json(options.log_json);
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // A bug of ours: nothing after it can be trusted with data.
        report(panic);
        std::process::abort();
    }));
    process::ended(serve(&options))
}

fn bind(endpoint: &Endpoint) -> io::Result<Listener> {
    Listener::bind(endpoint)
        .map_err(|error| io::Error::new(error.kind(), format!("{endpoint}: {error}")))
}

/// As many descriptors as we may have: shells give 1024, which a thousand connections and the segments of
/// a few volumes exceed. Refused, the fewer must do.
fn widen_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let all = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, all) {
        log::warn("few_descriptors", &[("error", error.to_string().into())]);
    }
}

fn serve(options: &Options) -> io::Result<()> {
    memory::keep_buffers();
    turns::run_soon();
    widen_descriptors();
    let mut listeners = vec![(
        bind(&Endpoint::Unix(options.control.clone()))?,
        Door::Control,
    )];
    for endpoint in &options.iscsi {
        listeners.push((bind(endpoint)?, Door::Iscsi));
    }
    for endpoint in &options.nbd {
        listeners.push((bind(endpoint)?, Door::Nbd));
    }
    if let Some(endpoint) = &options.replica {
        listeners.push((bind(endpoint)?, Door::Replica));
    }
    // The key may be readable only for who starts us.
    let trust = match &options.tls {
        None => None,
        Some(files) => Some(Trust::load(files.clone()).map_err(io::Error::other)?),
    };
    become_user(options.uid, options.gid)?;
    let mut portals = options.advertise.clone();
    if portals.is_empty() {
        let fixed = listeners
            .iter()
            .filter(|(_, door)| *door == Door::Iscsi)
            .filter_map(|(listener, _)| match &listener.endpoint {
                Endpoint::Tcp(address) if !address.ip().is_unspecified() => {
                    Some(address.to_string())
                }
                _ => None,
            });
        portals = fixed.collect();
    }
    let iscsi = nuage_scsi::Server::new(options.portal_group, portals);
    let nbd = nuage_nbd::Server::default();
    let signals = process::signals()?;
    let mut daemon =
        daemon::Storaged::open(options, trust.as_ref().map(|trust| trust.node().to_owned()))?;
    for (listener, door) in &listeners {
        let at = listener.endpoint.to_string();
        log::info(
            "listening",
            &[("at", at.into()), ("door", format!("{door:?}").into())],
        );
    }
    let clear_from = ClearFrom::new(options.clear_from.clone());
    EventLoop::new(
        Doors::new(iscsi, nbd),
        listeners,
        signals,
        trust,
        clear_from,
    )?
    .run(&mut daemon)
}
