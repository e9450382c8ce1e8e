//! Sessions as small stories, through the public face of the machine.
#![allow(clippy::unwrap_used)]

mod initiator;

use initiator::{NONE, World};
use nuage_scsi::Access;
use nuage_scsi::chap::Account;
use nuage_scsi::pdu::{Bhs, request, response};

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
    assert_eq!(pdus[0].data, [0x5a; 1024]);
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
