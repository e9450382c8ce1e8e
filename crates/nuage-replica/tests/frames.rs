//! Frames survive the wire, and nothing that is no frame gets through or panics.

use nuage_replica::{Base, Frame, FrameReader, Marks, Refusal, Tail};
use proptest::prelude::*;

fn tails() -> impl Strategy<Value = Tail> {
    (any::<u64>(), any::<u64>(), any::<[u8; 32]>()).prop_map(|(seq, epoch, chain)| Tail {
        seq,
        epoch,
        chain,
    })
}

fn marks() -> impl Strategy<Value = Marks> {
    (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(committed_seq, acked_seq, sent_ns)| {
        Marks {
            committed_seq,
            acked_seq,
            sent_ns,
        }
    })
}

/// Few bytes, or so many that they are placed at a page.
fn groups() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..300),
        (any::<u8>(), 4000usize..9000).prop_map(|(byte, length)| vec![byte; length]),
    ]
}

fn frames() -> impl Strategy<Value = Frame> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..300);
    prop_oneof![
        (any::<[u8; 16]>(), any::<u64>(), any::<bool>()).prop_map(|(volume, epoch, resumes)| {
            Frame::Fence {
                volume,
                epoch,
                resumes,
            }
        }),
        (
            any::<u64>(),
            tails(),
            tails(),
            any::<u64>(),
            any::<[bool; 2]>()
        )
            .prop_map(
                |(epoch, tail, applied, quiet_ns, [steady, whole])| Frame::Fenced {
                    epoch,
                    tail,
                    applied,
                    quiet_ns,
                    steady,
                    whole
                }
            ),
        (marks(), groups()).prop_map(|(marks, group)| Frame::Append {
            marks,
            group: group.into()
        }),
        marks().prop_map(|marks| Frame::Renew { marks }),
        (any::<bool>(), bytes()).prop_map(|(last, groups)| Frame::Groups { last, groups }),
        any::<u64>().prop_map(|promised| Frame::Refused(Refusal::StaleEpoch { promised })),
        (any::<u64>(), any::<u64>(), any::<u32>(), bytes()).prop_map(|(lba, seq, crc, data)| {
            Frame::Block {
                lba,
                seq,
                crc,
                data,
            }
        }),
        (any::<u64>(), any::<u64>(), any::<u32>()).prop_map(|(lba, seq, crc)| Frame::FetchBlock {
            lba,
            seq,
            crc
        }),
        (any::<[u64; 6]>(), any::<[u8; 32]>(), any::<bool>()).prop_map(|(numbers, chain, anew)| {
            let [seq, time_ns, epoch, segment, size_bytes, until_seq] = numbers;
            let base = Base {
                seq,
                time_ns,
                epoch,
                segment,
                chain,
                size_bytes,
                until_seq,
            };
            Frame::Base { base, anew }
        }),
        (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(seq, epoch, next_lba)| {
            Frame::Staged {
                seq,
                epoch,
                next_lba,
            }
        }),
        bytes().prop_map(|group| Frame::BaseGroup { group }),
        bytes().prop_map(|part| Frame::BaseSide { part }),
        any::<[u8; 32]>().prop_map(|digest| Frame::Install { digest }),
    ]
}

proptest! {
    #[test]
    fn frames_arrive_as_sent_however_the_stream_is_cut(
        sent in proptest::collection::vec(frames(), 1..6),
        step in 1usize..50,
    ) {
        let mut bytes = Vec::new();
        for frame in &sent {
            frame.encode(&mut bytes);
        }
        let mut reader = FrameReader::default();
        let mut arrived = Vec::new();
        for piece in bytes.chunks(step) {
            reader.receive(piece);
            while let Some(frame) = reader.next_frame()? {
                arrived.push(frame);
            }
        }
        prop_assert_eq!(arrived, sent);
    }

    #[test]
    fn an_append_in_parts_arrives_as_one_and_its_group_begins_at_a_page(
        marks in marks(),
        parts in proptest::collection::vec(groups(), 1..3),
        step in 1usize..5000,
    ) {
        let group = parts.concat();
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let bytes = [Frame::append_head(&marks, &parts), group.clone()].concat();
        let mut reader = FrameReader::default();
        for piece in bytes.chunks(step) {
            reader.receive(piece);
        }
        let arrived = reader.next_frame()?;
        let Some(Frame::Append { marks: found_marks, group: found }) = arrived else {
            return Err(TestCaseError::fail("no append"));
        };
        prop_assert_eq!((found_marks, &found[..]), (marks, &group[..]));
        prop_assert!(group.len() < 4096 || found.as_ptr().addr().is_multiple_of(4096));
    }

    #[test]
    fn a_flipped_bit_never_becomes_another_frame(frame in frames(), at in any::<usize>(), bit in 0u8..8) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let at = at % bytes.len();
        bytes[at] ^= 1u8 << bit;
        let mut reader = FrameReader::default();
        reader.receive(&bytes);
        prop_assert!(!matches!(reader.next_frame(), Ok(Some(_))));
    }

    #[test]
    fn of_a_damaged_stream_only_what_came_before_the_damage_arrives(
        sent in proptest::collection::vec(frames(), 1..6),
        edits in proptest::collection::vec((any::<usize>(), proptest::collection::vec(any::<u8>(), 1..40)), 1..4),
        step in 1usize..50,
    ) {
        let mut bytes = Vec::new();
        for frame in &sent {
            frame.encode(&mut bytes);
        }
        for (at, noise) in edits {
            let at = at % bytes.len();
            let end = bytes.len().min(at + noise.len());
            bytes[at..end].copy_from_slice(&noise[..end - at]);
        }
        let mut reader = FrameReader::default();
        let mut arrived = Vec::new();
        'pieces: for piece in bytes.chunks(step) {
            reader.receive(piece);
            loop {
                match reader.next_frame() {
                    Ok(Some(frame)) => arrived.push(frame),
                    Ok(None) => break,
                    Err(_) => break 'pieces,
                }
            }
        }
        prop_assert!(sent.starts_with(&arrived));
    }

    #[test]
    fn noise_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut reader = FrameReader::default();
        reader.receive(&bytes);
        while let Ok(Some(_)) = reader.next_frame() {}
    }
}
