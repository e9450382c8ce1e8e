//! iSCSI: what splits a stream into PDUs, the login, and a session with its disk.

use crate::input::{Input, Seed};
use nuage_block::{crc32c, crc32c_append};
use nuage_scsi::chap::{Account, Algorithm, encode_hex};
use nuage_scsi::pdu::{BHS_BYTES, Bhs, Pdu, PduError, PduReader, request, response};
use nuage_scsi::text::Pairs;
use nuage_scsi::{Access, ConnectionId, opcodes};
use std::collections::BTreeMap;
use std::fmt::Write as _;

#[path = "../../../nuage-scsi/tests/initiator/mod.rs"]
mod initiator;

use initiator::{TARGET, World};

const DATA_BYTES_MAX: usize = 512;
const SECRET: &[u8] = b"twelve bytes";
const NAME: &str = "iqn.x:host";
/// What [`World::new`] gives as entropy: identifier and challenge.
const ENTROPY: [u8; 33] = [7; 33];

fn read_all(digests: u8, input: &[u8], piece: usize) -> (Vec<Pdu>, Option<PduError>) {
    let mut reader = PduReader::new(DATA_BYTES_MAX);
    reader.header_digest = digests & 1 != 0;
    reader.data_digest = digests & 2 != 0;
    let mut pdus = Vec::new();
    for mut part in input.chunks(piece.max(1)) {
        loop {
            match reader.next(&mut part) {
                Ok(Some(pdu)) => pdus.push(pdu),
                Ok(None) => break,
                Err(error) => return (pdus, Some(error)),
            }
        }
    }
    (pdus, None)
}

/// The PDUs of `plain`, which has no digests, with those of `digests`.
fn with_digests(digests: u8, plain: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    let mut rest = plain;
    while let Some(bytes) = rest.first_chunk::<BHS_BYTES>() {
        let header = Bhs(*bytes);
        let head = (BHS_BYTES + header.ahs_bytes()).min(rest.len());
        let data = header.data_bytes().next_multiple_of(4);
        let data = data.min(rest.len() - head);
        stream.extend_from_slice(&rest[..head]);
        if digests & 1 != 0 {
            stream.extend_from_slice(&crc32c(&rest[..head]).to_le_bytes());
        }
        let body = &rest[head..head + data];
        stream.extend_from_slice(body);
        if digests & 2 != 0 && data > 0 {
            stream.extend_from_slice(&crc32c_append(crc32c(body), &[]).to_le_bytes());
        }
        rest = &rest[head + data..];
    }
    stream.extend_from_slice(rest);
    stream
}

/// However a stream is cut, the same PDUs come out of it; of sound ones, all.
pub fn pdus(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (mode, piece) = (input.u8(), usize::from(input.u8()));
    let digests = mode & 3;
    let plain = input.rest();
    let stream = if mode & 4 == 0 {
        plain.to_vec()
    } else {
        with_digests(digests, plain)
    };
    let whole = read_all(digests, &stream, stream.len());
    assert_eq!(read_all(digests, &stream, 1), whole);
    assert_eq!(read_all(digests, &stream, piece), whole);
    if mode & 4 != 0 {
        assert_eq!(whole.0, read_all(0, plain, plain.len()).0);
    }
    if let Ok(pairs) = Pairs::parse(plain) {
        assert_eq!(Pairs::parse(&pairs.encode()), Ok(pairs));
    }
}

pub fn pdu_seeds() -> Vec<Vec<u8>> {
    let command = Bhs::new(request::SCSI_COMMAND, 0x80);
    let mut long = Bhs::new(request::SCSI_COMMAND, 0xa0);
    long.0[4] = 2;
    let stream = [
        World::encode(command, b""),
        World::encode(Bhs::new(request::DATA_OUT, 0x80), &[7; 21]),
        World::encode(Bhs::new(request::TEXT, 0x80), b"SendTargets=All\0"),
    ];
    let stream = stream.concat();
    let with_ahs = [&long.0[..], &[0, 4, 1, 0, 0, 0, 2, 0]].concat();
    let modes = [0u8, 4, 5, 6, 7];
    let mut seeds: Vec<Vec<u8>> = modes
        .iter()
        .flat_map(|mode| {
            let seed = Seed::default().u8(*mode).u8(13);
            [seed.clone().bytes(&stream).0, seed.bytes(&with_ahs).0]
        })
        .collect();
    seeds.push(Seed::default().u8(0).u8(1).bytes(b"Key=Value\0X=Y\0").0);
    seeds
}

fn access(choice: u8) -> Access {
    let account = |name: &str| Account {
        name: name.into(),
        secret: SECRET.to_vec(),
    };
    let mut access = Access::default();
    if choice & 1 != 0 {
        access.accounts.push(account("host"));
    }
    if choice & 2 != 0 {
        access.own = Some(account("target"));
    }
    access.closed = choice & 4 != 0;
    if choice & 8 != 0 {
        access.initiators.push(NAME.into());
    }
    access
}

/// Any login PDUs: who has no proof of an account stays outside where one is asked for.
pub fn login(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let choice = input.u8();
    let mut world = World::new(access(choice));
    let mut has_proof = false;
    let proofs: Vec<String> = [
        Algorithm::Md5,
        Algorithm::Sha1,
        Algorithm::Sha256,
        Algorithm::Sha3,
    ]
    .iter()
    .map(|algorithm| encode_hex(&algorithm.response(ENTROPY[0], SECRET, &ENTROPY[1..])))
    .collect();
    while !input.is_empty() && !world.server.finished(world.connection) {
        let [opcode, flags] = input.array();
        let mut header = Bhs::new(opcode, flags);
        header.0[8..24].copy_from_slice(&input.array::<16>());
        header.set_word(24, input.u32());
        let text = input.sized();
        // The proof is hashes: no fuzzer finds them.
        let mut text = String::from_utf8_lossy(text).into_owned();
        for (number, proof) in proofs.iter().enumerate() {
            text = text.replace(&format!("${number}"), proof);
        }
        has_proof |= proofs.iter().any(|proof| text.contains(proof));
        world
            .server
            .receive(world.connection, &World::encode(header, text.as_bytes()));
        world.pump();
        let output = world.server.output(world.connection);
        let count = output.map_or(0, nuage_block::Output::len);
        assert!(count <= 1 << 16, "a login is answered in a few pages");
        world.server.sent(world.connection, count);
    }
    let sessions = world.server.sessions(1);
    if choice & 5 != 0 && !has_proof {
        assert!(sessions.is_empty(), "without proof: {sessions:?}");
    }
    if choice & 8 != 0 {
        assert!(sessions.iter().all(|session| session.initiator == NAME));
    }
    world.server.closed(world.connection);
    assert!(world.server.sessions(1).is_empty() && !world.server.busy(1));
}

/// A login PDU as [`login`] reads it.
fn login_pdu(seed: Seed, flags: u8, text: &str) -> Seed {
    let isid = [0x80, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    seed.u8(request::LOGIN | 0x40)
        .u8(flags)
        .bytes(&isid)
        .u32(1)
        .sized(text.replace(' ', "\0").as_bytes())
}

pub fn login_seeds() -> Vec<Vec<u8>> {
    let names = format!("InitiatorName={NAME} TargetName={TARGET} SessionType=Normal ");
    let settings = "HeaderDigest=CRC32C,None DataDigest=None ImmediateData=Yes InitialR2T=No MaxBurstLength=262144 \
        FirstBurstLength=65536 MaxRecvDataSegmentLength=65536 MaxConnections=1 MaxOutstandingR2T=1 ErrorRecoveryLevel=0 \
        DataPDUInOrder=Yes DataSequenceInOrder=Yes DefaultTime2Wait=2 DefaultTime2Retain=0 X-odd=1 ";
    let seed = |choice: u8| Seed::default().u8(choice);
    let open = login_pdu(seed(0), 0x87, &format!("{names}{settings}"));
    let plain = login_pdu(seed(8), 0x81, &format!("{names}AuthMethod=None "));
    let plain = login_pdu(plain, 0x87, settings);
    let discovery = format!("InitiatorName={NAME} SessionType=Discovery ");
    let discovery = login_pdu(seed(0), 0x87, &discovery)
        .u8(request::TEXT)
        .u8(0x80)
        .bytes(&[0; 8])
        .bytes(&[0, 0, 0, 9, 0xff, 0xff, 0xff, 0xff])
        .u32(1)
        .sized(b"SendTargets=All\0");
    let in_parts = login_pdu(seed(0), 0x44, &names);
    let in_parts = login_pdu(in_parts, 0x87, settings);
    let mut seeds = vec![open.0, plain.0, discovery.0, in_parts.0];
    for (number, algorithm) in ["5", "6", "7", "8"].iter().enumerate() {
        let chap = login_pdu(seed(3), 0x00, &format!("{names}AuthMethod=CHAP "));
        let chap = login_pdu(chap, 0x00, &format!("CHAP_A={algorithm} "));
        let mut proof = format!("CHAP_N=host CHAP_R=${number} ");
        if number % 2 == 0 {
            proof.push_str("CHAP_I=9 CHAP_C=0x0102030405060708090a0b0c0d0e0f10 ");
        }
        let chap = login_pdu(chap, 0x81, &proof);
        seeds.push(login_pdu(chap, 0x87, settings).0);
    }
    seeds
}

/// Two initiators on one disk.
struct Story {
    world: World,
    connections: [ConnectionId; 2],
    /// Commands sent and not answered, by connection and tag.
    asked: [BTreeMap<u32, usize>; 2],
    command_sn: [u32; 2],
}

impl Story {
    fn new(choice: u8) -> Self {
        let yes_or_no = |bit: u8| if choice & bit == 0 { "No" } else { "Yes" };
        let keys = [
            ("ImmediateData", yes_or_no(1)),
            ("InitialR2T", yes_or_no(2)),
            ("MaxBurstLength", "4096"),
            ("FirstBurstLength", "2048"),
            ("MaxRecvDataSegmentLength", "1024"),
        ];
        let mut world = World::new(Access::default());
        let mut connections = [world.connection; 2];
        for (connection, initiator) in connections.iter_mut().zip([NAME, "iqn.x:other"]) {
            if initiator != NAME {
                let accepted = world.server.accept("192.0.2.1:3260", ENTROPY);
                world.connection = accepted.expect("two are not too many");
                *connection = world.connection;
            }
            assert_eq!(world.login_as(initiator, &keys), (0, 0));
            world.command_sn = 1;
        }
        let mut story = Self {
            world,
            connections,
            asked: Default::default(),
            command_sn: [1; 2],
        };
        if choice & 4 != 0 {
            for who in [0, 1] {
                story.tell(who, 0x80, 0, &[0; 16], 0xf000, &[]);
                story.tell(who, 0x80, 0, &[0; 16], 0xf001, &[]);
            }
        }
        story
    }

    fn tell(
        &mut self,
        who: usize,
        flags: u8,
        expected: u32,
        cdb: &[u8; 16],
        tag: u32,
        data: &[u8],
    ) {
        let mut header = Bhs::new(request::SCSI_COMMAND, flags);
        header.set_word(16, tag);
        header.set_word(20, expected);
        header.set_word(24, self.command_sn[who]);
        self.command_sn[who] = self.command_sn[who].wrapping_add(1);
        header.0[32..48].copy_from_slice(cdb);
        *self.asked[who].entry(tag).or_default() += 1;
        self.send(who, header, data);
    }

    fn send(&mut self, who: usize, header: Bhs, data: &[u8]) {
        self.world
            .server
            .receive(self.connections[who], &World::encode(header, data));
        self.world.pump();
        self.hear(who);
        self.hear(1 - who);
    }

    /// All that was said to one of them: whole PDUs, and no more answers than commands.
    fn hear(&mut self, who: usize) {
        self.world.connection = self.connections[who];
        for pdu in self.world.received() {
            let opcode = pdu.header.opcode();
            let has_status = opcode == response::DATA_IN && pdu.header.flags() & 1 != 0;
            if opcode == response::SCSI || has_status {
                let count = self.asked[who].entry(pdu.header.task_tag()).or_default();
                assert!(*count > 0, "an answer to nothing: {pdu:?}");
                *count -= 1;
            }
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let op = input.u8();
        let who = usize::from(op >> 7);
        match op & 0x7f {
            0 | 1 => {
                // A command that there is, and any other.
                let row = usize::from(input.u8());
                let [flags, tag] = input.array();
                let expected = u32::from(input.u16());
                let mut cdb: [u8; 16] = input.array();
                if op & 1 == 0 {
                    let command = &opcodes::COMMANDS[row % opcodes::COMMANDS.len()];
                    cdb[0] = command.opcode;
                    if let Some(action) = command.service_action {
                        cdb[1] = cdb[1] & 0xe0 | action;
                    }
                }
                let data = input.sized();
                self.tell(who, flags | 0x80, expected, &cdb, u32::from(tag), data);
            }
            2 => {
                // Data for a command that waits for it.
                let mut header = Bhs::new(request::DATA_OUT, input.u8());
                header.set_word(16, u32::from(input.u8()));
                header.set_word(20, u32::from_be_bytes([input.u8().wrapping_neg(); 4]));
                header.set_word(36, u32::from(input.u8()));
                header.set_word(40, u32::from(input.u16()));
                let data = input.sized();
                self.send(who, header, data);
            }
            3 => {
                let mut header = Bhs::new(request::TASK_MANAGEMENT | 0x40, 0x80 | input.u8());
                header.set_word(16, u32::from(input.u8()));
                header.set_word(20, u32::from(input.u8()));
                header.set_word(24, self.command_sn[who]);
                self.send(who, header, &[]);
            }
            4 => {
                let [opcode, flags] = input.array();
                let mut header = Bhs::new(opcode, flags);
                header.0[8..].copy_from_slice(&input.array::<40>());
                if header.opcode() == request::SCSI_COMMAND {
                    *self.asked[who].entry(header.task_tag()).or_default() += 1;
                }
                if opcode & 0x40 == 0 && flags & 1 == 0 {
                    header.set_word(24, self.command_sn[who]);
                    self.command_sn[who] = self.command_sn[who].wrapping_add(1);
                }
                let data = input.sized();
                self.send(who, header, data);
            }
            5 => self.world.hold = true,
            6 => {
                self.world.land();
                self.hear(0);
                self.hear(1);
            }
            7 => {
                let unit = self.world.server.unit_mut(1);
                if let Some(unit) = unit {
                    unit.load_reservations(input.sized(), input.u8() & 1 != 0);
                }
            }
            8 => {
                self.world.server.closed(self.connections[who]);
            }
            _ => {
                let noise = input.sized();
                if noise
                    .first()
                    .is_some_and(|byte| byte & 0x3f == request::SCSI_COMMAND)
                {
                    return;
                }
                self.world.server.receive(self.connections[who], noise);
                self.world.pump();
            }
        }
    }
}

/// Two initiators say anything to one disk: each command is answered once at most, and whoever comes then is served.
pub fn session(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut story = Story::new(input.u8());
    while !input.is_empty() {
        story.step(&mut input);
    }
    let mut world = story.world;
    world.land();
    for connection in story.connections {
        world.server.closed(connection);
    }
    world.land();
    assert!(!world.server.busy(1), "a task outlives its session");
    let accepted = world.server.accept("192.0.2.1:3260", ENTROPY);
    world.connection = accepted.expect("all others are gone");
    world.command_sn = 1;
    assert_eq!(world.login_as("iqn.x:third", &[]), (0, 0));
    world.settle();
    world.command(9, 0xc0, 512, &[opcodes::INQUIRY, 0, 0, 0, 255, 0], &[]);
    assert_eq!(world.received().len(), 1);
}

pub fn session_seeds() -> Vec<Vec<u8>> {
    let command = |seed: Seed, row: usize, flags: u8, tag: u8, cdb: &[u8], data: &[u8]| {
        let mut whole = [0; 16];
        whole[1..=cdb.len()].copy_from_slice(cdb);
        seed.u8(0)
            .u8(u8::try_from(row).unwrap_or(0))
            .u8(flags)
            .u8(tag)
            .u16(512)
            .bytes(&whole)
            .sized(data)
    };
    let mut seeds = Vec::new();
    let mut all = Seed::default().u8(5);
    for (row, known) in opcodes::COMMANDS.iter().enumerate() {
        let is_write = known.class == opcodes::Class::Writes;
        let flags = if is_write { 0xa0 } else { 0xc0 };
        // One block at block 1, in the places where most commands have them.
        let cdb = match known.usage.len() {
            6 => vec![0, 0, 1, 255],
            10 => vec![0, 0, 0, 0, 1, 0, 0, 1],
            12 => vec![0, 0, 0, 0, 1, 0, 0, 0, 1],
            _ => vec![0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1],
        };
        let data = if is_write { &[0x5a; 512][..] } else { &[] };
        seeds.push(command(Seed::default().u8(5), row, flags, 1, &cdb, data).0);
        if row % 3 == 0 {
            all = command(all, row, flags, u8::try_from(row).unwrap_or(0), &cdb, &[]);
        }
    }
    seeds.push(all.0);
    let row_of = |opcode: u8| {
        let found = opcodes::COMMANDS.iter();
        found
            .clone()
            .position(|command| command.opcode == opcode)
            .unwrap_or(0)
    };
    // A write that waits for its data, an abort of it, and one that lands late.
    let ten = [0, 0, 0, 0, 1, 0, 0, 2];
    let write = command(
        Seed::default().u8(4),
        row_of(opcodes::WRITE_10),
        0xa0,
        1,
        &ten,
        &[],
    );
    let write = write
        .u8(2)
        .u8(0x80)
        .u8(1)
        .u8(1)
        .u8(0)
        .u16(0)
        .sized(&[3; 512]);
    seeds.push(write.u8(3).u8(1).u8(2).u8(1).u8(6).0);
    let late = command(
        Seed::default().u8(5).u8(5),
        row_of(opcodes::WRITE_10),
        0xa0,
        1,
        &ten,
        &[9; 512],
    );
    seeds.push(late.u8(3).u8(2).u8(2).u8(1).u8(6).u8(8).0);
    // Register a key, and reserve with it.
    let out = row_of(0x5f);
    let mut list = [0; 24];
    list[15] = 1;
    let register = command(
        Seed::default().u8(5),
        out,
        0xa0,
        1,
        &[0, 0, 0, 0, 0, 0, 0, 24],
        &list,
    );
    list.rotate_left(8);
    seeds.push(
        command(
            register,
            out + 1,
            0xa0,
            2,
            &[1, 5, 0, 0, 0, 0, 0, 24],
            &list,
        )
        .0,
    );
    let mut text = String::new();
    let _ = write!(text, "SendTargets={TARGET}\0");
    let mut header = [0; 40];
    header[12..16].copy_from_slice(&[0xff; 4]);
    let ask = Seed::default().u8(4).u8(4).u8(request::TEXT).u8(0x80);
    seeds.push(ask.bytes(&header).sized(text.as_bytes()).0);
    seeds
}
