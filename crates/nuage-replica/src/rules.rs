//! The decisions that keep data safe. Small, pure, and checked exhaustively in tests/model.rs.

use crate::frame::{Refusal, Tail};
use crate::policy::{Copies, Policy};

/// A replica's answer to a head that asks for `epoch`.
///
/// A new head needs a higher epoch than any promised; a head that comes back on a new connection has
/// the very one. `Ok(true)`: the promise must be made durable before it is answered.
pub fn fence(promised: u64, epoch: u64, resumes: bool) -> Result<bool, Refusal> {
    match (epoch > promised, resumes && epoch == promised) {
        (true, _) => Ok(true),
        (false, true) => Ok(false),
        (false, false) => Err(Refusal::StaleEpoch { promised }),
    }
}

/// What the head says of a group it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Epoch of the session it comes in.
    pub session_epoch: u64,
    /// Epoch of the group itself: older when it is copied during recovery.
    pub group_epoch: u64,
    pub first_seq: u64,
    pub previous_chain: [u8; 32],
}

/// A replica takes a group only from the head it promised to, only next, only on the same history.
pub fn accept(promised: u64, tail: &Tail, offer: &Offer) -> Result<(), Refusal> {
    if offer.session_epoch != promised || offer.group_epoch > promised {
        return Err(Refusal::StaleEpoch { promised });
    }
    if offer.first_seq != tail.seq + 1 || offer.group_epoch < tail.epoch {
        return Err(Refusal::OutOfOrder { tail_seq: tail.seq });
    }
    if offer.previous_chain != tail.chain {
        return Err(Refusal::Diverged { seq: tail.seq });
    }
    Ok(())
}

/// Among the tails of the fenced copies the one to go on from: highest epoch of the last record, then seq.
pub fn choose(tails: &[Option<Tail>]) -> Option<usize> {
    let known = tails
        .iter()
        .enumerate()
        .filter_map(|(copy, tail)| tail.map(|tail| (copy, tail)));
    known
        .max_by_key(|(copy, tail)| (tail.epoch, tail.seq, std::cmp::Reverse(*copy)))
        .map(|(c, _)| c)
}

/// What the copies that promised to a new head can vouch for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vouching {
    /// They have all that they told a head: not one that has lost durable groups, nor, where writes are
    /// acknowledged from memory, one that restarted.
    pub trusted: Copies,
    /// They have lost nothing that was durable: not one whose disk is new or damaged.
    pub whole: Copies,
    /// The owner accepts that what no copy has is lost.
    pub accepts_loss: bool,
}

/// Whether a new head may go on: a fence set that can be trusted has promised to it.
///
/// `former`: how the copies acknowledged that this volume had before its set was changed, while no head has been
/// ready under the present one: what they acknowledged must be met as well, by the same numbers of copies
/// ([`Policy::renumbered`]).
///
/// When every copy has answered there is no more to learn: what a copy had only in memory may then be gone,
/// as the mode allows, but a fence set must still be whole. Otherwise what was acknowledged may be on no disk
/// any more, and an empty one would pass for the volume: only the owner can accept that.
pub fn may_recover(
    policy: &Policy,
    former: Option<&Policy>,
    tails: &[Option<Tail>],
    vouching: Vouching,
) -> bool {
    let mut fenced: Copies = 0;
    for (copy, tail) in tails.iter().enumerate() {
        fenced |= Copies::from(tail.is_some()) << copy;
    }
    let is_fenced = |copies: Copies| {
        policy.is_fenced(copies) && former.is_none_or(|former| former.is_fenced(copies))
    };
    let enough = vouching.accepts_loss || is_fenced(fenced & vouching.whole);
    is_fenced(fenced & vouching.trusted) || (tails.iter().all(Option::is_some) && enough)
}

/// Whether a copy that starts has all that it ever told a head to hold in memory: only one that never promised
/// anything has told nothing. (An empty log proves nothing: all of it may have been in memory.)
pub fn is_steady_at_start(promised: u64) -> bool {
    promised == 0
}

/// What is committed, once `durable` is what each copy holds under this epoch.
///
/// Records of former epochs count only together with the first record of this one: until then a head
/// with a higher epoch in its last record could still be chosen over them.
pub fn committed(policy: &Policy, durable: &[u64], first_seq_of_epoch: u64, known: u64) -> u64 {
    let reached = policy.reached(durable);
    if reached >= first_seq_of_epoch {
        reached.max(known)
    } else {
        known
    }
}
