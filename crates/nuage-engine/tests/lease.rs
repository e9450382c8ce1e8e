//! A new head waits for what is left of the former head's read lease, and no longer.
#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use nuage_block::{BlockDevice, Completion, Operation, Outcome, Request};
use nuage_disk::{FileDisk, Method};
use nuage_engine::{
    AckMode, Clock, CopyOptions, Handover, HeadOptions, ReplicaStore, Volume, VolumeHead,
    create_volume,
};
use nuage_journal::{Now, Store, TailRule, VolumeSpec};
use nuage_replica::{Policy, PolicyName, RELEASED_NS, takeover_wait_ns};

const COPIES: usize = 3;
const SESSION: u64 = 1;
const ROUNDS: usize = 300;

struct StandingClock(Cell<u64>);

impl Clock for StandingClock {
    fn now(&self) -> Now {
        Now {
            monotonic_ns: self.0.get(),
            unix_ns: self.0.get(),
        }
    }
}

fn store(folder: &Path, copy: usize) -> Store<FileDisk> {
    let path = folder.join(copy.to_string());
    std::fs::create_dir(&path).unwrap();
    let spec = VolumeSpec {
        volume: [9; 16],
        size_bytes: 1 << 20,
        logical_block_bytes: 512,
        segment_bytes: 256 << 10,
        encrypted: false,
        created_ns: 1,
    };
    create_volume(&path, &spec).unwrap();
    let disk = FileDisk::open(&path, Method::Threads).unwrap();
    Store::open(disk, None, TailRule::OneOfSeveral).unwrap()
}

/// A head and the copies that it reaches.
struct World {
    head: Volume<FileDisk>,
    copies: Vec<(usize, ReplicaStore<FileDisk>)>,
    done: Vec<Completion>,
}

impl World {
    fn lead(
        me: usize,
        term: u32,
        from: Handover<FileDisk>,
        mut copies: Vec<(usize, ReplicaStore<FileDisk>)>,
        clock: Rc<dyn Clock>,
    ) -> Self {
        let options = HeadOptions {
            name: Arc::from("v"),
            mode: AckMode::Durable,
            term: term.into(),
            head: "test".into(),
            accepts_loss: false,
        };
        let of = CopyOptions {
            policy: Policy::named(PolicyName::Any2Of3, 3).unwrap(),
            former: None,
            count: COPIES,
            me,
            quiet_ns: from.quiet_ns,
            steady: from.steady,
        };
        let head = VolumeHead::open_replicated(from.store, options, of, clock).unwrap();
        let head = Volume::new(head);
        for (copy, replica) in &mut copies {
            replica.session_closed(SESSION);
            replica.session_opened(SESSION);
            head.with(|head| head.peer_connected(*copy));
        }
        Self {
            head,
            copies,
            done: Vec::new(),
        }
    }

    fn turn(&mut self) {
        for (copy, replica) in &mut self.copies {
            let bytes = self.head.with(|head| head.peer_output(*copy).drain());
            replica.receive(SESSION, &bytes).unwrap();
            replica.poll();
            let bytes = replica.output(SESSION).drain();
            self.head
                .with(|head| head.peer_receive(*copy, &bytes))
                .unwrap();
        }
        self.head.poll(&mut self.done);
        std::thread::yield_now();
    }

    fn write(&mut self) {
        let operation = Operation::Write {
            offset: 0,
            data: vec![7; 512].into(),
            fua: false,
        };
        self.head.submit(Request { tag: 1, operation });
    }

    fn until_written(&mut self) {
        while self.done.is_empty() {
            self.turn();
        }
        assert_eq!(self.done.remove(0).outcome, Outcome::Done);
    }
}

/// A head on copy 0 has written; copies 1 and 2 are left when it is gone.
fn lost_head(
    folder: &Path,
    clock: &Rc<StandingClock>,
) -> (ReplicaStore<FileDisk>, ReplicaStore<FileDisk>) {
    let [one, two] = [1, 2].map(|copy| ReplicaStore::new(store(folder, copy), clock.clone()));
    let first = Handover {
        store: store(folder, 0),
        quiet_ns: RELEASED_NS,
        steady: true,
    };
    let mut world = World::lead(0, 1, first, vec![(1, one), (2, two)], clock.clone());
    world.write();
    world.until_written();
    for _ in 0..ROUNDS {
        world.turn();
    }
    let mut copies = world.copies.into_iter().map(|(_, replica)| replica);
    (copies.next().unwrap(), copies.next().unwrap())
}

#[test]
fn the_wait_begins_when_the_former_head_was_last_heard() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Rc::new(StandingClock(Cell::new(5_000_000_000)));
    let (one, two) = lost_head(folder.path(), &clock);
    let quiet_ns = takeover_wait_ns() / 2;
    clock.0.set(clock.0.get() + quiet_ns);
    let handover = one.hand_over();
    assert_eq!(handover.quiet_ns, quiet_ns);

    let mut world = World::lead(1, 2, handover, vec![(2, two)], clock.clone());
    world.write();
    clock
        .0
        .set(clock.0.get() + takeover_wait_ns() - quiet_ns - 1);
    let last_ns = clock.0.get();
    for _ in 0..ROUNDS {
        world.turn();
    }
    assert!(
        world.done.is_empty(),
        "answered while the old lease may run"
    );
    clock.0.set(last_ns + takeover_wait_ns());
    world.until_written();
}

#[test]
fn a_head_whose_lease_has_run_out_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Rc::new(StandingClock(Cell::new(5_000_000_000)));
    let (one, two) = lost_head(folder.path(), &clock);
    clock.0.set(clock.0.get() + takeover_wait_ns());
    let mut world = World::lead(1, 2, one.hand_over(), vec![(2, two)], clock);
    world.write();
    world.until_written();
}

#[test]
fn a_copy_that_was_opened_anew_has_heard_a_head_just_now() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Rc::new(StandingClock(Cell::new(5_000_000_000)));
    let (one, _) = lost_head(folder.path(), &clock);
    clock.0.set(clock.0.get() + takeover_wait_ns());
    let again = ReplicaStore::new(one.hand_over().store, clock);
    assert_eq!(again.hand_over().quiet_ns, 0);
}

#[test]
fn a_head_that_still_waits_for_its_former_cannot_release_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Rc::new(StandingClock(Cell::new(5_000_000_000)));
    let (one, two) = lost_head(folder.path(), &clock);
    let mut world = World::lead(1, 2, one.hand_over(), vec![(2, two)], clock);
    for _ in 0..ROUNDS {
        world.turn();
    }
    world.head.with(VolumeHead::release);
    world.turn();
    let (_, two) = world.copies.remove(0);
    assert_eq!(two.hand_over().quiet_ns, 0);
}
