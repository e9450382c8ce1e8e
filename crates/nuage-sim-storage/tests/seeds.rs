//! Many worlds on all cores; and every seed that once failed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Seeds that once broke an invariant, one a line.
const REMEMBERED: &str = include_str!("seeds.txt");
/// About 5 ms each, with assertions (the profile in Cargo.toml); `make torture` plays many times more.
const SEEDS: u64 = 10_000;

#[test]
fn no_seed_breaks_an_invariant() {
    let remembered: Vec<u64> = REMEMBERED
        .lines()
        .filter_map(|line| line.split('#').next()?.trim().parse().ok())
        .collect();
    let next = AtomicU64::new(0);
    let play = || {
        let mut failed = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let seed = match usize::try_from(at).ok().and_then(|at| remembered.get(at)) {
                Some(seed) => *seed,
                None if at - remembered.len() as u64 >= SEEDS => return failed,
                None => at - remembered.len() as u64,
            };
            if let Err(error) = nuage_sim_storage::run(seed) {
                failed.push(format!("nuage-sim-storage --replay {seed}   # {error}"));
            }
        }
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let failed: Vec<String> = thread::scope(|scope| {
        let running: Vec<_> = (0..workers).map(|_| scope.spawn(play)).collect();
        running
            .into_iter()
            .flat_map(|worker| worker.join().expect("a world panicked"))
            .collect()
    });
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
