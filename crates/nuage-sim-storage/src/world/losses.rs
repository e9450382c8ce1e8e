//! Disks that are lost and replaced by empty ones.

use nuage_engine::{CopyState, CopyStatus, first_epoch};
use nuage_journal::{Store, Told};

use super::{Medium, Node, Role, SimDisk, World, spec};

impl World {
    /// Every copy has everything, and may vouch for it: one may lose some of it.
    pub(super) fn all_have_all(&self) -> bool {
        let is_whole = |node: &Node| match &node.role {
            Role::Head(head) => head.store().is_whole(),
            Role::Replica(replica) => replica.store().is_whole(),
            Role::Down => false,
        };
        if !self.nodes.iter().all(is_whole) {
            return false;
        }
        self.nodes.iter().any(|found| match &found.role {
            Role::Head(head) => {
                // What was acknowledged is durable somewhere: if all have the same, they all have that.
                let copies = head.copies();
                let durable_seq = copies[0].durable_seq;
                let has_all = |copy: &CopyStatus| {
                    copy.state == CopyState::Live && copy.durable_seq == durable_seq
                };
                head.is_serving() && copies.iter().all(has_all)
            }
            _ => false,
        })
    }

    /// A node gets an empty disk while all others have everything: its copy is made anew.
    pub(super) fn replace_disk(&mut self, node: usize) {
        // Not while another copy rots: what that one lacks may be on this disk alone.
        let rots = self.rotten.is_some_and(|rotten| rotten.node != node);
        if rots || !self.all_have_all() || !matches!(self.nodes[node].role, Role::Replica(_)) {
            return;
        }
        self.crash(node);
        let medium = Medium::new(self.prng.draw());
        let mut disk = SimDisk::new(&medium, self.prng.draw());
        Store::create_to_join(&mut disk, &spec(self.encrypted), first_epoch(self.term))
            .expect("a fresh disk");
        self.nodes[node].medium = medium;
        self.nodes[node].told = Told::default();
        self.promised[node] = 0;
        self.outcome.replaced += 1;
        self.rotten = self.rotten.filter(|rotten| rotten.node != node);
        self.start_replica(node);
    }
}
