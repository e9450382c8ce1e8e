//! The control protocol: one JSON object a line (`docs/protocols/storaged.md`).

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A request; `id` comes back in the answer.
#[derive(Debug, Deserialize)]
pub struct Envelope {
    pub id: Value,
    #[serde(flatten)]
    pub request: Request,
}

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

/// Something that `Debug` does not show.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Secret")
    }
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

/// Every request by its `op`.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    CreateVolume(CreateVolume),
    CreateReplica(CreateVolume),
    DeleteVolume {
        volume: String,
    },
    OpenHead(OpenHead),
    CloseHead {
        volume: String,
    },
    SetChap(SetChap),
    StandBy(StandBy),
    EndStandby {
        volume: String,
    },
    SetPortGroups {
        volume: String,
        own: u16,
        groups: Vec<PortGroup>,
    },
    Resize {
        volume: String,
        size_bytes: u64,
    },
    List,
    Status {
        volume: String,
    },
    Flush {
        volume: String,
    },
    FillFromImage {
        volume: String,
        path: String,
    },
    History {
        volume: String,
        #[serde(default)]
        after: u64,
        #[serde(default = "history_count")]
        count: usize,
    },
    At(At),
    CloseAt {
        view: String,
    },
    Clone(CloneVolume),
    /// The sequence number that a moment is, and the size at it.
    Resolve {
        volume: String,
        moment: Moment,
    },
    /// What a view has that was not so after `since`; without it, all that it has.
    Changed {
        view: String,
        #[serde(default)]
        since: Option<u64>,
        #[serde(default)]
        after: u64,
    },
    ReadView {
        view: String,
        offset: u64,
        length: u32,
    },
    Write {
        volume: String,
        offset: u64,
        /// Hexadecimal.
        data: Secret,
    },
    VerifyChain {
        volume: String,
        #[serde(default)]
        after: u64,
    },
    /// The data key, 64 hexadecimal digits, and those before it: kept in memory only.
    SetKey {
        key: Secret,
        #[serde(default)]
        earlier: Vec<Secret>,
    },
    ForgetKey,
    SetLimits {
        volume: String,
        limits: Limits,
    },
    SetLagBound {
        volume: String,
        lag_bound: LagBound,
    },
    /// What all volumes of this daemon may take of a disk together.
    SetShare {
        limits: Limits,
        #[serde(default)]
        disk: String,
    },
    /// Read all of the copy here at once, to find damage.
    Scrub {
        volume: String,
    },
    Rollback {
        volume: String,
        moment: Moment,
        /// Also while initiators are logged in: they see other data from one command to the next.
        #[serde(default)]
        force: bool,
    },
    Mark {
        volumes: Vec<String>,
        name: String,
    },
    Receipts {
        #[serde(default)]
        after: u64,
    },
    Metrics,
    Shutdown,
}

fn history_count() -> usize {
    256
}

/// Why a request is refused; the codes are part of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    InvalidRequest,
    NotFound,
    Conflict,
    StaleEpoch,
    NotSupported,
    NoSpace,
    Io,
    Unavailable,
    Draining,
    Locked,
    Lost,
}

impl Code {
    fn name(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::StaleEpoch => "stale_epoch",
            Self::NotSupported => "not_supported",
            Self::NoSpace => "no_space",
            Self::Io => "io",
            Self::Unavailable => "unavailable",
            Self::Draining => "draining",
            Self::Locked => "locked",
            Self::Lost => "lost",
        }
    }
}

/// A refusal: its code and what was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub code: Code,
    pub message: String,
}

impl Refusal {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// The line of an answer.
pub fn answer(id: &Value, result: Result<Value, Refusal>) -> Vec<u8> {
    let value = match result {
        Ok(value) => json!({"id": id, "ok": value}),
        Err(refusal) => json!({
            "id": id,
            "error": {"code": refusal.code.name(), "message": refusal.message},
        }),
    };
    value.to_string().into_bytes()
}

/// Read a line; the id is given back even where the rest cannot be understood.
pub fn parse(line: &[u8]) -> Result<Envelope, (Value, Refusal)> {
    serde_json::from_slice(line).map_err(|error| {
        let id = serde_json::from_slice::<Value>(line)
            .ok()
            .and_then(|value| value.get("id").cloned())
            .unwrap_or(Value::Null);
        // The error of the parser names fields and positions, never values of secrets.
        (id, Refusal::new(Code::InvalidRequest, error.to_string()))
    })
}
