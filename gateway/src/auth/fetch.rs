//! Fetching a key set: one GET over HTTPS, bounded in time and size, no redirects followed, nothing kept.
//!
//! Plain HTTP is for an issuer on the same machine only: whoever could change what is fetched could let anybody in.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Uri, header, uri::Scheme};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    task::{JoinSet, spawn_blocking},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::key_set::SET_BYTES_MAX;

/// How long one fetch may take, from the look-up of the name to the last byte. Longer: it has failed.
const FETCH_MAX: Duration = Duration::from_secs(10);

/// Room for the head of an answer.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;

/// Where a key set is fetched from, and who vouches for the server there.
#[derive(Debug)]
pub(super) struct Target {
    uri: Uri,
    host: String,
    port: u16,
    is_https: bool,
    ca_file: Option<PathBuf>,
}

/// Why a URL is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// It is none.
    #[error("is not a URL: expected https://host/path")]
    Malformed,
    /// It would send a secret in clear.
    #[error("holds a user or a password, which are not accepted")]
    UserInfo,
    /// Whoever stands in between could let anybody in.
    #[error("is http, which is accepted for loopback addresses only")]
    NotLoopback,
}

/// Why a fetch failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("it took longer than {} seconds", FETCH_MAX.as_secs())]
    Timeout,
    #[error("the name cannot be looked up")]
    Resolve(#[source] io::Error),
    #[error("the name has no address that may be used")]
    NoAddress,
    #[error("nobody can be reached there")]
    Connect(#[source] io::Error),
    #[error("there are no certificates to check the server with: {0}")]
    Roots(String),
    #[error("the server's certificate or handshake is not acceptable")]
    Tls(#[source] io::Error),
    #[error("the answer is not HTTP")]
    Http(#[source] hyper::Error),
    #[error("the answer's status is {0}; redirects are not followed")]
    Status(u16),
    #[error("the answer broke off or is larger than {SET_BYTES_MAX} bytes")]
    Body,
    #[error("the key set is not usable: {0}")]
    Set(String),
}

impl Target {
    /// The target of a URL.
    ///
    /// # Errors
    /// When nothing may be fetched from there.
    pub(super) fn new(url: &str, ca_file: Option<&Path>) -> Result<Self, BadUrl> {
        let uri = Uri::from_str(url).map_err(|_| BadUrl::Malformed)?;
        let authority = uri.authority().ok_or(BadUrl::Malformed)?;
        if authority.as_str().contains('@') {
            return Err(BadUrl::UserInfo);
        }
        let is_https = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err(BadUrl::Malformed),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if ServerName::try_from(host.clone()).is_err() {
            return Err(BadUrl::Malformed);
        }
        let is_here = host.parse::<IpAddr>().map_or(host == "localhost", is_loopback);
        if !is_https && !is_here {
            return Err(BadUrl::NotLoopback);
        }
        let port = authority.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        Ok(Self { host, port, is_https, ca_file: ca_file.map(Path::to_owned), uri })
    }

    /// As it was configured, to be shown.
    pub(super) const fn url(&self) -> &Uri {
        &self.uri
    }

    pub(super) const fn is_https(&self) -> bool {
        self.is_https
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Those who may vouch for a server: of a file, or the system's.
pub(super) fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            for certificate in certificates.map_err(|error| error.to_string())? {
                store.add(certificate).map_err(|error| error.to_string())?;
            }
        }
        None => {
            // Systems have a few that nobody can read; the others do.
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if store.is_empty() {
        return Err("none was found".to_owned());
    }
    Ok(store)
}

/// The document at `target`.
pub(super) async fn fetch(target: &Target) -> Result<Bytes, Error> {
    timeout(FETCH_MAX, fetch_patiently(target)).await.unwrap_or(Err(Error::Timeout))
}

async fn fetch_patiently(target: &Target) -> Result<Bytes, Error> {
    let stream = connect(target).await?;
    if !target.is_https {
        return get(target, stream).await;
    }
    // Read each time: certificates are replaced like keys, and this is rare.
    let ca_file = target.ca_file.clone();
    let read = spawn_blocking(move || roots(ca_file.as_deref()));
    let roots = read.await.map_err(|error| Error::Roots(error.to_string()))?.map_err(Error::Roots)?;
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Tls(io::Error::other(error)))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(target.host.clone()).map_err(|error| Error::Tls(io::Error::other(error)))?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(Error::Tls)?;
    get(target, stream).await
}

async fn connect(target: &Target) -> Result<TcpStream, Error> {
    let found = lookup_host((target.host.as_str(), target.port)).await.map_err(Error::Resolve)?;
    // A name that was taken for this machine's may lead elsewhere.
    let usable = found.filter(|address| target.is_https || is_loopback(address.ip()));
    let addresses: Vec<SocketAddr> = usable.take(ADDRESSES_MAX).collect();
    let mut failed = Error::NoAddress;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = Error::Connect(error),
        }
    }
    Err(failed)
}

async fn get(target: &Target, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Bytes, Error> {
    let mut client = http1::Builder::new();
    client.max_buf_size(HEAD_BYTES_MAX);
    let (mut sender, connection) = client.handshake(TokioIo::new(stream)).await.map_err(Error::Http)?;
    // Ends with the fetch, however that ends.
    let mut driving = JoinSet::new();
    driving.spawn(async move {
        // Whatever goes wrong is told to the request.
        let _ = connection.await;
    });
    let path = target.uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = target.uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(path)
        .header(header::HOST, authority)
        .header(header::ACCEPT, "application/jwk-set+json, application/json")
        .header(header::USER_AGENT, concat!("chappe/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|_| Error::NoAddress)?;
    let response = sender.send_request(request).await.map_err(Error::Http)?;
    if response.status() != http::StatusCode::OK {
        return Err(Error::Status(response.status().as_u16()));
    }
    let body = Limited::new(response.into_body(), SET_BYTES_MAX).collect().await;
    body.map(http_body_util::Collected::to_bytes).map_err(|_| Error::Body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_fetched_from_where() {
        for url in [
            "https://id.example.com/.well-known/jwks.json",
            "https://id.example.com:8443/keys?v=1",
            "https://192.0.2.7/",
            "https://[2001:db8::1]/keys",
            "http://localhost:8080/keys",
            "http://127.0.0.1/keys",
            "http://[::1]:9/keys",
        ] {
            assert!(Target::new(url, None).is_ok(), "{url}");
        }
        for (url, why) in [
            ("", BadUrl::Malformed),
            ("/keys", BadUrl::Malformed),
            ("id.example.com/keys", BadUrl::Malformed),
            ("ftp://id.example.com/keys", BadUrl::Malformed),
            ("file:///etc/keys", BadUrl::Malformed),
            ("https://", BadUrl::Malformed),
            ("https://a b/keys", BadUrl::Malformed),
            ("https://user:secret@id.example.com/keys", BadUrl::UserInfo),
            ("http://id.example.com/keys", BadUrl::NotLoopback),
            ("http://192.0.2.7/keys", BadUrl::NotLoopback),
            ("http://localhost.example.com/keys", BadUrl::NotLoopback),
        ] {
            assert_eq!(Target::new(url, None).err(), Some(why), "{url}");
        }
    }

    #[test]
    fn those_who_vouch_are_read_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        assert!(roots(Some(&path)).is_err());
        std::fs::write(&path, "nothing\n").unwrap();
        assert!(roots(Some(&path)).is_err());
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&path, made.cert.pem().repeat(2)).unwrap();
        assert_eq!(roots(Some(&path)).unwrap().len(), 2);
    }
}
