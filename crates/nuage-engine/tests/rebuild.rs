//! A copy that was away for longer than the history reaches, or whose disk is new, is made anew while the head
//! writes on.

mod set;

use nuage_engine::{Administration, CopyState, HeadEvent};
use nuage_journal::{Point, Retention};
use nuage_replica::PolicyName;
use tempfile::TempDir;

use set::{BLOCKS, Set, create, directories, open};

#[test]
fn a_copy_behind_the_horizon_is_made_anew_while_the_head_writes() {
    let directories = directories();
    let mut set = Set::new(&directories);
    set.write(0..1, 200);
    set.until(|set| set.is_live(1));
    set.disconnect(1);
    set.write_past_the_horizon();
    set.connect(1, open(directories[2].path()));
    set.until(|set| set.head.copies()[2].state == CopyState::Rebuilding);
    set.write(0..BLOCKS / 4, 99);
    set.until(|set| set.is_live(1));
    set.same(1);
    // It is that copy after a restart as well.
    set.disconnect(1);
    set.connect(1, open(directories[2].path()));
    set.until(|set| set.is_live(1));
    set.same(1);
}

#[test]
fn a_copy_is_made_anew_of_a_volume_that_went_back_to_what_is_of_age_since() {
    let directories = directories();
    let mut set = Set::new(&directories);
    let keep = |set: &mut Set, window_s: u64| {
        set.head.store_mut().set_retention(Retention {
            window_ns: window_s * 1_000_000_000,
            window_bytes: u64::MAX,
            strict: false,
        });
    };
    let pass = |set: &mut Set, seconds: u64| {
        let now_ns = set.clock.0.get() + seconds * 1_000_000_000;
        set.clock.0.set(now_ns);
        set.until(|set| set.head.is_serving());
    };
    let anchor = |set: &mut Set| {
        set.head.store_mut().checkpoint(false);
        set.until(|set| set.head.store().is_idle());
    };
    keep(&mut set, u64::MAX / 1_000_000_000);
    set.write(0..4, 1);
    let then = set.head.store().applied_seq();
    pass(&mut set, 1000);
    set.write(0..4, 2);
    anchor(&mut set);
    pass(&mut set, 1000);
    set.write(0..4, 3);
    set.head
        .administer(9, Administration::Rollback(Point::Seq(then)));
    set.until(|set| {
        set.head
            .store()
            .anchors()
            .iter()
            .any(|anchor| anchor.pinned)
    });
    set.until(|set| set.is_live(1));
    set.write(4..8, 4);
    anchor(&mut set);
    // What was gone back to is of age, the rollback is not.
    keep(&mut set, 900);
    pass(&mut set, 200);
    set.head.tidy();
    set.disconnect(1);
    create(directories[3].path(), true);
    set.connect(1, open(directories[3].path()));
    set.until(|set| set.is_live(1));
    set.same(1);
    // Once both are, history goes on to after the rollback, also after a restart.
    assert!(set.head.store().horizon_seq() <= then);
    pass(&mut set, 3000);
    set.write(0..1, 5);
    anchor(&mut set);
    pass(&mut set, 3000);
    set.head.tidy();
    assert!(set.head.store().horizon_seq() > then);
}

/// A set whose copy 1 was away while the volume went back to a moment that this copy has let go by itself.
fn set_with_a_copy_that_missed_a_rollback(directories: &[TempDir]) -> Set {
    let mut set = Set::new(directories);
    set.head.store_mut().set_retention(Retention {
        window_ns: u64::MAX,
        window_bytes: u64::MAX,
        strict: false,
    });
    set.write(0..4, 1);
    let then = set.head.store().applied_seq();
    set.write(0..BLOCKS, 2);
    set.write(0..BLOCKS, 3);
    set.until(|set| set.is_live(1));
    set.same(1);
    set.disconnect(1);
    let mut alone = open(directories[2].path());
    alone.close().expect("a checkpoint");
    alone.enforce_retention(u64::MAX).expect("nothing fails");
    assert!(alone.horizon_seq() > then);
    drop(alone);
    let went_back = set.head.store().tail().seq + 1;
    set.head
        .administer(9, Administration::Rollback(Point::Seq(then)));
    set.until(|set| set.head.store().applied_seq() >= went_back);
    set.write(4..8, 4);
    set
}

#[test]
fn a_copy_that_was_away_while_its_volume_went_back_is_made_anew() {
    let directories = directories();
    let mut set = set_with_a_copy_that_missed_a_rollback(&directories);
    set.connect(1, open(directories[2].path()));
    set.until(|set| set.head.copies()[2].state == CopyState::Rebuilding);
    set.until(|set| set.is_live(1));
    set.same(1);
}

#[test]
fn a_copy_that_took_a_rollback_which_it_cannot_follow_opens_again_and_is_made_anew() {
    let directories = directories();
    let mut set = set_with_a_copy_that_missed_a_rollback(&directories);
    set.connect(1, open(directories[2].path()));
    set.until(|set| {
        let copy = set.copies[1].as_ref().expect("connected");
        copy.store().is_stranded()
    });
    set.disconnect(1);
    set.connect(1, open(directories[2].path()));
    set.until(|set| set.is_live(1));
    set.same(1);
}

#[test]
fn a_copy_that_cannot_follow_a_rollback_does_not_lead() {
    let mut directories = directories();
    let mut set = set_with_a_copy_that_missed_a_rollback(&directories);
    drop(set.copies[1].take());
    set.connect(1, open(directories[2].path()));
    set.until(|set| {
        let copy = set.copies[1].as_ref().expect("connected");
        copy.store().is_stranded()
    });
    drop(set);
    directories.swap(0, 2);
    let mut set = Set::opened(&directories, PolicyName::Any2Of3, 2, false);
    set.disconnect(1);
    let told = until_told(&mut set);
    let behind = |event: &HeadEvent| matches!(event, HeadEvent::Behind { .. });
    assert!(told.iter().all(behind) && told.len() == 1, "{told:?}");
    assert!(!set.head.is_serving());
}

/// What a head says of itself, once it says something.
fn until_told(set: &mut Set) -> Vec<HeadEvent> {
    for _ in 0..set::TURNS_MAX {
        set.turn();
        let mut told = set.head.take_events();
        told.retain(|event| !matches!(event, HeadEvent::Store(_)));
        if !told.is_empty() {
            return told;
        }
    }
    Vec::new()
}

#[test]
fn an_empty_copy_vouches_for_nothing_until_it_has_everything() {
    let directories = directories();
    let mut set = Set::new(&directories);
    set.write_past_the_horizon();
    set.until(|set| set.is_live(1));
    set.disconnect(1);
    create(directories[3].path(), true);
    let store = open(directories[3].path());
    assert!(!store.is_whole());
    set.connect(1, store);
    set.until(|set| set.is_live(1));
    set.same(1);
}

#[test]
fn the_last_group_of_a_copy_that_rots_while_it_is_closed_comes_from_another() {
    for at in [60, 4096 + 60] {
        let directories = directories();
        let mut set = Set::new(&directories);
        set.write(0..4, 1);
        set.write(4..8, 0x5a);
        set.until(|set| set.is_live(1));
        set.same(1);
        let mut replica = set.copies[1].take().expect("there");
        set.disconnect(1);
        replica.store_mut().close().expect("there");
        drop(replica);
        for file in std::fs::read_dir(directories[2].path()).expect("there") {
            let path = file.expect("there").path();
            let mut bytes = std::fs::read(&path).expect("there");
            let is_header = |block: &[u8]| block.starts_with(b"NUAGGRP1");
            if let Some(group) = bytes.chunks_exact(4096).rposition(is_header) {
                bytes[group * 4096 + at] ^= 1;
                std::fs::write(&path, bytes).expect("there");
            }
        }
        set.connect(1, open(directories[2].path()));
        set.write(8..9, 2);
        set.until(|set| set.is_live(1));
        set.same(1);
        set.until(|set| {
            let store = set.copies[1].as_ref().expect("there").store();
            store.scrub_report().waiting == 0
        });
        let replica = set.copies[1].as_mut().expect("there").store_mut();
        replica.begin_scrub(0);
        let found = replica.scrub_report().found;
        while !replica.scrub_next().expect("there").is_over {}
        assert_eq!(replica.scrub_report().found, found, "nothing is left");
        let proof = replica.verify_chain(0, u64::MAX).expect("there");
        assert_eq!(proof.last_seq, replica.durable_seq(), "without a gap");
    }
}

#[test]
fn a_rebuild_that_broke_off_goes_on_where_it_was() {
    let directories = directories();
    let mut set = Set::new(&directories);
    set.write_past_the_horizon();
    set.write(0..BLOCKS, 7);
    set.write_past_the_horizon();
    set.until(|set| set.is_live(1));
    set.disconnect(1);
    create(directories[3].path(), true);
    set.connect(1, open(directories[3].path()));
    let done = |set: &Set| {
        set.head.copies()[2]
            .rebuild
            .map_or(0, |rebuild| rebuild.done_blocks)
    };
    set.until(|set| done(set) >= 64);
    set.disconnect(1);
    set.connect(1, open(directories[3].path()));
    // Three groups of 16 blocks fill a segment: what was sealed is there, what was open is sent again.
    // What is left may be sent in one turn: then it is not seen on its way.
    set.until(|set| done(set) > 0 || set.is_live(1));
    assert!(set.is_live(1) || done(&set) >= 48, "{}", done(&set));
    set.until(|set| set.is_live(1));
    set.same(1);
}

#[test]
fn a_head_whose_log_ends_before_what_the_others_keep_says_so_and_stops() {
    let mut directories = set::directories();
    let mut set = Set::new(&directories);
    set.write(0..1, 200);
    set.until(|set| set.is_live(1));
    set.disconnect(1);
    set.write_past_the_horizon();
    set.until(|set| set.is_live(0));
    drop(set);
    // The copy that was away leads, with the one whose log is gone.
    directories.swap(0, 2);
    let mut set = Set::opened(&directories, PolicyName::Any2Of3, 2, false);
    set.disconnect(0);
    let told = until_told(&mut set);
    let behind = |event: &HeadEvent| matches!(event, HeadEvent::Behind { horizon } if *horizon > 1);
    assert!(told.iter().all(behind) && told.len() == 1, "{told:?}");
    assert!(!set.head.is_serving());
}

#[test]
fn two_of_three_disks_lost_are_told_and_wait_for_the_owner() {
    let directories = directories();
    let mut set = Set::new(&directories);
    set.write(0..BLOCKS / 8, 5);
    drop(set);
    for lost in &directories[1..3] {
        for file in std::fs::read_dir(lost.path()).expect("a directory") {
            std::fs::remove_file(file.expect("an entry").path()).expect("a file");
        }
        create(lost.path(), true);
    }
    // The copy that is left may lack what the other two acknowledged.
    let mut set = Set::opened(&directories, PolicyName::Any2Of3, 2, false);
    set.until(|set| set.head.is_lost());
    assert!(!set.head.is_serving());
    drop(set);
    let mut set = Set::opened(&directories, PolicyName::Any2Of3, 3, true);
    set.until(|set| set.head.is_serving() && set.is_live(0) && set.is_live(1));
    assert!(!set.head.is_lost());
    set.same(0);
    set.same(1);
}

#[test]
fn a_chain_is_whole_though_of_the_log_before_the_horizon_only_parts_are_left() {
    let directories = directories();
    let mut set = Set::new(&directories);
    // Nobody writes these again: their segment outlives those behind it.
    set.write((1..BLOCKS).step_by(2), 99);
    set.write_past_the_horizon();
    let proof = set.head.store_mut().verify_chain(0, u64::MAX);
    let proof = proof.expect("what is left of the history is whole");
    assert!(proof.is_complete);
    assert_eq!(proof.last_seq, set.head.store().tail().seq);
}
