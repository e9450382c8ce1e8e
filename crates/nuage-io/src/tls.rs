//! TLS 1.3 to the daemons of IO-nodes: both sides show certificates of one federation.
//!
//! Other IO-nodes come for replication, V-nodes for their guests' iSCSI; which of the two a link is for is
//! agreed in the handshake (ALPN, RFC 7301). Whoever says nothing means replication.
//!
//! Which certificates count is said in [`crate::path`]. Sessions are never resumed: a resumed one would
//! show no certificate, and who was revoked meanwhile would come back in.
//!
//! Certificates live for days and are renewed beside a running daemon, lists change when a node is
//! revoked: [`Trust::refresh`] looks at the files and takes in what is new.

use crate::log;
use crate::path::{Identity, Judges, PathError, identity_of};
use crate::revocation::Lists;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// How often the files are looked at: so long a revoked node may keep its links.
pub const REFRESH_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path}: {reason}")]
    File { path: String, reason: String },
    #[error("certificate and key cannot be used: {0}")]
    Unusable(#[from] Error),
}

fn failed(path: &Path, reason: impl std::fmt::Display) -> TlsError {
    TlsError::File {
        path: path.display().to_string(),
        reason: reason.to_string(),
    }
}

/// What a link that carries iSCSI is called in the handshake.
pub(crate) const ISCSI_PROTOCOL: &[u8] = b"nuage-iscsi";
/// The role of who serves, and replicates; and of who brings a guest's iSCSI.
pub(crate) const STORES: &str = "ionode";
pub(crate) const RUNS: &str = "vnode";

/// What a link is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    Replication,
    Iscsi,
}

/// Where a daemon's identity and what it believes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The daemon's certificate, then its authorities'.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// The federation's root.
    pub ca: PathBuf,
    /// Revocation lists of the root and of all sites.
    pub crl: Option<PathBuf>,
}

/// Both sides' rule: a daemon of our federation and of a fitting role that nobody has revoked.
#[derive(Debug)]
struct SamePeers {
    roots: Vec<CertificateDer<'static>>,
    lists: RwLock<Arc<Lists>>,
    own: Identity,
    provider: Arc<CryptoProvider>,
}

impl SamePeers {
    fn lists(&self) -> Arc<Lists> {
        let lists = self.lists.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&lists)
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        roles: &[&str],
    ) -> Result<(), Error> {
        let now_s = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let judges = Judges {
            roots: &self.roots,
            lists: &self.lists(),
        };
        let verdict = judges
            .check(leaf, intermediates, now_s)
            .and_then(|identity| {
                let fits = roles.contains(&identity.role.as_str());
                if fits && identity.federation == self.own.federation {
                    Ok(())
                } else {
                    Err(PathError::Foreign)
                }
            });
        verdict.map_err(|error| match error {
            // The peer is told so, too.
            PathError::Revoked => Error::InvalidCertificate(CertificateError::Revoked),
            _ => Error::General(error.to_string()),
        })
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
        self.check(leaf, intermediates, now, &[STORES])
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
        self.check(leaf, intermediates, now, &[STORES, RUNS])
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

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(|error| failed(path, error))?
        .collect::<Result<_, _>>()
        .map_err(|error| failed(path, error))?;
    if found.is_empty() {
        Err(failed(path, "no certificate in it"))
    } else {
        Ok(found)
    }
}

/// Both sides' settings under one certificate.
#[derive(Debug, Clone)]
struct Configs {
    chain: Vec<CertificateDer<'static>>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    initiator: Arc<ClientConfig>,
}

impl Configs {
    fn load(
        chain: Vec<CertificateDer<'static>>,
        key: &Path,
        verifier: &Arc<SamePeers>,
    ) -> Result<Self, TlsError> {
        let key =
            || PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, error.to_string()));
        let versions = &[&rustls::version::TLS13];
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&verifier.provider))
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(Arc::<SamePeers>::clone(verifier))
            .with_single_cert(chain.clone(), key()?)?;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.alpn_protocols = vec![ISCSI_PROTOCOL.to_vec()];
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&verifier.provider))
            .with_protocol_versions(versions)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::<SamePeers>::clone(verifier))
            .with_client_auth_cert(chain.clone(), key()?)?;
        client.resumption = Resumption::disabled();
        let mut initiator = client.clone();
        initiator.alpn_protocols = vec![ISCSI_PROTOCOL.to_vec()];
        Ok(Self {
            chain,
            server: Arc::new(server),
            client: Arc::new(client),
            initiator: Arc::new(initiator),
        })
    }
}

/// What tells a file from its successor: written anew it has another inode or another time.
type Stamp = Option<(u64, i64, i64, u64)>;

fn stamp(path: &Path) -> Stamp {
    let found = std::fs::metadata(path).ok()?;
    Some((found.ino(), found.ctime(), found.ctime_nsec(), found.len()))
}

/// A daemon's identity and whom it believes, kept as its files say.
#[derive(Debug)]
pub struct Trust {
    files: TlsFiles,
    verifier: Arc<SamePeers>,
    configs: Configs,
    seen: [Stamp; 3],
}

impl Trust {
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let seen = Self::stamps(&files);
        let chain = certificates(&files.cert)?;
        let own = chain.first().and_then(identity_of);
        let own = own.ok_or_else(|| failed(&files.cert, PathError::NoIdentity))?;
        let verifier = Arc::new(SamePeers {
            roots: certificates(&files.ca)?,
            lists: RwLock::new(Arc::new(Self::lists(&files)?)),
            own,
            provider: Arc::new(rustls::crypto::ring::default_provider()),
        });
        Ok(Self {
            configs: Configs::load(chain, &files.key, &verifier)?,
            files,
            verifier,
            seen,
        })
    }

    /// The node that our certificate names.
    pub fn node(&self) -> &str {
        &self.verifier.own.node
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.configs.server)
    }

    pub(crate) fn client(&self, speaks: Speaks) -> Arc<ClientConfig> {
        Arc::clone(match speaks {
            Speaks::Replication => &self.configs.client,
            Speaks::Iscsi => &self.configs.initiator,
        })
    }

    fn lists(files: &TlsFiles) -> Result<Lists, TlsError> {
        match &files.crl {
            None => Ok(Lists::default()),
            Some(path) => Lists::load(path).map_err(|reason| failed(path, reason)),
        }
    }

    fn stamps(files: &TlsFiles) -> [Stamp; 3] {
        [
            stamp(&files.cert),
            stamp(&files.key),
            files.crl.as_deref().and_then(stamp),
        ]
    }

    /// Look at the files and take in what is new; true when the lists are others now.
    ///
    /// What cannot be read is told, and what was known goes on: a list that is lost un-revokes nobody.
    pub fn refresh(&mut self) -> bool {
        let seen = Self::stamps(&self.files);
        let [cert, key, crl] = seen;
        let [old_cert, old_key, old_crl] = std::mem::replace(&mut self.seen, seen);
        if (cert, key) != (old_cert, old_key)
            && let Err(error) = self.renew()
        {
            // Key and certificate are two files: the second one may still be on its way.
            log::warn(
                "certificate_not_renewed",
                &[("error", error.to_string().into())],
            );
        }
        crl != old_crl && self.take_lists()
    }

    fn renew(&mut self) -> Result<(), TlsError> {
        let chain = certificates(&self.files.cert)?;
        if chain.first().and_then(identity_of).as_ref() != Some(&self.verifier.own) {
            return Err(failed(&self.files.cert, PathError::Foreign));
        }
        let configs = Configs::load(chain, &self.files.key, &self.verifier)?;
        if configs.chain != self.configs.chain {
            log::info("certificate_renewed", &[("node", self.node().into())]);
        }
        self.configs = configs;
        Ok(())
    }

    fn take_lists(&mut self) -> bool {
        let lists = match Self::lists(&self.files) {
            Ok(lists) => lists,
            Err(error) => {
                log::error(
                    "revocations_not_read",
                    &[("error", error.to_string().into())],
                );
                return false;
            }
        };
        let known = self.verifier.lists();
        let lists = lists.beside(&known);
        if *known == lists {
            return false;
        }
        log::info("revocations_read", &[("lists", lists.len().into())]);
        let mut known = self
            .verifier
            .lists
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *known = Arc::new(lists);
        true
    }

    /// True when a peer that showed this chain is not believed any more.
    pub(crate) fn revokes(&self, chain: &[CertificateDer<'_>]) -> bool {
        let judges = Judges {
            roots: &self.verifier.roots,
            lists: &self.verifier.lists(),
        };
        chain
            .split_first()
            .is_some_and(|(leaf, intermediates)| judges.revoke(leaf, intermediates))
    }
}
