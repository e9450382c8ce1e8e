//! The copies of volumes: links from our heads to theirs, and from foreign heads to ours.
//!
//! Nothing is decided here: heads and copies are the engine's machines, this carries their bytes
//! (docs/protocols/replication.md) over TLS links and reconnects those that broke.
//!
//! A copy that no head of ours leads is opened when the first foreign head asks for it, by the volume
//! that the first frame names.

use crate::catalogue::{EngineVolume, hex};
use crate::control::{Code, Refusal, Replica};
use crate::daemon::Storaged;
use nuage_disk::FileDisk;
use nuage_engine::ReplicaStore;
use nuage_io::doors::VolumeId;
use nuage_io::link::LinkId;
use nuage_io::log;
use nuage_io::path::Identity;
use nuage_io::serve::Context;
use nuage_journal::StoreEvent;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Wait between two attempts to connect; doubled up to the longest.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(5);
/// How often heads with copies are driven while nothing comes: leases are renewed every 500 ms.
pub const HEARTBEAT: Duration = Duration::from_millis(100);
/// Bytes of a frame's head, and up to the end of a FENCE's volume and of its epoch, which stand first in its body.
const FENCE_HEAD_BYTES: usize = 12;
const FENCE_VOLUME_END: usize = FENCE_HEAD_BYTES + 16;
const FENCE_BYTES_MIN: usize = FENCE_VOLUME_END + 8;
const FENCE_KIND: u8 = 1;

/// The way from a head of ours to one copy.
pub struct Peer {
    pub copy: usize,
    pub name: String,
    address: SocketAddr,
    token: u64,
    pub link: Option<LinkId>,
    connecting: bool,
    retry_at: Instant,
    retry_after: Duration,
}

impl Peer {
    pub fn new(copy: usize, replica: &Replica, token: u64) -> Result<Self, Refusal> {
        let address = replica.address.parse().map_err(|_| {
            let message = format!("{:?} is no numeric ADDRESS:PORT", replica.address);
            Refusal::new(Code::InvalidRequest, message)
        })?;
        Ok(Self {
            copy,
            name: replica.name.clone(),
            address,
            token,
            link: None,
            connecting: false,
            retry_at: Instant::now(),
            retry_after: RETRY_FIRST,
        })
    }

    fn lost(&mut self) {
        self.link = None;
        self.connecting = false;
        self.retry_at = Instant::now() + self.retry_after;
        self.retry_after = (self.retry_after * 2).min(RETRY_LONGEST);
    }
}

/// A copy that serves foreign heads.
pub struct Copy {
    pub store: ReplicaStore<FileDisk>,
    watch: VolumeId,
    links: Vec<LinkId>,
}

/// A link from a foreign head.
#[derive(Default)]
pub struct Inbound {
    node: String,
    /// Bytes until the volume is known.
    buffer: Vec<u8>,
    volume: Option<String>,
}

/// All of this daemon's copies and the links to them.
#[derive(Default)]
pub struct Copies {
    pub by_volume: BTreeMap<String, Copy>,
    inbound: BTreeMap<LinkId, Inbound>,
}

impl Storaged {
    /// Give back the copy of a volume, to lead or delete it: links to it end.
    pub(crate) fn take_copy(
        &mut self,
        volume: &str,
        context: &mut Context<'_>,
    ) -> Option<ReplicaStore<FileDisk>> {
        let copy = self.copies.by_volume.remove(volume)?;
        context.doors.unwatch(copy.watch);
        for link in copy.links {
            context.links.close(link);
            self.copies.inbound.remove(&link);
        }
        Some(copy.store)
    }

    /// Serve foreign heads from this store.
    pub(crate) fn keep_copy(
        &mut self,
        volume: &str,
        store: ReplicaStore<FileDisk>,
        context: &mut Context<'_>,
    ) {
        let watch = self.new_id();
        if let Some(fd) = store.wake_fd() {
            context.doors.watch(watch, fd);
        }
        let copy = Copy {
            store,
            watch,
            links: Vec::new(),
        };
        self.copies.by_volume.insert(volume.to_owned(), copy);
    }

    pub(crate) fn replica_link_up(
        &mut self,
        link: LinkId,
        token: Option<u64>,
        peer: &Identity,
        context: &mut Context<'_>,
    ) {
        let Some(token) = token else {
            let inbound = Inbound {
                node: peer.node.clone(),
                ..Inbound::default()
            };
            self.copies.inbound.insert(link, inbound);
            return;
        };
        let Some((head, found)) = self.peer_by_token(token) else {
            return context.links.close(link);
        };
        found.connecting = false;
        if found.name != peer.node {
            log::warn(
                "replica_is_another_node",
                &[
                    ("wanted", found.name.as_str().into()),
                    ("found", peer.node.as_str().into()),
                ],
            );
            found.lost();
            return context.links.close(link);
        }
        found.link = Some(link);
        found.retry_after = RETRY_FIRST;
        let copy = found.copy;
        log::info("replica_connected", &[("node", peer.node.as_str().into())]);
        if let Some(engine) = head {
            engine.with(|head| head.peer_connected(copy));
        }
    }

    fn peer_by_token(&mut self, token: u64) -> Option<(Option<EngineVolume>, &mut Peer)> {
        self.heads.values_mut().find_map(|head| {
            let engine = head.engine.clone();
            let peer = head.peers.iter_mut().find(|peer| peer.token == token)?;
            Some((engine, peer))
        })
    }

    pub(crate) fn replica_link_down(&mut self, link: LinkId, token: Option<u64>, reason: &str) {
        if let Some(inbound) = self.copies.inbound.remove(&link) {
            if let Some(copy) = inbound
                .volume
                .and_then(|volume| self.copies.by_volume.get_mut(&volume))
            {
                copy.store.session_closed(link);
                copy.links.retain(|other| *other != link);
            }
            return;
        }
        let Some(token) = token else {
            // A handshake that failed: who it was cannot be said.
            return log::warn("replica_refused", &[("reason", reason.into())]);
        };
        let Some((head, peer)) = self.peer_by_token(token) else {
            return;
        };
        let was_up = peer.link.is_some();
        // A refused connection is told once, not at each attempt.
        if was_up || peer.retry_after == RETRY_FIRST {
            log::warn(
                "replica_lost",
                &[
                    ("node", peer.name.as_str().into()),
                    ("reason", reason.into()),
                ],
            );
        }
        let copy = peer.copy;
        peer.lost();
        if let Some(engine) = head.filter(|_| was_up) {
            engine.with(|head| head.peer_disconnected(copy));
        }
    }

    pub(crate) fn replica_data(&mut self, link: LinkId, bytes: &[u8], context: &mut Context<'_>) {
        if self.copies.inbound.contains_key(&link) {
            return self.inbound_data(link, bytes, context);
        }
        let found = self.heads.values_mut().find_map(|head| {
            let peer = head.peers.iter().find(|peer| peer.link == Some(link))?;
            Some((head.engine.clone(), peer.copy))
        });
        let Some((Some(engine), copy)) = found else {
            return;
        };
        if let Err(error) = engine.with(|head| head.peer_receive(copy, bytes)) {
            log::error("replica_frame", &[("error", error.to_string().into())]);
            engine.with(|head| head.peer_disconnected(copy));
            for peer in self
                .heads
                .values_mut()
                .flat_map(|head| head.peers.iter_mut())
            {
                if peer.link == Some(link) {
                    peer.lost();
                }
            }
            context.links.close(link);
        }
    }

    fn inbound_data(&mut self, link: LinkId, bytes: &[u8], context: &mut Context<'_>) {
        let Some(inbound) = self.copies.inbound.get_mut(&link) else {
            return;
        };
        if let Some(volume) = inbound.volume.clone() {
            return self.feed_copy(&volume, link, bytes, context);
        }
        inbound.buffer.extend_from_slice(bytes);
        if inbound.buffer.len() < FENCE_BYTES_MIN {
            return;
        }
        let buffer = std::mem::take(&mut inbound.buffer);
        let node = inbound.node.clone();
        let uuid = hex(&buffer[FENCE_HEAD_BYTES..FENCE_VOLUME_END]);
        let named = (buffer[8] == FENCE_KIND)
            .then(|| self.catalogue.name_of(&uuid))
            .flatten();
        let epoch = buffer[FENCE_VOLUME_END..FENCE_BYTES_MIN]
            .iter()
            .rfold(0, |high, byte| high << 8 | u64::from(*byte));
        let refused = match named {
            None => Some("no such volume here".to_owned()),
            Some(volume) if self.heads.contains_key(&volume) => {
                let term = epoch >> nuage_engine::EPOCH_RESTART_BITS;
                Some(self.led_here(&volume, term, context))
            }
            Some(volume) => match self.open_copy(&volume, context) {
                Ok(()) => {
                    if let Some(inbound) = self.copies.inbound.get_mut(&link) {
                        inbound.volume = Some(volume.clone());
                    }
                    if let Some(copy) = self.copies.by_volume.get_mut(&volume) {
                        copy.store.session_opened(link);
                        copy.links.push(link);
                    }
                    log::info(
                        "replica_serves",
                        &[
                            ("volume", volume.as_str().into()),
                            ("head_node", node.as_str().into()),
                        ],
                    );
                    self.feed_copy(&volume, link, &buffer, context);
                    None
                }
                Err(_) if self.catalogue.is_base_lost(&volume) => {
                    Some(self.give_up_baseless(&volume, epoch, context))
                }
                Err(refusal) => Some(refusal.message),
            },
        };
        if let Some(reason) = refused {
            log::warn(
                "replica_refused",
                &[("node", node.into()), ("reason", reason.into())],
            );
            self.copies.inbound.remove(&link);
            context.links.close(link);
        }
    }

    /// A head elsewhere wants our copy, which a head of ours has. Of a later epoch it is the one: whoever
    /// opened ours may be away, and never tell it. So ours closes, and the other finds the copy at its next try.
    fn led_here(&mut self, volume: &str, epoch: u64, context: &mut Context<'_>) -> String {
        let Some(head) = self.heads.get(volume).filter(|head| head.epoch < epoch) else {
            return format!("{volume:?} is led here");
        };
        let told = format!(
            "{volume:?} is led here under epoch {}: it closes",
            head.epoch
        );
        self.begin_close(volume, context);
        told
    }

    /// A head elsewhere wants our copy, whose base segments are lost: it goes aside, and whoever looks after this
    /// daemon has another made, which that head fills.
    fn give_up_baseless(&mut self, volume: &str, epoch: u64, context: &mut Context<'_>) -> String {
        let why = format!("the base segments of {volume:?} are lost here");
        match self.catalogue.put_baseless_aside(volume, epoch) {
            Ok(()) => {
                self.end_standby(volume, context);
                self.scrubbing.forget(volume);
                format!("{why}: it is made anew")
            }
            Err(error) => format!("{why}, and it is not put aside: {error}"),
        }
    }

    pub(crate) fn open_copy(
        &mut self,
        volume: &str,
        context: &mut Context<'_>,
    ) -> Result<(), Refusal> {
        if !self.copies.by_volume.contains_key(volume) {
            let store = self.catalogue.open_copy(volume)?;
            self.keep_copy(volume, store, context);
        }
        Ok(())
    }

    fn feed_copy(&mut self, volume: &str, link: LinkId, bytes: &[u8], context: &mut Context<'_>) {
        let Some(copy) = self.copies.by_volume.get_mut(volume) else {
            return context.links.close(link);
        };
        if let Err(error) = copy.store.receive(link, bytes) {
            log::error("replica_frame", &[("error", error.to_string().into())]);
            copy.store.session_closed(link);
            copy.links.retain(|other| *other != link);
            self.copies.inbound.remove(&link);
            context.links.close(link);
        }
    }

    /// Move what heads and copies have for each other, and reconnect.
    pub(crate) fn run_replication(&mut self, context: &mut Context<'_>) {
        let now = Instant::now();
        for head in self.heads.values_mut() {
            let Some(engine) = &head.engine else { continue };
            for peer in &mut head.peers {
                match peer.link {
                    Some(link) if context.links.has_room(link) => {
                        let output = engine.with(|head| head.peer_output(peer.copy));
                        if !output.is_empty() {
                            context.links.send(link, output);
                        }
                    }
                    None if !peer.connecting && now >= peer.retry_at => {
                        peer.connecting = true;
                        context.links.connect(peer.token, peer.address);
                    }
                    _ => {}
                }
            }
        }
        let mut events = Vec::new();
        for (volume, copy) in &mut self.copies.by_volume {
            events.extend(
                copy.store
                    .poll()
                    .into_iter()
                    .map(|event| (volume.clone(), event)),
            );
            for link in &copy.links {
                let output = copy.store.output(*link);
                if !output.is_empty() {
                    context.links.send(*link, output);
                }
            }
        }
        for (volume, event) in events {
            match event {
                StoreEvent::Receipt(receipt) => self.keep_receipt(&volume, &receipt, context),
                StoreEvent::Failed(error) => log::error(
                    "copy_failed",
                    &[
                        ("volume", volume.into()),
                        ("error", error.to_string().into()),
                    ],
                ),
                event => crate::report::tell_damage(&volume, &event),
            }
        }
    }
}
