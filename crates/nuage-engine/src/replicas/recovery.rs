//! How a new head finds the log to go on from (docs/protocols/replication.md §1, rule 2).

use std::sync::Arc;

use nuage_journal::{Disk, Group, JournalError, Store};
use nuage_replica::{Copies, Frame, Tail, rules, takeover_wait_ns};

use super::{
    ASK_AGAIN_NS, CATCH_UP_BYTES, CopyState, Health, Phase, Replicas, Trail, Wish, tail_of,
};

impl Replicas {
    pub(super) fn try_recover<D: Disk>(
        &mut self,
        store: &mut Store<D>,
    ) -> Result<(), JournalError> {
        if self.now.monotonic_ns < self.recover_at_ns {
            return Ok(());
        }
        let tails = self.tails(store);
        let vouching = self.vouching(store);
        let may_go_on = rules::may_recover(&self.policy, self.former.as_ref(), &tails, vouching);
        self.is_lost = !may_go_on && tails.iter().all(Option::is_some);
        if !may_go_on {
            return Ok(());
        }
        let Some(best) = rules::choose(&tails) else {
            return Ok(());
        };
        self.visible_from_ns = self.former_silent_from_ns(&tails);
        if best == self.me || tails[best] == tails[self.me] {
            self.finish_recovery(store);
            return Ok(());
        }
        let applied = store.state().position;
        self.fetched_to = Tail {
            seq: applied.seq,
            epoch: applied.epoch,
            chain: applied.chain,
        };
        self.phase = Phase::Fetching { from: best };
        self.ask_for_groups(best, applied.seq);
        Ok(())
    }

    /// Our disk has no room for what our log lacks. Nothing was cut that is not kept aside: there may be room again.
    pub(super) fn recover_later(&mut self) {
        self.phase = Phase::Fencing;
        self.recover_at_ns = self.now.monotonic_ns + ASK_AGAIN_NS;
    }

    /// Where the logs end of the copies that promised, ours among them.
    fn tails<D: Disk>(&self, store: &Store<D>) -> Vec<Option<Tail>> {
        let promised = |peer: &super::Peer| peer.tail.filter(|_| peer.state == CopyState::Fenced);
        let mut tails: Vec<Option<Tail>> = self.peers.iter().map(promised).collect();
        tails[self.me] = Some(tail_of(store));
        tails
    }

    fn vouching<D: Disk>(&self, store: &Store<D>) -> rules::Vouching {
        let own = Health::of(store.is_whole(), self.own.steady);
        let (mut trusted, mut whole): (Copies, Copies) = (0, 0);
        for (copy, peer) in self.peers.iter().enumerate() {
            let health = if copy == self.me { own } else { peer.health };
            trusted |= Copies::from(health.is_trusted(self.own.from_memory)) << copy;
            whole |= Copies::from(health.is_whole()) << copy;
        }
        rules::Vouching {
            trusted,
            whole,
            accepts_loss: self.own.accepts_loss,
        }
    }

    /// When no former head can be reading any more, by what the copies that promised have heard.
    fn former_silent_from_ns(&self, tails: &[Option<Tail>]) -> u64 {
        let now_ns = self.now.monotonic_ns;
        let own_ns = now_ns + takeover_wait_ns().saturating_sub(self.own.quiet_ns);
        self.peers
            .iter()
            .zip(tails)
            .enumerate()
            .filter(|(copy, (peer, tail))| *copy != self.me && tail.is_some() && !peer.released)
            .map(|(_, (peer, _))| peer.former_until_ns)
            .fold(own_ns, u64::max)
    }

    pub(super) fn ask_for_groups(&mut self, copy: usize, after_seq: u64) {
        let bytes = CATCH_UP_BYTES as u32;
        let now_ns = self.now.monotonic_ns;
        self.peers[copy].send(&Frame::Fetch { after_seq, bytes }, now_ns);
    }

    pub(super) fn take_groups<D: Disk>(
        &mut self,
        copy: usize,
        last: bool,
        groups: &[u8],
        store: &mut Store<D>,
    ) -> Result<(), JournalError> {
        // Only what conflicts is given up: what both have may have been acknowledged, and must not be missing
        // here for a moment.
        let mut common = self.fetched_to;
        let mut at = 0;
        while at < groups.len() {
            let group = Group::decode(&groups[at..])?;
            at += group.total_bytes() as usize;
            let here = Tail {
                seq: group.head.info.last_seq(),
                epoch: group.head.info.epoch,
                chain: group.head.chain,
            };
            if here.seq > store.tail().seq || store.chain_at(here.seq)? != Some(here.chain) {
                store.truncate_after(common.seq, &common.chain)?;
                store.append(self.epoch, Arc::new(group))?;
            }
            common = here;
        }
        self.fetched_to = common;
        if !last {
            self.ask_for_groups(copy, common.seq);
            return Ok(());
        }
        store.truncate_after(common.seq, &common.chain)?;
        if Some(tail_of(store)) == self.peers[copy].tail {
            self.finish_recovery(store);
        } else {
            self.phase = Phase::Fencing;
        }
        Ok(())
    }

    pub(super) fn finish_recovery<D: Disk>(&mut self, store: &Store<D>) {
        if !store.can_begin_segment() {
            return self.recover_later(); // an epoch begins in one of its own
        }
        self.phase = Phase::Serving;
        self.own.steady = true;
        self.first_seq = store.tail().seq + 1;
        self.local_log(store.tail().seq, store.durable_seq());
        self.recent.clear();
        self.recent_bytes = 0;
        self.trail = Trail::starting_after(store.tail().seq);
        for peer in &mut self.peers {
            (peer.memory_seq, peer.durable_seq) = (0, 0);
        }
        self.wishes.push(Wish::StartEpoch);
    }
}
