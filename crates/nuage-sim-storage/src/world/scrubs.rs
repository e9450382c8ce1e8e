//! Copies that rot, and look themselves over.

use super::{NODES, Role, World, store_of};

/// Steps that a world at rest gets to mend what had rotted.
const MENDING_STEPS: u64 = 20_000;

/// A copy that has rotted since it was last found whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rotten {
    pub(super) node: usize,
    /// Since the pass that runs began: only the next one tells.
    since_pass: bool,
}

impl World {
    /// One copy at a time rots, while all have everything.
    pub(super) fn rot(&mut self, node: usize) {
        let other = self.rotten.is_some_and(|rotten| rotten.node != node);
        if other || !self.all_have_all() {
            return;
        }
        let starts = self.rots_starts && self.prng.one_in(2);
        if starts && self.prng.one_in(2) {
            self.close(node);
        }
        let mut rotted = 0;
        for _ in 0..=self.prng.below(12) {
            let mut medium = self.nodes[node].medium.borrow_mut();
            let is_hit = if starts {
                medium.rot_start()
            } else {
                medium.rot()
            };
            rotted += u64::from(is_hit);
        }
        if rotted == 0 {
            return;
        }
        self.outcome.rotted += rotted;
        self.rotten = Some(Rotten {
            node,
            since_pass: true,
        });
        self.tell(node, "rots");
    }

    /// A superblock rots, however the copies stand: there are two.
    pub(super) fn rot_superblock(&mut self, node: usize, one_in: u64) {
        if !self.rots_starts || !self.superblock_prng.one_in(one_in) {
            return;
        }
        let mut medium = self.nodes[node].medium.borrow_mut();
        let is_hit = medium.rot_superblock(&mut self.superblock_prng);
        drop(medium);
        if is_hit {
            self.outcome.rotted += 1;
            self.tell(node, "has a rotten superblock");
        }
    }

    /// A superblock that rots takes no promise back.
    pub(super) fn check_promise(&mut self, node: usize) -> Result<(), String> {
        let Some(store) = store_of(&mut self.nodes[node].role) else {
            return Ok(());
        };
        let (now, before) = (store.superblock().promised, self.promised[node]);
        self.promised[node] = now;
        if now < before {
            return Err(format!(
                "node {node} had promised {before:x} and knows of {now:x}"
            ));
        }
        Ok(())
    }

    /// A copy ends in good order: a checkpoint knows its last group.
    fn close(&mut self, node: usize) {
        match std::mem::replace(&mut self.nodes[node].role, Role::Down) {
            Role::Replica(replica) => {
                // A disk that fails in it leaves what a crash leaves.
                let _ = replica.hand_over().store.close();
                self.drop_links(|_, copy| copy == node);
                self.tell(node, "ends");
            }
            other => self.nodes[node].role = other,
        }
    }

    pub(super) fn begin_scrub(&mut self, node: usize) {
        let Some(store) = store_of(&mut self.nodes[node].role) else {
            return;
        };
        if store.is_scrubbing() {
            return;
        }
        store.begin_scrub(0);
        if let Some(rotten) = self.rotten.as_mut().filter(|rotten| rotten.node == node) {
            rotten.since_pass = false;
        }
    }

    /// A step of the pass that runs over a copy.
    pub(super) fn scrub(&mut self, node: usize) {
        let Some(store) = store_of(&mut self.nodes[node].role) else {
            return;
        };
        if store.is_scrubbing() {
            // A failure shows in the store.
            let Ok(step) = store.scrub_next() else { return };
            self.outcome.scrubs += u64::from(step.is_over);
            return;
        }
        let report = store.scrub_report();
        let clean = report.waiting == 0 && report.lost.is_empty();
        let whole = |rotten: &super::Rotten| rotten.node == node && !rotten.since_pass && clean;
        if self.rotten.as_ref().is_some_and(whole) {
            self.rotten = None;
        }
    }

    /// Look over every copy until nothing is damaged anywhere.
    pub(super) fn mend_all(&mut self) -> Result<(), String> {
        for node in 0..NODES {
            self.begin_scrub(node);
        }
        let mut left = String::new();
        for _ in 0..MENDING_STEPS {
            self.quiet_step()?;
            left.clear();
            for node in 0..NODES {
                let Some(store) = store_of(&mut self.nodes[node].role) else {
                    continue;
                };
                let report = store.scrub_report();
                let done = report.running.is_none() && report.waiting == 0;
                let has_superblocks = self.nodes[node].medium.borrow().has_superblocks();
                // A copy may remember more than the others: what rots there nobody else has.
                let lost = !report.lost.is_empty() && !self.forgets;
                if !done || lost || !report.lost_segments.is_empty() || !has_superblocks {
                    left = format!("node {node}: {report:?}, superblocks {has_superblocks}");
                }
            }
            let is_up = |node: &super::Node| !matches!(node.role, Role::Down);
            if left.is_empty() && self.nodes.iter().all(is_up) {
                return Ok(());
            }
        }
        Err(format!("damage is not mended: {left}"))
    }
}
