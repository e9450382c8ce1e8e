//! Measures a volume in-process, through `BlockDevice`: medians over rounds, encrypted and plain, write
//! modes side by side. `nuage-journal-bench DIRECTORY [SECONDS]`.
#![allow(clippy::print_stdout, clippy::cast_precision_loss)]

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nuage_block::{BlockDevice, Operation, Outcome, Request};
use nuage_disk::FileDisk;
use nuage_engine::{AckMode, HeadOptions, SystemClock, Volume, create_volume, open_volume};
use nuage_journal::{
    Cipher, DataKey, JournalError, Store, TailRule, VolumeSpec, segment_bytes_for,
};

const SIZE: u64 = 1 << 30;
const ROUNDS: usize = 3;

#[derive(Clone, Copy)]
enum Load {
    Write,
    WriteFlush,
    Read,
}

fn volume(path: &Path, encrypted: bool, mode: AckMode) -> Result<Volume<FileDisk>, JournalError> {
    let cipher = encrypted.then(|| DataKey::new([1; 32]).cipher());
    if !path.exists() {
        create_volume(
            path,
            &VolumeSpec {
                volume: [1; 16],
                size_bytes: SIZE,
                logical_block_bytes: 512,
                segment_bytes: segment_bytes_for(64 << 30),
                encrypted,
                created_ns: 1,
            },
        )?;
    }
    let options = HeadOptions {
        name: Arc::from("bench"),
        mode,
        term: 1,
        head: "bench".into(),
        accepts_loss: false,
    };
    open_volume(path, cipher, options, Rc::new(SystemClock::default()))
}

/// Operations a second at a depth.
fn run(device: &mut dyn BlockDevice, load: Load, depth: u64, time: Duration) -> f64 {
    let data = vec![0xa5; 4096];
    let mut random = 0x1234_5678_9abc_def1_u64;
    let (mut submitted, mut done, mut flushes) = (0u64, 0u64, 0u64);
    let mut completions = Vec::new();
    let start = Instant::now();
    while start.elapsed() < time {
        while submitted - done < depth {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let offset = random % (SIZE / 4096) * 4096;
            let operation = match load {
                Load::WriteFlush if submitted % 17 == 16 => {
                    flushes += 1;
                    Operation::Flush
                }
                Load::Write | Load::WriteFlush => Operation::Write {
                    offset,
                    data: data.as_slice().into(),
                    fua: false,
                },
                Load::Read => Operation::Read {
                    offset,
                    length: 4096,
                },
            };
            device.submit(Request {
                tag: submitted,
                operation,
            });
            submitted += 1;
        }
        device.poll(&mut completions);
        for completion in completions.drain(..) {
            assert!(
                !matches!(completion.outcome, Outcome::Failed(_)),
                "{completion:?}"
            );
            done += 1;
        }
    }
    (done - flushes.min(done)) as f64 / start.elapsed().as_secs_f64()
}

fn fill(device: &mut dyn BlockDevice) {
    let mut completions = Vec::new();
    for (tag, offset) in (0..).zip((0..SIZE).step_by(1 << 20)) {
        device.submit(Request {
            tag,
            operation: Operation::Write {
                offset,
                data: vec![1; 1 << 20].into(),
                fua: false,
            },
        });
        while completions.is_empty() {
            device.poll(&mut completions);
        }
        completions.clear();
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let root = arguments
        .next()
        .ok_or("usage: nuage-journal-bench DIRECTORY [SECONDS]")?;
    let time = Duration::from_secs_f64(arguments.next().map_or(Ok(1.0), |text| text.parse())?);
    for encrypted in [false, true] {
        for mode in [AckMode::WriteBack, AckMode::Durable] {
            let path = Path::new(&root).join(format!("bench-{encrypted}-{mode:?}"));
            let mut device = volume(&path, encrypted, mode)?;
            let begun = Instant::now();
            fill(&mut device);
            let rate = SIZE as f64 / 1e6 / begun.elapsed().as_secs_f64();
            println!("encrypted={encrypted} {mode:?}: sequential 1 MiB writes {rate:.0} MB/s");
            let loads = [
                ("write", Load::Write),
                ("write+flush/16", Load::WriteFlush),
                ("read", Load::Read),
            ];
            for (name, load) in loads {
                for depth in [1, 16, 64] {
                    let mut rates: Vec<f64> = (0..ROUNDS)
                        .map(|_| run(&mut device, load, depth, time))
                        .collect();
                    rates.sort_by(f64::total_cmp);
                    let (low, high) = (rates[0], rates[ROUNDS - 1]);
                    let median = rates[ROUNDS / 2];
                    println!("  {name:15} qd {depth:2}: {median:8.0} IOPS [{low:.0}-{high:.0}]");
                }
            }
            if let Some(head) = device.into_head() {
                head.close()?;
            }
            let disk = FileDisk::open(&path, nuage_disk::Method::Best)?;
            let begun = Instant::now();
            let key = encrypted.then(|| Cipher::new(&[1; 32]));
            let store = Store::open(disk, key, TailRule::Only)?;
            let mapped = store.state().index.mapped();
            println!(
                "  reopened in {:?}, {mapped} blocks mapped",
                begun.elapsed()
            );
            std::fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}
