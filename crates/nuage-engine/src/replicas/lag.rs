//! How far each copy is behind the head, and when the head waits with its answers for one that is.
//!
//! A copy outside the ack sets follows as fast as it can. What it lacks would be lost with the others, so
//! a contract may bound it ([`LagBound`]). From half the bound on the head answers less often, at the
//! bound not at all, until the copy is nearer again. The records are sent on all the while: only answers wait,
//! and with them the initiators, whose queues are bounded.
//!
//! A copy that is cut off (its connection is gone, or it says nothing for [`CUT_OFF_NS`]) cannot come
//! nearer. A strict bound then stops the writers; otherwise the copy is let go, which is told, and bound again
//! once it has caught up.

use std::collections::VecDeque;

use nuage_journal::{Disk, JournalError, Store};
use nuage_replica::Copies;

use super::{CopyState, Replicas};

/// A copy that has been silent for so long is cut off: ten leases.
pub const CUT_OFF_NS: u64 = 10 * nuage_replica::LEASE_NS;
/// The longest rest between answers, just below the bound.
const REST_NS_MAX: u64 = 200_000_000;
/// Points kept of what copies lack; when there are more, every second one goes and ages err upwards.
const POINTS_MAX: usize = 4096;

/// How far copies may be behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LagBound {
    /// Age of the oldest record that a copy may lack.
    pub age_ns: u64,
    /// Writers stop also while a copy is cut off.
    pub strict: bool,
    /// The copies that are bound: not those that are still being filled.
    pub copies: Copies,
}

/// What a copy lacks of the head's log. `bytes` and `age_ns` err upwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lag {
    pub records: u64,
    pub bytes: u64,
    pub age_ns: u64,
    /// This head never heard the copy: what it lacks of former heads' records is not counted.
    pub is_at_least: bool,
}

/// How the head answers writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answering {
    AtOnce,
    /// With a rest after each group of answers.
    Slowed {
        rest_ns: u64,
    },
    /// Not at all: a copy is at its bound.
    Held,
}

#[derive(Debug, Clone, Copy)]
struct Point {
    last_seq: u64,
    made_ns: u64,
    bytes_before: u64,
}

/// When the records were made that some copy may lack.
#[derive(Debug, Default)]
pub(super) struct Trail {
    /// What came up to here is not told apart any more: all copies had it, or former heads made it.
    from_seq: u64,
    points: VecDeque<Point>,
    bytes: u64,
}

impl Trail {
    pub(super) fn starting_after(seq: u64) -> Self {
        Self {
            from_seq: seq,
            ..Self::default()
        }
    }

    pub(super) fn made(&mut self, last_seq: u64, bytes: u64, now_ns: u64) {
        self.points.push_back(Point {
            last_seq,
            made_ns: now_ns,
            bytes_before: self.bytes,
        });
        self.bytes += bytes;
        if self.points.len() > POINTS_MAX {
            self.thin_out();
        }
    }

    /// Join each two neighbours: the later's end, the earlier's beginning.
    fn thin_out(&mut self) {
        let old = std::mem::take(&mut self.points);
        let mut pairs = old.into_iter();
        while let Some(first) = pairs.next() {
            let last_seq = pairs.next().map_or(first.last_seq, |next| next.last_seq);
            self.points.push_back(Point { last_seq, ..first });
        }
    }

    /// All copies hold everything up to `seq`.
    fn forget(&mut self, seq: u64) {
        while self
            .points
            .front()
            .is_some_and(|point| point.last_seq <= seq)
        {
            if let Some(point) = self.points.pop_front() {
                self.from_seq = point.last_seq;
            }
        }
    }

    fn lag_after(&self, seq: u64, now_ns: u64) -> Lag {
        let at = self.points.partition_point(|point| point.last_seq <= seq);
        self.points.get(at).map_or(Lag::default(), |point| Lag {
            records: 0,
            bytes: self.bytes - point.bytes_before,
            age_ns: now_ns.saturating_sub(point.made_ns),
            is_at_least: false,
        })
    }
}

/// What a copy lacked of records before the trail when it joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Former {
    since_ns: u64,
    bytes: u64,
}

impl Replicas {
    /// What a copy lacks. One that this head never heard lacks at least what this head has made.
    pub(super) fn lag(&self, copy: usize) -> Lag {
        let peer = &self.peers[copy];
        let held_seq = if peer.tail.is_none() {
            peer.held_seq.max(self.first_seq.saturating_sub(1))
        } else {
            peer.held_seq
        };
        let is_at_least = copy != self.me && peer.tail.is_none() && peer.held_seq < held_seq;
        if copy == self.me || held_seq >= self.local_memory {
            return Lag {
                is_at_least,
                ..Lag::default()
            };
        }
        let now_ns = self.now.monotonic_ns;
        let mut lag = self.trail.lag_after(held_seq, now_ns);
        lag.is_at_least = is_at_least;
        lag.records = self.local_memory - held_seq;
        if let Some(former) = peer.former.filter(|_| held_seq < self.trail.from_seq) {
            lag.bytes += former.bytes;
            lag.age_ns = lag.age_ns.max(now_ns.saturating_sub(former.since_ns));
        }
        lag
    }

    /// A copy's log ends at `seq` of ours: note since when it lacks what came before the trail.
    pub(super) fn note_former<D: Disk>(
        &mut self,
        copy: usize,
        seq: u64,
        store: &mut Store<D>,
    ) -> Result<(), JournalError> {
        self.peers[copy].held_seq = seq;
        self.peers[copy].former = None;
        if seq >= self.trail.from_seq {
            return Ok(());
        }
        if let Some((time_ns, bytes)) = store.made_after(seq)? {
            let age_ns = self.now.unix_ns.saturating_sub(time_ns);
            let since_ns = self.now.monotonic_ns.saturating_sub(age_ns);
            self.peers[copy].former = Some(Former { since_ns, bytes });
        }
        Ok(())
    }

    fn is_cut_off(&self, copy: usize) -> bool {
        let peer = &self.peers[copy];
        matches!(peer.state, CopyState::Down | CopyState::Lost)
            || self.now.monotonic_ns > peer.heard_ns.saturating_add(CUT_OFF_NS)
    }

    pub(super) fn silent_ns(&self, copy: usize) -> Option<u64> {
        let silent_ns = self
            .now
            .monotonic_ns
            .saturating_sub(self.peers[copy].heard_ns);
        self.is_cut_off(copy).then_some(silent_ns)
    }

    /// Look how far the copies are, and say how writes are answered until the next look.
    pub(super) fn mind_lag(&mut self) {
        let others = (0..self.peers.len()).filter(|copy| *copy != self.me);
        let held = others.map(|copy| self.peers[copy].held_seq).min();
        self.trail.forget(held.unwrap_or(u64::MAX));
        self.answering = Answering::AtOnce;
        let Some(bound) = self.bound else { return };
        let mut worst_ns = 0;
        for copy in 0..self.peers.len() {
            if copy == self.me || bound.copies >> copy & 1 == 0 {
                continue;
            }
            let lag = self.lag(copy);
            if bound.strict {
                self.peers[copy].let_go = false;
            } else if self.is_cut_off(copy) {
                self.peers[copy].let_go = true;
            } else if lag.age_ns <= bound.age_ns / 2 {
                self.peers[copy].let_go = false;
            }
            if !self.peers[copy].let_go {
                worst_ns = worst_ns.max(lag.age_ns);
            }
        }
        self.answering = answering(worst_ns, bound.age_ns);
    }
}

fn answering(lag_ns: u64, bound_ns: u64) -> Answering {
    let half_ns = bound_ns / 2;
    match lag_ns {
        _ if lag_ns >= bound_ns => Answering::Held,
        _ if lag_ns <= half_ns => Answering::AtOnce,
        _ => {
            let part = u128::from(REST_NS_MAX) * u128::from(lag_ns - half_ns);
            let rest_ns = u64::try_from(part / u128::from(bound_ns - half_ns));
            Answering::Slowed {
                rest_ns: rest_ns.unwrap_or(REST_NS_MAX),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_rest_the_longer_the_nearer_the_bound() {
        assert_eq!(answering(50, 100), Answering::AtOnce);
        let rest_ns = REST_NS_MAX / 2;
        assert_eq!(answering(75, 100), Answering::Slowed { rest_ns });
        assert_eq!(answering(100, 100), Answering::Held);
    }

    #[test]
    fn a_long_trail_is_thinned_out_and_never_tells_too_little() {
        let mut trail = Trail::default();
        let count = POINTS_MAX as u64 * 5;
        for seq in 1..=count {
            trail.made(seq, 10, seq);
        }
        assert!(trail.points.len() <= POINTS_MAX);
        for held in [0, 1, 777, count / 2, count - 1] {
            let lag = trail.lag_after(held, count);
            let (age_ns, bytes) = (count - held - 1, (count - held) * 10);
            assert!(lag.age_ns >= age_ns && lag.age_ns <= age_ns + 16);
            assert!(lag.bytes >= bytes && lag.bytes <= bytes + 160);
        }
        assert_eq!(trail.lag_after(count, count), Lag::default());
    }
}
