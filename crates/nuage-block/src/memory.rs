//! A volume in memory: for tests and measurements. It forgets everything with the process.

use crate::{BlockDevice, Completion, Extent, Failure, Geometry, Operation, Outcome, Request};
use std::collections::HashMap;

/// Granularity of its map.
const PAGE_BYTES: usize = 4096;
const QUEUE_DEPTH_MAX: usize = 1024;

/// A sparse volume whose requests complete inside `submit`.
#[derive(Debug)]
pub struct MemoryDevice {
    geometry: Geometry,
    pages: HashMap<u64, Box<[u8; PAGE_BYTES]>>,
    reservations: Vec<u8>,
    done: Vec<Completion>,
}

/// Split a byte range into page number, offset in the page and length.
fn pieces(offset: u64, length: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + length;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let page = at / PAGE_BYTES as u64;
        let inside = usize::try_from(at % PAGE_BYTES as u64).unwrap_or(0);
        let room = PAGE_BYTES - inside;
        let count = usize::try_from(end - at).unwrap_or(usize::MAX).min(room);
        at += count as u64;
        Some((page, inside, count))
    })
}

impl MemoryDevice {
    pub fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            pages: HashMap::new(),
            reservations: Vec::new(),
            done: Vec::new(),
        }
    }

    /// Bytes of pages that hold data.
    pub fn mapped_bytes(&self) -> u64 {
        self.pages.len() as u64 * PAGE_BYTES as u64
    }

    /// The volume is larger from now on.
    pub fn resize(&mut self, size_bytes: u64) {
        self.geometry.size_bytes = size_bytes;
    }

    fn read(&self, offset: u64, length: u64) -> Vec<u8> {
        let mut data = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        for (page, inside, count) in pieces(offset, length) {
            match self.pages.get(&page) {
                Some(bytes) => data.extend_from_slice(&bytes[inside..inside + count]),
                None => data.resize(data.len() + count, 0),
            }
        }
        data
    }

    fn write(&mut self, offset: u64, mut data: &[u8]) {
        for (page, inside, count) in pieces(offset, data.len() as u64) {
            let (now, rest) = data.split_at(count);
            let bytes = self
                .pages
                .entry(page)
                .or_insert_with(|| Box::new([0; PAGE_BYTES]));
            bytes[inside..inside + count].copy_from_slice(now);
            data = rest;
        }
    }

    fn zero(&mut self, offset: u64, length: u64) {
        for (page, inside, count) in pieces(offset, length) {
            if count == PAGE_BYTES {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                bytes[inside..inside + count].fill(0);
            }
        }
    }

    fn status(&self, offset: u64, length: u64) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = offset;
        for (page, _, count) in pieces(offset, length) {
            let mapped = self.pages.contains_key(&page);
            match extents.last_mut() {
                Some(last) if last.mapped == mapped => last.length += count as u64,
                _ => extents.push(Extent {
                    offset: at,
                    length: count as u64,
                    mapped,
                }),
            }
            at += count as u64;
        }
        extents
    }

    fn perform(&mut self, operation: Operation) -> Outcome {
        match operation {
            Operation::Read { offset, length } => {
                Outcome::Data(self.read(offset, u64::from(length)))
            }
            Operation::Write { offset, data, .. } => {
                self.write(offset, &data);
                Outcome::Done
            }
            Operation::Flush => Outcome::Done,
            Operation::Unmap { offset, length } | Operation::WriteZeroes { offset, length, .. } => {
                self.zero(offset, length);
                Outcome::Done
            }
            Operation::CompareAndWrite {
                offset,
                expected,
                data,
                ..
            } => {
                let found = self.read(offset, expected.len() as u64);
                let differs = found
                    .iter()
                    .zip(&expected)
                    .position(|(left, right)| left != right);
                if let Some(at) = differs {
                    return Outcome::Miscompare {
                        at: u32::try_from(at).unwrap_or(u32::MAX),
                    };
                }
                self.write(offset, &data);
                Outcome::Done
            }
            Operation::StoreReservations { state } => {
                self.reservations = state;
                Outcome::Done
            }
            Operation::LoadReservations => Outcome::Reservations(self.reservations.clone()),
            Operation::BlockStatus { offset, length } => {
                Outcome::Extents(self.status(offset, length))
            }
        }
    }
}

/// The range an operation touches and whether it changes it.
fn range(operation: &Operation) -> (u64, u64, bool) {
    match operation {
        Operation::Read { offset, length } => (*offset, u64::from(*length), false),
        Operation::BlockStatus { offset, length } => (*offset, *length, false),
        Operation::Write { offset, data, .. } | Operation::CompareAndWrite { offset, data, .. } => {
            (*offset, data.len() as u64, true)
        }
        Operation::Unmap { offset, length } | Operation::WriteZeroes { offset, length, .. } => {
            (*offset, *length, true)
        }
        Operation::Flush | Operation::StoreReservations { .. } | Operation::LoadReservations => {
            (0, 0, false)
        }
    }
}

impl BlockDevice for MemoryDevice {
    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    fn submit(&mut self, request: Request) {
        let (offset, length, changes) = range(&request.operation);
        let outcome = if offset
            .checked_add(length)
            .is_none_or(|end| end > self.geometry.size_bytes)
        {
            Outcome::Failed(Failure::OutOfRange)
        } else if changes && self.geometry.read_only {
            Outcome::Failed(Failure::ReadOnly)
        } else {
            self.perform(request.operation)
        };
        self.done.push(Completion {
            tag: request.tag,
            outcome,
        });
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        completions.append(&mut self.done);
    }

    fn queue_depth_max(&self) -> usize {
        QUEUE_DEPTH_MAX
    }
}
