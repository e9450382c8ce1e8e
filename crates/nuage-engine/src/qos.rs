//! Limits: so many operations and bytes a second, for a volume, an `IaaS`, or a class of work.
//!
//! A [`Bucket`] is the generic cell rate algorithm twice, once for operations and once for bytes: it holds
//! the moment at which what was taken so far would be paid for, and lets the next one pass while that moment
//! is at most a burst ahead. Time is a parameter. [`Limited`] holds a device's requests back by two buckets:
//! the volume's own, and the share of its daemon.
//!
//! A [`Budget`] is that share, and who may take of it: clients first, and three classes of background work, each with
//! a reservation, a limit and a weight (mClock: Gulati, Merchant, Varman, OSDI 2010). A class takes its reservation
//! whatever the load. Beyond that it takes what clients leave: while they are active no more than its weight
//! against theirs, else up to its limit.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use nuage_block::{BlockDevice, Completion, Geometry, Operation, Request};

use crate::head::Clock;

const SECOND_NS: u64 = 1_000_000_000;
/// What may pass at once after a pause: a tenth of a second's worth.
const BURST_NS: u64 = SECOND_NS / 10;

/// Background work of a daemon, by what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Copies that catch up from the log.
    Replication,
    /// Copies that are made anew.
    Repair,
    /// Reading everything to find damage.
    Scrub,
}

const MIB: u64 = 1 << 20;
/// Requests of initiators weigh so much; classes of background work as [`Class::course`] says.
const FRONT_WEIGHT: u64 = 16;
const WEIGHTS: u64 = FRONT_WEIGHT + 8 + 4 + 1;
/// Clients count as active for so long after their last request.
const ACTIVE_NS: u64 = SECOND_NS / 10;

impl Class {
    /// Weight, and bytes a second: kept whatever the load, and at most (0: no limit).
    fn course(self) -> (u64, u64, u64) {
        match self {
            Self::Replication => (8, 64 * MIB, 0),
            // A copy of 100 GiB takes an hour at worst.
            Self::Repair => (4, 32 * MIB, 256 * MIB),
            // 10 TiB a month at worst.
            Self::Scrub => (1, 4 * MIB, 32 * MIB),
        }
    }
}

/// Operations and bytes a second; zero: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rate {
    pub operations_per_s: u64,
    pub bytes_per_s: u64,
}

/// A limit and what was taken of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bucket {
    rate: Rate,
    /// When the operations and the bytes taken so far are paid for.
    operations_ns: u64,
    bytes_ns: u64,
}

fn cost_ns(amount: u64, per_s: u64) -> u64 {
    if per_s == 0 {
        return 0;
    }
    let cost = u128::from(amount) * u128::from(SECOND_NS) / u128::from(per_s);
    u64::try_from(cost).unwrap_or(u64::MAX)
}

impl Bucket {
    pub fn new(rate: Rate) -> Self {
        Self {
            rate,
            ..Self::default()
        }
    }

    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Change the limit. What was taken under a lower one is not held against a higher one.
    pub fn set_rate(&mut self, rate: Rate) {
        if rate != self.rate {
            *self = Self::new(rate);
        }
    }

    /// When the next one may pass; not later than `now_ns` means now.
    pub fn ready_at(&self, now_ns: u64) -> u64 {
        let paid_ns = self.operations_ns.max(self.bytes_ns);
        paid_ns.saturating_sub(BURST_NS).max(now_ns)
    }

    /// Take one operation of `bytes`; it may be larger than the burst and is then paid for afterwards.
    pub fn take(&mut self, now_ns: u64, bytes: u64) {
        let operation_ns = cost_ns(1, self.rate.operations_per_s);
        let transfer_ns = cost_ns(bytes, self.rate.bytes_per_s);
        self.operations_ns = self.operations_ns.max(now_ns).saturating_add(operation_ns);
        self.bytes_ns = self.bytes_ns.max(now_ns).saturating_add(transfer_ns);
    }
}

/// A bucket that several hold.
pub type SharedBucket = Rc<RefCell<Bucket>>;

/// What clients took of a daemon's share so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Use {
    pub operations: u64,
    pub bytes: u64,
    /// Requests that had to wait for the share.
    pub held: u64,
}

#[derive(Debug)]
struct Course {
    weight: u64,
    kept_bytes_per_s: u64,
    kept: Bucket,
    most: Bucket,
    /// Bytes by weight, in line with the clients'.
    spent: u64,
}

/// A daemon's share of its disk, and what of it background work may take.
#[derive(Debug)]
pub struct Budget {
    share: Bucket,
    used: Use,
    seen_bytes: u64,
    seen_ns: u64,
    courses: [Course; 3],
}

/// A budget that several hold.
pub type SharedBudget = Rc<RefCell<Budget>>;

impl Default for Budget {
    fn default() -> Self {
        let course = |class: Class| {
            let (weight, kept, most) = class.course();
            Course {
                weight,
                kept_bytes_per_s: kept,
                kept: Bucket::new(bytes(kept)),
                most: Bucket::new(bytes(most)),
                spent: 0,
            }
        };
        Self {
            share: Bucket::default(),
            used: Use::default(),
            seen_bytes: 0,
            seen_ns: 0,
            courses: [Class::Replication, Class::Repair, Class::Scrub].map(course),
        }
    }
}

fn bytes(bytes_per_s: u64) -> Rate {
    Rate {
        operations_per_s: 0,
        bytes_per_s,
    }
}

impl Budget {
    /// What the daemon may take in all. No reservation is more than its weight of it.
    pub fn set_share(&mut self, rate: Rate) {
        self.share.set_rate(rate);
        for course in &mut self.courses {
            let fair = match rate.bytes_per_s {
                0 => u64::MAX,
                all => (all / WEIGHTS * course.weight).max(1),
            };
            course
                .kept
                .set_rate(bytes(course.kept_bytes_per_s.min(fair)));
        }
    }

    pub fn share(&self) -> Rate {
        self.share.rate()
    }

    pub fn used(&self) -> Use {
        self.used
    }

    /// True when a piece of background work may be done now.
    pub fn may(&mut self, class: Class, now_ns: u64) -> bool {
        if self.used.bytes != self.seen_bytes {
            (self.seen_bytes, self.seen_ns) = (self.used.bytes, now_ns);
        }
        let active = now_ns.saturating_sub(self.seen_ns) < ACTIVE_NS && self.seen_ns != 0;
        let course = &self.courses[class as usize];
        let is_due = |bucket: &Bucket| bucket.ready_at(now_ns) <= now_ns;
        is_due(&course.kept)
            || is_due(&course.most)
                && is_due(&self.share)
                && (!active || course.spent <= self.used.bytes / FRONT_WEIGHT)
    }

    /// It was done.
    pub fn take(&mut self, class: Class, now_ns: u64, bytes: u64) {
        let clients = self.used.bytes / FRONT_WEIGHT;
        let course = &mut self.courses[class as usize];
        if course.kept.ready_at(now_ns) <= now_ns {
            course.kept.take(now_ns, bytes);
        } else {
            course.spent = course.spent.max(clients) + bytes / course.weight;
        }
        course.most.take(now_ns, bytes);
        self.share.take(now_ns, bytes);
    }
}

/// A device whose requests wait for two buckets. They stay in order: a flush does not overtake.
pub struct Limited {
    device: Box<dyn BlockDevice>,
    own: SharedBucket,
    budget: SharedBudget,
    clock: Rc<dyn Clock>,
    waiting: VecDeque<Request>,
}

impl Limited {
    pub fn new(
        device: Box<dyn BlockDevice>,
        own: SharedBucket,
        budget: SharedBudget,
        clock: Rc<dyn Clock>,
    ) -> Self {
        Self {
            device,
            own,
            budget,
            clock,
            waiting: VecDeque::new(),
        }
    }

    fn ready_ns(&self, now_ns: u64) -> u64 {
        let own_ns = self.own.borrow().ready_at(now_ns);
        own_ns.max(self.budget.borrow().share.ready_at(now_ns))
    }

    fn pass(&mut self, request: Request, now_ns: u64) {
        let bytes = cost_bytes(&request.operation);
        self.own.borrow_mut().take(now_ns, bytes);
        self.budget.borrow_mut().share.take(now_ns, bytes);
        self.device.submit(request);
    }

    fn release(&mut self) {
        while !self.waiting.is_empty() {
            let now_ns = self.clock.now().monotonic_ns;
            if self.ready_ns(now_ns) > now_ns {
                return;
            }
            if let Some(request) = self.waiting.pop_front() {
                self.pass(request, now_ns);
            }
        }
    }
}

/// Bytes that an operation moves.
fn cost_bytes(operation: &Operation) -> u64 {
    match operation {
        Operation::Read { length, .. } => u64::from(*length),
        Operation::Write { data, .. } | Operation::CompareAndWrite { data, .. } => {
            data.len() as u64
        }
        _ => 0,
    }
}

impl BlockDevice for Limited {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn submit(&mut self, request: Request) {
        let mut budget = self.budget.borrow_mut();
        budget.used.operations += 1;
        budget.used.bytes += cost_bytes(&request.operation);
        let own_rate = self.own.borrow().rate();
        let is_unlimited = own_rate == Rate::default() && budget.share() == Rate::default();
        drop(budget);
        if self.waiting.is_empty() && is_unlimited {
            return self.device.submit(request); // no clock is read for who has no limit
        }
        self.waiting.push_back(request);
        self.release();
        if !self.waiting.is_empty() {
            self.budget.borrow_mut().used.held += 1;
        }
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        self.release();
        self.device.poll(completions);
    }

    fn queue_depth_max(&self) -> usize {
        self.device.queue_depth_max()
    }

    fn wake_fd(&self) -> Option<i32> {
        self.device.wake_fd()
    }

    fn poll_within(&self) -> Option<Duration> {
        let own = (!self.waiting.is_empty()).then(|| {
            let now_ns = self.clock.now().monotonic_ns;
            Duration::from_nanos(self.ready_ns(now_ns) - now_ns)
        });
        self.device.poll_within().into_iter().chain(own).min()
    }
}
