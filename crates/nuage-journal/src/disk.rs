//! The port to a disk: a directory of files that one store owns.
//!
//! The engine's thread submits operations and polls their results; only opening, recovery and
//! rare administration use the `_now` calls, which block. `nuage-disk` implements it with io_uring and
//! with threads, the simulator with a disk that tears, loses and rots.

use nuage_block::{PAGE_BYTES, Pages};

/// Size of a block everywhere in the journal.
pub const BLOCK_BYTES: usize = PAGE_BYTES;

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
    /// Fill parts of `buffer`, all at once; its result gives the buffer back. Pieces may lie past its length,
    /// in the capacity that nobody has written: there they leave no gap, and the buffer ends with them.
    Read { pieces: Vec<Piece>, buffer: Vec<u8> },
    /// Write the buffers one after the other from `offset`, past the page cache where the file system can,
    /// durable before it completes.
    Write {
        file: FileId,
        offset: u64,
        buffers: Vec<Pages>,
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
    fn write_now(&mut self, file: FileId, offset: u64, data: &Pages) -> Result<(), DiskError>;
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
    /// True of a file that lies where bases belong, and not beside the log.
    fn is_base(&self, _file: FileId) -> bool {
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
