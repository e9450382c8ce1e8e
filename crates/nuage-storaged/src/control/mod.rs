//! The control protocol: one JSON object a line (`docs/protocols/storaged.md`).
//!
//! Here is every request and how lines are read and answered; what a request of many fields says is in the modules.

mod heads;
mod refusal;
mod volumes;

use serde::Deserialize;
use serde_json::{Value, json};

pub use heads::{
    Ack, Credential, LagBound, Limits, OpenHead, PortGroup, Replica, SetChap, StandBy,
};
pub use refusal::{Code, Refusal};
pub use volumes::{At, Backend, CloneVolume, CreateVolume, Moment, Retention};

/// A request; `id` comes back in the answer.
#[derive(Debug, Deserialize)]
pub struct Envelope {
    pub id: Value,
    #[serde(flatten)]
    pub request: Request,
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
    /// How much of its past the copy here keeps from now on.
    SetRetention {
        volume: String,
        retention: Retention,
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
    /// The site has taken receipts in, up to this number.
    ReceiptsTaken {
        number: u64,
    },
    Metrics,
    Shutdown,
}

fn history_count() -> usize {
    256
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
