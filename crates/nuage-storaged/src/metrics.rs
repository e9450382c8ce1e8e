//! Counters and gauges in Prometheus' text format.

use nuage_engine::Lag;
use nuage_io::doors::Counters;
use std::fmt::Write as _;

/// One volume as the metrics show it.
pub struct VolumeFigures {
    pub volume: String,
    pub counters: Counters,
    pub size_bytes: u64,
    pub mapped_bytes: u64,
    pub journal_bytes: u64,
    pub sequence: u64,
    pub durable_sequence: u64,
    pub history_bytes: u64,
    pub horizon_sequence: u64,
    pub history_full: bool,
    /// No write is answered: a copy is at the bound of its lag.
    pub held: bool,
    pub copies: Vec<CopyFigures>,
    pub sessions: usize,
    pub scrub: ScrubFigures,
}

/// How far a copy has looked itself over.
#[derive(Default)]
pub struct ScrubFigures {
    /// When the last whole pass ended, in seconds since 1970; 0: none yet.
    pub last_s: u64,
    pub done_bytes: u64,
    pub found: u64,
    pub mended: u64,
    pub lost_blocks: u64,
    pub quarantine_bytes: u64,
}

/// A copy elsewhere.
pub struct CopyFigures {
    pub node: String,
    pub lag: Lag,
}

type Column = (
    &'static str,
    &'static str,
    &'static str,
    fn(&VolumeFigures) -> u64,
);

const COLUMNS: &[Column] = &[
    ("reads_total", "counter", "Read commands", |figures| {
        figures.counters.reads
    }),
    ("writes_total", "counter", "Write commands", |figures| {
        figures.counters.writes
    }),
    ("flushes_total", "counter", "Flush commands", |figures| {
        figures.counters.flushes
    }),
    (
        "other_operations_total",
        "counter",
        "Other commands that reached the volume",
        |figures| figures.counters.others,
    ),
    ("read_bytes_total", "counter", "Bytes read", |figures| {
        figures.counters.read_bytes
    }),
    (
        "written_bytes_total",
        "counter",
        "Bytes written",
        |figures| figures.counters.written_bytes,
    ),
    (
        "failures_total",
        "counter",
        "Commands the volume failed",
        |figures| figures.counters.failures,
    ),
    (
        "size_bytes",
        "gauge",
        "Size that initiators see",
        |figures| figures.size_bytes,
    ),
    ("mapped_bytes", "gauge", "Bytes that hold data", |figures| {
        figures.mapped_bytes
    }),
    (
        "journal_bytes",
        "gauge",
        "Bytes of segments on disk",
        |figures| figures.journal_bytes,
    ),
    ("sequence", "gauge", "Last record", |figures| {
        figures.sequence
    }),
    (
        "durable_sequence",
        "gauge",
        "Last durable record",
        |figures| figures.durable_sequence,
    ),
    (
        "history_bytes",
        "gauge",
        "Bytes of segments kept for history",
        |figures| figures.history_bytes,
    ),
    (
        "horizon_sequence",
        "gauge",
        "Oldest record that can be gone back to",
        |figures| figures.horizon_sequence,
    ),
    (
        "history_full",
        "gauge",
        "1: a strict history holds writers up",
        |figures| u64::from(figures.history_full),
    ),
    (
        "answers_held",
        "gauge",
        "1: writes wait for a copy that is too far behind",
        |figures| u64::from(figures.held),
    ),
    ("sessions", "gauge", "iSCSI sessions", |figures| {
        figures.sessions as u64
    }),
    (
        "scrub_last_seconds",
        "gauge",
        "When the copy here was last read whole",
        |figures| figures.scrub.last_s,
    ),
    (
        "scrub_done_bytes",
        "gauge",
        "Bytes read by the pass that runs",
        |figures| figures.scrub.done_bytes,
    ),
    (
        "damage_found_total",
        "counter",
        "Damaged blocks and headers found here",
        |figures| figures.scrub.found,
    ),
    (
        "damage_mended_total",
        "counter",
        "Of those, written anew",
        |figures| figures.scrub.mended,
    ),
    (
        "lost_blocks",
        "gauge",
        "Blocks that no copy has",
        |figures| figures.scrub.lost_blocks,
    ),
    (
        "quarantine_bytes",
        "gauge",
        "Bytes of its log that the copy has put aside for people",
        |figures| figures.scrub.quarantine_bytes,
    ),
];

type CopyColumn = (&'static str, &'static str, fn(&Lag) -> u64);

const COPY_COLUMNS: &[CopyColumn] = &[
    (
        "lag_milliseconds",
        "Age of the oldest record a copy lacks",
        |lag| lag.age_ns / 1_000_000,
    ),
    ("lag_bytes", "Bytes of log a copy lacks", |lag| lag.bytes),
    ("lag_writes", "Records a copy lacks", |lag| lag.records),
];

/// The text of all volumes.
pub fn text(figures: &[VolumeFigures]) -> String {
    let mut text = String::new();
    for (name, kind, help, value) in COLUMNS {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "# HELP nuage_volume_{name} {help}.\n# TYPE nuage_volume_{name} {kind}"
        );
        for figures in figures {
            let _ = writeln!(
                text,
                "nuage_volume_{name}{{volume=\"{}\"}} {}",
                figures.volume,
                value(figures)
            );
        }
    }
    for (name, help, value) in COPY_COLUMNS {
        let _ = writeln!(
            text,
            "# HELP nuage_copy_{name} {help}.\n# TYPE nuage_copy_{name} gauge"
        );
        for figures in figures {
            for copy in &figures.copies {
                let _ = writeln!(
                    text,
                    "nuage_copy_{name}{{volume=\"{}\",node=\"{}\"}} {}",
                    figures.volume,
                    copy.node,
                    value(&copy.lag)
                );
            }
        }
    }
    text
}
