//! NBD: handshake and requests.

use crate::input::{Input, Seed};
use nuage_block::memory::MemoryDevice;
use nuage_block::{BlockDevice, Geometry, Request};
use nuage_nbd::wire::{CONTEXT, IHAVEOPT, REQUEST_MAGIC, command, option};
use nuage_nbd::{ConnectionId, Export, Server};

const SIZE: u64 = 1 << 20;
/// The largest request that a server must take is 32 MiB; no answer of ours to so few bytes is larger than a few.
const ANSWER_BYTES_MAX: usize = 256 << 20;

struct World {
    server: Server,
    device: MemoryDevice,
    connection: ConnectionId,
    held: Vec<Request>,
    hold: bool,
    heard: Vec<u8>,
}

fn option_bytes(code: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes();
    let head = [&IHAVEOPT.to_be_bytes()[..], &code.to_be_bytes(), &length];
    [&head.concat(), data].concat()
}

fn request_bytes(flags: u16, kind: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let parts = [
        &REQUEST_MAGIC.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ];
    parts.concat()
}

fn named(name: &str, tail: &[u8]) -> Vec<u8> {
    let length = u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length[..], name.as_bytes(), tail].concat()
}

impl World {
    fn new() -> Self {
        let geometry = Geometry {
            size_bytes: SIZE,
            logical_block_bytes: 512,
            uuid: [1; 16],
            name: "v".into(),
            read_only: false,
            write_cache: true,
        };
        let mut server = Server::default();
        let export = Export {
            name: "v".into(),
            geometry: geometry.clone(),
            multi_conn: true,
        };
        assert!(server.add_export(1, export));
        let connection = server.accept().expect("one is not too many");
        let device = MemoryDevice::new(geometry);
        Self {
            server,
            device,
            connection,
            held: Vec::new(),
            hold: false,
            heard: Vec::new(),
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.server.receive(self.connection, bytes);
        self.pump();
    }

    fn pump(&mut self) {
        let (mut requests, mut completions) = (Vec::new(), Vec::new());
        loop {
            self.server.take_requests(&mut requests);
            if requests.is_empty() {
                break;
            }
            self.held
                .extend(requests.drain(..).map(|(_, request)| request));
            if self.hold {
                break;
            }
            for request in self.held.drain(..) {
                self.device.submit(request);
            }
            self.device.poll(&mut completions);
            for completion in completions.drain(..) {
                self.server.complete(completion);
            }
            self.hear();
        }
        self.hear();
    }

    fn hear(&mut self) {
        let Some(output) = self.server.output(self.connection) else {
            return;
        };
        let before = self.heard.len();
        assert!(before + output.len() <= ANSWER_BYTES_MAX);
        for slice in output.slices(usize::MAX) {
            self.heard.extend_from_slice(&slice);
        }
        self.server.sent(self.connection, self.heard.len() - before);
    }

    fn land(&mut self) {
        self.hold = false;
        let mut completions = Vec::new();
        for request in self.held.drain(..) {
            self.device.submit(request);
        }
        self.device.poll(&mut completions);
        for completion in completions.drain(..) {
            self.server.complete(completion);
        }
        self.pump();
    }
}

/// The stream that a client sends: its own options and requests, in order or not.
fn stream(input: &mut Input<'_>) -> Vec<u8> {
    let mut stream = Vec::new();
    while !input.is_empty() {
        match input.u8() {
            0 => stream.extend(option_bytes(u32::from(input.u8()), input.sized())),
            1 => stream.extend(named("v", input.sized())),
            2 => {
                let (flags, kind) = (u16::from(input.u8()), u16::from(input.u8()));
                let (offset, length) = (u64::from(input.u32()), u32::from(input.u16()));
                stream.extend(request_bytes(flags, kind, 7, offset << 4, length << 4));
                stream.extend_from_slice(input.sized());
            }
            3 => {
                // A write with all of its data.
                let (offset, pages) = (u64::from(input.u16()), usize::from(input.u8() % 8));
                let length = u32::try_from(pages * 512).unwrap_or(0);
                let request = request_bytes(0, command::WRITE, 8, offset * 512, length);
                stream.extend(request);
                stream.resize(stream.len() + pages * 512, input.u8());
            }
            4 => stream.extend(option_bytes(option::STRUCTURED_REPLY, &[])),
            5 => stream.extend(option_bytes(option::GO, &named("v", &[0, 0]))),
            6 => stream.extend(request_bytes(0, command::DISCONNECT, 9, 0, 0)),
            _ => stream.extend_from_slice(input.sized()),
        }
    }
    stream
}

/// However what a client says is cut, it hears the same; and once it is gone nothing of it is left.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let [mode, piece] = input.array();
    let mut opening = u32::from(mode & 3).to_be_bytes().to_vec();
    if mode & 4 != 0 {
        opening.extend(option_bytes(option::STRUCTURED_REPLY, &[]));
        let context = [&1u32.to_be_bytes()[..], &named(CONTEXT, &[])].concat();
        opening.extend(option_bytes(option::SET_META, &named("v", &context)));
    }
    if mode & 8 != 0 {
        opening.extend(option_bytes(option::GO, &named("v", &[0, 0])));
    }
    let stream = [opening, stream(&mut input)].concat();
    let mut whole = World::new();
    whole.send(&stream);
    let mut cut = World::new();
    for part in stream.chunks(usize::from(piece) + 1) {
        cut.send(part);
    }
    // What is refused at once may overtake what the engine has: the order of answers is free.
    whole.heard.sort_unstable();
    cut.heard.sort_unstable();
    assert!(whole.heard == cut.heard, "it matters how the stream is cut");
    // The same once more, with an engine that answers late.
    let mut late = World::new();
    late.hold = true;
    late.send(&stream);
    if mode & 16 != 0 {
        late.server.closed(late.connection);
    }
    late.land();
    late.server.closed(late.connection);
    late.land();
    assert!(!late.server.busy(1), "a request outlives its connection");
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for code in 0..12 {
        let data = named("v", &[0, 1, 0, 3]);
        let seed = Seed::default().u8(3).u8(5).u8(0).u8(code);
        seeds.push(seed.sized(&data).u8(5).0);
        let context = [&1u32.to_be_bytes()[..], &named("base:", &[])].concat();
        let seed = Seed::default().u8(3).u8(200).u8(4).u8(0).u8(code);
        seeds.push(seed.sized(&named("v", &context)).0);
    }
    for kind in 0..9 {
        for mode in [11, 15, 31] {
            let seed = Seed::default().u8(mode).u8(13).u8(3).u16(8).u8(2).u8(9);
            let seed = seed.u8(2).u8(0).u8(kind).u32(256).u16(64);
            seeds.push(seed.sized(&[]).u8(6).0);
        }
    }
    seeds
}
