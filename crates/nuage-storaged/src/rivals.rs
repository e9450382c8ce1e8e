//! Two copies of one volume on two disks: one was made anew while the disk of the other was away.
//!
//! The one that is further goes on (`nuage_journal::Standing`), the other is *retired*: moved aside on its own
//! disk, untouched, until the one that goes on is proven to have all of it. Proven: it is whole, holds the
//! other's last write on the same chain, and has been read whole since with nothing damaged.
//!
//! A copy whose base segments are lost goes the same way, once a head elsewhere wants it: that head has a copy, and fills
//! another here. An only copy is wanted by no such head, and stays.
//!
//! ```text
//! DISK/volumes/NAME/retired.json   decided, and about to be moved (a crash: done at the next start)
//! DISK/retired/NAME~N/             moved aside; retired.json says since when and how far it is
//! ```

use crate::catalogue::{hex, unhex};
use crate::control::{Backend, CreateVolume};
use crate::daemon::Storaged;
use crate::disks::Disks;
use nuage_disk::{FileDisk, Method};
use nuage_io::log;
use nuage_io::serve::Context;
use nuage_journal::{JournalError, Standing, Store, Superblock, TailRule};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const FILE: &str = "retired.json";

/// How far a retired copy is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    since_s: u64,
    sequence: u64,
    epoch: u64,
    promised: u64,
    /// After `sequence`; empty: it could not be opened.
    chain: String,
}

/// A copy that lies aside.
#[derive(Debug)]
pub struct Retired {
    pub volume: String,
    pub disk: String,
    folder: PathBuf,
    note: Note,
}

impl Note {
    fn standing(&self) -> Standing {
        Standing {
            is_whole: false,
            epoch: self.epoch,
            seq: self.sequence,
            promised: self.promised,
        }
    }

    fn read(folder: &Path) -> Option<Self> {
        let text = fs::read(folder.join(FILE)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Durable on return.
    fn write(&self, folder: &Path) -> io::Result<()> {
        let fresh = folder.join("retired.json.new");
        fs::write(&fresh, serde_json::to_vec(self)?)?;
        fs::File::open(&fresh)?.sync_all()?;
        fs::rename(&fresh, folder.join(FILE))?;
        fs::File::open(folder)?.sync_all()
    }
}

fn opened(disks: &Disks, folder: &Path) -> Result<Store<FileDisk>, JournalError> {
    let journal = folder.join("journal");
    disks.require_disks(&journal)?;
    let disk = FileDisk::open(&journal, Method::Threads)?;
    Store::open_without_key(disk, TailRule::OneOfSeveral)
}

fn now_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

fn note_of(folder: &Path, store: Option<&Store<FileDisk>>) -> io::Result<Note> {
    let since_s = now_s();
    if let Some(store) = store {
        let (standing, tail) = (store.standing(), store.tail());
        return Ok(Note {
            since_s,
            sequence: standing.seq,
            epoch: standing.epoch,
            promised: standing.promised,
            chain: hex(&tail.chain),
        });
    }
    let standing = Standing::of_unreadable(&mut log_of(folder)?);
    Ok(Note {
        since_s,
        sequence: standing.seq,
        epoch: standing.epoch,
        promised: standing.promised,
        chain: String::new(),
    })
}

fn log_of(folder: &Path) -> io::Result<FileDisk> {
    let disk = FileDisk::open_alone(&folder.join("journal"));
    disk.map_err(|error| io::Error::other(error.to_string()))
}

/// That of no write: what says so stays until the volume is deleted.
fn no_chain() -> String {
    hex(&[0; 32])
}

/// Of two copies of a volume, return the one that goes on; the other is moved aside.
///
/// Where neither can be opened nothing is decided, and `known` stays for now.
pub fn settle(disks: &Disks, known: CreateVolume, found: CreateVolume) -> io::Result<CreateVolume> {
    let folder = |spec: &CreateVolume| disks.root(&spec.disk).join(&spec.volume);
    let is_journal = |spec: &CreateVolume| spec.backend == Backend::Journal;
    if !is_journal(&known) || !is_journal(&found) || known.uuid != found.uuid {
        log::error(
            "volume_found_twice",
            &[("volume", known.volume.as_str().into())],
        );
        return Ok(known);
    }
    let (one, other) = (
        opened(disks, &folder(&known)),
        opened(disks, &folder(&found)),
    );
    for (spec, store) in [(&known, &one), (&found, &other)] {
        if let Err(error) = store {
            log::error(
                "copy_not_opened",
                &[
                    ("volume", spec.volume.as_str().into()),
                    ("disk", spec.disk.as_str().into()),
                    ("error", error.to_string().into()),
                ],
            );
        }
    }
    let decided = |spec: &CreateVolume| Note::read(&folder(spec)).is_some();
    let first_wins = match (&one, &other) {
        (Err(_), Err(_)) => return Ok(known),
        _ if decided(&known) != decided(&found) => decided(&found),
        (Ok(one), Ok(other)) => one.standing() >= other.standing(),
        (one, _) => one.is_ok(),
    };
    let (winner, store, loser, rival) = if first_wins {
        (known, one, found, other)
    } else {
        (found, other, known, one)
    };
    let Ok(mut store) = store else {
        return Ok(winner); // decided before, and not to be opened now: it stays so
    };
    let aside = folder(&loser);
    let note = match Note::read(&aside) {
        Some(note) => note,
        None => note_of(&aside, rival.as_ref().ok())?,
    };
    drop(rival);
    // A crash after this goes on from here: the promise must be kept before the rival is gone.
    note.write(&aside)?;
    store
        .stand_for(note.standing())
        .map_err(|error| io::Error::other(error.to_string()))?;
    let standing = store.standing();
    drop(store);
    if let Err(error) = disks.put_aside(&loser.disk, &loser.volume) {
        // It is decided: at the next start again, and what is served is the same.
        log::error(
            "copy_not_put_aside",
            &[
                ("volume", loser.volume.as_str().into()),
                ("disk", loser.disk.as_str().into()),
                ("error", error.to_string().into()),
            ],
        );
        return Ok(winner);
    }
    log::warn(
        "copy_retired",
        &[
            ("volume", winner.volume.as_str().into()),
            ("disk", loser.disk.as_str().into()),
            ("sequence", note.sequence.into()),
            ("goes_on", winner.disk.as_str().into()),
            ("goes_on_sequence", standing.seq.into()),
        ],
    );
    Ok(winner)
}

/// What a volume's folder says it is, where it can be told and its journal be opened; else which file is damaged.
pub fn described(folder: &Path, text: &[u8]) -> Result<CreateVolume, String> {
    let spec: CreateVolume = serde_json::from_slice(text)
        .map_err(|error| format!("{}: {error}", folder.join("volume.json").display()))?;
    let journal = folder.join("journal");
    let is_damaged = |name: &str| match fs::read(journal.join(name)) {
        Ok(block) => Superblock::decode(&block).is_err(),
        // Any other error may be gone at the next try: opening tells it.
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    if spec.backend == Backend::Journal && is_damaged("super.a") && is_damaged("super.b") {
        let path = journal.join("super.a");
        return Err(format!(
            "{} and super.b: no valid superblock",
            path.display()
        ));
    }
    Ok(spec)
}

/// Move a copy aside that nobody can open, so that the others are served and it is made anew from another copy.
/// Where its disk does not even take that, it stays where it is, and is not served.
pub fn put_unreadable_aside(disks: &Disks, disk: &str, folder: &Path, fault: &str) {
    let name = folder
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let help = match move_unreadable_aside(disks, disk, folder, &name) {
        Ok(()) => "it lies in retired/ beside volumes/ and is made anew from another copy; where there is none, \
                   mend the file, stop the daemon and move it back"
            .to_owned(),
        Err(error) => format!("it stays where it is, since it cannot be moved ({error}): mend its disk"),
    };
    log::error(
        "copy_unreadable",
        &[
            ("volume", name.as_str().into()),
            ("disk", disk.into()),
            ("fault", fault.into()),
            ("help", help.into()),
        ],
    );
}

fn move_unreadable_aside(disks: &Disks, disk: &str, folder: &Path, name: &str) -> io::Result<()> {
    if Note::read(folder).is_none() {
        let store = opened(disks, folder).ok();
        let mut note = note_of(folder, store.as_ref())?;
        if note.chain.is_empty() {
            note.chain = no_chain();
        }
        note.write(folder)?;
    }
    disks.put_aside(disk, name).map(|_| ())
}

/// Move a copy aside whose base segments are lost, unless it promised to hear no head of `epoch`. What is left of it
/// is the log.
pub fn put_baseless_aside(disks: &Disks, disk: &str, volume: &str, epoch: u64) -> io::Result<()> {
    let folder = disks.root(disk).join(volume);
    let mut log = log_of(&folder)?;
    let end = Standing::of_log(&mut log).map_err(|error| io::Error::other(error.to_string()))?;
    drop(log);
    let mut note = note_of(&folder, None)?;
    if epoch < note.promised {
        return Err(io::Error::other("a later head was promised"));
    }
    note.chain = no_chain();
    if let Some((standing, chain)) = end {
        (note.sequence, note.epoch) = (standing.seq, standing.epoch);
        note.chain = hex(&chain);
    }
    note.write(&folder)?;
    let aside = disks.put_aside(disk, volume)?;
    Disks::cut_base(&aside.join("journal"))?;
    log::error(
        "copy_lost_its_base",
        &[
            ("volume", volume.into()),
            ("disk", disk.into()),
            ("sequence", note.sequence.into()),
            (
                "help",
                "the disk of its base segments was lost: it is made anew from another copy".into(),
            ),
        ],
    );
    Ok(())
}

/// What lies aside on all disks. What cannot be read of it is told, left where it is, and keeps nothing from starting.
pub fn found(disks: &Disks) -> Vec<Retired> {
    let mut found = Vec::new();
    let (aside, unread) = disks.aside();
    for (disk, error) in unread {
        tell_unread(&disk, "retired/", &error.to_string());
    }
    for (disk, folder) in aside {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let volume = Disks::volume_of(&name).to_owned();
        let Some(note) = Note::read(&folder) else {
            tell_unread(
                &disk,
                &folder.to_string_lossy(),
                "it has no retired.json that can be read",
            );
            continue;
        };
        found.push(Retired {
            volume,
            disk,
            folder,
            note,
        });
    }
    found
}

fn tell_unread(disk: &str, what: &str, error: &str) {
    let help = "nothing of it is used or removed, but for what has the name of a volume that is deleted; look at it, and \
                remove it by hand";
    log::error(
        "retired_unreadable",
        &[
            ("disk", disk.into()),
            ("what", what.into()),
            ("error", error.into()),
            ("help", help.into()),
        ],
    );
}

impl Storaged {
    pub(crate) fn retired(&self, volume: &str) -> Vec<Value> {
        let of_volume = self.catalogue.retired.iter();
        of_volume
            .filter(|retired| retired.volume == volume)
            .map(|retired| {
                let note = &retired.note;
                json!({"disk": retired.disk, "since_s": note.since_s, "sequence": note.sequence})
            })
            .collect()
    }

    /// Whether a copy of a volume lies aside on a disk.
    pub(crate) fn has_aside(&self, volume: &str, disk: &str) -> bool {
        let mut aside = self.catalogue.retired.iter();
        aside.any(|retired| retired.volume == volume && retired.disk == disk)
    }

    /// Have copies that go on in another's place read themselves whole, and let go of the others once proven.
    pub(crate) fn tidy_retired(&mut self, context: &mut Context<'_>) {
        let mut index = 0;
        while let Some(retired) = self.catalogue.retired.get(index) {
            let (volume, since_s) = (retired.volume.clone(), retired.note.since_s);
            let (seq, chain) = (retired.note.sequence, unhex(&retired.note.chain));
            index += 1;
            if !self.catalogue.volumes.contains_key(&volume) {
                continue; // the disk of the one that goes on is away now
            }
            if !self.scrubbed_since(&volume, since_s) {
                self.scrub_soon(&volume);
                continue;
            }
            let proven = self.with_copy(&volume, |store| {
                let report = store.scrub_report();
                let sound = report.waiting == 0
                    && report.lost.is_empty()
                    && report.lost_segments.is_empty()
                    && store.is_whole();
                // One that could not be opened had nothing that could be compared.
                sound && chain.is_none_or(|chain| store.covers(seq, &chain).unwrap_or(false))
            });
            if proven == Some(true) {
                index -= 1;
                let retired = self.catalogue.retired.remove(index);
                if let Err(error) = Disks::remove(&retired.folder) {
                    log::error(
                        "retired_not_removed",
                        &[("error", error.to_string().into())],
                    );
                } else {
                    let kept = self.catalogue.disk_of(&volume).to_owned();
                    self.tell_removed(&volume, &retired.disk, &kept, context);
                    self.receipts.compare_soon(&volume);
                }
                log::info(
                    "retired_removed",
                    &[
                        ("volume", volume.into()),
                        ("disk", retired.disk.as_str().into()),
                    ],
                );
            }
        }
    }
}
