//! What both suites of disks need.

use nuage_disk::FileDisk;
use nuage_journal::Disk;

const WAKE_MS_MAX: i32 = 10_000;

/// Sleep until the disk says that `poll` has results.
pub fn wait(disk: &FileDisk) {
    let mut wanted = libc::pollfd {
        fd: disk.wake_fd().unwrap(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid `pollfd`, and the count says so.
    let ready = unsafe { libc::poll(&raw mut wanted, 1, WAKE_MS_MAX) };
    assert_eq!(ready, 1, "nothing wakes the caller");
}
