//! The other copies of a head's volume.

use std::sync::Arc;

use nuage_journal::Group;

/// Other copies; see docs/protocols/replication.md.
pub struct Replicas {
    memory_seq: u64,
    durable_seq: u64,
}

impl Replicas {
    pub(crate) fn append(&mut self, group: Arc<Group>) {
        self.memory_seq = group.head.info.last_seq();
    }

    pub(crate) fn local_durable(&mut self, seq: u64) {
        self.durable_seq = seq;
    }

    pub(crate) fn memory_seq(&self) -> u64 {
        self.memory_seq
    }

    pub(crate) fn durable_seq(&self) -> u64 {
        self.durable_seq
    }
}
