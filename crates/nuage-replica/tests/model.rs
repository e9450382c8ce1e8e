//! Exhaustive small model of open, recover and write: two heads, three copies, every order of steps.
//!
//! A step is one act at one copy (promise, cut, append), with its answer arriving or being lost; a head
//! may be given a new epoch at any time. The decisions are those of `nuage_replica::rules`.
//! Invariant: what was acknowledged at a place is in the log of every head that recovers later, at that
//! place; and no place is acknowledged twice with different records.

use std::collections::{BTreeMap, HashSet};

use nuage_replica::rules::{Offer, Vouching, accept, choose, committed, fence, may_recover};
use nuage_replica::{Copies, Policy, PolicyName, Tail};

const COPIES: usize = 3;
const HEADS: usize = 2;
const EPOCHS: u8 = 3;
/// Records after the epoch's first that a head writes; the first of each epoch is one as good as any.
const WRITES: usize = 0;

const ALL_SOUND: Vouching = Vouching {
    trusted: Copies::MAX,
    whole: Copies::MAX,
    accepts_loss: false,
};

/// Epoch and number of a record in it.
type Record = (u8, u8);

#[derive(Clone, PartialEq, Eq, Hash)]
struct Copy {
    promised: u8,
    log: Vec<Record>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Phase {
    Idle,
    Fencing {
        tails: [Option<Vec<Record>>; COPIES],
    },
    Leading {
        log: Vec<Record>,
        first_seq: u8,
        durable: [u8; COPIES],
    },
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Head {
    epoch: u8,
    phase: Phase,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    epoch: u8,
    copies: [Copy; COPIES],
    heads: [Head; HEADS],
    /// By place: the record, and the epoch of the head that acknowledged it.
    acked: BTreeMap<u8, (Record, u8)>,
}

fn chain(log: &[Record]) -> [u8; 32] {
    let mut chain = [0; 32];
    for (at, (epoch, number)) in log.iter().enumerate() {
        chain[at] = epoch * 16 + number + 1;
    }
    chain
}

fn tail(log: &[Record]) -> Tail {
    let epoch = log.last().map_or(0, |record| u64::from(record.0));
    Tail {
        seq: log.len() as u64,
        epoch,
        chain: chain(log),
    }
}

fn small(value: usize) -> u8 {
    u8::try_from(value).expect("a small model")
}

impl State {
    fn start() -> Self {
        let copy = Copy {
            promised: 0,
            log: Vec::new(),
        };
        let head = Head {
            epoch: 0,
            phase: Phase::Idle,
        };
        Self {
            epoch: 0,
            copies: std::array::from_fn(|_| copy.clone()),
            heads: std::array::from_fn(|_| head.clone()),
            acked: BTreeMap::new(),
        }
    }

    fn next(&self, policy: &Policy) -> Vec<Self> {
        let mut found = Vec::new();
        for head in 0..HEADS {
            // Heads are alike, so who gets an epoch is fixed: they take turns.
            if self.epoch < EPOCHS && usize::from(self.epoch) % HEADS == head {
                let mut next = self.clone();
                next.epoch += 1;
                let phase = Phase::Fencing {
                    tails: [const { None }; COPIES],
                };
                next.heads[head] = Head {
                    epoch: next.epoch,
                    phase,
                };
                found.push(next);
            }
            match &self.heads[head].phase {
                Phase::Idle => {}
                Phase::Fencing { .. } => self.fencing(head, policy, &mut found),
                Phase::Leading { .. } => self.leading(head, policy, &mut found),
            }
        }
        found
    }

    fn fencing(&self, head: usize, policy: &Policy, found: &mut Vec<Self>) {
        let epoch = self.heads[head].epoch;
        for copy in 0..COPIES {
            let promised = u64::from(self.copies[copy].promised);
            let mut next = self.clone();
            if fence(promised, u64::from(epoch), true).is_err() {
                next.heads[head].phase = Phase::Idle;
                found.push(next);
                continue;
            }
            next.copies[copy].promised = epoch;
            found.push(next.clone()); // the answer was lost
            if let Phase::Fencing { tails } = &mut next.heads[head].phase {
                tails[copy] = Some(next.copies[copy].log.clone());
            }
            found.push(next);
        }
        let Phase::Fencing { tails } = &self.heads[head].phase else {
            return;
        };
        let ends = tails.clone().map(|log| log.map(|log| tail(&log)));
        if may_recover(policy, &ends, ALL_SOUND)
            && let Some(best) = choose(&ends)
        {
            let mut log = tails[best].clone().unwrap_or_default();
            for (place, (record, by)) in &self.acked {
                // A head of an older epoch may still learn, but nobody takes its records any more.
                if *by > epoch {
                    continue;
                }
                let kept = log.get(usize::from(*place) - 1);
                assert_eq!(
                    kept,
                    Some(record),
                    "epoch {epoch} lost an acknowledged record"
                );
            }
            log.push((epoch, 0));
            let mut next = self.clone();
            let first_seq = small(log.len());
            next.heads[head].phase = Phase::Leading {
                log,
                first_seq,
                durable: [0; COPIES],
            };
            found.push(next);
        }
    }

    fn leading(&self, head: usize, policy: &Policy, found: &mut Vec<Self>) {
        let epoch = self.heads[head].epoch;
        let Phase::Leading { log, first_seq, .. } = &self.heads[head].phase else {
            return;
        };
        if log.len() < usize::from(*first_seq) + WRITES {
            let mut next = self.clone();
            if let Phase::Leading { log, .. } = &mut next.heads[head].phase {
                log.push((epoch, small(log.len() + 1 - usize::from(*first_seq))));
            }
            found.push(next);
        }
        for copy in 0..COPIES {
            let at = &self.copies[copy];
            let mut next = self.clone();
            if at.promised != epoch {
                if fence(u64::from(at.promised), u64::from(epoch), true).is_err() {
                    next.heads[head].phase = Phase::Idle;
                } else {
                    next.copies[copy].promised = epoch;
                }
                found.push(next);
                continue;
            }
            let common = at
                .log
                .iter()
                .zip(log)
                .take_while(|(here, ours)| here == ours)
                .count();
            if common < at.log.len() {
                next.copies[copy].log.truncate(common);
                found.push(next);
                continue;
            }
            if common < log.len() {
                let offer = Offer {
                    session_epoch: u64::from(epoch),
                    group_epoch: u64::from(log[common].0),
                    first_seq: common as u64 + 1,
                    previous_chain: chain(&log[..common]),
                };
                let taken = accept(u64::from(at.promised), &tail(&at.log), &offer);
                assert!(taken.is_ok(), "{taken:?}");
                next.copies[copy].log.push(log[common]);
            }
            found.push(next.clone()); // the answer was lost
            next.answer(head, copy, policy);
            found.push(next);
        }
    }

    /// The head learns what a copy holds, and acknowledges what that commits.
    fn answer(&mut self, head: usize, copy: usize, policy: &Policy) {
        let length = small(self.copies[copy].log.len());
        let epoch = self.heads[head].epoch;
        let Phase::Leading {
            log,
            first_seq,
            durable,
        } = &mut self.heads[head].phase
        else {
            return;
        };
        durable[copy] = length;
        let values = durable.map(u64::from);
        let reached = committed(policy, &values, u64::from(*first_seq), 0);
        for (place, record) in (1u8..).zip(log.iter()) {
            if u64::from(place) <= reached {
                let earlier = *self.acked.entry(place).or_insert((*record, epoch));
                assert_eq!(earlier.0, *record, "acknowledged twice");
            }
        }
    }
}

fn explore(policy: &Policy, states_max: usize) -> usize {
    let mut seen = HashSet::from([State::start()]);
    let mut waiting = vec![State::start()];
    while let Some(state) = waiting.pop() {
        for next in state.next(policy) {
            if seen.len() < states_max && seen.insert(next.clone()) {
                waiting.push(next);
            }
        }
    }
    seen.len()
}

/// Far above what the models below have: a change that makes one explode is noticed.
const STATES_MAX: usize = 3_000_000;

#[test]
fn no_order_of_steps_loses_an_acknowledged_record() {
    for name in [PolicyName::Any2Of3, PolicyName::Metro, PolicyName::All] {
        let policy = Policy::named(name, 3).expect("three copies suit every policy");
        let count = explore(&policy, STATES_MAX);
        assert!(
            count > 1_000 && count < STATES_MAX,
            "{name:?}: {count} states"
        );
    }
}
