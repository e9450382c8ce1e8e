//! Waiting for descriptors: epoll, level-triggered.

use rustix::event::{Timespec, epoll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::io;
use std::time::Duration;

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
}

impl Poller {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS_MAX),
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
        into.clear();
        self.events.clear();
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let space = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, space, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let ends = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
        for event in &self.events {
            let flags = event.flags;
            into.push(Ready {
                token: Token::unpack(event.data.u64()),
                read: flags.intersects(epoll::EventFlags::IN | ends),
                write: flags.intersects(epoll::EventFlags::OUT | ends),
            });
        }
        Ok(())
    }
}
