//! Threads that do what must not block the engine's thread.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nuage_block::Pages;
use nuage_journal::{Content, DiskError, DiskResult, Piece};

use crate::directory::{io_error, prepare, replace};

/// Pieces to read into one buffer, each within it.
pub(crate) struct Reading {
    pub runs: Vec<(RawFd, Piece)>,
    pub buffer: Vec<u8>,
    /// Its length once all pieces have come: at most its capacity, and each byte past its length is in a piece.
    pub filled_bytes: usize,
    /// The first file of it, for the log.
    pub name: Arc<str>,
}

/// Work for a thread. Descriptors stay open until its result has been taken.
pub(crate) enum Work {
    Prepare {
        name: String,
        size_bytes: u64,
        written: bool,
    },
    Replace {
        name: String,
        content: Content,
    },
    Read(Reading),
    Write {
        fd: RawFd,
        name: Arc<str>,
        offset: u64,
        buffers: Vec<Pages>,
    },
}

/// A signal from the threads to the engine's thread.
#[derive(Debug)]
pub(crate) struct Bell(OwnedFd);

impl Bell {
    pub(crate) fn new() -> Result<Self, DiskError> {
        // SAFETY: no memory is handed over; the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            let error = std::io::Error::last_os_error();
            return Err(io_error("eventfd", "", &error));
        }
        // SAFETY: `fd` has just been made and has no other owner.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn ring(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight readable bytes, as an eventfd wants them. A full counter is rung enough.
        unsafe { libc::write(self.fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Make it silent.
    pub(crate) fn clear(&self) {
        let mut count = [0u8; 8];
        // SAFETY: eight writable bytes; an empty counter answers EAGAIN, which is as good.
        unsafe { libc::read(self.fd(), count.as_mut_ptr().cast(), count.len()) };
    }
}

/// Threads started at their first work.
pub(crate) struct Threads {
    path: PathBuf,
    count: usize,
    work: Option<Sender<(u64, Work)>>,
    results: Receiver<DiskResult>,
    sender: Sender<DiskResult>,
    bell: Arc<Bell>,
    handles: Vec<JoinHandle<()>>,
}

impl Drop for Threads {
    /// Wait for work in progress: its descriptors must not be closed and reused under it.
    fn drop(&mut self) {
        self.work = None;
        for handle in self.handles.drain(..) {
            // A panicked thread has no work in progress either.
            let _ = handle.join();
        }
    }
}

impl Threads {
    pub(crate) fn new(path: &Path, count: usize, bell: Arc<Bell>) -> Self {
        let (sender, results) = channel();
        Self {
            path: path.to_owned(),
            count,
            work: None,
            results,
            sender,
            bell,
            handles: Vec::new(),
        }
    }

    pub(crate) fn submit(&mut self, token: u64, work: Work) {
        if self.work.is_none() {
            self.work = Some(self.start());
        }
        if let Some(queue) = &self.work {
            // The threads end only with this sender.
            let _ = queue.send((token, work));
        }
    }

    fn start(&mut self) -> Sender<(u64, Work)> {
        let (queue, receiver) = channel::<(u64, Work)>();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..self.count {
            let receiver = Arc::clone(&receiver);
            let (path, sender, bell) = (
                self.path.clone(),
                self.sender.clone(),
                Arc::clone(&self.bell),
            );
            self.handles.push(std::thread::spawn(move || {
                loop {
                    let next = match receiver.lock() {
                        Ok(receiver) => receiver.recv(),
                        Err(_) => return,
                    };
                    let Ok((token, work)) = next else { return };
                    let outcome = perform(&path, work);
                    if sender.send(DiskResult { token, outcome }).is_err() {
                        return;
                    }
                    bell.ring();
                }
            }));
        }
        queue
    }

    #[cfg(test)]
    pub(crate) fn have_begun(&self) -> bool {
        self.work.is_some()
    }

    pub(crate) fn poll(&mut self, results: &mut Vec<DiskResult>) {
        results.extend(self.results.try_iter());
    }
}

fn perform(path: &Path, work: Work) -> Result<Vec<u8>, DiskError> {
    match work {
        Work::Prepare {
            name,
            size_bytes,
            written,
        } => prepare(path, &name, size_bytes, written).map(|()| Vec::new()),
        Work::Replace { name, content } => replace(path, &name, &content).map(|()| Vec::new()),
        Work::Read(Reading {
            runs,
            mut buffer,
            filled_bytes,
            name,
        }) => {
            let start = buffer.as_mut_ptr();
            for (fd, piece) in runs {
                transfer(&name, "read", piece.length, |done| {
                    let from = at(piece.offset, done);
                    // SAFETY: the piece lies in the buffer's capacity, `done` in the piece; the descriptor is
                    // open until the result has been taken.
                    unsafe {
                        let rest = start.add(piece.at + done);
                        libc::pread(fd, rest.cast(), piece.length - done, from)
                    }
                })?;
            }
            // SAFETY: all pieces have been read whole.
            unsafe { buffer.set_len(filled_bytes) };
            Ok(buffer)
        }
        Work::Write {
            fd,
            name,
            offset,
            buffers,
        } => {
            let mut start = offset;
            for buffer in &buffers {
                transfer(&name, "write", buffer.len(), |done| {
                    let rest = &buffer[done..];
                    // SAFETY: `rest` is readable for its length; the descriptor is open.
                    unsafe { libc::pwrite(fd, rest.as_ptr().cast(), rest.len(), at(start, done)) }
                })?;
                start += buffer.len() as u64;
            }
            // SAFETY: the descriptor is open.
            if unsafe { libc::fdatasync(fd) } != 0 {
                return Err(io_error("sync", &name, &std::io::Error::last_os_error()));
            }
            Ok(Vec::new())
        }
    }
}

fn at(offset: u64, done: usize) -> i64 {
    i64::try_from(offset + done as u64).unwrap_or(i64::MAX)
}

/// Repeat `step` (bytes done so far → result of the call) until `wanted` bytes are done.
fn transfer(
    name: &str,
    operation: &'static str,
    wanted: usize,
    mut step: impl FnMut(usize) -> isize,
) -> Result<(), DiskError> {
    let mut done = 0;
    while done < wanted {
        let result = step(done);
        match usize::try_from(result) {
            Ok(0) => {
                return Err(DiskError::Short {
                    name: name.to_owned(),
                    wrote: done,
                    wanted,
                });
            }
            Ok(count) => done += count,
            Err(_) => {
                let error = std::io::Error::last_os_error();
                if error.kind() != std::io::ErrorKind::Interrupted {
                    return Err(io_error(operation, name, &error));
                }
            }
        }
    }
    Ok(())
}
