//! Records that the administrator asks for: marks, snapshots, rollbacks, growth.

use nuage_journal::{Disk, JournalError, Kind, Point};

use super::{BLOCK, HeadEvent, VolumeHead};

/// A record asked for by the administrator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Administration {
    Mark { id: u64, name: String },
    Snapshot { id: u64, name: String },
    Rollback(Point),
    Resize { size_bytes: u64 },
}

impl<D: Disk> VolumeHead<D> {
    /// Ask for an administrative record; `HeadEvent::Administered` answers.
    pub fn administer(&mut self, tag: u64, administration: Administration) {
        self.administrations.push_back((tag, administration));
    }

    /// Administrative records stand alone: all before is applied first, nothing is begun meanwhile.
    pub(super) fn start_administration(&mut self) {
        let Some((tag, administration)) = self.administrations.front().cloned() else {
            return;
        };
        let quiet = self.is_serving()
            && self.locks.is_empty()
            && self.administered.is_empty()
            && self.builder.is_empty()
            && self.store.applied_seq() == self.store.tail().seq;
        if !quiet && self.stopped.is_none() {
            return;
        }
        self.administrations.pop_front();
        let outcome = match self.stopped {
            Some(_) => Err(JournalError::Stopped),
            None => self.append_administration(administration),
        };
        match outcome {
            Ok(seq) => self.administered.push_back((tag, seq)),
            Err(error) => {
                self.events.push(HeadEvent::Administered {
                    tag,
                    outcome: Err(error),
                });
            }
        }
    }

    pub(super) fn append_administration(
        &mut self,
        wish: Administration,
    ) -> Result<u64, JournalError> {
        let seq = match wish {
            Administration::Mark { id, name } => {
                self.builder
                    .push_plain(Kind::Mark, 0, 0, id, clip(&name).as_bytes())
            }
            Administration::Snapshot { id, name } => {
                self.builder
                    .push_plain(Kind::Snapshot, 0, 0, id, clip(&name).as_bytes())
            }
            Administration::Rollback(point) => {
                let seq = self.store.resolve(point)?;
                self.builder.push_plain(Kind::Rollback, 0, 0, seq, &[])
            }
            Administration::Resize { size_bytes } => {
                if size_bytes < self.size_bytes || size_bytes % BLOCK != 0 {
                    return Err(JournalError::Malformed {
                        what: "size",
                        reason: "volumes grow",
                    });
                }
                self.builder.push_plain(Kind::Resize, 0, 0, size_bytes, &[])
            }
        };
        self.close_group()?;
        Ok(seq)
    }
}

pub(super) fn clip(name: &str) -> &str {
    let mut end = name.len().min(255);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}
