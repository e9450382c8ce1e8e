//! Bytes on their way from a socket to a disk.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error, realloc};
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Address that direct I/O wants data to begin at.
pub const PAGE_BYTES: usize = 4096;
const SMALL_ALIGNMENT: usize = 16;
#[cfg(target_arch = "x86_64")]
const CACHE_LINE_BYTES: usize = 64;

/// Bytes that grow like a vector's. With room for a page it begins at one, so that a disk can take it as it is.
pub struct Buffer {
    start: NonNull<u8>,
    length: usize,
    capacity: usize,
}

// SAFETY: a buffer owns its memory alone, as a vector does.
unsafe impl Send for Buffer {}
// SAFETY: shared, it can only be read.
unsafe impl Sync for Buffer {}

fn layout(capacity: usize) -> Layout {
    let alignment = if capacity < PAGE_BYTES {
        SMALL_ALIGNMENT
    } else {
        PAGE_BYTES
    };
    Layout::from_size_align(capacity, alignment).expect("no buffer is as large as half of memory")
}

impl Buffer {
    pub const fn new() -> Self {
        Self {
            start: NonNull::dangling(),
            length: 0,
            capacity: 0,
        }
    }

    pub fn with_capacity(capacity: usize) -> Self {
        let mut made = Self::new();
        made.reserve_exact(capacity);
        made
    }

    pub fn zeroed(length: usize) -> Self {
        let mut made = Self::with_capacity(length);
        made.append_zeros(length);
        made
    }

    /// A copy of `bytes`, with zeros to the end of its last page.
    pub fn padded(bytes: &[u8]) -> Self {
        let whole = bytes.len().next_multiple_of(PAGE_BYTES);
        let mut made = Self::with_capacity(whole);
        made.extend_from_slice(bytes);
        made.append_zeros(whole - bytes.len());
        made
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Have room for `more` bytes behind those that are there.
    pub fn reserve_exact(&mut self, more: usize) {
        let wanted = self.length + more;
        if wanted > self.capacity {
            self.grow(wanted);
        }
    }

    fn grow(&mut self, capacity: usize) {
        let (old, new) = (layout(self.capacity), layout(capacity));
        let start = if self.capacity > 0 && old.align() == new.align() && new.align() < PAGE_BYTES {
            // SAFETY: the memory was taken with this layout; the new size is larger, so not zero.
            unsafe { realloc(self.start.as_ptr(), old, capacity) }
        } else {
            // SAFETY: the size is larger than the old one, so not zero.
            unsafe { alloc(new) }
        };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(new);
        };
        if self.capacity > 0 && (old.align() != new.align() || new.align() == PAGE_BYTES) {
            // SAFETY: `length` bytes are there, room for more is in the new memory, which is another; the old one
            // was taken with its layout.
            unsafe {
                start.copy_from_nonoverlapping(self.start, self.length);
                dealloc(self.start.as_ptr(), old);
            }
        }
        (self.start, self.capacity) = (start, capacity);
    }

    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let wanted = self.length + bytes.len();
        if wanted > self.capacity {
            self.grow(wanted.max(2 * self.capacity));
        }
        // SAFETY: there is room for the bytes behind those that are there; `bytes` cannot lie in it.
        unsafe {
            let end = self.start.add(self.length);
            end.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len());
        }
        self.length = wanted;
    }

    /// Ask the processor for the next `count` bytes of the room. What is put there later finds them in its cache,
    /// and need not wait for each line.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    pub fn fetch_room(&self, count: usize) {
        #[cfg(target_arch = "x86_64")]
        for at in (0..count.min(self.capacity - self.length)).step_by(CACHE_LINE_BYTES) {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: the address is of our own memory, and nothing is read or written there.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.start.add(self.length + at).as_ptr().cast()) }
        }
    }

    fn append_zeros(&mut self, count: usize) {
        self.reserve_exact(count);
        // SAFETY: there is room for as many bytes behind those that are there, which this writes.
        unsafe {
            self.start.add(self.length).write_bytes(0, count);
            self.set_len(self.length + count);
        }
    }

    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// The room behind the bytes that are there.
    pub fn spare_capacity_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        let room = self.capacity - self.length;
        // SAFETY: so many bytes behind those that are there are ours, and may be anything.
        unsafe {
            let end = self.start.add(self.length).cast().as_ptr();
            std::slice::from_raw_parts_mut(end, room)
        }
    }

    /// # Safety
    /// `length` is at most the capacity, and all bytes before it have been written.
    pub unsafe fn set_len(&mut self, length: usize) {
        debug_assert!(length <= self.capacity);
        self.length = length;
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.capacity > 0 {
            // SAFETY: the memory was taken with this layout.
            unsafe { dealloc(self.start.as_ptr(), layout(self.capacity)) }
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `length` bytes from `start` on have been written.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<&[u8]> for Buffer {
    fn from(bytes: &[u8]) -> Self {
        let mut made = Self::with_capacity(bytes.len());
        made.extend_from_slice(bytes);
        made
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        bytes.as_slice().into()
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        self.deref().into()
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for Buffer {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Buffer {}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.deref().fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_stays_while_it_grows_from_small_to_whole_pages() {
        let mut buffer = Buffer::new();
        let mut model = Vec::new();
        for piece in [1, 15, PAGE_BYTES, 0, 64 * 1024, 7, 192 * 1024] {
            let bytes: Vec<u8> = (0..=250).cycle().take(piece).collect();
            buffer.extend_from_slice(&bytes);
            model.extend_from_slice(&bytes);
            assert_eq!(*buffer, *model);
            assert_eq!(buffer.clone(), buffer);
            let begins_at_a_page = buffer.as_ptr().addr().is_multiple_of(PAGE_BYTES);
            assert!(begins_at_a_page || model.len() < PAGE_BYTES);
        }
        buffer.truncate(PAGE_BYTES);
        assert_eq!(*buffer, model[..PAGE_BYTES]);
    }

    #[test]
    fn what_is_padded_ends_in_zeros_at_a_page() {
        for length in [0, 1, PAGE_BYTES, PAGE_BYTES + 1] {
            let buffer = Buffer::padded(&vec![7; length]);
            assert_eq!(buffer.len(), length.next_multiple_of(PAGE_BYTES));
            assert!(buffer[..length].iter().all(|byte| *byte == 7));
            assert!(buffer[length..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn room_that_was_filled_becomes_part_of_it() {
        let mut buffer = Buffer::from(&b"ab"[..]);
        buffer.reserve_exact(2);
        buffer.fetch_room(PAGE_BYTES);
        assert_eq!(*buffer, *b"ab");
        for byte in &mut buffer.spare_capacity_mut()[..2] {
            byte.write(b'c');
        }
        // SAFETY: both bytes have just been written.
        unsafe { buffer.set_len(4) };
        assert_eq!(*buffer, *b"abcc");
    }
}
