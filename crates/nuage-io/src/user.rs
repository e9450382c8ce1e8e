//! Giving up the rights that a daemon was started with.

use std::io;

/// Become this user, of this group alone. Done once the sockets are bound and before any thread is started, so
/// that all have the same user.
pub fn become_user(uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    if let Some(gid) = gid {
        let gid = rustix::process::Gid::from_raw(gid);
        rustix::thread::set_thread_groups(&[gid])?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    }
    if let Some(uid) = uid {
        let uid = rustix::process::Uid::from_raw(uid);
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    }
    Ok(())
}
