//! What is asked for a volume's data: to make one, and to show a past moment.

use super::Credential;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// The journaled engine.
    #[default]
    Journal,
    /// A plain file: no history.
    File,
    /// Forgotten with the process.
    Memory,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    pub seconds: u64,
    pub bytes: u64,
    /// Writers wait rather than lose history inside the window.
    #[serde(default)]
    pub strict: bool,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            seconds: 24 * 3600,
            bytes: 64 << 30,
            strict: false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    pub volume: String,
    pub size_bytes: u64,
    #[serde(default = "block_4096")]
    pub logical_block_bytes: u32,
    /// 32 hexadecimal digits; chosen at random when absent.
    #[serde(default)]
    pub uuid: Option<String>,
    #[serde(default)]
    pub backend: Backend,
    #[serde(default)]
    pub retention: Retention,
    /// Blocks lie encrypted under the data key of the `IaaS` (`set_key`).
    #[serde(default)]
    pub encrypted: bool,
    /// The disk it lies on, by name; the first one's is empty.
    #[serde(default, skip_serializing)]
    pub disk: String,
    /// Other copies are older: this one vouches for nothing until a head says that it has everything.
    #[serde(default, skip_serializing)]
    pub joins: bool,
    /// With `joins`: the volume's epoch; heads of earlier ones find no ear here.
    #[serde(default, skip_serializing)]
    pub epoch: u64,
}

fn block_4096() -> u32 {
    4096
}

/// A moment of a volume: one of the three.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    Sequence(u64),
    /// Microseconds since 1970.
    TimeUs(u64),
    /// The last mark of that name.
    Mark(String),
}

/// A new volume that begins with the past of another; same properties but these.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneVolume {
    pub volume: String,
    pub moment: Moment,
    pub clone: String,
    #[serde(default)]
    pub uuid: Option<String>,
    #[serde(default)]
    pub retention: Option<Retention>,
    /// The clone has been written to elsewhere: this copy of it vouches for nothing until a head says so.
    #[serde(default)]
    pub joins: bool,
    /// With `joins`: the clone's epoch; heads of earlier ones find no ear here.
    #[serde(default)]
    pub epoch: u64,
}

/// A past moment to be served.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct At {
    pub volume: String,
    pub moment: Moment,
    #[serde(default)]
    pub iqn: Option<String>,
    #[serde(default)]
    pub nbd: Option<String>,
    /// Absent: nobody is asked who they are. Empty: nobody is let in.
    #[serde(default)]
    pub chap: Option<Vec<Credential>>,
    #[serde(default)]
    pub initiators: Vec<String>,
    /// Closed by itself after so long; absent: with its head.
    #[serde(default)]
    pub seconds: Option<u64>,
}
