//! What holds for any bytes: no panic, no unbounded output, and pieces do not matter.
#![allow(clippy::unwrap_used)]

mod initiator;

use initiator::World;
use nuage_scsi::pdu::{BHS_BYTES, Bhs, Pdu, PduError, PduReader};
use proptest::prelude::*;

fn read_all(reader: &mut PduReader, input: &[u8], piece: usize) -> (Vec<Pdu>, Option<PduError>) {
    let mut pdus = Vec::new();
    for mut part in input.chunks(piece.max(1)) {
        loop {
            match reader.next(&mut part) {
                Ok(Some(pdu)) => pdus.push(pdu),
                Ok(None) => break,
                Err(error) => return (pdus, Some(error)),
            }
        }
    }
    (pdus, None)
}

/// A command of any opcode with a plausible CDB.
fn any_command() -> impl Strategy<Value = (u8, [u8; 16], u32, Vec<u8>)> {
    let cdb = (
        prop::sample::select(
            nuage_scsi::opcodes::COMMANDS
                .iter()
                .map(|command| command.opcode)
                .collect::<Vec<_>>(),
        ),
        any::<[u8; 15]>(),
    )
        .prop_map(|(opcode, rest)| {
            let mut cdb = [0; 16];
            cdb[0] = opcode;
            cdb[1..].copy_from_slice(&rest);
            cdb
        });
    (
        any::<u8>(),
        cdb,
        prop_oneof![0..65_536_u32, any::<u32>()],
        prop::collection::vec(any::<u8>(), 0..2048),
    )
}

proptest! {
    #[test]
    fn a_stream_gives_the_same_pdus_byte_at_a_time_as_all_at_once(
        pdus in prop::collection::vec((any::<[u8; BHS_BYTES]>(), prop::collection::vec(any::<u8>(), 0..600)), 0..6),
        cut in 0..10_usize, piece in 1..40_usize,
    ) {
        let mut stream = Vec::new();
        for (bytes, data) in pdus {
            let mut header = Bhs(bytes);
            header.0[4] = 0;
            stream.extend_from_slice(&World::encode(header, &data));
        }
        stream.truncate(stream.len().saturating_sub(cut));
        let whole = read_all(&mut PduReader::new(4096), &stream, stream.len());
        prop_assert_eq!(&read_all(&mut PduReader::new(4096), &stream, 1), &whole);
        prop_assert_eq!(&read_all(&mut PduReader::new(4096), &stream, piece), &whole);
    }

    #[test]
    fn random_bytes_never_panic_a_reader_with_digests(input in prop::collection::vec(any::<u8>(), 0..4096), piece in 1..64_usize) {
        let mut reader = PduReader::new(1024);
        reader.header_digest = true;
        reader.data_digest = true;
        read_all(&mut reader, &input, piece);
    }

    #[test]
    fn random_bytes_never_panic_a_connection_before_or_after_its_login(
        input in prop::collection::vec(any::<u8>(), 0..4096), opcode in 0..64_u8, logged_in in any::<bool>(),
    ) {
        let mut world = if logged_in { World::logged_in() } else { World::new(nuage_scsi::Access::default()) };
        let mut input = input;
        if input.len() >= BHS_BYTES {
            // Make the length plausible so that the bytes reach the machine.
            input[0] = opcode;
            input[4..8].copy_from_slice(&[0, 0, 0, 64]);
        }
        world.server.receive(world.connection, &input);
        world.pump();
        world.received();
    }

    #[test]
    fn a_damaged_session_never_panics_and_harms_no_other(
        edits in prop::collection::vec((any::<usize>(), prop::collection::vec(any::<u8>(), 1..24)), 1..6),
        logged_in in any::<bool>(), piece in 1..600_usize,
    ) {
        let mut world = if logged_in { World::logged_in() } else { World::new(nuage_scsi::Access::default()) };
        let mut stream = Vec::new();
        if !logged_in {
            let text = format!("InitiatorName=iqn.x:host\0TargetName={}\0", initiator::TARGET);
            stream.extend(World::encode(Bhs::new(0x43, 0x87), text.as_bytes()));
        }
        let cdbs: [&[u8]; 4] = [
            &[0x2a, 0, 0, 0, 0, 1, 0, 0, 2, 0], &[0x28, 0, 0, 0, 0, 1, 0, 0, 2, 0],
            &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0],
        ];
        for (tag, cdb) in (1..).zip(cdbs) {
            let header = world.command_header(tag, 0xa0, 1024, cdb);
            stream.extend(World::encode(header, &[0x5a; 1024]));
        }
        for (at, noise) in edits {
            let at = at % stream.len();
            let end = stream.len().min(at + noise.len());
            stream[at..end].copy_from_slice(&noise[..end - at]);
        }
        for part in stream.chunks(piece) {
            world.server.receive(world.connection, part);
            world.pump();
        }
        // Another initiator is served as before.
        let second = world.server.accept("192.0.2.1:3260", [9; 33]).unwrap();
        let text = format!("InitiatorName=iqn.x:other\0TargetName={}\0", initiator::TARGET);
        world.server.receive(second, &World::encode(Bhs::new(0x43, 0x87), text.as_bytes()));
        world.pump();
        prop_assert!(world.server.logged_in(second));
    }

    #[test]
    fn any_command_is_answered_once_or_waits_for_its_data(commands in prop::collection::vec(any_command(), 1..8)) {
        let mut world = World::logged_in();
        world.settle();
        for (index, (flags, cdb, expected, data)) in commands.into_iter().enumerate() {
            let tag = u32::try_from(index).unwrap();
            world.command(tag, flags | 0x80, expected, &cdb, &data);
            let answers = world
                .received()
                .iter()
                .filter(|pdu| {
                    let opcode = pdu.header.opcode();
                    opcode == 0x21 || opcode == 0x25 && pdu.header.flags() & 1 != 0
                })
                .count();
            prop_assert!(answers <= 1);
        }
    }
}
