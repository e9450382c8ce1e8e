//! The disks of a daemon: each volume lies on one, by name; what compaction writes may go to a large one.
//!
//! ```text
//! DIR/volumes/NAME/                 a volume on the first disk
//! DISK/volumes/NAME/                on a further one
//! DISK/retired/NAME~N/              a copy that another one has taken the place of (`rivals`)
//! …/NAME/journal/base               a link to BASE/volumes/NAME~…, where its base segments lie (random digits: a copy
//!                                   whose own disk is missing finds none but its own there later)
//! ```
//!
//! The link is the volume's: it holds though the daemon is started with another base. One that leads nowhere, or to
//! a disk that the daemon was not given, keeps the volume closed. Where that disk was replaced or declared lost, what lay
//! there does not come back: the copy is put aside and made anew, once a head elsewhere wants it (`rivals`).

use crate::control::{Backend, Code, CreateVolume, Refusal};
use nuage_disk::BASE_FOLDER;
use nuage_io::log;
use nuage_journal::DiskError;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const VOLUMES: &str = "volumes";
const RETIRED: &str = "retired";

/// A disk by its name, and why something on it cannot be read.
pub(crate) type Unread = (String, io::Error);

/// A directory for what compaction writes. `disk`: the name of the disk that it is on, where that is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasePlace {
    pub disk: Option<String>,
    pub dir: PathBuf,
}

impl BasePlace {
    pub fn new(disk: Option<&str>, dir: PathBuf) -> Self {
        let disk = disk.map(str::to_owned);
        Self { disk, dir }
    }
}

/// Where volumes lie, by the name of the disk; the first one's name is empty.
pub struct Disks {
    roots: BTreeMap<String, PathBuf>,
    base: Option<BasePlace>,
    old_bases: Vec<BasePlace>,
    /// On disks that were declared lost.
    lost_bases: Vec<PathBuf>,
}

pub(crate) fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl Disks {
    pub fn new(
        first: &Path,
        others: &[(String, PathBuf)],
        base: Option<&BasePlace>,
        old_bases: &[BasePlace],
    ) -> Self {
        let mut roots = BTreeMap::from([(String::new(), first.join(VOLUMES))]);
        roots.extend(
            others
                .iter()
                .map(|(name, dir)| (name.clone(), dir.join(VOLUMES))),
        );
        let below = |place: &BasePlace| BasePlace {
            disk: place.disk.clone(),
            dir: place.dir.join(VOLUMES),
        };
        Self {
            roots,
            base: base.map(below),
            old_bases: old_bases.iter().map(below).collect(),
            lost_bases: Vec::new(),
        }
    }

    /// Take it that what lay in these directories does not come back.
    pub fn with_lost_bases(mut self, lost: &[PathBuf]) -> Self {
        self.lost_bases = lost.iter().map(|dir| dir.join(VOLUMES)).collect();
        self
    }

    fn bases(&self) -> impl Iterator<Item = &BasePlace> {
        self.base.iter().chain(&self.old_bases)
    }

    /// The base directory of a journal: on which of our places, and its name there. `None`: it has none, or it lies
    /// on a disk that is not here.
    fn base_of(&self, journal: &Path) -> Option<(&BasePlace, String)> {
        let link = fs::read_link(journal.join(BASE_FOLDER)).ok()?;
        let name = link.file_name()?.to_string_lossy().into_owned();
        // Paths change, and what they lead to stays.
        let beside = fs::canonicalize(link.parent()?).ok()?;
        let mut bases = self.bases();
        let place = bases.find(|place| fs::canonicalize(&place.dir).is_ok_and(|dir| dir == beside));
        Some((place?, name))
    }

    /// Where the base segments of a journal lie that is on `disk`, if on another disk: its name, and the directory's.
    pub(crate) fn base_apart(&self, journal: &Path, disk: &str) -> Option<(String, String)> {
        let (place, name) = self.base_of(journal)?;
        let other = place.disk.as_deref().filter(|other| *other != disk)?;
        Some((other.to_owned(), name))
    }

    /// Refuse a journal that is not there, or whose base segments lie on a disk that is not in service: nothing is made
    /// in the place of a disk.
    pub(crate) fn require_disks(&self, journal: &Path) -> Result<(), DiskError> {
        if !journal.is_dir() {
            return Err(DiskError::Io {
                operation: "open",
                name: journal.to_string_lossy().into_owned(),
                reason: "the disk of the journal is not there".to_owned(),
            });
        }
        let has_link = fs::symlink_metadata(journal.join(BASE_FOLDER)).is_ok();
        let is_lost = self.is_base_lost(journal);
        if !has_link || (self.base_of(journal).is_some() && !is_lost) {
            return Ok(());
        }
        let reason = if is_lost {
            "the disk of the base segments was lost or replaced"
        } else {
            "the disk of the base segments is not in service"
        };
        Err(DiskError::Io {
            operation: "open",
            name: BASE_FOLDER.to_owned(),
            reason: reason.to_owned(),
        })
    }

    /// True where the base segments of a journal do not come back: their disk was declared lost, or another is in its
    /// place.
    pub(crate) fn is_base_lost(&self, journal: &Path) -> bool {
        let Ok(link) = fs::read_link(journal.join(BASE_FOLDER)) else {
            return false;
        };
        match self.base_of(journal) {
            Some((place, name)) => place.dir.is_dir() && !place.dir.join(name).exists(),
            None => link
                .parent()
                .is_some_and(|beside| self.lost_bases.iter().any(|lost| lost == beside)),
        }
    }

    /// True where a base directory is gone and its disk is not.
    pub(crate) fn is_base_gone(&self, disk: &str, name: &str) -> bool {
        let mut places = self.bases();
        let place = places.find(|place| place.disk.as_deref() == Some(disk));
        place.is_some_and(|place| place.dir.is_dir() && !place.dir.join(name).exists())
    }

    pub(crate) fn roots(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.roots
            .iter()
            .map(|(name, root)| (name.as_str(), root.as_path()))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.roots.keys().map(String::as_str)
    }

    /// The directory of a disk's volumes; of a name that is none of ours, the first one's.
    pub(crate) fn root(&self, disk: &str) -> &Path {
        self.roots.get(disk).unwrap_or(&self.roots[""])
    }

    pub(crate) fn require(&self, disk: &str) -> Result<(), Refusal> {
        if self.roots.contains_key(disk) {
            return Ok(());
        }
        let message = format!("there is no disk {disk:?} here");
        Err(Refusal::new(Code::InvalidRequest, message))
    }

    /// Have what compaction of the new `volume` writes go to the large disk, if there is one.
    pub(crate) fn give_base(&self, journal: &Path, volume: &str) -> io::Result<()> {
        match &self.base {
            Some(base) => begin_base(journal, &base.dir, volume),
            None => Ok(()),
        }
    }

    /// A clone shares its parent's base segments: they lie side by side.
    pub(crate) fn give_clones_base(
        &self,
        parent: &Path,
        journal: &Path,
        clone: &str,
    ) -> io::Result<()> {
        let base = fs::read_link(parent.join(BASE_FOLDER)).ok();
        match base.as_deref().and_then(Path::parent) {
            Some(beside) => begin_base(journal, beside, clone),
            None => self.give_base(journal, clone),
        }
    }

    /// Have the place where compaction writes. Volumes of before there was a large disk may use it.
    ///
    /// What is there of others stays: their own disk may only be missing now.
    pub(crate) fn settle(&self, volumes: &BTreeMap<String, CreateVolume>) -> io::Result<()> {
        let Some(base) = &self.base else {
            return Ok(());
        };
        let base = &base.dir;
        fs::create_dir_all(base)?;
        for spec in volumes.values() {
            let journal = self.root(&spec.disk).join(&spec.volume).join("journal");
            let link = journal.join(BASE_FOLDER);
            if spec.backend == Backend::Journal && fs::symlink_metadata(link).is_err() {
                let own = new_base(base, &spec.volume)?;
                make_base(base, &own)?;
                link_base(&journal, &own)?;
            }
        }
        Ok(())
    }

    /// Remove a volume's directory, and what it has elsewhere; gone for good on return.
    pub(crate) fn remove(folder: &Path) -> io::Result<()> {
        if let Ok(base) = fs::read_link(folder.join("journal").join(BASE_FOLDER)) {
            remove_whole(&base)?;
        }
        remove_whole(folder)
    }

    /// Let a journal's link to its lost base segments lead nowhere any more: nothing is removed through it.
    pub(crate) fn cut_base(journal: &Path) -> io::Result<()> {
        fs::rename(journal.join(BASE_FOLDER), journal.join("base.lost"))
    }

    /// Move a copy out of the way, on its own disk; durable on return. Where it lies then.
    pub(crate) fn put_aside(&self, disk: &str, volume: &str) -> io::Result<PathBuf> {
        let root = self.root(disk);
        let aside = root.with_file_name(RETIRED);
        if fs::metadata(&aside).is_ok_and(|found| !found.is_dir()) {
            // Whatever it is, it is kept, and nothing can lie in it.
            fs::rename(&aside, free_name(&root.with_file_name(""), RETIRED))?;
        }
        fs::create_dir_all(&aside)?;
        let folder = free_name(&aside, volume);
        fs::rename(root.join(volume), &folder)?;
        fs::File::open(&aside)?.sync_all()?;
        fs::File::open(root)?.sync_all()?;
        Ok(folder)
    }

    /// What was moved out of the way, with the name of its disk; and the disks where it cannot be read.
    pub(crate) fn aside(&self) -> (Vec<(String, PathBuf)>, Vec<Unread>) {
        let (mut found, mut unread) = (Vec::new(), Vec::new());
        for (disk, root) in &self.roots {
            let entries = fs::read_dir(root.with_file_name(RETIRED));
            let folders = entries.and_then(|entries| {
                entries
                    .map(|entry| entry.map(|entry| (disk.clone(), entry.path())))
                    .collect::<io::Result<Vec<_>>>()
            });
            match folders {
                Ok(folders) => found.extend(folders),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => unread.push((disk.clone(), error)),
            }
        }
        (found, unread)
    }

    /// Directories of base segments to which no journal leads that is here, in use or aside.
    fn orphans(&self) -> io::Result<Vec<(&BasePlace, String)>> {
        let mut led_to = BTreeSet::new();
        let aside = self.roots.values().map(|root| root.with_file_name(RETIRED));
        for root in self.roots.values().cloned().chain(aside) {
            let entries = match fs::read_dir(root) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries?,
            };
            for entry in entries {
                match fs::read_link(entry?.path().join("journal").join(BASE_FOLDER)) {
                    Ok(link) => led_to.extend(link.file_name().map(OsStr::to_owned)),
                    Err(error) => no_link_is_fine(error)?,
                }
            }
        }
        let mut orphans = Vec::new();
        for place in self.bases().filter(|place| place.dir.is_dir()) {
            for entry in fs::read_dir(&place.dir)? {
                let name = entry?.file_name();
                if !led_to.contains(&name) {
                    orphans.push((place, name.to_string_lossy().into_owned()));
                }
            }
        }
        Ok(orphans)
    }

    /// Remove the base segments to which no journal leads: all disks are here, and those of their journals were lost, or
    /// theirs was away when their volumes were deleted. What went: of which disk, and its directory's name.
    pub(crate) fn remove_orphans(&self) -> io::Result<Vec<(Option<String>, String)>> {
        let mut removed = Vec::new();
        for (place, name) in self.orphans()? {
            remove_whole(&place.dir.join(&name))?;
            log::info(
                "orphan_removed",
                &[
                    ("volume", volume_of_base(&name).into()),
                    ("base", name.as_str().into()),
                    ("disk", place.disk.as_deref().unwrap_or_default().into()),
                ],
            );
            removed.push((place.disk.clone(), name));
        }
        Ok(removed)
    }

    /// The volume that a directory was made for.
    pub(crate) fn volume_of(name: &str) -> &str {
        volume_of_base(name)
    }

    /// Remove what lies aside, and on the large disk, of a volume whose own disk was lost before: it is
    /// deleted now.
    pub(crate) fn remove_strays(&self, volume: &str) -> io::Result<()> {
        let (aside, unread) = self.aside();
        let holds_none = |error: &io::Error| error.kind() == io::ErrorKind::NotADirectory;
        if let Some((_, error)) = unread.into_iter().find(|(_, error)| !holds_none(error)) {
            return Err(error);
        }
        for (_, folder) in aside {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            if volume_of_base(&name) == volume && folder.is_dir() {
                Self::remove(&folder)?;
            }
        }
        for place in self.bases().filter(|place| place.dir.is_dir()) {
            for entry in fs::read_dir(&place.dir)? {
                let entry = entry?;
                if volume_of_base(&entry.file_name().to_string_lossy()) == volume {
                    remove_whole(&entry.path())?;
                }
            }
        }
        Ok(())
    }
}

/// As where a folder has no journal, or is no folder.
fn no_link_is_fine(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput => {
            Ok(())
        }
        _ => Err(error),
    }
}

fn remove_whole(folder: &Path) -> io::Result<()> {
    absent_is_fine(fs::remove_dir_all(folder))?;
    match folder.parent() {
        Some(parent) => absent_is_fine(fs::File::open(parent).and_then(|above| above.sync_all())),
        None => Ok(()),
    }
}

/// No volume's name has a tilde.
fn volume_of_base(name: &str) -> &str {
    name.split_once('~').map_or(name, |(volume, _)| volume)
}

/// A name that nothing has yet: NAME, NAME~1, …
fn free_name(root: &Path, name: &str) -> PathBuf {
    let numbered = (1..=u32::MAX).map(|number| root.join(format!("{name}~{number}")));
    std::iter::once(root.join(name))
        .chain(numbered)
        .find(|path| !path.exists())
        .unwrap_or_default()
}

/// A directory that no copy has or ever had: the link of one whose own disk is missing may lead to any that is gone.
fn new_base(root: &Path, volume: &str) -> io::Result<PathBuf> {
    let mut digits = [0; 8];
    if !nuage_io::serve::random(&mut digits) {
        return Err(io::Error::other("no random bytes"));
    }
    Ok(root.join(format!("{volume}~{}", crate::catalogue::hex(&digits))))
}

/// Give the journal of a new volume a directory of its own on the large disk.
///
/// The link is first: what breaks off in between leaves nothing to which no volume's directory leads.
fn begin_base(journal: &Path, root: &Path, volume: &str) -> io::Result<()> {
    let base = new_base(root, volume)?;
    link_base(journal, &base)?;
    make_base(root, &base)
}

fn link_base(journal: &Path, base: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(base, journal.join(BASE_FOLDER))?;
    fs::File::open(journal)?.sync_all()
}

fn make_base(root: &Path, base: &Path) -> io::Result<()> {
    match fs::create_dir(base) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {} // where the root is gone its disk is: nothing is made in its place
    }
    fs::File::open(root)?.sync_all()
}
