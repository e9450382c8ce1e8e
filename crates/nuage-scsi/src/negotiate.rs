//! Operational parameters of a session (RFC 7143 §13) and how each key is settled.

use crate::text::Pairs;

/// Largest data segment we take.
pub const RECEIVE_BYTES_MAX: usize = 256 * 1024;
/// Largest sequence of Data-Out or Data-In we agree to.
const BURST_BYTES_MAX: u32 = 1024 * 1024;
/// Largest unsolicited data of one command: with the command window it bounds what a session can
/// make us hold unasked.
const FIRST_BURST_BYTES_MAX: u32 = 256 * 1024;
/// Length that the initiator takes if it does not say (RFC 7143 §13.12).
const PEER_RECEIVE_BYTES_DEFAULT: u32 = 8192;

/// What both sides agreed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    pub header_digest: bool,
    pub data_digest: bool,
    /// The initiator's `MaxRecvDataSegmentLength`.
    pub peer_receive_bytes: usize,
    pub burst_bytes: usize,
    pub first_burst_bytes: usize,
    pub initial_r2t: bool,
    pub immediate_data: bool,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            header_digest: false,
            data_digest: false,
            peer_receive_bytes: PEER_RECEIVE_BYTES_DEFAULT as usize,
            burst_bytes: 262_144,
            first_burst_bytes: 65_536,
            initial_r2t: true,
            immediate_data: true,
        }
    }
}

/// The answer to one key, or a value that cannot be.
enum Settled {
    Value(String),
    /// Declared by the other side, no answer.
    Silent,
    Refused,
}

fn number(value: &str) -> Option<u32> {
    match value
        .strip_prefix("0x")
        .or_else(|| value.strip_prefix("0X"))
    {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    }
}

fn smaller(value: &str, own: u32, low: u32, high: u32) -> Result<u32, ()> {
    match number(value) {
        Some(theirs) if (low..=high).contains(&theirs) => Ok(theirs.min(own)),
        _ => Err(()),
    }
}

fn boolean(value: &str) -> Result<bool, ()> {
    match value {
        "Yes" => Ok(true),
        "No" => Ok(false),
        _ => Err(()),
    }
}

fn yes_no(value: bool) -> Settled {
    Settled::Value(if value { "Yes" } else { "No" }.to_owned())
}

/// The first of the list that we speak; `None` when nothing fits.
fn digest(value: &str) -> Result<bool, ()> {
    value
        .split(',')
        .find_map(|item| match item {
            "CRC32C" => Some(true),
            "None" => Some(false),
            _ => None,
        })
        .ok_or(())
}

impl Parameters {
    /// Settle the keys of the initiator that are ours to settle and answer them in `answers`.
    pub fn settle(&mut self, key: &str, value: &str, answers: &mut Pairs) {
        match self.settle_key(key, value) {
            Ok(Settled::Value(answer)) => answers.push(key, answer),
            Ok(Settled::Silent) => {}
            Ok(Settled::Refused) | Err(()) => answers.push(key, "Reject"),
        }
    }

    fn settle_key(&mut self, key: &str, value: &str) -> Result<Settled, ()> {
        let text = |number: u32| Settled::Value(number.to_string());
        Ok(match key {
            "HeaderDigest" => {
                self.header_digest = digest(value)?;
                Settled::Value(if self.header_digest { "CRC32C" } else { "None" }.to_owned())
            }
            "DataDigest" => {
                self.data_digest = digest(value)?;
                Settled::Value(if self.data_digest { "CRC32C" } else { "None" }.to_owned())
            }
            "MaxRecvDataSegmentLength" => {
                let theirs = smaller(value, 0xff_ffff, 512, 0xff_ffff)?;
                self.peer_receive_bytes = theirs as usize;
                Settled::Silent
            }
            "MaxBurstLength" => {
                let agreed = smaller(value, BURST_BYTES_MAX, 512, 0xff_ffff)?;
                self.burst_bytes = agreed as usize;
                text(agreed)
            }
            "FirstBurstLength" => {
                let agreed = smaller(value, FIRST_BURST_BYTES_MAX, 512, 0xff_ffff)?;
                self.first_burst_bytes = agreed as usize;
                text(agreed)
            }
            "InitialR2T" => {
                self.initial_r2t = boolean(value)?;
                yes_no(self.initial_r2t)
            }
            "ImmediateData" => {
                self.immediate_data = boolean(value)?;
                yes_no(self.immediate_data)
            }
            // One connection a session, no recovery within it: paths are sessions (MPIO).
            "MaxConnections" | "MaxOutstandingR2T" => text(smaller(value, 1, 1, 65_535)?),
            "ErrorRecoveryLevel" => text(smaller(value, 0, 0, 2)?),
            "DefaultTime2Retain" => text(smaller(value, 0, 0, 3600)?),
            "DefaultTime2Wait" => text(smaller(value, u32::MAX, 0, 3600)?),
            "DataPDUInOrder" | "DataSequenceInOrder" => {
                boolean(value)?;
                yes_no(true)
            }
            "IFMarker" | "OFMarker" => yes_no(false),
            "IFMarkInt" | "OFMarkInt" => Settled::Refused,
            "iSCSIProtocolLevel" => text(smaller(value, 1, 0, 31)?),
            "TaskReporting" => Settled::Value("RFC3720".to_owned()),
            "InitiatorAlias" | "InitiatorName" | "TargetName" | "SessionType" => Settled::Silent,
            _ => Settled::Value("NotUnderstood".to_owned()),
        })
    }

    /// After the last key: a first burst is never longer than a burst (RFC 7143 §13.14).
    pub fn close(&mut self) {
        self.first_burst_bytes = self.first_burst_bytes.min(self.burst_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(key: &str, value: &str) -> (Parameters, Option<String>) {
        let mut parameters = Parameters::default();
        let mut answers = Pairs::default();
        parameters.settle(key, value, &mut answers);
        (parameters, answers.get(key).map(str::to_owned))
    }

    #[test]
    fn numbers_settle_to_the_smaller_and_refuse_what_is_out_of_range() {
        assert_eq!(
            settle("MaxBurstLength", "16776192").1.as_deref(),
            Some("1048576")
        );
        assert_eq!(
            settle("MaxBurstLength", "0x1000").1.as_deref(),
            Some("4096")
        );
        assert_eq!(settle("MaxBurstLength", "1").1.as_deref(), Some("Reject"));
        assert_eq!(settle("MaxConnections", "8").1.as_deref(), Some("1"));
        assert_eq!(settle("ErrorRecoveryLevel", "2").1.as_deref(), Some("0"));
    }

    #[test]
    fn digests_follow_the_order_of_the_initiator() {
        assert!(settle("HeaderDigest", "CRC32C,None").0.header_digest);
        assert!(!settle("HeaderDigest", "None,CRC32C").0.header_digest);
        assert_eq!(settle("HeaderDigest", "MD6").1.as_deref(), Some("Reject"));
    }

    #[test]
    fn unknown_keys_are_not_understood_and_declarations_get_no_answer() {
        assert_eq!(
            settle("X-com.example", "1").1.as_deref(),
            Some("NotUnderstood")
        );
        assert_eq!(settle("MaxRecvDataSegmentLength", "65536").1, None);
    }
}
