//! The read lease: the only rule in which time touches safety.
//!
//! Fencing stops an old head's writes, not its reads. Each answer of a replica renews a lease, counted
//! from when the head *sent* the request. A head without a full ack set that renewed within [`LEASE_NS`] answers no
//! reads. What a copy answers was sent before the copy heard it. So with its promise a copy tells for how
//! long it has heard no former head, and a new head lets no write become visible before
//! [`takeover_wait_ns`] have passed since any copy of its fence set last did: by then the old lease has
//! run out, however slow the old head's clock (up to the drift allowed for). Both parts of that time,
//! the copy's and the new head's, may run fast by the same drift, so their sum errs no more than one.

/// How long an answer lets a head read: as long as a failover must wait at least, so no longer than what
/// four renewals need on a slow line.
pub const LEASE_NS: u64 = 1_000_000_000;
/// What a copy tells in place of a time when no former head can still be answering reads.
pub const RELEASED_NS: u64 = u64::MAX;
/// Clocks of two nodes differ in speed by less than 1 in this many; NTP slews 1 in 2,000.
const DRIFT_PARTS: u64 = 100;

/// Wait between the last that a fence set heard of a former head and the first visible write of a new one.
pub const fn takeover_wait_ns() -> u64 {
    LEASE_NS + 3 * LEASE_NS / DRIFT_PARTS
}

/// The lease of a head, by copy: when the last answered request to it was sent.
#[derive(Debug, Clone, Default)]
pub struct Lease {
    sent_ns: Vec<u64>,
}

impl Lease {
    pub fn new(copies: usize) -> Self {
        Self {
            sent_ns: vec![0; copies],
        }
    }

    /// A request sent at `sent_ns` (head's monotonic clock) was answered.
    pub fn renewed(&mut self, copy: usize, sent_ns: u64) {
        if let Some(found) = self.sent_ns.get_mut(copy) {
            *found = (*found).max(sent_ns);
        }
    }

    /// When reads must stop unless renewed; `me` is the head's own copy, which needs no lease.
    pub fn ends_ns(&self, policy: &crate::Policy, me: usize, now_ns: u64) -> u64 {
        let mut sent = self.sent_ns.clone();
        if let Some(own) = sent.get_mut(me) {
            *own = now_ns;
        }
        policy.reached(&sent).saturating_add(LEASE_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Policy, PolicyError, PolicyName};

    #[test]
    fn a_head_cut_off_from_its_ack_set_stops_reading() -> Result<(), PolicyError> {
        let policy = Policy::named(PolicyName::Any2Of3, 3)?;
        let mut lease = Lease::new(3);
        lease.renewed(1, 5_000_000_000);
        assert_eq!(
            lease.ends_ns(&policy, 0, 9_000_000_000),
            5_000_000_000 + LEASE_NS
        );
        lease.renewed(2, 8_000_000_000);
        assert_eq!(
            lease.ends_ns(&policy, 0, 9_000_000_000),
            8_000_000_000 + LEASE_NS
        );
        Ok(())
    }

    #[test]
    fn a_new_head_outwaits_the_slowest_old_clock() {
        // The old head's clock runs 1 % slow, the new one's 1 % fast.
        let old_real_ns = LEASE_NS * 100 / 99;
        let new_real_ns = takeover_wait_ns() * 100 / 101;
        assert!(new_real_ns > old_real_ns);
    }
}
