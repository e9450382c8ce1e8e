//! The loop of a storage daemon: one thread, run to completion.
//!
//! ```text
//!  wait ─► accept / read ─► machines ─► devices ─► machines ─► one writev a connection ─► wait
//! ```
//!
//! Every turn handles all that is ready, moves requests and completions until both sides are quiet,
//! and only then writes, so that a batch of answers is one system call. A connection that does not
//! take its answers is not read; one that does not finish its login in `LOGIN_TIME_MAX` is closed.

mod far;

use crate::clear::ClearFrom;
use crate::doors::{Answer, Doors, VolumeId};
use crate::link::{LinkEvent, LinkId, LinkSet, Links};
use crate::log;
use crate::path::Identity;
use crate::poller::{Interest, Poller, Ready, Token};
use crate::socket::{Listener, Moved, Stream};
use crate::tls::{Speaks, Trust};
use far::Far;
use rustix::fd::{AsFd as _, BorrowedFd};
use serde_json::Value;
use slab::Slab;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice, Read as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Bytes read at once: a window of small requests, or one burst.
const READ_BYTES: usize = 256 * 1024;
/// Reads of one connection before the next one has its turn.
const READS_MAX: usize = 8;
/// Data that lacks as much is read to where it belongs, not through the buffer of small requests.
const DIRECT_BYTES_MIN: usize = 16 * 1024;
/// What is read behind it: the next header, and little of its data.
const BEHIND_BYTES: usize = 2048;
/// Slices of one `writev`.
const SLICES_MAX: usize = 64;
/// Time for a login or handshake.
const LOGIN_TIME_MAX: Duration = Duration::from_secs(15);
/// Longest control line.
const LINE_BYTES_MAX: usize = 1024 * 1024;
/// Answers a control client may leave unread before it is dropped.
const CONTROL_OUTPUT_MAX: usize = 16 * 1024 * 1024;
/// Control clients at once.
const CONTROL_CLIENTS_MAX: usize = 64;

const KIND_LISTENER: u8 = 0;
const KIND_CONNECTION: u8 = 1;
const KIND_DEVICE: u8 = 2;
const KIND_SIGNAL: u8 = 3;
const KIND_WORKER: u8 = 4;
const KIND_LINK: u8 = 5;

pub type ClientId = u32;

/// Which machine a listener feeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Iscsi,
    Nbd,
    Control,
    /// Heads of other daemons and initiators of other sites, over TLS.
    Replica,
}

/// What a daemon may reach while it handles something.
pub struct Context<'a> {
    pub doors: &'a mut Doors,
    pub links: &'a mut Links,
    /// Lines for control clients.
    pub replies: &'a mut Vec<(ClientId, Vec<u8>)>,
    /// Set: the loop ends after this turn.
    pub stop: &'a mut bool,
}

/// The part of a daemon that decides: control requests, answers of volumes, time.
pub trait Daemon {
    /// A line, without its end, from a control client.
    fn line(&mut self, client: ClientId, line: &[u8], context: &mut Context<'_>);
    /// A control client is gone.
    fn client_gone(&mut self, client: ClientId);
    /// A volume answered [`Doors::ask`].
    fn answer(&mut self, answer: Answer, context: &mut Context<'_>);
    /// A link is encrypted and its peer known; `token`: we connected.
    fn link_up(
        &mut self,
        link: LinkId,
        token: Option<u64>,
        peer: &Identity,
        context: &mut Context<'_>,
    );
    fn link_data(&mut self, link: LinkId, bytes: &[u8], context: &mut Context<'_>);
    /// A link is over, or could not be made.
    fn link_down(
        &mut self,
        link: LinkId,
        token: Option<u64>,
        reason: &str,
        context: &mut Context<'_>,
    );
    /// SIGTERM or SIGINT.
    fn terminate(&mut self, context: &mut Context<'_>);
    /// Something woke the loop, or [`Daemon::wake_within`] is over.
    fn turn(&mut self, context: &mut Context<'_>);
    fn wake_within(&self) -> Option<Duration>;
    /// Descriptor of the daemon's own workers.
    fn worker_fd(&self) -> Option<BorrowedFd<'_>>;
    /// That descriptor is readable: drain it. `turn` follows.
    fn worker_woke(&mut self);
}

#[derive(Debug, Clone, Copy)]
enum Peer {
    Iscsi(nuage_scsi::ConnectionId),
    Nbd(nuage_nbd::ConnectionId),
    Control,
}

struct Connection {
    stream: Stream,
    peer: Peer,
    interest: Interest,
    deadline: Option<Instant>,
    /// Control only.
    input: Vec<u8>,
    output: Vec<u8>,
}

pub struct EventLoop {
    poller: Poller,
    doors: Doors,
    listeners: Vec<(Listener, Door)>,
    connections: Slab<Connection>,
    iscsi_sockets: BTreeMap<nuage_scsi::ConnectionId, usize>,
    nbd_sockets: BTreeMap<nuage_nbd::ConnectionId, usize>,
    watched: BTreeMap<VolumeId, i32>,
    links: LinkSet,
    far: BTreeMap<LinkId, Far>,
    far_links: BTreeMap<nuage_scsi::ConnectionId, LinkId>,
    clear_from: ClearFrom,
    signals: UnixStream,
    scratch: Vec<u8>,
    replies: Vec<(ClientId, Vec<u8>)>,
    stop: bool,
    logins: usize,
}

macro_rules! context {
    ($loop:ident) => {
        &mut Context {
            doors: &mut $loop.doors,
            links: &mut $loop.links.orders,
            replies: &mut $loop.replies,
            stop: &mut $loop.stop,
        }
    };
}

impl EventLoop {
    /// `signals`: becomes readable on SIGTERM or SIGINT.
    pub fn new(
        doors: Doors,
        listeners: Vec<(Listener, Door)>,
        signals: UnixStream,
        trust: Option<Trust>,
        clear_from: ClearFrom,
    ) -> io::Result<Self> {
        let poller = Poller::new()?;
        signals.set_nonblocking(true)?;
        poller.add(
            &signals,
            Token {
                kind: KIND_SIGNAL,
                id: 0,
            },
            Interest::READ,
        )?;
        for (index, (listener, _)) in listeners.iter().enumerate() {
            let id = u32::try_from(index).unwrap_or(u32::MAX);
            poller.add(
                listener,
                Token {
                    kind: KIND_LISTENER,
                    id,
                },
                Interest::READ,
            )?;
        }
        Ok(Self {
            poller,
            doors,
            listeners,
            connections: Slab::new(),
            iscsi_sockets: BTreeMap::new(),
            nbd_sockets: BTreeMap::new(),
            watched: BTreeMap::new(),
            links: LinkSet::new(trust),
            far: BTreeMap::new(),
            far_links: BTreeMap::new(),
            clear_from,
            signals,
            scratch: vec![0; READ_BYTES],
            replies: Vec::new(),
            stop: false,
            logins: 0,
        })
    }

    /// Serve until the daemon stops it.
    pub fn run(&mut self, daemon: &mut dyn Daemon) -> io::Result<()> {
        if let Some(fd) = daemon.worker_fd() {
            self.poller.add(
                fd,
                Token {
                    kind: KIND_WORKER,
                    id: 0,
                },
                Interest::READ,
            )?;
        }
        let mut ready = Vec::new();
        while !self.stop {
            self.watch_devices();
            let timeout = self.timeout(daemon);
            let owed = self.doors.owes_answers();
            self.poller.look_or_wait(timeout, owed, &mut ready)?;
            self.links.refresh_trust(&self.poller, Instant::now());
            for ready in ready.drain(..) {
                self.handle(ready, daemon);
            }
            self.settle(daemon);
            self.expire_logins();
        }
        self.links.obey(&self.poller);
        self.send_replies();
        Ok(())
    }

    fn timeout(&self, daemon: &dyn Daemon) -> Option<Duration> {
        let devices = self
            .doors
            .volumes()
            .filter_map(|(_, device)| device.poll_within());
        let logins = (self.logins > 0).then_some(Duration::from_secs(1));
        let trust = self.links.refresh_within();
        devices
            .chain(daemon.wake_within())
            .chain(logins)
            .chain(trust)
            .min()
    }

    /// Watch the descriptors of devices that came, forget those that went.
    fn watch_devices(&mut self) {
        if !std::mem::take(&mut self.doors.changed) {
            return;
        }
        // Views share the descriptor of their head: it is watched once, for the first of them.
        let mut known = BTreeSet::new();
        let present: BTreeMap<VolumeId, i32> = self
            .doors
            .volumes()
            .filter_map(|(id, device)| device.wake_fd().map(|fd| (id, fd)))
            .chain(self.doors.also_watched.iter().map(|(id, fd)| (*id, *fd)))
            .filter(|(_, fd)| known.insert(*fd))
            .collect();
        if present == self.watched {
            return;
        }
        let gone: Vec<VolumeId> = self
            .watched
            .iter()
            .filter(|(id, fd)| present.get(id) != Some(fd))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            if let Some(fd) = self.watched.remove(&id) {
                // The device may have closed it already, which removed it.
                let _ = self.poller.remove(borrow(fd));
            }
        }
        for (id, fd) in present {
            if self.watched.contains_key(&id) {
                continue;
            }
            match self.poller.add(
                borrow(fd),
                Token {
                    kind: KIND_DEVICE,
                    id,
                },
                Interest::READ,
            ) {
                Ok(()) => {
                    self.watched.insert(id, fd);
                }
                Err(error) => {
                    self.doors.changed = true;
                    log::error(
                        "device_not_watched",
                        &[("volume", id.into()), ("error", error.to_string().into())],
                    );
                }
            }
        }
    }

    fn handle(&mut self, ready: Ready, daemon: &mut dyn Daemon) {
        match ready.token.kind {
            KIND_LISTENER => self.accept(ready.token.id as usize),
            KIND_CONNECTION => {
                let key = ready.token.id as usize;
                if ready.write {
                    self.flush(key);
                }
                if ready.read {
                    self.read(key, daemon);
                }
            }
            KIND_LINK => self.links.ready(&self.poller, ready),
            KIND_SIGNAL => {
                let mut bytes = [0; 16];
                if matches!((&self.signals).read(&mut bytes), Ok(count) if count > 0) {
                    daemon.terminate(context!(self));
                }
            }
            KIND_WORKER => daemon.worker_woke(),
            // Devices are polled in `settle`.
            _ => {}
        }
    }

    fn accept(&mut self, index: usize) {
        loop {
            let Some((listener, door)) = self.listeners.get(index) else {
                return;
            };
            let door = *door;
            match listener.accept() {
                Ok(Some(stream)) => self.welcome(stream, door),
                Ok(None) => return,
                Err(error) => {
                    // Out of descriptors, or the peer has left already: the next turn tries again.
                    return log::warn("accept_failed", &[("error", error.to_string().into())]);
                }
            }
        }
    }

    fn welcome(&mut self, stream: Stream, door: Door) {
        let peer = match door {
            Door::Replica => return self.links.accept(&self.poller, stream),
            Door::Iscsi => {
                if let Some(peer) = stream
                    .peer
                    .filter(|peer| !self.clear_from.admits(peer.ip()))
                {
                    let from = peer.ip().to_string();
                    return log::warn("iscsi_in_clear_refused", &[("from", from.into())]);
                }
                self.accept_iscsi(&stream.local).map(Peer::Iscsi)
            }
            Door::Nbd => self.doors.nbd.accept().map(Peer::Nbd),
            Door::Control => {
                let clients = self
                    .connections
                    .iter()
                    .filter(|(_, connection)| matches!(connection.peer, Peer::Control));
                (clients.count() < CONTROL_CLIENTS_MAX).then_some(Peer::Control)
            }
        };
        let Some(peer) = peer else {
            return log::warn(
                "too_many_connections",
                &[("at", stream.local.as_str().into())],
            );
        };
        let deadline = match peer {
            Peer::Control => None,
            Peer::Iscsi(_) | Peer::Nbd(_) => Some(Instant::now() + LOGIN_TIME_MAX),
        };
        self.logins += usize::from(deadline.is_some());
        let entry = self.connections.vacant_entry();
        let key = entry.key();
        let token = Token {
            kind: KIND_CONNECTION,
            id: u32::try_from(key).unwrap_or(u32::MAX),
        };
        let added = self.poller.add(&stream, token, Interest::READ);
        entry.insert(Connection {
            stream,
            peer,
            interest: Interest::READ,
            deadline,
            input: Vec::new(),
            output: Vec::new(),
        });
        match peer {
            Peer::Iscsi(id) => {
                self.iscsi_sockets.insert(id, key);
            }
            Peer::Nbd(id) => {
                self.nbd_sockets.insert(id, key);
            }
            Peer::Control => {}
        }
        if let Err(error) = added {
            log::error(
                "connection_not_watched",
                &[("error", error.to_string().into())],
            );
            self.close(key);
        }
    }

    fn accept_iscsi(&mut self, at: &str) -> Option<nuage_scsi::ConnectionId> {
        let mut entropy = [0; 33];
        if !random(&mut entropy) {
            log::error("no_entropy", &[]);
            return None;
        }
        self.doors.iscsi.accept(at, entropy)
    }

    fn read(&mut self, key: usize, daemon: &mut dyn Daemon) {
        let mut behind_data = false;
        for _ in 0..READS_MAX {
            let Some(connection) = self.connections.get_mut(key) else {
                return;
            };
            let unfinished = match connection.peer {
                Peer::Iscsi(id) => self.doors.iscsi.unfinished_data(id),
                Peer::Nbd(id) => self.doors.nbd.unfinished_data(id),
                Peer::Control => None,
            };
            let missing = unfinished.as_ref().map_or(0, |(_, missing)| *missing);
            let (is_direct, most) = match behind_data {
                _ if missing >= DIRECT_BYTES_MIN => (true, missing),
                true => (false, missing + BEHIND_BYTES),
                false => (false, self.scratch.len()),
            };
            let moved = match unfinished {
                Some((data, _)) if is_direct => connection.stream.read_to(data, most),
                _ => connection.stream.read(&mut self.scratch[..most]),
            };
            behind_data = is_direct;
            let count = match moved {
                Moved::Bytes(count) => count,
                Moved::Later => return,
                Moved::Gone => {
                    if matches!(connection.peer, Peer::Control) {
                        daemon.client_gone(u32::try_from(key).unwrap_or(u32::MAX));
                    }
                    return self.close(key);
                }
            };
            let input = &self.scratch[..if is_direct { 0 } else { count }];
            let more = match connection.peer {
                Peer::Iscsi(id) => {
                    self.doors.receive_iscsi(id, input);
                    self.doors.iscsi.wants_input(id)
                }
                Peer::Nbd(id) => {
                    self.doors.nbd.receive(id, input);
                    self.doors.nbd.wants_input(id)
                }
                Peer::Control => {
                    connection.input.extend_from_slice(input);
                    self.lines(key, daemon);
                    true
                }
            };
            if !more {
                self.update(key);
            }
            if !more || count < most {
                return;
            }
        }
    }

    fn lines(&mut self, key: usize, daemon: &mut dyn Daemon) {
        loop {
            let Some(connection) = self.connections.get_mut(key) else {
                return;
            };
            let Some(end) = connection.input.iter().position(|byte| *byte == b'\n') else {
                if connection.input.len() > LINE_BYTES_MAX {
                    log::warn("control_line_too_long", &[]);
                    self.close(key);
                }
                return;
            };
            let line: Vec<u8> = connection.input.drain(..=end).collect();
            daemon.line(
                u32::try_from(key).unwrap_or(u32::MAX),
                &line[..end],
                context!(self),
            );
        }
    }

    /// Requests, completions, answers and output until nothing moves.
    fn settle(&mut self, daemon: &mut dyn Daemon) {
        let mut touched = Vec::new();
        loop {
            let mut moved = self.doors.pump();
            for answer in self.doors.take_answers() {
                moved = true;
                daemon.answer(answer, context!(self));
            }
            moved |= self.serve_links(daemon);
            daemon.turn(context!(self));
            moved |= self.doors.was_asked() || self.links.has_orders();
            self.doors.iscsi.take_touched(&mut touched);
            let links: BTreeSet<LinkId> = touched
                .iter()
                .filter_map(|id| self.far_links.get(id).copied())
                .collect();
            let keys: BTreeSet<usize> = touched
                .drain(..)
                .filter_map(|id| self.iscsi_sockets.get(&id).copied())
                .collect();
            self.doors.nbd.take_touched(&mut touched);
            let others: BTreeSet<usize> = touched
                .drain(..)
                .filter_map(|id| self.nbd_sockets.get(&id).copied())
                .collect();
            moved |= !keys.is_empty() || !others.is_empty() || !links.is_empty();
            for link in links {
                self.flush_far(link);
            }
            for key in keys.into_iter().chain(others) {
                self.flush(key);
            }
            if !moved {
                break;
            }
        }
        self.send_replies();
        self.report();
    }

    /// Carry out what the daemon wants of its links and tell it what they have.
    fn serve_links(&mut self, daemon: &mut dyn Daemon) -> bool {
        self.links.obey(&self.poller);
        let events = self.links.take_events();
        let any = !events.is_empty();
        for event in events {
            match event {
                LinkEvent::Up(link, None, peer, Speaks::Iscsi) => self.welcome_far(link, &peer),
                LinkEvent::Up(link, token, peer, _) => {
                    daemon.link_up(link, token, &peer, context!(self));
                }
                LinkEvent::Data(link, bytes) => match self.far.get(&link) {
                    Some(far) => {
                        self.doors.iscsi.receive(far.id, &bytes);
                        self.update_far(link);
                    }
                    None => daemon.link_data(link, &bytes, context!(self)),
                },
                LinkEvent::Room(link) => self.flush_far(link),
                LinkEvent::Down(link, token, reason) => {
                    if !self.forget_far(link) {
                        daemon.link_down(link, token, &reason, context!(self));
                    }
                }
            }
        }
        any
    }

    /// Write what a connection has to say, close it when it is over.
    fn flush(&mut self, key: usize) {
        loop {
            let Some(connection) = self.connections.get(key) else {
                return;
            };
            let moved = match connection.peer {
                Peer::Iscsi(id) => match self.doors.iscsi.output(id) {
                    Some(output) if !output.is_empty() => {
                        connection.stream.write(&output.slices(SLICES_MAX))
                    }
                    _ => break,
                },
                Peer::Nbd(id) => match self.doors.nbd.output(id) {
                    Some(output) if !output.is_empty() => {
                        connection.stream.write(&output.slices(SLICES_MAX))
                    }
                    _ => break,
                },
                Peer::Control if connection.output.is_empty() => break,
                Peer::Control => connection.stream.write(&[IoSlice::new(&connection.output)]),
            };
            match (moved, connection.peer) {
                (Moved::Bytes(count), Peer::Iscsi(id)) => self.doors.iscsi.sent(id, count),
                (Moved::Bytes(count), Peer::Nbd(id)) => self.doors.nbd.sent(id, count),
                (Moved::Bytes(count), Peer::Control) => {
                    if let Some(connection) = self.connections.get_mut(key) {
                        connection.output.drain(..count);
                    }
                }
                (Moved::Later, _) => break,
                (Moved::Gone, _) => return self.close(key),
            }
        }
        self.update(key);
    }

    /// Bring a connection's interest and deadline up to date; close it when it has ended.
    fn update(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let (over, established, interest) = match connection.peer {
            Peer::Iscsi(id) => (
                self.doors.iscsi.finished(id),
                self.doors.iscsi.logged_in(id),
                Interest {
                    read: self.doors.iscsi.wants_input(id),
                    write: self
                        .doors
                        .iscsi
                        .output(id)
                        .is_some_and(|output| !output.is_empty()),
                },
            ),
            Peer::Nbd(id) => (
                self.doors.nbd.finished(id),
                self.doors.nbd.opened(id),
                Interest {
                    read: self.doors.nbd.wants_input(id),
                    write: self
                        .doors
                        .nbd
                        .output(id)
                        .is_some_and(|output| !output.is_empty()),
                },
            ),
            Peer::Control => (
                connection.output.len() > CONTROL_OUTPUT_MAX,
                true,
                Interest {
                    read: true,
                    write: !connection.output.is_empty(),
                },
            ),
        };
        if established && connection.deadline.take().is_some() {
            self.logins = self.logins.saturating_sub(1);
        }
        if over {
            return self.close(key);
        }
        if interest != connection.interest {
            let token = Token {
                kind: KIND_CONNECTION,
                id: u32::try_from(key).unwrap_or(u32::MAX),
            };
            if self
                .poller
                .change(&connection.stream, token, interest)
                .is_ok()
            {
                connection.interest = interest;
            } else {
                self.close(key);
            }
        }
    }

    fn close(&mut self, key: usize) {
        let Some(connection) = self.connections.try_remove(key) else {
            return;
        };
        if connection.deadline.is_some() {
            self.logins = self.logins.saturating_sub(1);
        }
        match connection.peer {
            Peer::Iscsi(id) => {
                self.iscsi_sockets.remove(&id);
                self.doors.iscsi.closed(id);
            }
            Peer::Nbd(id) => {
                self.nbd_sockets.remove(&id);
                self.doors.nbd.closed(id);
            }
            Peer::Control => {}
        }
        // Closing the descriptor takes it out of the poller, too.
        let _ = self.poller.remove(connection.stream.as_fd());
    }

    fn send_replies(&mut self) {
        for (client, line) in std::mem::take(&mut self.replies) {
            let key = client as usize;
            if let Some(connection) = self
                .connections
                .get_mut(key)
                .filter(|connection| matches!(connection.peer, Peer::Control))
            {
                connection.output.extend_from_slice(&line);
                connection.output.push(b'\n');
                self.flush(key);
            }
        }
    }

    fn expire_logins(&mut self) {
        if self.logins == 0 {
            return;
        }
        let now = Instant::now();
        let late: Vec<usize> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.deadline.is_some_and(|deadline| deadline <= now))
            .map(|(key, _)| key)
            .collect();
        for key in late {
            log::warn("login_too_slow", &[]);
            self.close(key);
        }
        let far = self.far.iter();
        let late = far.filter(|(_, far)| far.deadline.is_some_and(|deadline| deadline <= now));
        let late: Vec<LinkId> = late.map(|(link, _)| *link).collect();
        for link in late {
            log::warn("login_too_slow", &[]);
            self.close_far(link);
        }
    }

    fn report(&mut self) {
        for event in self.doors.iscsi.take_events() {
            use nuage_scsi::Event;
            let text = |value: Option<String>| value.map_or(Value::Null, Value::String);
            match event {
                Event::LoggedIn {
                    initiator, target, ..
                } => log::info(
                    "iscsi_login",
                    &[("initiator", initiator.into()), ("target", text(target))],
                ),
                Event::LoginRefused {
                    initiator,
                    target,
                    reason,
                    ..
                } => log::warn(
                    "iscsi_login_refused",
                    &[
                        ("initiator", text(initiator)),
                        ("target", text(target)),
                        ("reason", reason.into()),
                    ],
                ),
                Event::SessionEnded { initiator, target } => log::info(
                    "iscsi_session_ended",
                    &[("initiator", initiator.into()), ("volume", target.into())],
                ),
                Event::ProtocolError { reason, .. } => {
                    log::warn("iscsi_protocol_error", &[("reason", reason.into())]);
                }
            }
        }
        for event in self.doors.nbd.take_events() {
            use nuage_nbd::Event;
            match event {
                Event::Opened { export, .. } => {
                    log::info("nbd_opened", &[("export", export.into())]);
                }
                Event::ProtocolError { reason, .. } => {
                    log::warn("nbd_protocol_error", &[("reason", reason.into())]);
                }
            }
        }
    }
}

/// A device's descriptor for the time of one call.
fn borrow<'a>(fd: i32) -> BorrowedFd<'a> {
    // SAFETY: `wake_fd` is owned by a device that lives in `doors` while its number is used here;
    // a number that was closed meanwhile is refused by epoll, it is never read or written.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Fill with bytes from the kernel's generator.
pub fn random(bytes: &mut [u8]) -> bool {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[done..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => done += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}
