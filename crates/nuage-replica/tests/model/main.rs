//! Exhaustive small model of open, recover, write, crash and change of the copies: every order of steps.
//!
//! A step is one act at one copy (promise, cut, append, flush, crash), an answer that arrives, or a word of the quorum's
//! record (a head elsewhere, another set of copies). The decisions are those of `nuage_replica::rules`; what a
//! controller decides is `Volume.whole` and the sets of python/nuage/storage/heads.py.
//!
//! Invariants: what was acknowledged at a place is in the log of every head that recovers later, at that place; and no
//! place is acknowledged twice with different records.
//!
//! A crash takes what was not durable: the log keeps any part of its end (a torn tail is cut at the first group that is
//! not whole). Where writes are acknowledged from memory, it may not take the last that has an acknowledged record.
//!
//! `NUAGE_MODEL=deep` explores further (`make torture`, minutes).

mod state;

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

use nuage_replica::PolicyName::{self, All, Any2Of3, Metro};
use state::{Bounds, CopySet, State, World};

/// Far above what the models below have: a change that makes one explode is noticed.
const STATES_MAX: usize = 40_000_000;

/// All states that can be reached. They are told apart by 128 bits of hash: two would have to collide to hide one.
fn explore(world: &World) -> usize {
    let hashers = (RandomState::new(), RandomState::new());
    let print = |state: &State| (hashers.0.hash_one(state), hashers.1.hash_one(state));
    let start = State::start(world);
    let mut seen = HashSet::from([print(&start)]);
    let mut waiting = vec![start];
    let mut next = Vec::new();
    while let Some(state) = waiting.pop() {
        state.successors(world, &mut next);
        for found in next.drain(..) {
            if seen.insert(print(&found)) {
                waiting.push(found);
            }
        }
        assert!(seen.len() < STATES_MAX, "the model explodes");
    }
    seen.len()
}

fn is_deep() -> bool {
    std::env::var("NUAGE_MODEL").is_ok_and(|value| value == "deep")
}

fn more() -> u8 {
    u8::from(is_deep())
}

/// Explore a world and print how many states it has.
#[allow(clippy::print_stdout)] // shown by `cargo test -- --nocapture`, and beside a failure
fn check(what: &str, sets: Vec<CopySet>, bounds: Bounds) {
    let world = World::new(sets, bounds);
    let count = explore(&world);
    println!("{what}: {count} states");
    assert!(count > 1_000, "{what}: {count} states");
}

fn bounds(epochs: u8, writes: u8, crashes: u8, from_memory: bool) -> Bounds {
    Bounds {
        epochs,
        writes,
        crashes,
        losses: 0,
        from_memory,
    }
}

#[test]
fn no_order_of_steps_loses_an_acknowledged_record() {
    for name in [Any2Of3, Metro, All] {
        let set = CopySet::of(name, &[0, 1, 2]);
        check(&format!("{name:?}"), vec![set], bounds(3, 0, 0, false));
    }
}

#[test]
fn no_crash_loses_what_was_acknowledged_from_disks() {
    let names: &[PolicyName] = if is_deep() {
        &[Any2Of3, Metro, All]
    } else {
        &[Any2Of3]
    };
    for name in names {
        let set = CopySet::of(*name, &[0, 1, 2]);
        let crashes = 1 + more();
        let what = format!("{name:?}, from disks, {crashes} crashes");
        check(&what, vec![set], bounds(2, 1, crashes, false));
    }
}

#[test]
fn no_crash_that_leaves_a_copy_of_it_loses_what_was_acknowledged_from_memory() {
    let names: &[PolicyName] = if is_deep() {
        &[Any2Of3, Metro, All]
    } else {
        &[Metro]
    };
    for name in names {
        let set = CopySet::of(*name, &[0, 1, 2]);
        check(
            &format!("{name:?}, from memory, 1 crash"),
            vec![set],
            bounds(2, 1, 1, true),
        );
    }
}

#[test]
fn no_change_of_the_copies_loses_what_was_acknowledged() {
    // Of three, without 2 by its owner's decision: the two that are left must both have everything.
    let two_of_three = vec![CopySet::of(Any2Of3, &[0, 1, 2]), CopySet::of(All, &[0, 1])];
    check(
        "three become two",
        two_of_three,
        bounds(3, 0, more(), false),
    );
    // Of two, without 1; back once it answers.
    let degraded = vec![
        CopySet::of(All, &[0, 1]),
        CopySet::of(All, &[0]),
        CopySet::of(All, &[0, 1]).filling(1),
    ];
    check(
        "one of two left out and taken back",
        degraded,
        bounds(4, 1, 1, false),
    );
    if is_deep() {
        // The copy 2 is replaced by 3: it follows while that one is filled.
        let replaced = vec![
            CopySet::of(Any2Of3, &[0, 1, 2]),
            CopySet::of(Metro, &[0, 1, 2, 3]).filling(3),
            CopySet::of(Any2Of3, &[0, 1, 3]),
        ];
        check("one of three replaced", replaced, bounds(3, 0, 1, false));
    }
}

#[test]
fn a_copy_that_comes_back_empty_makes_no_old_head_speak_again() {
    let set = CopySet::of(Any2Of3, &[0, 1, 2]);
    let lost = Bounds {
        losses: 1,
        ..bounds(2 + more(), 1, 0, false)
    };
    check("a disk is lost", vec![set], lost);
}

/// The model must find what the rules forbid: else it looks in the wrong place.
mod without_a_rule {
    use super::*;

    fn loses(sets: Vec<CopySet>, bounds: Bounds, weaken: impl FnOnce(&mut World)) {
        let mut world = World::new(sets, bounds);
        weaken(&mut world);
        let explored = std::panic::catch_unwind(|| explore(&world));
        assert!(explored.is_err(), "the model finds no loss");
    }

    #[test]
    fn a_changed_set_that_does_not_ask_the_former_one_loses_a_record() {
        let sets = vec![
            CopySet::of(Any2Of3, &[0, 1, 2]),
            CopySet::of(Metro, &[0, 1, 2, 3]).filling(3),
        ];
        loses(sets, bounds(3, 0, 1, false), |world| {
            world.asks_former = false;
        });
    }

    #[test]
    fn a_copy_that_trusts_its_memory_after_a_crash_loses_a_record() {
        let sets = vec![CopySet::of(Any2Of3, &[0, 1, 2])];
        loses(sets, bounds(2, 1, 1, true), |world| {
            world.crashes_told = false;
        });
    }

    #[test]
    fn an_empty_copy_that_promised_nothing_lets_two_heads_speak() {
        let sets = vec![CopySet::of(Any2Of3, &[0, 1, 2])];
        let lost = Bounds {
            losses: 1,
            ..bounds(2, 1, 0, false)
        };
        loses(sets, lost, |world| world.joins_promised = false);
    }
}
