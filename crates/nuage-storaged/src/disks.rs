//! The disks of a daemon: each volume lies on one, by name; what compaction writes may go to a large one.
//!
//! ```text
//! DIR/volumes/NAME/                 a volume on the first disk
//! DISK/volumes/NAME/                on a further one
//! DISK/retired/NAME~N/              a copy that another one has taken the place of (`rivals`)
//! …/NAME/journal/base               a link to BASE/volumes/NAME, where its base segments lie (NAME~1, … where
//!                                   that is another's, of a disk that is missing)
//! ```
//!
//! The link is the volume's: it holds though the daemon is started with another base. One that leads nowhere
//! keeps the volume closed.

use crate::control::{Backend, Code, CreateVolume, Refusal};
use nuage_disk::BASE_FOLDER;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const VOLUMES: &str = "volumes";
const RETIRED: &str = "retired";

/// A disk by its name, and why something on it cannot be read.
pub(crate) type Unread = (String, io::Error);

/// Where volumes lie, by the name of the disk; the first one's name is empty.
pub struct Disks {
    roots: BTreeMap<String, PathBuf>,
    base: Option<PathBuf>,
}

pub(crate) fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl Disks {
    pub fn new(first: &Path, others: &[(String, PathBuf)], base: Option<&Path>) -> Self {
        let mut roots = BTreeMap::from([(String::new(), first.join(VOLUMES))]);
        roots.extend(
            others
                .iter()
                .map(|(name, dir)| (name.clone(), dir.join(VOLUMES))),
        );
        Self {
            roots,
            base: base.map(|dir| dir.join(VOLUMES)),
        }
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
            Some(base) => begin_base(journal, base, volume),
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

    /// Volumes of before there was a large disk may use it.
    ///
    /// What is there of others stays: their own disk may only be missing now.
    pub(crate) fn settle(&self, volumes: &BTreeMap<String, CreateVolume>) -> io::Result<()> {
        let Some(base) = &self.base else {
            return Ok(());
        };
        fs::create_dir_all(base)?;
        for spec in volumes.values() {
            let journal = self.root(&spec.disk).join(&spec.volume).join("journal");
            let link = journal.join(BASE_FOLDER);
            if spec.backend == Backend::Journal && fs::symlink_metadata(link).is_err() {
                let own = free_base(base, &spec.volume);
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

    /// Move a copy out of the way, on its own disk; durable on return.
    pub(crate) fn put_aside(&self, disk: &str, volume: &str) -> io::Result<()> {
        let root = self.root(disk);
        let aside = root.with_file_name(RETIRED);
        if fs::metadata(&aside).is_ok_and(|found| !found.is_dir()) {
            // Whatever it is, it is kept, and nothing can lie in it.
            fs::rename(&aside, free_base(&root.with_file_name(""), RETIRED))?;
        }
        fs::create_dir_all(&aside)?;
        fs::rename(root.join(volume), free_base(&aside, volume))?;
        fs::File::open(&aside)?.sync_all()?;
        fs::File::open(root)?.sync_all()
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
        let Some(base) = &self.base else {
            return Ok(());
        };
        for entry in fs::read_dir(base)? {
            let entry = entry?;
            if volume_of_base(&entry.file_name().to_string_lossy()) == volume {
                remove_whole(&entry.path())?;
            }
        }
        Ok(())
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
fn base_name(volume: &str, number: u32) -> String {
    match number {
        0 => volume.to_owned(),
        _ => format!("{volume}~{number}"),
    }
}

fn volume_of_base(name: &str) -> &str {
    name.split_once('~').map_or(name, |(volume, _)| volume)
}

/// A directory that no volume has yet: one that is there may be of a copy whose disk is missing.
fn free_base(root: &Path, volume: &str) -> PathBuf {
    (0..=u32::MAX)
        .map(|number| root.join(base_name(volume, number)))
        .find(|base| !base.exists())
        .unwrap_or_default()
}

/// Give the journal of a new volume a directory of its own on the large disk.
///
/// The link is first: what breaks off in between leaves nothing to which no volume's directory leads.
fn begin_base(journal: &Path, root: &Path, volume: &str) -> io::Result<()> {
    let base = free_base(root, volume);
    link_base(journal, &base)?;
    make_base(root, &base)
}

fn link_base(journal: &Path, base: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(base, journal.join(BASE_FOLDER))?;
    fs::File::open(journal)?.sync_all()
}

fn make_base(root: &Path, base: &Path) -> io::Result<()> {
    fs::create_dir_all(base)?;
    fs::File::open(root)?.sync_all()
}
