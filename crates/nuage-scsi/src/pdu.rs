//! iSCSI protocol data units (RFC 7143 §11): headers, the incremental reader, the output queue.
//!
//! ```text
//! Basic Header Segment, 48 bytes, big-endian (RFC 7143 §11.2.1)
//!  0      | .  I  opcode(6)                    8..16  | LUN or opcode-specific
//!  1..4   | F bit and opcode-specific          16..20 | Initiator Task Tag
//!  4      | TotalAHSLength, 4-byte words       20..48 | opcode-specific
//!  5..8   | DataSegmentLength, bytes
//! then AHS, header digest, data segment padded to 4, data digest
//! ```
//!
//! The reader takes bytes as they come, in pieces of any size, and never holds more than one PDU of
//! the announced maximum.

use bytes::Bytes;
use nuage_block::{Buffer, Output, crc32c, crc32c_append};

/// Bytes of a basic header segment (RFC 7143 §11.2.1).
pub const BHS_BYTES: usize = 48;
/// The tag that means "none" (RFC 7143 §11.2.1.8).
pub const TAG_NONE: u32 = 0xffff_ffff;
/// Opcodes an initiator sends (RFC 7143 §11.2.1.2).
pub mod request {
    pub const NOP_OUT: u8 = 0x00;
    pub const SCSI_COMMAND: u8 = 0x01;
    pub const TASK_MANAGEMENT: u8 = 0x02;
    pub const LOGIN: u8 = 0x03;
    pub const TEXT: u8 = 0x04;
    pub const DATA_OUT: u8 = 0x05;
    pub const LOGOUT: u8 = 0x06;
    pub const SNACK: u8 = 0x10;
}

/// Opcodes a target sends (RFC 7143 §11.2.1.2).
pub mod response {
    pub const NOP_IN: u8 = 0x20;
    pub const SCSI: u8 = 0x21;
    pub const TASK_MANAGEMENT: u8 = 0x22;
    pub const LOGIN: u8 = 0x23;
    pub const TEXT: u8 = 0x24;
    pub const DATA_IN: u8 = 0x25;
    pub const LOGOUT: u8 = 0x26;
    pub const R2T: u8 = 0x31;
    pub const ASYNC: u8 = 0x32;
    pub const REJECT: u8 = 0x3f;
}

/// Reasons of a Reject PDU (RFC 7143 §11.17.1).
pub mod reject {
    pub const DATA_DIGEST: u8 = 0x02;
    pub const SNACK: u8 = 0x03;
    pub const PROTOCOL: u8 = 0x04;
    pub const NOT_SUPPORTED: u8 = 0x05;
    pub const TOO_MANY_IMMEDIATE: u8 = 0x06;
    pub const TASK_IN_PROGRESS: u8 = 0x07;
    pub const INVALID_FIELD: u8 = 0x09;
}

/// A basic header segment; accessors name the fields that several opcodes share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bhs(pub [u8; BHS_BYTES]);

impl Bhs {
    /// A header of a target's PDU: opcode and byte 1.
    pub fn new(opcode: u8, flags: u8) -> Self {
        let mut bytes = [0; BHS_BYTES];
        bytes[0] = opcode;
        bytes[1] = flags;
        Self(bytes)
    }

    pub fn opcode(&self) -> u8 {
        self.0[0] & 0x3f
    }

    pub fn immediate(&self) -> bool {
        self.0[0] & 0x40 != 0
    }

    pub fn flags(&self) -> u8 {
        self.0[1]
    }

    /// The F bit: the last PDU of a sequence.
    pub fn last(&self) -> bool {
        self.0[1] & 0x80 != 0
    }

    pub fn ahs_bytes(&self) -> usize {
        usize::from(self.0[4]) * 4
    }

    pub fn data_bytes(&self) -> usize {
        usize::from(self.0[5]) << 16 | usize::from(self.0[6]) << 8 | usize::from(self.0[7])
    }

    pub fn lun(&self) -> [u8; 8] {
        let mut lun = [0; 8];
        lun.copy_from_slice(&self.0[8..16]);
        lun
    }

    pub fn set_lun(&mut self, lun: [u8; 8]) {
        self.0[8..16].copy_from_slice(&lun);
    }

    pub fn task_tag(&self) -> u32 {
        self.word(16)
    }

    pub fn transfer_tag(&self) -> u32 {
        self.word(20)
    }

    pub fn command_sn(&self) -> u32 {
        self.word(24)
    }

    pub fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    pub fn set_word(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    fn set_data_bytes(&mut self, length: usize) {
        let [.., high, middle, low] = length.to_be_bytes();
        self.0[5..8].copy_from_slice(&[high, middle, low]);
    }
}

/// One received PDU: header, additional header segments, data without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pdu {
    pub header: Bhs,
    pub ahs: Vec<u8>,
    pub data: Buffer,
    /// Bytes of `data` that were lent to it, before its own.
    pub lent_bytes: usize,
}

/// Why a byte stream is no longer iSCSI for us. All end the connection (error recovery level 0).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PduError {
    #[error("a data segment of {found_bytes} bytes was announced, {allowed_bytes} are allowed")]
    TooLong {
        found_bytes: usize,
        allowed_bytes: usize,
    },
    #[error("the header digest does not match")]
    HeaderDigest,
    #[error("the data digest does not match")]
    DataDigest { header: Box<Bhs> },
}

fn padding(length: usize) -> usize {
    length.wrapping_neg() & 3
}

/// Splits a byte stream into PDUs.
#[derive(Debug)]
pub struct PduReader {
    /// `MaxRecvDataSegmentLength` that we declared.
    pub data_bytes_max: usize,
    pub header_digest: bool,
    pub data_digest: bool,
    head: Vec<u8>,
    /// Set once the header is complete.
    body: Option<Body>,
}

#[derive(Debug)]
struct Body {
    header: Bhs,
    ahs: Vec<u8>,
    data: Buffer,
    lent_bytes: usize,
    data_bytes: usize,
    /// Padding and digest.
    tail: [u8; 8],
    tail_bytes: usize,
    tail_have: usize,
}

impl Body {
    fn own_bytes(&self) -> usize {
        self.data.len() - self.lent_bytes
    }
}

/// Move up to `wanted - into.len()` bytes; true when `into` is complete.
fn fill(into: &mut Vec<u8>, wanted: usize, input: &mut &[u8]) -> bool {
    into.extend_from_slice(take(wanted - into.len(), input));
    into.len() == wanted
}

/// Up to `most` bytes from the front of `input`.
fn take<'a>(most: usize, input: &mut &'a [u8]) -> &'a [u8] {
    let (taken, rest) = input.split_at(input.len().min(most));
    *input = rest;
    taken
}

impl PduReader {
    pub fn new(data_bytes_max: usize) -> Self {
        Self {
            data_bytes_max,
            header_digest: false,
            data_digest: false,
            head: Vec::with_capacity(BHS_BYTES + 4),
            body: None,
        }
    }

    /// Take bytes from the front of `input` until one PDU is complete; `None`: all taken, more
    /// needed. Digest settings may change between two calls.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Pdu>, PduError> {
        self.next_into(input, |_| None)
    }

    /// As `next`; `lend` may give the data behind a header a buffer to go on in, which comes back with the PDU.
    pub fn next_into(
        &mut self,
        input: &mut &[u8],
        lend: impl FnOnce(&Bhs) -> Option<Buffer>,
    ) -> Result<Option<Pdu>, PduError> {
        let mut body = match self.body.take() {
            Some(body) => body,
            None => match self.read_head(input, lend)? {
                Some(body) => body,
                None => return Ok(None),
            },
        };
        if !self.read_body(&mut body, input)? {
            self.body = Some(body);
            return Ok(None);
        }
        Ok(Some(Pdu {
            header: body.header,
            ahs: body.ahs,
            data: body.data,
            lent_bytes: body.lent_bytes,
        }))
    }

    /// The data segment that has begun to come, and how many bytes it lacks. They may be appended to it
    /// instead of going through `next`, which must be called then.
    pub fn unfinished_data(&mut self) -> Option<(&mut Buffer, usize)> {
        let body = self.body.as_mut()?;
        let missing = body.data_bytes - body.own_bytes();
        Some((&mut body.data, missing))
    }

    fn read_head(
        &mut self,
        input: &mut &[u8],
        lend: impl FnOnce(&Bhs) -> Option<Buffer>,
    ) -> Result<Option<Body>, PduError> {
        if self.head.len() < BHS_BYTES && !fill(&mut self.head, BHS_BYTES, input) {
            return Ok(None);
        }
        let mut bytes = [0; BHS_BYTES];
        bytes.copy_from_slice(&self.head[..BHS_BYTES]);
        let header = Bhs(bytes);
        let covered = BHS_BYTES + header.ahs_bytes();
        let wanted = covered + if self.header_digest { 4 } else { 0 };
        if !fill(&mut self.head, wanted, input) {
            return Ok(None);
        }
        if self.header_digest && crc32c(&self.head[..covered]).to_le_bytes() != self.head[covered..]
        {
            return Err(PduError::HeaderDigest);
        }
        let data_bytes = header.data_bytes();
        if data_bytes > self.data_bytes_max {
            return Err(PduError::TooLong {
                found_bytes: data_bytes,
                allowed_bytes: self.data_bytes_max,
            });
        }
        let ahs = self.head[BHS_BYTES..covered].to_vec();
        self.head.clear();
        let digest = if self.data_digest && data_bytes > 0 {
            4
        } else {
            0
        };
        let mut data = lend(&header).unwrap_or_default();
        data.reserve_exact(data_bytes);
        Ok(Some(Body {
            header,
            ahs,
            lent_bytes: data.len(),
            data,
            data_bytes,
            tail: [0; 8],
            tail_bytes: padding(data_bytes) + digest,
            tail_have: 0,
        }))
    }

    fn read_body(&self, body: &mut Body, input: &mut &[u8]) -> Result<bool, PduError> {
        let end = body.lent_bytes + body.data_bytes;
        let taken = take(end - body.data.len(), input);
        body.data.extend_from_slice(taken);
        if body.data.len() < end {
            return Ok(false);
        }
        let taken = take(body.tail_bytes - body.tail_have, input);
        body.tail[body.tail_have..body.tail_have + taken.len()].copy_from_slice(taken);
        body.tail_have += taken.len();
        if body.tail_have < body.tail_bytes {
            return Ok(false);
        }
        if self.data_digest && body.data_bytes > 0 {
            let pad = padding(body.data_bytes);
            let own = &body.data[body.lent_bytes..];
            let crc = crc32c_append(crc32c(own), &body.tail[..pad]);
            if crc.to_le_bytes() != body.tail[pad..pad + 4] {
                return Err(PduError::DataDigest {
                    header: Box::new(body.header),
                });
            }
        }
        Ok(true)
    }
}

/// PDUs waiting for the socket, digests added as negotiated.
#[derive(Debug, Default)]
pub struct PduOutput {
    pub queue: Output,
    pub header_digest: bool,
    pub data_digest: bool,
}

impl PduOutput {
    /// Queue one PDU; lengths, padding and digests are filled in here.
    pub fn push(&mut self, mut header: Bhs, data: Bytes) {
        header.set_data_bytes(data.len());
        let mut head = [0; BHS_BYTES + 4];
        head[..BHS_BYTES].copy_from_slice(&header.0);
        let mut head_bytes = BHS_BYTES;
        if self.header_digest {
            head[BHS_BYTES..].copy_from_slice(&crc32c(&header.0).to_le_bytes());
            head_bytes += 4;
        }
        self.queue.copy(&head[..head_bytes]);
        if data.is_empty() {
            return;
        }
        let pad = padding(data.len());
        let mut tail = [0; 8];
        let mut tail_bytes = pad;
        if self.data_digest {
            let crc = crc32c_append(crc32c(&data), &tail[..pad]);
            tail[pad..pad + 4].copy_from_slice(&crc.to_le_bytes());
            tail_bytes += 4;
        }
        self.queue.share(data);
        self.queue.copy(&tail[..tail_bytes]);
    }
}
