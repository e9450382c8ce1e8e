//! The data keys of the `IaaS`: given through the control socket, in memory only.
//!
//! Heads write with the newest from their opening on; what earlier heads wrote is read with theirs.
//! `DIR/key-id` holds what tells keys apart, one a line, so that a wrong one is refused before it reads
//! everything as damaged. Copies need no key; heads and views of encrypted volumes do.

use crate::catalogue::{Catalogue, hex, io_refusal};
use crate::control::{Code, CreateVolume, Refusal, Secret};
use crate::daemon::Storaged;
use nuage_io::log;
use nuage_io::serve::Context;
use nuage_journal::{Cipher, DataKey};
use serde_json::{Value, json};
use std::fs;
use std::io::{self, Write as _};

const KEY_ID_FILE: &str = "key-id";

fn parse_key(text: &Secret) -> Result<DataKey, Refusal> {
    let wrong = || Refusal::new(Code::InvalidRequest, "key: 64 hexadecimal digits");
    let mut key = zeroize::Zeroizing::new([0; 32]);
    if text.0.len() != 64 || !text.0.is_ascii() {
        return Err(wrong());
    }
    for (index, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text.0[index * 2..index * 2 + 2], 16).map_err(|_| wrong())?;
    }
    Ok(DataKey::new(*key))
}

impl Catalogue {
    /// The cipher of a volume; `None` where it is not encrypted.
    pub fn cipher_of(&self, spec: &CreateVolume) -> Result<Option<Cipher>, Refusal> {
        if !spec.encrypted {
            return Ok(None);
        }
        let (newest, earlier) = self.keys.split_first().ok_or_else(|| {
            let message = "the data key of this IaaS is not here: it was not given since the start";
            Refusal::new(Code::Locked, message)
        })?;
        Ok(Some(earlier.iter().fold(newest.cipher(), Cipher::also)))
    }

    fn set_keys(&mut self, keys: Vec<DataKey>) -> Result<(), Refusal> {
        let ids: Vec<String> = keys.iter().map(|key| hex(&key.id())).collect();
        let path = self.dir().join(KEY_ID_FILE);
        let failed = |error: io::Error| io_refusal(KEY_ID_FILE, &error);
        let known = match fs::read_to_string(&path) {
            Ok(known) => known,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(failed(error)),
        };
        if known.lines().any(|line| !ids.iter().any(|id| id == line)) {
            let message = "a key that the volumes here were written with is not among these";
            return Err(Refusal::new(Code::Conflict, message));
        }
        let told = ids.join("\n");
        if known.trim_end() != told {
            let fresh = self.dir().join("key-id.new");
            let mut file = fs::File::create(&fresh).map_err(failed)?;
            file.write_all(told.as_bytes())
                .and_then(|()| file.sync_all())
                .and_then(|()| fs::rename(&fresh, &path))
                .and_then(|()| fs::File::open(self.dir())?.sync_all())
                .map_err(failed)?;
        }
        self.keys = keys;
        Ok(())
    }
}

impl Storaged {
    pub(crate) fn set_key(&mut self, key: &Secret, earlier: &[Secret]) -> Result<Value, Refusal> {
        let keys = [key].into_iter().chain(earlier).map(parse_key);
        self.catalogue.set_keys(keys.collect::<Result<_, _>>()?)?;
        let id = self.key_id();
        log::info("key_given", &[("key_id", id.as_deref().into())]);
        Ok(json!({"key_id": id}))
    }

    /// Wipe the keys, and close what was opened with them.
    pub(crate) fn forget_key(&mut self, context: &mut Context<'_>) -> Value {
        self.catalogue.keys.clear();
        let encrypted = |name: &&String| self.catalogue.get(name).is_ok_and(|spec| spec.encrypted);
        let names: Vec<String> = self.heads.keys().filter(encrypted).cloned().collect();
        for volume in &names {
            self.begin_close(volume, context);
        }
        log::info("key_forgotten", &[("heads", names.len().into())]);
        json!({"closing": names})
    }

    /// The id of the key that is written with from now on.
    pub(crate) fn key_id(&self) -> Option<String> {
        self.catalogue.keys.first().map(|key| hex(&key.id()))
    }
}
