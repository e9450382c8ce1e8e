//! Encryption at rest and checksums of blocks (docs/protocols/journal.md §3).

use std::collections::HashMap;

use nuage_block::{crc32c, crc32c_append};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use ring::hmac;
use zeroize::Zeroizing;

use crate::disk::BLOCK_BYTES;

/// A volume's identity, the same on every replica.
pub type VolumeUuid = [u8; 16];

/// Epoch keys kept at once; a volume's readable blocks rarely span more epochs.
const EPOCH_KEYS_MAX: usize = 256;

/// Checksum of a stored block, seeded with where it belongs.
pub fn block_crc(volume: &VolumeUuid, lba: u64, stored: &[u8]) -> u32 {
    let mut seed = [0; 24];
    seed[..16].copy_from_slice(volume);
    seed[16..].copy_from_slice(&lba.to_le_bytes());
    crc32c_append(crc32c(&seed), stored)
}

/// What makes a block's nonce and additional data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockOrigin {
    pub volume: VolumeUuid,
    pub epoch: u64,
    pub seq: u64,
    pub index: u32,
}

/// The key of all volumes of an IaaS; wiped when it is let go of, and never shown.
pub struct DataKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for DataKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("DataKey(secret)")
    }
}

impl DataKey {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Tells keys apart and gives nothing away: HMAC-SHA-256 of "nuage key id", cut to 16 bytes.
    pub fn id(&self) -> [u8; 16] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.as_ref());
        let mut id = [0; 16];
        id.copy_from_slice(&hmac::sign(&key, b"nuage key id").as_ref()[..16]);
        id
    }

    pub fn cipher(&self) -> Cipher {
        Cipher::new(&self.0)
    }
}

/// The data keys of a volume's IaaS, and the epoch keys made from them.
///
/// What is written is sealed with the newest. An epoch has one data key from its first block to its
/// last, so the first block of an epoch that opens tells which one that was.
pub struct Cipher {
    roots: Vec<hmac::Key>,
    epochs: HashMap<(VolumeUuid, u64), LessSafeKey>,
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Cipher(secret)")
    }
}

impl Cipher {
    pub fn new(data_key: &[u8; 32]) -> Self {
        Self {
            roots: vec![hmac::Key::new(hmac::HMAC_SHA256, data_key)],
            epochs: HashMap::new(),
        }
    }

    /// One that opens what was sealed with an earlier data key, too.
    #[must_use]
    pub fn also(mut self, earlier: &DataKey) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, earlier.0.as_ref());
        self.roots.push(key);
        self
    }

    fn make_room(&mut self) {
        if self.epochs.len() > EPOCH_KEYS_MAX {
            self.epochs.clear();
        }
    }

    /// Encrypt `block` in place; returns the tag.
    pub fn seal(&mut self, origin: &BlockOrigin, lba: u64, block: &mut [u8]) -> [u8; 16] {
        debug_assert_eq!(block.len(), BLOCK_BYTES);
        self.make_room();
        let tag = self
            .epochs
            .entry((origin.volume, origin.epoch))
            .or_insert_with(|| epoch_key(&self.roots[0], origin))
            .seal_in_place_separate_tag(nonce(origin), additional_data(origin, lba), block)
            .expect("a block is far below the limit of AES-GCM");
        let mut bytes = [0; 16];
        bytes.copy_from_slice(tag.as_ref());
        bytes
    }

    /// Decrypt `block` in place; false when it is not what was sealed.
    #[must_use]
    pub fn open(
        &mut self,
        origin: &BlockOrigin,
        lba: u64,
        tag: &[u8; 16],
        block: &mut [u8],
    ) -> bool {
        let epoch = (origin.volume, origin.epoch);
        if let Some(key) = self.epochs.get(&epoch) {
            return open_with(key, origin, lba, tag, block);
        }
        self.make_room();
        for root in &self.roots {
            let key = epoch_key(root, origin);
            let mut tried = [0; BLOCK_BYTES]; // a key that does not fit leaves garbage
            tried.copy_from_slice(block);
            if open_with(&key, origin, lba, tag, &mut tried) {
                block.copy_from_slice(&tried);
                self.epochs.insert(epoch, key);
                return true;
            }
        }
        false
    }
}

fn epoch_key(root: &hmac::Key, origin: &BlockOrigin) -> LessSafeKey {
    let mut context = hmac::Context::with_key(root);
    context.update(b"nuage block");
    context.update(&origin.volume);
    context.update(&origin.epoch.to_le_bytes());
    let secret = context.sign();
    let key = UnboundKey::new(&AES_256_GCM, secret.as_ref());
    LessSafeKey::new(key.expect("HMAC-SHA-256 gives the 32 bytes that AES-256 takes"))
}

fn open_with(
    key: &LessSafeKey,
    origin: &BlockOrigin,
    lba: u64,
    tag: &[u8; 16],
    block: &mut [u8],
) -> bool {
    key.open_in_place_separate_tag(
        nonce(origin),
        additional_data(origin, lba),
        Tag::from(*tag),
        block,
        0..,
    )
    .is_ok()
}

fn nonce(origin: &BlockOrigin) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&origin.seq.to_le_bytes());
    bytes[8..].copy_from_slice(&origin.index.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn additional_data(origin: &BlockOrigin, lba: u64) -> Aad<[u8; 24]> {
    let mut bytes = [0; 24];
    bytes[..16].copy_from_slice(&origin.volume);
    bytes[16..].copy_from_slice(&lba.to_le_bytes());
    Aad::from(bytes)
}
