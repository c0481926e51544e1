//! TLS on the clients' port: a certificate from files, which are read again when they change.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use chappe_cluster::process::metrics::{TLS_CERTIFICATE_READS_TOTAL, TLS_HANDSHAKES_TOTAL};
use metrics::{Counter, counter};
use parking_lot::{Mutex, RwLock};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::default_provider,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpStream,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::auth::source::{Print, print};

/// What an operator may set. Both files, or neither: then the port speaks plain TCP, as behind a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The certificate and those that lead from it to a root, in PEM, the server's own first.
    pub certificate_file: Option<PathBuf>,
    /// Its private key, in PEM (PKCS #8, PKCS #1 or SEC1).
    pub key_file: Option<PathBuf>,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One file is configured without the other.
    #[error("`certificate_file` and `key_file` are set together, or not at all")]
    Half,
    /// A file cannot be read, or is not what it should be.
    #[error("{}: {why}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl Error {
    /// The setting that it is about, below `gateway`.
    #[must_use]
    pub const fn setting(&self) -> &'static str {
        "tls"
    }
}

/// How long a client may take for its handshake: as for the head of its first request.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// HTTP/2 first: whoever knows it profits from it.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// TLS with a certificate that may be replaced.
pub(crate) struct Tls {
    acceptor: TlsAcceptor,
    certificate: Arc<Certificate>,
    done: Counter,
    failed: Counter,
}

/// The certificate that handshakes are made with.
struct Certificate {
    files: [PathBuf; 2],
    current: RwLock<Arc<CertifiedKey>>,
    /// The files as they were when they were last read.
    seen: Mutex<[Print; 2]>,
}

/// What is wrong with a configuration, if anything is. Reads only.
pub(crate) fn check(config: &Config) -> Option<Error> {
    Tls::read(config).err()
}

impl Tls {
    /// Reads what is configured; `None` if nothing is.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub(crate) fn read(config: &Config) -> Result<Option<Self>, Error> {
        let files = match (&config.certificate_file, &config.key_file) {
            (None, None) => return Ok(None),
            (Some(certificate), Some(key)) => [certificate.clone(), key.clone()],
            _ => return Err(Error::Half),
        };
        // Before they are read: what is written meanwhile is a change.
        let seen = [print(&files[0]), print(&files[1])];
        let current = Arc::new(read(&files)?);
        let certificate = Arc::new(Certificate { files, current: RwLock::new(current), seen: Mutex::new(seen) });
        let wrong = |error: rustls::Error| Error::File { path: certificate.files[0].clone(), why: error.to_string() };
        let mut server = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(wrong)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&certificate) as _);
        server.alpn_protocols = PROTOCOLS.iter().map(|name| name.to_vec()).collect();
        let handshakes = |result: &'static str| counter!(TLS_HANDSHAKES_TOTAL, "result" => result);
        let acceptor = TlsAcceptor::from(Arc::new(server));
        Ok(Some(Self { acceptor, certificate, done: handshakes("ok"), failed: handshakes("failed") }))
    }

    /// A client's handshake.
    pub(crate) async fn accept(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let accepted = timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)).await;
        if let Ok(Ok(stream)) = accepted {
            self.done.increment(1);
            return Some(stream);
        }
        // A stranger's nonsense, or a certificate that a client does not like: nothing that we could say more of.
        self.failed.increment(1);
        None
    }

    /// Looks at the files now and then, and reads them when they have changed. Connections that are open stay.
    pub(crate) async fn keep_fresh(self: Arc<Self>) {
        loop {
            sleep(LOOK).await;
            let certificate = Arc::clone(&self.certificate);
            // A disk may be slow.
            let _ = spawn_blocking(move || certificate.look()).await;
        }
    }

    /// Reads the files now.
    ///
    /// # Errors
    /// When they cannot be used: the certificate of before stays.
    pub(crate) fn reload(&self) -> Result<(), Error> {
        self.certificate.reload()
    }
}

impl Certificate {
    fn look(&self) {
        let found = [print(&self.files[0]), print(&self.files[1])];
        if *self.seen.lock() == found {
            return;
        }
        match self.reload() {
            Ok(()) => tracing::info!(event = "tls_certificate_read", "new connections get the new certificate"),
            // Between the writing of the two files they do not belong together: the next look finds the second one.
            Err(error) => tracing::warn!(event = "tls_certificate_refused", %error, "the one of before stays in force"),
        }
    }

    fn reload(&self) -> Result<(), Error> {
        *self.seen.lock() = [print(&self.files[0]), print(&self.files[1])];
        let read = read(&self.files);
        let result = if read.is_ok() { "ok" } else { "failed" };
        counter!(TLS_CERTIFICATE_READS_TOTAL, "result" => result).increment(1);
        *self.current.write() = Arc::new(read?);
        Ok(())
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read()))
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("files", &self.files).finish_non_exhaustive()
    }
}

/// The certificate in two files, which must belong together.
fn read([certificate, key]: &[PathBuf; 2]) -> Result<CertifiedKey, Error> {
    let wrong = |path: &Path, why: String| Error::File { path: path.to_owned(), why };
    let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| wrong(certificate, said(&error)))?;
    if chain.is_empty() {
        return Err(wrong(certificate, "there is no certificate in it".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, said(&error)))?;
    CertifiedKey::from_der(chain, private, &default_provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => wrong(key, "the key is not that of the certificate".to_owned()),
        error => wrong(certificate, error.to_string()),
    })
}

fn said(error: &rustls_pki_types::pem::Error) -> String {
    use rustls_pki_types::pem::Error;
    match error {
        Error::Io(error) if error.kind() == io::ErrorKind::NotFound => "there is no such file".to_owned(),
        Error::NoItemsFound => "there is nothing of this kind in it; expected PEM".to_owned(),
        error => error.to_string(),
    }
}
