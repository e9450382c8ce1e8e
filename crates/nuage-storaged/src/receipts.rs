//! Receipts of segments sealed, moved and expired: kept in a file, streamed to who asks.
//!
//! The daemon signs nothing: the IO-node agent does, and it may be away while a segment is sealed.
//! So receipts get a dense number and stay in `receipts.jsonl`; a client names the last it has.

use crate::catalogue::hex;
use nuage_journal::{Receipt, ReceiptAct};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};

pub struct Receipts {
    path: PathBuf,
    file: File,
    last: u64,
    /// Control clients that follow.
    pub followers: Vec<u32>,
}

impl Receipts {
    pub fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join("receipts.jsonl");
        let mut last = 0;
        if let Ok(file) = File::open(&path) {
            for line in BufReader::new(file).lines() {
                // A torn last line is followed by a fresh one; it names a receipt nobody has seen.
                if let Ok(value) = serde_json::from_str::<Value>(&line?) {
                    last = last.max(value["number"].as_u64().unwrap_or(0));
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
            followers: Vec::new(),
        })
    }

    /// Keep a receipt; gives its line.
    pub fn keep(&mut self, volume: &str, disk: &str, receipt: &Receipt) -> io::Result<Value> {
        self.last += 1;
        let act = match receipt.act {
            ReceiptAct::Sealed => "sealed",
            ReceiptAct::Moved => "moved",
            ReceiptAct::Expired => "expired",
        };
        let value = json!({
            "number": self.last,
            "act": act,
            "volume": volume,
            "disk": disk,
            "uuid": hex(&receipt.volume),
            "segment": receipt.segment,
            "first_sequence": receipt.first_seq,
            "last_sequence": receipt.last_seq,
            "chain": hex(&receipt.chain),
            "time_ns": receipt.time_ns,
            "bytes": receipt.bytes,
        });
        writeln!(self.file, "{value}")?;
        // Before anybody hears of it: a number that was told is never given again.
        self.file.sync_data()?;
        Ok(value)
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
