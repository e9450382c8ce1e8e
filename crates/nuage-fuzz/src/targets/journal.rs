//! The journal's formats one by one: what is read is whole, and reads the same once it is written again.

use crate::input::{Input, Seed};
use nuage_block::crc32c;
use nuage_journal::{
    BLOCK_BYTES, Checkpoint, Cipher, Closing, Entry, Group, GroupBuilder, Index, Kind, Mark,
    Position, SegmentHeader, SegmentKind, SideState, Superblock, decode_first_block, decode_side,
    encode_side, scan,
};

const VOLUME: [u8; 16] = [4; 16];
const GROUP_HEADER_BYTES: usize = 160;
/// A segment's size in the scan: small, so that a run is short.
const SEGMENT_BYTES: usize = 64 << 10;

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

fn word(bytes: &[u8], at: usize) -> usize {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk::<4>);
    found.map_or(0, |word| u32::from_le_bytes(*word) as usize)
}

/// Give a group's header, its descriptors and, where it is whole, its payload the checksums that they claim.
pub fn mend_group(bytes: &mut [u8]) {
    if bytes.len() < GROUP_HEADER_BYTES {
        return;
    }
    let header = word(bytes, 12).clamp(GROUP_HEADER_BYTES, bytes.len());
    let payload = header.next_multiple_of(BLOCK_BYTES);
    let blocks = word(bytes, 60).min(1 << 12);
    if let Some(payload) = bytes.get(payload..payload + blocks * BLOCK_BYTES) {
        let digest = *blake3::hash(payload).as_bytes();
        put(bytes, 112, &digest);
    }
    let crc = crc32c(&bytes[GROUP_HEADER_BYTES..header]);
    put(bytes, 152, &crc.to_le_bytes());
    let crc = crc32c(&bytes[..156]);
    put(bytes, 156, &crc.to_le_bytes());
}

/// The digest that ends a file which is replaced whole.
pub fn mend_file(bytes: &mut [u8]) {
    if let Some((body, digest)) = bytes.split_last_chunk_mut::<32>() {
        *digest = *blake3::hash(body).as_bytes();
    }
}

pub fn mend_superblock(bytes: &mut [u8]) {
    if let Some(body) = bytes.get(..128) {
        let digest = *blake3::hash(body).as_bytes();
        put(bytes, 128, &digest);
    }
}

pub fn mend_first_block(bytes: &mut [u8]) {
    for (from, length) in [(0, 124), (512, 188)] {
        if let Some(body) = bytes.get(from..from + length) {
            let crc = crc32c(body);
            put(bytes, from + length, &crc.to_le_bytes());
        }
    }
}

fn group(bytes: &[u8]) {
    let Ok(group) = Group::decode(bytes) else {
        return;
    };
    let info = &group.head.info;
    let facts = group.head.block_facts();
    assert_eq!(facts.len(), info.payload_blocks as usize);
    assert_eq!(group.payload.len(), facts.len() * BLOCK_BYTES);
    assert!(group.total_bytes() <= bytes.len() as u64 + BLOCK_BYTES as u64);
    assert!(info.last_seq() >= info.first_seq && info.first_seq > 0);
    let again = [&*group.header, &*group.payload].concat();
    assert_eq!(Group::decode(&again), Ok(group));
}

fn side(bytes: &[u8]) {
    if let Ok(side) = decode_side(bytes) {
        let fits = |mark: &Mark| mark.name.len() <= 255;
        if side.marks.iter().all(fits) {
            assert_eq!(decode_side(&encode_side(&side)), Ok(side));
        }
    }
}

fn checkpoint(bytes: &[u8]) {
    if let Ok(found) = Checkpoint::decode(bytes) {
        let again = Checkpoint::decode(&found.to_bytes()).expect("as it was written");
        assert_eq!((again.position, again.life), (found.position, found.life));
        assert_eq!(again.index.mapped(), found.index.mapped());
        assert!(again.index.entries().eq(found.index.entries()));
    }
}

fn superblock(bytes: &[u8]) {
    if let Ok(found) = Superblock::decode(bytes) {
        assert_eq!(Superblock::decode(&found.encode()), Ok(found));
    }
}

fn header() -> SegmentHeader {
    SegmentHeader {
        slot: 1,
        volume: VOLUME,
        segment: 2,
        epoch: 3,
        first_seq: 1,
        size_bytes: 64 << 10,
        kind: SegmentKind::Log,
        created_ns: 0,
        previous_chain: [0; 32],
    }
}

/// A log of the same groups each time, into which the input writes; with `mends` their checksums, and the chain, fit.
fn log(input: &mut Input<'_>, mends: bool) {
    let mut bytes = vec![0; BLOCK_BYTES];
    let mut places = Vec::new();
    let mut chain = [0; 32];
    for number in 0..3 {
        let made = make_group(1 + number * 4, chain, number * 4, false);
        chain = made.head.chain;
        places.push(bytes.len());
        bytes.extend_from_slice(&made.header);
        bytes.extend_from_slice(&made.payload);
    }
    bytes.resize(SEGMENT_BYTES, 0);
    let written = scan(&bytes, &header(), 0);
    assert_eq!(written.groups.len(), places.len());
    let known_seq = u64::from(input.u8());
    while !input.is_empty() {
        let place = places[usize::from(input.u8()) % places.len()];
        let at = place + usize::from(input.u16()) % (2 * BLOCK_BYTES);
        let noise = input.sized();
        let end = (at + noise.len()).min(bytes.len());
        bytes[at..end].copy_from_slice(&noise[..end - at]);
        if mends {
            mend_group(&mut bytes[place..]);
        }
    }
    let found = scan(&bytes, &header(), known_seq);
    let mut next_seq = 1;
    for (number, group) in found.groups.iter().enumerate() {
        assert_eq!(group.head.info.first_seq, next_seq);
        next_seq = group.head.info.last_seq() + 1;
        let (at, is_as_made) = (group.offset as usize, Some(&written.groups[number.min(2)]));
        let is_as_made = is_as_made.is_some_and(|made| made.head.chain == group.head.chain);
        assert!(mends || is_as_made, "what nobody wrote at {at}");
        let is_whole = Group::decode(&bytes[at..]).is_ok();
        assert_eq!(is_whole, !group.is_damaged);
    }
    assert!(found.end as usize <= SEGMENT_BYTES);
}

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mode = input.u8();
    let mends = mode & 0x80 != 0;
    if mode & 7 == 7 {
        return log(&mut input, mends);
    }
    let mut found = input.rest().to_vec();
    match mode & 7 {
        0 => {
            if mends {
                mend_group(&mut found);
            }
            group(&found);
        }
        1 => side(&found),
        2 => {
            if mends {
                mend_file(&mut found);
            }
            checkpoint(&found);
        }
        3 => {
            if mends {
                mend_superblock(&mut found);
            }
            superblock(&found);
        }
        _ => {
            if mends {
                mend_first_block(&mut found);
            }
            // A seal counts only where it is of the same segment.
            if let Ok((header, Some(seal))) = decode_first_block(&found) {
                assert_eq!(header.segment, seal.segment);
            }
        }
    }
}

/// One of each kind of record that holds no whole block, and a write.
fn make_group(first_seq: u64, previous_chain: [u8; 32], stable_seq: u64, encrypted: bool) -> Group {
    let mut cipher = encrypted.then(|| Cipher::new(&[1; 32]));
    let mut builder = GroupBuilder::new(VOLUME, 3, first_seq, encrypted);
    let data = vec![7; BLOCK_BYTES];
    builder.push_write(Kind::Write, 0, first_seq * 10, &data, cipher.as_mut());
    builder.push_plain(Kind::Zero, 0, 5, 100, &[]);
    builder.push_plain(Kind::Mark, 0, 0, 9, b"before the update");
    builder.push_plain(Kind::Reservations, 0, 0, 0, &[1, 0, 0]);
    let closing = Closing {
        segment: 2,
        time_ns: first_seq,
        stable_seq,
        previous_chain,
    };
    builder.finish(&closing)
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for encrypted in [false, true] {
        let made = make_group(1, [0; 32], 0, encrypted);
        let head = Seed::default().u8(0x80).bytes(&made.header[..]);
        seeds.push(head.clone().bytes(&made.payload[..]).0);
        seeds.push(head.0);
    }
    let mut plain = GroupBuilder::new(VOLUME, 3, 1, false);
    plain.push_plain(Kind::Flush, 0, 0, 0, &[]);
    plain.push_plain(Kind::Resize, 0, 0, 1 << 20, &[]);
    plain.push_plain(Kind::Epoch, 0, 0, 0, b"head");
    let made = plain.finish(&Closing {
        segment: 2,
        time_ns: 1,
        stable_seq: 0,
        previous_chain: [0; 32],
    });
    seeds.push(Seed::default().u8(0x80).bytes(made.header_bytes()).0);
    let mark = |kind: Kind, name: &str| Mark {
        seq: 3,
        time_ns: 4,
        kind,
        id: 5,
        name: name.into(),
    };
    let side = SideState {
        reservations: vec![1, 2, 3],
        marks: vec![mark(Kind::Mark, "one"), mark(Kind::Snapshot, "two")],
    };
    seeds.push(Seed::default().u8(1).bytes(&encode_side(&side)).0);
    let mut index = Index::default();
    index.set(3, Entry::new(1, 5, 1, 77));
    let checkpoint = Checkpoint {
        volume: VOLUME,
        size_bytes: 1 << 20,
        position: Position::default(),
        pinned: false,
        side,
        index,
        life: 1,
    };
    seeds.push(Seed::default().u8(0x82).bytes(&checkpoint.to_bytes()).0);
    let spec = super::store::spec();
    let superblock = spec.superblock([0; 16]).encode();
    seeds.push(Seed::default().u8(0x83).bytes(&superblock[..160]).0);
    let first = nuage_journal::SegmentHeader { ..header() };
    let block = super::store::sealed_first_block();
    seeds.push(Seed::default().u8(0x84).bytes(&block[..704]).0);
    assert_eq!(first.segment, 2);
    for (mode, known) in [(7, 0), (0x87, 0), (7, 9), (0x87, 9)] {
        let seed = Seed::default().u8(mode).u8(known);
        seeds.push(seed.clone().u8(2).u16(60).sized(&[9, 9]).0);
        seeds.push(seed.clone().u8(1).u16(5000).sized(&[1]).0);
        seeds.push(seed.u8(0).u16(56).sized(&4u32.to_le_bytes()).0);
    }
    seeds
}
