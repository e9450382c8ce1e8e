//! libbpf's log, kept for the error that follows instead of printed.

use crate::ffi;
use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Once;

const LINE_BYTES_MAX: usize = 65_536; // a verifier log comes as one line
const LOG_BYTES_MAX: usize = 16_384; // the end of it says why

thread_local! {
    static LOG: RefCell<String> = const { RefCell::new(String::new()) };
}

unsafe extern "C" fn keep(level: c_int, format: *const c_char, arguments: *mut c_void) -> c_int {
    if level > 1 {
        return 0; // debug
    }
    let mut line = vec![0 as c_char; LINE_BYTES_MAX];
    // SAFETY: format and arguments are libbpf's own; the buffer has the size we say.
    unsafe { ffi::vsnprintf(line.as_mut_ptr(), line.len(), format, arguments) };
    // SAFETY: vsnprintf ends what it writes with a zero.
    let text = unsafe { CStr::from_ptr(line.as_ptr()) }.to_string_lossy();
    LOG.with_borrow_mut(|log| {
        log.push_str(&text);
        if log.len() > LOG_BYTES_MAX {
            let mut cut = log.len() - LOG_BYTES_MAX;
            while !log.is_char_boundary(cut) {
                cut += 1;
            }
            log.drain(..cut);
        }
    });
    0
}

/// Begin a fresh log on this thread.
pub fn begin() {
    static INSTALL: Once = Once::new();
    // SAFETY: `keep` is a function for the life of the process and fits libbpf's type.
    INSTALL.call_once(|| unsafe {
        ffi::libbpf_set_print(Some(keep));
    });
    LOG.with_borrow_mut(String::clear);
}

/// Return what libbpf said on this thread since `begin`.
pub fn take() -> String {
    LOG.with_borrow_mut(std::mem::take)
}
