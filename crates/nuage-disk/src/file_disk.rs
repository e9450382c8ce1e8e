//! The disk port on a directory of files.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use nuage_block::Pages;
use nuage_journal::{Content, Disk, DiskError, DiskOperation, DiskResult, FileId, Piece};

use crate::directory::{Directory, prepare, replace};
use crate::ring::Ring;
use crate::threads::{Bell, Reading, Threads, Work};

/// Threads that stand in for a ring: reads at depth, and the one commit in flight.
const THREADS_WITHOUT_RING: usize = 8;

/// Threads for large reads in many places, while others are under way.
const SCATTER_THREADS: usize = 2;
/// A read of as many bytes in as many pieces and more takes its time: the ring would copy one piece after the other while
/// the engine's thread stands in its submission, and a kernel's worker for each piece would cost more than the piece.
const SCATTERED_BYTES: usize = 512 * 1024;
const SCATTERED_PIECES: usize = 16;

/// How reads and writes are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// io_uring, or threads where it is forbidden.
    Best,
    Threads,
}

/// A directory of files behind [`Disk`].
pub struct FileDisk {
    // Dropped first: both wait for what is in progress before the files close.
    threads: Threads,
    scatter: Threads,
    /// Scattered reads whose results have not been taken, by token: the first of several is the ring's.
    scattered: HashSet<u64>,
    ring: Option<Ring>,
    directory: Directory,
    bell: Arc<Bell>,
    failed: Vec<DiskResult>,
}

impl FileDisk {
    /// Open `path`, making the directory when it is absent.
    pub fn open(path: &Path, method: Method) -> Result<Self, DiskError> {
        Self::with(Directory::open(path)?, method)
    }

    /// Without what lies on the larger medium, which may be lost: for who reads the log alone.
    pub fn open_alone(path: &Path) -> Result<Self, DiskError> {
        Self::with(Directory::alone(path), Method::Threads)
    }

    fn with(directory: Directory, method: Method) -> Result<Self, DiskError> {
        let path = directory.path();
        let bell = Arc::new(Bell::new()?);
        let ring = match method {
            Method::Best => Ring::new(bell.fd()).ok(),
            Method::Threads => None,
        };
        let count = if ring.is_some() {
            1
        } else {
            THREADS_WITHOUT_RING
        };
        let threads = Threads::new(path, count, Arc::clone(&bell));
        let scatter = Threads::new(path, SCATTER_THREADS, Arc::clone(&bell));
        Ok(Self {
            directory,
            ring,
            threads,
            scatter,
            scattered: HashSet::new(),
            bell,
            failed: Vec::new(),
        })
    }

    pub fn has_ring(&self) -> bool {
        self.ring.is_some()
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The pieces with their descriptors, or a handle that is not open.
    fn reading(&self, pieces: &[Piece], buffer: Vec<u8>) -> Result<Reading, FileId> {
        let filled_bytes = filled_bytes(pieces, buffer.len());
        assert!(
            filled_bytes <= buffer.capacity(),
            "a piece lies in its buffer"
        );
        let mut runs = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let fd = self.directory.cached_fd(piece.file).ok_or(piece.file)?;
            runs.push((fd, *piece));
        }
        let name = pieces
            .first()
            .map(|piece| self.directory.name_of(piece.file));
        Ok(Reading {
            runs,
            buffer,
            filled_bytes,
            name: name.unwrap_or_default(),
        })
    }
}

/// Where a buffer of `length` bytes ends once the pieces have come.
fn filled_bytes(pieces: &[Piece], length: usize) -> usize {
    let ends = |piece: &Piece| piece.at + piece.length;
    let mut past: Vec<&Piece> = pieces.iter().filter(|piece| ends(piece) > length).collect();
    past.sort_unstable_by_key(|piece| piece.at);
    past.into_iter().fold(length, |end, piece| {
        assert!(
            piece.at <= end,
            "pieces past a buffer's length leave no gap"
        );
        end.max(ends(piece))
    })
}

fn is_scattered(pieces: &[Piece]) -> bool {
    let bytes: usize = pieces.iter().map(|piece| piece.length).sum();
    pieces.len() >= SCATTERED_PIECES && bytes >= SCATTERED_BYTES
}

fn whole(data: &[u8]) -> Content {
    let data = data.to_vec();
    Box::new(move |write| write(&data))
}

impl Disk for FileDisk {
    fn submit(&mut self, token: u64, operation: DiskOperation) {
        let missing = |file: FileId| DiskResult {
            token,
            outcome: Err(DiskError::NotFound {
                name: format!("handle {file}"),
            }),
        };
        match operation {
            DiskOperation::Read { pieces, buffer } => match self.reading(&pieces, buffer) {
                Err(file) => self.failed.push(missing(file)),
                Ok(read) => match &mut self.ring {
                    Some(ring) if !is_scattered(&pieces) => ring.read(token, read),
                    Some(ring) => {
                        if self.scattered.is_empty() {
                            ring.read(token, read);
                        } else {
                            self.scatter.submit(token, Work::Read(read));
                        }
                        self.scattered.insert(token);
                    }
                    None => self.threads.submit(token, Work::Read(read)),
                },
            },
            DiskOperation::Write {
                file,
                offset,
                buffers,
            } => {
                let name = self.directory.name_of(file);
                match (self.directory.direct_fd(file), &mut self.ring) {
                    (None, _) => self.failed.push(missing(file)),
                    (Some(fd), Some(ring)) => ring.write(token, fd, name, offset, buffers),
                    (Some(fd), None) => {
                        self.threads.submit(
                            token,
                            Work::Write {
                                fd,
                                name,
                                offset,
                                buffers,
                            },
                        );
                    }
                }
            }
            DiskOperation::Prepare {
                name,
                size_bytes,
                written,
            } => {
                let work = Work::Prepare {
                    name,
                    size_bytes,
                    written,
                };
                self.threads.submit(token, work);
            }
            DiskOperation::Replace { name, content } => {
                self.threads.submit(token, Work::Replace { name, content });
            }
        }
    }

    fn poll(&mut self, results: &mut Vec<DiskResult>) {
        let before = results.len();
        results.append(&mut self.failed);
        let rung = self.ring.as_mut().is_none_or(|ring| ring.poll(results));
        if rung {
            self.bell.clear();
            if let Some(ring) = &mut self.ring {
                ring.rearm();
            }
            self.threads.poll(results);
            self.scatter.poll(results);
        }
        if !self.scattered.is_empty() {
            for result in &results[before..] {
                self.scattered.remove(&result.token);
            }
        }
    }

    fn wake_fd(&self) -> Option<i32> {
        Some(self.ring.as_ref().map_or_else(|| self.bell.fd(), Ring::fd))
    }

    fn list_now(&mut self) -> Result<Vec<String>, DiskError> {
        self.directory.list()
    }

    fn open_now(&mut self, name: &str) -> Result<FileId, DiskError> {
        self.directory.open_file(name)
    }

    fn close(&mut self, file: FileId) {
        self.directory.close(file);
    }

    fn read_now(&mut self, file: FileId, offset: u64, length: usize) -> Result<Vec<u8>, DiskError> {
        self.directory.read(file, offset, length)
    }

    fn write_now(&mut self, file: FileId, offset: u64, data: &Pages) -> Result<(), DiskError> {
        self.directory.write(file, offset, data)
    }

    fn load_now(&mut self, name: &str) -> Result<Vec<u8>, DiskError> {
        self.directory.load(name)
    }

    fn replace_now(&mut self, name: &str, data: &[u8]) -> Result<(), DiskError> {
        replace(self.directory.path(), name, &whole(data))
    }

    fn prepare_now(&mut self, name: &str, size_bytes: u64) -> Result<(), DiskError> {
        prepare(self.directory.path(), name, size_bytes, true)
    }

    fn prepare_base_now(&mut self, name: &str, size_bytes: u64) -> Result<bool, DiskError> {
        self.directory.prepare_base(name, size_bytes)
    }

    fn remove_now(&mut self, name: &str) -> Result<(), DiskError> {
        self.directory.remove(name)
    }

    fn is_shared(&mut self, file: FileId) -> bool {
        self.directory.is_shared(file)
    }

    fn is_base(&self, file: FileId) -> bool {
        self.directory.is_base(file)
    }

    fn free_bytes(&mut self) -> Result<u64, DiskError> {
        self.directory.free_bytes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use nuage_journal::BLOCK_BYTES;

    #[test]
    fn scattered_reads_at_once_take_threads_and_one_alone_takes_none() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..=250).cycle().take(SCATTERED_BYTES).collect();
        std::fs::write(folder.path().join("places"), &bytes).unwrap();
        let mut disk = FileDisk::open(folder.path(), Method::Best).unwrap();
        if !disk.has_ring() {
            return; // all reads are threads' work
        }
        let file = disk.open_now("places").unwrap();
        // The first block lies last: no two neighbours.
        let last = SCATTERED_BYTES - BLOCK_BYTES;
        let places = (0..SCATTERED_BYTES).step_by(BLOCK_BYTES);
        let pieces: Vec<Piece> = places
            .map(|at| Piece {
                file,
                offset: u64::try_from(last - at).unwrap(),
                length: BLOCK_BYTES,
                at,
            })
            .collect();
        let wanted: Vec<u8> = bytes.rchunks(BLOCK_BYTES).flatten().copied().collect();
        let read = |disk: &mut FileDisk, tokens: std::ops::Range<u64>| {
            for token in tokens.clone() {
                let buffer = Vec::with_capacity(SCATTERED_BYTES);
                let pieces = pieces.clone();
                disk.submit(token, DiskOperation::Read { pieces, buffer });
            }
            let mut results = Vec::new();
            while results.len() < tokens.clone().count() {
                disk.poll(&mut results);
            }
            for result in results {
                assert_eq!(result.outcome.unwrap(), wanted);
            }
            assert!(disk.scattered.is_empty());
        };
        read(&mut disk, 1..2);
        read(&mut disk, 2..3);
        assert!(!disk.scatter.have_begun());
        read(&mut disk, 3..9);
        assert!(disk.scatter.have_begun());
    }
}
