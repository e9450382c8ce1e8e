//! What the allocator keeps of memory that was freed.

use std::ffi::{c_int, c_long};

/// For so long memory that was freed stays with us for the next buffer. The allocator gives all back at once, what was
/// freed just now with the rest, and each page that is taken again costs as much as it costs to fill it.
const KEPT_MS: c_long = 10_000;
/// `mi_option_purge_delay` of mimalloc 3.
const PURGE_DELAY: c_int = 15;

unsafe extern "C" {
    fn mi_option_set(option: c_int, value: c_long);
    fn mi_collect(force: bool);
}

/// Once, before any thread is started.
pub fn keep_buffers() {
    // SAFETY: a setting of the allocator by value, while nobody else uses it.
    unsafe { mi_option_set(PURGE_DELAY, KEPT_MS) }
}

/// Give back what has been free for so long: by itself the allocator looks only when much is asked of it or freed,
/// and a daemon that has opened a large volume and then rests would keep what it needed for that.
pub fn give_back() {
    // SAFETY: it may be called at any time, by any thread.
    unsafe { mi_collect(false) }
}
