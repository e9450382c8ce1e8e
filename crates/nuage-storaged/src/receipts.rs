//! Receipts of segments sealed, moved and expired: kept in a file, streamed to who asks.
//!
//! The daemon signs nothing: the IO-node agent does, and it may be away while a segment is sealed.
//! So receipts get a dense number and stay in `receipts.jsonl`; a client names the last it has.
//! What was told of a copy is compared with what lies there now and then: see `nuage_journal::Told`.
//!
//! The file does not grow for ever. Once the client says that the site has taken receipts in, those
//! are needed no more but the last one of each segment that lies here: by it the daemon knows what it
//! told, and who deletes a copy knows what is gone. The file is then written anew, now and then.
//! Besides receipts it has two kinds of lines: `{"last": N}`, up to where numbers were given, and
//! `{"deleted": VOLUME, "disk": DISK}`: what was told of that copy before counts no more.
//!
//! A copy is one on one disk. What was told of one whose disk is away, or that lies aside, stays so when another is made
//! elsewhere: nobody gave it back. Its base segments may lie on another disk: they are a part of their own, named by the
//! directory there (`base`), and outlive the journal where its disk is lost. An older daemon told them under the
//! journal's disk; at the first comparison they are told under theirs, and expire where they never lay.

use crate::catalogue::{hex, now_ns, unhex};
use crate::daemon::Storaged;
use crate::disks::Disks;
use nuage_io::serve::Context;
use nuage_journal::{Receipt, ReceiptAct, Store, Told};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const FILE: &str = "receipts.jsonl";
const ANEW: &str = "new";
/// How often what was told of a copy is compared with what lies there.
const COMPARE_EVERY: Duration = Duration::from_secs(60);
/// So many lines more than twice those that are needed, and the file is written anew: some 300 KiB.
const SPARE_LINES: u64 = 1024;

/// What lies on one disk of a copy: its log, or, where that is another disk, its base segments, by their directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    volume: String,
    disk: String,
    /// Empty: the log, and what lies beside it.
    base: String,
}

impl Part {
    pub fn log(volume: &str, disk: &str) -> Self {
        Self::base(volume, disk, "")
    }

    pub fn base(volume: &str, disk: &str, base: &str) -> Self {
        Self {
            volume: volume.to_owned(),
            disk: disk.to_owned(),
            base: base.to_owned(),
        }
    }

    fn is_base(&self) -> bool {
        !self.base.is_empty()
    }

    /// Say in a line which one is meant.
    fn name_in(&self, value: &mut Value) {
        value["disk"] = self.disk.as_str().into();
        if self.is_base() {
            value["base"] = self.base.as_str().into();
        }
    }
}

pub struct Receipts {
    path: PathBuf,
    file: File,
    last: u64,
    /// Up to which number the site has taken them in, as far as the client has told.
    taken: u64,
    /// How many lines the file has.
    lines: u64,
    told: BTreeMap<Part, Told>,
    /// When each open copy was compared last.
    compared: BTreeMap<String, Instant>,
    /// Control clients that follow.
    pub followers: Vec<u32>,
}

impl Receipts {
    pub fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join(FILE);
        // Left by a crash while the file was written anew.
        let _ = std::fs::remove_file(path.with_extension(ANEW));
        let mut file = appended(&path)?;
        let found = lines_of(&path)?;
        let mut last = 0;
        let mut told: BTreeMap<Part, Told> = BTreeMap::new();
        for value in &found {
            last = last.max(number_of(value).or(value["last"].as_u64()).unwrap_or(0));
            if value["deleted"].is_string() {
                told.retain(|part, _| !ends(value, part));
            } else if let Some((part, receipt)) = parsed(value) {
                told.entry(part).or_default().note(&receipt);
            }
        }
        file.write_all(b"\n")?;
        file.sync_data()?;
        File::open(dir)?.sync_all()?;
        Ok(Self {
            path,
            file,
            last,
            taken: 0,
            lines: u64::try_from(found.len()).unwrap_or(u64::MAX),
            told,
            compared: BTreeMap::new(),
            followers: Vec::new(),
        })
    }

    /// Keep a receipt, as of now: a copy made anew has old writes since today. Gives its line.
    pub fn keep(&mut self, part: &Part, receipt: &Receipt) -> io::Result<Value> {
        self.last += 1;
        let mut value = json!({
            "number": self.last,
            "act": word(receipt.act),
            "volume": part.volume,
            "uuid": hex(&receipt.volume),
            "segment": receipt.segment,
            "first_sequence": receipt.first_seq,
            "last_sequence": receipt.last_seq,
            "chain": hex(&receipt.chain),
            "time_ns": now_ns(),
            "bytes": receipt.bytes,
        });
        part.name_in(&mut value);
        // Before anybody hears of it: a number that was told is never given again.
        self.write(&value)?;
        self.told.entry(part.clone()).or_default().note(receipt);
        Ok(value)
    }

    /// Whether a receipt tells what has not been told.
    pub fn is_news(&self, part: &Part, receipt: &Receipt) -> bool {
        match self.told.get(part) {
            Some(told) => told.is_news(receipt),
            None => receipt.act != ReceiptAct::Expired,
        }
    }

    /// The copy is deleted, and who deleted it tells what became of its segments; or it is not there any more, and
    /// another begins in its place: nobody knows what became of them.
    pub fn forget(&mut self, part: &Part) -> io::Result<()> {
        self.compared.remove(&part.volume);
        if self.told.remove(part).is_some() {
            let mut line = json!({"deleted": part.volume});
            part.name_in(&mut line);
            self.write(&line)?;
        }
        Ok(())
    }

    /// Compare what was told of a volume's copy at the next look.
    pub fn compare_soon(&mut self, volume: &str) {
        self.compared.remove(volume);
    }

    /// Base directories of a volume that are not there any more, though their disks are.
    pub fn gone_bases(&self, volume: &str, disks: &Disks) -> Vec<Part> {
        let is_gone = |part: &&Part| {
            part.volume == volume && part.is_base() && disks.is_base_gone(&part.disk, &part.base)
        };
        self.told.keys().filter(is_gone).cloned().collect()
    }

    /// As `gone_bases` of each volume, at the start: their disks were replaced, and nobody knows what became of them.
    pub fn forget_gone(&mut self, disks: &Disks) -> io::Result<()> {
        let is_gone = |part: &&Part| part.is_base() && disks.is_base_gone(&part.disk, &part.base);
        let gone: Vec<Part> = self.told.keys().filter(is_gone).cloned().collect();
        gone.iter().try_for_each(|part| self.forget(part))
    }

    /// A directory of base segments was removed: tell it, and no more of it.
    pub fn end_base(&mut self, disk: &str, base: &str) -> io::Result<()> {
        let part = Part::base(Disks::volume_of(base), disk, base);
        for receipt in self.given_back(&part) {
            self.keep(&part, &receipt)?;
        }
        self.forget(&part)
    }

    /// What was told of a part that is not there any more, as given back.
    pub fn given_back(&self, part: &Part) -> Vec<Receipt> {
        let told = self.told.get(part).into_iter();
        told.flat_map(Told::present)
            .map(|receipt| Receipt {
                act: ReceiptAct::Expired,
                ..receipt.clone()
            })
            .collect()
    }

    /// The site has taken in what is numbered up to `number`: what it tells of the past may go.
    pub fn taken(&mut self, number: u64) -> io::Result<()> {
        self.taken = self.taken.max(number);
        if number > self.last {
            // This folder is a new one, the client is not: it would wait for higher numbers.
            self.last = number;
            self.write(&json!({"last": number}))?;
        }
        let present: usize = self.told.values().map(Told::count).sum();
        let needed = u64::try_from(present).unwrap_or(u64::MAX) + (self.last - self.taken);
        if self.lines > needed.saturating_mul(2).saturating_add(SPARE_LINES) {
            self.write_anew()?;
        }
        Ok(())
    }

    fn write(&mut self, value: &Value) -> io::Result<()> {
        self.lines += 1;
        writeln!(self.file, "{value}")?;
        self.file.sync_data()
    }

    /// Leave out what is needed no more. A crash leaves the old file or the new one.
    fn write_anew(&mut self) -> io::Result<()> {
        let mut found = lines_of(&self.path)?;
        // From the last to the first: only the last receipt of a segment tells that it lies here.
        let mut seen: BTreeSet<(Part, u64)> = BTreeSet::new();
        found.reverse();
        found.retain(|value| {
            let Some((part, receipt)) = parsed(value) else {
                return value["deleted"].is_string();
            };
            let lies_here = self.has(&part, &receipt);
            let is_last = seen.insert((part, receipt.segment));
            number_of(value) > Some(self.taken) || (is_last && lies_here)
        });
        found.reverse();
        let mut named: BTreeSet<Part> = BTreeSet::new();
        found.retain(|value| {
            if value["deleted"].is_string() {
                let before = named.len();
                named.retain(|part| !ends(value, part));
                return named.len() < before;
            }
            named.extend(parsed(value).map(|(part, _)| part));
            true
        });
        let beside = self.path.with_extension(ANEW);
        let mut file = io::BufWriter::new(File::create(&beside)?);
        writeln!(file, "{}", json!({"last": self.last}))?;
        for value in &found {
            writeln!(file, "{value}")?;
        }
        file.into_inner()?.sync_all()?;
        std::fs::rename(&beside, &self.path)?;
        self.file = appended(&self.path)?;
        self.lines = u64::try_from(found.len()).unwrap_or(u64::MAX) + 1;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        File::open(dir)?.sync_all()
    }

    fn has(&self, part: &Part, receipt: &Receipt) -> bool {
        let told = self.told.get(part);
        told.is_some_and(|told| told.has(receipt))
    }

    /// Receipts with a number above `after`, oldest first; those that the site has are of what lies here.
    pub fn after(&self, after: u64) -> io::Result<Vec<Value>> {
        let mut found = lines_of(&self.path)?;
        found.retain(|value| {
            let number = number_of(value);
            let lies_here = || parsed(value).is_some_and(|(part, told)| self.has(&part, &told));
            number > Some(after) && (number > Some(self.taken) || lies_here())
        });
        Ok(found)
    }
}

/// What can be read of the file: a torn last line is followed by a fresh one, and names a receipt
/// nobody has seen.
fn lines_of(path: &Path) -> io::Result<Vec<Value>> {
    let mut found = Vec::new();
    for line in BufReader::new(File::open(path)?).lines() {
        found.extend(serde_json::from_str::<Value>(&line?));
    }
    Ok(found)
}

fn appended(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// A receipt's number; none for a line that is no receipt.
fn number_of(value: &Value) -> Option<u64> {
    value["number"].as_u64()
}

fn word(act: ReceiptAct) -> &'static str {
    match act {
        ReceiptAct::Sealed => "sealed",
        ReceiptAct::Moved => "moved",
        ReceiptAct::Expired => "expired",
    }
}

/// Whether a line tells the end of a part. Without a disk (an older daemon's): of all of its volume.
fn ends(value: &Value, part: &Part) -> bool {
    let base = value["base"].as_str().unwrap_or("");
    let is_part = |disk: &str| disk == part.disk && base == part.base;
    value["deleted"] == part.volume.as_str() && value["disk"].as_str().is_none_or(is_part)
}

/// A line of the file, read back.
fn parsed(value: &Value) -> Option<(Part, Receipt)> {
    let number = |field: &str| value[field].as_u64();
    let acts = [ReceiptAct::Sealed, ReceiptAct::Moved, ReceiptAct::Expired];
    let act = acts.into_iter().find(|act| value["act"] == word(*act))?;
    let base = value["base"].as_str().unwrap_or("");
    let receipt = Receipt {
        act,
        volume: unhex(value["uuid"].as_str()?)?,
        segment: number("segment")?,
        first_seq: number("first_sequence")?,
        last_seq: number("last_sequence")?,
        chain: unhex(value["chain"].as_str()?)?,
        bytes: number("bytes")?,
        is_base: !base.is_empty(),
    };
    let disk = value["disk"].as_str().unwrap_or("");
    Some((Part::base(value["volume"].as_str()?, disk, base), receipt))
}

impl Storaged {
    /// Tell what a crash kept from being told, and what nobody tells, of the copies that are open.
    pub(crate) fn compare_receipts(&mut self, context: &mut Context<'_>) {
        let now = Instant::now();
        let is_due = |volume: &&String| {
            let at = self.receipts.compared.get(*volume);
            at.is_none_or(|at| now - *at >= COMPARE_EVERY)
        };
        let open = self.heads.keys().chain(self.copies.by_volume.keys());
        let due: Vec<String> = open.filter(is_due).cloned().collect();
        for volume in due {
            let present = self.with_copy(&volume, |store| Store::holdings(store));
            let Some(present) = present else { continue };
            let (base, log) = (self.part_of(&volume, true), self.part_of(&volume, false));
            let (apart, beside): (Vec<_>, Vec<_>) = present
                .into_iter()
                .partition(|receipt| receipt.is_base && base != log);
            if base != log {
                // First: what an older daemon told under the journal's disk expires there once it is told of the right one.
                self.compare_part(&base, &apart, context);
            }
            self.compare_part(&log, &beside, context);
            self.receipts.compared.insert(volume, now);
        }
    }

    fn compare_part(&mut self, part: &Part, present: &[Receipt], context: &mut Context<'_>) {
        let told = self.receipts.told.entry(part.clone()).or_default();
        let mut news = told.missing(present);
        if self.has_aside(&part.volume, &part.disk) {
            // What is not in this copy may lie in that one.
            news.retain(|receipt| receipt.act != ReceiptAct::Expired);
        }
        for receipt in news {
            self.keep_receipt_of(part, &receipt, context);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disks::BasePlace;

    /// A place of a test's own, gone when it ends.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("nuage-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).expect("a place");
            Self(dir)
        }

        fn open(&self) -> Receipts {
            Receipts::open(&self.0).expect("a readable file")
        }

        fn bytes(&self) -> u64 {
            std::fs::metadata(self.0.join(FILE)).expect("there").len()
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).expect("gone");
        }
    }

    fn receipt(act: ReceiptAct, segment: u64) -> Receipt {
        Receipt {
            act,
            volume: [1; 16],
            segment,
            first_seq: segment,
            last_seq: segment,
            chain: [3; 32],
            bytes: 4096,
            is_base: false,
        }
    }

    fn log() -> Part {
        Part::log("v", "d0")
    }

    fn numbers(receipts: &Receipts) -> Vec<u64> {
        let all = receipts.after(0).expect("readable");
        all.iter().filter_map(number_of).collect()
    }

    #[test]
    fn a_receipt_tells_when_its_act_was_and_not_when_the_writes_were() {
        let place = Place::new("receipts-when");
        let mut receipts = place.open();
        let begun_ns = now_ns();
        let written_long_ago = receipt(ReceiptAct::Expired, 1);
        let line = receipts.keep(&log(), &written_long_ago).expect("kept");
        assert!(line["time_ns"].as_u64() >= Some(begun_ns));
        assert_eq!(receipts.after(0).expect("read"), [line]);
    }

    /// Segments are sealed and expire; the site takes everything in but the last few.
    fn lived(receipts: &mut Receipts, segments: u64) {
        for segment in 1..=segments {
            let sealed = receipt(ReceiptAct::Sealed, segment);
            receipts.keep(&log(), &sealed).expect("kept");
            if segment > 10 {
                let gone = receipt(ReceiptAct::Expired, segment - 10);
                receipts.keep(&log(), &gone).expect("kept");
            }
            if segment % 32 == 0 {
                receipts.taken(receipts.last - 5).expect("written");
            }
        }
    }

    #[test]
    fn receipts_of_what_is_gone_go_once_the_site_has_taken_them_in() {
        let place = Place::new("receipts-gone");
        let mut receipts = place.open();
        lived(&mut receipts, 1200);
        assert!(
            place.bytes() < 400 * (SPARE_LINES + 100),
            "{}",
            place.bytes()
        );
        let (last, taken) = (receipts.last, receipts.taken);
        receipts.write_anew().expect("written");
        let untaken: Vec<u64> = (taken + 1..=last).collect();
        let found = numbers(&receipts);
        assert!(found.ends_with(&untaken), "{found:?}");
        assert!(found.len() <= 10 + untaken.len(), "{found:?}");
        let again = place.open();
        let present = |receipts: &Receipts| -> Vec<u64> {
            receipts.told[&log()].present().map(|r| r.segment).collect()
        };
        assert_eq!(present(&again), (1191..=1200).collect::<Vec<u64>>());
        assert_eq!(again.last, last);
    }

    #[test]
    fn numbers_go_up_though_every_receipt_is_gone() {
        let place = Place::new("receipts-numbers");
        let mut receipts = place.open();
        receipts
            .keep(&log(), &receipt(ReceiptAct::Sealed, 1))
            .expect("kept");
        receipts
            .keep(&log(), &receipt(ReceiptAct::Expired, 1))
            .expect("kept");
        receipts.taken(2).expect("written");
        receipts.write_anew().expect("written");
        assert!(numbers(&receipts).is_empty());
        let mut again = place.open();
        let next = again
            .keep(&log(), &receipt(ReceiptAct::Sealed, 2))
            .expect("kept");
        assert_eq!(number_of(&next), Some(3));
    }

    #[test]
    fn a_new_folder_goes_on_above_what_the_site_has() {
        let place = Place::new("receipts-new");
        let mut receipts = place.open();
        receipts.taken(500).expect("written");
        drop(receipts);
        let mut again = place.open();
        let next = again
            .keep(&log(), &receipt(ReceiptAct::Sealed, 1))
            .expect("kept");
        assert_eq!(number_of(&next), Some(501));
    }

    #[test]
    fn what_was_told_of_a_copy_that_is_away_stays_when_another_is_made() {
        let place = Place::new("receipts-away");
        let mut receipts = place.open();
        for segment in 1..=3 {
            let sealed = receipt(ReceiptAct::Sealed, segment);
            receipts.keep(&log(), &sealed).expect("kept");
        }
        receipts.taken(3).expect("written");
        receipts
            .forget(&Part::log("v", "d1"))
            .expect("one begins there");
        let again = receipt(ReceiptAct::Sealed, 3);
        receipts.keep(&Part::log("v", "d1"), &again).expect("kept");
        receipts.write_anew().expect("written");
        let mut receipts = place.open();
        assert_eq!(numbers(&receipts), [1, 2, 3, 4]);
        assert_eq!(receipts.told[&log()].count(), 3);
        let ended: Vec<(ReceiptAct, u64)> = receipts
            .given_back(&log())
            .iter()
            .map(|told| (told.act, told.segment))
            .collect();
        assert_eq!(
            ended,
            [1, 2, 3].map(|segment| (ReceiptAct::Expired, segment))
        );
        receipts.taken(4).expect("written");
        receipts.forget(&log()).expect("lost");
        assert_eq!(numbers(&receipts), [4], "nobody ends what is not here");
    }

    #[test]
    fn base_segments_outlive_their_journal_and_end_with_their_directory() {
        let place = Place::new("receipts-base");
        let base = |dir: &Path| BasePlace {
            disk: Some("slow".to_owned()),
            dir: dir.to_owned(),
        };
        let disks = Disks::new(&place.0, &[], Some(&base(&place.0)), &[]);
        let lies = place.0.join("volumes/v");
        std::fs::create_dir_all(&lies).expect("a directory");
        let mut receipts = place.open();
        let part = Part::base("v", "slow", "v");
        let moved = Receipt {
            is_base: true,
            ..receipt(ReceiptAct::Moved, 9)
        };
        let line = receipts.keep(&part, &moved).expect("kept");
        assert_eq!(
            (&line["disk"], &line["base"]),
            (&"slow".into(), &"v".into())
        );
        let sealed = receipt(ReceiptAct::Sealed, 1);
        receipts.keep(&log(), &sealed).expect("kept");
        receipts.forget(&log()).expect("another begins there");
        receipts.forget(&Part::log("v", "slow")).expect("as well");
        receipts.taken(2).expect("written");
        receipts.write_anew().expect("written");
        let mut receipts = place.open();
        receipts.forget_gone(&disks).expect("looked");
        assert_eq!(receipts.gone_bases("v", &disks), []);
        assert!(!receipts.is_news(&part, &moved));
        std::fs::remove_dir(&lies).expect("gone");
        let gone = receipts.gone_bases("v", &disks);
        assert_eq!(gone, std::slice::from_ref(&part));
        let ended = receipts.given_back(&part);
        assert_eq!((ended[0].act, ended[0].segment), (ReceiptAct::Expired, 9));
        receipts.forget_gone(&disks).expect("its disk was replaced");
        assert!(place.open().is_news(&part, &moved));
    }

    #[test]
    fn a_copy_that_comes_back_is_told_of_anew_and_what_waits_is_not_lost_with_it() {
        let place = Place::new("receipts-back");
        let mut receipts = place.open();
        let sealed = receipt(ReceiptAct::Sealed, 1);
        receipts.keep(&log(), &sealed).expect("kept");
        receipts.forget(&log()).expect("written");
        assert!(
            place.open().is_news(&log(), &sealed),
            "the copy was deleted"
        );
        receipts.write_anew().expect("written");
        assert_eq!(numbers(&receipts), [1], "the site does not have it yet");
        assert!(
            place.open().is_news(&log(), &sealed),
            "the copy was deleted"
        );
        receipts.taken(1).expect("written");
        receipts.write_anew().expect("written");
        assert!(numbers(&place.open()).is_empty());
    }
}
