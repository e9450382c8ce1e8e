//! A volume in a directory behaves as an array of bytes, over restarts and over its history.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use nuage_block::{BlockDevice, Completion, Failure, Operation, Outcome, Request};
use nuage_disk::{BASE_FOLDER, FileDisk, Method};
use nuage_engine::{
    AckMode, Administration, Clock, HeadEvent, HeadOptions, SystemClock, Volume, clone_store,
    create_to_join, create_volume, open_volume,
};
use nuage_journal::{
    Cipher, DataKey, JournalError, Now, Point, ReceiptAct, Retention, StoreEvent, VolumeSpec,
};

const SIZE: u64 = 8 << 20;
const KEY: [u8; 32] = [7; 32];

fn spec(encrypted: bool) -> VolumeSpec {
    VolumeSpec {
        volume: [9; 16],
        size_bytes: SIZE,
        logical_block_bytes: 512,
        segment_bytes: 256 << 10,
        encrypted,
        created_ns: 1,
    }
}

fn open(path: &Path, encrypted: bool, mode: AckMode) -> Volume<FileDisk> {
    open_with(path, encrypted.then(|| DataKey::new(KEY).cipher()), mode)
}

fn open_with(path: &Path, cipher: Option<Cipher>, mode: AckMode) -> Volume<FileDisk> {
    let options = HeadOptions {
        name: Arc::from("v"),
        mode,
        term: 1,
        head: "test".into(),
        accepts_loss: false,
    };
    open_volume(path, cipher, options, Rc::new(SystemClock::default())).unwrap()
}

fn run(device: &mut dyn BlockDevice, operation: Operation) -> Outcome {
    device.submit(Request { tag: 1, operation });
    let mut completions: Vec<Completion> = Vec::new();
    while completions.is_empty() {
        device.poll(&mut completions);
    }
    assert_eq!(completions.len(), 1);
    completions.remove(0).outcome
}

fn read_all(device: &mut dyn BlockDevice) -> Vec<u8> {
    match run(
        device,
        Operation::Read {
            offset: 0,
            length: SIZE as u32,
        },
    ) {
        Outcome::Data(data) => data,
        other => panic!("{other:?}"),
    }
}

/// `SplitMix64`: a seed gives one run.
struct Prng(u64);

impl Prng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

fn change(prng: &mut Prng, device: &mut dyn BlockDevice, model: &mut [u8]) {
    let offset = prng.below(SIZE / 512) * 512;
    let length = ((1 + prng.below(48)) * 512).min(SIZE - offset);
    let range = offset as usize..(offset + length) as usize;
    let fill = prng.next() as u8;
    let operation = match prng.below(8) {
        0 => {
            model[range].fill(0);
            Operation::Unmap { offset, length }
        }
        1 => {
            model[range].fill(0);
            Operation::WriteZeroes {
                offset,
                length,
                allocate: false,
                fua: false,
            }
        }
        2 => {
            let expected = model[range.clone()].to_vec();
            model[range].fill(fill);
            Operation::CompareAndWrite {
                offset,
                expected,
                data: vec![fill; length as usize].into(),
                fua: false,
            }
        }
        3 => Operation::Flush,
        _ => {
            model[range].fill(fill);
            Operation::Write {
                offset,
                data: vec![fill; length as usize].into(),
                fua: prng.below(4) == 0,
            }
        }
    };
    assert_eq!(run(device, operation), Outcome::Done);
}

fn administer(volume: &mut Volume<FileDisk>, wish: Administration) -> u64 {
    volume.with(|head| head.administer(5, wish));
    loop {
        volume.poll(&mut Vec::new());
        for event in volume.with(nuage_engine::VolumeHead::take_events) {
            if let HeadEvent::Administered { tag: 5, outcome } = event {
                return outcome.unwrap();
            }
        }
    }
}

fn lives_through_restarts(encrypted: bool, mode: AckMode, seed: u64) {
    let directory = tempfile::tempdir().unwrap();
    create_volume(directory.path(), &spec(encrypted)).unwrap();
    let mut prng = Prng(seed);
    let mut model = vec![0; SIZE as usize];
    let mut past: Vec<(u64, Vec<u8>)> = Vec::new();
    for round in 0..4 {
        let mut volume = open(directory.path(), encrypted, mode);
        assert!(read_all(&mut volume) == model, "round {round}");
        for _ in 0..120 {
            change(&mut prng, &mut volume, &mut model);
        }
        assert!(read_all(&mut volume) == model);
        let seq = administer(
            &mut volume,
            Administration::Mark {
                id: round,
                name: "m".into(),
            },
        );
        past.push((seq, model.clone()));
        for (seq, then) in &past {
            let mut view = volume.view(Point::Seq(*seq)).unwrap();
            assert!(read_all(&mut view) == *then, "view of {seq}");
        }
        if round == 2 {
            let (seq, then) = past[0].clone();
            administer(&mut volume, Administration::Rollback(Point::Seq(seq)));
            model = then;
            assert!(read_all(&mut volume) == model);
        }
        run(&mut volume, Operation::Flush);
        if round % 2 == 0 {
            volume.into_head().unwrap().close().unwrap();
        }
    }
}

#[test]
fn a_plain_volume_lives_through_restarts() {
    lives_through_restarts(false, AckMode::WriteBack, 1);
}

#[test]
fn an_encrypted_volume_lives_through_restarts() {
    lives_through_restarts(true, AckMode::WriteBack, 2);
}

#[test]
fn a_volume_that_answers_when_durable_lives_through_restarts() {
    lives_through_restarts(true, AckMode::Durable, 3);
}

#[test]
fn large_writes_are_read_back_at_once_over_restarts_and_in_the_past() {
    let directory = tempfile::tempdir().unwrap();
    let large = VolumeSpec {
        segment_bytes: 8 << 20,
        ..spec(false)
    };
    create_volume(directory.path(), &large).unwrap();
    let mut prng = Prng(4);
    let mut model = vec![0; SIZE as usize];
    let mut past = Vec::new();
    for round in 0..3 {
        let mut volume = open(directory.path(), false, AckMode::Memory);
        for _ in 0..16 {
            let blocks = [1, 2, 64, 65, 300, 600][prng.below(6) as usize];
            let lba = prng.below(SIZE / 4096 - blocks);
            let range = (lba * 4096) as usize..((lba + blocks) * 4096) as usize;
            for block in model[range.clone()].chunks_mut(4096) {
                block.fill(prng.next() as u8);
            }
            let write = Operation::Write {
                offset: lba * 4096,
                data: model[range].into(),
                fua: false,
            };
            assert_eq!(run(&mut volume, write), Outcome::Done);
            assert!(read_all(&mut volume) == model);
        }
        let mark = Administration::Mark {
            id: round,
            name: "m".into(),
        };
        past.push((administer(&mut volume, mark), model.clone()));
        for (seq, then) in &past {
            let mut view = volume.view(Point::Seq(*seq)).unwrap();
            assert!(read_all(&mut view) == *then, "view of {seq}");
        }
        volume.into_head().unwrap().close().unwrap();
    }
    let mut volume = open(directory.path(), false, AckMode::Memory);
    assert!(read_all(&mut volume) == model);
}

#[test]
fn a_mismatch_says_where_and_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    create_volume(directory.path(), &spec(false)).unwrap();
    let mut volume = open(directory.path(), false, AckMode::WriteBack);
    let mut expected = vec![0; 1024];
    expected[700] = 1;
    let outcome = run(
        &mut volume,
        Operation::CompareAndWrite {
            offset: 512,
            expected,
            data: vec![3; 1024].into(),
            fua: false,
        },
    );
    assert_eq!(outcome, Outcome::Miscompare { at: 700 });
    assert!(read_all(&mut volume).iter().all(|byte| *byte == 0));
}

#[test]
fn impossible_ranges_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    create_volume(directory.path(), &spec(false)).unwrap();
    let mut volume = open(directory.path(), false, AckMode::WriteBack);
    for operation in [
        Operation::Read {
            offset: SIZE,
            length: 512,
        },
        Operation::Write {
            offset: u64::MAX - 511,
            data: vec![0; 512].into(),
            fua: false,
        },
        Operation::Unmap {
            offset: 0,
            length: SIZE + 512,
        },
        Operation::Write {
            offset: 1,
            data: vec![0; 512].into(),
            fua: false,
        },
    ] {
        assert_eq!(
            run(&mut volume, operation),
            Outcome::Failed(Failure::OutOfRange)
        );
    }
}

#[test]
fn reservations_outlive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    create_volume(directory.path(), &spec(false)).unwrap();
    let mut volume = open(directory.path(), false, AckMode::WriteBack);
    run(
        &mut volume,
        Operation::StoreReservations {
            state: b"keys".to_vec(),
        },
    );
    drop(volume);
    let mut volume = open(directory.path(), false, AckMode::WriteBack);
    let found = run(&mut volume, Operation::LoadReservations);
    assert_eq!(found, Outcome::Reservations(b"keys".to_vec()));
}

#[test]
fn history_that_is_full_makes_room_and_the_present_stays() {
    let directory = tempfile::tempdir().unwrap();
    create_volume(directory.path(), &spec(true)).unwrap();
    let mut prng = Prng(11);
    let mut model = vec![0; SIZE as usize];
    let mut volume = open(directory.path(), true, AckMode::WriteBack);
    let retention = Retention {
        window_bytes: 4 << 20,
        ..Retention::default()
    };
    volume.with(|head| head.store_mut().set_retention(retention));
    let mut expired = 0;
    for _ in 0..1200 {
        change(&mut prng, &mut volume, &mut model);
        volume.with(nuage_engine::VolumeHead::tidy);
        for event in volume.with(nuage_engine::VolumeHead::take_events) {
            if let HeadEvent::Store(StoreEvent::Receipt(receipt)) = event {
                expired += u32::from(receipt.act == ReceiptAct::Expired);
            }
        }
    }
    assert!(read_all(&mut volume) == model);
    assert!(expired > 0, "nothing has left");
    assert!(volume.with(|head| head.store().horizon_seq()) > 0);
    let gone = volume.view(Point::Seq(0));
    assert!(matches!(gone, Err(JournalError::OutOfHistory { .. })));
    run(&mut volume, Operation::Flush);
    drop(volume);
    let mut volume = open(directory.path(), true, AckMode::WriteBack);
    assert!(read_all(&mut volume) == model);
}

/// A volume whose history has several moments to go back to, and the times of these.
fn with_a_past(directory: &Path) -> (Volume<FileDisk>, Vec<u64>) {
    create_volume(directory, &spec(true)).unwrap();
    let (mut prng, mut model) = (Prng(11), vec![0; SIZE as usize]);
    let mut volume = open(directory, true, AckMode::WriteBack);
    let times = |volume: &Volume<FileDisk>| -> Vec<u64> {
        volume.with(|head| {
            let anchors = head.store().anchors();
            anchors
                .iter()
                .map(|anchor| anchor.position.time_ns)
                .collect()
        })
    };
    while times(&volume).len() < 4 {
        change(&mut prng, &mut volume, &mut model);
    }
    run(&mut volume, Operation::Flush);
    while !volume.with(|head| head.store().is_idle()) {
        volume.poll(&mut Vec::new()); // a checkpoint may still be on its way
    }
    let found = times(&volume);
    (volume, found)
}

#[test]
fn history_that_leaves_before_its_time_is_known_and_strict_history_never_does() {
    let directory = tempfile::tempdir().unwrap();
    let (volume, times) = with_a_past(directory.path());
    let mut rule = Retention {
        window_ns: 1_000_000_000,
        window_bytes: 1,
        strict: true,
    };
    let now_ns = times[1] + rule.window_ns + 1; // the first moment is too old, the next is not
    let enforce = |rule: Retention| {
        volume.with(|head| {
            let store = head.store_mut();
            store.set_retention(rule);
            let due = store.due_bytes(now_ns);
            store.enforce_retention(now_ns).unwrap();
            (due, store.horizon_time_ns(), store.dropped_early_ns())
        })
    };
    let (due, horizon, early) = enforce(rule);
    assert!(due > 0);
    assert_eq!((horizon, early), (times[1], 0));
    rule.strict = false;
    let (due, horizon, early) = enforce(rule);
    assert!(due > 0);
    assert_eq!((horizon, early), (*times.last().unwrap(), now_ns));
    assert_eq!(enforce(rule).0, 0, "nothing is due twice");
}

#[test]
fn what_is_written_after_a_change_of_data_keys_needs_the_new_one_and_the_past_the_old() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copy) = (directory.path().join("a"), directory.path().join("b"));
    create_volume(&path, &spec(true)).unwrap();
    let next = || DataKey::new([8; 32]).cipher();
    let both = || next().also(&DataKey::new(KEY));
    let mut prng = Prng(31);
    let mut model = vec![0; SIZE as usize];
    let mut volume = open(&path, true, AckMode::WriteBack);
    for _ in 0..60 {
        change(&mut prng, &mut volume, &mut model);
    }
    run(&mut volume, Operation::Flush);
    drop(volume);
    let mut volume = open_with(&path, Some(both()), AckMode::WriteBack);
    assert!(read_all(&mut volume) == model);
    let retention = Retention {
        window_bytes: 1 << 20,
        ..Retention::default()
    };
    volume.with(|head| head.store_mut().set_retention(retention));
    for _ in 0..60 {
        change(&mut prng, &mut volume, &mut model);
        volume.with(nuage_engine::VolumeHead::tidy);
    }
    let seq = administer(
        &mut volume,
        Administration::Snapshot {
            id: 1,
            name: "s".into(),
        },
    );
    volume
        .with(|head| clone_store(head.store_mut(), seq, &copy, [8; 16], 2, None))
        .unwrap();
    run(&mut volume, Operation::Flush);
    drop(volume);
    for place in [&path, &copy] {
        let mut volume = open_with(place, Some(both()), AckMode::WriteBack);
        assert!(read_all(&mut volume) == model);
        drop(volume);
        for alone in [DataKey::new(KEY).cipher(), next()] {
            let mut volume = open_with(place, Some(alone), AckMode::WriteBack);
            let operation = Operation::Read {
                offset: 0,
                length: SIZE as u32,
            };
            let read = run(&mut volume, operation);
            assert!(
                !matches!(read, Outcome::Data(_)),
                "one key alone reads it all"
            );
        }
    }
}

#[test]
fn what_the_disk_does_not_give_fails_the_read_of_a_part_of_a_block() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("v");
    create_volume(&path, &spec(false)).unwrap();
    let mut volume = open(&path, false, AckMode::WriteBack);
    let operation = Operation::Write {
        offset: 0,
        data: vec![1; 8192].into(),
        fua: true,
    };
    assert_eq!(run(&mut volume, operation), Outcome::Done);
    drop(volume);
    let mut volume = open(&path, false, AckMode::WriteBack);
    for file in std::fs::read_dir(&path).unwrap() {
        let file = file.unwrap();
        if file.file_name().to_string_lossy().starts_with("seg.") {
            let file = std::fs::File::options().write(true).open(file.path());
            file.unwrap().set_len(0).unwrap();
        }
    }
    let operation = Operation::Read {
        offset: 512,
        length: 512,
    };
    assert_eq!(
        run(&mut volume, operation),
        Outcome::Failed(Failure::Medium)
    );
}

#[test]
fn a_clone_of_the_past_lives_beside_its_parent() {
    for encrypted in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("a"), directory.path().join("b"));
        create_volume(&first, &spec(encrypted)).unwrap();
        let mut prng = Prng(21);
        let mut model = vec![0; SIZE as usize];
        let mut parent = open(&first, encrypted, AckMode::WriteBack);
        let retention = Retention {
            window_bytes: 4 << 20,
            ..Retention::default()
        };
        parent.with(|head| head.store_mut().set_retention(retention));
        for _ in 0..100 {
            change(&mut prng, &mut parent, &mut model);
        }
        let seq = administer(
            &mut parent,
            Administration::Snapshot {
                id: 1,
                name: "s".into(),
            },
        );
        let then = model.clone();
        for _ in 0..50 {
            change(&mut prng, &mut parent, &mut model);
        }
        parent
            .with(|head| clone_store(head.store_mut(), seq, &second, [8; 16], 2, None))
            .unwrap();
        let mut child = open(&second, encrypted, AckMode::WriteBack);
        assert!(read_all(&mut child) == then);
        let mut child_model = then.clone();
        for _ in 0..300 {
            change(&mut prng, &mut parent, &mut model);
            change(&mut prng, &mut child, &mut child_model);
            parent.with(nuage_engine::VolumeHead::tidy);
            child.with(nuage_engine::VolumeHead::tidy);
        }
        assert!(read_all(&mut parent) == model);
        assert!(read_all(&mut child) == child_model);
        run(&mut child, Operation::Flush);
        drop(child);
        let mut child = open(&second, encrypted, AckMode::WriteBack);
        assert!(read_all(&mut child) == child_model);
    }
}

/// The kinds of the segments in a directory (docs/protocols/journal.md §2): 0 log, 1 base.
fn kinds_in(directory: &Path) -> Vec<u8> {
    let files = std::fs::read_dir(directory).unwrap();
    let segments = files.filter_map(|entry| {
        let path = entry.unwrap().path();
        let bytes = path.is_file().then(|| std::fs::read(path).unwrap())?;
        bytes.starts_with(b"NUAGSEG1").then(|| bytes[60])
    });
    segments.collect()
}

#[test]
fn what_compaction_writes_lies_on_the_large_disk_and_the_log_never_goes_there() {
    let directory = tempfile::tempdir().unwrap();
    let [first, second, large] = ["a", "b", "large"].map(|name| directory.path().join(name));
    for (volume, base) in [(&first, large.join("a")), (&second, large.join("b"))] {
        std::fs::create_dir_all(volume).unwrap();
        std::fs::create_dir_all(&base).unwrap();
        std::os::unix::fs::symlink(&base, volume.join(BASE_FOLDER)).unwrap();
    }
    let bases = |name: &str| -> Vec<std::path::PathBuf> {
        let found = std::fs::read_dir(large.join(name)).unwrap();
        found.map(|entry| entry.unwrap().path()).collect()
    };
    create_volume(&first, &spec(false)).unwrap();
    let (mut prng, mut model) = (Prng(23), vec![0; SIZE as usize]);
    let mut volume = open(&first, false, AckMode::WriteBack);
    let retention = Retention {
        window_bytes: 1 << 20,
        ..Retention::default()
    };
    volume.with(|head| head.store_mut().set_retention(retention));
    while bases("a").is_empty() {
        change(&mut prng, &mut volume, &mut model);
        volume.with(nuage_engine::VolumeHead::tidy);
    }
    for _ in 0..200 {
        change(&mut prng, &mut volume, &mut model);
        volume.with(nuage_engine::VolumeHead::tidy);
    }
    run(&mut volume, Operation::Flush);
    let seq = volume.with(|head| head.store().applied_seq());
    let cloned = volume.with(|head| clone_store(head.store_mut(), seq, &second, [8; 16], 2, None));
    cloned.unwrap();
    assert_eq!(bases("b").len(), bases("a").len());
    drop(volume);
    // One that a crash broke off goes, and what lies there are sealed bases only.
    std::fs::write(large.join("a").join("seg.00abcd"), vec![0; 1 << 22]).unwrap();
    for directory in [&first, &second] {
        let mut volume = open(directory, false, AckMode::WriteBack);
        assert!(read_all(&mut volume) == model);
        drop(volume);
    }
    for (folder, kind) in [(&first, 0), (&large.join("a"), 1), (&large.join("b"), 1)] {
        let kinds = kinds_in(folder);
        assert!(!kinds.is_empty() && kinds.iter().all(|found| *found == kind));
    }
    std::fs::remove_dir_all(&large).unwrap();
    let gone = FileDisk::open(&first, Method::Threads);
    assert!(
        gone.is_err(),
        "a volume of which a disk is missing stays closed"
    );
}

/// A clock that stands until it is told to go on.
#[derive(Default)]
struct StandingClock(Cell<u64>);

impl Clock for StandingClock {
    fn now(&self) -> Now {
        Now {
            monotonic_ns: self.0.get(),
            unix_ns: self.0.get(),
        }
    }
}

fn write_of_one_block() -> Operation {
    Operation::Write {
        offset: 0,
        data: vec![5; 4096].into(),
        fua: false,
    }
}

/// Seqs given out that are in no group yet.
fn gathering(volume: &Volume<FileDisk>) -> u64 {
    volume.with(|head| head.last_seq() - head.store().tail().seq)
}

#[test]
fn a_write_answered_from_memory_gathers_until_its_time_or_a_flush() {
    let directory = tempfile::tempdir().unwrap();
    create_volume(directory.path(), &spec(false)).unwrap();
    let clock = Rc::new(StandingClock::default());
    let options = HeadOptions {
        name: Arc::from("v"),
        mode: AckMode::Memory,
        term: 1,
        head: "test".into(),
        accepts_loss: false,
    };
    let shared: Rc<dyn Clock> = Rc::clone(&clock) as Rc<dyn Clock>;
    let mut volume = open_volume(directory.path(), None, options, shared).unwrap();
    assert_eq!(run(&mut volume, Operation::Flush), Outcome::Done);
    for expected in 1..=2 {
        assert_eq!(run(&mut volume, write_of_one_block()), Outcome::Done);
        assert_eq!(gathering(&volume), expected, "answered, in no group yet");
    }
    let patience = volume.poll_within().unwrap();
    clock
        .0
        .set(clock.0.get() + u64::try_from(patience.as_nanos()).unwrap());
    volume.poll(&mut Vec::new());
    assert_eq!(gathering(&volume), 0, "its time is over");
    assert_eq!(run(&mut volume, write_of_one_block()), Outcome::Done);
    assert_eq!(run(&mut volume, Operation::Flush), Outcome::Done);
    let (durable, last) = volume.with(|head| (head.store().durable_seq(), head.last_seq()));
    assert_eq!(durable, last);
    assert_eq!(volume.poll_within(), None);
}

#[test]
fn a_burst_goes_in_groups_of_what_gathers_and_all_of_it_is_read_back_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let spec = VolumeSpec {
        segment_bytes: 4 << 20,
        ..spec(false)
    };
    create_volume(directory.path(), &spec).unwrap();
    let mut volume = open(directory.path(), false, AckMode::Memory);
    assert_eq!(run(&mut volume, Operation::Flush), Outcome::Done);
    let mut model = read_all(&mut volume);
    for value in 1..=100u8 {
        let offset = usize::from(value % 60) * 4096;
        model[offset..offset + 4096].fill(value);
        volume.submit(Request {
            tag: u64::from(value),
            operation: Operation::Write {
                offset: offset as u64,
                data: vec![value; 4096].into(),
                fua: false,
            },
        });
    }
    assert_eq!(
        gathering(&volume),
        100 - 64,
        "the first 64 are on their way"
    );
    volume.submit(Request {
        tag: 200,
        operation: Operation::Read {
            offset: 0,
            length: SIZE as u32,
        },
    });
    let mut completions = Vec::new();
    while !completions.iter().any(|done: &Completion| done.tag == 200) {
        volume.poll(&mut completions);
    }
    let read = completions.into_iter().find(|done| done.tag == 200);
    assert_eq!(read.unwrap().outcome, Outcome::Data(model));
}

fn try_open(path: &Path, accepts_loss: bool) -> Result<Volume<FileDisk>, JournalError> {
    let options = HeadOptions {
        name: Arc::from("v"),
        mode: AckMode::Durable,
        term: 2,
        head: "test".into(),
        accepts_loss,
    };
    open_volume(path, None, options, Rc::new(SystemClock::default()))
}

#[test]
fn an_only_copy_on_a_new_disk_does_not_pass_for_the_volume() {
    let directory = tempfile::tempdir().unwrap();
    create_to_join(directory.path(), &spec(false), 1).unwrap();
    for _ in 0..2 {
        let refused = try_open(directory.path(), false);
        assert_eq!(refused.err(), Some(JournalError::Lost));
    }
    let mut volume = try_open(directory.path(), true).unwrap();
    assert_eq!(read_all(&mut volume), vec![0; SIZE as usize]);
    drop(volume);
    // Said once, it holds: what is written from now on is the volume.
    assert!(try_open(directory.path(), false).is_ok());
}
