//! Limits: so many operations and bytes a second, for a volume, an `IaaS`, or a class of work.
//!
//! A [`Bucket`] is the generic cell rate algorithm twice, once for operations and once for bytes: it holds
//! the moment at which what was taken so far would be paid for, and lets the next one pass while that moment
//! is at most a burst ahead. Time is a parameter. [`Limited`] holds a device's requests back by two buckets:
//! the volume's own, and the one that all volumes of the daemon share.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use nuage_block::{BlockDevice, Completion, Geometry, Operation, Request};

use crate::head::Clock;

const SECOND_NS: u64 = 1_000_000_000;
/// What may pass at once after a pause: a tenth of a second's worth.
const BURST_NS: u64 = SECOND_NS / 10;

/// Whose work it is. Each class of a daemon has a bucket of its own, so that mending never starves guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Requests of initiators.
    Front,
    /// Copies that catch up.
    Replication,
    /// Blocks and copies that are mended or made anew.
    Repair,
    /// Reading everything to find damage.
    Scrub,
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

/// One bucket a class.
#[derive(Debug, Default)]
pub struct Buckets([Bucket; 4]);

impl Buckets {
    pub fn of(&mut self, class: Class) -> &mut Bucket {
        &mut self.0[class as usize]
    }
}

/// A device whose requests wait for two buckets. They stay in order: a flush does not overtake.
pub struct Limited {
    device: Box<dyn BlockDevice>,
    own: SharedBucket,
    shared: SharedBucket,
    clock: Rc<dyn Clock>,
    waiting: VecDeque<Request>,
}

impl Limited {
    pub fn new(
        device: Box<dyn BlockDevice>,
        own: SharedBucket,
        shared: SharedBucket,
        clock: Rc<dyn Clock>,
    ) -> Self {
        Self {
            device,
            own,
            shared,
            clock,
            waiting: VecDeque::new(),
        }
    }

    fn ready_ns(&self, now_ns: u64) -> u64 {
        let own_ns = self.own.borrow().ready_at(now_ns);
        own_ns.max(self.shared.borrow().ready_at(now_ns))
    }

    fn pass(&mut self, request: Request, now_ns: u64) {
        let bytes = cost_bytes(&request.operation);
        self.own.borrow_mut().take(now_ns, bytes);
        self.shared.borrow_mut().take(now_ns, bytes);
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

fn is_unlimited(bucket: &SharedBucket) -> bool {
    bucket.borrow().rate() == Rate::default()
}

impl BlockDevice for Limited {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn submit(&mut self, request: Request) {
        if self.waiting.is_empty() && is_unlimited(&self.own) && is_unlimited(&self.shared) {
            return self.device.submit(request); // no clock is read for who has no limit
        }
        self.waiting.push_back(request);
        self.release();
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
