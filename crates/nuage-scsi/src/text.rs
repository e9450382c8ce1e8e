//! `key=value` text of login and text PDUs (RFC 7143 §6.1), bounded.

/// Pairs in one exchange. RFC 7143 defines about thirty keys.
const PAIRS_MAX: usize = 128;
/// Longest value we look at; CHAP values up to 1024 bytes need 2 KiB and a bit in hexadecimal.
const VALUE_BYTES_MAX: usize = 8192;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    #[error("a pair is not of the form key=value in UTF-8")]
    Malformed,
    #[error("a value or the number of pairs exceeds the limit")]
    TooLong,
    #[error("the key {0} was given twice")]
    Repeated(String),
}

/// Keys and values in the order they came; each key once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pairs(Vec<(String, String)>);

impl Pairs {
    pub fn parse(data: &[u8]) -> Result<Self, TextError> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for piece in data
            .split(|byte| *byte == 0)
            .filter(|piece| !piece.is_empty())
        {
            let text = std::str::from_utf8(piece).map_err(|_| TextError::Malformed)?;
            let (key, value) = text.split_once('=').ok_or(TextError::Malformed)?;
            if key.is_empty() || key.len() > 63 {
                return Err(TextError::Malformed);
            }
            if value.len() > VALUE_BYTES_MAX || pairs.len() >= PAIRS_MAX {
                return Err(TextError::TooLong);
            }
            if pairs.iter().any(|(known, _)| known == key) {
                return Err(TextError::Repeated(key.to_owned()));
            }
            pairs.push((key.to_owned(), value.to_owned()));
        }
        Ok(Self(pairs))
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known == key)
            .map(|(_, value)| value.as_str())
    }

    pub fn push(&mut self, key: &str, value: impl Into<String>) {
        self.0.push((key.to_owned(), value.into()));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (key, value) in self.iter() {
            bytes.extend_from_slice(key.as_bytes());
            bytes.push(b'=');
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(0);
        }
        bytes
    }
}
