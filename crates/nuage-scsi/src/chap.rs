//! CHAP as iSCSI carries it (RFC 7143 §12.1.3, RFC 1994): one-way and mutual.
//!
//! CHAP guards the login only; run the connection inside an encrypted tunnel where others can listen.
//! Values are bounded before they are decoded, our own challenge is refused when it comes back as the
//! initiator's (reflection, RFC 7143 §12.1.3), and responses are compared in constant time.

use md5::{Digest, Md5};
use sha1::Sha1;
use sha2::Sha256;
use sha3::Sha3_256;
use subtle::ConstantTimeEq;

/// Longest challenge RFC 7143 §12.1.3 allows, in bytes.
const CHALLENGE_BYTES_MAX: usize = 1024;
/// Bytes of the challenges we send.
pub const CHALLENGE_BYTES: usize = 32;

/// A name and its secret. `Debug` never shows the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub secret: Vec<u8>,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Account")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Digests of CHAP by their IANA number (PPP authentication algorithms).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Md5 = 5,
    Sha1 = 6,
    Sha256 = 7,
    Sha3 = 8,
}

impl Algorithm {
    /// The first of the initiator's list that we speak: its order is its preference.
    pub fn choose(list: &str) -> Option<Self> {
        list.split(',').find_map(|item| match item.trim() {
            "5" => Some(Self::Md5),
            "6" => Some(Self::Sha1),
            "7" => Some(Self::Sha256),
            "8" => Some(Self::Sha3),
            _ => None,
        })
    }

    /// `H(identifier ‖ secret ‖ challenge)` (RFC 1994 §4.1).
    pub fn response(self, identifier: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
        fn hash<D: Digest>(identifier: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
            let mut digest = D::new();
            digest.update([identifier]);
            digest.update(secret);
            digest.update(challenge);
            digest.finalize().to_vec()
        }
        match self {
            Self::Md5 => hash::<Md5>(identifier, secret, challenge),
            Self::Sha1 => hash::<Sha1>(identifier, secret, challenge),
            Self::Sha256 => hash::<Sha256>(identifier, secret, challenge),
            Self::Sha3 => hash::<Sha3_256>(identifier, secret, challenge),
        }
    }
}

/// Why an answer of the initiator is refused. The initiator hears only "authentication failure".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChapError {
    #[error("a key of the exchange is missing or malformed")]
    Malformed,
    #[error("a value is longer than CHAP allows")]
    TooLong,
    #[error("no account of this name")]
    UnknownName,
    #[error("the response does not match the secret")]
    WrongResponse,
    #[error("the initiator sent our own challenge back")]
    Reflected,
    #[error("mutual authentication was asked for and no target secret is set")]
    NoTargetSecret,
}

/// Decode `0x…` or `0b…` of at most `bytes_max` bytes (RFC 7143 §6.1, binary-value).
pub fn decode_binary(text: &str, bytes_max: usize) -> Result<Vec<u8>, ChapError> {
    let (base64, digits) = match text.get(..2) {
        Some("0x" | "0X") => (false, &text.as_bytes()[2..]),
        Some("0b" | "0B") => (true, &text.as_bytes()[2..]),
        _ => return Err(ChapError::Malformed),
    };
    if base64 {
        if digits.len() > bytes_max.div_ceil(3) * 4 {
            return Err(ChapError::TooLong);
        }
        let bytes = decode_base64(digits)?;
        return if bytes.len() > bytes_max {
            Err(ChapError::TooLong)
        } else {
            Ok(bytes)
        };
    }
    if digits.len() > bytes_max * 2 {
        return Err(ChapError::TooLong);
    }
    let mut nibbles = Vec::with_capacity(digits.len() + 1);
    if !digits.len().is_multiple_of(2) {
        nibbles.push(0);
    }
    for digit in digits {
        let value = char::from(*digit)
            .to_digit(16)
            .ok_or(ChapError::Malformed)?;
        nibbles.push(u8::try_from(value).map_err(|_| ChapError::Malformed)?);
    }
    Ok(nibbles
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect())
}

fn decode_base64(digits: &[u8]) -> Result<Vec<u8>, ChapError> {
    if !digits.len().is_multiple_of(4) {
        return Err(ChapError::Malformed);
    }
    let body = digits
        .strip_suffix(b"==")
        .or_else(|| digits.strip_suffix(b"="))
        .unwrap_or(digits);
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3);
    let (mut bits, mut bit_count) = (0_u32, 0_u32);
    for digit in body {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return Err(ChapError::Malformed),
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        bit_count += 6;
        if bit_count >= 8 {
            bit_count -= 8;
            bytes.push((bits >> bit_count).to_le_bytes()[0]);
        }
    }
    Ok(bytes)
}

/// `0x…`, lower case.
pub fn encode_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(2 + bytes.len() * 2);
    text.push_str("0x");
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The target's side of one exchange, after the algorithm was chosen.
#[derive(Debug, Clone)]
pub struct Challenge {
    pub algorithm: Algorithm,
    pub identifier: u8,
    pub challenge: [u8; CHALLENGE_BYTES],
}

/// What the initiator sent after our challenge.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    pub name: &'a str,
    pub response: &'a str,
    /// Identifier and challenge, when the initiator wants us to prove ourselves.
    pub mutual: Option<(&'a str, &'a str)>,
}

impl Challenge {
    /// Check the answer; gives our own name and response where the initiator asked for them.
    pub fn check(
        &self,
        answer: &Answer<'_>,
        accounts: &[Account],
        own: Option<&Account>,
    ) -> Result<Option<(String, String)>, ChapError> {
        let expected_bytes = self.algorithm.response(0, &[], &[]).len();
        let given = decode_binary(answer.response, expected_bytes)?;
        let account = accounts
            .iter()
            .find(|account| account.name == answer.name)
            .ok_or(ChapError::UnknownName)?;
        let expected = self
            .algorithm
            .response(self.identifier, &account.secret, &self.challenge);
        if !bool::from(expected.ct_eq(&given)) {
            return Err(ChapError::WrongResponse);
        }
        let Some((identifier, challenge)) = answer.mutual else {
            return Ok(None);
        };
        let challenge = decode_binary(challenge, CHALLENGE_BYTES_MAX)?;
        if challenge.is_empty() {
            return Err(ChapError::Malformed);
        }
        if challenge == self.challenge {
            return Err(ChapError::Reflected);
        }
        let identifier = parse_identifier(identifier)?;
        let own = own.ok_or(ChapError::NoTargetSecret)?;
        let response = self.algorithm.response(identifier, &own.secret, &challenge);
        Ok(Some((own.name.clone(), encode_hex(&response))))
    }
}

/// CHAP_I: decimal or hexadecimal, one byte.
fn parse_identifier(text: &str) -> Result<u8, ChapError> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u8::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| ChapError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange() -> (Challenge, Account) {
        let challenge = Challenge {
            algorithm: Algorithm::Md5,
            identifier: 7,
            challenge: [9; CHALLENGE_BYTES],
        };
        (
            challenge,
            Account {
                name: "user".into(),
                secret: b"0123456789ab".to_vec(),
            },
        )
    }

    #[test]
    fn the_right_secret_passes_in_every_algorithm() {
        for algorithm in [
            Algorithm::Md5,
            Algorithm::Sha1,
            Algorithm::Sha256,
            Algorithm::Sha3,
        ] {
            let (mut challenge, account) = exchange();
            challenge.algorithm = algorithm;
            let response = encode_hex(&algorithm.response(7, &account.secret, &[9; 32]));
            let answer = Answer {
                name: "user",
                response: &response,
                mutual: None,
            };
            assert_eq!(challenge.check(&answer, &[account], None), Ok(None));
        }
    }

    #[test]
    fn md5_is_the_rfc_1321_digest() {
        // RFC 1321 appendix A.5: MD5("abc").
        let digest = Algorithm::Md5.response(b'a', b"b", b"c");
        assert_eq!(encode_hex(&digest), "0x900150983cd24fb0d6963f7d28e17f72");
    }

    #[test]
    fn a_wrong_secret_an_unknown_name_and_a_reflected_challenge_are_refused() {
        let (challenge, account) = exchange();
        let accounts = [account.clone()];
        let good = encode_hex(&Algorithm::Md5.response(7, &account.secret, &[9; 32]));
        let bad = encode_hex(&Algorithm::Md5.response(7, b"else", &[9; 32]));
        let check = |name, response, mutual| {
            challenge.check(
                &Answer {
                    name,
                    response,
                    mutual,
                },
                &accounts,
                Some(&accounts[0]),
            )
        };
        assert_eq!(check("user", &bad, None), Err(ChapError::WrongResponse));
        assert_eq!(check("other", &good, None), Err(ChapError::UnknownName));
        let own = encode_hex(&[9; 32]);
        assert_eq!(
            check("user", &good, Some(("1", &own))),
            Err(ChapError::Reflected)
        );
        let long = format!("0x{}", "00".repeat(1025));
        assert_eq!(
            check("user", &good, Some(("1", &long))),
            Err(ChapError::TooLong)
        );
        assert!(matches!(
            check("user", &good, Some(("1", "0x0102"))),
            Ok(Some(_))
        ));
    }

    #[test]
    fn base64_and_hexadecimal_give_the_same_bytes() {
        assert_eq!(decode_binary("0bAQID", 16), Ok(vec![1, 2, 3]));
        assert_eq!(decode_binary("0bAQI=", 16), Ok(vec![1, 2]));
        assert_eq!(decode_binary("0bAQ==", 16), Ok(vec![1]));
        assert_eq!(decode_binary("0x010203", 16), Ok(vec![1, 2, 3]));
        assert_eq!(decode_binary("0x10203", 16), Ok(vec![1, 2, 3]));
        assert_eq!(decode_binary("0bAQIDAQID", 3), Err(ChapError::TooLong));
        assert_eq!(decode_binary("AQID", 3), Err(ChapError::Malformed));
    }
}
