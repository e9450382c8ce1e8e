//! What a copy has put aside of its own log (`journal/quarantine.*`): a tail that a newer head refused, or what was damaged.
//!
//! It is for people; the engine never reads it again. It goes once it can be of no use: while another copy is there (a
//! head elsewhere leads this one, or the head here has one that gets each write), the copy is whole, and a pass over all of it that
//! began since has found nothing damaged. An only copy keeps it until the volume is deleted.

use crate::daemon::Storaged;
use nuage_engine::{CopyState, CopyStatus};
use nuage_io::log;
use nuage_journal::ScrubReport;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const PREFIX: &str = "quarantine.";

struct Aside {
    path: PathBuf,
    bytes: u64,
    since_s: u64,
}

fn found(journal: &Path) -> Vec<Aside> {
    let Ok(entries) = fs::read_dir(journal) else {
        return Vec::new(); // the volume is on its way here or away
    };
    let entries = entries.filter_map(Result::ok);
    let aside = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    let looked_at = aside.filter_map(|entry| {
        let about = entry.metadata().ok()?;
        let since = about
            .modified()
            .ok()?
            .duration_since(SystemTime::UNIX_EPOCH);
        Some(Aside {
            path: entry.path(),
            bytes: about.len(),
            since_s: since.ok()?.as_secs(),
        })
    });
    looked_at.collect()
}

/// Remove what was put aside before `begun_s`; bytes.
fn remove_older(journal: &Path, begun_s: u64) -> std::io::Result<u64> {
    let mut removed = 0;
    for aside in found(journal) {
        if aside.since_s < begun_s {
            fs::remove_file(&aside.path)?;
            removed += aside.bytes;
        }
    }
    Ok(removed)
}

impl Storaged {
    /// See what a copy has put aside; what is new is told.
    pub(crate) fn note_quarantine(&mut self, volume: &str) {
        let aside = found(&self.catalogue.folder(volume).join("journal"));
        let bytes = aside.iter().map(|aside| aside.bytes).sum();
        let before = self.scrubbing.quarantine.insert(volume.to_owned(), bytes);
        if bytes > before.unwrap_or(0) {
            log::warn(
                "quarantine_kept",
                &[("volume", volume.into()), ("bytes", bytes.into())],
            );
        }
    }

    /// A pass over a copy, begun at `begun_s`, has ended so.
    pub(crate) fn tidy_quarantine(&mut self, volume: &str, begun_s: u64, report: &ScrubReport) {
        let is_sound =
            report.waiting == 0 && report.lost.is_empty() && report.lost_segments.is_empty();
        let is_whole = self.with_copy(volume, |store| store.is_whole()) == Some(true);
        if !is_sound || !is_whole || !self.has_another(volume) {
            return;
        }
        self.note_quarantine(volume); // nothing goes untold
        let journal = self.catalogue.folder(volume).join("journal");
        let removed = remove_older(&journal, begun_s);
        self.note_quarantine(volume);
        match removed {
            Ok(0) => {}
            Ok(bytes) => log::info(
                "quarantine_removed",
                &[("volume", volume.into()), ("bytes", bytes.into())],
            ),
            Err(error) => log::error(
                "quarantine_not_removed",
                &[
                    ("volume", volume.into()),
                    ("error", error.to_string().into()),
                ],
            ),
        }
    }

    /// Another copy of the volume is there now.
    fn has_another(&self, volume: &str) -> bool {
        if let Some(copy) = self.copies.by_volume.get(volume) {
            return copy.store.is_led();
        }
        let engine = self.heads.get(volume).and_then(|head| head.engine.as_ref());
        let is_live = |copy: &CopyStatus| copy.state == CopyState::Live;
        engine.is_some_and(|engine| {
            // The head's own is one of them.
            engine.with(|head| head.copies().into_iter().filter(is_live).count() > 1)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_aside_before_a_pass_began_goes_and_nothing_else() {
        let journal = std::env::temp_dir().join(format!("nuage-quarantine-{}", std::process::id()));
        let _ = fs::remove_dir_all(&journal);
        fs::create_dir_all(&journal).expect("a directory");
        for name in ["quarantine.01.02", "seg.000001", "super.a"] {
            fs::write(journal.join(name), "data").expect("a file");
        }
        let since_s = found(&journal)[0].since_s;
        assert_eq!(remove_older(&journal, since_s).expect("a disk"), 0);
        assert_eq!(remove_older(&journal, since_s + 1).expect("a disk"), 4);
        assert!(found(&journal).is_empty());
        assert!(journal.join("seg.000001").exists() && journal.join("super.a").exists());
        let _ = fs::remove_dir_all(&journal);
    }
}
