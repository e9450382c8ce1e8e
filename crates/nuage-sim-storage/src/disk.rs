//! A disk that loses, tears and rots, with the journal's port in front.
//!
//! A queued write is not on the medium before it completes; a crash leaves any subset of its 512-byte
//! sectors. A blocking call reaches the medium at once, unless the fuse burns down in it: then it is torn
//! like a queued one and the disk answers nothing more, as if power had gone in the middle.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use nuage_block::Pages;
use nuage_journal::{BLOCK_BYTES, Disk, DiskError, DiskOperation, DiskResult, FileId, Superblock};

use crate::prng::Prng;

const SECTOR_BYTES: usize = 512;
const SUPERBLOCKS: [&str; 2] = ["super.a", "super.b"];
const SEGMENT_MAGIC: &[u8] = b"NUAGSEG1";
const SEAL_MAGIC: &[u8] = b"NUAGSEAL";
const GROUP_MAGIC: &[u8] = b"NUAGGRP1";

/// What of a segment is kept twice: only one of these is hit in each.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    First,
    Headers,
    Footer,
}

/// The medium: it stays when a node crashes.
pub struct Medium {
    files: BTreeMap<String, Vec<u8>>,
    prng: Prng,
    /// Mutations until power goes, when set.
    pub fuse: Option<u64>,
    /// The next write fails once.
    pub fail_next_write: bool,
    /// Nothing new fits.
    pub is_full: bool,
    /// Segments, by file and id, of which a part was hit that is kept twice.
    rotten: HashMap<(String, u64), Part>,
    dead: bool,
}

impl Medium {
    pub fn new(seed: u64) -> Rc<RefCell<Self>> {
        Self::with_files(seed, BTreeMap::new())
    }

    /// A medium that others wrote.
    pub fn with_files(seed: u64, files: BTreeMap<String, Vec<u8>>) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            files,
            prng: Prng::new(seed),
            fuse: None,
            fail_next_write: false,
            is_full: false,
            rotten: HashMap::new(),
            dead: false,
        }))
    }

    pub fn files(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.files
    }

    pub fn is_dead(&self) -> bool {
        self.dead
    }

    /// True when this mutation is the one in which power goes.
    fn burn(&mut self) -> bool {
        if let Some(fuse) = &mut self.fuse {
            *fuse = fuse.saturating_sub(1);
            if *fuse == 0 {
                self.fuse = None;
                self.dead = true;
                return true;
            }
        }
        false
    }

    fn write(&mut self, name: &str, offset: u64, data: &[u8], torn: bool) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let Some(file) = self.files.get_mut(name) else {
            return;
        };
        let Some(target) = file.get_mut(start..start + data.len()) else {
            return;
        };
        if !torn {
            target.copy_from_slice(data);
            return;
        }
        for (target, sector) in target
            .chunks_mut(SECTOR_BYTES)
            .zip(data.chunks(SECTOR_BYTES))
        {
            if !self.prng.one_in(2) {
                target.copy_from_slice(sector);
            }
        }
    }

    /// What lies here, by the first blocks of the files alone: segment, last seq and chain of each sealed one.
    pub fn sealed(&self) -> BTreeMap<u64, (u64, [u8; 32])> {
        let sealed = self.files.iter().filter_map(|(name, bytes)| {
            let is_sealed = name.starts_with("seg.") && is_in_use(bytes) && is_sealed(bytes);
            let seal = bytes.get(512..512 + 80)?;
            let chain = seal[48..80].try_into().ok()?;
            is_sealed.then(|| (long(bytes, 32), (long(seal, 24), chain)))
        });
        sealed.collect()
    }

    /// Damage a block of a sealed segment, as rot does, a misdirected write or one that was lost; false when
    /// there is none. Of what is kept twice in a segment only one is hit.
    pub fn rot(&mut self) -> bool {
        let Some(name) = self.pick(is_sealed) else {
            return false;
        };
        let blocks = (self.files[&name].len() / BLOCK_BYTES) as u64;
        let block = size(1 + self.prng.below(blocks - 1));
        self.rot_block(&name, block)
    }

    /// The same of a first block, or of what lies in a segment without a seal up to where a checkpoint says that all
    /// had been durable.
    pub fn rot_start(&mut self) -> bool {
        if self.prng.one_in(3) {
            let name = self.pick(is_in_use);
            return name.is_some_and(|name| self.rot_block(&name, 0));
        }
        let checkpoints = self.files.keys().filter_map(|name| {
            let seq = name.strip_prefix("checkpoint.")?;
            u64::from_str_radix(seq, 16).ok()
        });
        let known_seq = checkpoints.max().unwrap_or(0);
        let Some(name) = self.pick(|bytes| is_in_use(bytes) && !is_sealed(bytes)) else {
            return false;
        };
        let end = end_of_groups(&self.files[&name], known_seq);
        let last = end > 1 && self.prng.one_in(3);
        let block = match end {
            0..=1 => return false,
            _ if last => end - 1,
            _ => size(1 + self.prng.below(end as u64 - 1)),
        };
        self.rot_block(&name, block)
    }

    /// Damage one of the two superblocks, or lose its file, while both are there.
    pub fn rot_superblock(&mut self, prng: &mut Prng) -> bool {
        if !self.has_superblocks() {
            return false;
        }
        let name = SUPERBLOCKS[size(prng.below(2))];
        match (prng.below(4), self.files.get_mut(name)) {
            (0, Some(bytes)) => bytes[77] ^= 4,
            (1, Some(bytes)) => bytes.fill(0),
            (2, Some(bytes)) => bytes.truncate(SECTOR_BYTES / 8),
            _ => {
                self.files.remove(name);
            }
        }
        true
    }

    /// Both superblocks are there and can be read.
    pub fn has_superblocks(&self) -> bool {
        let found = SUPERBLOCKS.iter().filter_map(|name| self.files.get(*name));
        found
            .filter(|bytes| Superblock::decode(bytes).is_ok())
            .count()
            == SUPERBLOCKS.len()
    }

    /// A segment of a kind.
    fn pick(&mut self, is_wanted: impl Fn(&[u8]) -> bool) -> Option<String> {
        let found = |(name, bytes): &(&String, &Vec<u8>)| {
            name.starts_with("seg.") && bytes.len() > BLOCK_BYTES && is_wanted(bytes)
        };
        let files = self.files.iter().filter(found);
        let mut names: Vec<String> = files.map(|(name, _)| name.clone()).collect();
        if names.is_empty() {
            return None;
        }
        let at = size(self.prng.below(names.len() as u64));
        Some(names.swap_remove(at))
    }

    fn rot_block(&mut self, name: &str, block: usize) -> bool {
        let Some(bytes) = self.files.get_mut(name) else {
            return false;
        };
        let at = block * BLOCK_BYTES;
        let footer = word(bytes, 512 + 84) as usize;
        let footer_end = footer + word(bytes, 512 + 88) as usize;
        let part = if block == 0 {
            Some(Part::First)
        } else if is_sealed(bytes) && (footer..footer_end).contains(&at) {
            Some(Part::Footer)
        } else {
            bytes[at..]
                .starts_with(GROUP_MAGIC)
                .then_some(Part::Headers)
        };
        if let Some(part) = part {
            let segment = (name.to_owned(), long(bytes, 32));
            if self.rotten.get(&segment).is_some_and(|hit| *hit != part) {
                return false;
            }
            self.rotten.insert(segment, part);
        }
        match self.prng.below(3) {
            0 => bytes[at + 77] ^= 4,
            1 => bytes[at..at + BLOCK_BYTES].fill(0),
            _ => {
                let blocks = (bytes.len() / BLOCK_BYTES) as u64;
                let from = size(1 + self.prng.below(blocks - 1)) * BLOCK_BYTES;
                bytes.copy_within(from..from + BLOCK_BYTES, at);
            }
        }
        true
    }
}

fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(0)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes)
}

fn is_in_use(bytes: &[u8]) -> bool {
    bytes.starts_with(SEGMENT_MAGIC)
}

fn is_sealed(bytes: &[u8]) -> bool {
    bytes[512..].starts_with(SEAL_MAGIC) && long(bytes, 520) == long(bytes, 32)
}

/// The block behind the groups of a segment of which nothing lies past `known_seq`.
fn end_of_groups(bytes: &[u8], known_seq: u64) -> usize {
    let mut end = 1;
    while let Some(head) = bytes.get(end * BLOCK_BYTES..) {
        let is_group = head.starts_with(GROUP_MAGIC) && long(head, 32) == long(bytes, 32);
        if !is_group || long(head, 48) + u64::from(word(head, 56)) > known_seq + 1 {
            break;
        }
        let header_blocks = (word(head, 12) as usize).div_ceil(BLOCK_BYTES);
        end += header_blocks + word(head, 60) as usize;
    }
    end
}

struct Queued {
    token: u64,
    operation: DiskOperation,
}

/// One life of a node's disk: handles and queue go with a crash.
pub struct SimDisk {
    medium: Rc<RefCell<Medium>>,
    handles: HashMap<FileId, String>,
    next: FileId,
    queue: Vec<Queued>,
    prng: Prng,
}

impl SimDisk {
    pub fn new(medium: &Rc<RefCell<Medium>>, seed: u64) -> Self {
        Self {
            medium: Rc::clone(medium),
            handles: HashMap::new(),
            next: 1,
            queue: Vec::new(),
            prng: Prng::new(seed),
        }
    }

    fn name(&self, file: FileId) -> Result<String, DiskError> {
        let missing = || DiskError::NotFound {
            name: format!("handle {file}"),
        };
        self.handles.get(&file).cloned().ok_or_else(missing)
    }

    fn power(&self) -> Result<(), DiskError> {
        if self.medium.borrow().dead {
            return Err(DiskError::Io {
                operation: "any",
                name: String::new(),
                reason: "power is gone".into(),
            });
        }
        Ok(())
    }

    fn perform(&mut self, operation: DiskOperation) -> Result<Vec<u8>, DiskError> {
        self.power()?;
        match operation {
            DiskOperation::Read { pieces, mut buffer } => {
                for piece in pieces {
                    let bytes = self.read_now(piece.file, piece.offset, piece.length)?;
                    let end = piece.at + piece.length;
                    if buffer.len() < end {
                        buffer.resize(end, 0);
                    }
                    buffer[piece.at..end].copy_from_slice(&bytes);
                }
                Ok(buffer)
            }
            DiskOperation::Write {
                file,
                offset,
                buffers,
            } => {
                let failing = std::mem::take(&mut self.medium.borrow_mut().fail_next_write);
                if failing {
                    return Err(DiskError::Io {
                        operation: "write",
                        name: self.name(file)?,
                        reason: "EIO".into(),
                    });
                }
                let mut at = offset;
                for buffer in buffers {
                    self.write_now(file, at, &buffer)?;
                    at += buffer.len() as u64;
                }
                Ok(Vec::new())
            }
            DiskOperation::Prepare {
                name, size_bytes, ..
            } => self.prepare_now(&name, size_bytes).map(|()| Vec::new()),
            DiskOperation::Replace { name, content } => {
                let mut bytes = Vec::new();
                content(&mut |part| bytes.extend_from_slice(part));
                self.replace_now(&name, &bytes).map(|()| Vec::new())
            }
        }
    }
}

impl Drop for SimDisk {
    /// The node is gone: what was queued may have reached the medium in part, in any order.
    fn drop(&mut self) {
        let queue = std::mem::take(&mut self.queue);
        for queued in queue {
            if let DiskOperation::Write {
                file,
                offset,
                buffers,
            } = queued.operation
                && let Ok(name) = self.name(file)
                && self.prng.one_in(2)
            {
                let mut at = offset;
                for buffer in buffers {
                    self.medium.borrow_mut().write(&name, at, &buffer, true);
                    at += buffer.len() as u64;
                }
            }
        }
        let mut medium = self.medium.borrow_mut();
        medium.dead = false;
        medium.fuse = None;
    }
}

impl Disk for SimDisk {
    fn submit(&mut self, token: u64, operation: DiskOperation) {
        self.queue.push(Queued { token, operation });
    }

    fn poll(&mut self, results: &mut Vec<DiskResult>) {
        let count = self.queue.len();
        for _ in 0..count {
            if self.queue.is_empty() || self.prng.one_in(4) {
                return;
            }
            let pick = self.prng.below(self.queue.len() as u64);
            let queued = self.queue.swap_remove(usize::try_from(pick).unwrap_or(0));
            let outcome = self.perform(queued.operation);
            results.push(DiskResult {
                token: queued.token,
                outcome,
            });
        }
    }

    fn wake_fd(&self) -> Option<i32> {
        None
    }

    fn list_now(&mut self) -> Result<Vec<String>, DiskError> {
        self.power()?;
        Ok(self.medium.borrow().files.keys().cloned().collect())
    }

    fn open_now(&mut self, name: &str) -> Result<FileId, DiskError> {
        self.power()?;
        if !self.medium.borrow().files.contains_key(name) {
            return Err(DiskError::NotFound {
                name: name.to_owned(),
            });
        }
        let id = self.next;
        self.next += 1;
        self.handles.insert(id, name.to_owned());
        Ok(id)
    }

    fn close(&mut self, file: FileId) {
        self.handles.remove(&file);
    }

    fn read_now(&mut self, file: FileId, offset: u64, length: usize) -> Result<Vec<u8>, DiskError> {
        self.power()?;
        let name = self.name(file)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let medium = self.medium.borrow();
        let bytes = medium
            .files
            .get(&name)
            .and_then(|bytes| bytes.get(start..start + length));
        bytes.map(<[u8]>::to_vec).ok_or(DiskError::Short {
            name,
            wrote: 0,
            wanted: length,
        })
    }

    fn write_now(&mut self, file: FileId, offset: u64, data: &Pages) -> Result<(), DiskError> {
        self.power()?;
        let name = self.name(file)?;
        let torn = self.medium.borrow_mut().burn();
        self.medium.borrow_mut().write(&name, offset, data, torn);
        self.power()
    }

    fn load_now(&mut self, name: &str) -> Result<Vec<u8>, DiskError> {
        self.power()?;
        let medium = self.medium.borrow();
        let missing = || DiskError::NotFound {
            name: name.to_owned(),
        };
        medium.files.get(name).cloned().ok_or_else(missing)
    }

    fn replace_now(&mut self, name: &str, data: &[u8]) -> Result<(), DiskError> {
        self.power()?;
        let mut medium = self.medium.borrow_mut();
        if medium.is_full && !name.starts_with("super.") {
            return Err(DiskError::NoSpace);
        }
        // The rename is atomic: all or nothing.
        let lost = medium.burn() && medium.prng.one_in(2);
        if lost {
            medium
                .files
                .insert(format!("{name}.tmp"), data[..data.len() / 2].to_vec());
        } else {
            medium.files.insert(name.to_owned(), data.to_vec());
        }
        drop(medium);
        self.power()
    }

    fn prepare_now(&mut self, name: &str, size_bytes: u64) -> Result<(), DiskError> {
        self.power()?;
        let mut medium = self.medium.borrow_mut();
        if medium.is_full {
            return Err(DiskError::NoSpace);
        }
        let size = usize::try_from(size_bytes).unwrap_or(usize::MAX);
        let size = if medium.burn() { size / 2 } else { size };
        medium.files.insert(name.to_owned(), vec![0; size]);
        drop(medium);
        self.power()
    }

    fn remove_now(&mut self, name: &str) -> Result<(), DiskError> {
        self.power()?;
        self.medium.borrow_mut().files.remove(name);
        Ok(())
    }

    fn free_bytes(&mut self) -> Result<u64, DiskError> {
        Ok(if self.medium.borrow().is_full {
            0
        } else {
            1 << 40
        })
    }
}
