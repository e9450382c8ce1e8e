//! TLS connections between daemons, without blocking: bytes in, bytes out.

use crate::log;
use crate::path::{Identity, identity_of};
use crate::poller::{Interest, Poller, Ready, Token};
use crate::socket::{Moved, Stream};
use crate::tls::{ISCSI_PROTOCOL, REFRESH_EVERY, RUNS, Speaks, Trust};
use nuage_block::Output;
use rustix::fd::AsFd as _;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, Connection, ServerConnection};
use std::collections::BTreeMap;
use std::io::{self, BufRead as _, IoSlice, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Links of one daemon.
const LINKS_MAX: usize = 1024;
/// Those among them whose peer has not shown a certificate yet, and how long it may take.
const STRANGERS_MAX: usize = 256;
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(15);
/// Kind of a link's token in the poller.
pub const KIND: u8 = 5;
/// Unsent bytes of a link beyond which its owner should wait ([`Links::has_room`]).
const PENDING_BYTES_MAX: usize = 1024 * 1024;
/// Bytes read from a socket at once.
const READ_BYTES: usize = 256 * 1024;
/// Reads of one link before the next one has its turn.
const READS_MAX: usize = 4;

pub type LinkId = u64;

/// What a daemon wants done with links, and how full they are.
#[derive(Debug, Default)]
pub struct Links {
    pub(crate) connect: Vec<(u64, SocketAddr)>,
    pub(crate) send: Vec<(LinkId, Output)>,
    pub(crate) close: Vec<LinkId>,
    pub(crate) pending: BTreeMap<LinkId, usize>,
}

impl Links {
    /// Connect; `link_up` or `link_down` follows with the same token.
    pub fn connect(&mut self, token: u64, address: SocketAddr) {
        self.connect.push((token, address));
    }

    pub fn send(&mut self, link: LinkId, output: Output) {
        *self.pending.entry(link).or_default() += output.len();
        self.send.push((link, output));
    }

    pub fn close(&mut self, link: LinkId) {
        self.close.push(link);
    }

    /// False while a link has not sent what it was given.
    pub fn has_room(&self, link: LinkId) -> bool {
        self.pending
            .get(&link)
            .is_none_or(|pending| *pending < PENDING_BYTES_MAX)
    }
}

/// One TLS connection on top of a socket.
pub(crate) struct Link {
    /// The daemon's token where we connected.
    pub token: Option<u64>,
    /// What we connected for.
    wants: Speaks,
    session: Connection,
    pub established: bool,
}

struct Wire<'a>(&'a Stream);

fn moved(moved: Moved) -> io::Result<usize> {
    match moved {
        Moved::Bytes(count) => Ok(count),
        Moved::Later => Err(io::ErrorKind::WouldBlock.into()),
        Moved::Gone => Ok(0),
    }
}

impl io::Write for Wire<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        moved(self.0.write(&[IoSlice::new(buffer)]))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        moved(self.0.write(slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Link {
    pub fn accept(trust: &Trust) -> Result<Self, rustls::Error> {
        let session = ServerConnection::new(trust.server())?;
        Ok(Self::new(None, Speaks::Replication, session.into()))
    }

    pub fn connect(
        token: u64,
        wants: Speaks,
        address: SocketAddr,
        trust: &Trust,
    ) -> Result<Self, rustls::Error> {
        let name = ServerName::IpAddress(address.ip().into());
        let session = ClientConnection::new(trust.client(wants), name)?;
        Ok(Self::new(Some(token), wants, session.into()))
    }

    fn new(token: Option<u64>, wants: Speaks, mut session: Connection) -> Self {
        // The owner bounds what it gives us by `has_room`.
        session.set_buffer_limit(None);
        Self {
            token,
            wants,
            session,
            established: false,
        }
    }

    /// Read what the socket has through `scratch`; gives plain bytes, or the reason why the link is over.
    pub fn read(&mut self, stream: &Stream, scratch: &mut [u8]) -> Result<Vec<u8>, String> {
        let mut plain = Vec::new();
        for _ in 0..READS_MAX {
            let (count, goes_on) = match stream.read(scratch) {
                Moved::Bytes(count) => (count, self.decrypt(&scratch[..count], &mut plain)?),
                Moved::Later => break,
                Moved::Gone => (0, false),
            };
            if !goes_on && plain.is_empty() {
                return Err("the peer is gone".to_owned());
            }
            // What came before the end still counts; the next read tells the end again. Less than there was room
            // for was all: what comes next wakes us.
            if !goes_on || count < scratch.len() {
                break;
            }
        }
        Ok(plain)
    }

    /// False once the peer has said that nothing follows. The session takes a few KiB at a time: from memory, where
    /// a socket would be asked for each.
    fn decrypt(&mut self, mut wire: &[u8], plain: &mut Vec<u8>) -> Result<bool, String> {
        plain.reserve(wire.len());
        while !wire.is_empty() {
            let taken = self.session.read_tls(&mut wire);
            if taken.map_err(|error| error.to_string())? == 0 {
                return Ok(false);
            }
            let state = self
                .session
                .process_new_packets()
                .map_err(|error| error.to_string())?;
            let mut reader = self.session.reader();
            let mut left = state.plaintext_bytes_to_read();
            while left > 0 {
                let part = reader.fill_buf().map_err(|error| error.to_string())?;
                let count = part.len();
                plain.extend_from_slice(part);
                reader.consume(count);
                left -= count;
            }
        }
        Ok(true)
    }

    /// Encrypt bytes from where they lie; without a limit the session takes all of them.
    pub fn queue(&mut self, slices: &[IoSlice<'_>]) -> usize {
        self.session.writer().write_vectored(slices).unwrap_or(0)
    }

    /// Write until the socket is full; true when everything is sent.
    pub fn write(&mut self, stream: &Stream) -> Result<bool, String> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut Wire(stream)) {
                Ok(0) => return Err("the peer is gone".to_owned()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(true)
    }

    /// True when its peer was believed once and is not any more.
    fn is_revoked(&self, trust: &Trust) -> bool {
        self.session
            .peer_certificates()
            .is_some_and(|chain| trust.revokes(chain))
    }

    /// The peer and what it is here for, once: when the handshake is over.
    ///
    /// The handshake let in both roles; only here it is known for what. Nothing that came on the link has
    /// been given to anybody before.
    fn newly_established(&mut self) -> Result<Option<(Identity, Speaks)>, &'static str> {
        if self.established || self.session.is_handshaking() {
            return Ok(None);
        }
        let chain = self.session.peer_certificates();
        let identity = chain.and_then(|chain| chain.first()).and_then(identity_of);
        let identity = identity.ok_or("the certificate names no daemon")?;
        let speaks = match self.session.alpn_protocol() {
            Some(ISCSI_PROTOCOL) => Speaks::Iscsi,
            _ => Speaks::Replication,
        };
        if self.token.is_some() && speaks != self.wants {
            return Err("it does not take iSCSI by this door: an older version");
        }
        let (is_from_vnode, is_iscsi) = (identity.role == RUNS, speaks == Speaks::Iscsi);
        if self.token.is_none() && is_from_vnode != is_iscsi {
            return Err("IO-nodes replicate, V-nodes bring iSCSI");
        }
        self.established = true;
        Ok(Some((identity, speaks)))
    }
}

/// What happened on links.
#[derive(Debug)]
pub enum LinkEvent {
    Up(LinkId, Option<u64>, Identity, Speaks),
    Data(LinkId, Vec<u8>),
    /// What had no room is sent.
    Room(LinkId),
    Down(LinkId, Option<u64>, String),
}

struct Held {
    stream: Stream,
    link: Link,
    interest: Interest,
    /// Its owner takes what comes.
    is_read: bool,
    /// The handshake is over by then, or the link.
    deadline: Instant,
}

/// All links of a daemon.
pub struct LinkSet {
    pub orders: Links,
    trust: Option<Trust>,
    refresh_at: Instant,
    held: BTreeMap<LinkId, Held>,
    next: LinkId,
    events: Vec<LinkEvent>,
    scratch: Vec<u8>,
}

impl Held {
    /// True while somebody who came to us has shown no certificate that we believe.
    fn is_stranger(&self) -> bool {
        self.link.token.is_none() && !self.link.established
    }
}

const BOTH: Interest = Interest {
    read: true,
    write: true,
};

impl LinkSet {
    pub fn new(trust: Option<Trust>) -> Self {
        Self {
            orders: Links::default(),
            trust,
            refresh_at: Instant::now(),
            held: BTreeMap::new(),
            next: 1,
            events: Vec::new(),
            scratch: vec![0; READ_BYTES],
        }
    }

    pub fn has_orders(&self) -> bool {
        !(self.orders.connect.is_empty()
            && self.orders.send.is_empty()
            && self.orders.close.is_empty())
    }

    pub fn take_events(&mut self) -> Vec<LinkEvent> {
        std::mem::take(&mut self.events)
    }

    fn token(id: LinkId) -> Token {
        Token {
            kind: KIND,
            id: u32::try_from(id % u64::from(u32::MAX)).unwrap_or(0),
        }
    }

    fn hold(&mut self, poller: &Poller, stream: Stream, link: Link) -> Result<LinkId, String> {
        let id = self.next;
        self.next += 1;
        poller
            .add(&stream, Self::token(id), BOTH)
            .map_err(|error| error.to_string())?;
        self.held.insert(
            id,
            Held {
                stream,
                link,
                interest: BOTH,
                is_read: true,
                deadline: Instant::now() + HANDSHAKE_TIME_MAX,
            },
        );
        Ok(id)
    }

    /// End the links whose peers came and do not say who they are.
    fn end_strangers(&mut self, poller: &Poller, now: Instant) {
        let strangers = self.held.iter().filter(|(_, held)| held.is_stranger());
        let late = strangers.filter(|(_, held)| held.deadline <= now);
        let late: Vec<LinkId> = late.map(|(id, _)| *id).collect();
        for id in late {
            self.fail(poller, id, "the handshake takes too long".to_owned());
        }
    }

    /// Look at our certificates and at the revocation lists, and end the links of who is revoked.
    pub fn refresh_trust(&mut self, poller: &Poller, now: Instant) {
        let Some(trust) = self.trust.as_mut().filter(|_| now >= self.refresh_at) else {
            return;
        };
        self.refresh_at = now + REFRESH_EVERY;
        let has_other_lists = trust.refresh();
        if has_other_lists {
            self.end_revoked(poller);
        }
        self.end_strangers(poller, now);
    }

    fn end_revoked(&mut self, poller: &Poller) {
        let Some(trust) = &self.trust else { return };
        let revoked = |held: &&Held| held.link.is_revoked(trust);
        let revoked = self.held.iter().filter(|(_, held)| revoked(held));
        let revoked: Vec<LinkId> = revoked.map(|(id, _)| *id).collect();
        for id in revoked {
            self.fail(poller, id, "its certificate was revoked".to_owned());
        }
    }

    /// Within which time [`LinkSet::refresh_trust`] wants to be called; without links it can wait for one.
    pub fn refresh_within(&self) -> Option<Duration> {
        (self.trust.is_some() && !self.held.is_empty()).then_some(REFRESH_EVERY)
    }

    pub fn accept(&mut self, poller: &Poller, stream: Stream) {
        let Some(trust) = &self.trust else { return };
        let strangers = self.held.values().filter(|held| held.is_stranger());
        if self.held.len() >= LINKS_MAX || strangers.count() >= STRANGERS_MAX {
            return log::warn("too_many_links", &[]);
        }
        if let Err(error) = stream.expect_answers() {
            return log::warn("link_not_accepted", &[("error", error.to_string().into())]);
        }
        let link = Link::accept(trust).map_err(|error| error.to_string());
        if let Err(error) = link.and_then(|link| self.hold(poller, stream, link)) {
            log::error("link_not_accepted", &[("error", error.into())]);
        }
    }

    /// Begin to connect. [`LinkEvent::Up`] or [`LinkEvent::Down`] follows, unless this fails.
    pub fn connect(
        &mut self,
        poller: &Poller,
        token: u64,
        wants: Speaks,
        address: SocketAddr,
    ) -> Result<LinkId, String> {
        let Some(trust) = &self.trust else {
            return Err("no certificates were given".to_owned());
        };
        let link =
            Link::connect(token, wants, address, trust).map_err(|error| error.to_string())?;
        let stream = Stream::connect(address).map_err(|error| error.to_string())?;
        self.hold(poller, stream, link)
    }

    /// False while a link has not sent what it was given.
    pub fn has_room(&self, id: LinkId) -> bool {
        self.orders.has_room(id)
    }

    /// Encrypt bytes for a link and give how many; [`LinkSet::write`] sends them.
    pub fn queue(&mut self, id: LinkId, slices: &[IoSlice<'_>]) -> usize {
        let Some(held) = self.held.get_mut(&id) else {
            return 0;
        };
        let count = held.link.queue(slices);
        *self.orders.pending.entry(id).or_default() += count;
        count
    }

    /// Take what comes on a link, or leave it to the kernel for now.
    pub fn set_reading(&mut self, poller: &Poller, id: LinkId, is_read: bool) {
        if let Some(held) = self.held.get_mut(&id)
            && held.is_read != is_read
        {
            held.is_read = is_read;
            self.write(poller, id);
        }
    }

    /// Send what still goes, and let go of a link; nothing more is heard of it.
    pub fn close(&mut self, poller: &Poller, id: LinkId) {
        if let Some(held) = self.held.get_mut(&id) {
            // Whatever it comes to, the link is over.
            let _ = held.link.write(&held.stream);
        }
        self.drop_link(poller, id);
    }

    /// Connect, send and close what the daemon asked for.
    pub fn obey(&mut self, poller: &Poller) {
        for (token, address) in std::mem::take(&mut self.orders.connect) {
            if let Err(reason) = self.connect(poller, token, Speaks::Replication, address) {
                self.events.push(LinkEvent::Down(0, Some(token), reason));
            }
        }
        let mut filled = std::collections::BTreeSet::new();
        for (id, output) in std::mem::take(&mut self.orders.send) {
            if let Some(held) = self.held.get_mut(&id)
                && held.link.queue(&output.slices(usize::MAX)) == output.len()
            {
                filled.insert(id);
            }
        }
        for id in filled {
            self.write(poller, id);
        }
        for id in std::mem::take(&mut self.orders.close) {
            self.drop_link(poller, id);
        }
    }

    fn drop_link(&mut self, poller: &Poller, id: LinkId) -> Option<u64> {
        self.orders.pending.remove(&id);
        let held = self.held.remove(&id)?;
        // Closing the descriptor takes it out of the poller, too.
        let _ = poller.remove(held.stream.as_fd());
        held.link.token
    }

    fn fail(&mut self, poller: &Poller, id: LinkId, reason: String) {
        let token = self.drop_link(poller, id);
        self.events.push(LinkEvent::Down(id, token, reason));
    }

    pub fn ready(&mut self, poller: &Poller, ready: Ready) {
        let id = LinkId::from(ready.token.id);
        if ready.read {
            let Some(held) = self.held.get_mut(&id) else {
                return;
            };
            match held.link.read(&held.stream, &mut self.scratch) {
                Ok(bytes) => {
                    match held.link.newly_established() {
                        Ok(None) => {}
                        Ok(Some((peer, speaks))) => {
                            let token = held.link.token;
                            self.events.push(LinkEvent::Up(id, token, peer, speaks));
                        }
                        Err(reason) => return self.fail(poller, id, reason.to_owned()),
                    }
                    if !bytes.is_empty() {
                        self.events.push(LinkEvent::Data(id, bytes));
                    }
                }
                Err(reason) => {
                    // An alert may be waiting: the peer hears why it is refused.
                    let _ = held.link.write(&held.stream);
                    return self.fail(poller, id, reason);
                }
            }
        }
        self.write(poller, id);
    }

    /// Send what a link was given, as far as its socket takes it.
    pub fn write(&mut self, poller: &Poller, id: LinkId) {
        let Some(held) = self.held.get_mut(&id) else {
            return;
        };
        match held.link.write(&held.stream) {
            Ok(all) => {
                if all {
                    let sent = self.orders.pending.remove(&id);
                    if sent.is_some_and(|bytes| bytes >= PENDING_BYTES_MAX) {
                        self.events.push(LinkEvent::Room(id));
                    }
                }
                let interest = Interest {
                    read: held.is_read,
                    write: !all,
                };
                if interest != held.interest {
                    held.interest = interest;
                    if let Err(error) = poller.change(&held.stream, Self::token(id), interest) {
                        self.fail(poller, id, error.to_string());
                    }
                }
            }
            Err(reason) => self.fail(poller, id, reason),
        }
    }
}
