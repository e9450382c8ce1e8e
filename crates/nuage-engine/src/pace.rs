//! Background work at a bounded rate: a bucket that fills with time.

/// How much of a second's share may be spent at once: daemons look ten times a second.
const BURST_PARTS: u64 = 5;

/// Bytes that a class of background work may take.
#[derive(Debug, Clone)]
pub struct Pace {
    bytes_per_s: u64,
    /// Below zero: spent ahead.
    there: i128,
    filled_ns: u64,
}

impl Pace {
    pub fn new(bytes_per_s: u64) -> Self {
        Self {
            bytes_per_s: bytes_per_s.max(1),
            there: 0,
            filled_ns: 0,
        }
    }

    /// True when something may be done now.
    pub fn is_due(&mut self, now_ns: u64) -> bool {
        let passed_ns = now_ns.saturating_sub(self.filled_ns);
        self.filled_ns = now_ns;
        let full = i128::from(self.bytes_per_s / BURST_PARTS + 1);
        let grown = i128::from(self.bytes_per_s) * i128::from(passed_ns) / 1_000_000_000;
        self.there = (self.there + grown).min(full);
        self.there > 0
    }

    /// It was done.
    pub fn spend(&mut self, bytes: u64) {
        self.there -= i128::from(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::Pace;

    #[test]
    fn a_second_is_worth_its_bytes_however_often_one_looks() {
        for step_ns in [1_000_000, 10_000_000, 100_000_000] {
            let mut pace = Pace::new(1 << 20);
            let (mut spent, mut now_ns) = (0u64, 0u64);
            while now_ns < 10_000_000_000 {
                now_ns += step_ns;
                while pace.is_due(now_ns) {
                    pace.spend(4096);
                    spent += 4096;
                }
            }
            assert!((9 << 20..=11 << 20).contains(&spent), "{step_ns}: {spent}");
        }
    }
}
