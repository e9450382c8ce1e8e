//! The ring buffer through which the programs tell user space.

use crate::{BpfError, ffi};
use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::RawFd;
use std::ptr::{self, NonNull};

const RECORDS_PER_DRAIN_MAX: usize = 4096;

/// A reader of one ring buffer map.
pub struct Ring {
    ring: NonNull<ffi::RingBuffer>,
    records: Box<Records>, // boxed, so that it stays where libbpf knows it
}

#[derive(Default)]
struct Records(Vec<Vec<u8>>);

// SAFETY: libbpf's reader keeps no thread-local state; &mut self keeps two threads apart.
unsafe impl Send for Ring {}

unsafe extern "C" fn take(context: *mut c_void, data: *mut c_void, size: usize) -> c_int {
    // SAFETY: the context is the boxed vector of the Ring that is being drained.
    let Records(records) = unsafe { &mut *context.cast::<Records>() };
    // SAFETY: libbpf hands `size` readable bytes for the time of this call.
    let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), size) };
    records.push(bytes.to_vec());
    if records.len() < RECORDS_PER_DRAIN_MAX {
        0
    } else {
        -1 // libbpf stops; the rest stays for the next drain
    }
}

impl Ring {
    pub fn open(fd: RawFd) -> Result<Self, BpfError> {
        let mut records: Box<Records> = Box::default();
        let context: *mut Records = &raw mut *records;
        // SAFETY: `take` gets the boxed vector, which lives as long as the ring.
        let ring = unsafe { ffi::ring_buffer__new(fd, take, context.cast(), ptr::null()) };
        let ring = NonNull::new(ring)
            .ok_or_else(|| BpfError::system("open the ring buffer", io::Error::last_os_error()))?;
        Ok(Self { ring, records })
    }

    /// Return a descriptor that is readable when there are records.
    pub fn descriptor(&self) -> RawFd {
        // SAFETY: the ring is open.
        unsafe { ffi::ring_buffer__epoll_fd(self.ring.as_ptr()) }
    }

    /// Return the records that wait.
    pub fn drain(&mut self) -> Vec<Vec<u8>> {
        // SAFETY: the ring is open, and nobody else holds the vector.
        unsafe { ffi::ring_buffer__consume(self.ring.as_ptr()) };
        std::mem::take(&mut self.records.0)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: opened by us, freed once.
        unsafe { ffi::ring_buffer__free(self.ring.as_ptr()) };
    }
}
