//! Reads and durable writes on an io_uring.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};
use nuage_block::Pages;
use nuage_journal::{DiskError, DiskResult};

use crate::directory::io_error;
use crate::threads::Reading;

/// Operations in the ring at once; more wait here. The completion queue holds twice as many, so it
/// never overflows: what the kernel sets aside then is given out only to one who enters again.
const RING_ENTRIES: u32 = 256;
/// A piece of as many bytes is copied from the page cache by a worker of the kernel's while another one is under way:
/// several large reads take several processors. One alone is copied by whoever asks, and so are smaller ones: waking
/// a worker would cost them more than it gains.
const LARGE_PIECE_BYTES: usize = 512 * 1024;
/// User data of the poll on the threads' bell; tokens of the engine start at 1.
const BELL_TOKEN: u64 = 0;

struct InFlight {
    operation: &'static str,
    name: Arc<str>,
    /// Bytes that have come of those wanted, and entries that have not completed.
    done: usize,
    wanted: usize,
    entries: usize,
    large_pieces: usize,
    failed: Option<DiskError>,
    /// The sync behind a write that was short, or failed, was not done.
    canceled: bool,
    /// What a read fills; like the others kept alive and in place until the kernel is done with it.
    buffer: Vec<u8>,
    /// The buffer's length then.
    filled_bytes: usize,
    _buffers: Vec<Pages>,
    _vectors: Box<[libc::iovec]>,
}

impl InFlight {
    fn completed(&mut self, result: i32) {
        self.entries -= 1;
        if let Ok(count) = usize::try_from(result) {
            self.done += count;
        } else if result == -libc::ECANCELED {
            self.canceled = true;
        } else if self.failed.is_none() {
            let error = std::io::Error::from_raw_os_error(-result);
            self.failed = Some(io_error(self.operation, &self.name, &error));
        }
    }

    fn outcome(mut self) -> Result<Vec<u8>, DiskError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        // No entry moves more than it was asked to: the sum is whole only when each of them is.
        if self.done != self.wanted {
            return Err(DiskError::Short {
                name: self.name.to_string(),
                wrote: self.done,
                wanted: self.wanted,
            });
        }
        if self.canceled {
            let error = std::io::Error::from_raw_os_error(libc::ECANCELED);
            return Err(io_error(self.operation, &self.name, &error));
        }
        // SAFETY: all pieces have been read whole; a write fills nothing.
        unsafe { self.buffer.set_len(self.filled_bytes) };
        Ok(self.buffer)
    }
}

/// An entry that is not in the ring yet. One that is linked goes together with the next: a link that is
/// cut by a submission orders nothing.
struct Waiting {
    entry: squeue::Entry,
    linked: bool,
}

impl From<squeue::Entry> for Waiting {
    fn from(entry: squeue::Entry) -> Self {
        Self {
            entry,
            linked: false,
        }
    }
}

pub(crate) struct Ring {
    ring: IoUring,
    in_flight: HashMap<u64, InFlight>,
    waiting: VecDeque<Waiting>,
    /// Entries handed to the ring whose completion has not been taken.
    in_ring: u32,
    /// Those of reads that have not ended.
    large_pieces: usize,
    bell: RawFd,
    bell_armed: bool,
}

impl Ring {
    pub(crate) fn new(bell: RawFd) -> Result<Self, DiskError> {
        let ring = IoUring::builder()
            .dontfork()
            .setup_coop_taskrun() // the loop enters the kernel often enough: no interrupt for it
            .build(RING_ENTRIES)
            .map_err(|error| io_error("io_uring_setup", "", &error))?;
        let mut made = Self {
            ring,
            in_flight: HashMap::new(),
            waiting: VecDeque::new(),
            in_ring: 0,
            large_pieces: 0,
            bell,
            bell_armed: false,
        };
        made.arm_bell();
        made.enter();
        Ok(made)
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    fn arm_bell(&mut self) {
        if !self.bell_armed {
            self.bell_armed = true;
            #[allow(clippy::cast_sign_loss)] // POLLIN is a small positive constant
            let poll = opcode::PollAdd::new(types::Fd(self.bell), libc::POLLIN as u32);
            let entry = poll.build().user_data(BELL_TOKEN);
            self.waiting.push_back(entry.into());
        }
    }

    /// One operation of as many entries as it has pieces.
    pub(crate) fn read(&mut self, token: u64, reading: Reading) {
        let Reading {
            runs,
            mut buffer,
            filled_bytes,
            name,
        } = reading;
        let start = buffer.as_mut_ptr();
        let mut large_pieces = 0;
        for (fd, piece) in &runs {
            // SAFETY: the piece lies in the buffer's capacity, so this points into it.
            let target = unsafe { start.add(piece.at) };
            let length = u32::try_from(piece.length).unwrap_or(u32::MAX);
            let mut entry = opcode::Read::new(types::Fd(*fd), target, length)
                .offset(piece.offset)
                .build()
                .user_data(token);
            if piece.length >= LARGE_PIECE_BYTES {
                if self.large_pieces > 0 {
                    entry = entry.flags(squeue::Flags::ASYNC);
                }
                large_pieces += 1;
                self.large_pieces += 1;
            }
            self.waiting.push_back(entry.into());
        }
        let flight = InFlight {
            operation: "read",
            name,
            done: 0,
            wanted: runs.iter().map(|(_, piece)| piece.length).sum(),
            entries: runs.len(),
            large_pieces,
            failed: None,
            canceled: false,
            buffer,
            filled_bytes,
            _buffers: Vec::new(),
            _vectors: Box::default(),
        };
        self.in_flight.insert(token, flight);
    }

    /// A write with a sync linked to it: the kernel begins that one once all of the write has landed, and cancels
    /// it when the write fails or is short. (`RWF_DSYNC` past the page cache has a kernel's worker do both: where the
    /// machine is busy that one waits for its turn behind everybody.)
    pub(crate) fn write(
        &mut self,
        token: u64,
        fd: RawFd,
        name: Arc<str>,
        offset: u64,
        buffers: Vec<Pages>,
    ) {
        let vectors: Box<[libc::iovec]> = buffers
            .iter()
            .map(|buffer| libc::iovec {
                iov_base: buffer.as_ptr().cast_mut().cast(),
                iov_len: buffer.len(),
            })
            .collect();
        let count = u32::try_from(vectors.len()).unwrap_or(u32::MAX);
        let write = opcode::Writev::new(types::Fd(fd), vectors.as_ptr(), count)
            .offset(offset)
            .build()
            .flags(squeue::Flags::IO_LINK)
            .user_data(token);
        let sync = opcode::Fsync::new(types::Fd(fd))
            .flags(types::FsyncFlags::DATASYNC)
            .build()
            .user_data(token);
        let flight = InFlight {
            operation: "write",
            name,
            done: 0,
            wanted: buffers.iter().map(|buffer| buffer.len()).sum(),
            entries: 2,
            large_pieces: 0,
            failed: None,
            canceled: false,
            buffer: Vec::new(),
            filled_bytes: 0,
            _buffers: buffers,
            _vectors: vectors,
        };
        self.in_flight.insert(token, flight);
        self.waiting.push_back(Waiting {
            entry: write,
            linked: true,
        });
        self.waiting.push_back(sync.into());
    }

    /// Hand waiting operations to the kernel, as many as the ring may hold.
    fn enter(&mut self) {
        loop {
            let mut queue = self.ring.submission();
            while self.in_ring < RING_ENTRIES {
                let Some(Waiting { entry, linked }) = self.waiting.front() else {
                    break;
                };
                let room =
                    (queue.capacity() - queue.len()).min((RING_ENTRIES - self.in_ring) as usize);
                if room < 1 + usize::from(*linked) {
                    break;
                }
                // SAFETY: buffers and vectors of the entry live in `in_flight` until its
                // completion; descriptors stay open as long (the store closes idle files only).
                if unsafe { queue.push(entry) }.is_err() {
                    break;
                }
                self.waiting.pop_front();
                self.in_ring += 1;
            }
            let is_empty = queue.is_empty();
            drop(queue);
            // Refused (EBUSY, EAGAIN): what stays in the queue goes with the next poll.
            if is_empty || self.ring.submit().is_err() {
                return;
            }
        }
    }

    /// Returns true when the bell has rung.
    pub(crate) fn poll(&mut self, results: &mut Vec<DiskResult>) -> bool {
        self.enter();
        let mut rung = false;
        for completion in self.ring.completion() {
            self.in_ring -= 1;
            let token = completion.user_data();
            if token == BELL_TOKEN {
                rung = true;
                continue;
            }
            let Some(flight) = self.in_flight.get_mut(&token) else {
                continue;
            };
            flight.completed(completion.result());
            if flight.entries == 0
                && let Some(flight) = self.in_flight.remove(&token)
            {
                self.large_pieces -= flight.large_pieces;
                let outcome = flight.outcome();
                results.push(DiskResult { token, outcome });
            }
        }
        if rung {
            self.bell_armed = false;
        }
        // The completions made room.
        self.enter();
        rung
    }

    /// Watch the bell again, after it was made silent.
    pub(crate) fn rearm(&mut self) {
        self.arm_bell();
        self.enter();
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel may still write into our buffers: wait for it. Closing a ring cancels the bell's
        // poll, so only real operations count.
        let mut results = Vec::new();
        self.enter();
        while !self.in_flight.is_empty() {
            if self.ring.submit_and_wait(1).is_err() {
                // Rather leak the buffers than free what the kernel may write to.
                std::mem::forget(std::mem::take(&mut self.in_flight));
                return;
            }
            if self.poll(&mut results) && self.in_flight.is_empty() {
                return;
            }
            results.clear();
        }
    }
}
