//! Buckets under a virtual clock: what passes in any window is bounded, and nothing waits for nothing.
#![allow(clippy::cast_possible_truncation)]

use nuage_engine::{Bucket, Buckets, Class, Rate};
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

#[test]
fn the_classes_do_not_pay_for_one_another() {
    let mut buckets = Buckets::default();
    let slow = Rate {
        operations_per_s: 1,
        bytes_per_s: 0,
    };
    for class in [
        Class::Front,
        Class::Replication,
        Class::Repair,
        Class::Scrub,
    ] {
        buckets.of(class).set_rate(slow);
    }
    buckets.of(Class::Repair).take(SECOND_NS, 0);
    assert!(buckets.of(Class::Repair).ready_at(SECOND_NS) > SECOND_NS);
    assert_eq!(buckets.of(Class::Front).ready_at(SECOND_NS), SECOND_NS);
}
