//! How a run ends: everything heals, one head leads, and what must hold is checked.

use nuage_block::{Operation, Request};
use nuage_journal::{Cipher, Store, TailRule};

use super::{BLOCK, BLOCKS, NODES, Role, SimDisk, Wish, World};

/// Steps that a healed world gets to come to rest.
const QUIET_STEPS: u64 = 20_000;

/// Steps in which what was cut off comes back, before all is stopped and begun once more.
const CALM_STEPS: u64 = 50;

impl World {
    /// Heal everything, let one head lead, and check all that must hold.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        self.cut = [[false; NODES]; NODES];
        for node in &self.nodes {
            node.medium.borrow_mut().is_full = false;
        }
        self.tidy(); // who had no room looks again
        for _ in 0..CALM_STEPS {
            self.quiet_step()?;
        }
        for node in 0..NODES {
            let mut medium = self.nodes[node].medium.borrow_mut();
            (medium.fuse, medium.fail_next_write, medium.is_full) = (None, false, false);
            drop(medium);
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
        let head = self.elect()?;
        self.final_reads(head)?;
        self.check_past(head)?;
        self.wait_for_copies(head)?;
        // Where nothing rots, a pass over everything finds nothing: most worlds go without.
        if self.rots || self.prng.one_in(8) {
            self.mend_all()?;
        }
        self.check_chains(head)?;
        self.check_receipts(head)
    }

    /// Have a copy lead. One that was away for longer than history reaches steps down: then the next.
    fn elect(&mut self) -> Result<usize, String> {
        let first = self.prng.below(NODES as u64) as usize;
        for leader in (first..first + NODES).map(|node| node % NODES) {
            self.lead(leader);
            for _ in 0..QUIET_STEPS {
                match &self.nodes[leader].role {
                    Role::Head(head) if head.is_serving() => return Ok(leader),
                    Role::Head(_) => self.quiet_step()?,
                    _ => break,
                }
            }
            if !self.forgets {
                return Ok(leader); // what it lacks is told by the reads
            }
        }
        Err("no copy can lead".into())
    }

    pub(super) fn why_not(&mut self, node: usize) -> String {
        let disk = SimDisk::new(&self.nodes[node].medium, 1);
        let cipher = self.encrypted.then(|| Cipher::new(&[3; 32]));
        Store::open(disk, cipher, TailRule::OneOfSeveral)
            .err()
            .map_or_else(|| "now it does".to_owned(), |error| error.to_string())
    }

    pub(super) fn store(&mut self, node: usize) -> Result<&mut Store<SimDisk>, String> {
        match &mut self.nodes[node].role {
            Role::Head(found) => Ok(found.store_mut()),
            Role::Replica(found) => Ok(found.store_mut()),
            Role::Down => Err(format!("node {node} is down at the end")),
        }
    }

    pub(super) fn quiet_step(&mut self) -> Result<(), String> {
        self.clock.0.set(self.clock.0.get() + 5_000_000);
        self.quiet_steps += 1;
        if self.quiet_steps.is_multiple_of(200) {
            self.tidy(); // as daemons do each second
        }
        self.turn()
    }

    /// Read every block, all at once.
    fn final_reads(&mut self, head: usize) -> Result<(), String> {
        let before = self.outcome.reads_checked;
        for lba in 0..BLOCKS {
            let tag = self.next_tag;
            self.next_tag += 1;
            self.in_flight.insert((head, tag), Wish::Read { lba });
            self.checker.read_begins(lba, tag);
            let operation = Operation::Read {
                offset: lba * BLOCK as u64,
                length: BLOCK as u32,
            };
            if let Role::Head(found) = &mut self.nodes[head].role {
                found.submit(Request { tag, operation });
            }
        }
        for _ in 0..QUIET_STEPS {
            self.quiet_step()?;
            if !self.in_flight.keys().any(|(node, _)| *node == head) {
                break;
            }
        }
        if self.outcome.reads_checked < before + BLOCKS {
            for node in 0..NODES {
                self.tell(node, "is stuck");
            }
            if let Role::Head(found) = &self.nodes[head].role {
                let copies = format!("{:?}", found.copies());
                self.told.push(copies);
            }
            return Err("not every block can be read at the end".into());
        }
        Ok(())
    }

    pub(super) fn wait_for_copies(&mut self, head: usize) -> Result<(), String> {
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
    pub(super) fn check_chains(&mut self, head: usize) -> Result<(), String> {
        let mut chains: Vec<Vec<[u8; 32]>> = Vec::new();
        let mut begins = 0;
        let rots = self.rots;
        for node in 0..NODES {
            begins = begins.max(self.store(node)?.horizon_seq());
        }
        for node in 0..NODES {
            let store = self.store(node)?;
            let mut chain = Vec::new();
            let begin = store.chain_at(begins).map_err(|error| error.to_string())?;
            let Some(begin) = begin else {
                return Err(format!("node {node} has no end of a group at {begins}"));
            };
            let (mut seq, mut previous) = (begins, begin);
            chain.push(begin);
            loop {
                let bytes = store
                    .read_groups(seq, 1 << 20)
                    .map_err(|error| error.to_string())?;
                if bytes.is_empty() {
                    break;
                }
                let mut at = 0;
                while at < bytes.len() {
                    // What had rotted is mended: header and payload.
                    let group = if rots {
                        nuage_journal::Group::decode(&bytes[at..]).map(|group| group.head)
                    } else {
                        nuage_journal::GroupHead::decode(&bytes[at..]).map(Into::into)
                    };
                    let group =
                        group.map_err(|error| format!("node {node} after seq {seq}: {error}"))?;
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
