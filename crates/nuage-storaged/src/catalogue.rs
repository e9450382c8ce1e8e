//! The volumes of this daemon on disk: one directory each, with its specification in JSON.
//!
//! ```text
//! DIR/volumes/NAME/volume.json   what create_volume was asked, with the uuid
//! DIR/volumes/NAME/unfinished    a creation or a deletion is under way; without volume.json the next start removes all of it
//! DIR/volumes/NAME/journal/      the engine's files       (backend journal)
//! DIR/retired/NAME~N/            a copy that one on another disk has taken the place of
//! DIR/volumes/NAME/data.raw      the volume itself        (backend file)
//! DIR/receipts.jsonl             receipts, one a line, in the order of their number
//! ```

use crate::control::{self, Backend, Code, CreateVolume, Refusal};
use crate::disks::{Disks, absent_is_fine};
use crate::memory;
use crate::rivals::{self, Retired};
use nuage_block::memory::MemoryDevice;
use nuage_block::{BlockDevice, Geometry};
use nuage_disk::{BASE_FOLDER, FileDisk, Method};
use nuage_engine::{
    AckMode, CopyOptions, Handover, HeadOptions, ReplicaStore, SystemClock, Volume, VolumeHead,
    create_to_join, create_volume, open_volume,
};
use nuage_io::file::FileDevice;
use nuage_journal::{
    DataKey, JournalError, Retention, Store, TailRule, VolumeSpec, segment_bytes_for,
};
use nuage_replica::{Policy, PolicyName};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Largest volume (issue 3: up to 64 TiB).
const SIZE_BYTES_MAX: u64 = 64 << 40;

const SPEC: &str = "volume.json";

/// Says that what lies beside it may go where there is no specification: one that is merely lost must not
/// pass for a volume that was never there.
const UNFINISHED: &str = "unfinished";

/// How a head is to be opened.
pub struct Opening<'a> {
    pub epoch: u64,
    pub mode: AckMode,
    pub read_only: bool,
    pub policy: &'a str,
    /// What the copies before acknowledged by, until a head is ready with the present ones.
    pub former: Option<Policy>,
    /// Copies elsewhere.
    pub others: usize,
    /// Place of ours among all.
    pub position: usize,
    /// The owner accepts that what no copy has is lost.
    pub accepts_loss: bool,
    /// This node's name in the EPOCH record.
    pub node: &'a str,
}

pub type EngineVolume = Volume<FileDisk>;

/// A volume opened for serving.
pub struct Opened {
    pub device: Box<dyn BlockDevice>,
    pub engine: Option<EngineVolume>,
}

pub struct Catalogue {
    dir: PathBuf,
    pub(crate) disks: Disks,
    pub volumes: BTreeMap<String, CreateVolume>,
    /// Copies that others have taken the place of.
    pub retired: Vec<Retired>,
    /// The data keys of the `IaaS`, the newest first, once they were given: never on disk.
    pub keys: Vec<DataKey>,
}

pub(crate) fn io_refusal(what: &str, error: &io::Error) -> Refusal {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::NoSpace,
        io::ErrorKind::NotFound => Code::NotFound,
        _ => Code::Io,
    };
    Refusal::new(code, format!("{what}: {error}"))
}

pub fn journal_refusal(error: &JournalError) -> Refusal {
    let code = match error {
        JournalError::StaleEpoch { .. } => Code::StaleEpoch,
        JournalError::NoSpace => Code::NoSpace,
        JournalError::OutOfHistory { .. } | JournalError::Malformed { .. } => Code::InvalidRequest,
        JournalError::NotThisVolume(_) => Code::Conflict,
        JournalError::Lost => Code::Lost,
        JournalError::Disk(_) | JournalError::Corrupt { .. } => Code::Io,
        _ => Code::Unavailable,
    };
    Refusal::new(code, error.to_string())
}

/// 32 hexadecimal digits, dashes allowed, as bytes.
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|character| *character != '-').collect();
    unhex(&digits)
}

/// As many bytes as are wanted, from twice as many hexadecimal digits.
pub(crate) fn unhex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    if digits.len() != 2 * N || !digits.is_ascii() {
        return None;
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(index * 2..index * 2 + 2)?, 16).ok()?;
    }
    Some(bytes)
}

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Names become directories: letters, digits, `.`, `_`, `-`, not starting with a dot.
pub(crate) fn check_name(name: &str) -> Result<(), Refusal> {
    let fits = !name.is_empty()
        && name.len() <= 64
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if fits {
        Ok(())
    } else {
        Err(Refusal::new(
            Code::InvalidRequest,
            format!("{name:?} is no name of a volume"),
        ))
    }
}

/// Whole pages, up to what a journal can address.
pub(crate) fn size_fits(size_bytes: u64) -> bool {
    size_bytes > 0 && size_bytes <= SIZE_BYTES_MAX && size_bytes.is_multiple_of(4096)
}

/// The uuid asked for, or a fresh one.
pub(crate) fn chosen_uuid(asked: Option<&str>) -> Result<[u8; 16], Refusal> {
    if let Some(text) = asked {
        return parse_uuid(text)
            .ok_or_else(|| Refusal::new(Code::InvalidRequest, "uuid: 32 hexadecimal digits"));
    }
    let mut uuid = [0; 16];
    if !nuage_io::serve::random(&mut uuid) {
        return Err(Refusal::new(Code::Io, "no random bytes"));
    }
    // Version 4, variant 1 (RFC 9562 §5.4).
    uuid[6] = 0x40 | uuid[6] & 0x0f;
    uuid[8] = 0x80 | uuid[8] & 0x3f;
    Ok(uuid)
}

pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Make the folder of a new volume. What lies there and is not known is somebody's data: it is left alone.
pub(crate) fn begin(folder: &Path) -> Result<(), Refusal> {
    let mark = folder.join(UNFINISHED);
    if mark.exists() {
        Disks::remove(folder).map_err(|error| io_refusal("an unfinished volume", &error))?;
    }
    if folder.exists() {
        let message = format!("{}: there is something already", folder.display());
        return Err(Refusal::new(Code::Conflict, message));
    }
    let made = fs::create_dir(folder)
        .and_then(|()| fs::File::create(mark)?.sync_all())
        .and_then(|()| fs::File::open(folder)?.sync_all());
    made.map_err(|error| io_refusal("a volume's folder", &error))
}

/// Whether anything was ever written to what lies in a volume's folder, as far as can be seen.
fn holds_data(folder: &Path) -> io::Result<bool> {
    let journal = folder.join("journal");
    let base = journal.join(BASE_FOLDER);
    if folder.join("data.raw").exists() || (base.symlink_metadata().is_ok() && !base.is_dir()) {
        return Ok(true);
    }
    for place in [journal, base] {
        let entries = match fs::read_dir(place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            if entry?.file_name().as_encoded_bytes().starts_with(b"seg.") {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

impl Catalogue {
    /// Read what is there. A creation or deletion that broke off goes; a volume whose specification is lost or
    /// unreadable is put aside.
    pub fn open(dir: &Path, disks: Disks) -> io::Result<Self> {
        let mut volumes: BTreeMap<String, CreateVolume> = BTreeMap::new();
        for (disk, root) in disks.roots() {
            fs::create_dir_all(root)?;
            for entry in fs::read_dir(root)? {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if !path.is_dir() || check_name(&name).is_err() {
                    continue; // none of ours
                }
                match fs::read(path.join(SPEC)) {
                    Ok(text) => {
                        let mut spec = match rivals::described(&path, &text) {
                            Ok(spec) => spec,
                            Err(fault) => {
                                rivals::put_unreadable_aside(&disks, disk, &path, &fault);
                                continue;
                            }
                        };
                        absent_is_fine(fs::remove_file(path.join(UNFINISHED)))?;
                        disk.clone_into(&mut spec.disk);
                        if let Some(known) = volumes.remove(&spec.volume) {
                            spec = rivals::settle(&disks, known, spec)?;
                        }
                        volumes.insert(spec.volume.clone(), spec);
                    }
                    Err(error)
                        if error.kind() == io::ErrorKind::NotFound
                            && (path.join(UNFINISHED).exists()
                                || matches!(holds_data(&path), Ok(false))) =>
                    {
                        Disks::remove(&path)?;
                    }
                    // Gone, or the disk does not give it.
                    Err(error) => {
                        let fault = format!("{}: {error}", path.join(SPEC).display());
                        rivals::put_unreadable_aside(&disks, disk, &path, &fault);
                    }
                }
            }
        }
        disks.settle(&volumes)?;
        Ok(Self {
            retired: rivals::found(&disks),
            dir: dir.to_owned(),
            disks,
            volumes,
            keys: Vec::new(),
        })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The disk of a volume that is here.
    pub(crate) fn disk_of(&self, name: &str) -> &str {
        self.volumes.get(name).map_or("", |spec| &spec.disk)
    }

    /// Where the base segments of a volume lie that is here, if on another disk: its name, and the directory's.
    pub(crate) fn base_apart(&self, name: &str) -> Option<(String, String)> {
        let journal = self.folder(name).join("journal");
        self.disks.base_apart(&journal, self.disk_of(name))
    }

    /// Where a volume that is here lies.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.disks.root(self.disk_of(name)).join(name)
    }

    pub fn get(&self, name: &str) -> Result<&CreateVolume, Refusal> {
        self.volumes
            .get(name)
            .ok_or_else(|| Refusal::new(Code::NotFound, format!("no volume {name:?} here")))
    }

    /// Create a volume. Asking again with the same words is no error (a retry after a lost answer).
    pub fn create(&mut self, mut spec: CreateVolume) -> Result<&CreateVolume, Refusal> {
        check_name(&spec.volume)?;
        let block_fits = matches!(spec.logical_block_bytes, 512 | 4096);
        if !block_fits || !size_fits(spec.size_bytes) {
            let message =
                "size_bytes: a multiple of 4096 up to 64 TiB; logical_block_bytes: 512 or 4096";
            return Err(Refusal::new(Code::InvalidRequest, message));
        }
        if let Some(known) = self.volumes.get(&spec.volume) {
            spec.uuid = spec.uuid.or_else(|| known.uuid.clone());
            (spec.joins, spec.epoch) = (known.joins, known.epoch); // how it began says nothing about what it is
            spec.disk.clone_from(&known.disk); // nor where it would begin now
            if spec != *known {
                return Err(Refusal::new(
                    Code::Conflict,
                    format!("a volume {:?} with other properties is here", spec.volume),
                ));
            }
            return self.get(&spec.volume);
        }
        let uuid = chosen_uuid(spec.uuid.as_deref())?;
        spec.uuid = Some(hex(&uuid));
        self.disks.require(&spec.disk)?;
        let folder = self.disks.root(&spec.disk).join(&spec.volume);
        begin(&folder)?;
        self.write_files(&folder, &spec, uuid).inspect_err(|_| {
            // Half a volume must not stay; the next start would remove it too.
            let _ = Disks::remove(&folder);
        })?;
        let name = spec.volume.clone();
        self.volumes.insert(name.clone(), spec);
        self.get(&name)
    }

    fn write_files(
        &self,
        folder: &Path,
        spec: &CreateVolume,
        uuid: [u8; 16],
    ) -> Result<(), Refusal> {
        let failed = |error: io::Error| io_refusal(&spec.volume, &error);
        if spec.backend == Backend::Journal {
            let journal = folder.join("journal");
            fs::create_dir_all(&journal).map_err(failed)?;
            self.disks
                .give_base(&journal, &spec.volume)
                .map_err(failed)?;
            let volume = VolumeSpec {
                volume: uuid,
                size_bytes: spec.size_bytes,
                logical_block_bytes: spec.logical_block_bytes,
                segment_bytes: segment_bytes_for(spec.size_bytes),
                encrypted: spec.encrypted,
                created_ns: now_ns(),
            };
            let created = if spec.joins {
                create_to_join(&journal, &volume, spec.epoch)
            } else {
                create_volume(&journal, &volume)
            };
            created.map_err(|error| journal_refusal(&error))?;
        }
        self.finish(folder, spec).map_err(failed)
    }

    /// What was begun is a volume from now on; durable on return.
    pub(crate) fn finish(&self, folder: &Path, spec: &CreateVolume) -> io::Result<()> {
        self.write_spec(folder, spec)?;
        fs::remove_file(folder.join(UNFINISHED))?;
        fs::File::open(folder)?.sync_all()
    }

    /// Write, sync, rename, sync: the specification is whole or absent.
    pub(crate) fn write_spec(&self, folder: &Path, spec: &CreateVolume) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(spec)?;
        let fresh = folder.join("volume.json.new");
        let file = fs::File::create(&fresh)?;
        std::os::unix::fs::FileExt::write_all_at(&file, &text, 0)?;
        file.sync_all()?;
        fs::rename(&fresh, folder.join(SPEC))?;
        fs::File::open(folder)?.sync_all()?;
        fs::File::open(self.disks.root(&spec.disk))?.sync_all()
    }

    /// Remember a new size.
    pub fn resized(&mut self, name: &str, size_bytes: u64) -> Result<(), Refusal> {
        let folder = self.folder(name);
        let Some(spec) = self.volumes.get_mut(name) else {
            return Ok(());
        };
        spec.size_bytes = size_bytes;
        let spec = spec.clone();
        self.write_spec(&folder, &spec)
            .map_err(|error| io_refusal(name, &error))
    }

    /// Remember how much of its past a volume keeps; what its store is to be told.
    pub fn set_retention(
        &mut self,
        name: &str,
        retention: control::Retention,
    ) -> Result<Retention, Refusal> {
        let folder = self.folder(name);
        let mut spec = self.get(name)?.clone();
        spec.retention = retention;
        self.write_spec(&folder, &spec)
            .map_err(|error| io_refusal(name, &error))?;
        let rule = Self::retention(&spec);
        self.volumes.insert(name.to_owned(), spec);
        Ok(rule)
    }

    /// Delete a volume. Deleting what is not there is no error.
    pub fn delete(&mut self, name: &str) -> Result<(), Refusal> {
        check_name(name)?;
        let folder = self.folder(name);
        self.volumes.remove(name);
        let failed = |error: io::Error| io_refusal(name, &error);
        // The specification goes first: what a crash leaves is removed at the next start.
        absent_is_fine(fs::rename(folder.join(SPEC), folder.join(UNFINISHED))).map_err(failed)?;
        Disks::remove(&folder).map_err(failed)?;
        self.retired.retain(|retired| retired.volume != name);
        self.disks.remove_strays(name).map_err(failed)
    }

    /// The volume of a uuid, in hexadecimal digits.
    pub fn name_of(&self, uuid: &str) -> Option<String> {
        let found = |spec: &&CreateVolume| {
            spec.backend == Backend::Journal && spec.uuid.as_deref() == Some(uuid)
        };
        self.volumes
            .values()
            .find(found)
            .map(|spec| spec.volume.clone())
    }

    fn retention(spec: &CreateVolume) -> Retention {
        Retention {
            window_ns: spec.retention.seconds.saturating_mul(1_000_000_000),
            window_bytes: spec.retention.bytes,
            strict: spec.retention.strict,
        }
    }

    /// True where the base segments of a volume that is here do not come back.
    pub(crate) fn is_base_lost(&self, name: &str) -> bool {
        let is_here = self.volumes.contains_key(name);
        is_here && self.disks.is_base_lost(&self.folder(name).join("journal"))
    }

    /// Let go of a copy whose base segments are lost, for a head of this epoch: it lies aside from now on, and another
    /// may be made.
    pub(crate) fn put_baseless_aside(&mut self, name: &str, epoch: u64) -> io::Result<()> {
        rivals::put_baseless_aside(&self.disks, self.disk_of(name), name, epoch)?;
        self.volumes.remove(name);
        self.retired = rivals::found(&self.disks);
        Ok(())
    }

    /// Open a copy for heads elsewhere.
    pub fn open_copy(&self, name: &str) -> Result<ReplicaStore<FileDisk>, Refusal> {
        let spec = self.get(name)?;
        let refusal = |error: JournalError| journal_refusal(&error);
        let journal = self.folder(name).join("journal");
        let disk = self.disks.require_disks(&journal);
        let disk = disk.and_then(|()| FileDisk::open(&journal, Method::Best));
        let disk = disk.map_err(|error| refusal(error.into()))?;
        // A copy moves what is stored: it needs no key.
        let open = || Store::open_without_key(disk, TailRule::OneOfSeveral);
        let mut store = memory::sparing(open).map_err(refusal)?;
        store.set_retention(Self::retention(spec));
        Ok(ReplicaStore::new(store, Rc::new(SystemClock::default())))
    }

    /// Open a volume for its head. `copy`: our copy, where it serves already.
    pub fn open_head(
        &self,
        name: &str,
        opening: &Opening<'_>,
        copy: Option<ReplicaStore<FileDisk>>,
    ) -> Result<Opened, Refusal> {
        let spec = self.get(name)?;
        let uuid = spec.uuid.as_deref().and_then(parse_uuid);
        let uuid = uuid.ok_or_else(|| Refusal::new(Code::Io, "the volume's uuid is damaged"))?;
        let geometry = Geometry {
            size_bytes: spec.size_bytes,
            logical_block_bytes: spec.logical_block_bytes,
            uuid,
            name: Arc::from(name),
            read_only: opening.read_only,
            write_cache: opening.mode != AckMode::Durable,
        };
        match spec.backend {
            Backend::Memory => Ok(Opened {
                device: Box::new(MemoryDevice::new(geometry)),
                engine: None,
            }),
            Backend::File => {
                let geometry = Geometry {
                    write_cache: true,
                    ..geometry
                };
                let device = FileDevice::open(&self.folder(name).join("data.raw"), geometry)
                    .map_err(|error| io_refusal(name, &error))?;
                Ok(Opened {
                    device: Box::new(device),
                    engine: None,
                })
            }
            Backend::Journal => {
                let volume = self.open_journal(spec, opening, copy)?;
                volume.with(|head| head.store_mut().set_retention(Self::retention(spec)));
                Ok(Opened {
                    device: Box::new(volume.clone()),
                    engine: Some(volume),
                })
            }
        }
    }

    fn open_journal(
        &self,
        spec: &CreateVolume,
        opening: &Opening<'_>,
        copy: Option<ReplicaStore<FileDisk>>,
    ) -> Result<EngineVolume, Refusal> {
        let refusal = |error: JournalError| journal_refusal(&error);
        let cipher = self.cipher_of(spec)?;
        let options = HeadOptions {
            name: Arc::from(spec.volume.as_str()),
            mode: opening.mode,
            term: opening.epoch,
            head: opening.node.to_owned(),
            accepts_loss: opening.accepts_loss,
        };
        let clock = Rc::new(SystemClock::default());
        if opening.others == 0 {
            // What waited for another head's word is settled by reading the journal afresh.
            drop(copy);
            let journal = self.folder(&spec.volume).join("journal");
            let here = self.disks.require_disks(&journal);
            here.map_err(|error| refusal(error.into()))?;
            let open = || open_volume(&journal, cipher, options, clock);
            return memory::sparing(open).map_err(refusal);
        }
        let wrong = |error: nuage_replica::PolicyError| {
            Refusal::new(Code::InvalidRequest, error.to_string())
        };
        let count = opening.others + 1;
        let name = PolicyName::parse(opening.policy).map_err(wrong)?;
        let policy =
            Policy::named(name, u32::try_from(count).unwrap_or(u32::MAX)).map_err(wrong)?;
        let copy = match copy {
            Some(copy) => copy,
            None => self.open_copy(&spec.volume)?,
        };
        let Handover {
            mut store,
            quiet_ns,
            steady,
        } = copy.hand_over();
        if let Some(cipher) = cipher {
            store.set_cipher(cipher);
        }
        let copies = CopyOptions {
            policy,
            former: opening.former.clone(),
            count,
            me: opening.position,
            quiet_ns,
            steady,
        };
        VolumeHead::open_replicated(store, options, copies, clock)
            .map(Volume::new)
            .map_err(refusal)
    }
}

#[cfg(test)]
#[path = "catalogue_tests.rs"]
mod tests;
