//! What head and copies say to each other: the frames, and both sides under frames that nobody should send.

use crate::input::{Input, Seed};
use crate::targets::journal::mend_group;
use nuage_block::{Completion, Operation, Outcome, Request, crc32c};
use nuage_engine::{AckMode, Clock, CopyOptions, HeadOptions, ReplicaStore, VolumeHead};
use nuage_journal::{
    BLOCK_BYTES, Closing, GroupBuilder, Kind, Now, Retention, SEGMENT_BYTES_MIN, Store, TailRule,
};
use nuage_replica::{
    Base, Frame, FrameError, FrameReader, Marks, Policy, PolicyName, Refusal, Tail,
};
use nuage_sim_storage::{Medium, SimDisk};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

const BLOCKS: u64 = 96;
/// Of the address in a descriptor; its argument follows.
const LBA_AT: usize = 8;
const TURN_NS: u64 = 1_000_000;
/// Turns that a sound set takes at most to answer what it was asked.
const TURNS_MAX: usize = 2000;

/// A frame's bytes around any body.
fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let rest = [&[kind, 0, 0, 0], body].concat();
    let length = u32::try_from(rest.len() + 4)
        .unwrap_or(u32::MAX)
        .to_le_bytes();
    [&length[..], &crc32c(&rest).to_le_bytes(), &rest].concat()
}

fn read_all(bytes: &[u8], piece: usize) -> (Vec<Frame>, Option<FrameError>) {
    let mut reader = FrameReader::default();
    let mut frames = Vec::new();
    for part in bytes.chunks(piece.max(1)) {
        reader.receive(part);
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

/// However a stream is cut, the same frames come out of it, and each is written as it was read.
pub fn frames(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let [mode, piece] = input.array();
    let mut stream = Vec::new();
    if mode & 1 == 0 {
        stream.extend_from_slice(input.rest());
    }
    while !input.is_empty() {
        stream.extend(framed(input.u8() % 20, input.sized()));
    }
    let whole = read_all(&stream, stream.len());
    assert_eq!(read_all(&stream, 1), whole);
    assert_eq!(read_all(&stream, usize::from(piece)), whole);
    let mut again = Vec::new();
    for frame in &whole.0 {
        frame.encode(&mut again);
    }
    // The three bytes behind the kind mean nothing, nor does the value of a refusal that has none.
    let has_idle = |frame: &Frame| matches!(frame, Frame::Refused(_));
    let is_exact = mode & 1 == 1 && !whole.0.iter().any(has_idle);
    let reread = read_all(&again, again.len());
    assert_eq!(reread, (whole.0, None));
    if is_exact {
        assert!(stream.starts_with(&again));
    }
}

fn every_frame() -> Vec<Frame> {
    let tail = Tail {
        seq: 1,
        epoch: 2,
        chain: [3; 32],
    };
    let marks = Marks {
        committed_seq: 1,
        acked_seq: 1,
        sent_ns: 5,
    };
    let base = Base {
        seq: 2,
        epoch: 1,
        size_bytes: 1 << 20,
        ..Base::default()
    };
    vec![
        Frame::Fence {
            volume: [7; 16],
            epoch: 9,
            resumes: false,
        },
        Frame::Fenced {
            epoch: 9,
            tail,
            applied: tail,
            quiet_ns: 1,
            steady: true,
            whole: false,
        },
        Frame::Append {
            marks,
            group: vec![7; 40].into(),
        },
        Frame::Renew { marks },
        Frame::Held {
            memory_seq: 1,
            durable_seq: 1,
            sent_ns: 2,
        },
        Frame::Truncate {
            seq: 1,
            chain: [1; 32],
        },
        Frame::Fetch {
            after_seq: 0,
            bytes: 4096,
        },
        Frame::Groups {
            last: true,
            groups: vec![1, 2],
        },
        Frame::Release { epoch: 9 },
        Frame::Refused(Refusal::OutOfHistory { horizon: 4 }),
        Frame::FetchBlock {
            lba: 1,
            seq: 1,
            crc: 5,
        },
        Frame::Block {
            lba: 1,
            seq: 1,
            crc: 5,
            data: vec![7; 16],
        },
        Frame::Base { base, anew: true },
        Frame::Staged {
            seq: 1,
            epoch: 1,
            next_lba: 2,
        },
        Frame::BaseGroup { group: vec![1] },
        Frame::BaseSide { part: vec![0; 8] },
        Frame::Install { digest: [7; 32] },
    ]
}

/// Kind and body of a frame.
fn parts(frame: &Frame) -> (u8, Vec<u8>) {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    (bytes[8], bytes[12..].to_vec())
}

pub fn frame_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let mut all = Seed::default().u8(1).u8(7);
    for frame in every_frame() {
        let (kind, body) = parts(&frame);
        let mut raw = Vec::new();
        frame.encode(&mut raw);
        seeds.push(Seed::default().u8(0).u8(7).bytes(&raw).0);
        seeds.push(Seed::default().u8(1).u8(7).u8(kind).sized(&body).0);
        all = all.u8(kind).sized(&body);
    }
    seeds.push(all.0);
    seeds
}

#[derive(Default)]
struct HandClock(Cell<u64>);

impl Clock for HandClock {
    fn now(&self) -> Now {
        Now {
            monotonic_ns: self.0.get(),
            unix_ns: 1_700_000_000_000_000_000 + self.0.get(),
        }
    }
}

type Disk = Rc<RefCell<Medium>>;

fn open(medium: &Disk) -> Store<SimDisk> {
    let disk = SimDisk::new(medium, 1);
    let mut store = Store::open(disk, None, TailRule::OneOfSeveral).expect("a copy can be opened");
    store.set_retention(Retention {
        window_ns: u64::MAX,
        window_bytes: u64::from(SEGMENT_BYTES_MIN),
        strict: false,
    });
    store
}

/// A head and two copies, one of which a liar speaks to, and for.
struct Set {
    clock: Rc<HandClock>,
    media: [Disk; 3],
    head: VolumeHead<SimDisk>,
    copies: [ReplicaStore<SimDisk>; 2],
    next_tag: u64,
    /// The last value written to each block whose write was answered, and whether another is on its way.
    written: Vec<(u8, bool)>,
    asked: Vec<(u64, u64, u8)>,
    /// The head was told lies: it may be stopped.
    is_misled: bool,
}

impl Set {
    fn new() -> Self {
        let clock = Rc::new(HandClock(Cell::new(10_000_000_000)));
        let media = [1, 2, 3].map(Medium::new);
        for medium in &media {
            let spec = super::store::spec();
            Store::create(&mut SimDisk::new(medium, 1), &spec).expect("an empty disk");
        }
        let options = HeadOptions {
            name: Arc::from("v"),
            mode: AckMode::Durable,
            term: 1,
            head: "a".to_owned(),
            accepts_loss: false,
        };
        let copies = CopyOptions {
            policy: Policy::named(PolicyName::Any2Of3, 3).expect("three copies"),
            former: None,
            count: 3,
            me: 0,
            quiet_ns: nuage_replica::RELEASED_NS,
            steady: true,
        };
        let own: Rc<dyn Clock> = clock.clone();
        let head = VolumeHead::open_replicated(open(&media[0]), options, copies, own);
        let copy = |medium| ReplicaStore::new(open(medium), clock.clone() as Rc<dyn Clock>);
        let mut set = Self {
            head: head.expect("a head"),
            copies: [copy(&media[1]), copy(&media[2])],
            clock,
            media,
            next_tag: 1,
            written: vec![(0, false); BLOCKS as usize],
            asked: Vec::new(),
            is_misled: false,
        };
        for copy in [0, 1] {
            set.connect(copy);
        }
        for _ in 0..TURNS_MAX {
            if set.head.is_serving() {
                return set;
            }
            set.turn();
        }
        panic!("a sound set never serves");
    }

    fn connect(&mut self, copy: usize) {
        self.copies[copy].session_closed(1);
        self.head.peer_disconnected(copy + 1);
        self.copies[copy].session_opened(1);
        self.head.peer_connected(copy + 1);
    }

    /// A connection with a frame that cannot be read is closed and made anew, as the daemon does.
    fn tell_head(&mut self, copy: usize, bytes: &[u8]) {
        if self.head.peer_receive(copy + 1, bytes).is_err() {
            self.connect(copy);
        }
    }

    fn tell_copy(&mut self, copy: usize, bytes: &[u8]) {
        if self.copies[copy].receive(1, bytes).is_err() {
            self.connect(copy);
        }
    }

    fn turn(&mut self) {
        self.clock.0.set(self.clock.0.get() + TURN_NS);
        let mut completions = Vec::new();
        self.head.poll(&mut completions);
        for copy in [0, 1] {
            let bytes = self.head.peer_output(copy + 1).drain();
            self.tell_copy(copy, &bytes);
            self.copies[copy].poll();
            let bytes = self.copies[copy].output(1).drain();
            self.tell_head(copy, &bytes);
        }
        for completion in completions {
            self.done(&completion);
        }
    }

    fn done(&mut self, completion: &Completion) {
        let Some(at) = self
            .asked
            .iter()
            .position(|(tag, ..)| *tag == completion.tag)
        else {
            return;
        };
        let (_, lba, value) = self.asked.remove(at);
        let place = &mut self.written[lba as usize];
        match &completion.outcome {
            // A write that was refused may yet be seen.
            Outcome::Done => place.0 = value,
            _ => place.1 = true,
        }
    }

    fn write(&mut self, lba: u64, value: u8) {
        let lba = lba % BLOCKS;
        let tag = self.next_tag;
        self.next_tag += 1;
        let busy = self.asked.iter().any(|(_, known, _)| *known == lba);
        self.written[lba as usize].1 |= busy;
        self.asked.push((tag, lba, value));
        let operation = Operation::Write {
            offset: lba * BLOCK_BYTES as u64,
            data: vec![value; BLOCK_BYTES].into(),
            fua: false,
        };
        self.head.submit(Request { tag, operation });
    }

    /// A group that follows a copy's tail, with records that a head of ours would never make.
    fn group(&self, copy: usize, input: &mut Input<'_>) -> Vec<u8> {
        let store = self.copies[copy].store();
        let (tail, superblock) = (store.tail(), store.superblock());
        let seq = tail.seq.saturating_add(1).min(u64::MAX / 2);
        let mut builder = GroupBuilder::new(superblock.volume, superblock.promised, seq, false);
        let mut places = Vec::new();
        for _ in 0..=input.u8() % 4 {
            let kind = match input.u8() % 9 {
                0 => Kind::Zero,
                1 => Kind::Unmap,
                2 => Kind::Mark,
                3 => Kind::Snapshot,
                4 => Kind::Reservations,
                5 => Kind::Flush,
                6 => Kind::Rollback,
                7 => Kind::Resize,
                _ => Kind::Epoch,
            };
            places.push((builder.header_bytes(), input.u64(), input.u64()));
            let tail = usize::from(input.u8());
            builder.push_plain(kind, 0, 0, 0, input.take(tail));
        }
        if input.u8() & 1 != 0 {
            let data = vec![input.u8(); BLOCK_BYTES * 2];
            places.push((builder.header_bytes(), input.u64(), 0));
            builder.push_write(Kind::Write, 0, 0, &data, None);
        }
        let (blocks, header_bytes) = (builder.total_blocks(), builder.header_bytes());
        let segment = store.segment_for(superblock.promised, blocks, header_bytes);
        let group = builder.finish(&Closing {
            segment: segment.wrapping_add(u64::from(input.u8())),
            time_ns: input.u64(),
            stable_seq: input.u64(),
            previous_chain: tail.chain,
        });
        let mut bytes = [&*group.header, &*group.payload].concat();
        for (at, lba, argument) in places {
            bytes[at + LBA_AT..at + LBA_AT + 8].copy_from_slice(&lba.to_le_bytes());
            bytes[at + LBA_AT + 8..at + LBA_AT + 16].copy_from_slice(&argument.to_le_bytes());
        }
        mend_group(&mut bytes);
        bytes
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let op = input.u8();
        // The copy that a liar speaks to is the second one, but for frames that name it.
        let copy = 1;
        match op % 10 {
            0 => self.write(u64::from(input.u8()), input.u8()),
            1 => {
                for _ in 0..input.u8() % 16 {
                    self.turn();
                }
            }
            2 => {
                let frame = framed(input.u8() % 20, input.sized());
                self.tell_copy(copy, &frame);
            }
            3 => {
                self.is_misled = true;
                let frame = framed(input.u8() % 20, input.sized());
                self.tell_head(copy, &frame);
            }
            4 => {
                let group = self.group(copy, input);
                let marks = Marks {
                    committed_seq: input.u64(),
                    acked_seq: input.u64(),
                    sent_ns: input.u64(),
                };
                let mut bytes = Vec::new();
                let group = group.into();
                Frame::Append { marks, group }.encode(&mut bytes);
                self.tell_copy(copy, &bytes);
            }
            5 => {
                // A fence that takes the head's place.
                let epoch = self.copies[copy].store().superblock().promised;
                let epoch = epoch.saturating_add(u64::from(input.u8()));
                let volume = [7; 16];
                let resumes = op & 0x80 != 0;
                let mut bytes = Vec::new();
                let fence = Frame::Fence {
                    volume,
                    epoch,
                    resumes,
                };
                fence.encode(&mut bytes);
                self.tell_copy(copy, &bytes);
            }
            6 => self.connect(copy),
            7 => {
                let noise = input.sized();
                self.tell_copy(copy, noise);
            }
            8 => {
                let tail = self.copies[copy].store().tail();
                let mut bytes = Vec::new();
                let chain = tail.chain;
                Frame::Truncate {
                    seq: tail.seq.wrapping_sub(u64::from(input.u8())),
                    chain,
                }
                .encode(&mut bytes);
                self.tell_copy(copy, &bytes);
            }
            _ => {
                self.head.tidy();
                self.copies[copy].tidy(input.u64());
                self.head.store_mut().checkpoint(false);
            }
        }
    }

    /// What was answered is read back from the head.
    fn check(&mut self) {
        for lba in 0..BLOCKS {
            let (value, is_open) = self.written[lba as usize];
            let pending = self.asked.iter().any(|(_, known, _)| *known == lba);
            if value == 0 || is_open || pending {
                continue;
            }
            let tag = self.next_tag;
            self.next_tag += 1;
            let operation = Operation::Read {
                offset: lba * BLOCK_BYTES as u64,
                length: BLOCK_BYTES as u32,
            };
            self.head.submit(Request { tag, operation });
            let mut completions = Vec::new();
            for _ in 0..50 {
                self.head.poll(&mut completions);
            }
            for completion in completions {
                if completion.tag == tag
                    && let Outcome::Data(data) = completion.outcome
                {
                    assert!(
                        data.iter().all(|byte| *byte == value),
                        "block {lba} is not {value}"
                    );
                }
            }
        }
    }
}

/// Whatever is said to a copy, and in a copy's name to the head: nothing panics, what was answered is read, the copy
/// that nobody lied to has all of it, and each copy can be opened again.
pub fn session(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut set = Set::new();
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        set.step(&mut input);
    }
    for _ in 0..40 {
        set.turn();
    }
    set.check();
    if !set.is_misled {
        let status = set.head.copies();
        assert_eq!(status.len(), 3);
    }
    let media = set.media.clone();
    drop(set);
    for medium in &media {
        let mut store = open(medium);
        let _ = store.verify_chain(0, u64::MAX);
    }
}

pub fn session_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let work = Seed::default()
        .u8(0)
        .u8(3)
        .u8(9)
        .u8(0)
        .u8(4)
        .u8(8)
        .u8(1)
        .u8(9);
    for frame in every_frame() {
        let (kind, body) = parts(&frame);
        for op in [2, 3] {
            let seed = work.clone().u8(op).u8(kind).sized(&body);
            seeds.push(seed.u8(1).u8(9).u8(0).u8(5).u8(7).u8(1).u8(9).0);
        }
    }
    for kind in 0..9 {
        let seed = work
            .clone()
            .u8(5)
            .u8(1)
            .u8(4)
            .u8(0)
            .u8(kind)
            .u64(1)
            .u64(2)
            .u8(0);
        let seed = seed.u8(1).u8(7).u64(3).u8(0).u64(9).u64(1);
        seeds.push(
            seed.u64(u64::MAX)
                .u64(u64::MAX)
                .u64(1)
                .u8(1)
                .u8(9)
                .u8(9)
                .u64(1 << 40)
                .0,
        );
    }
    seeds.push(work.clone().u8(8).u8(1).u8(1).u8(5).0);
    seeds.push(work.u8(6).u8(1).u8(9).u8(9).u64(1 << 62).0);
    seeds
}
