//! Placements per second of one core, with contracts, groups and electrical limits on.
//!
//! Goals: 100,000/s at 10,000 nodes, 50,000/s at 100,000 nodes, p99 under 1 ms.
//! Run: cargo bench -p nuage-placement
#![expect(clippy::print_stdout, clippy::unwrap_used, clippy::disallowed_methods)]
#![allow(
    clippy::disallowed_types,
    clippy::cast_precision_loss,
    unfulfilled_lint_expectations
)]

use std::time::Instant;

use nuage_placement::{Curve, Engine, NodeSpec, Request};

const TAURUS: [f64; 11] = [
    56.2, 78.3, 87.1, 95.6, 102.0, 109.0, 123.0, 139.0, 159.0, 181.0, 205.0,
];
const ORION: [f64; 11] = [
    96.0, 133.0, 147.0, 163.0, 181.0, 199.0, 219.0, 237.0, 272.0, 305.0, 323.0,
];
const CLASSES: [(u32, u32); 8] = [
    (1, 1024),
    (1, 2048),
    (2, 4096),
    (2, 2048),
    (4, 8192),
    (4, 4096),
    (8, 16384),
    (1, 512),
];

fn engine(node_count: u32) -> Engine {
    let mut engine = Engine::new();
    engine.add_curve(Curve {
        watts: TAURUS,
        waking_watts: 10.0,
    });
    engine.add_curve(Curve {
        watts: ORION,
        waking_watts: 15.0,
    });
    let mut left = node_count;
    let mut container = 0;
    while left > 0 {
        engine.add_container(container % 64, 40_000.0);
        for index in 0..left.min(168) {
            let branch = if index % 21 == 0 {
                engine.add_branch(6_000.0)
            } else {
                container * 8 + index / 21
            };
            let spec = NodeSpec {
                curve: (index + container) % 2,
                branch,
                cpu_count: 48,
                vcpu_free: 48,
                memory_free_mib: 131_072,
                booted: index % 3 > 0,
                in_service: true,
            };
            engine.add_node(spec).unwrap();
        }
        left -= left.min(168);
        container += 1;
    }
    for (vcpu_count, memory_mib) in CLASSES {
        engine.add_class(vcpu_count, memory_mib);
    }
    engine.add_contract(&(0..64).collect::<Vec<_>>());
    engine.add_contract(&(0..32).collect::<Vec<_>>());
    engine.add_contract(&[1, 5, 9, 13]);
    for site in 0..64.min(container) {
        engine
            .set_weight(site, 1.16 + 0.39 * f64::from(site % 5) / 5.0)
            .unwrap();
    }
    engine
}

fn main() {
    println!(
        "{:>8} {:>12} {:>14} {:>9} {:>9} {:>9}",
        "nodes", "placed", "placements/s", "p50 µs", "p99 µs", "max µs"
    );
    for node_count in [1_000, 10_000, 100_000] {
        let mut engine = engine(node_count);
        let rounds = (node_count * 6).clamp(50_000, 300_000);
        let mut micros = Vec::new();
        let mut placed = 0_u32;
        let begin = Instant::now();
        for turn in 0..rounds {
            let draw = turn.wrapping_mul(2_654_435_761) >> 7;
            let request = Request {
                class: draw % 8,
                contract: (draw >> 3) % 3,
                group: if draw % 4 == 0 { 1 + draw % 997 } else { 0 },
            };
            let one = Instant::now();
            placed += u32::from(engine.place(request).unwrap().is_ok());
            micros.push(one.elapsed().as_secs_f64() * 1e6);
        }
        let rate = f64::from(rounds) / begin.elapsed().as_secs_f64();
        micros.sort_by(f64::total_cmp);
        println!(
            "{node_count:>8} {placed:>12} {rate:>14.0} {:>9.2} {:>9.2} {:>9.1}",
            micros[micros.len() / 2],
            micros[micros.len() * 99 / 100],
            micros[micros.len() - 1]
        );
    }
}
