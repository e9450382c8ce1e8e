//! Why a request is not done.

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
    pub(super) fn name(self) -> &'static str {
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
