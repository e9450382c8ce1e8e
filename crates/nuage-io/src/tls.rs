//! TLS 1.3 between the daemons of IO-nodes: both sides show certificates of one federation.
//!
//! Certificates are those of the trust room: a daemon's leaf, its site's authority, the federation's
//! root; Ed25519 throughout. A daemon is named by a URI, `nuage://FEDERATION/SITE/ROLE/NODE`, and the
//! site authority is constrained to its federation's URIs. `webpki` knows no URI constraints and
//! refuses such chains, so the path is checked here: signatures, times, authorities, constraints.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
};
use std::path::Path;
use std::sync::Arc;
use x509_parser::prelude::{ASN1Time, FromDer as _, GeneralName, ParsedExtension, X509Certificate};

/// Certificates of a path: leaf, site authority, root.
const PATH_MAX: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path}: {reason}")]
    File { path: String, reason: String },
    #[error("certificate and key cannot be used: {0}")]
    Unusable(#[from] Error),
}

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

/// Check a path and give the identity of its leaf.
pub fn check_path(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &[CertificateDer<'_>],
    now_s: i64,
) -> Result<Identity, PathError> {
    if intermediates.len() > PATH_MAX {
        return Err(PathError::NoPath);
    }
    let now = ASN1Time::from_timestamp(now_s).map_err(|_| PathError::NotNow)?;
    let leaf = parse(leaf)?;
    let issuers: Vec<X509Certificate<'_>> =
        intermediates.iter().map(parse).collect::<Result<_, _>>()?;
    let roots: Vec<X509Certificate<'_>> = roots.iter().map(parse).collect::<Result<_, _>>()?;
    let leaf_names = names(&leaf);
    let mut current = &leaf;
    for _ in 0..=PATH_MAX {
        if !current.validity().is_valid_at(now) {
            return Err(PathError::NotNow);
        }
        if !understood(current) {
            return Err(PathError::Unreadable);
        }
        let issued_by = |issuer: &&X509Certificate<'_>| {
            issuer.subject() == current.issuer()
                && current.verify_signature(Some(issuer.public_key())).is_ok()
        };
        let root = roots.iter().find(issued_by);
        let issuer = root
            .or_else(|| issuers.iter().find(issued_by))
            .ok_or(PathError::NoPath)?;
        if !is_authority(issuer) {
            return Err(PathError::NoAuthority);
        }
        if !constraints_hold(issuer, &leaf_names) {
            return Err(PathError::Constrained);
        }
        if let Some(root) = root {
            if !root.validity().is_valid_at(now) {
                return Err(PathError::NotNow);
            }
            return identity_among(&leaf_names).ok_or(PathError::NoIdentity);
        }
        current = issuer;
    }
    Err(PathError::NoPath)
}

/// Both sides' rule: a daemon of our federation and our role.
#[derive(Debug)]
struct SamePeers {
    roots: Vec<CertificateDer<'static>>,
    own: Identity,
    provider: Arc<CryptoProvider>,
}

impl SamePeers {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let now_s = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let verdict = check_path(leaf, intermediates, &self.roots, now_s).and_then(|identity| {
            if identity.federation == self.own.federation && identity.role == self.own.role {
                Ok(())
            } else {
                Err(PathError::Foreign)
            }
        });
        verdict.map_err(|error| Error::General(error.to_string()))
    }

    fn signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signed, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ServerCertVerifier for SamePeers {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(leaf, intermediates, now)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for SamePeers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(leaf, intermediates, now)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

/// Both sides' settings, made from files.
#[derive(Debug, Clone)]
pub struct Tls {
    pub server: Arc<ServerConfig>,
    pub client: Arc<ClientConfig>,
    /// The node that our certificate names.
    pub node: String,
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |reason: String| TlsError::File {
        path: path.display().to_string(),
        reason,
    };
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(|error| failed(error.to_string()))?
        .collect::<Result<_, _>>()
        .map_err(|error| failed(error.to_string()))?;
    if found.is_empty() {
        Err(failed("no certificate in it".to_owned()))
    } else {
        Ok(found)
    }
}

impl Tls {
    /// `cert`: the daemon's certificate, then its authorities'; `ca`: the federation's root.
    pub fn load(cert: &Path, key: &Path, ca: &Path) -> Result<Self, TlsError> {
        let chain = certificates(cert)?;
        let roots = certificates(ca)?;
        let failed = |path: &Path, reason: String| TlsError::File {
            path: path.display().to_string(),
            reason,
        };
        let key =
            || PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, error.to_string()));
        let own = chain.first().and_then(|leaf| identity_of(leaf));
        let own = own.ok_or_else(|| failed(cert, PathError::NoIdentity.to_string()))?;
        let node = own.node.clone();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Arc::new(SamePeers {
            roots,
            own,
            provider: Arc::clone(&provider),
        });
        let versions = &[&rustls::version::TLS13];
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(Arc::<SamePeers>::clone(&verifier))
            .with_single_cert(chain.clone(), key()?)?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(chain, key()?)?;
        Ok(Self {
            server: Arc::new(server),
            client: Arc::new(client),
            node,
        })
    }
}
