//! A plain file as a volume, through a small pool of threads. No journal, no history: a stepping
//! stone, a peer for measurements, and the way in and out for raw images.
//!
//! Requests that overlap one in flight wait for it, so that they take effect in the order of their
//! submission and COMPARE AND WRITE is one act. Cached reads are answered at once, without a thread.

use nuage_block::{
    BlockDevice, Completion, Extent, Failure, Geometry, Operation, Outcome, Request,
};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsRawFd as _, OwnedFd};
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Threads of one file. Four keep a local disk busy; more only contend.
const THREADS: usize = 4;
const QUEUE_DEPTH_MAX: usize = 256;

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Request>,
    done: Vec<Completion>,
    closed: bool,
}

#[derive(Debug)]
struct Shared {
    file: File,
    size_bytes: u64,
    reservations: PathBuf,
    queue: Mutex<Queue>,
    work: Condvar,
    wake: OwnedFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A thread that panicked aborts the process; the queue itself is never half changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A byte range and whether it is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    start: u64,
    end: u64,
    writes: bool,
}

impl Range {
    fn of(operation: &Operation) -> Option<Self> {
        let range = |offset: u64, length: u64, writes| {
            Some(Self {
                start: offset,
                end: offset.saturating_add(length),
                writes,
            })
        };
        match operation {
            Operation::Read { offset, length } => range(*offset, u64::from(*length), false),
            Operation::Write { offset, data, .. }
            | Operation::CompareAndWrite { offset, data, .. } => {
                range(*offset, data.len() as u64, true)
            }
            Operation::Unmap { offset, length } | Operation::WriteZeroes { offset, length, .. } => {
                range(*offset, *length, true)
            }
            Operation::BlockStatus { offset, length } => range(*offset, *length, false),
            Operation::Flush
            | Operation::StoreReservations { .. }
            | Operation::LoadReservations => None,
        }
    }

    fn conflicts(self, other: Self) -> bool {
        (self.writes || other.writes) && self.start < other.end && other.start < self.end
    }
}

#[derive(Debug)]
pub struct FileDevice {
    shared: Arc<Shared>,
    geometry: Geometry,
    threads: Vec<JoinHandle<()>>,
    running: Vec<(u64, Range)>,
    held: VecDeque<Request>,
    finished: Vec<Completion>,
}

impl FileDevice {
    /// Open a file of at least `geometry.size_bytes`; shorter ones are grown, sparse.
    pub fn open(path: &Path, geometry: Geometry) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(!geometry.read_only)
            .create(!geometry.read_only)
            .truncate(false)
            .open(path)?;
        if file.metadata()?.len() < geometry.size_bytes && !geometry.read_only {
            file.set_len(geometry.size_bytes)?;
        }
        let mut reservations = path.as_os_str().to_owned();
        reservations.push(".reservations");
        let shared = Arc::new(Shared {
            file,
            size_bytes: geometry.size_bytes,
            reservations: PathBuf::from(reservations),
            queue: Mutex::default(),
            work: Condvar::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let threads = (0..THREADS)
            .map(|_| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name("file-io".into())
                    .spawn(move || work(&shared))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            shared,
            geometry,
            threads,
            running: Vec::new(),
            held: VecDeque::new(),
            finished: Vec::new(),
        })
    }

    fn dispatch(&mut self, request: Request) {
        let Some(range) = Range::of(&request.operation) else {
            return self.enqueue(request);
        };
        if range.end > self.geometry.size_bytes {
            let outcome = Outcome::Failed(Failure::OutOfRange);
            return self.finished.push(Completion {
                tag: request.tag,
                outcome,
            });
        }
        let blocked = self
            .running
            .iter()
            .any(|(_, other)| range.conflicts(*other))
            || self
                .held
                .iter()
                .filter_map(|held| Range::of(&held.operation))
                .any(|other| range.conflicts(other));
        if blocked {
            return self.held.push_back(request);
        }
        if let Operation::Read { offset, length } = request.operation
            && let Some(data) = self.read_cached(offset, length)
        {
            return self.finished.push(Completion {
                tag: request.tag,
                outcome: Outcome::Data(data),
            });
        }
        self.running.push((request.tag, range));
        self.enqueue(request);
    }

    /// Read without sleeping; `None` when the page cache does not hold all of it.
    fn read_cached(&self, offset: u64, length: u32) -> Option<Vec<u8>> {
        let mut data = vec![0; length as usize];
        let count = rustix::io::preadv2(
            &self.shared.file,
            &mut [IoSliceMut::new(&mut data)],
            offset,
            ReadWriteFlags::NOWAIT,
        );
        matches!(count, Ok(count) if count == data.len()).then_some(data)
    }

    fn enqueue(&self, request: Request) {
        self.shared.lock().jobs.push_back(request);
        self.shared.work.notify_one();
    }

    fn release_held(&mut self) {
        for _ in 0..self.held.len() {
            if let Some(request) = self.held.pop_front() {
                self.dispatch(request);
            }
        }
    }
}

impl BlockDevice for FileDevice {
    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    fn submit(&mut self, request: Request) {
        let changes = Range::of(&request.operation).is_some_and(|range| range.writes);
        if changes && self.geometry.read_only {
            let outcome = Outcome::Failed(Failure::ReadOnly);
            return self.finished.push(Completion {
                tag: request.tag,
                outcome,
            });
        }
        self.dispatch(request);
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        let before = self.running.len() + self.held.len();
        if before > 0 || !self.finished.is_empty() || self.shared.wakes() {
            let done = std::mem::take(&mut self.shared.lock().done);
            for completion in &done {
                self.running.retain(|(tag, _)| *tag != completion.tag);
            }
            if !done.is_empty() && !self.held.is_empty() {
                self.release_held();
            }
            completions.extend(done);
            completions.append(&mut self.finished);
        }
    }

    fn queue_depth_max(&self) -> usize {
        QUEUE_DEPTH_MAX
    }

    fn wake_fd(&self) -> Option<i32> {
        Some(self.shared.wake.as_raw_fd())
    }
}

impl Shared {
    /// Make the descriptor silent; true when it had rung.
    fn wakes(&self) -> bool {
        rustix::io::read(&self.wake, &mut [0; 8]).is_ok()
    }
}

impl Drop for FileDevice {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has aborted the process already.
            let _ = thread.join();
        }
    }
}

fn work(shared: &Shared) {
    loop {
        let mut queue = shared.lock();
        let request = loop {
            if let Some(request) = queue.jobs.pop_front() {
                break request;
            }
            if queue.closed {
                return;
            }
            queue = shared
                .work
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        };
        drop(queue);
        let outcome = perform(shared, request.operation)
            .unwrap_or_else(|error| Outcome::Failed(failure(&error)));
        let mut queue = shared.lock();
        let rings = queue.done.is_empty();
        queue.done.push(Completion {
            tag: request.tag,
            outcome,
        });
        drop(queue);
        if rings {
            // Full only after 2^64 - 2 rings.
            let _ = rustix::io::write(&shared.wake, &1_u64.to_ne_bytes());
        }
    }
}

fn failure(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Failure::NoSpace,
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Failure::ReadOnly,
        _ => Failure::Medium,
    }
}

fn perform(shared: &Shared, operation: Operation) -> io::Result<Outcome> {
    let file = &shared.file;
    let durable = |fua: bool| if fua { file.sync_data() } else { Ok(()) };
    match operation {
        Operation::Read { offset, length } => {
            let mut data = vec![0; length as usize];
            file.read_exact_at(&mut data, offset)?;
            Ok(Outcome::Data(data))
        }
        Operation::Write { offset, data, fua } => {
            file.write_all_at(&data, offset)?;
            durable(fua)?;
            Ok(Outcome::Done)
        }
        Operation::Flush => {
            file.sync_data()?;
            Ok(Outcome::Done)
        }
        Operation::Unmap { offset, length } => {
            rustix::fs::fallocate(
                file,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                offset,
                length,
            )?;
            Ok(Outcome::Done)
        }
        Operation::WriteZeroes {
            offset,
            length,
            allocate,
            fua,
        } => {
            let mode = if allocate {
                FallocateFlags::ZERO_RANGE
            } else {
                FallocateFlags::PUNCH_HOLE
            };
            rustix::fs::fallocate(file, mode | FallocateFlags::KEEP_SIZE, offset, length)?;
            durable(fua)?;
            Ok(Outcome::Done)
        }
        Operation::CompareAndWrite {
            offset,
            expected,
            data,
            fua,
        } => {
            let mut found = vec![0; expected.len()];
            file.read_exact_at(&mut found, offset)?;
            if let Some(at) = found
                .iter()
                .zip(&expected)
                .position(|(left, right)| left != right)
            {
                return Ok(Outcome::Miscompare {
                    at: u32::try_from(at).unwrap_or(u32::MAX),
                });
            }
            file.write_all_at(&data, offset)?;
            durable(fua)?;
            Ok(Outcome::Done)
        }
        Operation::StoreReservations { state } => {
            let fresh = shared.reservations.with_extension("new");
            let kept = File::create(&fresh)?;
            kept.write_all_at(&state, 0)?;
            kept.sync_all()?;
            std::fs::rename(&fresh, &shared.reservations)?;
            if let Some(folder) = shared
                .reservations
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty())
            {
                File::open(folder)?.sync_all()?;
            }
            Ok(Outcome::Done)
        }
        Operation::LoadReservations => match std::fs::read(&shared.reservations) {
            Ok(state) => Ok(Outcome::Reservations(state)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(Outcome::Reservations(Vec::new()))
            }
            Err(error) => Err(error),
        },
        Operation::BlockStatus { offset, length } => status(shared, offset, length),
    }
}

fn status(shared: &Shared, offset: u64, length: u64) -> io::Result<Outcome> {
    let end = (offset + length).min(shared.size_bytes);
    let mut extents = Vec::new();
    let mut at = offset;
    while at < end {
        let data = match rustix::fs::seek(&shared.file, SeekFrom::Data(at)) {
            Ok(data) => data.min(end),
            Err(Errno::NXIO) => end,
            Err(error) => return Err(error.into()),
        };
        if data > at {
            extents.push(Extent {
                offset: at,
                length: data - at,
                mapped: false,
            });
        }
        if data >= end {
            break;
        }
        let hole = rustix::fs::seek(&shared.file, SeekFrom::Hole(data))?.min(end);
        extents.push(Extent {
            offset: data,
            length: hole - data,
            mapped: true,
        });
        at = hole;
    }
    Ok(Outcome::Extents(extents))
}
