//! When a write counts as kept, and whom a new head must have fenced: named sets of copies.

/// A set of copies, one bit each.
pub type Copies = u32;

/// Copies of a volume at most; a contract asks for at most 3.
pub const COPIES_MAX: u32 = 8;

/// The names that contracts use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PolicyName {
    /// All copies of one site, which are all copies there are.
    Local,
    /// The first two copies are close and both needed; more are far and follow.
    Metro,
    Any2Of3,
    All,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("{name} is not a policy: local, metro, any-2-of-3 or all")]
    UnknownName { name: String },
    #[error("{policy:?} needs {needed} copies, there are {found}")]
    CopyCount {
        policy: PolicyName,
        needed: &'static str,
        found: u32,
    },
    #[error("copies {ack:b} could hold a write that a head which fenced {fence:b} never sees")]
    Disjoint { ack: Copies, fence: Copies },
    #[error("a policy without sets")]
    Empty,
}

impl PolicyName {
    pub fn parse(name: &str) -> Result<Self, PolicyError> {
        match name {
            "local" => Ok(Self::Local),
            "metro" => Ok(Self::Metro),
            "any-2-of-3" => Ok(Self::Any2Of3),
            "all" => Ok(Self::All),
            _ => Err(PolicyError::UnknownName {
                name: name.to_owned(),
            }),
        }
    }
}

/// Ack sets and fence sets; each of the former meets each of the latter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    ack_sets: Vec<Copies>,
    fence_sets: Vec<Copies>,
}

impl Policy {
    /// Check by enumeration that every ack set meets every fence set.
    pub fn new(ack_sets: Vec<Copies>, fence_sets: Vec<Copies>) -> Result<Self, PolicyError> {
        if ack_sets.is_empty() || fence_sets.is_empty() {
            return Err(PolicyError::Empty);
        }
        for &ack in &ack_sets {
            if let Some(&fence) = fence_sets.iter().find(|&&fence| ack & fence == 0) {
                return Err(PolicyError::Disjoint { ack, fence });
            }
        }
        Ok(Self {
            ack_sets,
            fence_sets,
        })
    }

    /// The policy of a name for `count` copies.
    pub fn named(name: PolicyName, count: u32) -> Result<Self, PolicyError> {
        let wrong = |needed| {
            Err(PolicyError::CopyCount {
                policy: name,
                needed,
                found: count,
            })
        };
        if count == 0 || count > COPIES_MAX {
            return wrong("1 to 8");
        }
        let all = (1 << count) - 1;
        let singles = (0..count).map(|copy| 1 << copy).collect();
        match name {
            PolicyName::Metro if count < 2 => wrong("2 or more"),
            PolicyName::Metro => Self::new(vec![0b11], vec![0b01, 0b10]),
            PolicyName::Any2Of3 if count != 3 => wrong("3"),
            PolicyName::Any2Of3 => {
                let pairs = vec![0b011, 0b101, 0b110];
                Self::new(pairs.clone(), pairs)
            }
            PolicyName::Local | PolicyName::All => Self::new(vec![all], singles),
        }
    }

    pub fn ack_sets(&self) -> &[Copies] {
        &self.ack_sets
    }

    pub fn fence_sets(&self) -> &[Copies] {
        &self.fence_sets
    }

    /// The same sets by other numbers: copy `i` is `numbers[i]`, or nobody any more.
    #[must_use]
    pub fn renumbered(&self, numbers: &[Option<u32>]) -> Self {
        let renumber = |set: &Copies| {
            let members = (0..u32::BITS).filter(|copy| set >> copy & 1 == 1);
            members.fold(0, |renumbered, copy| {
                let number = numbers.get(copy as usize).copied().flatten();
                renumbered | 1 << number.unwrap_or(COPIES_MAX + copy % COPIES_MAX)
            })
        };
        Self {
            ack_sets: self.ack_sets.iter().map(renumber).collect(),
            fence_sets: self.fence_sets.iter().map(renumber).collect(),
        }
    }

    /// True when `fenced` copies suffice for a new head.
    pub fn is_fenced(&self, fenced: Copies) -> bool {
        self.fence_sets.iter().any(|set| fenced & set == *set)
    }

    /// The largest value that a full ack set has reached; `values` by copy.
    pub fn reached(&self, values: &[u64]) -> u64 {
        let least = |set: &Copies| {
            let members = values
                .iter()
                .zip(0u32..)
                .filter(|(_, copy)| set >> copy & 1 == 1);
            members.map(|(value, _)| *value).min().unwrap_or(0)
        };
        let complete = |set: &&Copies| u32::BITS - set.leading_zeros() <= len(values);
        self.ack_sets
            .iter()
            .filter(complete)
            .map(least)
            .max()
            .unwrap_or(0)
    }
}

fn len(values: &[u64]) -> u32 {
    u32::try_from(values.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_policy_intersects() -> Result<(), PolicyError> {
        for count in 1..=COPIES_MAX {
            Policy::named(PolicyName::All, count)?;
            Policy::named(PolicyName::Local, count)?;
        }
        Policy::named(PolicyName::Metro, 3)?;
        Policy::named(PolicyName::Any2Of3, 3)?;
        Ok(())
    }

    #[test]
    fn sets_that_do_not_meet_are_refused() {
        let refused = Policy::new(vec![0b011, 0b100], vec![0b011]);
        assert_eq!(
            refused,
            Err(PolicyError::Disjoint {
                ack: 0b100,
                fence: 0b011
            })
        );
    }

    #[test]
    fn by_other_numbers_the_same_copies_decide_and_who_is_gone_never_does()
    -> Result<(), PolicyError> {
        let former = Policy::named(PolicyName::Any2Of3, 3)?.renumbered(&[Some(1), None, Some(0)]);
        assert!(former.is_fenced(0b011));
        assert!(!former.is_fenced(0b001) && !former.is_fenced(0b110));
        Ok(())
    }

    #[test]
    fn a_pair_of_three_decides() -> Result<(), PolicyError> {
        let policy = Policy::named(PolicyName::Any2Of3, 3)?;
        assert_eq!(policy.reached(&[9, 4, 7]), 7);
        assert!(policy.is_fenced(0b101) && !policy.is_fenced(0b100));
        assert_eq!(Policy::named(PolicyName::Metro, 3)?.reached(&[9, 4, 7]), 4);
        assert_eq!(Policy::named(PolicyName::All, 3)?.reached(&[9, 4, 0]), 0);
        Ok(())
    }
}
