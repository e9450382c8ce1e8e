//! Making a store and opening one again (docs/protocols/journal.md §6).

use nuage_block::Buffer;

use crate::bytes::{narrow, wide};
use crate::checkpoint::{
    Checkpoint, Position, SideState, Superblock, checkpoint_name, checkpoint_seq,
};
use crate::cipher::{Cipher, VolumeUuid};
use crate::disk::{BLOCK_BYTES, Disk, DiskError};
use crate::error::JournalError;
use crate::first_blocks::{read_slots, spare_block};
use crate::history::groups_in;
use crate::index::Index;
use crate::layout::{Chain, GroupHead, VOLUME_BYTES_MAX};
use crate::replay::State;
use crate::segment::{Footer, Scan, SegmentHeader, SegmentKind, encode_first_block, scan};
use crate::store::{Anchor, OpenSegment, Opened, SlotState, Store, StoreEvent, Unapplied};
use crate::superblocks::{SUPERBLOCKS, read_superblocks};

/// Smallest segment: a group of the largest header and its footer must fit.
pub const SEGMENT_BYTES_MIN: u32 = 256 << 10;
pub const SEGMENT_BYTES_MAX: u32 = 64 << 20;

/// What a new copy of a volume shall be. Equal on all replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSpec {
    pub volume: VolumeUuid,
    pub size_bytes: u64,
    pub logical_block_bytes: u32,
    pub segment_bytes: u32,
    pub encrypted: bool,
    pub created_ns: u64,
}

/// Segment size for a volume: three are always there, so a small volume gets small ones.
pub fn segment_bytes_for(size_bytes: u64) -> u32 {
    let wished = (size_bytes / 64)
        .next_power_of_two()
        .clamp(4 << 20, u64::from(SEGMENT_BYTES_MAX));
    u32::try_from(wished).unwrap_or(SEGMENT_BYTES_MAX)
}

/// How to treat groups at the tail of an opened copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TailRule {
    /// The only copy: what is durable here is the journal.
    Only,
    /// One of several: what the head had not reported committed waits for the next head.
    OneOfSeveral,
}

impl VolumeSpec {
    fn check(&self) -> Result<(), JournalError> {
        let sound = self.size_bytes.is_multiple_of(wide(BLOCK_BYTES))
            && (1..=VOLUME_BYTES_MAX).contains(&self.size_bytes)
            && matches!(self.logical_block_bytes, 512 | 4096)
            && self.segment_bytes.is_power_of_two()
            && (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes);
        if sound {
            Ok(())
        } else {
            Err(JournalError::Malformed {
                what: "volume",
                reason: "size out of range",
            })
        }
    }

    pub fn superblock(&self, parent: VolumeUuid) -> Superblock {
        Superblock {
            generation: 0,
            volume: self.volume,
            size_bytes: self.size_bytes,
            logical_block_bytes: self.logical_block_bytes,
            segment_bytes: self.segment_bytes,
            encrypted: self.encrypted,
            promised: 0,
            created_ns: self.created_ns,
            parent,
            incomplete_seq: 0,
            previous: [0; 32],
        }
    }
}

impl<D: Disk> Store<D> {
    /// Make an empty copy in an empty directory, of a volume that begins.
    pub fn create(disk: &mut D, spec: &VolumeSpec) -> Result<(), JournalError> {
        Self::create_as(disk, &spec.superblock([0; 16]), spec)
    }

    /// The same for a volume that has other copies: this one vouches for nothing until a head says so. The copy
    /// that was lost here, if one was, may have promised up to `promised`: this one must not let an older head speak.
    pub fn create_to_join(
        disk: &mut D,
        spec: &VolumeSpec,
        promised: u64,
    ) -> Result<(), JournalError> {
        let superblock = Superblock {
            incomplete_seq: u64::MAX,
            promised,
            ..spec.superblock([0; 16])
        };
        Self::create_as(disk, &superblock, spec)
    }

    fn create_as(
        disk: &mut D,
        superblock: &Superblock,
        spec: &VolumeSpec,
    ) -> Result<(), JournalError> {
        spec.check()?;
        if disk
            .list_now()?
            .iter()
            .any(|name| name.starts_with("super."))
        {
            return Err(JournalError::NotThisVolume(
                "there is a journal here already".into(),
            ));
        }
        let checkpoint = Checkpoint {
            volume: spec.volume,
            size_bytes: spec.size_bytes,
            position: Position {
                time_ns: spec.created_ns,
                ..Position::default()
            },
            pinned: false,
            side: SideState::default(),
            index: Index::default(),
            life: 0,
        };
        disk.replace_now(&checkpoint_name(0), &checkpoint.to_bytes())?;
        for name in SUPERBLOCKS {
            disk.replace_now(name, &superblock.encode())?;
        }
        Ok(())
    }

    /// Open what `create` made, after whatever crash.
    pub fn open(disk: D, cipher: Option<Cipher>, tail: TailRule) -> Result<Self, JournalError> {
        let has_key = cipher.is_some();
        let store = Self::recover(disk, cipher, tail)?;
        if store.superblock.encrypted != has_key {
            return Err(JournalError::NotThisVolume(
                "the data key is missing or unwanted".into(),
            ));
        }
        Ok(store)
    }

    /// Open a copy whose key is not here, or nowhere any more: for its chain and its receipts. Its
    /// blocks cannot be read.
    pub fn open_without_key(disk: D, tail: TailRule) -> Result<Self, JournalError> {
        Self::recover(disk, None, tail)
    }

    fn recover(mut disk: D, cipher: Option<Cipher>, tail: TailRule) -> Result<Self, JournalError> {
        let (superblock, are_alike) = read_superblocks(&mut disk)?;
        let names = disk.list_now()?;
        remove_temporary(&mut disk, &names)?;
        let (mut anchors, checkpoint) = read_checkpoints(&mut disk, &names, &superblock)?;
        let former = anchors.len();
        anchors.retain(|(_, life)| *life == checkpoint.life);
        let (slots, doubtful) = read_slots(&mut disk, &names, superblock.segment_bytes)?;
        let state = State {
            position: checkpoint.position,
            size_bytes: checkpoint.size_bytes,
            side: checkpoint.side,
            index: checkpoint.index,
        };
        let opened = Opened {
            superblock,
            state,
            slots,
            anchors: anchors.iter().map(|(anchor, _)| *anchor).collect(),
            replayed_bytes: 0,
            life: checkpoint.life,
        };
        let is_new_life = opened.anchors.len() < former;
        let mut store = Self::from_opened(disk, opened, cipher);
        for name in SUPERBLOCKS.into_iter().filter(|_| !are_alike) {
            store.mend_superblock(name)?;
        }
        if is_new_life {
            // A crash while this copy was made anew: all log is of the life before.
            store.drop_own_log()?;
            store.remove_other_checkpoints(&names)?;
        }
        store.read_moves(&names)?;
        store.settle_doubtful(&doubtful, tail)?;
        if !store.close_what_is_open(tail)? {
            // Each time with fewer checkpoints.
            let files: Vec<_> = store.slots.iter().flatten().map(|slot| slot.file).collect();
            let (mut disk, cipher) = (store.disk, store.cipher);
            for file in files {
                disk.close(file);
            }
            return Self::recover(disk, cipher, tail);
        }
        store.find_rollbacks();
        store.replay(tail)?;
        Ok(store)
    }

    fn remove_other_checkpoints(&mut self, names: &[String]) -> Result<(), JournalError> {
        for seq in names.iter().filter_map(|name| checkpoint_seq(name)) {
            if self.anchors.iter().all(|anchor| anchor.position.seq != seq) {
                self.disk.remove_now(&checkpoint_name(seq))?;
            }
        }
        Ok(())
    }

    /// Own log segments by segment id.
    pub(crate) fn own_log(&self) -> Vec<(u32, SegmentHeader)> {
        let mut found: Vec<(u32, SegmentHeader)> = self
            .slots
            .iter()
            .zip(0u32..)
            .filter_map(
                |(slot, number)| match slot.as_ref().map(|slot| &slot.state) {
                    Some(SlotState::Open(header) | SlotState::Sealed(header, _))
                        if header.kind == SegmentKind::Log
                            && header.volume == self.superblock.volume =>
                    {
                        Some((number, header.clone()))
                    }
                    _ => None,
                },
            )
            .collect();
        found.sort_unstable_by_key(|(_, header)| header.segment);
        found
    }

    /// Scan segments without a seal and cut torn tails off. The only copy seals them; one of several leaves
    /// its last one open, because the head goes on in it. False: the log ends before the checkpoint now, which is
    /// gone; begin again with an older one.
    fn close_what_is_open(&mut self, tail: TailRule) -> Result<bool, JournalError> {
        // From the end: the last segment that holds anything is the one to go on in.
        let mut may_go_on = tail == TailRule::OneOfSeveral;
        // What is applied had been durable: in this segment, as far as the next does not begin before.
        let mut known_seq = self.state.position.seq;
        for (number, header) in self.own_log().into_iter().rev() {
            let Some(slot) = self.slots[number as usize].clone() else {
                continue;
            };
            let goes_on = may_go_on;
            if !goes_on && !matches!(slot.state, SlotState::Open(_)) {
                known_seq = known_seq.min(header.first_seq.saturating_sub(1));
                continue;
            }
            if let SlotState::Sealed(_, seal) = &slot.state {
                known_seq = known_seq.max(seal.last_seq);
                self.mend_headers(number)?;
            }
            let bytes = self
                .disk
                .read_now(slot.file, 0, self.superblock.segment_bytes as usize)?;
            let found = scan(&bytes, &header, known_seq);
            if goes_on && found.damaged_at.is_some() {
                // Other copies have it. Known before the evidence is wiped out with the rest.
                self.superblock.incomplete_seq =
                    self.superblock.incomplete_seq.max(found.evidence_seq);
                self.write_superblock()?;
                self.keep_rest(&header, &bytes, &found)?;
                let last = found.groups.last();
                let end_seq = last.map_or(header.first_seq.saturating_sub(1), |group| {
                    group.head.info.last_seq()
                });
                if end_seq < self.state.position.seq {
                    self.give_up_checkpoints_after(end_seq, &header)?;
                    return Ok(false);
                }
            } else if let Some(offset) = found.damaged_at {
                return Err(JournalError::Corrupt {
                    what: "group",
                    segment: header.segment,
                    offset: u64::from(offset),
                });
            }
            let mut footer = Footer::default();
            for group in &found.groups {
                footer.add(&group.header, &group.head);
            }
            if footer.is_empty() {
                self.make_spare(number)?;
            } else if goes_on {
                may_go_on = false;
                self.reopen_segment(number, header.clone(), footer, found.end)?;
            } else {
                self.write_seal(number, header.clone(), &footer, found.end)?;
            }
            self.note_scanned(number, &bytes, &found);
            known_seq = known_seq.min(header.first_seq.saturating_sub(1));
        }
        Ok(true)
    }

    /// Write the headers of a sealed segment's groups anew from its footer, where they are not as it says.
    fn mend_headers(&mut self, number: u32) -> Result<(), JournalError> {
        let Some((_, seal)) = self.sealed(number) else {
            return Ok(());
        };
        let (offset, length) = (seal.footer_offset(), seal.footer_bytes as usize);
        let (Some(file), Ok(groups)) = (self.file_of(number), self.groups_of(number)) else {
            return Ok(());
        };
        let footer = self
            .disk
            .read_now(file, offset, length.next_multiple_of(BLOCK_BYTES))?;
        let mut at = 0;
        for (head, block) in groups {
            let place = at..at + head.info.header_bytes as usize;
            at = place.end;
            let here = crate::segment::block_bytes(block);
            let Some(header) = footer.get(place) else {
                return Ok(());
            };
            let length = header.len().next_multiple_of(BLOCK_BYTES);
            let stored = self.disk.read_now(file, here, length)?;
            let is_it = GroupHead::decode(header).is_ok_and(|told| told.chain == head.chain);
            if is_it && !stored.starts_with(header) {
                self.mend_header(number, block, header)?;
            }
        }
        Ok(())
    }

    /// Keep what cannot be followed any more in a file for people, before it is wiped out.
    fn keep_rest(
        &mut self,
        header: &SegmentHeader,
        bytes: &[u8],
        found: &Scan,
    ) -> Result<(), JournalError> {
        let rest = &bytes[found.end as usize..];
        let length = rest
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at + 1);
        let last = found.groups.last();
        let seq = last.map_or(header.first_seq.saturating_sub(1), |group| {
            group.head.info.last_seq()
        });
        self.put_aside(seq, header.epoch, &rest[..length])
    }

    pub(crate) fn put_aside(
        &mut self,
        seq: u64,
        epoch: u64,
        bytes: &[u8],
    ) -> Result<(), JournalError> {
        let name = format!("quarantine.{seq:016x}.{epoch:016x}");
        match self.disk.replace_now(&name, bytes) {
            // The other copies are worth more than this one's rest.
            Ok(()) | Err(DiskError::NoSpace) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The log ends at `seq`: what a checkpoint after it shows cannot be continued.
    fn give_up_checkpoints_after(
        &mut self,
        seq: u64,
        header: &SegmentHeader,
    ) -> Result<(), JournalError> {
        let (kept, given_up): (Vec<Anchor>, Vec<Anchor>) =
            (self.anchors.iter()).partition(|anchor| anchor.position.seq <= seq);
        if kept.is_empty() {
            return Err(JournalError::Corrupt {
                what: "group before every checkpoint",
                segment: header.segment,
                offset: 0,
            });
        }
        // The newest first: a crash leaves them in order.
        for anchor in given_up.iter().rev() {
            self.disk
                .remove_now(&checkpoint_name(anchor.position.seq))?;
        }
        Ok(())
    }

    /// Note the blocks of groups that were kept although they are damaged.
    fn note_scanned(&mut self, number: u32, bytes: &[u8], found: &Scan) {
        for group in found.groups.iter().filter(|group| group.is_damaged) {
            let info = &group.head.info;
            let first = group.offset as usize + info.header_blocks() as usize * BLOCK_BYTES;
            let payload = &bytes[first..first + info.payload_blocks as usize * BLOCK_BYTES];
            self.note_blocks(number, &group.head, narrow(first / BLOCK_BYTES), payload);
        }
    }

    /// Go on in a segment after `end`; a torn or refused group there is wiped out.
    fn reopen_segment(
        &mut self,
        number: u32,
        header: SegmentHeader,
        footer: Footer,
        end: u32,
    ) -> Result<(), JournalError> {
        let Some(slot) = self.slots[number as usize].as_mut() else {
            return Ok(());
        };
        // The seal goes first: a footer must never describe a group that is gone.
        if matches!(slot.state, SlotState::Sealed(..)) {
            let block = encode_first_block(&header, None);
            self.disk.write_now(slot.file, 0, &block)?;
        }
        // From the back, so that what is left at any moment is a log without a hole.
        let segment_bytes = self.superblock.segment_bytes as usize;
        let rest = self.disk.read_now(slot.file, 0, segment_bytes)?;
        for at in (end as usize..segment_bytes).step_by(BLOCK_BYTES).rev() {
            if rest[at..].starts_with(crate::layout::GROUP_MAGIC.as_slice()) {
                let zero = Buffer::zeroed(BLOCK_BYTES).into();
                self.disk.write_now(slot.file, wide(at), &zero)?;
            }
        }
        slot.state = SlotState::Open(header.clone());
        self.open = Some(OpenSegment {
            slot: number,
            header,
            end,
            footer,
        });
        Ok(())
    }

    /// Give up all groups after `seq`, the end of a group at or after the applied position. They are kept
    /// in a file for people; the engine never reads them again.
    pub fn truncate_after(&mut self, seq: u64, chain: &Chain) -> Result<(), JournalError> {
        self.drain()?;
        if seq < self.applied_seq() || seq > self.tail.seq {
            return Err(JournalError::OutOfOrder {
                tail: self.tail.seq,
                found: seq,
            });
        }
        if self.chain_at(seq)? != Some(*chain) {
            return Err(JournalError::Diverged { seq });
        }
        if seq == self.tail.seq {
            return Ok(());
        }
        self.quarantine_after(seq)
    }

    /// First the refused groups are kept aside, then the log is cut from its end backwards: a crash at any
    /// step leaves a log without a gap.
    fn quarantine_after(&mut self, seq: u64) -> Result<(), JournalError> {
        let mut refused = Vec::new();
        let mut kept = self.anchors_position(seq);
        let mut cuts = Vec::new();
        for (number, header) in self.own_log() {
            let mut footer = Footer::default();
            let mut end = narrow(BLOCK_BYTES);
            let mut has_refused = false;
            let Some(file) = self.file_of(number) else {
                continue;
            };
            // Not as they lie before their groups: where one rotted there, the footer alone has it.
            let headers = self.headers_in_slot(number)?;
            let mut rest = headers.as_slice();
            for (head, block) in groups_in(&headers)? {
                let (group_header, others) = rest.split_at(head.info.header_bytes as usize);
                rest = others;
                let length = head.info.total_blocks() as usize * BLOCK_BYTES;
                if head.info.last_seq() > seq {
                    has_refused = true;
                    let offset = crate::segment::block_bytes(block);
                    refused.extend(self.disk.read_now(file, offset, length)?);
                    continue;
                }
                footer.add(group_header, &head);
                end += narrow(length);
                kept = Position {
                    seq: head.info.last_seq(),
                    time_ns: head.info.time_ns,
                    epoch: head.info.epoch,
                    segment: header.segment,
                    chain: head.chain,
                };
            }
            // Where the log then ends is open again: the head may go on in that segment.
            if has_refused || kept.segment == header.segment {
                cuts.push((number, header, footer, end, has_refused));
            }
        }
        cuts.retain(|(_, header, _, _, has_refused)| {
            *has_refused || header.segment == kept.segment
        });
        let name = format!("quarantine.{seq:016x}.{:016x}", self.tail.epoch);
        self.disk.replace_now(&name, &refused)?;
        self.open = None;
        for (number, header, footer, end, _) in cuts.into_iter().rev() {
            self.tables.forget_slot(number);
            self.recent.forget_slot(number);
            self.forget_cut(number, end);
            if footer.is_empty() {
                self.make_spare(number)?;
            } else {
                self.reopen_segment(number, header, footer, end)?;
            }
        }
        self.unapplied
            .retain(|waiting| waiting.head.info.last_seq() <= seq);
        self.tail = kept;
        self.durable_seq = self.durable_seq.min(seq);
        self.committed_seq = self.committed_seq.min(seq);
        Ok(())
    }

    fn anchors_position(&self, seq: u64) -> Position {
        let before = self
            .anchors
            .iter()
            .rev()
            .find(|anchor| anchor.position.seq <= seq);
        before.map_or_else(Position::default, |anchor| anchor.position)
    }

    /// The chain after `seq`, when that is the end of a group (or an anchor) here.
    pub fn chain_at(&mut self, seq: u64) -> Result<Option<Chain>, JournalError> {
        if seq == self.tail.seq {
            return Ok(Some(self.tail.chain));
        }
        if seq == self.state.position.seq {
            return Ok(Some(self.state.position.chain));
        }
        if let Some(anchor) = self
            .anchors
            .iter()
            .find(|anchor| anchor.position.seq == seq)
        {
            return Ok(Some(anchor.position.chain));
        }
        for (number, header) in self.own_log() {
            let ends_before = self
                .sealed(number)
                .is_some_and(|(_, seal)| seal.last_seq < seq);
            if header.first_seq > seq || ends_before {
                continue;
            }
            for (head, _) in self.groups_of(number)? {
                if head.info.last_seq() == seq {
                    return Ok(Some(head.chain));
                }
            }
        }
        Ok(None)
    }

    /// Whole durable groups after `seq`, about `bytes` of them, back to back; empty at the durable end.
    pub fn read_groups(&mut self, seq: u64, bytes: usize) -> Result<Vec<u8>, JournalError> {
        let mut found: Vec<u8> = Vec::new();
        let mut next = seq + 1;
        for (number, header) in self.own_log() {
            let ends_before = self
                .sealed(number)
                .is_some_and(|(_, seal)| seal.last_seq < next);
            if ends_before || header.first_seq > self.durable_seq {
                continue;
            }
            if header.first_seq > next {
                return Err(JournalError::OutOfHistory {
                    horizon: header.first_seq,
                    tail: self.tail.seq,
                    asked: next,
                });
            }
            let Some(file) = self.file_of(number) else {
                return Ok(found);
            };
            let mut run: Option<(u64, usize)> = None;
            let mut is_whole = true;
            for (head, block) in self.groups_of(number)? {
                if head.info.first_seq < next {
                    continue;
                }
                let length = head.info.total_blocks() as usize * BLOCK_BYTES;
                let so_far = found.len() + run.map_or(0, |(_, length)| length);
                let full = so_far > 0 && so_far + length > bytes;
                if head.info.first_seq != next || head.info.last_seq() > self.durable_seq || full {
                    is_whole = false;
                    break;
                }
                next = head.info.last_seq() + 1;
                let (_, sum) = run.get_or_insert((crate::segment::block_bytes(block), 0));
                *sum += length;
            }
            if let Some((offset, length)) = run {
                found.extend_from_slice(&self.disk.read_now(file, offset, length)?);
            }
            if !is_whole || found.len() >= bytes {
                break;
            }
        }
        Ok(found)
    }

    pub(crate) fn make_spare(&mut self, number: u32) -> Result<(), JournalError> {
        self.tables.forget_slot(number);
        self.recent.forget_slot(number);
        if let Some(slot) = self.slots[number as usize].as_mut() {
            slot.state = SlotState::Spare;
            self.disk.write_now(slot.file, 0, &spare_block())?;
        }
        Ok(())
    }

    pub(crate) fn write_seal(
        &mut self,
        number: u32,
        header: SegmentHeader,
        footer: &Footer,
        end: u32,
    ) -> Result<(), JournalError> {
        let Some(slot) = self.slots[number as usize].as_mut() else {
            return Ok(());
        };
        let seal = footer.seal(&header, end);
        let bytes = Buffer::padded(&footer.bytes).into();
        self.disk.write_now(slot.file, u64::from(end), &bytes)?;
        self.disk
            .write_now(slot.file, 0, &encode_first_block(&header, Some(&seal)))?;
        slot.state = SlotState::Sealed(header, seal);
        let told = self
            .sealed(number)
            .map(|(header, seal)| self.arrival(number, header, seal));
        self.events.extend(told.map(StoreEvent::Receipt));
        Ok(())
    }

    fn replay(&mut self, tail: TailRule) -> Result<(), JournalError> {
        let start = self.state.position;
        let mut end = start;
        let mut stable_seq = start.seq;
        let mut waiting = Vec::new();
        for (number, header) in self.own_log() {
            self.tail.segment = self.tail.segment.max(header.segment);
            let last_seq = match (self.sealed(number), &self.open) {
                (Some((_, seal)), _) => seal.last_seq,
                (None, Some(open)) if open.slot == number => u64::MAX,
                _ => continue,
            };
            if last_seq <= start.seq {
                continue;
            }
            let gap = JournalError::Corrupt {
                what: "sequence of segments",
                segment: header.segment,
                offset: 0,
            };
            if header.first_seq > end.seq + 1 {
                return Err(gap);
            }
            for (head, block) in self.groups_of(number)? {
                if head.info.last_seq() <= start.seq {
                    continue;
                }
                if head.info.first_seq == end.seq + 1 && head.info.previous_chain != end.chain {
                    return Err(gap);
                }
                stable_seq = stable_seq.max(head.info.stable_seq);
                end = Position {
                    seq: head.info.last_seq(),
                    time_ns: head.info.time_ns,
                    epoch: head.info.epoch,
                    segment: header.segment,
                    chain: head.chain,
                };
                self.log_bytes_since_checkpoint +=
                    u64::from(head.info.total_blocks()) * wide(BLOCK_BYTES);
                waiting.push(Unapplied {
                    head: head.into(),
                    slot: number,
                    block,
                });
            }
        }
        let segment = self.tail.segment.max(end.segment);
        self.tail = Position { segment, ..end };
        self.durable_seq = end.seq;
        self.unapplied = waiting.into();
        self.set_committed(match tail {
            TailRule::Only => end.seq,
            TailRule::OneOfSeveral => stable_seq.min(end.seq),
        });
        self.failed.clone().map_or(Ok(()), Err)
    }
}

fn remove_temporary<D: Disk>(disk: &mut D, names: &[String]) -> Result<(), JournalError> {
    for name in names
        .iter()
        .filter(|name| name.strip_suffix(".tmp").is_some())
    {
        disk.remove_now(name)?;
    }
    Ok(())
}

fn read_checkpoints<D: Disk>(
    disk: &mut D,
    names: &[String],
    superblock: &Superblock,
) -> Result<(Vec<(Anchor, u64)>, Checkpoint), JournalError> {
    let mut seqs: Vec<u64> = names
        .iter()
        .filter_map(|name| checkpoint_seq(name))
        .collect();
    seqs.sort_unstable();
    let mut newest: Option<Checkpoint> = None;
    let mut anchors = Vec::new();
    for seq in seqs.into_iter().rev() {
        let name = checkpoint_name(seq);
        // Older ones are decoded as well: their position is needed, and damage shows early.
        match Checkpoint::decode(&disk.load_now(&name)?) {
            // Of another name it is of another moment: given up by its own name it would stay.
            Ok(found) if found.volume == superblock.volume && found.position.seq == seq => {
                let anchor = Anchor {
                    position: found.position,
                    pinned: found.pinned,
                };
                anchors.push((anchor, found.life));
                if newest
                    .as_ref()
                    .is_none_or(|newest| newest.life < found.life)
                {
                    newest = Some(found);
                }
            }
            _ => disk.remove_now(&name)?,
        }
    }
    anchors.reverse();
    let newest = newest.ok_or(JournalError::Corrupt {
        what: "every checkpoint",
        segment: 0,
        offset: 0,
    })?;
    Ok((anchors, newest))
}
