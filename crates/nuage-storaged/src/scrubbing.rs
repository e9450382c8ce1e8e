//! Every copy of this daemon reads itself through now and then, to find damage before a reader does.
//!
//! One copy at a time, at the pace of the class *scrub*. What is found is mended by the engine
//! (`nuage_journal::mending`); here is when a pass is due, how far it is, and what is kept of it over a restart.

use crate::control::{Code, Refusal};
use crate::daemon::Storaged;
use crate::metrics::ScrubFigures;
use nuage_disk::FileDisk;
use nuage_engine::{Class, Clock as _, SystemClock};
use nuage_io::log;
use nuage_io::serve::Context;
use nuage_journal::{ScrubReport, Store};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant, SystemTime};

/// How often each copy is read whole.
const SCRUB_EVERY: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often the daemon looks whether the next piece may be read.
pub const SCRUB_POLL: Duration = Duration::from_millis(20);
/// Pieces read in one turn: a few milliseconds in which the daemon does nothing else.
const PIECES_A_TURN: usize = 4;
/// How often what is lost is asked for again, and a pass noted so that a restart goes on from there.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const FILE: &str = "scrub.json";

/// What is kept of a copy's passes, beside its journal.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Kept {
    /// When the last whole pass ended, in seconds since 1970; 0: none yet.
    last_s: u64,
    /// When the last pass from the beginning began.
    #[serde(default)]
    begun_s: u64,
    /// Where a pass that was begun goes on; `None`: none was.
    after: Option<u64>,
    found: u64,
    mended: u64,
}

/// The passes of this daemon's copies.
#[derive(Default)]
pub struct Scrubbing {
    kept: BTreeMap<String, Kept>,
    /// Found and mended by copies since they were opened, as far as it is in `kept`.
    counted: BTreeMap<String, (u64, u64)>,
    /// Bytes that copies have put aside, as they were at the last look.
    pub(crate) quarantine: BTreeMap<String, u64>,
    running: Option<String>,
    clock: SystemClock,
    looked_at: Option<Instant>,
}

impl Scrubbing {
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// The volume is deleted here.
    pub fn forget(&mut self, volume: &str) {
        self.kept.remove(volume);
        self.counted.remove(volume);
        self.quarantine.remove(volume);
    }
}

/// What a copy found and mended since it was counted last; one that was opened anew counts from nothing.
fn since(report: &ScrubReport, counted: Option<(u64, u64)>) -> (u64, u64) {
    let (found, mended) = counted
        .filter(|(found, mended)| *found <= report.found && *mended <= report.mended)
        .unwrap_or_default();
    (report.found - found, report.mended - mended)
}

fn now_s() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

impl Storaged {
    /// Call `act` with the copy of a volume, whoever leads it, when it is open.
    pub(crate) fn with_copy<R>(
        &mut self,
        volume: &str,
        act: impl FnOnce(&mut Store<FileDisk>) -> R,
    ) -> Option<R> {
        if let Some(copy) = self.copies.by_volume.get_mut(volume) {
            return Some(act(copy.store.store_mut()));
        }
        let engine = self.heads.get(volume)?.engine.as_ref()?;
        Some(engine.with(|head| act(head.store_mut())))
    }

    fn report_of(&self, volume: &str) -> Option<ScrubReport> {
        if let Some(copy) = self.copies.by_volume.get(volume) {
            return Some(copy.store.store().scrub_report());
        }
        let engine = self.heads.get(volume)?.engine.as_ref()?;
        Some(engine.with(|head| head.store().scrub_report()))
    }

    fn kept(&mut self, volume: &str) -> &mut Kept {
        let path = self.catalogue.folder(volume).join(FILE);
        self.scrubbing
            .kept
            .entry(volume.to_owned())
            .or_insert_with(|| {
                let text = fs::read(path).unwrap_or_default();
                serde_json::from_slice(&text).unwrap_or_default()
            })
    }

    /// Begin a pass at once.
    pub(crate) fn scrub(
        &mut self,
        volume: &str,
        context: &mut Context<'_>,
    ) -> Result<Value, Refusal> {
        self.catalogue.get(volume)?;
        if !self.heads.contains_key(volume) {
            self.open_copy(volume, context)?;
        }
        if self.report_of(volume).is_none() {
            let message = "this backend keeps no checksums";
            return Err(Refusal::new(Code::NotSupported, message));
        }
        self.kept(volume).after = Some(0);
        self.begin_pass(volume);
        Ok(self.scrub_status(volume).unwrap_or_default())
    }

    fn begin_pass(&mut self, volume: &str) {
        let after = self.kept(volume).after.unwrap_or(0);
        let kept = self.kept(volume);
        kept.after = Some(after);
        if after == 0 {
            kept.begun_s = now_s();
        }
        if self
            .with_copy(volume, |store| store.begin_scrub(after))
            .is_some()
        {
            self.scrubbing
                .running
                .get_or_insert_with(|| volume.to_owned());
            log::info("scrub_begins", &[("volume", volume.into())]);
        }
    }

    /// Read what is due of the copy whose turn it is.
    pub(crate) fn run_scrubs(&mut self) {
        let Some(volume) = self.scrubbing.running.clone() else {
            return;
        };
        for _ in 0..PIECES_A_TURN {
            let now_ns = self.scrubbing.clock.now().monotonic_ns;
            if !self
                .budget_of(&volume)
                .borrow_mut()
                .may(Class::Scrub, now_ns)
            {
                return;
            }
            let step = self.with_copy(&volume, |store| {
                store.is_scrubbing().then(|| store.scrub_next())
            });
            let Some(Some(Ok(step))) = step else {
                // Closed or opened anew meanwhile, or failed: begun again when it is due.
                self.scrubbing.running = None;
                return;
            };
            self.budget_of(&volume)
                .borrow_mut()
                .take(Class::Scrub, now_ns, step.bytes);
            if step.is_over {
                return self.pass_over(&volume);
            }
        }
    }

    fn pass_over(&mut self, volume: &str) {
        self.scrubbing.running = None;
        let kept = self.kept(volume);
        (kept.last_s, kept.after) = (now_s(), None);
        self.note_pass(volume);
        let report = self.report_of(volume).unwrap_or_default();
        let begun_s = self.kept(volume).begun_s;
        self.tidy_quarantine(volume, begun_s, &report);
        log::info(
            "scrub_ends",
            &[
                ("volume", volume.into()),
                ("waiting", report.waiting.into()),
            ],
        );
    }

    /// Add up what was found, and write down where the pass is.
    fn note_pass(&mut self, volume: &str) {
        let Some(report) = self.report_of(volume) else {
            return;
        };
        let is_running = report.running.is_some();
        let to = self.with_copy(volume, |store| store.scrubbed_to());
        let before = self
            .scrubbing
            .counted
            .insert(volume.to_owned(), (report.found, report.mended));
        let (found, mended) = since(&report, before);
        let before = self.kept(volume).clone();
        let kept = self.kept(volume);
        kept.found += found;
        kept.mended += mended;
        if is_running {
            kept.after = to;
        }
        if *kept == before && !is_running && kept.after.is_none() && kept.last_s == 0 {
            return;
        }
        let text = serde_json::to_vec(kept).unwrap_or_default();
        let path = self.catalogue.folder(volume).join(FILE);
        let fresh = path.with_extension("json.new");
        // Lost with a crash, it is only read again.
        let written = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &path));
        if let Err(error) = written {
            log::warn("scrub_not_noted", &[("error", error.to_string().into())]);
        }
    }

    /// Each minute: begin what is due, note where it is, ask again for what is lost.
    pub(crate) fn tidy_scrubs(&mut self) {
        let now = Instant::now();
        if self
            .scrubbing
            .looked_at
            .is_some_and(|at| now - at < LOOK_EVERY)
        {
            return;
        }
        self.scrubbing.looked_at = Some(now);
        let open: Vec<String> = self
            .heads
            .keys()
            .chain(self.copies.by_volume.keys())
            .cloned()
            .collect();
        for volume in &open {
            self.with_copy(volume, Store::retry_lost);
            self.note_pass(volume);
            self.note_quarantine(volume);
        }
        let due = open.iter().find(|volume| self.is_due(volume)).cloned();
        if let (None, Some(volume)) = (&self.scrubbing.running, due) {
            self.begin_pass(&volume);
        }
    }

    /// The copy has been read whole, from beginning to end, after that moment.
    pub(crate) fn scrubbed_since(&mut self, volume: &str, since_s: u64) -> bool {
        self.kept(volume).begun_s >= since_s && self.kept(volume).after.is_none()
    }

    /// Have this copy be read from its beginning, once it is open and no pass is on its way.
    pub(crate) fn scrub_soon(&mut self, volume: &str) {
        let is_open = self.report_of(volume).is_some();
        if is_open && self.scrubbing.running.is_none() && self.kept(volume).after.is_none() {
            self.begin_pass(volume);
        }
    }

    fn is_due(&mut self, volume: &str) -> bool {
        let made = fs::metadata(self.catalogue.folder(volume).join("volume.json"));
        let made = made.and_then(|file| file.modified()).ok();
        let made_s = made
            .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok())
            .map_or(0, |at| at.as_secs());
        let kept = self.kept(volume);
        let last_s = kept.last_s.max(made_s);
        kept.after.is_some() || now_s().saturating_sub(last_s) >= SCRUB_EVERY.as_secs()
    }

    pub(crate) fn scrub_status(&self, volume: &str) -> Option<Value> {
        let report = self.report_of(volume)?;
        let figures = self.scrub_figures(volume);
        Some(json!({
            "last_s": figures.last_s,
            "running": report.running.map(|(done, total)| {
                json!({"done_bytes": done, "total_bytes": total})
            }),
            "found": figures.found, "mended": figures.mended, "waiting": report.waiting,
            "lost": report.lost, "lost_segments": report.lost_segments,
            "quarantine_bytes": figures.quarantine_bytes,
        }))
    }

    pub(crate) fn scrub_figures(&self, volume: &str) -> ScrubFigures {
        let Some(report) = self.report_of(volume) else {
            return ScrubFigures::default();
        };
        let kept = self.scrubbing.kept.get(volume);
        let (found, mended) = since(&report, self.scrubbing.counted.get(volume).copied());
        ScrubFigures {
            last_s: kept.map_or(0, |kept| kept.last_s),
            done_bytes: report.running.map_or(0, |(done, _)| done),
            found: kept.map_or(0, |kept| kept.found) + found,
            mended: kept.map_or(0, |kept| kept.mended) + mended,
            lost_blocks: report.lost.iter().map(|(_, count)| count).sum(),
            quarantine_bytes: self.scrubbing.quarantine.get(volume).copied().unwrap_or(0),
        }
    }
}
