//! Whole pages that several hold.

use crate::buffer::{Buffer, PAGE_BYTES};
use bytes::Bytes;
use std::ops::Deref;

/// Whole pages that nobody changes any more: disks and sockets take them from where they are.
#[derive(Clone, PartialEq, Eq)]
pub struct Pages(Bytes);

impl Pages {
    /// These bytes, where they are; `None`: they do not begin at a page, or are not whole pages.
    pub fn of(bytes: Bytes) -> Option<Self> {
        let begins_at_one = bytes.as_ptr().addr().is_multiple_of(PAGE_BYTES) || bytes.is_empty();
        (begins_at_one && bytes.len().is_multiple_of(PAGE_BYTES)).then_some(Self(bytes))
    }

    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    pub fn count(&self) -> usize {
        self.len() / PAGE_BYTES
    }

    pub fn page(&self, index: usize) -> &[u8; PAGE_BYTES] {
        &self.as_chunks().0[index]
    }
}

impl From<Buffer> for Pages {
    /// All of a buffer; panics when it is not whole pages.
    fn from(buffer: Buffer) -> Self {
        Self::of(Bytes::from_owner(buffer)).expect("a buffer of whole pages")
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Pages({})", self.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pages_that_begin_at_one_are_taken() {
        let bytes = Bytes::from_owner(Buffer::zeroed(3 * PAGE_BYTES));
        let taken = Pages::of(bytes.slice(PAGE_BYTES..)).expect("two whole pages");
        assert_eq!(taken.count(), 2);
        assert_eq!(taken.as_ptr(), bytes[PAGE_BYTES..].as_ptr());
        for part in [1..PAGE_BYTES + 1, 0..2, PAGE_BYTES..PAGE_BYTES + 1] {
            assert_eq!(Pages::of(bytes.slice(part)), None);
        }
        assert_eq!(Pages::of(Bytes::new()).map(|none| none.count()), Some(0));
    }
}
