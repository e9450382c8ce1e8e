//! Buckets under a virtual clock: what passes in any window is bounded, and nothing waits for nothing.
#![allow(clippy::cast_possible_truncation)]

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use nuage_block::memory::MemoryDevice;
use nuage_block::{BlockDevice as _, Geometry, Operation, Request};
use nuage_engine::{Bucket, Class, Clock, Limited, Rate, SharedBucket, SharedBudget};
use nuage_journal::Now;
use proptest::prelude::*;

const SECOND_NS: u64 = 1_000_000_000;
const BURST_NS: u64 = SECOND_NS / 10;

/// Pass each request as early as the bucket lets it, not before it came; returns when each passed.
fn pass_all(rate: Rate, requests: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut bucket = Bucket::new(rate);
    let mut now_ns = SECOND_NS;
    requests
        .iter()
        .map(|(pause_ns, bytes)| {
            now_ns += pause_ns;
            now_ns = bucket.ready_at(now_ns);
            bucket.take(now_ns, *bytes);
            (now_ns, *bytes)
        })
        .collect()
}

fn requests() -> impl Strategy<Value = Vec<(u64, u64)>> {
    let pause_ns = prop_oneof![Just(0u64), 0..SECOND_NS];
    proptest::collection::vec((pause_ns, 512u64..(1 << 20)), 1..200)
}

proptest! {
    #[test]
    fn no_window_lets_more_pass_than_its_time_and_one_burst_pay_for(
        operations_per_s in 1u64..10_000,
        bytes_per_s in 4096u64..(1 << 30),
        requests in requests(),
    ) {
        let passed = pass_all(Rate { operations_per_s, bytes_per_s }, &requests);
        for (first, (start_ns, _)) in passed.iter().enumerate() {
            let mut bytes = 0u128;
            for (count, (at_ns, length)) in passed[first..].iter().enumerate() {
                let paid_ns = u128::from(at_ns - start_ns + BURST_NS);
                // The last one is paid for after it has passed.
                let operations = paid_ns * u128::from(operations_per_s) / u128::from(SECOND_NS) + 1;
                prop_assert!(count as u128 <= operations);
                let paid = paid_ns * u128::from(bytes_per_s) / u128::from(SECOND_NS);
                // Costs are rounded down to a nanosecond.
                prop_assert!(bytes <= paid + 2 * count as u128 + 2);
                bytes += u128::from(*length);
            }
        }
    }

    #[test]
    fn a_busy_bucket_gives_all_of_its_rate(operations_per_s in 10u64..5_000) {
        let count = operations_per_s * 2;
        let rate = Rate { operations_per_s, bytes_per_s: 0 };
        let passed = pass_all(rate, &vec![(0, 4096); count as usize]);
        let took_ns = passed[passed.len() - 1].0 - passed[0].0;
        // Two seconds' worth, one burst of it at once; rounding is below a nanosecond an operation.
        prop_assert!(took_ns <= 2 * SECOND_NS - BURST_NS + count);
    }

    #[test]
    fn without_a_limit_nothing_waits(requests in requests()) {
        let mut came_ns = SECOND_NS;
        for ((pause_ns, _), (at_ns, _)) in requests.iter().zip(pass_all(Rate::default(), &requests)) {
            came_ns += pause_ns;
            prop_assert_eq!(at_ns, came_ns);
        }
    }
}

/// Look each millisecond for `seconds`, with a client that takes so much in each; what the class got, by second.
fn background(class: Class, share: Rate, client_bytes: u64, seconds: u64) -> u64 {
    let budget = SharedBudget::default();
    budget.borrow_mut().set_share(share);
    let own = SharedBucket::default();
    let clock = Rc::new(HandClock::default());
    let disk = Box::new(MemoryDevice::new(Geometry {
        size_bytes: 1 << 20,
        logical_block_bytes: 4096,
        uuid: [1; 16],
        name: Arc::from("v"),
        read_only: false,
        write_cache: false,
    }));
    let mut device = Limited::new(disk, own, Rc::clone(&budget), clock.clone());
    let (mut got, mut tag) = (0, 0);
    for step in 1..=seconds * 1000 {
        clock.0.set(SECOND_NS + step * 1_000_000);
        if client_bytes > 0 {
            tag += 1;
            let operation = Operation::Read {
                offset: 0,
                length: client_bytes as u32,
            };
            device.submit(Request { tag, operation });
        }
        device.poll(&mut Vec::new());
        let now_ns = clock.0.get();
        let mut budget = budget.borrow_mut();
        while budget.may(class, now_ns) {
            budget.take(class, now_ns, 64 << 10);
            got += 64 << 10;
        }
    }
    got / seconds
}

#[test]
fn background_work_takes_its_limit_when_idle_and_its_reservation_or_weight_when_not() {
    const MIB: u64 = 1 << 20;
    let free = Rate::default();
    let about = |got: u64, wanted: u64| got >= wanted * 8 / 10 && got <= wanted * 13 / 10;
    let idle = background(Class::Scrub, free, 0, 10);
    assert!(about(idle, 32 * MIB), "{idle}");
    // 64 KiB each millisecond: a sixteenth of that by weight, and what is kept.
    let busy = background(Class::Scrub, free, 64 << 10, 10);
    assert!(about(busy, 8 * MIB), "{busy}");
    let repair = background(Class::Repair, free, 64 << 10, 10);
    assert!(about(repair, 48 * MIB), "{repair}");
    // A small share: no more than the weight of it is kept.
    let share = Rate {
        operations_per_s: 0,
        bytes_per_s: 29 * MIB,
    };
    let small = background(Class::Scrub, share, 64 << 10, 10);
    assert!(small <= 3 * MIB, "{small}");
    assert!(small >= MIB / 2, "{small}");
}

#[test]
fn heads_of_one_daemon_share_and_what_they_take_is_counted() {
    let budget = SharedBudget::default();
    budget.borrow_mut().set_share(Rate {
        operations_per_s: 100,
        bytes_per_s: 0,
    });
    let clock = Rc::new(HandClock::default());
    clock.0.set(SECOND_NS);
    let mut devices: Vec<Limited> = (0..2)
        .map(|_| {
            let geometry = Geometry {
                size_bytes: 1 << 20,
                logical_block_bytes: 4096,
                uuid: [1; 16],
                name: Arc::from("v"),
                read_only: false,
                write_cache: false,
            };
            let disk = Box::new(MemoryDevice::new(geometry));
            Limited::new(
                disk,
                SharedBucket::default(),
                Rc::clone(&budget),
                clock.clone(),
            )
        })
        .collect();
    for tag in 0..400 {
        for device in &mut devices {
            let operation = Operation::Read {
                offset: 0,
                length: 4096,
            };
            device.submit(Request { tag, operation });
        }
    }
    let mut done = Vec::new();
    for step in 0..=2000 {
        clock.0.set(SECOND_NS + step * 1_000_000);
        for device in &mut devices {
            device.poll(&mut done);
        }
    }
    assert!((190..=220).contains(&done.len()), "{}", done.len());
    let used = budget.borrow().used();
    assert_eq!(used.operations, 800);
    assert_eq!(used.bytes, 800 * 4096);
    assert!(used.held > 500);
}

#[derive(Default)]
struct HandClock(Cell<u64>);

impl Clock for HandClock {
    fn now(&self) -> Now {
        Now {
            monotonic_ns: self.0.get(),
            unix_ns: self.0.get(),
        }
    }
}
