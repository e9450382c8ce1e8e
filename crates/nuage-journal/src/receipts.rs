//! Which segments lie here, as receipts: what a daemon signs and a location ledger keeps.
//!
//! A segment is told when it is sealed, when its blocks have moved here (compaction, a copy made anew) and when it is
//! given back. A crash may come between the act and its telling, and some acts are told by nobody (a log that is cut,
//! a copy made anew that gives up its former life): so what was told is compared with what is there ([`Told::missing`])
//! whenever a copy is opened, and now and then.

use std::collections::BTreeMap;

use crate::disk::Disk;
use crate::layout::Chain;
use crate::segment::{Seal, SegmentHeader, SegmentKind};
use crate::store::{SlotState, Store};

/// Segments that a clone shares with the volume it began from have numbers of their own, from here on: those of the
/// other volume's journal would be taken for the clone's.
const SHARED_FROM: u64 = 1 << 62;

/// What a segment was when it was sealed, moved or given back: the daemon signs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    pub act: ReceiptAct,
    pub volume: [u8; 16],
    pub segment: u64,
    pub first_seq: u64,
    pub last_seq: u64,
    pub chain: Chain,
    pub bytes: u64,
    /// It lies where bases belong, and not beside the log.
    pub is_base: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiptAct {
    Sealed,
    Moved,
    Expired,
}

impl<D: Disk> Store<D> {
    /// The sealed segments that lie here, each as its receipt.
    pub fn holdings(&self) -> Vec<Receipt> {
        let slots = self.slots.iter().zip(0u32..);
        let sealed = slots.filter_map(|(slot, number)| match &slot.as_ref()?.state {
            // Not while its footer is on the way to the disk.
            SlotState::Sealed(header, seal) if !self.footers.contains_key(&number) => {
                Some(self.arrival(number, header, seal))
            }
            _ => None,
        });
        sealed.collect()
    }

    /// The receipt of a segment that is whole here.
    pub(crate) fn arrival(&self, number: u32, header: &SegmentHeader, seal: &Seal) -> Receipt {
        let is_own_log = header.kind == SegmentKind::Log && header.volume == self.superblock.volume;
        let act = if is_own_log {
            ReceiptAct::Sealed
        } else {
            ReceiptAct::Moved
        };
        self.receipt(act, number, header, seal)
    }

    /// The receipt of a segment that is given back.
    pub(crate) fn expiry(&self, number: u32, header: &SegmentHeader, seal: &Seal) -> Receipt {
        self.receipt(ReceiptAct::Expired, number, header, seal)
    }

    fn receipt(
        &self,
        act: ReceiptAct,
        number: u32,
        header: &SegmentHeader,
        seal: &Seal,
    ) -> Receipt {
        let is_own = header.volume == self.superblock.volume;
        Receipt {
            act,
            volume: header.volume,
            segment: if is_own {
                header.segment
            } else {
                SHARED_FROM + u64::from(number)
            },
            first_seq: seal.first_seq,
            last_seq: seal.last_seq,
            chain: seal.chain,
            bytes: u64::from(seal.groups_end),
            is_base: self
                .file_of(number)
                .is_some_and(|file| self.disk.is_base(file)),
        }
    }
}

/// What has been told of one copy: its segments that have not expired.
#[derive(Debug, Clone, Default)]
pub struct Told(BTreeMap<u64, Receipt>);

impl Told {
    /// True for a receipt that tells something new: acts are noted by who does them, and by who compares.
    pub fn is_news(&self, receipt: &Receipt) -> bool {
        let told = self.0.get(&receipt.segment);
        let is_told = told.is_some_and(|told| is_same(told, receipt));
        is_told == (receipt.act == ReceiptAct::Expired)
    }

    pub fn note(&mut self, receipt: &Receipt) {
        if receipt.act == ReceiptAct::Expired {
            self.0.remove(&receipt.segment);
        } else {
            self.0.insert(receipt.segment, receipt.clone());
        }
    }

    /// Whether this was told, and lies here by all that was told.
    pub fn has(&self, receipt: &Receipt) -> bool {
        receipt.act != ReceiptAct::Expired && !self.is_news(receipt)
    }

    /// How many segments are there by all that was told.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// What is there by all that was told, by segment.
    pub fn present(&self) -> impl Iterator<Item = &Receipt> {
        self.0.values()
    }

    /// What must be told so that it agrees with `present`, the segments that lie here.
    pub fn missing(&self, present: &[Receipt]) -> Vec<Receipt> {
        let here: BTreeMap<u64, &Receipt> = present.iter().map(|r| (r.segment, r)).collect();
        let gone = self.0.values().filter(|told| {
            let found = here.get(&told.segment);
            found.is_none_or(|found| !is_same(told, found))
        });
        let expired = gone.map(|told| Receipt {
            act: ReceiptAct::Expired,
            ..told.clone()
        });
        let untold = present.iter().filter(|found| {
            let told = self.0.get(&found.segment);
            told.is_none_or(|told| !is_same(told, found))
        });
        expired.chain(untold.cloned()).collect()
    }
}

/// The same content under the same number.
fn is_same(one: &Receipt, other: &Receipt) -> bool {
    (one.last_seq, one.chain) == (other.last_seq, other.chain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(segment: u64, last_seq: u64) -> Receipt {
        Receipt {
            act: ReceiptAct::Sealed,
            volume: [1; 16],
            segment,
            first_seq: 1,
            last_seq,
            chain: [u8::try_from(last_seq).expect("small"); 32],
            bytes: 4096,
            is_base: false,
        }
    }

    #[test]
    fn what_was_never_told_is_told_and_what_is_gone_expires() {
        let mut told = Told::default();
        for receipt in told.missing(&[sealed(1, 10), sealed(2, 20)]) {
            told.note(&receipt);
        }
        assert_eq!(told.missing(&[sealed(1, 10), sealed(2, 20)]), []);
        // The second was cut, and sealed anew where it then ended.
        let acts: Vec<_> = told.missing(&[sealed(2, 15)]);
        let acts: Vec<_> = acts
            .iter()
            .map(|r| (r.act, r.segment, r.last_seq))
            .collect();
        let expired = ReceiptAct::Expired;
        let anew = (ReceiptAct::Sealed, 2, 15);
        assert_eq!(acts, [(expired, 1, 10), (expired, 2, 20), anew]);
    }
}
