//! Three nodes, a volume, a client, and everything that can go wrong.

mod lag;
mod ledger;
mod losses;
mod past;
mod scrubs;
mod settle;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use nuage_block::{Completion, Operation, Outcome as Answer, Request};
use nuage_engine::{
    AckMode, Clock, CopyOptions, CopyState, HeadEvent, HeadOptions, LagBound, ReplicaStore,
    VolumeHead,
};
use nuage_journal::{Cipher, Now, Retention, Store, StoreEvent, TailRule, Told, VolumeSpec};
use nuage_replica::{Policy, PolicyName};

use crate::checker::Checker;
use crate::disk::{Medium, SimDisk};
use crate::prng::Prng;
use scrubs::Rotten;

const NODES: usize = 3;
const BLOCKS: u64 = 64;
const BLOCK: usize = 4096;
/// A run's cost is the engine's own work, so it is by length: most are short, and some outlive what history keeps.
const STEPS_MIN: u64 = 80;
const STEPS_MAX: u64 = 260;
const LONG_STEPS_MAX: u64 = 1200;
const LONG_ONE_IN: u64 = 8;
const SEGMENT_BYTES: u32 = 256 << 10;

/// What time it is, and how a node's clocks tell it.
struct SimClock(Cell<u64>);

struct NodeClock {
    real: Rc<SimClock>,
    /// Parts in a million that it runs fast or slow; 1 % is what the lease allows for.
    drift_ppm: i64,
    offset_ns: u64,
    /// How far its idea of UTC is off.
    skew_ns: i64,
}

impl Clock for NodeClock {
    fn now(&self) -> Now {
        let real_ns = self.real.0.get();
        let drift_ns = i128::from(real_ns) * i128::from(self.drift_ppm) / 1_000_000;
        let told_ns = u64::try_from(i128::from(real_ns) + drift_ns).unwrap_or(real_ns);
        Now {
            monotonic_ns: self.offset_ns + told_ns,
            unix_ns: (1_700_000_000_000_000_000 + real_ns).saturating_add_signed(self.skew_ns),
        }
    }
}

enum Role {
    Down,
    Replica(Box<ReplicaStore<SimDisk>>),
    Head(Box<VolumeHead<SimDisk>>),
}

struct Node {
    medium: Rc<RefCell<Medium>>,
    role: Role,
    clock: Rc<NodeClock>,
    /// What its daemon told of the segments on the disk that it has now.
    told: Told,
}

/// A connection of a head to a copy: bytes with the time they arrive.
#[derive(Default)]
struct Link {
    session: u64,
    to_copy: VecDeque<(u64, Vec<u8>)>,
    to_head: VecDeque<(u64, Vec<u8>)>,
}

#[derive(Clone, Copy)]
enum Wish {
    Write { lba: u64 },
    Read { lba: u64 },
    Flush,
}

/// What a run did, for the curious.
#[derive(Debug, Default, Clone, Copy)]
pub struct Outcome {
    pub writes_acked: u64,
    pub reads_checked: u64,
    pub failovers: u64,
    pub crashes: u64,
    /// Moments of the past compared with a replay of the log.
    pub views_checked: u64,
    /// Disks replaced by empty ones, and copies made anew from another's blocks.
    pub replaced: u64,
    pub rebuilt: u64,
    /// Answers given while a copy lacked something, within its bound.
    pub lags_checked: u64,
    /// Blocks that rotted, passes over a copy, and blocks that were written anew.
    pub rotted: u64,
    pub scrubs: u64,
    pub mended: u64,
    /// Receipts of segments that came or went.
    pub receipts: u64,
}

// What kind of world it is: each is drawn apart.
#[allow(clippy::struct_excessive_bools)]
struct World {
    prng: Prng,
    clock: Rc<SimClock>,
    nodes: Vec<Node>,
    links: BTreeMap<(usize, usize), Link>,
    cut: [[bool; NODES]; NODES],
    name: PolicyName,
    policy: Policy,
    mode: AckMode,
    encrypted: bool,
    rots: bool,
    /// First blocks, segments without a seal and superblocks rot as well.
    rots_starts: bool,
    /// The highest epoch that each copy has promised: a restart takes none back.
    promised: [u64; NODES],
    /// Of superblocks alone: the rest of a world goes as it would without.
    superblock_prng: Prng,
    /// History is short: copies that were away are made anew.
    forgets: bool,
    /// Disks are full now and then.
    fills: bool,
    steps: u64,
    term: u64,
    checker: Checker,
    in_flight: BTreeMap<(usize, u64), Wish>,
    next_tag: u64,
    next_value: u64,
    next_session: u64,
    highest_acked_epoch: u64,
    outcome: Outcome,
    told: Vec<String>,
    serving: [bool; NODES],
    /// How far copies may be behind, strictly.
    bound_ns: Option<u64>,
    /// When each head made its records: the last seq of a turn, and the turn's time.
    made: [VecDeque<(u64, u64)>; NODES],
    /// What copies had on disk when each head last heard from them.
    held: [[u64; NODES]; NODES],
    /// Copies that were being made anew at the last look.
    rebuilding: [bool; NODES],
    quiet_steps: u64,
    /// The copy that has rotted since it was last found whole. Two at once could lose a block.
    rotten: Option<Rotten>,
}

/// Play one seed.
pub fn run(seed: u64) -> Result<Outcome, String> {
    play(&mut World::new(seed))
}

/// Play one seed and tell what happened.
pub fn replay(seed: u64) -> (Result<Outcome, String>, Vec<String>) {
    let mut world = World::new(seed);
    let result = play(&mut world);
    (result, world.told)
}

fn play(world: &mut World) -> Result<Outcome, String> {
    let told = format!("{:?} {:?}", world.name, world.mode);
    for step in 0..world.steps {
        world
            .step()
            .map_err(|error| format!("{told} step {step}: {error}"))?;
    }
    world.settle().map_err(|error| format!("{told}: {error}"))?;
    Ok(world.outcome)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut prng = Prng::new(seed);
        let name = match prng.below(3) {
            0 => PolicyName::Any2Of3,
            1 => PolicyName::Metro,
            _ => PolicyName::All,
        };
        // Memory acknowledgements survive the loss of one node at a time only: no crash of two.
        let mode = if prng.one_in(4) {
            AckMode::Memory
        } else {
            AckMode::Durable
        };
        let encrypted = prng.one_in(2);
        let policy = Policy::named(name, NODES as u32).expect("three copies suit every policy");
        let clock = Rc::new(SimClock(Cell::new(10_000_000_000)));
        let mut nodes = Vec::new();
        for number in 0..NODES as u64 {
            let medium = Medium::new(seed ^ (number + 1) << 40);
            let mut disk = SimDisk::new(&medium, seed);
            Store::create(&mut disk, &spec(encrypted)).expect("a fresh disk takes a volume");
            nodes.push(Node {
                medium,
                role: Role::Down,
                clock: Rc::new(NodeClock {
                    real: Rc::clone(&clock),
                    drift_ppm: i64::try_from(prng.below(20_000)).unwrap_or(0) - 10_000,
                    offset_ns: prng.below(1 << 40),
                    skew_ns: i64::try_from(prng.below(1 << 32)).unwrap_or(0) - (1 << 31),
                }),
                told: Told::default(),
            });
        }
        let steps_max = if prng.one_in(LONG_ONE_IN) {
            LONG_STEPS_MAX
        } else {
            STEPS_MAX
        };
        let steps = STEPS_MIN + prng.below(steps_max - STEPS_MIN);
        let mut world = Self {
            prng,
            clock,
            nodes,
            links: BTreeMap::new(),
            cut: [[false; NODES]; NODES],
            name,
            policy,
            mode,
            encrypted,
            rots: seed.is_multiple_of(4),
            rots_starts: seed % 8 == 4,
            promised: [0; NODES],
            superblock_prng: Prng::new(!seed),
            forgets: seed % 3 == 1,
            fills: seed % 4 == 2,
            steps,
            rebuilding: [false; NODES],
            quiet_steps: 0,
            rotten: None,
            term: 0,
            checker: Checker::default(),
            in_flight: BTreeMap::new(),
            next_tag: 1,
            next_value: 1,
            next_session: 1,
            highest_acked_epoch: 0,
            outcome: Outcome::default(),
            told: Vec::new(),
            serving: [false; NODES],
            bound_ns: (seed % 5 == 3).then_some(lag::BOUND_NS),
            made: std::array::from_fn(|_| VecDeque::new()),
            held: [[0; NODES]; NODES],
        };
        for node in 0..NODES {
            world.start_replica(node);
        }
        world.lead(0);
        world
    }

    fn tell(&mut self, node: usize, what: &str) {
        let (tail, applied, promised) = match &self.nodes[node].role {
            Role::Head(head) => told_of(head.store()),
            Role::Replica(replica) => told_of(replica.store()),
            Role::Down => (0, 0, 0),
        };
        let ms = self.clock.0.get() / 1_000_000;
        self.told.push(format!(
            "{ms} ms: node {node} {what}: tail {tail}, applied {applied}, promised {promised:x}"
        ));
    }

    fn open_store(&mut self, node: usize) -> Option<Store<SimDisk>> {
        let disk = SimDisk::new(&self.nodes[node].medium, self.prng.draw());
        let cipher = self.encrypted.then(|| Cipher::new(&[3; 32]));
        let mut store = Store::open(disk, cipher, TailRule::OneOfSeveral).ok()?;
        if self.forgets {
            store.set_retention(Retention {
                window_ns: u64::MAX,
                window_bytes: u64::from(SEGMENT_BYTES),
                strict: false,
            });
        }
        Some(store)
    }

    /// Every copy keeps its own history within bounds.
    fn tidy(&mut self) {
        if self.prng.one_in(4) {
            self.compare_receipts();
        }
        for node in &mut self.nodes {
            let now_ns = node.clock.now().unix_ns;
            if let Some(store) = store_of(&mut node.role) {
                store.retry_lost();
            }
            match &mut node.role {
                Role::Head(head) => head.tidy(),
                Role::Replica(replica) => replica.tidy(now_ns),
                Role::Down => {}
            }
            // An anchor that the horizon may move to next time: else there is one each MiB only.
            let store = store_of(&mut node.role).filter(|_| self.forgets);
            if let Some(store) = store {
                store.checkpoint(false);
            }
        }
    }

    fn start_replica(&mut self, node: usize) {
        self.rot_superblock(node, 2);
        self.nodes[node].role = match self.open_store(node) {
            Some(store) => Role::Replica(Box::new(ReplicaStore::new(
                store,
                self.nodes[node].clock.clone(),
            ))),
            None => Role::Down,
        };
        self.tell(node, "starts");
    }

    /// The quorum makes `node` the head of a new term.
    fn lead(&mut self, node: usize) {
        let role = std::mem::replace(&mut self.nodes[node].role, Role::Down);
        let handover = match role {
            Role::Replica(replica) => replica.hand_over(),
            other => {
                self.nodes[node].role = other;
                return;
            }
        };
        self.drop_links(|_, copy| copy == node);
        self.term += 1;
        let options = HeadOptions {
            name: Arc::from("v"),
            mode: self.mode,
            term: self.term,
            head: format!("node {node}"),
            accepts_loss: false,
        };
        let copies = CopyOptions {
            policy: self.policy.clone(),
            former: None,
            count: NODES,
            me: node,
            quiet_ns: handover.quiet_ns,
            steady: handover.steady,
        };
        let clock: Rc<dyn Clock> = self.nodes[node].clock.clone();
        match VolumeHead::open_replicated(handover.store, options, copies, clock) {
            Ok(mut head) => {
                head.set_lag_bound(self.bound_ns.map(|age_ns| LagBound {
                    age_ns,
                    strict: true,
                    copies: (1 << NODES) - 1,
                }));
                self.made[node].clear();
                self.held[node] = [0; NODES];
                self.nodes[node].role = Role::Head(Box::new(head));
                self.tell(node, "is to lead");
            }
            Err(_) => self.crash(node),
        }
    }

    fn drop_links(&mut self, which: impl Fn(usize, usize) -> bool) {
        let gone: Vec<(usize, usize)> = self
            .links
            .keys()
            .copied()
            .filter(|(head, copy)| which(*head, *copy))
            .collect();
        for (head, copy) in gone {
            let Some(link) = self.links.remove(&(head, copy)) else {
                continue;
            };
            if let Role::Head(found) = &mut self.nodes[head].role {
                found.peer_disconnected(copy);
            }
            if let Role::Replica(found) = &mut self.nodes[copy].role {
                found.session_closed(link.session);
            }
        }
    }

    fn crash(&mut self, node: usize) {
        self.outcome.crashes += 1;
        self.tell(node, "crashes");
        self.abandon(node);
        self.nodes[node].role = Role::Down;
        self.drop_links(|head, copy| head == node || copy == node);
    }

    /// Requests to a head that will never answer them.
    fn abandon(&mut self, node: usize) {
        let tags: Vec<(usize, u64)> = self
            .in_flight
            .keys()
            .copied()
            .filter(|(head, _)| *head == node)
            .collect();
        for key in tags {
            match self.in_flight.remove(&key) {
                Some(Wish::Write { lba }) => self.checker.write_lost(lba),
                Some(Wish::Read { lba }) => self.checker.read_lost(lba, key.1),
                _ => {}
            }
        }
    }

    fn down_count(&self) -> usize {
        self.nodes
            .iter()
            .filter(|node| matches!(node.role, Role::Down))
            .count()
    }

    fn step(&mut self) -> Result<(), String> {
        self.clock
            .0
            .set(self.clock.0.get() + 1_000_000 * (1 + self.prng.below(20)));
        self.misfortune();
        for node in 0..NODES {
            self.rot_superblock(node, 60);
        }
        for _ in 0..self.prng.below(4) {
            self.ask();
        }
        self.turn()
    }

    fn misfortune(&mut self) {
        let node = self.prng.below(NODES as u64) as usize;
        let other = self.prng.below(NODES as u64) as usize;
        // With acknowledgements from memory, one node at a time may fail.
        let may_fail = self.mode == AckMode::Durable || self.down_count() == 0;
        match self.prng.below(400) {
            0..3 if may_fail => self.crash(node),
            3..6 if self.mode == AckMode::Durable => {
                let fuse = 1 + self.prng.below(12);
                self.nodes[node].medium.borrow_mut().fuse = Some(fuse);
            }
            6..10 => {
                self.cut[node][other] = true;
                self.cut[other][node] = true;
            }
            10..30 => self.cut = [[false; NODES]; NODES],
            30..33 => self.fail_over(node),
            33..36 => self.drop_links(|head, copy| (head, copy) == (node, other)),
            75..92 if self.rots && self.mode == AckMode::Durable => self.rot(node),
            92..96 => self.begin_scrub(node),
            38..39 if self.mode == AckMode::Durable => {
                let mut medium = self.nodes[node].medium.borrow_mut();
                medium.fail_next_write = true;
            }
            41..44 if self.fills => {
                let mut medium = self.nodes[node].medium.borrow_mut();
                medium.is_full = !medium.is_full;
            }
            44..60 if self.forgets && self.mode == AckMode::Durable => self.replace_disk(node),
            60..75 => self.tidy(),
            _ => {}
        }
        for node in 0..NODES {
            let down = matches!(self.nodes[node].role, Role::Down);
            // Where history is short, some stay away for longer than it.
            if down && self.prng.one_in(if self.forgets { 100 } else { 25 }) {
                self.start_replica(node);
            }
        }
    }

    fn fail_over(&mut self, node: usize) {
        if matches!(self.nodes[node].role, Role::Replica(_)) {
            self.outcome.failovers += 1;
            self.lead(node);
        }
    }

    /// The client asks some head, maybe an old one.
    fn ask(&mut self) {
        let heads: Vec<usize> = (0..NODES)
            .filter(|node| matches!(self.nodes[*node].role, Role::Head(_)))
            .collect();
        if heads.is_empty() {
            return;
        }
        let node = heads[self.prng.below(heads.len() as u64) as usize];
        let lba = self.prng.below(BLOCKS);
        let tag = self.next_tag;
        self.next_tag += 1;
        let wish = match self.prng.below(8) {
            0..4 if !self.checker.is_writing(lba) => Wish::Write { lba },
            0..7 => Wish::Read { lba },
            _ => Wish::Flush,
        };
        let offset = lba * BLOCK as u64;
        let operation = match wish {
            Wish::Write { .. } => {
                let value = self.next_value;
                self.next_value += 1;
                self.checker.write_begins(lba, value);
                Operation::Write {
                    offset,
                    data: block_of(value).into(),
                    fua: self.prng.one_in(4),
                }
            }
            Wish::Read { .. } => {
                self.checker.read_begins(lba, tag);
                Operation::Read {
                    offset,
                    length: BLOCK as u32,
                }
            }
            Wish::Flush => Operation::Flush,
        };
        self.in_flight.insert((node, tag), wish);
        if let Role::Head(head) = &mut self.nodes[node].role {
            head.submit(Request { tag, operation });
        }
    }

    fn count_rebuilds(&mut self) {
        let heads = self.nodes.iter().filter_map(|node| match &node.role {
            Role::Head(head) => Some(head.copies()),
            _ => None,
        });
        for (copy, status) in heads.flat_map(|copies| copies.into_iter().enumerate()) {
            let is_rebuilding = status.state == CopyState::Rebuilding;
            let is_done = status.state == CopyState::CatchingUp || status.state == CopyState::Live;
            self.outcome.rebuilt += u64::from(self.rebuilding[copy] && is_done);
            self.rebuilding[copy] = is_rebuilding || self.rebuilding[copy] && !is_done;
        }
    }

    fn tell_changes(&mut self) {
        self.count_rebuilds();
        for node in 0..NODES {
            let serving = match &self.nodes[node].role {
                Role::Head(head) => head.is_serving(),
                _ => false,
            };
            if serving != self.serving[node] {
                self.serving[node] = serving;
                self.tell(node, if serving { "serves" } else { "serves no more" });
            }
        }
    }

    /// Every process takes a turn, and bytes move.
    fn turn(&mut self) -> Result<(), String> {
        for node in 0..NODES {
            self.connect(node);
            self.deliver(node);
            self.scrub(node);
            let mut completions = Vec::new();
            let mut fenced = false;
            let mut epoch = 0;
            let mut events = Vec::new();
            match &mut self.nodes[node].role {
                Role::Head(head) => {
                    head.poll(&mut completions);
                    epoch = head.epoch();
                    let stopped = |event: &HeadEvent| {
                        matches!(event, HeadEvent::Fenced { .. } | HeadEvent::Behind { .. })
                    };
                    let told = head.take_events();
                    fenced = told.iter().any(stopped);
                    events.extend(told.into_iter().filter_map(|event| match event {
                        HeadEvent::Store(event) => Some(event),
                        _ => None,
                    }));
                }
                Role::Replica(replica) => events = replica.poll(),
                Role::Down => {}
            }
            let mended = |event: &&StoreEvent| matches!(event, StoreEvent::Mended { .. });
            self.outcome.mended += events.iter().filter(mended).count() as u64;
            self.note_receipts(node, events.iter());
            self.note_made(node);
            for completion in completions {
                self.complete(node, epoch, completion)?;
            }
            self.collect(node);
            self.after_turn(node, fenced);
            self.check_promise(node)?;
        }
        self.tell_changes();
        Ok(())
    }

    fn after_turn(&mut self, node: usize, fenced: bool) {
        let failed = match &self.nodes[node].role {
            Role::Head(head) => head.store().failure().is_some(),
            Role::Replica(replica) => replica.store().failure().is_some(),
            Role::Down => false,
        };
        if failed || self.nodes[node].medium.borrow().is_dead() {
            self.crash(node);
        } else if fenced {
            self.tell(node, "is fenced");
            self.abandon(node);
            self.drop_links(|head, _| head == node);
            let role = std::mem::replace(&mut self.nodes[node].role, Role::Down);
            if let Role::Head(head) = role {
                let steady = head.is_steady();
                let clock = self.nodes[node].clock.clone();
                let replica = ReplicaStore::after_lead(head.into_store(), clock, steady);
                self.nodes[node].role = Role::Replica(Box::new(replica));
            }
        }
    }

    fn connect(&mut self, node: usize) {
        for copy in 0..NODES {
            let possible = copy != node
                && !self.cut[node][copy]
                && !self.links.contains_key(&(node, copy))
                && matches!(self.nodes[copy].role, Role::Replica(_));
            let Role::Head(head) = &mut self.nodes[node].role else {
                return;
            };
            if !possible {
                continue;
            }
            head.peer_connected(copy);
            let session = self.next_session;
            self.next_session += 1;
            if let Role::Replica(replica) = &mut self.nodes[copy].role {
                replica.session_opened(session);
            }
            self.links.insert(
                (node, copy),
                Link {
                    session,
                    ..Link::default()
                },
            );
        }
    }

    /// Take what processes have to say and put it on its way.
    fn collect(&mut self, node: usize) {
        let now = self.clock.0.get();
        for ((head, copy), link) in &mut self.links {
            if *head != node && *copy != node {
                continue;
            }
            let arrival = now + 500_000 * (1 + self.prng.below(30));
            if *head == node
                && let Role::Head(found) = &mut self.nodes[node].role
            {
                let bytes = found.peer_output(*copy).drain();
                if !bytes.is_empty() {
                    link.to_copy.push_back((arrival, bytes));
                }
            }
            if *copy == node
                && let Role::Replica(found) = &mut self.nodes[node].role
            {
                let bytes = found.output(link.session).drain();
                if !bytes.is_empty() {
                    link.to_head.push_back((arrival, bytes));
                }
            }
        }
    }

    fn deliver(&mut self, node: usize) {
        let now = self.clock.0.get();
        let mut broken = Vec::new();
        for ((head, copy), link) in &mut self.links {
            if self.cut[*head][*copy] {
                continue;
            }
            let due = |queue: &VecDeque<(u64, Vec<u8>)>| {
                queue.front().is_some_and(|(arrival, _)| *arrival <= now)
            };
            if *copy == node {
                while due(&link.to_copy) {
                    let Some((_, bytes)) = link.to_copy.pop_front() else {
                        break;
                    };
                    if let Role::Replica(found) = &mut self.nodes[node].role
                        && found.receive(link.session, &bytes).is_err()
                    {
                        broken.push((*head, *copy));
                    }
                }
            }
            if *head == node {
                while due(&link.to_head) {
                    let Some((_, bytes)) = link.to_head.pop_front() else {
                        break;
                    };
                    if let Role::Head(found) = &mut self.nodes[node].role
                        && found.peer_receive(*copy, &bytes).is_err()
                    {
                        broken.push((*head, *copy));
                    }
                }
            }
        }
        self.drop_links(|head, copy| broken.contains(&(head, copy)));
    }

    fn complete(&mut self, node: usize, epoch: u64, done: Completion) -> Result<(), String> {
        let Some(wish) = self.in_flight.remove(&(node, done.tag)) else {
            return Ok(());
        };
        match (wish, done.outcome) {
            (Wish::Write { lba }, Answer::Done) => {
                if epoch < self.highest_acked_epoch {
                    let highest = self.highest_acked_epoch;
                    return Err(format!(
                        "epoch {epoch} acknowledged a write after {highest} did"
                    ));
                }
                self.highest_acked_epoch = epoch;
                self.outcome.writes_acked += 1;
                self.checker.write_acked(lba);
                self.check_lag(node)?;
            }
            (Wish::Write { lba }, _) => self.checker.write_lost(lba),
            (Wish::Read { lba }, Answer::Data(data)) => {
                self.outcome.reads_checked += 1;
                let value = value_of(&data)?;
                if let Err(allowed) = self.checker.read_ends(lba, done.tag, value) {
                    return Err(format!(
                        "node {node} epoch {epoch}: block {lba} reads {value}, may be {allowed:?}"
                    ));
                }
            }
            (Wish::Read { lba }, _) => self.checker.read_lost(lba, done.tag),
            (Wish::Flush, _) => {}
        }
        Ok(())
    }
}

fn store_of(role: &mut Role) -> Option<&mut Store<SimDisk>> {
    match role {
        Role::Head(head) => Some(head.store_mut()),
        Role::Replica(replica) => Some(replica.store_mut()),
        Role::Down => None,
    }
}

fn spec(encrypted: bool) -> VolumeSpec {
    VolumeSpec {
        volume: [5; 16],
        size_bytes: BLOCKS * BLOCK as u64,
        logical_block_bytes: 512,
        segment_bytes: SEGMENT_BYTES,
        encrypted,
        created_ns: 1,
    }
}

fn told_of(store: &Store<SimDisk>) -> (u64, u64, u64) {
    (
        store.tail().seq,
        store.applied_seq(),
        store.superblock().promised,
    )
}

fn block_of(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(BLOCK / 8)
}

/// The value of a block; an error when it is not one write's.
fn value_of(data: &[u8]) -> Result<u64, String> {
    let (first, _) = data.split_first_chunk::<8>().ok_or("short read")?;
    if data.chunks(8).any(|chunk| chunk != first) {
        return Err("a block is torn between two writes".into());
    }
    Ok(u64::from_le_bytes(*first))
}
