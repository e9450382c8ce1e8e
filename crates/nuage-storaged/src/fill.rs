//! Filling a volume from a raw image: a thread reads, the loop writes.
//!
//! Holes and runs of zeros become unmaps, so that an image keeps its sparseness.

use nuage_block::Buffer;
use rustix::fd::OwnedFd;
use rustix::fs::SeekFrom;
use serde_json::Value;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

/// Bytes read and written at once.
const CHUNK_BYTES: u64 = 1024 * 1024;
/// Chunks read ahead.
const CHUNKS_AHEAD: usize = 8;
/// Writes in flight.
pub const WRITES_MAX: usize = 8;
/// Progress is told each so many bytes.
const PROGRESS_BYTES: u64 = 64 * 1024 * 1024;

/// A piece of the image.
#[derive(Debug)]
pub enum Chunk {
    Data { offset: u64, data: Buffer },
    Zeros { offset: u64, length: u64 },
    Failed(String),
}

/// One filling in progress.
pub struct Fill {
    pub client: u32,
    pub id: Value,
    pub volume: String,
    pub in_flight: usize,
    pub total_bytes: u64,
    pub done_bytes: u64,
    told_bytes: u64,
    pub ended: bool,
    pub flushing: bool,
    pub failure: Option<String>,
    chunks: Receiver<Chunk>,
}

impl Fill {
    /// Start reading `path`; `wake` rings when there is something to take.
    pub fn start(
        client: u32,
        id: Value,
        volume: &str,
        path: &Path,
        limit: u64,
        wake: Arc<OwnedFd>,
    ) -> io::Result<Self> {
        let file = File::open(path)?;
        let total_bytes = file.metadata()?.len();
        if total_bytes > limit {
            let message = format!("the image has {total_bytes} bytes, the volume {limit}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let (sender, chunks) = sync_channel(CHUNKS_AHEAD);
        std::thread::Builder::new()
            .name("fill".into())
            .spawn(move || {
                if let Err(error) = read_all(&file, total_bytes, &sender, &wake) {
                    // The loop has gone away when nobody takes it.
                    let _ = sender.send(Chunk::Failed(error.to_string()));
                }
                drop(sender);
                ring(&wake);
            })?;
        Ok(Self {
            client,
            id,
            volume: volume.to_owned(),
            in_flight: 0,
            total_bytes,
            done_bytes: 0,
            told_bytes: 0,
            ended: false,
            flushing: false,
            failure: None,
            chunks,
        })
    }

    /// The next chunk, if one is ready and may be written now.
    pub fn next(&mut self) -> Option<Chunk> {
        if self.in_flight >= WRITES_MAX || self.ended {
            return None;
        }
        match self.chunks.try_recv() {
            Ok(chunk) => Some(chunk),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                self.ended = true;
                None
            }
        }
    }

    /// True when progress is due to be told.
    pub fn tells(&mut self) -> bool {
        let due = self.done_bytes >= self.told_bytes + PROGRESS_BYTES;
        if due {
            self.told_bytes = self.done_bytes;
        }
        due
    }
}

fn ring(wake: &OwnedFd) {
    // Full only after 2^64 - 2 rings.
    let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
}

fn read_all(file: &File, total: u64, sender: &SyncSender<Chunk>, wake: &OwnedFd) -> io::Result<()> {
    let mut at = 0;
    // A run of zeros is told once, and volumes count in blocks of 4096 bytes.
    let mut zeros: Option<(u64, u64)> = None;
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    while at < total {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.min(total) / CHUNK_BYTES * CHUNK_BYTES,
            Err(rustix::io::Errno::NXIO) => total,
            Err(_) => at,
        };
        if data > at {
            zeros = Some(zeros.map_or((at, data - at), |(start, length)| {
                (start, length + data - at)
            }));
            at = data;
            continue;
        }
        let length = (total - at).min(CHUNK_BYTES);
        let padded = length.next_multiple_of(4096);
        let mut bytes = vec![0; usize::try_from(padded).unwrap_or(0)];
        file.read_exact_at(&mut bytes[..usize::try_from(length).unwrap_or(0)], at)?;
        if bytes.iter().all(|byte| *byte == 0) {
            zeros = Some(zeros.map_or((at, padded), |(start, before)| (start, before + padded)));
        } else {
            if let Some((offset, length)) = zeros.take() {
                sender.send(Chunk::Zeros { offset, length }).map_err(gone)?;
            }
            sender
                .send(Chunk::Data {
                    offset: at,
                    data: bytes.into(),
                })
                .map_err(gone)?;
            ring(wake);
        }
        at += length;
    }
    if let Some((offset, length)) = zeros {
        let length = length.next_multiple_of(4096);
        sender.send(Chunk::Zeros { offset, length }).map_err(gone)?;
    }
    Ok(())
}
