//! Damaged blocks: the head asks its copies for its own, and for what one of them misses.
//!
//! A copy hears only its head. So a wish of a copy that the head cannot meet itself is handed on to the others,
//! and the first good answer goes back.

use nuage_journal::{BlockWish, Disk, JournalError, Store};
use nuage_replica::Frame;

use super::{CopyState, Replicas};

/// Wishes under way at once; what is beyond is answered with nothing, and asked again by the next pass.
const ASKS_MAX: usize = 4096;

/// A wish that other copies were asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    wish: BlockWish,
    /// Whose it is: a copy, or the head itself.
    of: Option<usize>,
    /// Copies that have not answered yet.
    waits_for: u32,
}

impl Replicas {
    /// Ask for what is damaged here.
    pub(super) fn ask_for_damaged<D: Disk>(&mut self, store: &mut Store<D>) {
        for wish in store.take_wishes() {
            if !self.ask(wish, None) {
                store.give_up(wish);
            }
        }
    }

    /// Ask every copy that is up to date, but the one whose wish it is; false when there is none.
    fn ask(&mut self, wish: BlockWish, of: Option<usize>) -> bool {
        if self.asks.len() >= ASKS_MAX {
            return false;
        }
        let now_ns = self.now.monotonic_ns;
        let marks = self.marks(now_ns);
        let mut waits_for = 0;
        for (copy, peer) in self.peers.iter_mut().enumerate() {
            let has_log = matches!(peer.state, CopyState::Live | CopyState::CatchingUp);
            if copy != self.me && Some(copy) != of && has_log {
                // What is committed first: a copy looks in what it has applied.
                peer.send(&Frame::Renew { marks }, now_ns);
                peer.send(&fetch(wish), now_ns);
                waits_for |= 1 << copy;
            }
        }
        if waits_for != 0 {
            self.asks.push(Ask {
                wish,
                of,
                waits_for,
            });
        }
        waits_for != 0
    }

    /// A copy asks for what is damaged there.
    pub(super) fn asked_for<D: Disk>(
        &mut self,
        copy: usize,
        wish: BlockWish,
        store: &mut Store<D>,
    ) -> Result<(), JournalError> {
        let own = store.stored_version(wish)?;
        if own.is_some() || !self.ask(wish, Some(copy)) {
            self.answer(copy, wish, own.unwrap_or_default());
        }
        Ok(())
    }

    fn answer(&mut self, copy: usize, wish: BlockWish, data: Vec<u8>) {
        let now_ns = self.now.monotonic_ns;
        let BlockWish { lba, seq, crc } = wish;
        let frame = Frame::Block {
            lba,
            seq,
            crc,
            data,
        };
        self.peers[copy].send(&frame, now_ns);
    }

    /// A copy has sent what it has of a wish.
    pub(super) fn block_came<D: Disk>(
        &mut self,
        copy: usize,
        wish: BlockWish,
        data: &[u8],
        store: &mut Store<D>,
    ) -> Result<(), JournalError> {
        let of_copy = |ask: &Ask| ask.wish == wish && ask.waits_for & 1 << copy != 0;
        while let Some(at) = self.asks.iter().position(of_copy) {
            self.asks[at].waits_for &= !(1 << copy);
            let met = !data.is_empty()
                && match self.asks[at].of {
                    None => store.mend(wish, data)?,
                    Some(asker) => {
                        self.answer(asker, wish, data.to_vec());
                        true
                    }
                };
            if met {
                self.asks.swap_remove(at);
            } else {
                self.settle(at, store);
            }
        }
        Ok(())
    }

    /// Nobody is left to answer: the wish is not met.
    fn settle<D: Disk>(&mut self, at: usize, store: &mut Store<D>) {
        if self.asks[at].waits_for != 0 {
            return;
        }
        let ask = self.asks.swap_remove(at);
        match ask.of {
            None => store.give_up(ask.wish),
            Some(asker) => self.answer(asker, ask.wish, Vec::new()),
        }
    }

    /// Copies that cannot answer any more, or whose own wishes are void: their links are gone.
    pub(super) fn forget_unanswered<D: Disk>(&mut self, store: &mut Store<D>) {
        let mut gone = 0;
        for (copy, peer) in self.peers.iter().enumerate() {
            if !matches!(peer.state, CopyState::Live | CopyState::CatchingUp) {
                gone |= 1 << copy;
            }
        }
        let mut at = 0;
        while at < self.asks.len() {
            let before = self.asks.len();
            self.asks[at].waits_for &= !gone;
            if self.asks[at].of.is_some_and(|asker| gone & 1 << asker != 0) {
                self.asks.swap_remove(at);
            } else {
                self.settle(at, store);
            }
            at += usize::from(self.asks.len() == before);
        }
    }
}

pub(crate) fn fetch(wish: BlockWish) -> Frame {
    let BlockWish { lba, seq, crc } = wish;
    Frame::FetchBlock { lba, seq, crc }
}
