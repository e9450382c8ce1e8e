//! The disks of a daemon: each volume lies on one, by name; what compaction writes may go to a large one.
//!
//! ```text
//! DIR/volumes/NAME/                 a volume on the first disk
//! DISK/volumes/NAME/                on a further one
//! …/NAME/journal/base               a link to BASE/volumes/NAME, where its base segments lie
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

/// Where volumes lie, by the name of the disk; the first one's name is empty.
pub struct Disks {
    roots: BTreeMap<String, PathBuf>,
    base: Option<PathBuf>,
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
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

    /// Have what compaction of `volume` writes go to the large disk, if there is one.
    pub(crate) fn give_base(&self, journal: &Path, volume: &str) -> io::Result<()> {
        match &self.base {
            Some(base) => link_base(journal, &base.join(volume)),
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
        match fs::read_link(parent.join(BASE_FOLDER)) {
            Ok(base) => link_base(journal, &base.with_file_name(clone)),
            Err(_) => self.give_base(journal, clone),
        }
    }

    /// Bring what is there in line: volumes of before there was a large disk may use it, and what aborted
    /// creations and deletions left on it goes.
    pub(crate) fn settle(&self, volumes: &BTreeMap<String, CreateVolume>) -> io::Result<()> {
        let Some(base) = &self.base else {
            return Ok(());
        };
        fs::create_dir_all(base)?;
        for entry in fs::read_dir(base)? {
            let entry = entry?;
            if !volumes.contains_key(&*entry.file_name().to_string_lossy()) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        for spec in volumes.values() {
            let journal = self.root(&spec.disk).join(&spec.volume).join("journal");
            if spec.backend == Backend::Journal {
                self.give_base(&journal, &spec.volume)?;
            }
        }
        Ok(())
    }

    /// Remove a volume's directory, and what it has elsewhere.
    pub(crate) fn remove(folder: &Path) -> io::Result<()> {
        if let Ok(base) = fs::read_link(folder.join("journal").join(BASE_FOLDER)) {
            absent_is_fine(fs::remove_dir_all(base))?;
        }
        absent_is_fine(fs::remove_dir_all(folder))
    }
}

/// A link that is there stays as it is, wherever it leads.
fn link_base(journal: &Path, base: &Path) -> io::Result<()> {
    let link = journal.join(BASE_FOLDER);
    if fs::symlink_metadata(&link).is_ok() {
        return Ok(());
    }
    fs::create_dir_all(base)?;
    if let Some(parent) = base.parent() {
        fs::File::open(parent)?.sync_all()?;
    }
    std::os::unix::fs::symlink(base, &link)?;
    fs::File::open(journal)?.sync_all()
}
