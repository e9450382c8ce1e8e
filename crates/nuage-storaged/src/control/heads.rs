//! What is asked for a head: how a volume is led, who may use it, how fast, and where else a way to it is.

use serde::Deserialize;

/// A name and its secret; `Debug` does not show the secret.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    pub name: String,
    pub secret: String,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Credential")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenHead {
    pub volume: String,
    pub epoch: u64,
    #[serde(default = "local_policy")]
    pub policy: String,
    /// Other IO-nodes that hold a replica; empty: a single copy.
    #[serde(default)]
    pub replicas: Vec<Replica>,
    /// Place of the own copy among all: `metro` needs the first two.
    #[serde(default)]
    pub position: usize,
    /// iSCSI name; absent: no iSCSI.
    #[serde(default)]
    pub iqn: Option<String>,
    /// Absent: nobody is asked who they are. Empty: nobody is let in.
    #[serde(default)]
    pub chap: Option<Vec<Credential>>,
    /// Our own proof, for mutual CHAP.
    #[serde(default)]
    pub chap_own: Option<Credential>,
    #[serde(default)]
    pub initiators: Vec<String>,
    /// NBD export name; absent: no NBD.
    #[serde(default)]
    pub nbd: Option<String>,
    #[serde(default)]
    pub ack: Ack,
    #[serde(default)]
    pub read_only: bool,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub lag_bound: LagBound,
    /// The owner's word: go on with what the copies have, though it is known not to be all.
    #[serde(default)]
    pub accepts_loss: bool,
    /// The copies before their set was changed, until a head is ready with the present ones.
    #[serde(default)]
    pub former: Option<FormerSet>,
}

/// Copies that acknowledged together, and by what policy.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FormerSet {
    pub policy: String,
    /// Names, our own among them, in the order in which `policy` counts them.
    pub nodes: Vec<String>,
}

/// When a write is answered (docs/protocols/storaged.md §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ack {
    /// On stable storage of a full ack set: WCE=0.
    #[default]
    Durable,
    /// In the memory of a full ack set; FLUSH and FUA on stable storage: WCE=1.
    Memory,
    /// In this head's memory: only where it dies with the initiator.
    WriteBack,
}

fn local_policy() -> String {
    "local".to_owned()
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replica {
    pub name: String,
    pub site: String,
    pub address: String,
}

/// Operations and bytes a second; 0: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    #[serde(default)]
    pub operations_per_s: u64,
    #[serde(default)]
    pub bytes_per_s: u64,
}

/// How far the copies on `nodes` may be behind; 0 seconds: as they can.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LagBound {
    #[serde(default)]
    pub seconds: u64,
    /// Writers stop also while such a copy is cut off.
    #[serde(default)]
    pub strict: bool,
    #[serde(default)]
    pub nodes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetChap {
    pub volume: String,
    /// Absent: nobody is asked who they are. Empty: nobody is let in.
    #[serde(default)]
    pub chap: Option<Vec<Credential>>,
    #[serde(default)]
    pub chap_own: Option<Credential>,
    #[serde(default)]
    pub initiators: Vec<String>,
}

/// A path to a volume that is led elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StandBy {
    pub volume: String,
    pub iqn: String,
    /// Absent: nobody is asked who they are. Empty: nobody is let in.
    #[serde(default)]
    pub chap: Option<Vec<Credential>>,
    #[serde(default)]
    pub chap_own: Option<Credential>,
    #[serde(default)]
    pub initiators: Vec<String>,
    pub own: u16,
    pub groups: Vec<PortGroup>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortGroup {
    pub id: u16,
    pub state: String,
}
