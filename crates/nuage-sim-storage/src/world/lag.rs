//! The bound on how far copies are behind, looked at from outside: by what the copies really have.

use nuage_engine::CopyState;

use super::{Role, World};

/// What strict worlds let a copy lack: well above what their network and disks take.
pub(super) const BOUND_NS: u64 = 1_000_000_000;
/// Clocks drift by 1 % at most; twice that for what is rounded.
const DRIFT_PARTS: u64 = 50;

impl World {
    pub(super) fn note_made(&mut self, node: usize) {
        let now = self.clock.0.get();
        if let Role::Head(head) = &self.nodes[node].role {
            let seq = head.last_seq();
            if self.made[node].back().is_none_or(|(last, _)| *last < seq) {
                self.made[node].push_back((seq, now));
            }
            for (copy, status) in head.copies().into_iter().enumerate() {
                if let Role::Replica(replica) = &self.nodes[copy].role
                    && matches!(status.state, CopyState::Live | CopyState::CatchingUp)
                {
                    self.held[node][copy] = replica.store().durable_seq();
                }
            }
        }
    }

    /// No write is answered while a copy lacks what this head made longer ago than the bound: by what
    /// the copy really has, once the head has heard from it. (A disk may be lost while nobody looks.)
    pub(super) fn check_lag(&mut self, node: usize) -> Result<(), String> {
        let (Some(bound_ns), Role::Head(head)) = (self.bound_ns, &self.nodes[node].role) else {
            return Ok(());
        };
        let now = self.clock.0.get();
        for (copy, status) in head.copies().into_iter().enumerate() {
            let held_seq = self.held[node][copy].max(status.durable_seq);
            let made = &self.made[node];
            let lacks = made.partition_point(|(seq, _)| *seq <= held_seq);
            // The first is when the head was first looked at, not when the records before were made.
            let since = made.get(lacks.max(1)).filter(|_| copy != node && lacks > 0);
            let age_ns = since.map_or(0, |(_, at)| now - at);
            if age_ns > bound_ns + bound_ns / DRIFT_PARTS {
                return Err(format!(
                    "node {node} answers a write while copy {copy} lacks what is {age_ns} ns old"
                ));
            }
            self.outcome.lags_checked += u64::from(age_ns > 0);
        }
        Ok(())
    }
}
