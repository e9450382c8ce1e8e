//! A head with copies elsewhere: its links to them, promises, recovery.

use std::rc::Rc;

use nuage_block::{Failure, Output};
use nuage_journal::{Disk, GroupBuilder, JournalError, Store};
use nuage_replica::{FrameError, Policy};

use super::{AckMode, Clock, HeadEvent, HeadOptions, VolumeHead, next_epoch};
use crate::qos::SharedBudget;
use crate::replicas::{Answering, CopyStatus, LagBound, OwnCopy, Replicas, Wish};

/// The copies of a replicated volume, as the quorum's record of it says.
#[derive(Debug, Clone)]
pub struct CopyOptions {
    pub policy: Policy,
    /// How the copies that the volume had before acknowledged, by the numbers they have now, while no head has
    /// been ready with the present ones.
    pub former: Option<Policy>,
    /// Copies in all; `me` is the number of the head's own.
    pub count: usize,
    pub me: usize,
    /// For how long the own copy has heard no former head (`ReplicaStore::hand_over` tells).
    pub quiet_ns: u64,
    /// The own copy has lost nothing that it held in memory.
    pub steady: bool,
}

impl<D: Disk> VolumeHead<D> {
    /// Take the lead of a volume that has copies elsewhere. It serves once a fence set has promised
    /// and its log is recovered; requests wait until then.
    pub fn open_replicated(
        mut store: Store<D>,
        options: HeadOptions,
        copies: CopyOptions,
        clock: Rc<dyn Clock>,
    ) -> Result<Self, JournalError> {
        let epoch = next_epoch(store.superblock().promised, options.term)?;
        store.promise(epoch)?;
        let volume = store.superblock().volume;
        let own = OwnCopy {
            quiet_ns: copies.quiet_ns,
            steady: copies.steady,
            from_memory: options.mode != AckMode::Durable,
            accepts_loss: options.accepts_loss,
        };
        let mut replicas = Replicas::new(copies, volume, own);
        replicas.set_epoch(epoch, store.applied_seq());
        Ok(Self::assemble(store, options, clock, epoch, Some(replicas)))
    }

    /// Let this head's copies be brought up to date within the daemon's budget.
    pub fn share_budget(&mut self, budget: SharedBudget) {
        if let Some(replicas) = &mut self.replicas {
            replicas.budget = budget;
        }
    }

    /// A connection to a copy is there. The first frame is already waiting in `peer_output`.
    pub fn peer_connected(&mut self, copy: usize) {
        if let Some(replicas) = &mut self.replicas {
            replicas.connected(copy);
        }
    }

    pub fn peer_disconnected(&mut self, copy: usize) {
        if let Some(replicas) = &mut self.replicas {
            replicas.disconnected(copy);
        }
    }

    /// Bytes from a copy; `poll` works through them.
    pub fn peer_receive(&mut self, copy: usize, bytes: &[u8]) -> Result<(), FrameError> {
        self.replicas
            .as_mut()
            .map_or(Ok(()), |replicas| replicas.receive(copy, bytes))
    }

    /// Bytes for a copy.
    pub fn peer_output(&mut self, copy: usize) -> Output {
        self.replicas
            .as_mut()
            .map(|replicas| replicas.output(copy))
            .unwrap_or_default()
    }

    /// How the copies stand; empty for a volume with one.
    pub fn copies(&self) -> Vec<CopyStatus> {
        self.replicas
            .as_ref()
            .map(Replicas::status)
            .unwrap_or_default()
    }

    /// The own copy has forgotten nothing: it did not before, or holds what a fence set vouched for.
    pub fn is_steady(&self) -> bool {
        self.replicas.as_ref().is_none_or(Replicas::is_steady)
    }

    /// Reads and writes are answered now.
    pub fn is_serving(&self) -> bool {
        let applied_seq = self.store.applied_seq();
        let may_serve = |replicas: &Replicas| replicas.may_serve(applied_seq);
        self.stopped.is_none() && self.replicas.as_ref().is_none_or(may_serve)
    }

    /// Bound how far copies may be behind; `None`: they follow as they can.
    pub fn set_lag_bound(&mut self, bound: Option<LagBound>) {
        if let Some(replicas) = &mut self.replicas {
            replicas.set_bound(bound);
        }
    }

    /// How writes are answered now, by what the bound says.
    pub fn answers(&self) -> Answering {
        self.answering()
    }

    /// Every copy has answered and too few have all that was durable: only the owner's word opens it.
    pub fn is_lost(&self) -> bool {
        self.replicas.as_ref().is_some_and(Replicas::is_lost)
    }

    /// Stop answering and tell the copies, so that the next head need not wait for the lease.
    pub fn release(&mut self) {
        self.stop(Failure::Fenced);
        if let Some(replicas) = &mut self.replicas {
            replicas.release();
        }
    }

    pub(super) fn pump_replicas(&mut self) {
        let now = self.clock.now();
        let Some(replicas) = &mut self.replicas else {
            // No other copy: nobody can be asked.
            for wish in self.store.take_wishes() {
                self.store.give_up(wish);
            }
            return;
        };
        if self.store.is_stranded() {
            let horizon = self.store.horizon_seq();
            if self.stopped.is_none() {
                self.stop(Failure::Fenced); // another path serves
                self.events.push(HeadEvent::Behind { horizon });
            }
            return;
        }
        let Ok(wishes) = replicas.pump(&mut self.store, now) else {
            self.stop_for_disk();
            return;
        };
        for wish in wishes {
            match wish {
                Wish::Stop { promised } => {
                    self.stop(Failure::Fenced);
                    self.events.push(HeadEvent::Fenced { epoch: promised });
                }
                Wish::GiveUp { horizon } => {
                    self.stop(Failure::Fenced); // another path serves
                    self.events.push(HeadEvent::Behind { horizon });
                }
                Wish::RaiseEpoch { above } => self.raise_epoch(above),
                Wish::StartEpoch => self.begin_recovered(),
            }
        }
    }

    pub(super) fn raise_epoch(&mut self, above: u64) {
        let raised = next_epoch(above.max(self.epoch), self.options.term)
            .and_then(|epoch| self.store.promise(epoch).map(|()| epoch));
        let Ok(epoch) = raised else {
            self.stop(Failure::Fenced);
            self.events.push(HeadEvent::Fenced { epoch: above });
            return;
        };
        self.epoch = epoch;
        let known = self.store.applied_seq();
        if let Some(replicas) = &mut self.replicas {
            replicas.set_epoch(epoch, known);
        }
    }

    pub(super) fn begin_recovered(&mut self) {
        let next = self.store.tail().seq + 1;
        self.builder = GroupBuilder::new(self.uuid, self.epoch, next, self.store.is_encrypted());
        self.last_time_ns = self.store.tail().time_ns;
        if self.start_epoch().is_err() {
            self.stop_for_disk();
        }
    }
}
