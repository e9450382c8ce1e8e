//! A head and the two copies that it has elsewhere, driven by hand under a clock of the test's own.
#![allow(dead_code)] // each test binary uses its part

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nuage_block::{Operation, Outcome, Request};
use nuage_disk::{FileDisk, Method};
use nuage_engine::{AckMode, Clock, CopyOptions, CopyState, HeadOptions, ReplicaStore, VolumeHead};
use nuage_journal::{BLOCK_BYTES, Now, Retention, SEGMENT_BYTES_MIN, Store, TailRule, VolumeSpec};
use nuage_replica::{Policy, PolicyName};
use tempfile::TempDir;

pub const BLOCKS: u64 = 96;
/// Turns after which a story that does not come to its end is wrong.
pub const TURNS_MAX: usize = 200_000;
/// A turn in which nothing was said lets the disks work: those of a busy machine stand still for seconds.
const REST: Duration = Duration::from_micros(100);

#[derive(Default)]
pub struct HandClock(pub Cell<u64>);

impl Clock for HandClock {
    fn now(&self) -> Now {
        Now {
            monotonic_ns: self.0.get(),
            unix_ns: 1_700_000_000_000_000_000 + self.0.get(),
        }
    }
}

/// A head, and the two copies that it has elsewhere.
pub struct Set {
    pub clock: Rc<HandClock>,
    pub head: VolumeHead<FileDisk>,
    pub copies: [Option<ReplicaStore<FileDisk>>; 2],
    /// Copies that neither hear nor say anything now, though their connection is there.
    pub stalled: [bool; 2],
    /// What the clock moves in a turn. Disks are real: how many turns they take is not known.
    pub turn_ns: u64,
    /// Requests answered so far.
    pub answered: usize,
    /// How often each copy said something.
    pub answers: [usize; 2],
    next_tag: u64,
}

pub fn spec() -> VolumeSpec {
    VolumeSpec {
        volume: [7; 16],
        size_bytes: BLOCKS * BLOCK_BYTES as u64,
        logical_block_bytes: 512,
        segment_bytes: SEGMENT_BYTES_MIN,
        encrypted: false,
        created_ns: 1,
    }
}

pub fn open(directory: &Path) -> Store<FileDisk> {
    let disk = FileDisk::open(directory, Method::Threads).expect("a directory");
    let mut store = Store::open(disk, None, TailRule::OneOfSeveral).expect("a copy");
    store.set_retention(Retention {
        window_ns: u64::MAX,
        window_bytes: u64::from(SEGMENT_BYTES_MIN),
        strict: false,
    });
    store
}

pub fn create(directory: &Path, joins: bool) {
    let mut disk = FileDisk::open(directory, Method::Threads).expect("a directory");
    let created = if joins {
        Store::create_to_join(&mut disk, &spec(), 0)
    } else {
        Store::create(&mut disk, &spec())
    };
    created.expect("an empty directory takes a copy");
}

impl Set {
    pub fn new(directories: &[TempDir]) -> Self {
        Self::answering(directories, AckMode::Durable)
    }

    /// Three empty copies, whose head answers so.
    pub fn answering(directories: &[TempDir], mode: AckMode) -> Self {
        for directory in &directories[..3] {
            create(directory.path(), false);
        }
        let mut set = Self::led(directories, PolicyName::Any2Of3, mode, 1, false);
        set.until(|set| set.head.is_serving());
        set
    }

    /// A head on what the first three directories have.
    pub fn opened(
        directories: &[TempDir],
        policy: PolicyName,
        term: u64,
        accepts_loss: bool,
    ) -> Self {
        Self::led(directories, policy, AckMode::Durable, term, accepts_loss)
    }

    fn led(
        directories: &[TempDir],
        policy: PolicyName,
        mode: AckMode,
        term: u64,
        accepts_loss: bool,
    ) -> Self {
        let clock = Rc::new(HandClock(Cell::new(10_000_000_000)));
        let options = HeadOptions {
            name: Arc::from("v"),
            mode,
            term,
            head: "a".to_owned(),
            accepts_loss,
        };
        let policy = Policy::named(policy, 3).expect("three copies");
        let copies = CopyOptions {
            policy,
            former: None,
            count: 3,
            me: 0,
            quiet_ns: nuage_replica::RELEASED_NS,
            steady: true,
        };
        let store = open(directories[0].path());
        let own: Rc<dyn Clock> = clock.clone();
        let head = VolumeHead::open_replicated(store, options, copies, own).expect("a head");
        let mut set = Self {
            clock,
            head,
            copies: [None, None],
            stalled: [false; 2],
            turn_ns: 1_000_000,
            answered: 0,
            answers: [0; 2],
            next_tag: 1,
        };
        set.connect(0, open(directories[1].path()));
        set.connect(1, open(directories[2].path()));
        set
    }

    pub fn connect(&mut self, copy: usize, store: Store<FileDisk>) {
        let mut replica = ReplicaStore::new(store, self.clock.clone());
        replica.session_opened(1);
        self.copies[copy] = Some(replica);
        self.head.peer_connected(copy + 1);
    }

    pub fn disconnect(&mut self, copy: usize) {
        self.copies[copy] = None;
        self.head.peer_disconnected(copy + 1);
    }

    /// Everybody takes a turn; returns how many requests were answered.
    pub fn turn(&mut self) -> usize {
        self.clock.0.set(self.clock.0.get() + self.turn_ns);
        let mut completions = Vec::new();
        let mut said = 0;
        self.head.poll(&mut completions);
        for (copy, replica) in self.copies.iter_mut().enumerate() {
            let Some(replica) = replica.as_mut().filter(|_| !self.stalled[copy]) else {
                continue;
            };
            let bytes = self.head.peer_output(copy + 1).drain();
            said += bytes.len();
            replica.receive(1, &bytes).expect("frames");
            replica.poll();
            let bytes = replica.output(1).drain();
            said += bytes.len();
            self.answers[copy] += usize::from(!bytes.is_empty());
            self.head.peer_receive(copy + 1, &bytes).expect("frames");
        }
        let done = |completion: &nuage_block::Completion| completion.outcome == Outcome::Done;
        assert!(completions.iter().all(done), "{completions:?}");
        self.answered += completions.len();
        if said == 0 && completions.is_empty() {
            std::thread::sleep(REST);
        }
        completions.len()
    }

    pub fn until(&mut self, reached: impl Fn(&Self) -> bool) {
        for _ in 0..TURNS_MAX {
            if reached(self) {
                return;
            }
            self.turn();
        }
        panic!("never reached: {:?}", self.head.copies());
    }

    /// Hand in a write of `value` to a block; its answer is counted by `turn`.
    pub fn submit(&mut self, lba: u64, value: u8) {
        let tag = self.next_tag;
        self.next_tag += 1;
        let operation = Operation::Write {
            offset: lba * BLOCK_BYTES as u64,
            data: vec![value; BLOCK_BYTES].into(),
            fua: false,
        };
        self.head.submit(Request { tag, operation });
    }

    /// Write `value` to all these blocks and wait for the answers.
    pub fn write(&mut self, lbas: impl Iterator<Item = u64>, value: u8) {
        let mut missing = 0;
        for lba in lbas {
            self.submit(lba, value);
            missing += 1;
        }
        for _ in 0..TURNS_MAX {
            missing -= self.turn();
            if missing == 0 {
                return;
            }
        }
        panic!("writes are never answered: {:?}", self.head.copies());
    }

    /// Write until the oldest log is gone from the head and what it shows moved to base segments.
    pub fn write_past_the_horizon(&mut self) {
        for round in 0..6u8 {
            self.write((0..BLOCKS).step_by(2), round + 1);
            self.head.store_mut().checkpoint(false);
            self.until(|set| set.head.store().is_idle());
            self.head.tidy();
        }
        assert!(self.head.store().horizon_seq() > 0, "history moved on");
        assert!(
            self.head.store_mut().read_groups(0, 1 << 20).is_err(),
            "the log is gone"
        );
    }

    pub fn is_live(&self, copy: usize) -> bool {
        let status = self.head.copies()[copy + 1];
        let tail = self.head.store().tail().seq;
        status.state == CopyState::Live && status.durable_seq == tail
    }

    /// Both hold the same volume, now and at the head's oldest moment that both have.
    pub fn same(&mut self, copy: usize) {
        // What is committed is told with the next frame, once the head's own disk has it.
        let is_applied = |set: &Self| set.head.store().applied_seq() == set.head.store().tail().seq;
        self.until(is_applied);
        let applied = self.head.store().applied_seq();
        self.until(|set| {
            let of = |copy: &ReplicaStore<FileDisk>| {
                copy.store().applied_seq() == applied && copy.store().is_whole()
            };
            set.copies[copy].as_ref().is_some_and(of)
        });
        let replica = self.copies[copy].as_mut().expect("connected").store_mut();
        let head = self.head.store_mut();
        let oldest = head.horizon_seq().max(replica.horizon_seq());
        for seq in [oldest, applied] {
            let ours = head.base_reader(seq).expect("within history");
            let theirs = replica.base_reader(seq).expect("within history");
            assert_eq!(ours.block_count(), theirs.block_count());
            assert_eq!(ours.digest(), theirs.digest(), "after {seq}");
            assert_eq!(ours.position.chain, theirs.position.chain);
        }
    }
}

pub fn directories() -> Vec<TempDir> {
    (0..4)
        .map(|_| TempDir::new().expect("a directory"))
        .collect()
}
