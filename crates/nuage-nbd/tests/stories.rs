//! Connections as small stories, and what holds for any bytes.
#![allow(clippy::unwrap_used)]

use nuage_block::memory::MemoryDevice;
use nuage_block::{BlockDevice, Geometry};
use nuage_nbd::wire::{
    CONTEXT, IHAVEOPT, REQUEST_MAGIC, command, error, flag, option, option_reply,
};
use nuage_nbd::{ConnectionId, Export, Server};
use proptest::prelude::*;

struct World {
    server: Server,
    device: MemoryDevice,
    connection: ConnectionId,
}

fn option_bytes(code: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = IHAVEOPT.to_be_bytes().to_vec();
    bytes.extend_from_slice(&code.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn request_bytes(flags: u16, kind: u16, offset: u64, length: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&77_u64.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn named(name: &str, tail: &[u8]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(tail);
    data
}

impl World {
    fn new() -> Self {
        let geometry = Geometry {
            size_bytes: 1 << 20,
            logical_block_bytes: 512,
            uuid: [1; 16],
            name: "v".into(),
            read_only: false,
            write_cache: true,
        };
        let mut server = Server::default();
        assert!(server.add_export(
            1,
            Export {
                name: "v".into(),
                geometry: geometry.clone(),
                multi_conn: true
            }
        ));
        let connection = server.accept().unwrap();
        let mut world = Self {
            server,
            device: MemoryDevice::new(geometry),
            connection,
        };
        assert_eq!(world.received().len(), 18);
        world.send(&3_u32.to_be_bytes());
        world
    }

    fn opened(structured: bool) -> Self {
        let mut world = Self::new();
        if structured {
            world.send(&option_bytes(option::STRUCTURED_REPLY, &[]));
            let mut tail = 1_u32.to_be_bytes().to_vec();
            tail.extend_from_slice(&named(CONTEXT, &[]));
            world.send(&option_bytes(option::SET_META, &named("v", &tail)));
        }
        world.send(&option_bytes(option::GO, &named("v", &[0, 0])));
        world.received();
        world
    }

    fn send(&mut self, bytes: &[u8]) {
        self.server.receive(self.connection, bytes);
        let (mut requests, mut completions) = (Vec::new(), Vec::new());
        loop {
            self.server.take_requests(&mut requests);
            if requests.is_empty() {
                return;
            }
            for (_, request) in requests.drain(..) {
                self.device.submit(request);
            }
            self.device.poll(&mut completions);
            for completion in completions.drain(..) {
                self.server.complete(completion);
            }
        }
    }

    fn received(&mut self) -> Vec<u8> {
        let Some(output) = self.server.output(self.connection) else {
            return Vec::new();
        };
        let bytes: Vec<u8> = output
            .slices(usize::MAX)
            .iter()
            .flat_map(|slice| slice.to_vec())
            .collect();
        self.server.sent(self.connection, bytes.len());
        bytes
    }
}

#[test]
fn a_write_is_read_back_in_simple_and_in_structured_replies() {
    for structured in [false, true] {
        let mut world = World::opened(structured);
        world.send(&request_bytes(0, command::WRITE, 512, 512, &[9; 512]));
        assert_eq!(world.received().len(), 16);
        world.send(&request_bytes(0, command::READ, 512, 512, &[]));
        let reply = world.received();
        assert_eq!(reply.len(), 512 + if structured { 28 } else { 16 });
        assert!(reply.ends_with(&[9; 512]));
    }
}

#[test]
fn go_tells_size_and_flags_and_an_unknown_export_does_not_end_the_connection() {
    let mut world = World::new();
    world.send(&option_bytes(option::GO, &named("other", &[0, 0])));
    assert_eq!(
        world.received()[12..16],
        option_reply::UNKNOWN.to_be_bytes()
    );
    world.send(&option_bytes(option::GO, &named("v", &[0, 0])));
    let reply = world.received();
    assert_eq!(reply[22..30], (1_u64 << 20).to_be_bytes());
    let flags = u16::from_be_bytes([reply[30], reply[31]]);
    assert_ne!(flags & flag::MULTI_CONN, 0);
}

#[test]
fn a_range_outside_is_refused_and_its_payload_is_skipped() {
    let mut world = World::opened(false);
    world.send(&request_bytes(0, command::WRITE, 1 << 20, 512, &[9; 512]));
    assert_eq!(world.received()[4..8], error::NO_SPACE.to_be_bytes());
    world.send(&request_bytes(0, command::FLUSH, 0, 0, &[]));
    assert_eq!(world.received()[4..8], [0; 4]);
}

#[test]
fn block_status_shows_what_is_mapped_where_the_context_was_negotiated() {
    let mut world = World::opened(true);
    world.send(&request_bytes(0, command::WRITE, 4096, 4096, &[1; 4096]));
    world.received();
    world.send(&request_bytes(0, command::BLOCK_STATUS, 0, 16384, &[]));
    let reply = world.received();
    assert_eq!(reply.len(), 20 + 4 + 3 * 8);
    assert_eq!(reply[24..32], [0, 0, 16, 0, 0, 0, 0, 3]);
    let mut plain = World::opened(false);
    plain.send(&request_bytes(0, command::BLOCK_STATUS, 0, 4096, &[]));
    assert_eq!(plain.received()[4..8], error::INVALID.to_be_bytes());
}

#[test]
fn an_option_that_is_not_offered_is_refused_and_the_handshake_goes_on() {
    let starttls = 5;
    let mut world = World::new();
    world.send(&option_bytes(starttls, &[]));
    assert_eq!(
        world.received()[12..16],
        option_reply::UNSUPPORTED.to_be_bytes()
    );
    world.send(&option_bytes(option::GO, &named("v", &[0, 0])));
    assert_eq!(world.received()[12..16], option_reply::INFO.to_be_bytes());
}

proptest! {
    #[test]
    fn random_bytes_never_panic_and_pieces_do_not_matter(
        input in prop::collection::vec(any::<u8>(), 0..2048), kind in 0..12_u16, offset in 0..2_000_000_u64,
        length in any::<u32>(), piece in 1..50_usize, opened in any::<bool>(),
    ) {
        let mut bytes = if opened { request_bytes(0, kind, offset, length, &input) } else { option_bytes(u32::from(kind), &input) };
        bytes.extend_from_slice(&input);
        let world = || if opened { World::opened(true) } else { World::new() };
        let mut whole = world();
        whole.send(&bytes);
        let expected = whole.received();
        for size in [1, piece] {
            let mut cut = world();
            for part in bytes.chunks(size) {
                cut.send(part);
            }
            prop_assert_eq!(&cut.received(), &expected);
        }
    }
}
