//! The path from a daemon's certificate to the federation's root.
//!
//! Certificates are those of the trust room: a daemon's leaf, its site's authority, the federation's
//! root; Ed25519 throughout. A daemon is named by a URI, `nuage://FEDERATION/SITE/ROLE/NODE`, and the
//! site authority is constrained to its federation's URIs. `webpki` knows no URI constraints and
//! refuses such chains, so the path is checked here: signatures, times, authorities, constraints,
//! revocation lists.

use crate::revocation::Lists;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{ASN1Time, FromDer as _, GeneralName, ParsedExtension, X509Certificate};

/// Certificates of a path: leaf, site authority, root.
const PATH_MAX: usize = 4;

/// What a certificate path is refused for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("a certificate cannot be read")]
    Unreadable,
    #[error("the path does not lead to our root")]
    NoPath,
    #[error("a certificate is not valid at this time")]
    NotNow,
    #[error("an issuer is no authority")]
    NoAuthority,
    #[error("a name lies outside its authority's constraints")]
    Constrained,
    #[error("the certificate names no daemon")]
    NoIdentity,
    #[error("the certificate names a daemon of another federation or role")]
    Foreign,
    #[error("a certificate was revoked by its issuer")]
    Revoked,
}

/// A daemon's name as its certificate says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub federation: String,
    pub site: String,
    pub role: String,
    pub node: String,
}

impl Identity {
    fn parse(uri: &str) -> Option<Self> {
        let mut parts = uri.strip_prefix("nuage://")?.split('/');
        let mut next = || {
            parts
                .next()
                .filter(|part| !part.is_empty())
                .map(str::to_owned)
        };
        let identity = Self {
            federation: next()?,
            site: next()?,
            role: next()?,
            node: next()?,
        };
        parts.next().is_none().then_some(identity)
    }
}

fn names(certificate: &X509Certificate<'_>) -> Vec<(bool, String)> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    extension
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some((true, (*uri).to_owned())),
            GeneralName::DNSName(dns) => Some((false, (*dns).to_owned())),
            _ => None,
        })
        .collect()
}

/// The identity among a leaf's names. Constraints see a site in DNS names only, so the URI counts
/// where the DNS name beside it says the same.
fn identity_among(names: &[(bool, String)]) -> Option<Identity> {
    let identity = names
        .iter()
        .filter(|(is_uri, _)| *is_uri)
        .find_map(|(_, uri)| Identity::parse(uri))?;
    let Identity {
        federation,
        site,
        role,
        node,
    } = &identity;
    let dns = format!("{node}.{role}.{site}.{federation}.nuage.internal");
    names
        .iter()
        .any(|(is_uri, name)| !is_uri && *name == dns)
        .then_some(identity)
}

/// The identity of a leaf.
pub fn identity_of(leaf: &CertificateDer<'_>) -> Option<Identity> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    identity_among(&names(&certificate))
}

fn is_authority(certificate: &X509Certificate<'_>) -> bool {
    let authority = matches!(certificate.basic_constraints(), Ok(Some(found)) if found.value.ca);
    let signs = match certificate.key_usage() {
        Ok(Some(usage)) => usage.value.key_cert_sign(),
        Ok(None) => true,
        Err(_) => false,
    };
    authority && signs
}

/// RFC 5280 §4.2.1.10: the host of a URI equals the constraint or, where that starts with a dot, ends
/// with it; a DNS name equals the constraint or is below it.
fn within(name: &(bool, String), constraint: &GeneralName<'_>) -> Option<bool> {
    match (name, constraint) {
        ((true, uri), GeneralName::URI(host)) => {
            let found = uri.split_once("://").map_or("", |(_, rest)| rest);
            let found = found.split(['/', ':']).next().unwrap_or("");
            Some(if host.starts_with('.') {
                found.ends_with(host)
            } else {
                found == *host
            })
        }
        ((false, dns), GeneralName::DNSName(domain)) => {
            let below = dns
                .strip_suffix(domain)
                .is_some_and(|head| head.is_empty() || head.ends_with('.'));
            Some(below)
        }
        _ => None,
    }
}

fn constraints_hold(authority: &X509Certificate<'_>, leaf: &[(bool, String)]) -> bool {
    let Ok(found) = authority.name_constraints() else {
        return false;
    };
    let Some(constraints) = found else {
        return true;
    };
    // Excluded subtrees are not used by our authorities: a path with them is not ours.
    if constraints.value.excluded_subtrees.is_some() {
        return false;
    }
    let permitted = constraints
        .value
        .permitted_subtrees
        .as_deref()
        .unwrap_or_default();
    leaf.iter().all(|name| {
        let verdicts: Vec<bool> = permitted
            .iter()
            .filter_map(|tree| within(name, &tree.base))
            .collect();
        verdicts.is_empty() || verdicts.contains(&true)
    })
}

/// Critical extensions that we do not understand refuse the path (RFC 5280 §4.2).
fn understood(certificate: &X509Certificate<'_>) -> bool {
    certificate
        .extensions()
        .iter()
        .filter(|extension| extension.critical)
        .all(|extension| {
            matches!(
                extension.parsed_extension(),
                ParsedExtension::BasicConstraints(_)
                    | ParsedExtension::KeyUsage(_)
                    | ParsedExtension::ExtendedKeyUsage(_)
                    | ParsedExtension::NameConstraints(_)
                    | ParsedExtension::SubjectAlternativeName(_)
            )
        })
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, PathError> {
    X509Certificate::from_der(der)
        .map(|(_, found)| found)
        .map_err(|_| PathError::Unreadable)
}

/// Certificates from a leaf to a root, each signed by the next.
fn chain_of<'a, 'der>(
    leaf: &'a X509Certificate<'der>,
    issuers: &'a [X509Certificate<'der>],
    roots: &'a [X509Certificate<'der>],
) -> Result<Vec<&'a X509Certificate<'der>>, PathError> {
    let mut chain = vec![leaf];
    let mut current = leaf;
    for _ in 0..=PATH_MAX {
        let issued_by = |issuer: &&X509Certificate<'_>| {
            issuer.subject() == current.issuer()
                && current.verify_signature(Some(issuer.public_key())).is_ok()
        };
        if let Some(root) = roots.iter().find(issued_by) {
            chain.push(root);
            return Ok(chain);
        }
        current = issuers.iter().find(issued_by).ok_or(PathError::NoPath)?;
        chain.push(current);
    }
    Err(PathError::NoPath)
}

/// What a path is judged by.
#[derive(Debug, Clone, Copy)]
pub struct Judges<'a> {
    pub roots: &'a [CertificateDer<'a>],
    pub lists: &'a Lists,
}

impl Judges<'_> {
    fn with_path<T>(
        self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        judge: impl FnOnce(&[&X509Certificate<'_>]) -> Result<T, PathError>,
    ) -> Result<T, PathError> {
        if intermediates.len() > PATH_MAX {
            return Err(PathError::NoPath);
        }
        let leaf = parse(leaf)?;
        let issuers: Vec<X509Certificate<'_>> =
            intermediates.iter().map(parse).collect::<Result<_, _>>()?;
        let roots: Vec<X509Certificate<'_>> =
            self.roots.iter().map(parse).collect::<Result<_, _>>()?;
        judge(&chain_of(&leaf, &issuers, &roots)?)
    }

    /// Check a path and give the identity of its leaf.
    pub fn check(
        self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now_s: i64,
    ) -> Result<Identity, PathError> {
        let now = ASN1Time::from_timestamp(now_s).map_err(|_| PathError::NotNow)?;
        self.with_path(leaf, intermediates, |chain| {
            let leaf_names = names(chain[0]);
            for pair in chain.windows(2) {
                let [certificate, issuer] = pair else {
                    continue;
                };
                let valid = [certificate, issuer].map(|found| found.validity().is_valid_at(now));
                if valid != [true, true] {
                    return Err(PathError::NotNow);
                }
                if !understood(certificate) {
                    return Err(PathError::Unreadable);
                }
                if !is_authority(issuer) {
                    return Err(PathError::NoAuthority);
                }
                if !constraints_hold(issuer, &leaf_names) {
                    return Err(PathError::Constrained);
                }
                if self.lists.names(certificate, issuer) {
                    return Err(PathError::Revoked);
                }
            }
            identity_among(&leaf_names).ok_or(PathError::NoIdentity)
        })
    }

    /// True when a path that was good is not any more; that it has grown old meanwhile is no matter.
    pub fn revoke(self, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> bool {
        let verdict = self.with_path(leaf, intermediates, |chain| {
            let revoked = |pair: &[&X509Certificate<'_>]| self.lists.names(pair[0], pair[1]);
            Ok(chain.windows(2).any(revoked))
        });
        verdict.unwrap_or(true)
    }
}
