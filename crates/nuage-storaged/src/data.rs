//! Blocks through the control socket: what a view has, and writes to a head. For exports and imports,
//! which take a volume as a stream of pieces; initiators use the doors.

use crate::catalogue::journal_refusal;
use crate::control::{Code, Refusal, Secret};
use crate::daemon::{Asker, Handled, Pending, Storaged};
use nuage_block::Operation;
use nuage_io::serve::Context;
use nuage_journal::{Index, changed_runs};
use serde_json::{Value, json};

/// Bytes of one piece: in hexadecimal digits it fits in a line of the protocol.
const PIECE_BYTES_MAX: u32 = 256 * 1024;
/// Runs told at once.
const RUNS_MAX: usize = 4096;
const BLOCK_BYTES: u64 = 4096;

fn from_hex(text: &str) -> Option<Vec<u8>> {
    fn digit(byte: u8) -> Option<u8> {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    }
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    rest.is_empty().then(|| bytes.collect())?
}

impl Storaged {
    fn view_of(&self, name: &str) -> Result<&crate::views::View, Refusal> {
        self.views
            .get(name)
            .ok_or_else(|| Refusal::new(Code::NotFound, format!("no view {name:?} is open")))
    }

    /// Runs `[offset, bytes]` from `after` on that differ between a view and an earlier moment.
    pub(crate) fn changed(
        &self,
        name: &str,
        since: Option<u64>,
        after: u64,
    ) -> Result<Value, Refusal> {
        let view = self.view_of(name)?;
        let engine = self.engine(&view.volume)?;
        let (before, now) = engine
            .with(|head| {
                let store = head.store_mut();
                let before = match since {
                    Some(seq) => store.view(seq)?.index,
                    None => Index::default(),
                };
                Ok((before, store.view(view.sequence)?))
            })
            .map_err(|error| journal_refusal(&error))?;
        let all = changed_runs(&before, &now.index);
        let mut runs: Vec<[u64; 2]> = Vec::new();
        let mut is_complete = true;
        for (lba, count) in all {
            let (offset, length) = (lba * BLOCK_BYTES, count * BLOCK_BYTES);
            if offset < after {
                continue;
            }
            if runs.len() == RUNS_MAX {
                is_complete = false;
                break;
            }
            runs.push([offset, length]);
        }
        Ok(json!({"runs": runs, "size_bytes": now.size_bytes, "complete": is_complete}))
    }

    pub(crate) fn read_view(
        &mut self,
        name: &str,
        offset: u64,
        length: u32,
        asker: &Asker,
        context: &mut Context<'_>,
    ) -> Handled {
        let id = self.view_of(name)?.id;
        if length == 0 || length > PIECE_BYTES_MAX {
            let message = format!("length: 1 to {PIECE_BYTES_MAX} bytes");
            return Err(Refusal::new(Code::InvalidRequest, message));
        }
        let token = self.remember(Pending::ReadView {
            asker: asker.clone(),
        });
        context
            .doors
            .ask(id, token, Operation::Read { offset, length });
        Ok(None)
    }

    pub(crate) fn write(
        &mut self,
        volume: &str,
        offset: u64,
        data: &Secret,
        asker: &Asker,
        context: &mut Context<'_>,
    ) -> Handled {
        let id = self.head(volume)?.id;
        let data = from_hex(&data.0)
            .filter(|data| !data.is_empty() && data.len() <= PIECE_BYTES_MAX as usize)
            .ok_or_else(|| {
                let message = format!("data: 1 to {PIECE_BYTES_MAX} bytes in hexadecimal digits");
                Refusal::new(Code::InvalidRequest, message)
            })?;
        let token = self.remember(Pending::Flush {
            asker: asker.clone(),
        });
        let operation = Operation::Write {
            offset,
            data: data.into(),
            fua: false,
        };
        context.doors.ask(id, token, operation);
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::from_hex;

    #[test]
    fn only_pairs_of_digits_are_bytes() {
        assert_eq!(from_hex("00ffA5"), Some(vec![0, 255, 0xa5]));
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("0g"), None);
    }
}
