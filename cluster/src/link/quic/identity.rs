//! Who a process is, and whom it believes: certificates of one authority, each with the names of the roles that it may speak
//! in.
//!
//! A name is `node.chappe` or `gateway.chappe`; in its strict form the process's number stands before it
//! (`00000000000000a7.node.chappe`), and then the certificate is good for that one process only. What a peer says of itself
//! has to be covered by what its certificate says ([`Role::is_covered_by`]). Addresses do not matter: processes move.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use ::aws_lc_rs::hmac;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    server::{ParsedCertificate, WebPkiClientVerifier},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};

/// What is spoken inside.
const ALPN: &[u8] = b"chappe/1";

/// What a process is to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// It owns conversations.
    Node,
    /// It terminates clients.
    Gateway,
}

/// A process's certificate, its key, and whom it believes. Clones are the same.
#[derive(Clone)]
pub struct Identity(Arc<Inside>);

struct Inside {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    own: CertificateDer<'static>,
    /// What only this process knows, in this life of it and in the next.
    secret: hmac::Key,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// A file holds something else.
    #[error("{}: {why}", path.display())]
    Content {
        /// Which one.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The certificate, its key and the authority do not go together.
    #[error("the certificate cannot be used: {0}")]
    Unusable(String),
}

// === impl Role ===

impl Role {
    /// As in names and labels.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Gateway => "gateway",
        }
    }

    /// The name in the certificate of every process of this role, or of one of them.
    #[must_use]
    pub fn certified(self, uid: Option<u64>) -> String {
        match uid {
            Some(uid) => format!("{uid:016x}.{}.chappe", self.name()),
            None => format!("{}.chappe", self.name()),
        }
    }

    /// Whether a process with this certificate may speak as this one.
    #[must_use]
    pub fn is_covered_by(self, uid: u64, certificate: &CertificateDer<'_>) -> bool {
        let Ok(certificate) = ParsedCertificate::try_from(certificate) else { return false };
        [self.certified(None), self.certified(Some(uid))]
            .into_iter()
            .any(|name| ServerName::try_from(name).is_ok_and(|name| verify_server_name(&certificate, &name).is_ok()))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

// === impl Identity ===

impl Identity {
    /// Reads the authority's certificate, the process's own (with what is between them, if anything is) and its key, all in
    /// PEM.
    ///
    /// # Errors
    /// When one of them cannot be read, or they do not go together, or the certificate's time is over.
    pub fn load(authority: &Path, certificate: &Path, key: &Path) -> Result<Self, IdentityError> {
        let roots = certificates(authority, &read(authority)?)?;
        let chain = certificates(certificate, &read(certificate)?)?;
        let key = PrivateKeyDer::from_pem_slice(&read(key)?)
            .map_err(|error| IdentityError::Content { path: key.to_owned(), why: error.to_string() })?;
        let secret = key.secret_der().to_vec();
        Self::new(&roots, chain, key, &secret)
    }

    /// Of what was read, or has just been made. The secret is one that outlives the process.
    pub(super) fn new(
        authorities: &[CertificateDer<'static>],
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        secret: &[u8],
    ) -> Result<Self, IdentityError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority.clone()).map_err(unusable)?;
        }
        let roots = Arc::new(roots);
        let ours = Arc::new(Ours { roots: Arc::clone(&roots), provider: Arc::clone(&provider) });
        let Some((own, between)) = chain.split_first() else {
            return Err(IdentityError::Unusable("there is none".to_owned()));
        };
        // What others are going to say of it is better said here.
        ours.judge(own, between, UnixTime::now()).map_err(unusable)?;
        let own = own.clone();

        let clients = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| IdentityError::Unusable(error.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(unusable)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        // Whoever comes back shows the certificate again, so that one that is no longer good is noticed.
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(ours)
            .with_client_auth_cert(chain, key)
            .map_err(unusable)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        Ok(Self(Arc::new(Inside { client: Arc::new(client), server: Arc::new(server), own, secret })))
    }

    pub(super) fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0.client)
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.server)
    }

    /// The key by which one life of a process says that it does not know a connection of the life before: see `settings`.
    pub(super) fn reset_key(&self, role: Role, uid: u64) -> hmac::Key {
        let of_process = format!("stateless reset of {}", role.certified(Some(uid)));
        hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&self.0.secret, of_process.as_bytes()).as_ref())
    }

    /// The process's own certificate.
    pub(super) fn own(&self) -> &CertificateDer<'static> {
        &self.0.own
    }
}

fn unusable(error: Error) -> IdentityError {
    IdentityError::Unusable(error.to_string())
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    fs::read(path).map_err(|error| IdentityError::File { path: path.to_owned(), error })
}

pub(super) fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let wrong = |why: String| IdentityError::Content { path: path.to_owned(), why };
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(found) if found.is_empty() => Err(wrong("it holds no certificate".to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(wrong(error.to_string())),
    }
}

/// Believes whoever the authority has vouched for, at any address. For whom, says the introduction that follows, and is
/// judged then.
#[derive(Debug)]
struct Ours {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl Ours {
    fn judge(&self, own: &CertificateDer<'_>, between: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(own)?,
            &self.roots,
            between,
            now,
            algorithms,
        )
    }
}

impl ServerCertVerifier for Ours {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
