//! Encrypted connections to the servers.
//!
//! The driver knows servers by their addresses, and asks for a certificate of the address. Where certificates carry a name
//! instead, [`Tls::name`] says which; every server has to have one of that name then.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use chappe_cluster::process::config::Problem;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::aws_lc_rs,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use serde::{Deserialize, Serialize};

/// The section `[cql.tls]`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// Whether connections are encrypted.
    pub enabled: bool,
    /// Who may vouch for the servers, in PEM; empty: whom the system trusts.
    pub ca_file: PathBuf,
    /// The name that the servers' certificates carry; empty: each its address.
    pub name: String,
    /// Our own certificate, for servers that want one, in PEM.
    pub certificate_file: PathBuf,
    /// Its private key, in PEM.
    pub key_file: PathBuf,
}

/// Why connections cannot be encrypted: by the setting that is wrong.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: {why}")]
pub struct TlsError {
    setting: &'static str,
    why: String,
}

impl Tls {
    /// Everything about these settings that would make a start fail.
    pub(super) fn check(&self) -> Vec<Problem> {
        if !self.enabled {
            return Vec::new();
        }
        let wrong = self.client().err();
        wrong.map(|wrong| Problem::at(format!("cql.tls.{}", wrong.setting), wrong.why)).into_iter().collect()
    }

    /// What the driver connects with.
    pub(super) fn client(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let roots = self.roots().map_err(|why| TlsError { setting: "ca_file", why })?;
        let at_all = |error: Error| TlsError { setting: "enabled", why: error.to_string() };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(at_all)?;
        let builder = if self.name.is_empty() {
            builder.with_root_certificates(roots)
        } else {
            let name = ServerName::try_from(self.name.clone())
                .map_err(|error| TlsError { setting: "name", why: error.to_string() })?;
            let by_webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| TlsError { setting: "ca_file", why: error.to_string() })?;
            // As careful as the usual one: only the name that it looks for is another.
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Named { name, by_webpki }))
        };
        let config = match (is_given(&self.certificate_file), is_given(&self.key_file)) {
            (false, false) => builder.with_no_client_auth(),
            (true, true) => {
                let certificates = certificates(&self.certificate_file)
                    .map_err(|why| TlsError { setting: "certificate_file", why })?;
                let wrong = |why: String| TlsError { setting: "key_file", why };
                let key = PrivateKeyDer::from_pem_file(&self.key_file).map_err(|error| wrong(error.to_string()))?;
                builder.with_client_auth_cert(certificates, key).map_err(|error| wrong(error.to_string()))?
            }
            _ => {
                let why = "a certificate and its key go together".to_owned();
                return Err(TlsError { setting: "certificate_file", why });
            }
        };
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, String> {
        let mut roots = RootCertStore::empty();
        if is_given(&self.ca_file) {
            for certificate in certificates(&self.ca_file)? {
                roots.add(certificate).map_err(|error| error.to_string())?;
            }
        } else {
            // Systems have a few that nobody can read; the others do.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        if roots.is_empty() { Err("no certificate was found".to_owned()) } else { Ok(roots) }
    }
}

fn is_given(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => Err(format!("{} holds no certificate", path.display())),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// Wants certificates of a name, whatever the address.
#[derive(Debug)]
struct Named {
    name: ServerName<'static>,
    by_webpki: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.by_webpki.verify_server_cert(end_entity, intermediates, &self.name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_webpki.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_webpki.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_webpki.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, net::SocketAddr};

    use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::{ServerConfig, server::WebPkiClientVerifier};
    use tempfile::TempDir;
    use tokio::{
        net::{TcpListener, TcpStream},
        runtime::{Builder, Runtime},
    };
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::store::cql::{Config, Cql, real};

    /// Somebody who vouches, and the files in which that stands.
    struct Authority {
        folder: TempDir,
        certificate: Certificate,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let certificate = params.self_signed(&key).unwrap();
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
            Self { folder, certificate, issuer: Issuer::new(params, key) }
        }

        fn file(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        /// A certificate for a name or an address, and its key.
        fn vouch(&self, name: &str) -> (Certificate, KeyPair) {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            (params.signed_by(&key, &self.issuer).unwrap(), key)
        }

        /// A door that speaks TLS, in front of a server that does not. Clients have to have a certificate of ours.
        fn door(&self, runtime: &Runtime, name: &str, server: &str) -> SocketAddr {
            let mut roots = RootCertStore::empty();
            roots.add(self.certificate.der().clone()).unwrap();
            let (provider, roots) = (Arc::new(aws_lc_rs::default_provider()), Arc::new(roots));
            let clients = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build().unwrap();
            let (certificate, key) = self.vouch(name);
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let config = ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_client_cert_verifier(clients)
                .with_single_cert(vec![certificate.der().clone()], key)
                .unwrap();
            let acceptor = TlsAcceptor::from(Arc::new(config));
            let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
            let address = listener.local_addr().unwrap();
            let server = server.to_owned();
            runtime.spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (acceptor, server) = (acceptor.clone(), server.clone());
                    tokio::spawn(async move {
                        let Ok(mut outside) = acceptor.accept(stream).await else { return };
                        let Ok(mut inside) = TcpStream::connect(server).await else { return };
                        // Until one of them has enough.
                        let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                    });
                }
            });
            address
        }
    }

    #[test]
    fn connections_are_encrypted_and_both_ends_show_who_they_are() {
        let Some(plain) = real::one_server("tls") else { return };
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (ours, others) = (Authority::new(), Authority::new());
        let (certificate, key) = ours.vouch("chappe");
        fs::write(ours.file("us.pem"), certificate.pem()).unwrap();
        fs::write(ours.file("us.key"), key.serialize_pem()).unwrap();
        let tls = Tls {
            enabled: true,
            ca_file: ours.file("ca.pem"),
            name: String::new(),
            certificate_file: ours.file("us.pem"),
            key_file: ours.file("us.key"),
        };
        let by_address = ours.door(&runtime, "127.0.0.1", &plain.contact_points[0]);
        let by_name = ours.door(&runtime, "cql.example", &plain.contact_points[0]);
        let open = |door: SocketAddr, tls: Tls| {
            let config = Config { contact_points: vec![door.to_string()], tls, ..plain.clone() };
            assert!(config.check().is_empty(), "{:?}", config.check());
            runtime.block_on(Cql::open(&config)).map(drop)
        };
        open(by_address, tls.clone()).unwrap();
        open(by_name, Tls { name: "cql.example".to_owned(), ..tls.clone() }).unwrap();

        let nobody = Tls { certificate_file: PathBuf::new(), key_file: PathBuf::new(), ..tls.clone() };
        for (why, door, tls) in [
            ("not encrypted", by_address, Tls::default()),
            ("others vouch", by_address, Tls { ca_file: others.file("ca.pem"), ..tls.clone() }),
            ("another's name", by_name, Tls { name: "db.example".to_owned(), ..tls.clone() }),
            ("a name where an address is wanted", by_name, tls.clone()),
            ("without a certificate of our own", by_address, nobody),
        ] {
            assert!(open(door, tls).is_err(), "{why}");
        }
        real::drop_keyspace(&runtime, &plain);
    }

    #[test]
    fn what_is_wrong_is_said_before_a_start() {
        let ours = Authority::new();
        let good = Tls { enabled: true, ca_file: ours.file("ca.pem"), ..Tls::default() };
        let keys = |tls: Tls| tls.check().into_iter().map(|problem| problem.key).collect::<Vec<_>>();
        assert!(keys(good.clone()).is_empty());
        let missing = ours.file("nowhere.pem");
        assert_eq!(keys(Tls { ca_file: missing.clone(), ..good.clone() }), ["cql.tls.ca_file"]);
        assert_eq!(keys(Tls { name: "two words".to_owned(), ..good.clone() }), ["cql.tls.name"]);
        assert_eq!(keys(Tls { key_file: missing.clone(), ..good.clone() }), ["cql.tls.certificate_file"]);
        let unread = Tls { certificate_file: ours.file("ca.pem"), key_file: missing.clone(), ..good };
        assert_eq!(keys(unread), ["cql.tls.key_file"]);
        // Of no account where nothing is encrypted.
        assert!(keys(Tls { ca_file: missing, ..Tls::default() }).is_empty());
    }
}
