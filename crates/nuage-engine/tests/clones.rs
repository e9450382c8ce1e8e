//! Clones that several nodes make of one moment, and copies of them that are made later or elsewhere.

mod set;

use std::path::Path;

use nuage_disk::{FileDisk, Method};
use nuage_engine::clone_store;
use nuage_journal::{Store, VolumeSpec};
use nuage_replica::PolicyName;
use set::{BLOCKS, Set, directories, open, spec};
use tempfile::TempDir;

const CLONE: [u8; 16] = [8; 16];

/// An empty copy of the clone.
fn create(directory: &Path, joins: bool) {
    let spec = VolumeSpec {
        volume: CLONE,
        ..spec()
    };
    let mut disk = FileDisk::open(directory, Method::Threads).expect("a directory");
    let created = if joins {
        Store::create_to_join(&mut disk, &spec, 0)
    } else {
        Store::create(&mut disk, &spec)
    };
    created.expect("an empty directory takes a copy");
}

/// Copies of a volume that was written to, and on some of their nodes the clone of one moment of it.
fn clones(of: &[TempDir], nodes: &[usize]) -> (Vec<TempDir>, u64) {
    let mut parent = Set::new(of);
    parent.write(0..BLOCKS, 3);
    let seq = parent.head.store().applied_seq();
    parent.until(|set| set.is_live(0) && set.is_live(1));
    parent.same(0);
    parent.same(1);
    parent.write(0..BLOCKS / 2, 4);
    let clones = directories();
    for node in nodes {
        let target = clones[*node].path();
        let store = match node {
            0 => parent.head.store_mut(),
            _ => parent.copies[node - 1]
                .as_mut()
                .expect("connected")
                .store_mut(),
        };
        clone_store(store, seq, target, CLONE, 2, None).expect("a clone");
    }
    // What is committed is on a copy's disk with the groups that follow.
    parent.until(|set| set.is_live(0) && set.is_live(1));
    (clones, seq)
}

#[test]
fn a_copy_that_is_added_to_a_clone_later_is_filled() {
    let parents = directories();
    let (clones, seq) = clones(&parents, &[0, 1, 2]);
    let mut set = Set::opened(&clones, PolicyName::Any2Of3, 1, false);
    set.write(0..BLOCKS / 4, 9);
    set.until(|set| set.is_live(0) && set.is_live(1));
    set.disconnect(1);
    create(clones[3].path(), true);
    set.connect(1, open(clones[3].path()));
    set.write(BLOCKS / 4..BLOCKS / 3, 10);
    set.until(|set| set.is_live(1));
    set.same(1);
    // And one that starts from the parent again, long after the others did.
    set.disconnect(1);
    let again = TempDir::new().expect("a directory");
    let mut store = open(parents[2].path());
    clone_store(&mut store, seq, again.path(), CLONE, 2, Some(1)).expect("a clone");
    set.connect(1, open(again.path()));
    set.until(|set| set.is_live(1));
    set.same(1);
}

#[test]
fn a_node_without_the_past_takes_the_clone_from_the_others() {
    let parents = directories();
    let (clones, _) = clones(&parents, &[0, 1]);
    create(clones[2].path(), true);
    let mut set = Set::opened(&clones, PolicyName::Any2Of3, 1, false);
    set.until(|set| set.is_live(1));
    set.same(1);
    set.write(0..BLOCKS / 4, 9);
    set.until(|set| set.is_live(0) && set.is_live(1));
    set.same(0);
    set.same(1);
}

#[test]
fn a_head_without_the_past_begins_anew_and_the_clones_follow_it() {
    let parents = directories();
    let (clones, _) = clones(&parents, &[1, 2]);
    create(clones[0].path(), false);
    let mut set = Set::opened(&clones, PolicyName::Any2Of3, 1, false);
    set.write(0..BLOCKS, 9);
    set.until(|set| set.is_live(0) && set.is_live(1));
    set.same(0);
    set.same(1);
}
