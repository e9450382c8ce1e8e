//! Opening, closing and changing the heads of this daemon.

use crate::catalogue::{EngineVolume, Opening, journal_refusal};
use crate::control::{self, Ack, Code, OpenHead, Refusal, SetChap};
use crate::daemon::{Asker, Handled, Head, Pending, Storaged, access, failure_refusal, reply};
use crate::limits;
use crate::replication::Peer;
use nuage_block::{Operation, Outcome};
use nuage_disk::FileDisk;
use nuage_engine::{AckMode, ReplicaStore, SystemClock, VolumeHead};
use nuage_io::log;
use nuage_io::serve::Context;
use nuage_journal::{JournalError, Store};
use nuage_replica::{Policy, PolicyError, PolicyName};
use nuage_scsi::{AccessState, Alua, PortGroup};
use serde_json::{Value, json};
use std::rc::Rc;

impl Storaged {
    pub(crate) fn open_head(
        &mut self,
        open: OpenHead,
        asker: &Asker,
        context: &mut Context<'_>,
    ) -> Handled {
        self.catalogue.get(&open.volume)?;
        if let Some(head) = self.heads.get(&open.volume) {
            if head.epoch > open.epoch {
                let message = format!("epoch {} is open, {} is older", head.epoch, open.epoch);
                return Err(Refusal::new(Code::StaleEpoch, message));
            }
            if head.ready
                && !head.closing
                && head.epoch == open.epoch
                && head.iqn == open.iqn
                && head.nbd == open.nbd
            {
                return self.status(&open.volume, context).map(Some);
            }
            return Err(Refusal::new(
                Code::Conflict,
                "the head is open with other words: close_head first",
            ));
        }
        if open.position > open.replicas.len() {
            let message = "position: a place among all copies";
            return Err(Refusal::new(Code::InvalidRequest, message));
        }
        // Refuse bad secrets before anything is opened.
        access(
            open.chap.as_deref(),
            open.chap_own.as_ref(),
            &open.initiators,
        )?;
        let mode = match open.ack {
            Ack::Durable => AckMode::Durable,
            Ack::Memory => AckMode::Memory,
            Ack::WriteBack => AckMode::WriteBack,
        };
        let mut peers = Vec::new();
        for (index, replica) in open.replicas.iter().enumerate() {
            let copy = index + usize::from(index >= open.position);
            let token = self.next_token;
            self.next_token += 1;
            peers.push(Peer::new(copy, replica, token)?);
        }
        let former = former_policy(&open, &self.node)?;
        let copy = self.take_copy(&open.volume, context);
        let opening = Opening {
            epoch: open.epoch,
            former,
            mode,
            read_only: open.read_only,
            policy: &open.policy,
            others: peers.len(),
            position: open.position,
            accepts_loss: open.accepts_loss,
            node: &self.node,
        };
        let opened = self.catalogue.open_head(&open.volume, &opening, copy)?;
        let is_encrypted = self.catalogue.get(&open.volume)?.encrypted;
        let id = self.id_for_head(&open.volume, open.iqn.as_deref(), context);
        if let Some(engine) = &opened.engine {
            let budget = Rc::clone(self.budget_of(&open.volume));
            engine.with(|head| head.share_budget(budget));
        }
        let (device, limit) = self.limited(&open.volume, opened.device, open.limits);
        context.doors.add_volume(id, device);
        self.heads.insert(
            open.volume.clone(),
            Head {
                id,
                engine: opened.engine,
                epoch: open.epoch,
                key_id: self.key_id().filter(|_| is_encrypted),
                policy: open.policy.clone(),
                iqn: open.iqn.clone(),
                nbd: open.nbd.clone(),
                ready: false,
                closing: false,
                close_askers: Vec::new(),
                ended: None,
                failure: None,
                peers,
                limit,
            },
        );
        if let Some(head) = self.heads.get(&open.volume) {
            limits::bind(head, &open.lag_bound);
        }
        // A head with copies elsewhere opens when a fence set has promised, which may take long.
        let waits = !open.replicas.is_empty();
        let volume = open.volume.clone();
        let token = self.remember(Pending::Open {
            volume: volume.clone(),
            open: Box::new(open),
            asker: (!waits).then(|| asker.clone()),
        });
        context.doors.ask(id, token, Operation::LoadReservations);
        if waits {
            return self.status(&volume, context).map(Some);
        }
        Ok(None)
    }

    /// The reservations are here: show the volume at its doors.
    pub(crate) fn opened(
        &mut self,
        volume: &str,
        open: &OpenHead,
        outcome: Outcome,
        context: &mut Context<'_>,
    ) -> Result<Value, Refusal> {
        let Some(head) = self.heads.get_mut(volume) else {
            return Err(Refusal::new(
                Code::Conflict,
                "the head was closed meanwhile",
            ));
        };
        let id = head.id;
        let state = match outcome {
            Outcome::Reservations(state) => state,
            Outcome::Failed(failure) => return Err(failure_refusal(failure)),
            _ => return Err(Refusal::new(Code::Io, "the volume gave no reservations")),
        };
        let geometry = context
            .doors
            .device(id)
            .map(nuage_block::BlockDevice::geometry);
        let geometry = geometry.ok_or_else(|| Refusal::new(Code::Io, "the volume is gone"))?;
        if let Some(iqn) = &open.iqn {
            let access = access(
                open.chap.as_deref(),
                open.chap_own.as_ref(),
                &open.initiators,
            )?;
            let iscsi = &mut context.doors.iscsi;
            if let Some(unit) = iscsi.unit_mut(id) {
                unit.set_geometry(geometry.clone());
                iscsi.set_access(id, access);
            } else if !iscsi.add_target(id, iqn, geometry.clone(), access) {
                return Err(Refusal::new(
                    Code::Conflict,
                    format!("the target {iqn:?} is in use"),
                ));
            }
            // A head that opens follows a stop or a crash: SPC-4's power loss.
            let whole = context
                .doors
                .iscsi
                .unit_mut(id)
                .is_some_and(|unit| unit.load_reservations(&state, true));
            if !whole {
                log::error("reservations_damaged", &[("volume", volume.into())]);
            }
        }
        if let Some(name) = &open.nbd {
            // One head orders everything: a flush covers what any connection completed.
            let export = nuage_nbd::Export {
                name: name.clone(),
                geometry,
                multi_conn: true,
            };
            if !context.doors.nbd.add_export(id, export) {
                return Err(Refusal::new(
                    Code::Conflict,
                    format!("the export {name:?} is in use"),
                ));
            }
        }
        head.ready = true;
        log::info(
            "head_opened",
            &[("volume", volume.into()), ("epoch", head.epoch.into())],
        );
        self.serve_after_standby(volume, context);
        self.status(volume, context)
    }

    pub(crate) fn close_head(
        &mut self,
        volume: &str,
        asker: &Asker,
        context: &mut Context<'_>,
    ) -> Option<Value> {
        if !self.heads.contains_key(volume) {
            return Some(json!({"volume": volume})); // a retry after a lost answer
        }
        if let Some(head) = self.heads.get_mut(volume) {
            head.close_askers.push(asker.clone());
        }
        self.begin_close(volume, context);
        None
    }

    pub(crate) fn begin_close(&mut self, volume: &str, context: &mut Context<'_>) {
        let views: Vec<String> = self
            .views
            .iter()
            .filter(|(_, view)| view.volume == volume)
            .map(|(name, _)| name.clone())
            .collect();
        for view in views {
            self.close_at(&view, context);
        }
        let Some(head) = self.heads.get_mut(volume) else {
            return;
        };
        if head.closing {
            return;
        }
        head.closing = true;
        self.standbys.remove(volume);
        // Without its copies it would wait for them: what is acknowledged is safe there.
        let gave_up = head.engine.as_ref().is_some_and(|engine| {
            engine.with(|engine| {
                let serves = engine.is_serving();
                if !serves {
                    engine.release();
                }
                !serves
            })
        });
        let id = head.id;
        context.doors.iscsi.remove_target(id);
        context.doors.nbd.remove_export(id);
        let token = self.remember(Pending::CloseFlush {
            volume: volume.to_owned(),
            gave_up,
        });
        context.doors.ask(id, token, Operation::Flush);
    }

    /// The last flush is done and nothing is in flight: let go of the volume.
    pub(crate) fn finish_close(
        &mut self,
        volume: &str,
        flushed: Result<(), Refusal>,
        context: &mut Context<'_>,
    ) {
        let Some(head) = self.heads.remove(volume) else {
            return;
        };
        drop(context.doors.remove_volume(head.id));
        let mut result = flushed;
        if let Some(engine) = head.engine {
            release(&engine, &head.peers, context);
            let steady = engine.with(|head| head.is_steady());
            match close_engine(engine) {
                Ok(Some(store)) if !head.peers.is_empty() => {
                    let clock = Rc::new(SystemClock::default());
                    let copy = ReplicaStore::after_lead(store, clock, steady);
                    self.keep_copy(volume, copy, context);
                }
                Err(error) if result.is_ok() => result = Err(journal_refusal(&error)),
                _ => {}
            }
        }
        log::info(
            "head_closed",
            &[("volume", volume.into()), ("clean", result.is_ok().into())],
        );
        let answer = result.map(|()| json!({"volume": volume}));
        for asker in &head.close_askers {
            reply(context, asker, answer.clone());
        }
    }

    pub(crate) fn set_chap(
        &mut self,
        set: &SetChap,
        context: &mut Context<'_>,
    ) -> Result<Value, Refusal> {
        let id = self.head(&set.volume)?.id;
        let access = access(set.chap.as_deref(), set.chap_own.as_ref(), &set.initiators)?;
        if !context.doors.iscsi.set_access(id, access) {
            return Err(Refusal::new(
                Code::Conflict,
                "this head has no iSCSI target",
            ));
        }
        Ok(json!({"volume": set.volume}))
    }

    pub(crate) fn set_groups(
        &self,
        volume: &str,
        own: u16,
        groups: &[control::PortGroup],
        context: &mut Context<'_>,
    ) -> Result<Value, Refusal> {
        let id = self.head(volume)?.id;
        let alua = access_states(own, groups)?;
        context.doors.iscsi.set_alua(id, alua);
        Ok(json!({"volume": volume}))
    }

    /// Stop taking new things, close every head, then end.
    pub(crate) fn drain(&mut self, context: &mut Context<'_>) {
        if !self.draining {
            log::info("draining", &[("heads", self.heads.len().into())]);
        }
        self.draining = true;
        let names: Vec<String> = self.heads.keys().cloned().collect();
        for volume in names {
            self.begin_close(&volume, context);
        }
    }
}

/// How the copies that the volume had before acknowledged, by their numbers among the present ones.
fn former_policy(open: &OpenHead, node: &str) -> Result<Option<Policy>, Refusal> {
    let Some(former) = &open.former else {
        return Ok(None);
    };
    let wrong = |error: PolicyError| Refusal::new(Code::InvalidRequest, error.to_string());
    let count = u32::try_from(former.nodes.len()).unwrap_or(u32::MAX);
    let policy = PolicyName::parse(&former.policy).and_then(|name| Policy::named(name, count));
    let others = open.replicas.iter().map(|replica| replica.name.as_str());
    let mut present: Vec<&str> = others.collect();
    present.insert(open.position, node);
    let number = |name: &String| {
        let found = present.iter().zip(0..).find(|(here, _)| *here == name);
        found.map(|(_, number)| number)
    };
    let numbers: Vec<Option<u32>> = former.nodes.iter().map(number).collect();
    policy
        .map(|policy| Some(policy.renumbered(&numbers)))
        .map_err(wrong)
}

/// Access states by their words.
pub(crate) fn access_states(own: u16, groups: &[control::PortGroup]) -> Result<Alua, Refusal> {
    let mut parsed = Vec::new();
    for group in groups {
        let state = match group.state.as_str() {
            "optimized" => AccessState::Optimized,
            "non_optimized" => AccessState::NonOptimized,
            "standby" => AccessState::Standby,
            "unavailable" => AccessState::Unavailable,
            "transitioning" => AccessState::Transitioning,
            other => {
                let message = format!("{other:?} is no access state");
                return Err(Refusal::new(Code::InvalidRequest, message));
            }
        };
        parsed.push(PortGroup {
            id: group.id,
            state,
            ports: vec![group.id],
        });
    }
    Ok(Alua {
        own_group: own,
        groups: parsed,
    })
}

/// Tell the copies that this head reads and writes no more, and end the links to them.
fn release(engine: &EngineVolume, peers: &[Peer], context: &mut Context<'_>) {
    if peers.is_empty() {
        return;
    }
    engine.with(VolumeHead::release);
    for peer in peers {
        if let Some(link) = peer.link {
            let output = engine.with(|head| head.peer_output(peer.copy));
            context.links.send(link, output);
            context.links.close(link);
        }
    }
}

/// Close the journal; `None`: somebody still holds the head, which closes when dropped.
fn close_engine(engine: EngineVolume) -> Result<Option<Store<FileDisk>>, JournalError> {
    engine.into_head().map(VolumeHead::close).transpose()
}
