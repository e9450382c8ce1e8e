//! When copies say what is on their disks: asked, at once; unasked, with their next answer.

mod set;

use nuage_block::{Failure, Operation, Outcome, Request};
use nuage_engine::{AckMode, CopyState};
use set::{Set, TURNS_MAX, directories};

const FLUSH_TAG: u64 = 1 << 32;

#[test]
fn who_waits_for_the_disks_hears_of_them_though_no_time_passes() {
    let directories = directories();
    let mut set = Set::answering(&directories, AckMode::Memory);
    set.until(|set| {
        set.head.copies()[1..]
            .iter()
            .all(|copy| copy.state == CopyState::Live)
    });
    set.turn_ns = 0;
    set.write(0..8, 1);
    let operation = Operation::Flush;
    set.head.submit(Request {
        tag: FLUSH_TAG,
        operation,
    });
    let tail = set.head.last_seq();
    assert!(
        (0..TURNS_MAX).any(|_| set.turn() > 0),
        "a flush is answered"
    );
    assert!(
        set.head.copies()[1..]
            .iter()
            .any(|copy| copy.durable_seq == tail)
    );
    // Where one copy's disk was faster than the flush came, the other was not asked: it tells in time.
    set.turn_ns = 1_000_000;
    set.until(|set| set.is_live(0) && set.is_live(1));
}

#[test]
fn a_copy_that_nobody_asks_tells_of_its_disk_with_its_next_answer() {
    let directories = directories();
    let mut set = Set::answering(&directories, AckMode::Memory);
    set.until(|set| set.is_live(0) && set.is_live(1));
    set.turn_ns = 0;
    let before = set.answers;
    set.write(0..1, 1);
    let tail = set.head.last_seq();
    set.until(|set| {
        let on_disk = |copy: &nuage_engine::ReplicaStore<_>| copy.store().durable_seq() == tail;
        set.copies.iter().flatten().all(on_disk)
    });
    set.turn();
    set.turn();
    let answers = [set.answers[0] - before[0], set.answers[1] - before[1]];
    assert_eq!(answers, [1, 1], "one for a group, none for its commit");
}

#[test]
fn a_head_whose_own_disk_failed_sends_its_initiators_to_another_path() {
    let mut directories = directories();
    let mut set = Set::answering(&directories, AckMode::Memory);
    set.until(|set| set.is_live(0) && set.is_live(1));
    set.write(0..8, 1);
    directories
        .swap_remove(0)
        .close()
        .expect("the disk is gone");
    set.head.store_mut().checkpoint(false);
    let mut answers = Vec::new();
    for tag in 1 << 32.. {
        let (offset, length) = (0, 4096);
        let operation = Operation::Read { offset, length };
        set.head.submit(Request { tag, operation });
        set.head.poll(&mut answers);
        let failed =
            |answer: &nuage_block::Completion| matches!(answer.outcome, Outcome::Failed(_));
        if answers.iter().any(failed) || tag == TURNS_MAX as u64 + (1 << 32) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
    let last = answers.last().map(|answer| &answer.outcome);
    assert_eq!(last, Some(&Outcome::Failed(Failure::Fenced)));
}
