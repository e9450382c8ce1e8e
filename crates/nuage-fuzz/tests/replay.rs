//! The seeds of every target, and all that a fuzzer ever found, without a fuzzer.

use nuage_fuzz::TARGETS;
use std::fs;
use std::path::Path;

#[test]
fn every_seed_and_all_that_was_ever_found_keeps_the_promises() {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("found");
    for target in TARGETS {
        for seed in (target.seeds)() {
            assert!(seed.len() <= target.bytes_max, "{}", target.name);
            (target.run)(&seed);
        }
        for file in fs::read_dir(found.join(target.name)).into_iter().flatten() {
            let path = file.expect("a folder of this tree").path();
            (target.run)(&fs::read(&path).expect("a file of this tree"));
        }
    }
}
