//! Waiting for descriptors: epoll, level-triggered.

use crate::patience::{Patience, Wait};
use rustix::event::{Timespec, epoll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

/// Descriptors reported by one wait.
const EVENTS_MAX: usize = 256;

/// What a descriptor belongs to: a kind and a number of that kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    pub kind: u8,
    pub id: u32,
}

impl Token {
    fn pack(self) -> u64 {
        u64::from(self.kind) << 32 | u64::from(self.id)
    }

    fn unpack(packed: u64) -> Self {
        let [_, _, _, kind, a, b, c, d] = packed.to_be_bytes();
        Self {
            kind,
            id: u32::from_be_bytes([a, b, c, d]),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest {
    pub read: bool,
    pub write: bool,
}

impl Interest {
    pub const READ: Self = Self {
        read: true,
        write: false,
    };

    fn flags(self) -> epoll::EventFlags {
        let mut flags = epoll::EventFlags::empty();
        if self.read {
            flags |= epoll::EventFlags::IN;
        }
        if self.write {
            flags |= epoll::EventFlags::OUT;
        }
        flags
    }
}

/// A descriptor that is ready. An error or a hang-up counts as readable: the read tells which.
#[derive(Debug, Clone, Copy)]
pub struct Ready {
    pub token: Token,
    pub read: bool,
    pub write: bool,
}

pub struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    patience: Patience,
    processor: Processor,
    begun: Instant,
}

impl Poller {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS_MAX),
            patience: Patience::default(),
            processor: Processor(File::open(QUEUED_PATH).ok()),
            begun: Instant::now(),
        })
    }

    pub fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token.pack());
        Ok(epoll::add(&self.epoll, fd, data, interest.flags())?)
    }

    pub fn change(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token.pack());
        Ok(epoll::modify(&self.epoll, fd, data, interest.flags())?)
    }

    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    /// Sleep until something is ready or `timeout` is over; `None`: for ever.
    pub fn wait(&mut self, timeout: Option<Duration>, into: &mut Vec<Ready>) -> io::Result<()> {
        self.ask(timeout)?;
        self.report(into);
        Ok(())
    }

    /// Wait in the same way, and look a moment before going to sleep where that pays. `owed`: somebody waits for
    /// an answer of ours.
    pub fn look_or_wait(
        &mut self,
        timeout: Option<Duration>,
        owed: bool,
        into: &mut Vec<Ready>,
    ) -> io::Result<()> {
        if self.patience.is_due() {
            let queued = self.processor.queued();
            self.patience.heard(self.begun.elapsed(), queued);
        }
        let look = self.patience.look(owed);
        let wait = self.look_and_sleep(timeout, look)?;
        self.patience.waited(owed, wait);
        self.report(into);
        Ok(())
    }

    fn report(&self, into: &mut Vec<Ready>) {
        into.clear();
        let ends = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
        for event in &self.events {
            let flags = event.flags;
            into.push(Ready {
                token: Token::unpack(event.data.u64()),
                read: flags.intersects(epoll::EventFlags::IN | ends),
                write: flags.intersects(epoll::EventFlags::OUT | ends),
            });
        }
    }

    fn look_and_sleep(&mut self, timeout: Option<Duration>, look: Duration) -> io::Result<Wait> {
        let begun = Instant::now();
        let look = timeout.map_or(look, |timeout| timeout.min(look));
        if !look.is_zero() {
            let mut wait = Wait::Ready;
            loop {
                if self.ask(Some(Duration::ZERO))? {
                    return Ok(wait);
                }
                wait = Wait::Found;
                if begun.elapsed() >= look {
                    break;
                }
            }
        }
        self.ask(timeout)?;
        Ok(Wait::Slept(begun.elapsed()))
    }

    /// True when something is ready, within `timeout`.
    fn ask(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        self.events.clear();
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let space = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, space, timeout.as_ref()) {
            Ok(count) => Ok(count > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Of the thread that opens it: ns on a processor, ns in its queue, turns.
const QUEUED_PATH: &str = "/proc/thread-self/schedstat";

struct Processor(Option<File>);

impl Processor {
    /// How long this thread has been ready to run while another had the processor, where the kernel tells it.
    fn queued(&self) -> Option<Duration> {
        let mut text = [0; 64];
        let read = |file: &File| file.read_at(&mut text, 0).ok();
        let count = self.0.as_ref().and_then(read).unwrap_or(0);
        let text = std::str::from_utf8(&text[..count]).unwrap_or_default();
        let queued = text.split(' ').nth(1)?.parse().ok()?;
        Some(Duration::from_nanos(queued))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_how_long_this_thread_waited_for_its_processor() {
        let Ok(file) = File::open(QUEUED_PATH) else {
            return; // a kernel without scheduler statistics
        };
        let processor = Processor(Some(file));
        let before = processor.queued().expect("told");
        let after = processor.queued().expect("told again");
        assert!(before <= after);
        assert_eq!(Processor(None).queued(), None);
    }

    #[test]
    fn what_comes_while_the_loop_looks_is_found_and_a_timeout_ends_both() {
        use std::io::Write as _;
        use std::os::unix::net::UnixStream;
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let mut poller = Poller::new().expect("epoll");
        let token = Token { kind: 1, id: 7 };
        poller.add(&ours, token, Interest::READ).expect("watched");
        let (soon, look) = (Some(Duration::from_millis(2)), Duration::from_micros(100));
        let vain = poller.look_and_sleep(soon, look).expect("waited");
        assert!(matches!(vain, Wait::Slept(slept) if slept >= Duration::from_millis(2)));
        theirs.write_all(b"x").expect("written");
        assert_eq!(
            poller.look_and_sleep(None, look).expect("ready"),
            Wait::Ready
        );
        let mut ready = Vec::new();
        poller.report(&mut ready);
        assert_eq!(ready[0].token, token);
    }
}
