//! A small initiator for the tests: builds PDUs and reads the target's.
#![allow(dead_code, clippy::unwrap_used, clippy::format_push_string)]

use nuage_block::memory::MemoryDevice;
use nuage_block::{BlockDevice, Completion, Geometry, Request};
use nuage_scsi::pdu::{Bhs, Pdu, PduReader, TAG_NONE, request};
use nuage_scsi::{Access, ConnectionId, Server};

pub const TARGET: &str = "iqn.2015-01.fr.nuage:test";
pub const SIZE: u64 = 16 << 20;

pub fn geometry() -> Geometry {
    Geometry {
        size_bytes: SIZE,
        logical_block_bytes: 512,
        uuid: *b"0123456789abcdef",
        name: "test".into(),
        read_only: false,
        write_cache: true,
    }
}

/// A server with one target on a volume in memory, and one connection to it.
pub struct World {
    pub server: Server,
    pub device: MemoryDevice,
    pub connection: ConnectionId,
    pub command_sn: u32,
    pub reader: PduReader,
    /// Requests that the test holds back from the device.
    pub held: Vec<Request>,
    pub hold: bool,
}

impl World {
    pub fn new(access: Access) -> Self {
        let mut server = Server::new(1, vec!["192.0.2.1:3260".into()]);
        assert!(server.add_target(1, TARGET, geometry(), access));
        let connection = server.accept("192.0.2.1:3260", [7; 33]).unwrap();
        Self {
            server,
            device: MemoryDevice::new(geometry()),
            connection,
            command_sn: 1,
            reader: PduReader::new(1 << 24),
            held: Vec::new(),
            hold: false,
        }
    }

    pub fn logged_in() -> Self {
        let mut world = Self::new(Access::default());
        assert_eq!(
            world.login(&[("ImmediateData", "Yes"), ("InitialR2T", "Yes")]),
            (0, 0)
        );
        world
    }

    /// Bytes of a PDU as the wire has them, without digests.
    pub fn encode(mut header: Bhs, data: &[u8]) -> Vec<u8> {
        let length = u32::try_from(data.len()).unwrap().to_be_bytes();
        header.0[5..8].copy_from_slice(&length[1..]);
        let mut bytes = header.0.to_vec();
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    pub fn send(&mut self, header: Bhs, data: &[u8]) {
        let bytes = Self::encode(header, data);
        self.server.receive(self.connection, &bytes);
        self.pump();
    }

    pub fn pump(&mut self) {
        let mut requests = Vec::new();
        let mut completions = Vec::new();
        loop {
            self.server.take_requests(&mut requests);
            if requests.is_empty() {
                return;
            }
            for (_, request) in requests.drain(..) {
                if self.hold {
                    self.held.push(request);
                } else {
                    self.device.submit(request);
                }
            }
            self.device.poll(&mut completions);
            self.finish(&mut completions);
        }
    }

    fn finish(&mut self, completions: &mut Vec<Completion>) {
        for completion in completions.drain(..) {
            self.server.complete(completion);
        }
    }

    /// The engine finishes what was held back.
    pub fn land(&mut self) {
        self.hold = false;
        for request in std::mem::take(&mut self.held) {
            self.device.submit(request);
        }
        let mut completions = Vec::new();
        self.device.poll(&mut completions);
        self.finish(&mut completions);
        self.pump();
    }

    pub fn received(&mut self) -> Vec<Pdu> {
        let Some(output) = self.server.output(self.connection) else {
            return Vec::new();
        };
        let mut bytes = Vec::new();
        for slice in output.slices(usize::MAX) {
            bytes.extend_from_slice(&slice);
        }
        self.server.sent(self.connection, bytes.len());
        let mut input = &bytes[..];
        let mut pdus = Vec::new();
        while let Some(pdu) = self.reader.next(&mut input).unwrap() {
            pdus.push(pdu);
        }
        pdus
    }

    /// One operational login PDU; gives status class and detail.
    pub fn login(&mut self, keys: &[(&str, &str)]) -> (u8, u8) {
        self.login_as("iqn.x:host", keys)
    }

    pub fn login_as(&mut self, initiator: &str, keys: &[(&str, &str)]) -> (u8, u8) {
        let mut text =
            format!("InitiatorName={initiator}\0TargetName={TARGET}\0SessionType=Normal\0");
        for (key, value) in keys {
            text.push_str(&format!("{key}={value}\0"));
        }
        let mut header = Bhs::new(request::LOGIN | 0x40, 0x87);
        header.set_word(24, self.command_sn);
        self.send(header, text.as_bytes());
        let pdus = self.received();
        assert_eq!(pdus.len(), 1);
        (pdus[0].header.0[36], pdus[0].header.0[37])
    }

    pub fn command_header(&mut self, tag: u32, flags: u8, expected: u32, cdb: &[u8]) -> Bhs {
        let mut header = Bhs::new(request::SCSI_COMMAND, flags);
        header.set_word(16, tag);
        header.set_word(20, expected);
        header.set_word(24, self.command_sn);
        self.command_sn += 1;
        header.0[32..32 + cdb.len()].copy_from_slice(cdb);
        header
    }

    pub fn command(&mut self, tag: u32, flags: u8, expected: u32, cdb: &[u8], data: &[u8]) {
        let header = self.command_header(tag, flags, expected, cdb);
        self.send(header, data);
    }

    /// TEST UNIT READY until the power-on attention is gone.
    pub fn settle(&mut self) {
        for tag in [0xf000, 0xf001] {
            self.command(tag, 0x80, 0, &[0; 6], &[]);
        }
        self.received();
    }

    pub fn write_10(&mut self, tag: u32, lba: u8, data: &[u8]) {
        let blocks = u8::try_from(data.len() / 512).unwrap();
        let expected = u32::try_from(data.len()).unwrap();
        self.command(
            tag,
            0xa0,
            expected,
            &[0x2a, 0, 0, 0, 0, lba, 0, 0, blocks, 0],
            data,
        );
    }

    pub fn management(&mut self, tag: u32, function: u8, referenced: u32) {
        let mut header = Bhs::new(request::TASK_MANAGEMENT | 0x40, 0x80 | function);
        header.set_word(16, tag);
        header.set_word(20, referenced);
        header.set_word(24, self.command_sn);
        self.send(header, &[]);
    }
}

pub const NONE: u32 = TAG_NONE;
