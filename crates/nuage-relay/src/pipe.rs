//! A plain connection and what it has not taken yet.

use nuage_io::log;
use nuage_io::poller::{Interest, Poller, Token};
use nuage_io::socket::{Moved, Stream};
use std::io::{self, IoSlice};
use std::os::fd::AsFd as _;

/// Unsent bytes beyond which whoever fills the pipe should wait.
const FULL_BYTES: usize = 256 * 1024;

pub struct Pipe {
    pub stream: Stream,
    token: Token,
    output: Vec<u8>,
    sent: usize,
    interest: Interest,
    /// What it says is wanted.
    pub is_read: bool,
}

impl Pipe {
    pub fn new(stream: Stream, token: Token) -> Self {
        Self {
            stream,
            token,
            output: Vec::new(),
            sent: 0,
            interest: Interest::READ,
            is_read: true,
        }
    }

    pub fn add(&self, poller: &Poller) -> io::Result<()> {
        poller.add(&self.stream, self.token, self.interest)
    }

    /// Wake when the connection is made, or is not.
    pub fn watch_connecting(&mut self, poller: &Poller) -> io::Result<()> {
        self.interest.write = true;
        poller.change(&self.stream, self.token, self.interest)
    }

    pub fn remove(&self, poller: &Poller) {
        // Closing the descriptor takes it out of the poller, too.
        let _ = poller.remove(self.stream.as_fd());
    }

    pub fn is_empty(&self) -> bool {
        self.sent == self.output.len()
    }

    pub fn is_full(&self) -> bool {
        self.output.len() - self.sent >= FULL_BYTES
    }

    /// Write bytes, and keep what is not taken; false: the other end is gone.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        let mut taken = 0;
        while self.is_empty() && taken < bytes.len() {
            match self.stream.write(&[IoSlice::new(&bytes[taken..])]) {
                Moved::Bytes(count) => taken += count,
                Moved::Later => break,
                Moved::Gone => return false,
            }
        }
        self.output.extend_from_slice(&bytes[taken..]);
        true
    }

    /// Write what was kept; false: the other end is gone.
    pub fn flush(&mut self) -> bool {
        while !self.is_empty() {
            match self
                .stream
                .write(&[IoSlice::new(&self.output[self.sent..])])
            {
                Moved::Bytes(count) => self.sent += count,
                Moved::Later => return true,
                Moved::Gone => return false,
            }
        }
        self.output.clear();
        self.sent = 0;
        true
    }

    /// Have the poller wake for what is wanted by now.
    pub fn update(&mut self, poller: &Poller) {
        let wanted = Interest {
            read: self.is_read,
            write: !self.is_empty(),
        };
        if wanted != self.interest {
            self.interest = wanted;
            if let Err(error) = poller.change(&self.stream, self.token, wanted) {
                log::error("not_watched", &[("error", error.to_string().into())]);
            }
        }
    }
}
