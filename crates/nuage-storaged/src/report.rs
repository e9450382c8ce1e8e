//! What the daemon tells about itself: status, metrics, receipts, events of the engine.

use crate::catalogue::{EngineVolume, hex, journal_refusal, now_ns};
use crate::control::{Code, Refusal};
use crate::daemon::{Asker, Head, Storaged};
use crate::limits::answering_name;
use crate::metrics::{CopyFigures, VolumeFigures};
use crate::receipts::Part;
use nuage_engine::{Answering, HeadEvent};
use nuage_io::log;
use nuage_io::serve::Context;
use nuage_journal::{Receipt, StoreEvent};
use serde_json::{Value, json};

impl Storaged {
    pub(crate) fn list(&self, context: &Context<'_>) -> Value {
        let names: Vec<Value> = self
            .catalogue
            .volumes
            .keys()
            .filter_map(|name| self.status(name, context).ok())
            .collect();
        json!({
            "volumes": names,
            "key_id": self.key_id(),
            "shares": self.shares(),
            "version": env!("CARGO_PKG_VERSION"),
        })
    }

    pub(crate) fn status(&self, volume: &str, context: &Context<'_>) -> Result<Value, Refusal> {
        let spec = self.catalogue.get(volume)?;
        let mut value = json!({
            "volume": spec.volume, "uuid": spec.uuid, "size_bytes": spec.size_bytes,
            "logical_block_bytes": spec.logical_block_bytes, "backend": spec.backend,
            "encrypted": spec.encrypted, "disk": spec.disk, "head": Value::Null,
            "base_disk": self.catalogue.base_apart(volume).map(|(disk, _)| disk),
            "retention": spec.retention,
            "stands_by": self.standbys.contains_key(volume), "retired": self.retired(volume),
            "views": self.views_of(volume, context),
        });
        if let Some(copy) = self.copies.by_volume.get(volume) {
            let store = copy.store.store();
            value["copy"] = json!({
                "sequence": store.tail().seq, "durable_sequence": store.durable_seq(),
                "journal_bytes": store.segment_bytes_used(), "whole": store.is_whole(),
            });
        }
        if let Some(scrub) = self.scrub_status(volume) {
            value["scrub"] = scrub;
        }
        let Some(head) = self.heads.get(volume) else {
            return Ok(value);
        };
        let sessions: Vec<Value> = context
            .doors
            .iscsi
            .sessions(head.id)
            .into_iter()
            .map(|session| {
                json!({
                    "initiator": session.initiator, "isid": hex(&session.isid),
                    "portal": session.portal, "tasks": session.task_count,
                })
            })
            .collect();
        let state = match (head.ended, head.closing, head.ready) {
            (Some(ended), _, _) => ended,
            (None, true, _) => "closing",
            (None, false, true) => "open",
            (None, false, false) => "opening",
        };
        let figures = self.figures_of(volume, head, context);
        value["head"] = json!({
            "state": state, "epoch": head.epoch, "key_id": head.key_id, "policy": head.policy, "iqn": head.iqn, "nbd": head.nbd,
            "sessions": sessions, "nbd_connections": context.doors.nbd.connections_of(head.id).len(),
            "sequence": figures.sequence, "durable_sequence": figures.durable_sequence,
            "mapped_bytes": figures.mapped_bytes, "journal_bytes": figures.journal_bytes, "failure": head.failure, "lost": is_lost(head), "answers": answers(head), "copies": copies_of(head),
            "history_bytes": figures.history_bytes, "horizon_sequence": figures.horizon_sequence,
            "history_full": figures.history_full,
        });
        if let Some(engine) = &head.engine {
            engine.with(|engine| {
                let store = engine.store();
                value["head"]["horizon_time_us"] = (store.horizon_time_ns() / 1000).into();
                value["head"]["dropped_early_us"] = (store.dropped_early_ns() / 1000).into();
                value["head"]["held_by_views_bytes"] = engine.held_by_views().into();
            });
        }
        Ok(value)
    }

    pub(crate) fn figures_of(
        &self,
        volume: &str,
        head: &Head,
        context: &Context<'_>,
    ) -> VolumeFigures {
        let mut figures = VolumeFigures {
            volume: volume.to_owned(),
            counters: context.doors.counters(head.id),
            size_bytes: self
                .catalogue
                .volumes
                .get(volume)
                .map_or(0, |spec| spec.size_bytes),
            mapped_bytes: 0,
            journal_bytes: 0,
            sequence: 0,
            durable_sequence: 0,
            history_bytes: 0,
            horizon_sequence: 0,
            history_full: false,
            held: answers(head) == answering_name(Answering::Held),
            copies: copy_figures(head),
            sessions: context.doors.iscsi.sessions(head.id).len(),
            scrub: self.scrub_figures(volume),
        };
        if let Some(engine) = &head.engine {
            engine.with(|engine| {
                let store = engine.store();
                figures.mapped_bytes = store.state().index.mapped() * 4096;
                figures.journal_bytes = store.segment_bytes_used();
                figures.sequence = engine.last_seq();
                figures.durable_sequence = store.durable_seq();
                figures.history_bytes = store.history_bytes();
                figures.horizon_sequence = store.horizon_seq();
                figures.history_full = store.is_history_full();
            });
        }
        figures
    }

    pub(crate) fn figures(&self, context: &Context<'_>) -> Vec<VolumeFigures> {
        self.heads
            .iter()
            .map(|(volume, head)| self.figures_of(volume, head, context))
            .collect()
    }

    pub(crate) fn follow(
        &mut self,
        after: u64,
        asker: &Asker,
        context: &mut Context<'_>,
    ) -> Result<Value, Refusal> {
        let old = self
            .receipts
            .after(after)
            .map_err(|error| Refusal::new(Code::Io, error.to_string()))?;
        for receipt in &old {
            context.replies.push((
                asker.0,
                json!({"event": "receipt", "receipt": receipt})
                    .to_string()
                    .into_bytes(),
            ));
        }
        if !self.receipts.followers.contains(&asker.0) {
            self.receipts.followers.push(asker.0);
        }
        Ok(json!({"count": old.len()}))
    }

    pub(crate) fn receipts_taken(&mut self, number: u64) -> Result<Value, Refusal> {
        let done = self.receipts.taken(number);
        done.map_err(|error| Refusal::new(Code::Io, error.to_string()))?;
        Ok(json!({}))
    }

    pub(crate) fn engine_events(&mut self, context: &mut Context<'_>) {
        let mut events = Vec::new();
        for (volume, head) in &self.heads {
            if let Some(engine) = &head.engine {
                events.extend(
                    engine
                        .with(nuage_engine::VolumeHead::take_events)
                        .into_iter()
                        .map(|event| (volume.clone(), event)),
                );
            }
        }
        for (volume, event) in events {
            match event {
                HeadEvent::Administered { tag, outcome } => self.administered(
                    tag,
                    outcome.map_err(|error| journal_refusal(&error)),
                    context,
                ),
                HeadEvent::Fenced { epoch } => {
                    log::warn(
                        "head_fenced",
                        &[("volume", volume.as_str().into()), ("epoch", epoch.into())],
                    );
                    if let Some(head) = self.heads.get_mut(&volume) {
                        head.ended = Some("fenced");
                    }
                }
                HeadEvent::Behind { horizon } => {
                    log::warn(
                        "head_behind",
                        &[
                            ("volume", volume.as_str().into()),
                            ("horizon", horizon.into()),
                        ],
                    );
                    if let Some(head) = self.heads.get_mut(&volume) {
                        head.ended = Some("behind");
                        head.failure = Some(format!(
                            "the copy here was away for longer than the others keep history (from #{horizon} on): \
                             one of them must lead"
                        ));
                    }
                }
                HeadEvent::Store(StoreEvent::Receipt(receipt)) => {
                    self.keep_receipt(&volume, &receipt, context);
                }
                HeadEvent::Store(StoreEvent::HorizonMoved { seq, .. }) => {
                    log::info(
                        "horizon_moved",
                        &[("volume", volume.into()), ("sequence", seq.into())],
                    );
                }
                HeadEvent::Store(StoreEvent::Failed(error)) => {
                    if let Some(head) = self.heads.get_mut(&volume) {
                        head.failure = Some(error.to_string());
                    }
                    log::error(
                        "volume_failed",
                        &[
                            ("volume", volume.into()),
                            ("error", error.to_string().into()),
                        ],
                    );
                }
                HeadEvent::Store(event) => tell_damage(&volume, &event),
            }
        }
    }

    /// Number a receipt, keep it, and tell who follows.
    pub(crate) fn keep_receipt(
        &mut self,
        volume: &str,
        receipt: &Receipt,
        context: &mut Context<'_>,
    ) {
        let part = self.part_of(volume, receipt.is_base);
        if self.receipts.is_news(&part, receipt) {
            self.keep_receipt_of(&part, receipt, context);
        }
    }

    pub(crate) fn keep_receipt_of(
        &mut self,
        part: &Part,
        receipt: &Receipt,
        context: &mut Context<'_>,
    ) {
        match self.receipts.keep(part, receipt) {
            Ok(value) => {
                let line = json!({"event": "receipt", "receipt": value}).to_string();
                let followers = self.receipts.followers.iter();
                let lines = followers.map(|client| (*client, line.clone().into_bytes()));
                context.replies.extend(lines);
            }
            Err(error) => log::error("receipt_not_kept", &[("error", error.to_string().into())]),
        }
    }

    /// Which part of our copy of a volume a segment is of.
    pub(crate) fn part_of(&self, volume: &str, is_base: bool) -> Part {
        let apart = self.catalogue.base_apart(volume).filter(|_| is_base);
        match apart {
            Some((disk, base)) => Part::base(volume, &disk, &base),
            None => Part::log(volume, self.catalogue.disk_of(volume)),
        }
    }

    /// Tell that a copy that lay aside on `disk` is gone.
    pub(crate) fn tell_removed(
        &mut self,
        volume: &str,
        disk: &str,
        kept: &str,
        context: &mut Context<'_>,
    ) {
        let mut gone = self.receipts.gone_bases(volume, &self.catalogue.disks);
        if disk != kept {
            gone.push(Part::log(volume, disk));
        }
        for part in gone {
            for receipt in self.receipts.given_back(&part) {
                self.keep_receipt_of(&part, &receipt, context);
            }
            self.forget_receipts(&part);
        }
    }

    /// Forget what was told of a copy on `disk` that is not there any more, and of base directories that are not.
    pub(crate) fn forget_copy(&mut self, volume: &str, disk: &str) {
        let mut gone = self.receipts.gone_bases(volume, &self.catalogue.disks);
        // One that lies aside there is told of until it goes.
        if !self.has_aside(volume, disk) {
            gone.push(Part::log(volume, disk));
        }
        for part in gone {
            self.forget_receipts(&part);
        }
    }

    fn forget_receipts(&mut self, part: &Part) {
        if let Err(error) = self.receipts.forget(part) {
            log::error("receipts_not_kept", &[("error", error.to_string().into())]);
        }
    }
}

/// How writes are answered now, by the bound on the copies' lag.
fn answers(head: &Head) -> &'static str {
    let answering = |engine: &EngineVolume| engine.with(|engine| engine.answers());
    answering_name(head.engine.as_ref().map_or(Answering::AtOnce, answering))
}

/// Every copy has answered the head, and what was acknowledged is on none of them for certain.
fn is_lost(head: &Head) -> bool {
    let lost = |engine: &EngineVolume| engine.with(|engine| engine.is_lost());
    head.engine.as_ref().is_some_and(lost)
}

/// Blocks of a copy that were mended, or that no copy has.
pub(crate) fn tell_damage(volume: &str, event: &StoreEvent) {
    match event {
        StoreEvent::Mended { lba } => log::warn(
            "block_mended",
            &[("volume", volume.into()), ("lba", (*lba).into())],
        ),
        StoreEvent::Lost { lba, seq } => log::error(
            "block_lost",
            &[
                ("volume", volume.into()),
                ("lba", (*lba).into()),
                ("sequence", (*seq).into()),
            ],
        ),
        _ => {}
    }
}

/// How the copies of a head stand, our own left out.
fn copies_of(head: &Head) -> Vec<Value> {
    let Some(engine) = &head.engine else {
        return Vec::new();
    };
    let known = engine.with(|engine| engine.copies());
    head.peers
        .iter()
        .filter_map(|peer| {
            let copy = known.get(peer.copy)?;
            Some(json!({
                "node": peer.name, "connected": peer.link.is_some(),
                "state": format!("{:?}", copy.state).to_lowercase(),
                "memory_sequence": copy.memory_seq, "durable_sequence": copy.durable_seq,
                "lag": {
                    "writes": copy.lag.records, "bytes": copy.lag.bytes,
                    "milliseconds": copy.lag.age_ns / 1_000_000, "at_least": copy.lag.is_at_least,
                },
                "let_go": copy.let_go, "silent_since_s": copy.silent_ns.map(|silent| now_ns().saturating_sub(silent) / 1_000_000_000),
                "rebuild": copy.rebuild.map(|rebuild| json!({
                    "done_bytes": rebuild.done_blocks * 4096, "total_bytes": rebuild.total_blocks * 4096,
                })),
            }))
        })
        .collect()
}

fn copy_figures(head: &Head) -> Vec<CopyFigures> {
    let Some(engine) = &head.engine else {
        return Vec::new();
    };
    let known = engine.with(|engine| engine.copies());
    let of = |peer: &crate::replication::Peer| {
        known.get(peer.copy).map(|copy| CopyFigures {
            node: peer.name.clone(),
            lag: copy.lag,
        })
    };
    head.peers.iter().filter_map(of).collect()
}
