//! A far copy that falls behind: told, then waited for as the bound says.

mod set;

use std::cell::Cell;

use nuage_engine::{Answering, CUT_OFF_NS, CopyState, LagBound};
use nuage_journal::BLOCK_BYTES;
use nuage_replica::PolicyName;
use set::{Set, create, directories, open};
use tempfile::TempDir;

const SECOND_NS: u64 = 1_000_000_000;
const FAR: usize = 1;
/// Copies by number: the head's own is 0.
const FAR_COPY: usize = 2;

fn metro(directories: &[TempDir], strict: bool) -> Set {
    for directory in &directories[..3] {
        create(directory.path(), false);
    }
    let mut set = Set::opened(directories, PolicyName::Metro, 1, false);
    bind(&mut set, strict);
    set.until(|set| set.head.is_serving() && set.is_live(FAR));
    set.until(|set| !set.head.copies()[FAR_COPY].let_go);
    set.turn_ns = 20_000; // the bound is in seconds, and those pass by `pass`
    set
}

fn bind(set: &mut Set, strict: bool) {
    set.head.set_lag_bound(Some(LagBound {
        age_ns: 4 * SECOND_NS,
        strict,
        copies: 1 << FAR_COPY,
    }));
}

/// Let time pass in steps, as a daemon that is driven ten times a second.
fn pass(set: &mut Set, seconds: u64) {
    for _ in 0..seconds * 10 {
        let clock: &Cell<u64> = &set.clock.0;
        clock.set(clock.get() + SECOND_NS / 10);
        set.turn();
        set.turn();
    }
}

#[test]
fn a_copy_that_falls_behind_slows_the_writers_and_then_stops_them_until_it_is_nearer() {
    let directories = directories();
    let mut set = metro(&directories, false);
    set.stalled[FAR] = true;
    set.write(0..8, 1);
    assert_eq!(set.head.answers(), Answering::AtOnce);
    pass(&mut set, 3);
    let lag = set.head.copies()[FAR_COPY].lag;
    assert_eq!(lag.records, 8);
    assert!(lag.bytes >= 8 * BLOCK_BYTES as u64);
    assert!(lag.age_ns >= 3 * SECOND_NS && lag.age_ns < 4 * SECOND_NS);
    assert!(matches!(set.head.answers(), Answering::Slowed { .. }));
    set.write(8..12, 2); // slower, but answered
    pass(&mut set, 2);
    assert_eq!(set.head.answers(), Answering::Held);
    set.submit(12, 3);
    pass(&mut set, 2);
    assert_eq!(set.answered, 12, "no answer beyond the bound");
    set.stalled[FAR] = false;
    set.until(|set| set.answered == 13 && set.is_live(FAR));
    set.until(|set| set.head.answers() == Answering::AtOnce);
    assert_eq!(set.head.copies()[FAR_COPY].lag.records, 0);
    set.same(FAR);
}

#[test]
fn a_copy_that_is_cut_off_is_let_go_and_bound_again_once_it_is_near() {
    let directories = directories();
    let mut set = metro(&directories, false);
    set.disconnect(FAR);
    pass(&mut set, 1);
    assert!(set.head.copies()[FAR_COPY].let_go);
    set.write(0..8, 1);
    pass(&mut set, 60);
    set.write(8..12, 2);
    assert!(set.head.copies()[FAR_COPY].lag.age_ns >= 60 * SECOND_NS);
    assert_eq!(set.head.answers(), Answering::AtOnce);
    set.connect(FAR, open(directories[FAR + 1].path()));
    set.until(|set| set.is_live(FAR) && !set.head.copies()[FAR_COPY].let_go);
}

#[test]
fn silence_is_first_waited_for_and_then_taken_for_a_cut() {
    let directories = directories();
    let mut set = metro(&directories, false);
    set.stalled[FAR] = true;
    set.write(0..1, 1);
    pass(&mut set, 5);
    set.submit(1, 2);
    pass(&mut set, 1);
    assert_eq!(set.answered, 1);
    pass(&mut set, CUT_OFF_NS / SECOND_NS);
    set.until(|set| set.answered == 2);
    assert_eq!(set.head.copies()[FAR_COPY].state, CopyState::Live);
    assert!(set.head.copies()[FAR_COPY].let_go);
}

#[test]
fn a_strict_bound_stops_the_writers_while_its_copy_is_cut_off() {
    let directories = directories();
    let mut set = metro(&directories, true);
    set.disconnect(FAR);
    set.write(0..8, 1);
    pass(&mut set, 60);
    set.submit(8, 2);
    pass(&mut set, 60);
    assert_eq!(set.answered, 8);
    assert!(!set.head.copies()[FAR_COPY].let_go);
    set.connect(FAR, open(directories[FAR + 1].path()));
    set.until(|set| set.answered == 9 && set.is_live(FAR));
}

#[test]
fn a_new_head_knows_how_old_the_writes_are_that_its_copies_lack() {
    let directories = directories();
    let mut set = metro(&directories, true);
    set.disconnect(FAR);
    set.write(0..8, 1);
    pass(&mut set, 2);
    let began_ns = set.clock.0.get();
    drop(set);
    let mut set = Set::opened(&directories, PolicyName::Metro, 2, false);
    set.clock.0.set(began_ns + 20 * SECOND_NS);
    set.stalled[FAR] = true;
    set.until(|set| set.head.is_serving());
    set.stalled[FAR] = false;
    // What it is before it has caught up: seen in the turn in which its log is joined.
    set.until(|set| set.head.copies()[FAR_COPY].state != CopyState::Fencing);
    let lag = set.head.copies()[FAR_COPY].lag;
    assert!(lag.records == 0 || lag.age_ns >= 20 * SECOND_NS, "{lag:?}");
    set.until(|set| set.is_live(FAR));
    assert_eq!(set.head.copies()[FAR_COPY].lag.age_ns, 0);
}

#[test]
fn a_copy_that_is_cut_off_is_told_with_since_when_and_its_lag_as_no_more_than_is_known() {
    let directories = directories();
    let mut set = metro(&directories, false);
    assert_eq!(set.head.copies()[FAR_COPY].silent_ns, None);
    set.stalled[FAR] = true;
    set.write(0..8, 1);
    pass(&mut set, 5);
    assert_eq!(set.head.copies()[FAR_COPY].silent_ns, None, "not yet");
    pass(&mut set, 20);
    let copy = set.head.copies()[FAR_COPY];
    let silent_ns = copy.silent_ns.expect("cut off");
    assert!((24..=26).contains(&(silent_ns / SECOND_NS)), "{silent_ns}");
    assert!(!copy.lag.is_at_least && copy.lag.records == 8);
    drop(set);
    // A head that never heard it cannot tell what it lacks of before.
    let mut set = Set::opened(&directories, PolicyName::Metro, 2, false);
    set.stalled[FAR] = true;
    set.until(|set| set.head.is_serving());
    pass(&mut set, 60);
    let copy = set.head.copies()[FAR_COPY];
    assert!(copy.lag.is_at_least);
    assert!(
        copy.silent_ns >= Some(50 * SECOND_NS),
        "{:?}",
        copy.silent_ns
    );
}
