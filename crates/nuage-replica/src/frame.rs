//! What head and replica say to each other (docs/protocols/replication.md §2).

use nuage_block::{Buffer, Bytes, Output, PAGE_BYTES, crc32c, crc32c_append};
use std::collections::VecDeque;

/// A frame at most: a group of 1 MiB with its header, and room.
pub const FRAME_BYTES_MAX: usize = 4 << 20;
const HEAD_BYTES: usize = LENGTH_BYTES + CRC_BYTES + 4;
const LENGTH_BYTES: usize = 4;
const CRC_BYTES: usize = 4;
const APPEND_KIND: u8 = 3;
/// Kind and marks of an `Append`, before its group.
const APPEND_BYTES: usize = 28;

/// Where a copy's log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tail {
    pub seq: u64,
    /// Epoch of the record at `seq`.
    pub epoch: u64,
    pub chain: [u8; 32],
}

/// What a head tells with everything it sends while it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Marks {
    /// On the disks of an ack set: may be applied.
    pub committed_seq: u64,
    /// Answered to the initiator at most: with it in memory a copy has forgotten nothing.
    pub acked_seq: u64,
    /// The head's monotonic clock; comes back in the answer.
    pub sent_ns: u64,
}

/// The state that a copy is made anew from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Base {
    pub seq: u64,
    pub time_ns: u64,
    /// Epoch of the record at `seq`.
    pub epoch: u64,
    pub segment: u64,
    pub chain: [u8; 32],
    pub size_bytes: u64,
    /// The head's log reaches to here: until the copy's does, it cannot vouch for what was acknowledged.
    pub until_seq: u64,
}

/// Why a replica did not do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A newer head was promised: stop.
    StaleEpoch {
        promised: u64,
    },
    /// Send from here.
    OutOfOrder {
        tail_seq: u64,
    },
    /// Our histories part at or before `seq`: truncate or rebuild.
    Diverged {
        seq: u64,
    },
    NoSpace,
    /// The disk failed: this copy is lost.
    Failed,
    /// The asked history is not here any more.
    OutOfHistory {
        horizon: u64,
    },
    UnknownVolume,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Head: promise me `epoch`. First frame of each connection.
    Fence {
        volume: [u8; 16],
        epoch: u64,
        resumes: bool,
    },
    /// Replica: promised. `quiet_ns`: since it last heard a former head (`RELEASED_NS`: none can still be
    /// answering reads). `steady`: it has lost nothing that it held in memory for a head. `whole`: nor of what was durable.
    Fenced {
        epoch: u64,
        tail: Tail,
        applied: Tail,
        quiet_ns: u64,
        steady: bool,
        whole: bool,
    },
    /// Head: a group, and how far all are committed. `sent_ns` comes back in the answer.
    Append {
        marks: Marks,
        group: Bytes,
    },
    /// Head: nothing new; renews the lease.
    Renew {
        marks: Marks,
    },
    /// Replica: what it holds in memory and on stable storage.
    Held {
        memory_seq: u64,
        durable_seq: u64,
        sent_ns: u64,
    },
    /// Head: give up what lies after `seq`, where your chain must be `chain`.
    Truncate {
        seq: u64,
        chain: [u8; 32],
    },
    /// Head: send me groups after `seq`, up to `bytes`.
    Fetch {
        after_seq: u64,
        bytes: u32,
    },
    /// Replica: groups back to back; `last` when there are no more.
    Groups {
        last: bool,
        groups: Vec<u8>,
    },
    /// Head: I have stopped reading and writing.
    Release {
        epoch: u64,
    },
    Refused(Refusal),
    /// Either side: send the version of a block that record `seq` wrote (0: not told), whose checksum ends in
    /// the low 19 bits of `crc`. It is damaged here.
    FetchBlock {
        lba: u64,
        seq: u64,
        crc: u32,
    },
    /// The answer: what was asked, and the stored block (ciphertext), or nothing.
    Block {
        lba: u64,
        seq: u64,
        crc: u32,
        data: Vec<u8>,
    },
    /// Head: your log does not reach ours; take the state of `base`. `anew`: whatever else you have begun to take.
    Base {
        base: Base,
        anew: bool,
    },
    /// Replica: I am taking the state after `seq`, and have all below `next_lba`.
    Staged {
        seq: u64,
        epoch: u64,
        next_lba: u64,
    },
    /// Head: the next blocks, a group of BASE records.
    BaseGroup {
        group: Vec<u8>,
    },
    /// Head: the next part of marks and reservations.
    BaseSide {
        part: Vec<u8>,
    },
    /// Head: that was all; be that copy. `digest` is of addresses and checksums of all blocks.
    Install {
        digest: [u8; 32],
    },
}

/// Bytes that are no frame of ours: close the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {length} bytes, {FRAME_BYTES_MAX} at most")]
    TooLong { length: usize },
    #[error("checksum of a frame")]
    Checksum,
    #[error("malformed frame of kind {kind}")]
    Malformed { kind: u8 },
}

/// Write a frame around the body that `write` appends; it says the kind.
fn framed(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> u8) {
    let start = out.len();
    out.extend_from_slice(&[0; HEAD_BYTES]);
    out[start + 8] = write(out);
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    let crc = crc32c(&out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn u64(self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn bytes(self, value: &[u8]) -> Self {
        self.0.extend_from_slice(value);
        self
    }

    fn marks(self, marks: &Marks) -> Self {
        self.u64(marks.committed_seq)
            .u64(marks.acked_seq)
            .u64(marks.sent_ns)
    }

    fn base(self, base: &Base) -> Self {
        self.u64(base.seq)
            .u64(base.time_ns)
            .u64(base.epoch)
            .u64(base.segment)
            .bytes(&base.chain)
            .u64(base.size_bytes)
            .u64(base.until_seq)
    }

    fn tail(self, tail: &Tail) -> Self {
        self.u64(tail.seq).u64(tail.epoch).bytes(&tail.chain)
    }
}

struct Body<'a> {
    bytes: &'a [u8],
    kind: u8,
}

impl<'a> Body<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (head, rest) = self
            .bytes
            .split_first_chunk::<N>()
            .ok_or(FrameError::Malformed { kind: self.kind })?;
        self.bytes = rest;
        Ok(*head)
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        u32::try_from(self.u64()?).map_err(|_| FrameError::Malformed { kind: self.kind })
    }

    fn flag(&mut self) -> Result<bool, FrameError> {
        match self.u64()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(FrameError::Malformed { kind: self.kind }),
        }
    }

    fn tail(&mut self) -> Result<Tail, FrameError> {
        Ok(Tail {
            seq: self.u64()?,
            epoch: self.u64()?,
            chain: self.array()?,
        })
    }

    fn base(&mut self) -> Result<Base, FrameError> {
        Ok(Base {
            seq: self.u64()?,
            time_ns: self.u64()?,
            epoch: self.u64()?,
            segment: self.u64()?,
            chain: self.array()?,
            size_bytes: self.u64()?,
            until_seq: self.u64()?,
        })
    }

    fn marks(&mut self) -> Result<Marks, FrameError> {
        Ok(Marks {
            committed_seq: self.u64()?,
            acked_seq: self.u64()?,
            sent_ns: self.u64()?,
        })
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }
}

impl Refusal {
    fn code(self) -> (u64, u64) {
        match self {
            Self::StaleEpoch { promised } => (1, promised),
            Self::OutOfOrder { tail_seq } => (2, tail_seq),
            Self::Diverged { seq } => (3, seq),
            Self::NoSpace => (4, 0),
            Self::Failed => (5, 0),
            Self::OutOfHistory { horizon } => (6, horizon),
            Self::UnknownVolume => (7, 0),
        }
    }

    fn from_code(code: u64, value: u64) -> Option<Self> {
        Some(match code {
            1 => Self::StaleEpoch { promised: value },
            2 => Self::OutOfOrder { tail_seq: value },
            3 => Self::Diverged { seq: value },
            4 => Self::NoSpace,
            5 => Self::Failed,
            6 => Self::OutOfHistory { horizon: value },
            7 => Self::UnknownVolume,
            _ => return None,
        })
    }
}

impl Frame {
    /// Write the body; return the kind.
    fn write_body(&self, empty: Writer<'_>) -> u8 {
        let (kind, _) = match self {
            Self::Fence {
                volume,
                epoch,
                resumes,
            } => (1, empty.bytes(volume).u64(*epoch).u64(u64::from(*resumes))),
            Self::Fenced {
                epoch,
                tail,
                applied,
                quiet_ns,
                steady,
                whole,
            } => (
                2,
                empty
                    .u64(*epoch)
                    .tail(tail)
                    .tail(applied)
                    .u64(*quiet_ns)
                    .u64(u64::from(*steady))
                    .u64(u64::from(*whole)),
            ),
            Self::Append { marks, group } => (APPEND_KIND, empty.marks(marks).bytes(group)),
            Self::Renew { marks } => (4, empty.marks(marks)),
            Self::Held {
                memory_seq,
                durable_seq,
                sent_ns,
            } => (5, empty.u64(*memory_seq).u64(*durable_seq).u64(*sent_ns)),
            Self::Truncate { seq, chain } => (6, empty.u64(*seq).bytes(chain)),
            Self::Fetch { after_seq, bytes } => (7, empty.u64(*after_seq).u64(u64::from(*bytes))),
            Self::Groups { last, groups } => (8, empty.u64(u64::from(*last)).bytes(groups)),
            Self::Release { epoch } => (9, empty.u64(*epoch)),
            Self::Refused(refusal) => {
                let (code, value) = refusal.code();
                (10, empty.u64(code).u64(value))
            }
            Self::FetchBlock { lba, seq, crc } => {
                (11, empty.u64(*lba).u64(*seq).u64(u64::from(*crc)))
            }
            Self::Block {
                lba,
                seq,
                crc,
                data,
            } => (
                12,
                empty.u64(*lba).u64(*seq).u64(u64::from(*crc)).bytes(data),
            ),
            Self::Base { base, anew } => (13, empty.base(base).u64(u64::from(*anew))),
            Self::Staged {
                seq,
                epoch,
                next_lba,
            } => (14, empty.u64(*seq).u64(*epoch).u64(*next_lba)),
            Self::BaseGroup { group } => (15, empty.bytes(group)),
            Self::BaseSide { part } => (16, empty.bytes(part)),
            Self::Install { digest } => (17, empty.bytes(digest)),
        };
        kind
    }

    /// Append the frame's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        framed(out, |out| self.write_body(Writer(out)));
    }

    /// What stands before the group of an `Append`, which lies in parts.
    pub fn append_head(marks: &Marks, group: &[&[u8]]) -> Vec<u8> {
        let mut head = Vec::with_capacity(HEAD_BYTES + APPEND_BYTES);
        framed(&mut head, |head| {
            Writer(head).marks(marks);
            APPEND_KIND
        });
        let group_bytes: usize = group.iter().map(|part| part.len()).sum();
        let length = u32::try_from(head.len() - 4 + group_bytes).unwrap_or(u32::MAX);
        head[..4].copy_from_slice(&length.to_le_bytes());
        let crc = crc32c(&head[8..]);
        let crc = group.iter().fold(crc, |crc, part| crc32c_append(crc, part));
        head[4..8].copy_from_slice(&crc.to_le_bytes());
        head
    }

    /// Queue the frame's bytes.
    pub fn queue(&self, out: &mut Output) {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        out.share(bytes.into());
    }

    fn decode(kind: u8, whole: &Bytes) -> Result<Self, FrameError> {
        let bytes = &whole[..];
        let malformed = FrameError::Malformed { kind };
        let mut body = Body { bytes, kind };
        let frame = match kind {
            1 => Self::Fence {
                volume: body.array()?,
                epoch: body.u64()?,
                resumes: body.flag()?,
            },
            2 => Self::Fenced {
                epoch: body.u64()?,
                tail: body.tail()?,
                applied: body.tail()?,
                quiet_ns: body.u64()?,
                steady: body.flag()?,
                whole: body.flag()?,
            },
            APPEND_KIND => Self::Append {
                marks: body.marks()?,
                group: whole.slice(whole.len() - body.rest().len()..),
            },
            4 => Self::Renew {
                marks: body.marks()?,
            },
            5 => Self::Held {
                memory_seq: body.u64()?,
                durable_seq: body.u64()?,
                sent_ns: body.u64()?,
            },
            6 => Self::Truncate {
                seq: body.u64()?,
                chain: body.array()?,
            },
            7 => Self::Fetch {
                after_seq: body.u64()?,
                bytes: body.u32()?,
            },
            8 => Self::Groups {
                last: body.flag()?,
                groups: body.rest().to_vec(),
            },
            9 => Self::Release { epoch: body.u64()? },
            10 => {
                let (code, value) = (body.u64()?, body.u64()?);
                Self::Refused(Refusal::from_code(code, value).ok_or(malformed.clone())?)
            }
            11 => Self::FetchBlock {
                lba: body.u64()?,
                seq: body.u64()?,
                crc: body.u32()?,
            },
            12 => Self::Block {
                lba: body.u64()?,
                seq: body.u64()?,
                crc: body.u32()?,
                data: body.rest().to_vec(),
            },
            13..=17 => Self::decode_rebuild(kind, &mut body)?,
            _ => return Err(malformed),
        };
        if body.bytes.is_empty() {
            Ok(frame)
        } else {
            Err(malformed)
        }
    }
}

impl Frame {
    /// Frames of a copy that is made anew.
    fn decode_rebuild(kind: u8, body: &mut Body<'_>) -> Result<Self, FrameError> {
        Ok(match kind {
            13 => Self::Base {
                base: body.base()?,
                anew: body.flag()?,
            },
            14 => Self::Staged {
                seq: body.u64()?,
                epoch: body.u64()?,
                next_lba: body.u64()?,
            },
            15 => Self::BaseGroup {
                group: body.rest().to_vec(),
            },
            16 => Self::BaseSide {
                part: body.rest().to_vec(),
            },
            17 => Self::Install {
                digest: body.array()?,
            },
            _ => return Err(FrameError::Malformed { kind }),
        })
    }
}

/// Splits a byte stream into frames. The group of an `Append` begins at a page: a disk takes it as it came.
#[derive(Debug, Default)]
pub struct FrameReader {
    /// Of the frame that is coming: its length, then its bytes behind as many as put its group at a page.
    length: Vec<u8>,
    body: Buffer,
    lead: usize,
    missing: usize,
    /// Frames that have come whole, with their checksums.
    whole: VecDeque<Bytes>,
    too_long: Option<usize>,
}

impl FrameReader {
    /// Take bytes as they came.
    pub fn receive(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.too_long.is_none() {
            if self.missing == 0 {
                let count = bytes.len().min(LENGTH_BYTES - self.length.len());
                self.length.extend_from_slice(&bytes[..count]);
                bytes = &bytes[count..];
                self.begin();
                continue;
            }
            let count = bytes.len().min(self.missing);
            self.body.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            self.missing -= count;
            if self.missing == 0 {
                let lead = self.lead;
                let body = Bytes::from_owner(std::mem::take(&mut self.body));
                self.whole.push_back(body.slice(lead..));
            }
        }
    }

    /// Make room for a frame once its length is known.
    fn begin(&mut self) {
        let Ok(length) = <[u8; LENGTH_BYTES]>::try_from(self.length.as_slice()) else {
            return;
        };
        self.length.clear();
        let length = u32::from_le_bytes(length) as usize;
        if !(HEAD_BYTES - LENGTH_BYTES..=FRAME_BYTES_MAX).contains(&length) {
            self.too_long = Some(length);
            return;
        }
        self.lead = lead_bytes(length);
        self.body = Buffer::with_capacity(self.lead + length);
        self.body.extend_from_slice(&[0; PAGE_BYTES][..self.lead]);
        self.missing = length;
    }

    /// The next whole frame, if there is one. After an error the stream is of no more use.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(whole) = self.whole.pop_front() else {
            return match self.too_long {
                Some(length) => Err(FrameError::TooLong { length }),
                None => Ok(None),
            };
        };
        let crc = &whole[..CRC_BYTES];
        if crc32c(&whole[CRC_BYTES..]).to_le_bytes() != crc {
            return Err(FrameError::Checksum);
        }
        let kind = whole[CRC_BYTES];
        Frame::decode(kind, &whole.slice(CRC_BYTES + 4..)).map(Some)
    }
}

/// Bytes before a frame of `length` in memory: none before one that holds no group.
fn lead_bytes(length: usize) -> usize {
    if length < PAGE_BYTES {
        0
    } else {
        PAGE_BYTES - CRC_BYTES - APPEND_BYTES
    }
}
