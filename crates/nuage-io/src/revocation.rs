//! Revocation lists (RFC 5280 §5): which certificates their issuers have taken back.
//!
//! Of one issuer the list with the highest number counts, whatever its age: a site that is cut off goes
//! on with what it last knew, where `nextUpdate` taken at its word would lock everybody out. An issuer
//! without a list has revoked nobody. A list counts for an issuer whose key signed it, never by its name.

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject as _;
use std::path::Path;
use x509_parser::num_bigint::BigUint;
use x509_parser::prelude::{
    CertificateRevocationList, FromDer as _, ParsedExtension, X509Certificate,
};

/// Longest file: a site's list names a week's certificates, 40 bytes each.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// One list, well-formed; its signature is looked at when an issuer asks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct List {
    /// Name and key identifier of who is said to have signed it.
    issuer: (Vec<u8>, Vec<u8>),
    number: BigUint,
    der: Vec<u8>,
}

impl List {
    fn parse(der: Vec<u8>) -> Option<Self> {
        let (_, list) = CertificateRevocationList::from_der(&der).ok()?;
        let key =
            list.extensions()
                .iter()
                .find_map(|extension| match extension.parsed_extension() {
                    ParsedExtension::AuthorityKeyIdentifier(found) => found.key_identifier.as_ref(),
                    _ => None,
                });
        let issuer = (
            list.issuer().as_raw().to_vec(),
            key.map_or_else(Vec::new, |key| key.0.to_vec()),
        );
        let number = list.crl_number()?.clone();
        Some(Self {
            issuer,
            number,
            der,
        })
    }
}

/// The newest list of each issuer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lists {
    lists: Vec<List>,
}

impl Lists {
    /// Read PEM lists one after the other; an empty file holds none.
    pub fn load(path: &Path) -> Result<Self, String> {
        let size_bytes = std::fs::metadata(path)
            .map_err(|error| error.to_string())?
            .len();
        if size_bytes > FILE_BYTES_MAX {
            return Err(format!(
                "{size_bytes} bytes are too long for revocation lists"
            ));
        }
        Self::parse(&std::fs::read(path).map_err(|error| error.to_string())?)
    }

    /// As [`Lists::load`], from a file's bytes.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let mut found = Self::default();
        for der in CertificateRevocationListDer::pem_slice_iter(pem) {
            let der = der.map_err(|error| error.to_string())?.to_vec();
            let list = List::parse(der).ok_or("this is not a revocation list with a number")?;
            found.add(list);
        }
        if found.is_empty() && !pem.trim_ascii().is_empty() {
            return Err("there is no revocation list in it".to_owned());
        }
        Ok(found)
    }

    fn add(&mut self, list: List) {
        let known = self
            .lists
            .iter_mut()
            .find(|known| known.issuer == list.issuer);
        match known {
            Some(known) if known.number >= list.number => {}
            Some(known) => *known = list,
            None => self.lists.push(list),
        }
    }

    /// These lists and, where they are newer, those known before: nothing that is lost un-revokes.
    #[must_use]
    pub fn beside(mut self, known: &Self) -> Self {
        for list in &known.lists {
            self.add(list.clone());
        }
        self
    }

    pub fn len(&self) -> usize {
        self.lists.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// True when the newest list that `issuer` signed names `certificate`.
    pub fn names(&self, certificate: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> bool {
        let newest = self
            .lists
            .iter()
            .filter_map(|list| CertificateRevocationList::from_der(&list.der).ok())
            .map(|(_, list)| list)
            .filter(|list| {
                list.issuer() == issuer.subject()
                    && list.verify_signature(issuer.public_key()).is_ok()
            })
            .max_by_key(|list| list.crl_number().cloned());
        newest.is_some_and(|list| {
            list.iter_revoked_certificates()
                .any(|revoked| *revoked.serial() == certificate.tbs_certificate.serial)
        })
    }
}
