//! Three nodes, a volume, a client, and everything that can go wrong.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use nuage_block::{Completion, Operation, Outcome as Answer, Request};
use nuage_engine::{AckMode, Clock, CopyOptions, HeadEvent, HeadOptions, ReplicaStore, VolumeHead};
use nuage_journal::{Cipher, Now, Store, TailRule, VolumeSpec};
use nuage_replica::{Policy, PolicyName};

use crate::checker::Checker;
use crate::disk::{Medium, SimDisk};
use crate::prng::Prng;

const NODES: usize = 3;
const BLOCKS: u64 = 64;
const BLOCK: usize = 4096;
const STEPS: u64 = 1500;
const QUIET_STEPS: u64 = 20_000;

struct SimClock(Cell<u64>);

impl Clock for SimClock {
    fn now(&self) -> Now {
        Now {
            monotonic_ns: self.0.get(),
            unix_ns: 1_700_000_000_000_000_000 + self.0.get(),
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
    /// The disk failed: it never comes back.
    lost: bool,
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
    pub views_checked: u64,
}

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
    for step in 0..STEPS {
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
            let spec = VolumeSpec {
                volume: [5; 16],
                size_bytes: BLOCKS * BLOCK as u64,
                logical_block_bytes: 512,
                segment_bytes: 256 << 10,
                encrypted,
                created_ns: 1,
            };
            Store::create(&mut disk, &spec).expect("a fresh disk takes a volume");
            nodes.push(Node {
                medium,
                role: Role::Down,
                lost: false,
            });
        }
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
            rots: seed.is_multiple_of(8),
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
        Store::open(disk, cipher, TailRule::OneOfSeveral).ok()
    }

    fn start_replica(&mut self, node: usize) {
        if self.nodes[node].lost {
            return;
        }
        self.nodes[node].role = match self.open_store(node) {
            Some(store) => Role::Replica(Box::new(ReplicaStore::new(store))),
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
        };
        let copies = CopyOptions {
            policy: self.policy.clone(),
            count: NODES,
            me: node,
            released: handover.released,
            steady: handover.steady,
        };
        let clock: Rc<dyn Clock> = self.clock.clone();
        match VolumeHead::open_replicated(handover.store, options, copies, clock) {
            Ok(head) => {
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
            36..38 if self.rots && self.mode == AckMode::Durable => {
                self.nodes[node].medium.borrow_mut().rot();
            }
            _ => {}
        }
        for node in 0..NODES {
            let down = matches!(self.nodes[node].role, Role::Down);
            if down && self.prng.one_in(25) {
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
                    data: block_of(value),
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

    fn tell_changes(&mut self) {
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
            let mut completions = Vec::new();
            let mut fenced = false;
            let mut epoch = 0;
            match &mut self.nodes[node].role {
                Role::Head(head) => {
                    head.poll(&mut completions);
                    epoch = head.epoch();
                    let stopped = |event: &HeadEvent| matches!(event, HeadEvent::Fenced { .. });
                    fenced = head.take_events().iter().any(stopped);
                }
                Role::Replica(replica) => {
                    replica.poll();
                }
                Role::Down => {}
            }
            for completion in completions {
                self.complete(node, epoch, completion)?;
            }
            self.collect(node);
            self.after_turn(node, fenced);
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
                let replica = ReplicaStore::after_lead(head.into_store());
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
                let bytes = found.peer_output(*copy);
                if !bytes.is_empty() {
                    link.to_copy.push_back((arrival, bytes));
                }
            }
            if *copy == node
                && let Role::Replica(found) = &mut self.nodes[node].role
            {
                let bytes = found.output(link.session);
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

    /// Heal everything, let one head lead, and check all that must hold.
    fn settle(&mut self) -> Result<(), String> {
        self.cut = [[false; NODES]; NODES];
        for _ in 0..200 {
            self.quiet_step()?;
        }
        for node in 0..NODES {
            self.nodes[node].medium.borrow_mut().fuse = None;
            if matches!(self.nodes[node].role, Role::Head(_)) {
                self.crash(node);
            }
        }
        for node in 0..NODES {
            if matches!(self.nodes[node].role, Role::Down) {
                self.start_replica(node);
            }
            if matches!(self.nodes[node].role, Role::Down) {
                return Err(format!("node {node} does not open: {}", self.why_not(node)));
            }
        }
        let leader = self.prng.below(NODES as u64) as usize;
        self.lead(leader);
        let head = (0..NODES).find(|node| matches!(self.nodes[*node].role, Role::Head(_)));
        let head = head.ok_or("nobody leads")?;
        for lba in 0..BLOCKS {
            self.final_read(head, lba)?;
        }
        self.check_past(head)?;
        if self.rots {
            return Ok(()); // what rots in the log is mended block by block, not whole
        }
        self.wait_for_copies(head)?;
        self.check_chains(head)
    }

    fn why_not(&mut self, node: usize) -> String {
        let disk = SimDisk::new(&self.nodes[node].medium, 1);
        let cipher = self.encrypted.then(|| Cipher::new(&[3; 32]));
        Store::open(disk, cipher, TailRule::OneOfSeveral)
            .err()
            .map_or_else(|| "now it does".to_owned(), |error| error.to_string())
    }

    fn quiet_step(&mut self) -> Result<(), String> {
        self.clock.0.set(self.clock.0.get() + 5_000_000);
        self.turn()
    }

    fn final_read(&mut self, head: usize, lba: u64) -> Result<(), String> {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.in_flight.insert((head, tag), Wish::Read { lba });
        self.checker.read_begins(lba, tag);
        let offset = lba * BLOCK as u64;
        if let Role::Head(found) = &mut self.nodes[head].role {
            found.submit(Request {
                tag,
                operation: Operation::Read {
                    offset,
                    length: 4096,
                },
            });
        }
        let before = self.outcome.reads_checked;
        let give_up = |world: &mut Self| {
            for node in 0..NODES {
                world.tell(node, "is stuck");
            }
            if let Role::Head(found) = &world.nodes[head].role {
                let copies = format!("{:?}", found.copies());
                world.told.push(copies);
            }
        };
        for _ in 0..QUIET_STEPS {
            self.quiet_step()?;
            if !self.in_flight.contains_key(&(head, tag)) {
                break;
            }
        }
        if self.outcome.reads_checked == before {
            give_up(self);
            return Err(format!("block {lba} cannot be read at the end"));
        }
        Ok(())
    }

    /// History: the present view equals what was just read, and views at any seq can be made.
    fn check_past(&mut self, head: usize) -> Result<(), String> {
        let Role::Head(found) = &mut self.nodes[head].role else {
            return Ok(());
        };
        let store = found.store_mut();
        let (horizon, applied) = (store.horizon_seq(), store.applied_seq());
        let view = store
            .view(applied)
            .map_err(|error| format!("view of {applied}: {error}"))?;
        for lba in 0..BLOCKS {
            if view.index.get(lba) != store.state().index.get(lba) {
                return Err(format!(
                    "block {lba}: the view of now differs from the index"
                ));
            }
        }
        for _ in 0..4 {
            let seq = horizon + self.prng.below(applied - horizon + 1);
            store
                .view(seq)
                .map_err(|error| format!("view of {seq}: {error}"))?;
            self.outcome.views_checked += 1;
        }
        Ok(())
    }

    fn wait_for_copies(&mut self, head: usize) -> Result<(), String> {
        for _ in 0..QUIET_STEPS {
            self.quiet_step()?;
            let Role::Head(found) = &self.nodes[head].role else {
                return Err("head gone".into());
            };
            let tail = found.store().tail().seq;
            if found.copies().iter().all(|copy| copy.durable_seq == tail) {
                return Ok(());
            }
        }
        let Role::Head(found) = &self.nodes[head].role else {
            return Err("head gone".into());
        };
        Err(format!(
            "copies do not catch up with {}: {:?}",
            found.store().tail().seq,
            found.copies()
        ))
    }

    /// Every copy holds one unbroken chain, the same everywhere.
    fn check_chains(&mut self, head: usize) -> Result<(), String> {
        let mut chains: Vec<Vec<[u8; 32]>> = Vec::new();
        for node in 0..NODES {
            let store = match &mut self.nodes[node].role {
                Role::Head(found) => found.store_mut(),
                Role::Replica(found) => found.store_mut(),
                Role::Down => return Err(format!("node {node} is down at the end")),
            };
            let mut chain = Vec::new();
            let (mut seq, mut previous) = (0, [0; 32]);
            loop {
                let bytes = store
                    .read_groups(seq, 1 << 20)
                    .map_err(|error| error.to_string())?;
                if bytes.is_empty() {
                    break;
                }
                let mut at = 0;
                while at < bytes.len() {
                    // Rotten payload keeps its header: the chain is of headers.
                    let group = nuage_journal::GroupHead::decode(&bytes[at..])
                        .map_err(|error| format!("node {node} after seq {seq}: {error}"))?;
                    if group.info.previous_chain != previous {
                        return Err(format!("node {node}: chain broken after seq {seq}"));
                    }
                    previous = group.chain;
                    seq = group.info.last_seq();
                    chain.push(previous);
                    at += group.info.total_blocks() as usize * BLOCK;
                }
            }
            chains.push(chain);
        }
        let odd = (0..NODES).find(|node| chains[*node] != chains[head]);
        odd.map_or(Ok(()), |node| {
            Err(format!("copy {node} differs from the head's"))
        })
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
