//! Sessions as small stories, through the public face of the machine.
#![allow(clippy::unwrap_used)]

mod initiator;

use initiator::{NONE, World};
use nuage_block::{BlockDevice, Completion, Failure, Operation, Outcome, Request};
use nuage_scsi::chap::Account;
use nuage_scsi::pdu::{Bhs, request, response};
use nuage_scsi::{Access, AccessState, Alua, PortGroup};

const MACHINE: &str = "iqn.2026-01.org.nuage:vm:vm-00000000000000aa";

#[test]
fn a_write_is_read_back_and_the_first_command_hears_of_the_power_on() {
    let mut world = World::logged_in();
    world.command(1, 0x80, 0, &[0; 6], &[]);
    let pdus = world.received();
    assert_eq!(pdus[0].header.0[3], 0x02);
    assert_eq!((pdus[0].data[4], pdus[0].data[14]), (0x06, 0x29));
    world.write_10(2, 4, &[0x5a; 1024]);
    assert_eq!(world.received()[0].header.0[3], 0);
    world.command(3, 0xc0, 1024, &[0x28, 0, 0, 0, 0, 4, 0, 0, 2, 0], &[]);
    let pdus = world.received();
    assert_eq!(pdus.len(), 1);
    assert_eq!(pdus[0].header.opcode(), response::DATA_IN);
    assert_eq!(*pdus[0].data, [0x5a; 1024]);
}

#[test]
fn an_abort_is_answered_only_after_the_write_in_flight_has_landed() {
    let mut world = World::logged_in();
    world.settle();
    world.hold = true;
    world.write_10(7, 0, &[1; 512]);
    world.management(8, 1, 7);
    assert!(world.received().is_empty());
    world.land();
    let pdus = world.received();
    assert_eq!(pdus.len(), 1, "the aborted write itself is not answered");
    assert_eq!(pdus[0].header.opcode(), response::TASK_MANAGEMENT);
    assert_eq!(pdus[0].header.0[2], 0);
}

#[test]
fn a_lun_reset_waits_too_and_every_nexus_hears_of_it() {
    let mut world = World::logged_in();
    world.settle();
    world.hold = true;
    world.write_10(7, 0, &[1; 512]);
    world.management(8, 5, NONE);
    assert!(world.received().is_empty());
    world.land();
    assert_eq!(
        world.received()[0].header.opcode(),
        response::TASK_MANAGEMENT
    );
    world.command(9, 0x80, 0, &[0; 6], &[]);
    let pdus = world.received();
    assert_eq!((pdus[0].data[14], pdus[0].data[15]), (0x29, 0x03));
}

#[test]
fn a_session_that_replaces_another_is_answered_after_the_old_ones_writes() {
    let mut world = World::logged_in();
    world.settle();
    world.hold = true;
    world.write_10(7, 0, &[1; 512]);
    let second = world.server.accept("192.0.2.1:3260", [8; 33]).unwrap();
    let text = format!(
        "InitiatorName=iqn.x:host\0TargetName={}\0",
        initiator::TARGET
    );
    let login = World::encode(Bhs::new(request::LOGIN | 0x40, 0x87), text.as_bytes());
    world.server.receive(second, &login);
    assert!(world.server.output(second).unwrap().is_empty());
    world.land();
    assert!(!world.server.output(second).unwrap().is_empty());
    assert!(
        world.server.finished(world.connection),
        "the old connection is to be closed"
    );
}

#[test]
fn solicited_data_comes_in_the_order_asked_for_or_the_command_fails() {
    let mut world = World::logged_in();
    world.settle();
    world.command(5, 0xa0, 1024, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 2, 0], &[]);
    let r2t = world.received();
    assert_eq!(r2t[0].header.opcode(), response::R2T);
    let mut data_out = Bhs::new(request::DATA_OUT, 0x80);
    data_out.set_word(16, 5);
    data_out.set_word(20, r2t[0].header.word(20));
    data_out.set_word(36, 1);
    world.send(data_out, &[3; 1024]);
    let pdus = world.received();
    assert_eq!(pdus[0].header.0[3], 0x02);
    assert_eq!(
        (pdus[0].data[4], pdus[0].data[14], pdus[0].data[15]),
        (0x0b, 0x0c, 0x0d)
    );
}

#[test]
fn a_target_with_accounts_refuses_a_login_without_chap_and_logs_it() {
    let account = Account {
        name: "user".into(),
        secret: b"secret-of-16byte".to_vec(),
    };
    let mut world = World::new(Access {
        accounts: vec![account],
        ..Access::default()
    });
    assert_eq!(world.login(&[]), (2, 1));
    assert!(world.server.finished(world.connection));
    assert_eq!(world.server.take_events().len(), 1);
}

#[test]
fn a_closed_target_lets_nobody_in_and_closing_one_leaves_who_is_in() {
    let closed = Access {
        closed: true,
        ..Access::default()
    };
    let mut world = World::new(closed.clone());
    assert_eq!(world.login(&[]), (2, 1));
    let mut world = World::logged_in();
    assert_eq!(world.server.sessions(1).len(), 1);
    assert!(world.server.set_access(1, closed));
    assert_eq!(world.server.sessions(1).len(), 1);
}

#[test]
fn another_initiator_than_those_listed_is_forbidden() {
    let mut world = World::new(Access {
        initiators: vec!["iqn.x:other".into()],
        ..Access::default()
    });
    assert_eq!(world.login(&[]), (2, 2));
}

#[test]
fn commands_outside_the_window_are_ignored_and_the_next_one_works() {
    let mut world = World::logged_in();
    world.settle();
    let right = world.command_sn;
    world.command_sn = right + 5000;
    world.command(1, 0x80, 0, &[0; 6], &[]);
    assert!(world.received().is_empty());
    world.command_sn = right;
    world.command(2, 0x80, 0, &[0; 6], &[]);
    assert_eq!(world.received().len(), 1);
}

#[test]
fn a_login_of_impossible_size_ends_the_connection() {
    let mut world = World::new(Access::default());
    let mut header = Bhs::new(request::LOGIN | 0x40, 0x87);
    header.0[5..8].copy_from_slice(&[0xff, 0xff, 0xff]);
    world.server.receive(world.connection, &header.0);
    assert!(world.server.finished(world.connection));
}

/// The status of a block (GET LBA STATUS): its first descriptor's address and whether it is mapped.
fn lba_status(world: &mut World, tag: u32, lba: u8) -> (u8, bool) {
    let cdb = [0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, lba, 0, 0, 0, 24, 0, 0];
    world.command(tag, 0xc0, 24, &cdb, &[]);
    let data = world.received().remove(0).data;
    (data[15], data[20] == 0)
}

fn write_same_16(world: &mut World, tag: u32, flags: u8, block: &[u8]) -> u8 {
    let cdb = [0x93, flags, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0];
    world.command(tag, 0xa0, 512, &cdb, block);
    world.received()[0].header.0[3]
}

fn read_10(world: &mut World, tag: u32, lba: u8, blocks: u8) -> Vec<u8> {
    let cdb = [0x28, 0, 0, 0, 0, lba, 0, 0, blocks, 0];
    world.command(tag, 0xc0, 512 * u32::from(blocks), &cdb, &[]);
    world.received()[0].data.to_vec()
}

#[test]
fn a_write_that_ends_within_a_block_keeps_the_rest_of_that_block() {
    // WRITE (10), WRITE AND VERIFY (10) with BYTCHK=1, WRITE ATOMIC (16).
    let cdbs: [&[u8]; 3] = [
        &[0x2a, 0, 0, 0, 0, 4, 0, 0, 2, 0],
        &[0x2e, 2, 0, 0, 0, 4, 0, 0, 2, 0],
        &[0x9c, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0],
    ];
    for cdb in cdbs {
        for sent in [200, 700] {
            let mut world = World::logged_in();
            world.settle();
            world.write_10(1, 4, &[1; 1024]);
            world.received();
            let length = u32::try_from(sent).unwrap();
            world.command(2, 0xa0, length, cdb, &vec![2; sent]);
            let answer = &world.received()[0].header;
            assert_eq!(
                (answer.0[3], answer.0[1] & 0x06),
                (0, 0x04),
                "GOOD, overflow"
            );
            assert_eq!(answer.word(44), 1024 - length);
            let mut expected = vec![2; sent];
            expected.resize(1024, 1);
            assert_eq!(read_10(&mut world, 3, 4, 2), expected);
        }
    }
}

#[test]
fn a_block_that_is_damaged_everywhere_is_a_medium_error_with_its_address() {
    let mut world = World::logged_in();
    world.settle();
    // READ (10) of it; WRITE (10) of a part of it.
    for (tag, flags, length, code) in [(2, 0xc0, 1024, 0x28), (3, 0xa0, 200, 0x2a)] {
        world.hold = true;
        let sent = if code == 0x2a { vec![2; 200] } else { vec![] };
        world.command(
            tag,
            flags,
            length,
            &[code, 0, 0, 0, 0, 4, 0, 0, 2, 0],
            &sent,
        );
        let read = world.held.pop().unwrap();
        world.hold = false;
        let failure = Failure::Checksum { offset: 5 * 512 };
        world.server.complete(Completion {
            tag: read.tag,
            outcome: Outcome::Failed(failure),
        });
        world.pump();
        let pdus = world.received();
        assert_eq!(pdus[0].header.0[3], 2);
        let sense = &pdus[0].data[2..];
        assert_eq!(
            (sense[0], sense[2] & 0xf, sense[12], sense[13]),
            (0xf0, 3, 0x11, 0)
        );
        assert_eq!(sense[3..7], [0, 0, 0, 5]);
    }
}

#[test]
fn a_machine_hears_of_a_lost_block_and_of_all_else_that_it_is_to_wait() {
    let lost = (0x3, 0x11, 0x00);
    let standby = (0x2, 0x04, 0x0b);
    let waits = (0x7, 0x27, 0x07);
    for (initiator, failure, heard) in [
        (MACHINE, Failure::Checksum { offset: 2048 }, lost),
        (MACHINE, Failure::Fenced, waits),
        (MACHINE, Failure::Unavailable, waits),
        (MACHINE, Failure::Medium, waits),
        ("iqn.x:host", Failure::Fenced, standby),
        ("iqn.x:host", Failure::Medium, lost),
    ] {
        hears(initiator, failure, heard, false);
        // Of a write as well: it may cover a part of that block.
        let is_hosts_own = initiator != MACHINE && failure == Failure::Medium;
        let heard = if is_hosts_own {
            (0x3, 0x0c, 0x00)
        } else {
            heard
        };
        hears(initiator, failure, heard, true);
    }
}

fn hears(initiator: &str, failure: Failure, heard: (u8, u8, u8), writes: bool) {
    let mut world = World::new(Access::default());
    assert_eq!(world.login_as(initiator, &[]), (0, 0));
    world.settle();
    world.hold = true;
    if writes {
        let write = [0x2a, 0, 0, 0, 0, 4, 0, 0, 1, 0];
        world.command(2, 0xa0, 512, &write, &[7; 512]);
    } else {
        let read = [0x28, 0, 0, 0, 0, 4, 0, 0, 1, 0];
        world.command(2, 0xc0, 512, &read, &[]);
    }
    let tag = world.held.pop().unwrap().tag;
    let outcome = Outcome::Failed(failure);
    world.server.complete(Completion { tag, outcome });
    let sense = &world.received()[0].data[2..];
    let said = (sense[2] & 0xf, sense[12], sense[13]);
    assert_eq!(said, heard, "{initiator}: {failure:?} writes: {writes}");
}

#[test]
fn what_another_wrote_to_a_block_while_a_part_of_it_is_written_stays() {
    let mut world = World::logged_in();
    world.settle();
    world.hold = true;
    world.command(2, 0xa0, 200, &[0x2a, 0, 0, 0, 0, 4, 0, 0, 1, 0], &[2; 200]);
    let read = world.held.pop().unwrap();
    let mut completions = Vec::new();
    world.device.submit(read);
    world.device.poll(&mut completions);
    let operation = Operation::Write {
        offset: 4 * 512,
        data: vec![7; 512].into(),
        fua: false,
    };
    world.device.submit(Request { tag: 99, operation });
    world.device.poll(&mut Vec::new());
    world.hold = false;
    world.server.complete(completions.remove(0));
    world.pump();
    assert_eq!(world.received()[0].header.0[3], 0);
    let mut expected = vec![2; 200];
    expected.resize(512, 7);
    assert_eq!(read_10(&mut world, 3, 4, 1), expected);
}

#[test]
fn write_same_unmaps_only_what_reads_back_as_it_was_sent() {
    let mut world = World::logged_in();
    world.settle();
    world.write_10(1, 0, &[1; 4096]);
    world.received();
    assert_eq!(write_same_16(&mut world, 2, 0x08, &[0xa5; 512]), 0);
    assert_eq!(lba_status(&mut world, 3, 0), (0, true));
    world.command(4, 0xc0, 4096, &[0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0], &[]);
    assert_eq!(*world.received()[0].data, [0xa5; 4096]);
    assert_eq!(write_same_16(&mut world, 5, 0x08, &[0; 512]), 0);
    assert_eq!(lba_status(&mut world, 6, 0), (0, false));
    // WRITE SAME (10) does not unmap, and says so.
    let cdb = [0x41, 0x08, 0, 0, 0, 0, 0, 0, 8, 0];
    world.command(7, 0xa0, 512, &cdb, &[0; 512]);
    let pdus = world.received();
    assert_eq!((pdus[0].header.0[3], pdus[0].data[4]), (2, 5));
}

#[test]
fn write_same_takes_one_block_of_data_and_no_other_size() {
    let mut world = World::logged_in();
    world.settle();
    let cdbs: [&[u8]; 2] = [
        &[0x41, 0, 0, 0, 0, 0, 0, 0, 8, 0],
        &[0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0],
    ];
    for (tag, cdb) in (1..).zip(cdbs) {
        world.command(tag, 0xa0, 1024, cdb, &[1; 1024]);
        let pdus = world.received();
        assert_eq!((pdus[0].header.0[3], pdus[0].data[4]), (2, 5));
        world.command(tag + 10, 0xa0, 512, cdb, &[1; 512]);
        assert_eq!(world.received()[0].header.0[3], 0);
    }
}

#[test]
fn the_status_of_a_block_begins_at_the_block_that_was_asked_for() {
    let mut world = World::logged_in();
    world.settle();
    world.write_10(1, 0, &[1; 8192]);
    world.received();
    // In the middle of a page: QEMU refuses an answer that begins elsewhere.
    assert_eq!(lba_status(&mut world, 2, 3), (3, true));
}

#[test]
fn a_path_that_does_not_serve_shows_the_disk_and_refuses_its_data() {
    let mut world = World::logged_in();
    world.settle();
    world.write_10(1, 0, &[7; 512]);
    world.received();
    let groups = |own| {
        [(1, own), (2, AccessState::Optimized)]
            .map(|(id, state)| PortGroup {
                id,
                state,
                ports: vec![id],
            })
            .to_vec()
    };
    let tell = |world: &mut World, own| {
        let alua = Alua {
            own_group: 1,
            groups: groups(own),
        };
        world.server.set_alua(1, alua);
        // ASYMMETRIC ACCESS STATE CHANGED.
        world.command(90, 0x80, 0, &[0; 6], &[]);
        let data = &world.received()[0].data;
        assert_eq!((data[4], data[14], data[15]), (0x06, 0x2a, 0x06));
    };
    tell(&mut world, AccessState::Unavailable);
    let refused = |world: &mut World, cdb: &[u8]| {
        world.command(91, 0xc0, 512, cdb, &[]);
        let pdus = world.received();
        (pdus[0].header.0[3] == 2).then(|| (pdus[0].data[4], pdus[0].data[14], pdus[0].data[15]))
    };
    let unavailable = Some((0x02, 0x04, 0x0c));
    assert_eq!(
        refused(&mut world, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
        unavailable
    );
    assert_eq!(
        refused(&mut world, &[0x5e, 0, 0, 0, 0, 0, 0, 0, 8, 0]),
        unavailable
    );
    assert_eq!(refused(&mut world, &[0x12, 0x01, 0x83, 0, 0xff, 0]), None);
    assert_eq!(
        refused(&mut world, &[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0]),
        None
    );
    let capacity = [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0];
    assert_eq!(refused(&mut world, &capacity), None);
    tell(&mut world, AccessState::Optimized);
    world.command(92, 0xc0, 512, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[]);
    assert_eq!(*world.received()[0].data, [7; 512]);
}
