//! What the allocator takes of the system, and keeps once it was freed.

use nuage_io::log;
use std::ffi::{c_int, c_long};

/// For so long memory that was freed stays with us for the next buffer. The allocator gives all back at once, what was
/// freed just now with the rest, and each page that is taken again costs as much as it costs to fill it.
const KEPT_MS: c_long = 10_000;
/// `mi_option_purge_delay` of mimalloc 3, which its bindings do not name.
const PURGE_DELAY: c_int = 15;

unsafe extern "C" {
    fn mi_option_set(option: c_int, value: c_long);
    fn mi_collect(force: bool);
}

/// Once, before any thread is started. The kernel gives no huge pages: the allocator asks for them, and each takes 2 MiB
/// where a few blocks are wanted. What was taken before this call stays as it is.
pub fn keep_buffers() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        log::warn("huge_pages_stay", &[("error", error.to_string().into())]);
    }
    // SAFETY: a setting of the allocator by value, while nobody else uses it.
    unsafe { mi_option_set(PURGE_DELAY, KEPT_MS) }
}

/// Do what needs much memory for a moment: what it frees goes back at once. Kept, it would be where small things are put that
/// stay, and all the memory around them would stay with them.
pub fn sparing<R>(act: impl FnOnce() -> R) -> R {
    // SAFETY: a setting of the allocator by value; other threads may read it meanwhile, as it is one word.
    unsafe { mi_option_set(PURGE_DELAY, 0) }
    let done = act();
    // SAFETY: as before.
    unsafe { mi_option_set(PURGE_DELAY, KEPT_MS) }
    done
}

/// Give back what has been free for so long: by itself the allocator looks only when much is asked of it or freed,
/// and a daemon that has opened a large volume and then rests would keep what it needed for that.
pub fn give_back() {
    // SAFETY: it may be called at any time, by any thread.
    unsafe { mi_collect(false) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{PURGE_DELAY, c_int, c_long};
    use std::process::Command;

    unsafe extern "C" {
        fn mi_option_get(option: c_int) -> c_long;
    }

    /// As the allocator names the option; it reads this when a process begins.
    const NAME: &str = "MIMALLOC_PURGE_DELAY";
    const VALUE: c_long = 4321;

    #[test]
    fn the_option_set_by_number_is_the_one_of_that_name() {
        if std::env::var(NAME).is_ok() {
            // SAFETY: reads a setting by value.
            assert_eq!(unsafe { mi_option_get(PURGE_DELAY) }, VALUE);
            return;
        }
        let itself = std::env::current_exe().unwrap();
        let begun_anew = Command::new(itself)
            .arg("the_option_set_by_number_is_the_one_of_that_name")
            .env(NAME, VALUE.to_string())
            .output()
            .unwrap();
        assert!(begun_anew.status.success(), "{begun_anew:?}");
    }
}
