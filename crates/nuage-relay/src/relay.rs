//! The loop: initiators on one side, storage daemons on the other, bytes between.
//!
//! ```text
//! initiator ── clear, inside the node ──► [Near] pair [Far] ── TLS ──► the daemon's door for heads
//!
//! Far:  Waiting ──► Trying ──► Carries          what came early is kept until the first answer, so that
//!         ▲  lost, or no answer │                another try can be made with it
//!         └────────────────────┘
//! ```
//!
//! An initiator counts each refusal and pauses for a second more each time, so one whose portal is among
//! the patient ones hears of none: the relay tries again itself, at once where the agent says that the
//! head is elsewhere. Once a daemon has answered, its hanging up is the initiator's: only that knows what
//! it has to send again. Who is not read holds up the other side, so a pair keeps a few MiB at most.

use crate::orders::{Answer, Orders, Way};
use crate::pipe::Pipe;
use nuage_io::link::{self, LinkEvent, LinkId, LinkSet};
use nuage_io::log;
use nuage_io::path::Identity;
use nuage_io::poller::{Interest, Poller, Ready, Token};
use nuage_io::socket::{Listener, Moved, Stream};
use nuage_io::tls::{Speaks, Trust};
use slab::Slab;
use std::collections::BTreeMap;
use std::io::{self, IoSlice, Read as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Connections at once: sixteen disks of as many guests, and the two ways of a disk that changes its way.
const PAIRS_MAX: usize = 512;
/// What an initiator may say before it is answered: a login, of a few hundred bytes.
const EARLY_BYTES_MAX: usize = 64 * 1024;
const READ_BYTES: usize = 256 * 1024;
/// Reads of one connection before the next one has its turn.
const READS_MAX: usize = 4;
/// Time for a connection and its handshake: three times there and back, over a slow line.
const TRY_TIME_MAX: Duration = Duration::from_secs(2);
/// Pause before another try; doubled up to the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_LONGEST: Duration = Duration::from_millis(250);
/// The agent, and one before it that is about to end.
const AGENTS_MAX: usize = 4;
const LINE_BYTES_MAX: usize = 1024 * 1024;

const KIND_LISTENER: u8 = 0;
const KIND_CONTROL: u8 = 1;
const KIND_AGENT: u8 = 2;
const KIND_SIGNAL: u8 = 3;
const KIND_NEAR: u8 = 4;
const KIND_LINK: u8 = link::KIND;
const KIND_CLEAR: u8 = 6;

enum Far {
    Waiting {
        until: Instant,
    },
    /// `is_up`: the daemon is who it should be, and has what came early.
    Link {
        id: LinkId,
        is_up: bool,
        until: Instant,
    },
    /// The head has come to this site meanwhile.
    Clear {
        pipe: Pipe,
        is_up: bool,
        until: Instant,
    },
    /// It hung up; what it said before is on its way to the initiator.
    Gone,
}

struct Pair {
    /// What the initiator asked for, and from which port of its own.
    portal: SocketAddr,
    port: u16,
    near: Pipe,
    far: Far,
    /// Where the last try led.
    way: Option<Way>,
    early: Vec<u8>,
    answered: bool,
    pause: Duration,
    /// What was last told of it.
    told: String,
}

struct Agent {
    pipe: Pipe,
    input: Vec<u8>,
}

pub struct Relay {
    poller: Poller,
    listener: Listener,
    control: Listener,
    signals: UnixStream,
    links: LinkSet,
    by_link: BTreeMap<LinkId, usize>,
    pairs: Slab<Pair>,
    agents: Slab<Agent>,
    orders: Orders,
    scratch: Vec<u8>,
    is_over: bool,
}

fn token(kind: u8, key: usize) -> Token {
    let id = u32::try_from(key).unwrap_or(u32::MAX);
    Token { kind, id }
}

impl Relay {
    /// `signals`: becomes readable when the process shall end.
    pub fn new(
        listener: Listener,
        control: Listener,
        signals: UnixStream,
        trust: Trust,
    ) -> io::Result<Self> {
        let poller = Poller::new()?;
        signals.set_nonblocking(true)?;
        poller.add(&signals, token(KIND_SIGNAL, 0), Interest::READ)?;
        poller.add(&listener, token(KIND_LISTENER, 0), Interest::READ)?;
        poller.add(&control, token(KIND_CONTROL, 0), Interest::READ)?;
        Ok(Self {
            poller,
            listener,
            control,
            signals,
            links: LinkSet::new(Some(trust)),
            by_link: BTreeMap::new(),
            pairs: Slab::new(),
            agents: Slab::new(),
            orders: Orders::default(),
            scratch: vec![0; READ_BYTES],
            is_over: false,
        })
    }

    pub fn run(&mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        while !self.is_over {
            self.poller.wait(self.timeout(), &mut ready)?;
            self.links.refresh_trust(&self.poller, Instant::now());
            for ready in ready.drain(..) {
                self.handle(ready);
            }
            self.serve_links();
            self.try_again();
        }
        Ok(())
    }

    fn timeout(&self) -> Option<Duration> {
        let now = Instant::now();
        let due = self.pairs.iter().filter_map(|(_, pair)| pair.due());
        due.map(|at| at.saturating_duration_since(now))
            .chain(self.links.refresh_within())
            .min()
    }

    fn handle(&mut self, ready: Ready) {
        let key = ready.token.id as usize;
        match ready.token.kind {
            KIND_LISTENER => self.accept(),
            KIND_CONTROL => self.accept_agent(),
            KIND_AGENT => self.hear(key),
            KIND_SIGNAL => {
                let mut bytes = [0; 16];
                self.is_over = matches!((&self.signals).read(&mut bytes), Ok(count) if count > 0);
            }
            KIND_NEAR => {
                if ready.write {
                    self.flush_near(key);
                }
                if ready.read {
                    self.read_near(key);
                }
            }
            KIND_LINK => self.links.ready(&self.poller, ready),
            KIND_CLEAR => self.clear_ready(key, ready),
            _ => {}
        }
    }

    fn accept(&mut self) {
        while let Ok(Some(stream)) = self.listener.accept() {
            let portal = stream.original();
            let known = portal.filter(|portal| self.orders.ways.contains_key(portal));
            let (Some(portal), Some(peer)) = (known, stream.peer) else {
                log::warn("leads_nowhere", &[("portal", format!("{portal:?}").into())]);
                continue;
            };
            if self.pairs.len() >= PAIRS_MAX {
                log::warn("too_many_connections", &[]);
                continue;
            }
            let entry = self.pairs.vacant_entry();
            let key = entry.key();
            let near = Pipe::new(stream, token(KIND_NEAR, key));
            if let Err(error) = near.add(&self.poller) {
                log::error("not_watched", &[("error", error.to_string().into())]);
                continue;
            }
            entry.insert(Pair {
                portal,
                port: peer.port(),
                near,
                far: Far::Waiting {
                    until: Instant::now(),
                },
                way: None,
                early: Vec::new(),
                answered: false,
                pause: PAUSE_FIRST,
                told: String::new(),
            });
            self.attempt(key);
        }
    }

    /// Begin to connect to where the pair's portal is served.
    fn attempt(&mut self, key: usize) {
        self.let_go_of_far(key);
        let Some(pair) = self.pairs.get_mut(key) else {
            return;
        };
        let Some(way) = self.orders.ways.get(&pair.portal).cloned() else {
            return self.close(key);
        };
        let until = Instant::now() + TRY_TIME_MAX;
        let address = way.address;
        let is_near = way.node.is_empty();
        pair.way = Some(way);
        let begun = if is_near {
            Stream::connect(address)
                .map(|stream| Pipe::new(stream, token(KIND_CLEAR, key)))
                .and_then(|mut pipe| {
                    pipe.add(&self.poller)?;
                    pipe.watch_connecting(&self.poller)?;
                    Ok(Far::Clear {
                        pipe,
                        is_up: false,
                        until,
                    })
                })
                .map_err(|error| error.to_string())
        } else {
            let begun = self.links.connect(&self.poller, 0, Speaks::Iscsi, address);
            begun.map(|id| {
                self.by_link.insert(id, key);
                Far::Link {
                    id,
                    is_up: false,
                    until,
                }
            })
        };
        match begun {
            Ok(far) => pair.far = far,
            Err(reason) => self.lost(key, &reason),
        }
    }

    fn let_go_of_far(&mut self, key: usize) {
        let Some(pair) = self.pairs.get_mut(key) else {
            return;
        };
        match std::mem::replace(&mut pair.far, Far::Gone) {
            Far::Link { id, .. } => {
                self.by_link.remove(&id);
                self.links.close(&self.poller, id);
            }
            Far::Clear { mut pipe, .. } => {
                let _ = pipe.flush(); // its last words, if it takes them
                pipe.remove(&self.poller);
            }
            Far::Waiting { .. } | Far::Gone => {}
        }
    }

    /// A daemon is not there, not the right one, or gone.
    fn lost(&mut self, key: usize, reason: &str) {
        self.let_go_of_far(key);
        let Some(pair) = self.pairs.get_mut(key) else {
            return;
        };
        if pair.answered {
            pair.near.is_read = false;
            return self.flush_near(key);
        }
        if pair.told != reason {
            reason.clone_into(&mut pair.told);
            let node = pair.way.as_ref().map_or("", |way| way.node.as_str());
            log::warn(
                "not_reached",
                &[
                    ("portal", pair.portal.to_string().into()),
                    ("node", node.into()),
                    ("reason", reason.into()),
                ],
            );
        }
        if !self.orders.patient.contains(&pair.portal) {
            return self.close(key);
        }
        pair.far = Far::Waiting {
            until: Instant::now() + pair.pause,
        };
        pair.pause = (pair.pause * 2).min(PAUSE_LONGEST);
    }

    fn close(&mut self, key: usize) {
        self.let_go_of_far(key);
        if let Some(pair) = self.pairs.try_remove(key) {
            pair.near.remove(&self.poller);
        }
    }

    /// Try again where the pause, or the patience with a try, is over.
    fn try_again(&mut self) {
        let now = Instant::now();
        let due = self.pairs.iter();
        let due = due.filter(|(_, pair)| pair.due().is_some_and(|at| at <= now));
        let due: Vec<(usize, bool)> = due
            .map(|(key, pair)| (key, matches!(pair.far, Far::Waiting { .. })))
            .collect();
        for (key, waited) in due {
            if waited {
                self.attempt(key);
            } else {
                self.lost(key, "no answer");
            }
        }
    }

    fn read_near(&mut self, key: usize) {
        for turn in 0..READS_MAX {
            let Some(pair) = self.pairs.get_mut(key) else {
                return;
            };
            // One that is not read wakes us when it has hung up, which a read tells.
            if turn > 0 && !pair.near.is_read {
                break;
            }
            let count = match pair.near.stream.read(&mut self.scratch) {
                Moved::Bytes(count) => count,
                Moved::Later => break,
                Moved::Gone => return self.close(key),
            };
            if !pair.answered {
                if pair.early.len() + count > EARLY_BYTES_MAX {
                    log::warn("too_much_before_an_answer", &[]);
                    return self.close(key);
                }
                pair.early.extend_from_slice(&self.scratch[..count]);
            }
            let bytes = &self.scratch[..count];
            match &mut pair.far {
                Far::Link {
                    id, is_up: true, ..
                } => {
                    self.links.queue(*id, &[IoSlice::new(bytes)]);
                    self.links.write(&self.poller, *id);
                    pair.near.is_read = self.links.has_room(*id);
                }
                Far::Clear {
                    pipe, is_up: true, ..
                } => {
                    if !pipe.send(bytes) {
                        return self.lost(key, "the portal hung up");
                    }
                    pair.near.is_read = !pipe.is_full();
                    pipe.update(&self.poller);
                }
                _ => {}
            }
            if count < self.scratch.len() {
                break;
            }
        }
        if let Some(pair) = self.pairs.get_mut(key) {
            pair.near.update(&self.poller);
        }
    }

    /// What a daemon says goes to the initiator.
    fn answer(&mut self, key: usize, bytes: &[u8]) {
        let Some(pair) = self.pairs.get_mut(key) else {
            return;
        };
        pair.answered = true;
        pair.early = Vec::new();
        if !pair.near.send(bytes) {
            return self.close(key);
        }
        let reads = !pair.near.is_full();
        pair.near.update(&self.poller);
        pair.read_far(reads, &mut self.links, &self.poller);
    }

    fn flush_near(&mut self, key: usize) {
        let Some(pair) = self.pairs.get_mut(key) else {
            return;
        };
        let is_there = pair.near.flush();
        if !is_there || matches!(pair.far, Far::Gone) && pair.near.is_empty() {
            return self.close(key);
        }
        pair.near.update(&self.poller);
        let reads = !pair.near.is_full();
        pair.read_far(reads, &mut self.links, &self.poller);
    }

    fn clear_ready(&mut self, key: usize, ready: Ready) {
        let Some(pair) = self.pairs.get_mut(key) else {
            return;
        };
        let Far::Clear { pipe, is_up, .. } = &mut pair.far else {
            return;
        };
        let mut is_there = true;
        if ready.write {
            if !*is_up {
                *is_up = true;
                is_there = pipe.send(&pair.early);
            }
            is_there = is_there && pipe.flush();
            pair.near.is_read = !pipe.is_full();
            pipe.update(&self.poller);
            pair.near.update(&self.poller);
        }
        if is_there && ready.read {
            match pipe.stream.read(&mut self.scratch) {
                Moved::Bytes(count) => {
                    let bytes = self.scratch[..count].to_vec();
                    return self.answer(key, &bytes);
                }
                Moved::Later => {}
                Moved::Gone => is_there = false,
            }
        }
        if !is_there {
            self.lost(key, "the portal hung up");
        }
    }

    fn serve_links(&mut self) {
        loop {
            let events = self.links.take_events();
            if events.is_empty() {
                return;
            }
            for event in events {
                match event {
                    LinkEvent::Up(id, _, peer, _) => self.link_up(id, &peer),
                    LinkEvent::Data(id, bytes) => {
                        if let Some(key) = self.by_link.get(&id) {
                            self.answer(*key, &bytes);
                        }
                    }
                    LinkEvent::Room(id) => {
                        let key = self.by_link.get(&id);
                        if let Some(pair) = key.and_then(|key| self.pairs.get_mut(*key)) {
                            pair.near.is_read = true;
                            pair.near.update(&self.poller);
                        }
                    }
                    LinkEvent::Down(id, _, reason) => {
                        if let Some(key) = self.by_link.remove(&id) {
                            self.lost(key, &reason);
                        }
                    }
                }
            }
        }
    }

    fn link_up(&mut self, id: LinkId, peer: &Identity) {
        let Some(key) = self.by_link.get(&id).copied() else {
            return self.links.close(&self.poller, id);
        };
        let Some(pair) = self.pairs.get_mut(key) else {
            return;
        };
        if pair.way.as_ref().is_none_or(|way| way.node != peer.node) {
            return self.lost(key, &format!("{} is there", peer.node));
        }
        if let Far::Link { is_up, .. } = &mut pair.far {
            *is_up = true;
        }
        if !pair.early.is_empty() {
            self.links.queue(id, &[IoSlice::new(&pair.early)]);
            self.links.write(&self.poller, id);
        }
        let portal = pair.portal.to_string();
        log::info(
            "carries",
            &[
                ("portal", portal.into()),
                ("node", peer.node.as_str().into()),
            ],
        );
    }

    fn accept_agent(&mut self) {
        while let Ok(Some(stream)) = self.control.accept() {
            if self.agents.len() >= AGENTS_MAX {
                continue;
            }
            let entry = self.agents.vacant_entry();
            let pipe = Pipe::new(stream, token(KIND_AGENT, entry.key()));
            if pipe.add(&self.poller).is_ok() {
                let input = Vec::new();
                entry.insert(Agent { pipe, input });
            }
        }
    }

    fn hear(&mut self, key: usize) {
        let Some(agent) = self.agents.get_mut(key) else {
            return;
        };
        let mut is_there = agent.pipe.flush();
        match agent.pipe.stream.read(&mut self.scratch) {
            Moved::Bytes(count) => agent.input.extend_from_slice(&self.scratch[..count]),
            Moved::Later => {}
            Moved::Gone => is_there = false,
        }
        let mut lines = Vec::new();
        while let Some(end) = agent.input.iter().position(|byte| *byte == b'\n') {
            lines.push(agent.input.drain(..=end).collect::<Vec<u8>>());
        }
        is_there = is_there && agent.input.len() <= LINE_BYTES_MAX;
        for line in lines {
            match serde_json::from_slice(&line) {
                Ok(orders) => self.obey(orders),
                Err(error) => {
                    log::error("orders_not_read", &[("error", error.to_string().into())]);
                    is_there = false;
                }
            }
            let mut text = serde_json::to_vec(&self.waiting()).unwrap_or_default();
            text.push(b'\n');
            if let Some(agent) = self.agents.get_mut(key) {
                is_there = is_there && agent.pipe.send(&text);
            }
        }
        if let Some(agent) = self.agents.get_mut(key) {
            agent.pipe.update(&self.poller);
            if !is_there {
                agent.pipe.remove(&self.poller);
                self.agents.remove(key);
            }
        }
    }

    fn waiting(&self) -> Answer {
        let waiting = self.pairs.iter().filter(|(_, pair)| !pair.answered);
        Answer {
            waiting: waiting.map(|(_, pair)| pair.port).collect(),
        }
    }

    /// Take the agent's orders. Who waits goes by them at once; who was answered is the agent's to cut.
    fn obey(&mut self, orders: Orders) {
        self.orders = orders;
        let turned = self.pairs.iter().filter(|(_, pair)| {
            !pair.answered && self.orders.ways.get(&pair.portal) != pair.way.as_ref()
        });
        let turned: Vec<usize> = turned.map(|(key, _)| key).collect();
        for key in turned {
            if let Some(pair) = self.pairs.get_mut(key) {
                pair.pause = PAUSE_FIRST;
            }
            self.attempt(key);
        }
    }
}

impl Pair {
    /// When something has to be done if nothing comes.
    fn due(&self) -> Option<Instant> {
        match &self.far {
            Far::Waiting { until }
            | Far::Link {
                is_up: false,
                until,
                ..
            }
            | Far::Clear {
                is_up: false,
                until,
                ..
            } => Some(*until),
            _ => None,
        }
    }

    fn read_far(&mut self, reads: bool, links: &mut LinkSet, poller: &Poller) {
        match &mut self.far {
            Far::Link { id, .. } => links.set_reading(poller, *id, reads),
            Far::Clear { pipe, .. } => {
                pipe.is_read = reads;
                pipe.update(poller);
            }
            Far::Waiting { .. } | Far::Gone => {}
        }
    }
}
