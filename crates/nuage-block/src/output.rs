//! Bytes waiting for the socket; large pieces are sent from where the engine left them.

use bytes::Bytes;
use std::collections::VecDeque;
use std::io::IoSlice;

/// Pieces up to this size are copied behind one another: a batch of replies is one slice.
const COPY_BYTES_MAX: usize = 512;
/// What a run of copied pieces begins with room for.
const COPY_BYTES_MIN: usize = 256;

#[derive(Debug)]
enum Segment {
    Copied(Vec<u8>),
    Shared(Bytes),
}

impl Segment {
    fn as_slice(&self) -> &[u8] {
        match self {
            Segment::Copied(bytes) => bytes,
            Segment::Shared(bytes) => bytes,
        }
    }
}

#[derive(Debug, Default)]
pub struct Output {
    segments: VecDeque<Segment>,
    /// Bytes of the first segment that the socket has taken.
    taken: usize,
    bytes: usize,
}

impl Output {
    /// Bytes not yet taken by the socket.
    pub fn len(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Queue a copy of these bytes.
    pub fn copy(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.bytes += bytes.len();
        if let Some(Segment::Copied(last)) = self.segments.back_mut() {
            last.extend_from_slice(bytes);
        } else {
            let mut fresh = Vec::with_capacity(bytes.len().max(COPY_BYTES_MIN));
            fresh.extend_from_slice(bytes);
            self.segments.push_back(Segment::Copied(fresh));
        }
    }

    /// Queue these bytes where they are, or a copy if they are few.
    pub fn share(&mut self, data: Bytes) {
        if data.len() <= COPY_BYTES_MAX {
            self.copy(&data);
        } else {
            self.bytes += data.len();
            self.segments.push_back(Segment::Shared(data));
        }
    }

    /// The first slices to write, at most `count_max`.
    pub fn slices(&self, count_max: usize) -> Vec<IoSlice<'_>> {
        let mut slices = Vec::with_capacity(self.segments.len().min(count_max));
        let mut skip = self.taken;
        for segment in self.segments.iter().take(count_max) {
            slices.push(IoSlice::new(&segment.as_slice()[skip..]));
            skip = 0;
        }
        slices
    }

    /// The socket took `count` bytes.
    pub fn advance(&mut self, count: usize) {
        self.bytes = self.bytes.saturating_sub(count);
        let mut left = self.taken + count;
        while let Some(first) = self.segments.front() {
            let length = first.as_slice().len();
            if left < length {
                break;
            }
            left -= length;
            self.segments.pop_front();
        }
        self.taken = if self.segments.is_empty() { 0 } else { left };
    }

    /// Everything as one vector; for tests and for TLS, which copies anyway.
    pub fn drain(&mut self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.bytes);
        for slice in self.slices(usize::MAX) {
            all.extend_from_slice(&slice);
        }
        self.advance(all.len());
        all
    }
}
