//! A directory of files: what blocks, and what the two ways of doing I/O share.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nuage_block::{Buffer, Pages};
use nuage_journal::{BLOCK_BYTES, Content, DiskError, FileId};

/// Bytes written between two looks at the queue while a segment is prepared.
const PREPARE_CHUNK_BYTES: usize = 1 << 20;

/// In a directory: another one, on a larger medium, for files that are written once and then only read. Usually
/// a link.
pub const BASE_FOLDER: &str = "base";

#[derive(Debug)]
struct OpenFile {
    name: Arc<str>,
    /// On the larger medium.
    is_base: bool,
    /// Through the page cache: what readers want.
    cached: File,
    /// Past it where the file system can: what is written, and reads that mean the medium.
    direct: File,
}

/// A directory and the files open in it.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    base: Option<PathBuf>,
    files: HashMap<FileId, OpenFile>,
    next: FileId,
}

pub(crate) fn io_error(operation: &'static str, name: &str, error: &io::Error) -> DiskError {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => DiskError::NoSpace,
        Some(libc::ENOENT) => DiskError::NotFound {
            name: name.to_owned(),
        },
        _ => DiskError::Io {
            operation,
            name: name.to_owned(),
            reason: error.to_string(),
        },
    }
}

fn open_direct(path: &Path) -> io::Result<File> {
    let direct = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path);
    match direct {
        // tmpfs and some others do not know O_DIRECT.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            OpenOptions::new().read(true).write(true).open(path)
        }
        other => other,
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Give `name` of one directory to another as well (a hard link); durable with the next file that is
/// replaced there, which syncs the directory once for all links.
///
/// What lies on the larger medium of one lies on that of the other.
pub fn link_file(from: &Path, name: &str, to: &Path) -> Result<(), DiskError> {
    let aside = from.join(BASE_FOLDER).join(name);
    let linked = if aside.exists() {
        let base = to.join(BASE_FOLDER);
        std::fs::hard_link(aside, base.join(name)).and_then(|()| sync_directory(&base))
    } else {
        std::fs::hard_link(from.join(name), to.join(name))
    };
    linked.map_err(|error| io_error("link", name, &error))
}

impl Directory {
    /// Open a directory, making it when it is absent.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        std::fs::create_dir_all(path)
            .map_err(|error| io_error("make", &path.to_string_lossy(), &error))?;
        let base = path.join(BASE_FOLDER);
        let has_base = base.symlink_metadata().is_ok();
        if has_base && !base.is_dir() {
            // Without them much of the volume would be missing.
            return Err(DiskError::Io {
                operation: "open",
                name: BASE_FOLDER.to_owned(),
                reason: "the disk of the base segments is not there".to_owned(),
            });
        }
        Ok(Self {
            base: has_base.then_some(base),
            ..Self::alone(path)
        })
    }

    /// A directory that is there, without what lies on the larger medium.
    pub fn alone(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            base: None,
            files: HashMap::new(),
            next: 1,
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn cached_fd(&self, file: FileId) -> Option<RawFd> {
        self.files.get(&file).map(|file| file.cached.as_raw_fd())
    }

    pub(crate) fn direct_fd(&self, file: FileId) -> Option<RawFd> {
        self.files.get(&file).map(|file| file.direct.as_raw_fd())
    }

    pub(crate) fn name_of(&self, file: FileId) -> Arc<str> {
        self.files.get(&file).map_or_else(
            || format!("handle {file}").into(),
            |file| Arc::clone(&file.name),
        )
    }

    /// The directory that a file lies in.
    fn folder_of(&self, name: &str) -> &Path {
        match &self.base {
            Some(base) if base.join(name).exists() => base,
            _ => &self.path,
        }
    }

    /// Make room for `name` on the larger medium, if there is one. What is in it, nobody asks.
    pub(crate) fn prepare_base(&self, name: &str, size_bytes: u64) -> Result<bool, DiskError> {
        let Some(base) = &self.base else {
            return Ok(false);
        };
        let target = base.join(name);
        let make = || -> io::Result<()> {
            let file = File::create(&target)?;
            file.set_len(size_bytes)?;
            let length = i64::try_from(size_bytes).unwrap_or(i64::MAX);
            // SAFETY: the descriptor is open; no memory is handed over.
            let full = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) } != 0
                && io::Error::last_os_error().raw_os_error() == Some(libc::ENOSPC);
            if full {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            file.sync_all()?;
            sync_directory(base)
        };
        make().map(|()| true).map_err(|error| {
            let _ = std::fs::remove_file(&target);
            io_error("prepare", name, &error)
        })
    }

    pub(crate) fn is_base(&self, file: FileId) -> bool {
        self.files.get(&file).is_some_and(|file| file.is_base)
    }

    /// True when the log must not write the file again: it has another name elsewhere, or lies on the
    /// larger medium.
    pub(crate) fn is_shared(&self, file: FileId) -> bool {
        use std::os::unix::fs::MetadataExt;
        if self.is_base(file) {
            return true;
        }
        let found = self.files.get(&file).map(|file| file.direct.metadata());
        !matches!(found, Some(Ok(metadata)) if metadata.nlink() == 1)
    }

    pub(crate) fn list(&self) -> Result<Vec<String>, DiskError> {
        let mut names = Vec::new();
        for folder in std::iter::once(&self.path).chain(&self.base) {
            let entries =
                std::fs::read_dir(folder).map_err(|error| io_error("list", ".", &error))?;
            for entry in entries {
                let entry = entry.map_err(|error| io_error("list", ".", &error))?;
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.retain(|name| name != BASE_FOLDER);
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    pub(crate) fn open_file(&mut self, name: &str) -> Result<FileId, DiskError> {
        let folder = self.folder_of(name);
        let is_base = folder != self.path;
        let path = folder.join(name);
        let cached = OpenOptions::new().read(true).write(true).open(&path);
        let opened = cached.and_then(|cached| {
            open_direct(&path).map(|direct| OpenFile {
                name: name.into(),
                is_base,
                cached,
                direct,
            })
        });
        let file = opened.map_err(|error| io_error("open", name, &error))?;
        let id = self.next;
        self.next += 1;
        self.files.insert(id, file);
        Ok(id)
    }

    pub(crate) fn close(&mut self, file: FileId) {
        self.files.remove(&file);
    }

    fn find(&self, file: FileId) -> Result<&OpenFile, DiskError> {
        self.files.get(&file).ok_or_else(|| DiskError::NotFound {
            name: format!("handle {file}"),
        })
    }

    pub(crate) fn read(
        &self,
        file: FileId,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, DiskError> {
        let found = self.find(file)?;
        let mut buffer = Buffer::zeroed(length.next_multiple_of(BLOCK_BYTES));
        let read = found.direct.read_exact_at(&mut buffer, offset);
        read.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => DiskError::Short {
                name: found.name.to_string(),
                wrote: 0,
                wanted: length,
            },
            _ => io_error("read", &found.name, &error),
        })?;
        Ok(buffer[..length].to_vec())
    }

    pub(crate) fn write(&self, file: FileId, offset: u64, data: &Pages) -> Result<(), DiskError> {
        let found = self.find(file)?;
        let written = found.direct.write_all_at(data, offset);
        written
            .and_then(|()| found.direct.sync_data())
            .map_err(|error| io_error("write", &found.name, &error))
    }

    pub(crate) fn load(&self, name: &str) -> Result<Vec<u8>, DiskError> {
        let mut bytes = Vec::new();
        File::open(self.folder_of(name).join(name))
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .map_err(|error| io_error("read", name, &error))?;
        Ok(bytes)
    }

    pub(crate) fn remove(&self, name: &str) -> Result<(), DiskError> {
        let folder = self.folder_of(name);
        std::fs::remove_file(folder.join(name))
            .and_then(|()| sync_directory(folder))
            .map_err(|error| io_error("remove", name, &error))
    }

    pub(crate) fn free_bytes(&self) -> Result<u64, DiskError> {
        free_bytes(&self.path).map_err(|error| io_error("statvfs", ".", &error))
    }
}

fn free_bytes(path: &Path) -> io::Result<u64> {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: statvfs is plain old data, for which zeros are a valid value.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `name` is a C string and `found` a statvfs; both outlive the call.
    if unsafe { libc::statvfs(name.as_ptr(), &raw mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(found.f_bavail * found.f_frsize)
}

/// Allocate a file; false when the file system has no way to do so.
fn allocate(file: &File, size_bytes: u64) -> io::Result<bool> {
    let length = i64::try_from(size_bytes).unwrap_or(i64::MAX);
    // SAFETY: the descriptor is open; no memory is handed over.
    if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOSPC) => Err(error),
        _ => Ok(false),
    }
}

/// Create `name` with durable space. Zeros are written past the page cache: a large write-back would hold
/// up the commits of the log.
pub(crate) fn prepare(
    path: &Path,
    name: &str,
    size_bytes: u64,
    written: bool,
) -> Result<(), DiskError> {
    let target = path.join(name);
    let make = || -> io::Result<()> {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&target)?;
        let file = open_direct(&target)?;
        let allocated = allocate(&file, size_bytes)?;
        if written || !allocated {
            write_zeros(&file, size_bytes)?;
        }
        file.sync_all()?;
        sync_directory(path)
    };
    make().map_err(|error| {
        // A part of a segment is of no use, and on a full disk in the way.
        let _ = std::fs::remove_file(&target);
        io_error("prepare", name, &error)
    })
}

fn write_zeros(file: &File, size_bytes: u64) -> io::Result<()> {
    let zeros = Buffer::zeroed(PREPARE_CHUNK_BYTES);
    let mut at = 0;
    while at < size_bytes {
        let chunk = usize::try_from(size_bytes - at).unwrap_or(usize::MAX);
        let chunk = chunk.min(PREPARE_CHUNK_BYTES);
        file.write_all_at(&zeros[..chunk], at)?;
        at += chunk as u64;
    }
    Ok(())
}

/// Write `name` whole: temporary name, sync, rename, sync of the directory.
pub(crate) fn replace(path: &Path, name: &str, content: &Content) -> Result<(), DiskError> {
    let temporary = path.join(format!("{name}.tmp"));
    let make = || -> io::Result<()> {
        let mut file = io::BufWriter::with_capacity(PREPARE_CHUNK_BYTES, File::create(&temporary)?);
        let mut outcome = Ok(());
        content(&mut |part| {
            if outcome.is_ok() {
                outcome = file.write_all(part);
            }
        });
        outcome?;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path.join(name))?;
        sync_directory(path)
    };
    make().map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        io_error("replace", name, &error)
    })
}
