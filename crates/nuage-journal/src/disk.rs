//! The port to a disk: a directory of files that one store owns.
//!
//! The engine's thread submits operations and polls their results; only opening, recovery and
//! rare administration use the `_now` calls, which block. `nuage-disk` implements it with io_uring and
//! with threads, the simulator with a disk that tears, loses and rots.

use std::ops::Range;
use std::sync::Arc;

/// Size of a block everywhere in the journal.
pub const BLOCK_BYTES: usize = 4096;

/// A handle that the disk gave for an open file.
pub type FileId = u32;

/// Why a disk operation failed. None of them is retried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    #[error("{operation} {name}: {reason}")]
    Io {
        operation: &'static str,
        name: String,
        reason: String,
    },
    #[error("{name} does not exist")]
    NotFound { name: String },
    #[error("no space left on the device")]
    NoSpace,
    #[error("{name}: {wrote} of {wanted} bytes")]
    Short {
        name: String,
        wrote: usize,
        wanted: usize,
    },
}

#[repr(C, align(4096))]
#[derive(Clone, Copy)]
struct AlignedBlock([u8; BLOCK_BYTES]);

/// Bytes that somebody else owns and keeps as they are.
pub type Lent = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Whole blocks at an aligned address, as direct I/O wants them.
#[derive(Clone)]
pub struct AlignedBuffer(Place);

#[derive(Clone)]
enum Place {
    Own(Vec<AlignedBlock>),
    Lent { owner: Lent, range: Range<usize> },
}

impl Default for AlignedBuffer {
    fn default() -> Self {
        Self(Place::Own(Vec::new()))
    }
}

impl std::fmt::Debug for AlignedBuffer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "AlignedBuffer({} blocks)", self.block_count())
    }
}

impl PartialEq for AlignedBuffer {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl AlignedBuffer {
    pub fn zeroed(block_count: usize) -> Self {
        Self(Place::Own(vec![
            AlignedBlock([0; BLOCK_BYTES]);
            block_count
        ]))
    }

    pub fn with_capacity(block_count: usize) -> Self {
        Self(Place::Own(Vec::with_capacity(block_count)))
    }

    /// Blocks that stay where they are, in memory of another; `None`: they are not aligned or not whole.
    pub fn lent(owner: &Lent, range: Range<usize>) -> Option<Self> {
        let bytes = (**owner).as_ref().get(range.clone())?;
        let aligned = bytes.as_ptr().addr().is_multiple_of(BLOCK_BYTES);
        (aligned && bytes.len().is_multiple_of(BLOCK_BYTES)).then(|| {
            let owner = Arc::clone(owner);
            Self(Place::Lent { owner, range })
        })
    }

    /// The blocks to change or extend: lent ones become a copy first.
    fn own(&mut self) -> &mut Vec<AlignedBlock> {
        if let Place::Lent { .. } = self.0 {
            *self = Self::from_bytes(self.bytes());
        }
        match &mut self.0 {
            Place::Own(blocks) => blocks,
            Place::Lent { .. } => unreachable!("it has just been copied"),
        }
    }

    /// A copy of `bytes`, padded with zeros to whole blocks.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut buffer = Self::default();
        buffer.append(bytes);
        buffer
    }

    /// Append one block: `chunk` (at most a block) and zeros.
    pub fn push(&mut self, chunk: &[u8]) {
        let mut block = AlignedBlock([0; BLOCK_BYTES]);
        block.0[..chunk.len()].copy_from_slice(chunk);
        self.own().push(block);
    }

    /// Append `bytes`, the last block padded with zeros; returns what was appended.
    pub fn append(&mut self, bytes: &[u8]) -> &mut [u8] {
        let blocks = self.own();
        let first = blocks.len();
        let whole = bytes.len() / BLOCK_BYTES;
        blocks.reserve(bytes.len().div_ceil(BLOCK_BYTES));
        // SAFETY: room for `whole` blocks is reserved behind the `first` that are there; a block is
        // plain bytes without padding, and `bytes` has at least that many.
        unsafe {
            let target = blocks.as_mut_ptr().add(first).cast::<u8>();
            target.copy_from_nonoverlapping(bytes.as_ptr(), whole * BLOCK_BYTES);
            blocks.set_len(first + whole);
        }
        if whole * BLOCK_BYTES < bytes.len() {
            self.push(&bytes[whole * BLOCK_BYTES..]);
        }
        &mut self.bytes_mut()[first * BLOCK_BYTES..]
    }

    pub fn block_count(&self) -> usize {
        match &self.0 {
            Place::Own(blocks) => blocks.len(),
            Place::Lent { range, .. } => range.len() / BLOCK_BYTES,
        }
    }

    /// As `block_count`; none of blocks that are lent.
    pub fn own_block_count(&self) -> usize {
        match &self.0 {
            Place::Own(blocks) => blocks.len(),
            Place::Lent { .. } => 0,
        }
    }

    pub fn block(&self, index: usize) -> &[u8; BLOCK_BYTES] {
        &self.bytes().as_chunks().0[index]
    }

    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            // SAFETY: AlignedBlock is repr(C) around [u8; 4096] with size equal to its alignment, so the
            // vector's storage is `len * 4096` initialised bytes without padding.
            Place::Own(blocks) => unsafe {
                std::slice::from_raw_parts(blocks.as_ptr().cast(), blocks.len() * BLOCK_BYTES)
            },
            Place::Lent { owner, range } => &(**owner).as_ref()[range.clone()],
        }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let blocks = self.own();
        // SAFETY: as in `bytes`; the borrow is exclusive.
        unsafe {
            std::slice::from_raw_parts_mut(blocks.as_mut_ptr().cast(), blocks.len() * BLOCK_BYTES)
        }
    }
}

/// Gives the bytes of a file piece by piece to the function it is called with.
pub type Content = Box<dyn Fn(&mut dyn FnMut(&[u8])) + Send>;

/// A run of bytes of a file and where it goes in a reader's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub file: FileId,
    pub offset: u64,
    pub length: usize,
    /// First byte of the buffer.
    pub at: usize,
}

/// An operation whose result comes from `poll`.
pub enum DiskOperation {
    /// Fill parts of `buffer`, all at once; its result gives the buffer back.
    Read { pieces: Vec<Piece>, buffer: Vec<u8> },
    /// Write the buffers one after the other from `offset`, past the page cache where the file system can,
    /// durable before it completes.
    Write {
        file: FileId,
        offset: u64,
        buffers: Vec<Arc<AlignedBuffer>>,
    },
    /// Create `name` with durable space for `size_bytes` that reads as zeros (at low priority); `written`:
    /// as written zeros, over which a later write changes nothing in the file system. A file of that name
    /// is overwritten.
    Prepare {
        name: String,
        size_bytes: u64,
        written: bool,
    },
    /// Write `name` whole, durable and atomic (temporary name, sync, rename, sync directory).
    Replace { name: String, content: Content },
}

/// The result of an operation, by the token it was submitted with.
#[derive(Debug)]
pub struct DiskResult {
    pub token: u64,
    /// The buffer of a read, otherwise an empty one.
    pub outcome: Result<Vec<u8>, DiskError>,
}

/// A directory of files. File names hold no separators.
pub trait Disk {
    /// Start an operation; never blocks.
    fn submit(&mut self, token: u64, operation: DiskOperation);
    /// Move the results that have arrived to the end of `results`, and start what is queued.
    fn poll(&mut self, results: &mut Vec<DiskResult>);
    /// Readable when `poll` has results.
    fn wake_fd(&self) -> Option<i32>;

    fn list_now(&mut self) -> Result<Vec<String>, DiskError>;
    /// Open an existing file for block reads and writes.
    fn open_now(&mut self, name: &str) -> Result<FileId, DiskError>;
    /// Close a handle; operations in flight on it have completed.
    fn close(&mut self, file: FileId);
    /// Read from the medium, past any cache of the host where it can.
    fn read_now(&mut self, file: FileId, offset: u64, length: usize) -> Result<Vec<u8>, DiskError>;
    /// Write whole blocks, durable before it returns.
    fn write_now(
        &mut self,
        file: FileId,
        offset: u64,
        data: &AlignedBuffer,
    ) -> Result<(), DiskError>;
    /// Bytes of a whole file.
    fn load_now(&mut self, name: &str) -> Result<Vec<u8>, DiskError>;
    fn replace_now(&mut self, name: &str, data: &[u8]) -> Result<(), DiskError>;
    /// As `Prepare` with `written`, at once.
    fn prepare_now(&mut self, name: &str, size_bytes: u64) -> Result<(), DiskError>;
    /// Make room for `name` where what is written once belongs, on a larger medium; false: there is none, and
    /// it goes where the log is.
    fn prepare_base_now(&mut self, _name: &str, _size_bytes: u64) -> Result<bool, DiskError> {
        Ok(false)
    }
    fn remove_now(&mut self, name: &str) -> Result<(), DiskError>;
    /// True when the log must not write the file again: another volume uses it (a clone), or it lies where
    /// bases belong.
    fn is_shared(&mut self, _file: FileId) -> bool {
        false
    }
    /// Bytes that can still be written.
    fn free_bytes(&mut self) -> Result<u64, DiskError>;
}

/// One reading of both clocks: the monotonic one orders and measures, the other names moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Now {
    pub monotonic_ns: u64,
    /// Nanoseconds since 1970 (UTC).
    pub unix_ns: u64,
}
