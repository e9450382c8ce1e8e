//! One state of the model, and the steps out of it.

use std::hash::Hash;

use nuage_replica::rules::{
    Offer, Vouching, accept, choose, committed, fence, is_steady_at_start, may_recover,
};
use nuage_replica::{Copies, Policy, PolicyName, Tail};

/// Copies that a volume has had at most.
const COPIES: usize = 4;
/// Records of a log at most.
const PLACES: usize = 6;

pub struct Bounds {
    pub epochs: u8,
    /// Records after its first that heads write in all; the first of each epoch is one as good as any.
    pub writes: u8,
    pub crashes: u8,
    /// Disks that are replaced by empty ones.
    pub losses: u8,
    pub from_memory: bool,
}

/// The copies that a head asks, in order, by what policy.
pub struct CopySet {
    policy: Policy,
    members: Vec<usize>,
    /// Those whose acknowledgement the policy counts: they are `whole` once a head was ready.
    counted: Vec<usize>,
    filling: Option<usize>,
    name: PolicyName,
}

impl CopySet {
    pub fn of(name: PolicyName, members: &[usize]) -> Self {
        let count = u32::try_from(members.len()).expect("a small model");
        let counted = if name == PolicyName::Metro {
            2
        } else {
            members.len()
        };
        Self {
            policy: Policy::named(name, count).expect("a set that suits its policy"),
            members: members.to_vec(),
            counted: members[..counted].to_vec(),
            filling: None,
            name,
        }
    }

    /// This copy is being filled: no head opens there.
    pub fn filling(self, copy: usize) -> Self {
        Self {
            filling: Some(copy),
            ..self
        }
    }

    /// How a former set acknowledged, by this one's numbers.
    fn former(&self, before: &Self) -> Policy {
        let count = u32::try_from(before.counted.len()).expect("a small model");
        let name = before.name;
        let policy = Policy::named(name, count).expect("what was counted suits its policy");
        let number = |copy: &usize| self.members.iter().position(|member| member == copy);
        let numbers = before.counted.iter().map(number);
        let small = |number| u32::try_from(number).expect("a small model");
        let numbers: Vec<Option<u32>> = numbers.map(|n| n.map(small)).collect();
        policy.renumbered(&numbers)
    }
}

/// What is the same in all states. The flags are rules; each is taken away once, to see that it matters.
#[allow(clippy::struct_excessive_bools)] // each a rule of its own
pub struct World {
    sets: Vec<CopySet>,
    bounds: Bounds,
    pub asks_former: bool,
    pub crashes_told: bool,
    /// A head that closes before it recovered leaves a copy that vouches for its memory: never.
    pub heads_vouch: bool,
    pub joins_promised: bool,
}

impl World {
    pub fn new(sets: Vec<CopySet>, bounds: Bounds) -> Self {
        Self {
            sets,
            bounds,
            asks_former: true,
            crashes_told: true,
            heads_vouch: false,
            joins_promised: true,
        }
    }
}

/// Records: epoch × 16 + number in it + 1; 0: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Log {
    records: [u8; PLACES],
    length: u8,
}

impl Log {
    fn push(&mut self, epoch: u8, number: u8) {
        self.records[usize::from(self.length)] = epoch * 16 + number + 1;
        self.length += 1;
    }

    fn cut(&mut self, length: u8) {
        self.records[usize::from(length)..].fill(0);
        self.length = self.length.min(length);
    }

    fn common(self, other: Self) -> u8 {
        let pairs = self.records.iter().zip(&other.records);
        let same = pairs.take_while(|(here, there)| here == there && **here != 0);
        u8::try_from(same.count()).expect("a small model")
    }

    fn epoch_at(self, length: u8) -> u8 {
        let last = usize::from(length).checked_sub(1);
        last.map_or(0, |last| self.records[last] / 16)
    }

    fn tail_at(self, length: u8) -> Tail {
        let mut chain = [0; 32];
        chain[..usize::from(length)].copy_from_slice(&self.records[..usize::from(length)]);
        Tail {
            seq: u64::from(length),
            epoch: u64::from(self.epoch_at(length)),
            chain,
        }
    }

    fn tail(self) -> Tail {
        self.tail_at(self.length)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Copy {
    promised: u8,
    /// Epoch of the head that is connected; what a head sends to one that restarted does not arrive.
    session: u8,
    log: Log,
    durable: u8,
    steady: bool,
    whole: bool,
}

impl Copy {
    /// A promise is given once all that was received is durable.
    fn promise(&mut self, epoch: u8) {
        self.promised = epoch;
        self.session = epoch;
        self.durable = self.log.length;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
enum Phase {
    #[default]
    Idle,
    Fencing,
    Leading {
        first: u8,
    },
}

/// The head at a copy: that copy's log is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Head {
    phase: Phase,
    epoch: u8,
    set: u8,
    /// Set whose acknowledgements it must meet besides.
    former: Option<u8>,
    /// By copy: what it promised with.
    promises: [Option<Copy>; COPIES],
    memory: [u8; COPIES],
    durable: [u8; COPIES],
    /// How far it has answered: it knows that for good.
    answered: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct State {
    copies: [Copy; COPIES],
    heads: [Head; COPIES],
    // The volume's record.
    epoch: u8,
    at: u8,
    set: u8,
    /// The set under which a head was last ready.
    settled: Option<u8>,
    // What has happened.
    writes: u8,
    crashes: u8,
    losses: u8,
    /// By place: the record that was acknowledged there.
    acked: [u8; PLACES],
    /// By place: the epoch of the head that acknowledged it.
    acked_by: [u8; PLACES],
}

impl State {
    pub fn start(world: &World) -> Self {
        let mut state = Self::default();
        for copy in &world.sets[0].members {
            state.copies[*copy].whole = true;
            state.copies[*copy].steady = true;
        }
        state
    }

    pub fn successors(&self, world: &World, found: &mut Vec<Self>) {
        self.quorum(world, found);
        for copy in 0..COPIES {
            match self.heads[copy].phase {
                Phase::Idle => {}
                Phase::Fencing => self.fencing(world, copy, found),
                Phase::Leading { .. } => self.leading(world, copy, found),
            }
            if self.heads[copy].phase != Phase::Idle && self.heads[copy].epoch < self.epoch {
                let mut next = *self;
                next.give_way(world, copy);
                found.push(next);
            }
            self.crash(world, copy, found);
            self.lose(world, copy, found);
        }
    }

    /// The volume's record gets a new epoch: a head elsewhere, or the next set with the head where it is.
    fn quorum(&self, world: &World, found: &mut Vec<Self>) {
        if self.epoch == world.bounds.epochs {
            return;
        }
        let set = &world.sets[usize::from(self.set)];
        if self.epoch == 0 {
            return found.push(self.opened(world, 0, 0)); // the first two copies are alike, or all are
        }
        let whole = self
            .settled
            .map_or(set, |settled| &world.sets[usize::from(settled)]);
        for copy in &set.members {
            if Some(*copy) != set.filling && whole.counted.contains(copy) {
                found.push(self.opened(world, *copy, self.set));
            }
        }
        let is_there = self.heads[usize::from(self.at)].epoch == self.epoch;
        let is_next = usize::from(self.set) + 1 < world.sets.len();
        if self.settled == Some(self.set) && is_there && is_next {
            found.push(self.opened(world, usize::from(self.at), self.set + 1));
        }
    }

    fn opened(&self, world: &World, copy: usize, set: u8) -> Self {
        let mut next = *self;
        next.give_way(world, copy);
        next.epoch += 1;
        next.at = u8::try_from(copy).expect("a small model");
        next.set = set;
        let changed = next.settled.filter(|settled| *settled != set);
        next.heads[copy] = Head {
            phase: Phase::Fencing,
            epoch: next.epoch,
            set,
            former: changed.filter(|_| world.asks_former),
            ..Head::default()
        };
        (next.copies[copy].promised, next.copies[copy].session) = (next.epoch, 0);
        // A copy that is new in a set was made empty for it, under the epoch of the time.
        for member in &world.sets[usize::from(set)].members {
            let fresh = &mut next.copies[*member];
            if fresh.promised == 0 && !fresh.whole {
                fresh.promised = if world.joins_promised { self.epoch } else { 0 };
            }
        }
        next
    }

    /// The head at a copy closes, in order: its copy serves others.
    fn give_way(&mut self, world: &World, copy: usize) {
        let head = self.heads[copy];
        if head.phase == Phase::Idle {
            return;
        }
        self.heads[copy] = Head::default();
        self.copies[copy].durable = self.copies[copy].log.length;
        self.copies[copy].steady |= head.phase != Phase::Fencing || world.heads_vouch;
    }

    fn fencing(&self, world: &World, at: usize, found: &mut Vec<Self>) {
        let head = &self.heads[at];
        let set = &world.sets[usize::from(head.set)];
        for copy in set.members.iter().copied().filter(|copy| *copy != at) {
            if self.heads[copy].phase != Phase::Idle {
                continue; // led there: refused until that head has closed
            }
            let mut next = *self;
            let promised = u64::from(self.copies[copy].promised);
            if fence(promised, u64::from(head.epoch), true).is_err() {
                next.give_way(world, at);
            } else {
                next.copies[copy].promise(head.epoch);
                found.push(next); // the answer was lost
                next.heads[at].promises[copy] = Some(next.copies[copy]);
            }
            found.push(next);
        }
        if let Some(log) = self.recovered(world, at) {
            let mut next = *self;
            let own = &mut next.copies[at];
            let common = own.log.common(log);
            own.durable = own.durable.min(common);
            own.log = log;
            own.log.push(head.epoch, 0);
            own.steady = true;
            let first = own.log.length;
            next.heads[at].phase = Phase::Leading { first };
            next.heads[at].promises = [None; COPIES];
            found.push(next);
        }
    }

    /// The log that a head may go on from.
    fn recovered(&self, world: &World, at: usize) -> Option<Log> {
        let head = &self.heads[at];
        let set = &world.sets[usize::from(head.set)];
        let promise = |copy: &usize| {
            if *copy == at {
                Some(self.copies[at])
            } else {
                head.promises[*copy]
            }
        };
        let promises: Vec<Option<Copy>> = set.members.iter().map(promise).collect();
        let tails: Vec<Option<Tail>> = promises.iter().map(|p| p.map(|c| c.log.tail())).collect();
        let mut vouching = Vouching {
            trusted: 0,
            whole: 0,
            accepts_loss: false,
        };
        for (number, copy) in promises.iter().enumerate() {
            let Some(copy) = copy else { continue };
            let sound = copy.whole && (copy.steady || !world.bounds.from_memory);
            vouching.trusted |= Copies::from(sound) << number;
            vouching.whole |= Copies::from(copy.whole) << number;
        }
        let former = head
            .former
            .map(|before| set.former(&world.sets[usize::from(before)]));
        if !may_recover(&set.policy, former.as_ref(), &tails, vouching) {
            return None;
        }
        let log = promises[choose(&tails)?]?.log;
        for place in 0..PLACES {
            // A head of an older epoch may still learn, but nobody takes its records any more.
            let is_due = self.acked[place] != 0 && self.acked_by[place] <= head.epoch;
            let kept = log.records[place] == self.acked[place];
            assert!(
                !is_due || kept,
                "epoch {} lost an acknowledged record: {self:#?}",
                head.epoch
            );
        }
        Some(log)
    }

    fn leading(&self, world: &World, at: usize, found: &mut Vec<Self>) {
        let head = &self.heads[at];
        let Phase::Leading { first } = head.phase else {
            return;
        };
        let set = &world.sets[usize::from(head.set)];
        let serves = reached(set, first, head.durable) >= first;
        if serves && head.epoch == self.epoch && self.settled != Some(head.set) {
            let mut next = *self;
            next.settled = Some(head.set);
            found.push(next);
        }
        if serves && self.writes < world.bounds.writes {
            let mut next = *self;
            let log = &mut next.copies[at].log;
            log.push(head.epoch, log.length + 1 - first);
            next.writes += 1;
            found.push(next);
        }
        for copy in set.members.iter().copied() {
            if copy != at {
                self.follow(world, at, copy, found);
            }
            self.answers(world, at, copy, found);
        }
    }

    /// A copy tells what it holds: once it is on disk, or, where that counts, when it is in memory. (That it was on disk
    /// before it told is no state of its own: a crash may keep all that was in memory.)
    fn answers(&self, world: &World, at: usize, copy: usize, found: &mut Vec<Self>) {
        let epoch = self.heads[at].epoch;
        let here = &self.copies[copy];
        let is_connected = copy == at || here.session == epoch;
        if !is_connected || here.log.common(self.copies[at].log) != here.log.length {
            return;
        }
        for durable in [here.durable, here.log.length] {
            let mut next = *self;
            next.copies[copy].durable = durable;
            next.heads[at].durable[copy] = durable;
            if world.bounds.from_memory {
                next.heads[at].memory[copy] = here.log.length;
            }
            next.acknowledge(world, at);
            next.hears(at, copy);
            if next != *self {
                found.push(next);
            }
        }
    }

    /// The next that a leading head makes a copy do: promise, cut, take a record.
    fn follow(&self, world: &World, at: usize, copy: usize, found: &mut Vec<Self>) {
        let head = &self.heads[at];
        let here = &self.copies[copy];
        if self.heads[copy].phase != Phase::Idle {
            return;
        }
        let mut next = *self;
        if here.session != head.epoch {
            if fence(u64::from(here.promised), u64::from(head.epoch), true).is_err() {
                next.give_way(world, at);
            } else {
                next.copies[copy].promise(head.epoch);
                // It restarted: it has less than it said before.
                let length = here.log.length;
                next.heads[at].memory[copy] = next.heads[at].memory[copy].min(length);
                next.heads[at].durable[copy] = next.heads[at].durable[copy].min(length);
            }
            return found.push(next);
        }
        let log = &self.copies[at].log;
        let common = here.log.common(*log);
        let target = &mut next.copies[copy];
        if common < here.log.length {
            target.log.cut(common);
            target.durable = target.durable.min(common);
            return found.push(next);
        }
        if common == log.length {
            return;
        }
        let record = log.records[usize::from(common)];
        let offer = Offer {
            session_epoch: u64::from(head.epoch),
            group_epoch: u64::from(record / 16),
            first_seq: u64::from(common) + 1,
            previous_chain: log.tail_at(common).chain,
        };
        let taken = accept(u64::from(here.promised), &here.log.tail(), &offer);
        assert!(taken.is_ok(), "{taken:?}");
        target.log.push(record / 16, record % 16 - 1);
        next.hears(at, copy);
        found.push(next);
    }

    /// A copy hears how far the head has answered: it has forgotten nothing, and lost nothing, once it has all of it.
    fn hears(&mut self, at: usize, copy: usize) {
        let answered = self.heads[at].answered;
        let epoch = self.heads[at].epoch;
        let here = &mut self.copies[copy];
        if here.log.epoch_at(here.log.length) == epoch {
            here.steady |= here.log.length >= answered;
            here.whole |= here.durable >= answered;
        }
    }

    /// Acknowledge what the head at `at` now knows to be held.
    fn acknowledge(&mut self, world: &World, at: usize) {
        let head = &mut self.heads[at];
        let Phase::Leading { first } = head.phase else {
            return;
        };
        let set = &world.sets[usize::from(head.set)];
        let durable = reached(set, first, head.durable);
        head.answered = head.answered.max(durable);
        // A head serves once its first record is on the disks of an ack set.
        if world.bounds.from_memory && durable >= first {
            head.answered = head.answered.max(reached(set, first, head.memory));
        }
        let reached = usize::from(head.answered);
        let (log, epoch) = (self.copies[at].log, self.heads[at].epoch);
        for place in 0..reached {
            let record = log.records[place];
            if self.acked[place] == 0 {
                (self.acked[place], self.acked_by[place]) = (record, epoch);
            }
            assert_eq!(self.acked[place], record, "acknowledged twice: {self:#?}");
        }
    }

    /// A node stops at once: what its copy had only in memory is gone, but for any part of its end.
    fn crash(&self, world: &World, copy: usize, found: &mut Vec<Self>) {
        let here = &self.copies[copy];
        let is_used = here.log.length > 0 || self.heads[copy].phase != Phase::Idle;
        if self.crashes == world.bounds.crashes || !is_used {
            return;
        }
        for length in here.durable..=here.log.length {
            let mut next = *self;
            next.crashes += 1;
            next.heads[copy] = Head::default();
            let crashed = &mut next.copies[copy];
            crashed.session = 0;
            crashed.log.cut(length);
            crashed.durable = length;
            if world.crashes_told {
                crashed.steady = is_steady_at_start(u64::from(here.promised));
            }
            if next.has_all_acked(world) {
                found.push(next);
            }
        }
    }

    /// A node gets an empty disk while the others have all that was acknowledged, on disk.
    fn lose(&self, world: &World, copy: usize, found: &mut Vec<Self>) {
        if self.losses == world.bounds.losses || self.heads[copy].phase != Phase::Idle {
            return;
        }
        let mut next = *self;
        next.losses += 1;
        next.copies[copy] = Copy {
            promised: if world.joins_promised { self.epoch } else { 0 },
            ..Copy::default()
        };
        let others = (0..COPIES).filter(|other| *other != copy);
        let is_there = |other: usize| {
            let here = &self.copies[other];
            let acked = self
                .acked
                .iter()
                .zip(&here.log.records[..usize::from(here.durable)]);
            let count = self.acked.iter().filter(|record| **record != 0).count();
            acked
                .filter(|(acked, here)| acked == here && **acked != 0)
                .count()
                == count
        };
        let set = &world.sets[usize::from(self.set)];
        if others
            .filter(|other| set.members.contains(other))
            .all(is_there)
        {
            found.push(next);
        }
    }

    /// Every acknowledged record is in the memory of some copy.
    fn has_all_acked(&self, world: &World) -> bool {
        let members = &world.sets[usize::from(self.set)].members;
        (0..PLACES).all(|place| {
            let acked = self.acked[place];
            let has = |copy: &usize| self.copies[*copy].log.records[place] == acked;
            acked == 0 || members.iter().any(has)
        })
    }
}

fn reached(set: &CopySet, first: u8, values: [u8; COPIES]) -> u8 {
    let mut by_number = [0; COPIES];
    for (number, copy) in set.members.iter().enumerate() {
        by_number[number] = u64::from(values[*copy]);
    }
    let values = &by_number[..set.members.len()];
    u8::try_from(committed(&set.policy, values, u64::from(first), 0)).expect("a small model")
}
