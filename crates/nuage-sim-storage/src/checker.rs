//! What a client may see: each block is a register.

use std::collections::HashMap;

/// Values a block may have: the last acknowledged one, and those whose fate nobody knows.
#[derive(Debug, Clone)]
struct Register {
    candidates: Vec<u64>,
    writing: Option<u64>,
    version: u64,
    /// Reads under way: what each may return, and the version it began at.
    reads: HashMap<u64, (Vec<u64>, u64)>,
}

impl Default for Register {
    fn default() -> Self {
        Self {
            candidates: vec![0],
            writing: None,
            version: 0,
            reads: HashMap::new(),
        }
    }
}

/// Checks one client that has one write per block at a time, and any number of reads.
#[derive(Debug, Default)]
pub struct Checker {
    registers: HashMap<u64, Register>,
}

impl Checker {
    fn register(&mut self, lba: u64) -> &mut Register {
        self.registers.entry(lba).or_default()
    }

    pub fn is_writing(&self, lba: u64) -> bool {
        self.registers
            .get(&lba)
            .is_some_and(|register| register.writing.is_some())
    }

    pub fn write_begins(&mut self, lba: u64, value: u64) {
        let register = self.register(lba);
        register.writing = Some(value);
        register.version += 1;
        for (allowed, _) in register.reads.values_mut() {
            allowed.push(value);
        }
    }

    pub fn write_acked(&mut self, lba: u64) {
        let register = self.register(lba);
        register.version += 1;
        if let Some(value) = register.writing.take() {
            register.candidates = vec![value];
        }
    }

    /// The head is gone or refused: the write may have happened or not.
    pub fn write_lost(&mut self, lba: u64) {
        let register = self.register(lba);
        register.version += 1;
        if let Some(value) = register.writing.take() {
            register.candidates.push(value);
        }
    }

    pub fn read_begins(&mut self, lba: u64, tag: u64) {
        let register = self.register(lba);
        let mut allowed = register.candidates.clone();
        allowed.extend(register.writing);
        let version = register.version;
        register.reads.insert(tag, (allowed, version));
    }

    /// A read returned `value`; the allowed ones when no order of events explains it.
    pub fn read_ends(&mut self, lba: u64, tag: u64, value: u64) -> Result<(), Vec<u64>> {
        let register = self.register(lba);
        let Some((allowed, version)) = register.reads.remove(&tag) else {
            return Ok(());
        };
        if !allowed.contains(&value) {
            return Err(allowed);
        }
        // Nothing was written meanwhile: what was seen is what the block is, for good.
        if register.version == version && register.writing.is_none() {
            register.candidates = vec![value];
            for (allowed, begun) in register.reads.values_mut() {
                if *begun == version {
                    *allowed = vec![value];
                }
            }
        }
        Ok(())
    }

    pub fn read_lost(&mut self, lba: u64, tag: u64) {
        self.register(lba).reads.remove(&tag);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_read_is_found() {
        let mut checker = Checker::default();
        checker.write_begins(1, 10);
        checker.read_begins(1, 7);
        checker.write_acked(1);
        assert_eq!(
            checker.read_ends(1, 7, 0),
            Ok(()),
            "it began before the acknowledgement"
        );
        checker.read_begins(1, 8);
        assert!(checker.read_ends(1, 8, 0).is_err());
    }

    #[test]
    fn a_lost_write_may_show_or_not_but_not_both() {
        let mut checker = Checker::default();
        checker.write_begins(1, 10);
        checker.write_lost(1);
        checker.read_begins(1, 1);
        assert_eq!(checker.read_ends(1, 1, 0), Ok(()));
        checker.read_begins(1, 2);
        assert!(checker.read_ends(1, 2, 10).is_err());
    }
}
