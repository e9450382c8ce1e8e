//! Initiators of other sites: the iSCSI machine's connections that lie on links, not on sockets of its own.

use super::{EventLoop, LOGIN_TIME_MAX, SLICES_MAX};
use crate::link::LinkId;
use crate::log;
use crate::path::Identity;
use std::time::Instant;

/// An initiator that came over TLS.
pub(super) struct Far {
    pub id: nuage_scsi::ConnectionId,
    pub deadline: Option<Instant>,
}

impl EventLoop {
    /// A V-node of another site brings an initiator.
    pub(super) fn welcome_far(&mut self, link: LinkId, peer: &Identity) {
        let Some(id) = self.accept_iscsi("") else {
            log::warn("too_many_connections", &[("at", "TLS".into())]);
            return self.links.close(&self.poller, link);
        };
        log::info(
            "iscsi_over_tls",
            &[
                ("site", peer.site.as_str().into()),
                ("node", peer.node.as_str().into()),
            ],
        );
        self.logins += 1;
        let deadline = Some(Instant::now() + LOGIN_TIME_MAX);
        self.far.insert(link, Far { id, deadline });
        self.far_links.insert(id, link);
    }

    /// Encrypt and write what a far connection has to say, close it when it is over.
    pub(super) fn flush_far(&mut self, link: LinkId) {
        let Some(far) = self.far.get(&link) else {
            return;
        };
        let iscsi = &mut self.doors.iscsi;
        while self.links.has_room(link) {
            let count = match iscsi.output(far.id) {
                Some(output) if !output.is_empty() => {
                    self.links.queue(link, &output.slices(SLICES_MAX))
                }
                _ => break,
            };
            if count == 0 {
                break;
            }
            iscsi.sent(far.id, count);
        }
        self.links.write(&self.poller, link);
        self.update_far(link);
    }

    pub(super) fn update_far(&mut self, link: LinkId) {
        let Some(far) = self.far.get_mut(&link) else {
            return;
        };
        let iscsi = &self.doors.iscsi;
        if iscsi.logged_in(far.id) && far.deadline.take().is_some() {
            self.logins = self.logins.saturating_sub(1);
        }
        if iscsi.finished(far.id) {
            return self.close_far(link);
        }
        let reads = iscsi.wants_input(far.id);
        self.links.set_reading(&self.poller, link, reads);
    }

    pub(super) fn close_far(&mut self, link: LinkId) {
        self.forget_far(link);
        self.links.close(&self.poller, link);
    }

    /// Tell the machine that a far connection is gone; false where the link was none.
    pub(super) fn forget_far(&mut self, link: LinkId) -> bool {
        let Some(far) = self.far.remove(&link) else {
            return false;
        };
        if far.deadline.is_some() {
            self.logins = self.logins.saturating_sub(1);
        }
        self.far_links.remove(&far.id);
        self.doors.iscsi.closed(far.id);
        true
    }
}
