//! When checkpoints are written, and the anchors of history that they become.

use super::{Anchor, Purpose, Store};
use crate::checkpoint::{Checkpoint, checkpoint_name};
use crate::disk::{Disk, DiskError, DiskOperation};

impl<D: Disk> Store<D> {
    pub(super) fn checkpoint_when_due(&mut self) {
        let size = self.state.index.mapped() * 8;
        let floor = (64 << 20).min(4 * u64::from(self.superblock.segment_bytes));
        if self.log_bytes_since_checkpoint >= (8 * size).max(floor) && self.unpinned_due() {
            self.checkpoint(false);
        }
    }

    fn unpinned_due(&self) -> bool {
        self.failed.is_none()
            && !self.checkpoint_running
            && self
                .anchors
                .last()
                .is_none_or(|anchor| anchor.position.seq < self.applied_seq())
    }

    /// Write a checkpoint of the applied state in the background.
    pub fn checkpoint(&mut self, pinned: bool) {
        if self.failed.is_some() {
            return;
        }
        self.checkpoint_running = true;
        self.log_bytes_since_checkpoint = 0;
        let checkpoint = self.checkpoint_value(pinned);
        let name = checkpoint_name(checkpoint.position.seq);
        let content = checkpoint.content();
        self.submit(
            Purpose::Checkpoint(Box::new(checkpoint)),
            DiskOperation::Replace { name, content },
        );
    }

    pub(crate) fn checkpoint_value(&self, pinned: bool) -> Checkpoint {
        Checkpoint {
            volume: self.superblock.volume,
            size_bytes: self.state.size_bytes,
            position: self.state.position,
            pinned,
            side: self.state.side.clone(),
            index: self.state.index.clone(),
            life: self.life,
        }
    }

    pub(super) fn finish_checkpoint(
        &mut self,
        checkpoint: &Checkpoint,
        outcome: Result<Vec<u8>, DiskError>,
    ) {
        self.checkpoint_running = false;
        match outcome {
            Ok(_) => self.add_anchor(checkpoint),
            // Without a checkpoint the log is only longer; the next one may find space again.
            Err(DiskError::NoSpace) => self.no_space = true,
            Err(error) => {
                self.fail(error.into());
            }
        }
    }

    pub(crate) fn add_anchor(&mut self, checkpoint: &Checkpoint) {
        let anchor = Anchor {
            position: checkpoint.position,
            pinned: checkpoint.pinned,
        };
        match self
            .anchors
            .binary_search_by_key(&anchor.position.seq, |a| a.position.seq)
        {
            Ok(at) => self.anchors[at].pinned |= anchor.pinned,
            Err(at) => self.anchors.insert(at, anchor),
        }
    }
}
