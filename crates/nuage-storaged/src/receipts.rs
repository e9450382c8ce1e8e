//! Receipts of segments sealed, moved and expired: kept in a file, streamed to who asks.
//!
//! The daemon signs nothing: the IO-node agent does, and it may be away while a segment is sealed.
//! So receipts get a dense number and stay in `receipts.jsonl`; a client names the last it has.
//! What was told of a copy is compared with what lies there now and then: see `nuage_journal::Told`.

use crate::catalogue::{hex, now_ns, unhex};
use crate::daemon::Storaged;
use nuage_io::serve::Context;
use nuage_journal::{Receipt, ReceiptAct, Store, Told};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often what was told of a copy is compared with what lies there.
const COMPARE_EVERY: Duration = Duration::from_secs(60);

pub struct Receipts {
    path: PathBuf,
    file: File,
    last: u64,
    told: BTreeMap<String, Told>,
    /// When each open copy was compared last.
    compared: BTreeMap<String, Instant>,
    /// Control clients that follow.
    pub followers: Vec<u32>,
}

impl Receipts {
    pub fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join("receipts.jsonl");
        let mut last = 0;
        let mut told: BTreeMap<String, Told> = BTreeMap::new();
        if let Ok(file) = File::open(&path) {
            for line in BufReader::new(file).lines() {
                // A torn last line is followed by a fresh one; it names a receipt nobody has seen.
                if let Ok(value) = serde_json::from_str::<Value>(&line?) {
                    last = last.max(value["number"].as_u64().unwrap_or(0));
                    if let Some((volume, receipt)) = parsed(&value) {
                        told.entry(volume).or_default().note(&receipt);
                    }
                }
            }
        }
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        file.write_all(b"\n")?;
        file.sync_data()?;
        File::open(dir)?.sync_all()?;
        Ok(Self {
            path,
            file,
            last,
            told,
            compared: BTreeMap::new(),
            followers: Vec::new(),
        })
    }

    /// Keep a receipt, as of now: a copy made anew has old writes since today. Gives its line.
    pub fn keep(&mut self, volume: &str, disk: &str, receipt: &Receipt) -> io::Result<Value> {
        self.last += 1;
        let value = json!({
            "number": self.last,
            "act": word(receipt.act),
            "volume": volume,
            "disk": disk,
            "uuid": hex(&receipt.volume),
            "segment": receipt.segment,
            "first_sequence": receipt.first_seq,
            "last_sequence": receipt.last_seq,
            "chain": hex(&receipt.chain),
            "time_ns": now_ns(),
            "bytes": receipt.bytes,
        });
        writeln!(self.file, "{value}")?;
        // Before anybody hears of it: a number that was told is never given again.
        self.file.sync_data()?;
        self.told
            .entry(volume.to_owned())
            .or_default()
            .note(receipt);
        Ok(value)
    }

    /// Whether a receipt tells what has not been told.
    pub fn is_news(&self, volume: &str, receipt: &Receipt) -> bool {
        match self.told.get(volume) {
            Some(told) => told.is_news(receipt),
            None => receipt.act != ReceiptAct::Expired,
        }
    }

    /// The volume is deleted here: who deleted it tells what became of its segments.
    pub fn forget(&mut self, volume: &str) {
        self.told.remove(volume);
        self.compared.remove(volume);
    }

    /// Receipts with a number above `after`, oldest first.
    pub fn after(&self, after: u64) -> io::Result<Vec<Value>> {
        let mut found = Vec::new();
        for line in BufReader::new(File::open(&self.path)?).lines() {
            if let Ok(value) = serde_json::from_str::<Value>(&line?)
                && value["number"]
                    .as_u64()
                    .is_some_and(|number| number > after)
            {
                found.push(value);
            }
        }
        Ok(found)
    }
}

fn word(act: ReceiptAct) -> &'static str {
    match act {
        ReceiptAct::Sealed => "sealed",
        ReceiptAct::Moved => "moved",
        ReceiptAct::Expired => "expired",
    }
}

/// A line of the file, read back.
fn parsed(value: &Value) -> Option<(String, Receipt)> {
    let number = |field: &str| value[field].as_u64();
    let acts = [ReceiptAct::Sealed, ReceiptAct::Moved, ReceiptAct::Expired];
    let act = acts.into_iter().find(|act| value["act"] == word(*act))?;
    let receipt = Receipt {
        act,
        volume: unhex(value["uuid"].as_str()?)?,
        segment: number("segment")?,
        first_seq: number("first_sequence")?,
        last_seq: number("last_sequence")?,
        chain: unhex(value["chain"].as_str()?)?,
        bytes: number("bytes")?,
    };
    Some((value["volume"].as_str()?.to_owned(), receipt))
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
            let told = self.receipts.told.entry(volume.clone()).or_default();
            for receipt in told.missing(&present) {
                self.keep_receipt(&volume, &receipt, context);
            }
            self.receipts.compared.insert(volume, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_tells_when_its_act_was_and_not_when_the_writes_were() {
        let dir = std::env::temp_dir().join(format!("nuage-receipts-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a place");
        let mut receipts = Receipts::open(&dir).expect("a fresh file");
        let begun_ns = now_ns();
        let written_long_ago = Receipt {
            act: ReceiptAct::Expired,
            volume: [1; 16],
            segment: 1,
            first_seq: 1,
            last_seq: 2,
            chain: [3; 32],
            bytes: 4096,
        };
        let line = receipts.keep("v", "d0", &written_long_ago).expect("kept");
        assert!(line["time_ns"].as_u64() >= Some(begun_ns));
        assert_eq!(receipts.after(0).expect("read"), [line]);
        std::fs::remove_dir_all(&dir).expect("gone");
    }
}
