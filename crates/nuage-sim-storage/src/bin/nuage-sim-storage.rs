//! `nuage-sim-storage --seeds A..B`: play seeds; prints a one-line replay for each that fails.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

const USAGE: &str = "usage: nuage-sim-storage --seeds A..B [--replay SEED]";

fn seeds() -> Option<std::ops::Range<u64>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [name, range] if name == "--seeds" => {
            let (from, to) = range.split_once("..")?;
            Some(from.parse().ok()?..to.parse().ok()?)
        }
        [name, seed] if name == "--replay" => {
            let seed: u64 = seed.parse().ok()?;
            Some(seed..seed + 1)
        }
        _ => None,
    }
}

fn main() -> ExitCode {
    let Some(range) = seeds() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if range.end - range.start == 1 {
        let (result, told) = nuage_sim_storage::replay(range.start);
        for line in told {
            println!("{line}");
        }
        println!("{result:?}");
        return if result.is_ok() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    let (mut failed, mut writes, mut reads, mut failovers, mut crashes) = (0, 0, 0, 0, 0);
    let (mut replaced, mut rebuilt, mut views, mut lags) = (0, 0, 0, 0);
    let (mut rotted, mut scrubs, mut mended, mut receipts) = (0, 0, 0, 0);
    let count = range.end.saturating_sub(range.start);
    for seed in range {
        match nuage_sim_storage::run(seed) {
            Ok(outcome) => {
                writes += outcome.writes_acked;
                reads += outcome.reads_checked;
                failovers += outcome.failovers;
                crashes += outcome.crashes;
                replaced += outcome.replaced;
                rebuilt += outcome.rebuilt;
                views += outcome.views_checked;
                lags += outcome.lags_checked;
                rotted += outcome.rotted;
                scrubs += outcome.scrubs;
                mended += outcome.mended;
                receipts += outcome.receipts;
            }
            Err(error) => {
                failed += 1;
                println!("nuage-sim-storage --replay {seed}   # {error}");
            }
        }
    }
    println!(
        "{count} seeds, {failed} failed: {writes} writes acknowledged, {reads} reads checked, \
         {failovers} failovers, {crashes} crashes, {replaced} disks replaced, {rebuilt} copies made anew, \
         {views} moments of the past compared, {lags} answers with a copy behind, \
         {rotted} blocks rotted, {scrubs} passes over a copy, {mended} blocks mended, {receipts} receipts of segments"
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
