//! Encryption at rest and checksums of blocks (docs/protocols/journal.md §3).

use std::collections::HashMap;

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
    crc32c::crc32c_append(crc32c::crc32c(&seed), stored)
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

/// The data key of a volume's IaaS, and the epoch keys made from it.
pub struct Cipher {
    root: hmac::Key,
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
            root: hmac::Key::new(hmac::HMAC_SHA256, data_key),
            epochs: HashMap::new(),
        }
    }

    fn key(&mut self, volume: VolumeUuid, epoch: u64) -> &LessSafeKey {
        if self.epochs.len() > EPOCH_KEYS_MAX {
            self.epochs.clear();
        }
        self.epochs.entry((volume, epoch)).or_insert_with(|| {
            let mut context = hmac::Context::with_key(&self.root);
            context.update(b"nuage block");
            context.update(&volume);
            context.update(&epoch.to_le_bytes());
            let secret = context.sign();
            let key = UnboundKey::new(&AES_256_GCM, secret.as_ref());
            LessSafeKey::new(key.expect("HMAC-SHA-256 gives the 32 bytes that AES-256 takes"))
        })
    }

    /// Encrypt `block` in place; returns the tag.
    pub fn seal(&mut self, origin: &BlockOrigin, lba: u64, block: &mut [u8]) -> [u8; 16] {
        debug_assert_eq!(block.len(), BLOCK_BYTES);
        let tag = self
            .key(origin.volume, origin.epoch)
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
        self.key(origin.volume, origin.epoch)
            .open_in_place_separate_tag(
                nonce(origin),
                additional_data(origin, lba),
                Tag::from(*tag),
                block,
                0..,
            )
            .is_ok()
    }
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
