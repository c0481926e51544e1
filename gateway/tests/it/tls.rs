//! TLS on the clients' port: a certificate that is replaced while people chat, and files that make no sense.

use std::{fs, path::Path, sync::Arc, time::Duration};

use chappe_gateway::tls;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::world::World;

/// Everything here is heard of within this time.
const SOON: Duration = Duration::from_secs(20);

fn write(folder: &Path, made: &CertifiedKey<rcgen::KeyPair>) {
    fs::write(folder.join("tls.crt"), made.cert.pem()).unwrap();
    fs::write(folder.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
}

fn made() -> CertifiedKey<rcgen::KeyPair> {
    generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap()
}

async fn world(folder: &Path) -> World {
    let tls = tls::Config { certificate_file: Some(folder.join("tls.crt")), key_file: Some(folder.join("tls.key")) };
    World::with(|config| config.tls = tls).await
}

/// A client that trusts this certificate and offers these protocols.
async fn connect(
    world: &World,
    trusted: &CertificateDer<'static>,
    protocols: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(world.gateway.address()).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
}

async fn ask(stream: &mut TlsStream<TcpStream>) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut buffer = vec![0; 4096];
    let count = stream.read(&mut buffer).await.unwrap();
    String::from_utf8_lossy(&buffer[..count]).into_owned()
}

#[tokio::test]
async fn a_certificate_is_replaced_while_its_clients_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (made(), made());
    write(folder.path(), &old);
    let world = world(folder.path()).await;
    assert!(world.gateway.has_tls());
    let mut early = connect(&world, old.cert.der(), &[]).await.unwrap();
    assert!(ask(&mut early).await.starts_with("HTTP/1.1 200"));
    assert!(connect(&world, new.cert.der(), &[]).await.is_err(), "it is another certificate");

    // Nonsense changes nothing.
    fs::write(folder.path().join("tls.crt"), "nonsense").unwrap();
    assert!(world.gateway.reload_certificate().unwrap().is_err());
    assert!(connect(&world, old.cert.der(), &[]).await.is_ok());

    // A renewed one is found by itself, whichever file is written first.
    write(folder.path(), &new);
    let ends = tokio::time::Instant::now() + SOON;
    while connect(&world, new.cert.der(), &[]).await.is_err() {
        assert!(tokio::time::Instant::now() < ends, "the new certificate is not used");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(connect(&world, old.cert.der(), &[]).await.is_err());
    assert!(ask(&mut early).await.starts_with("HTTP/1.1 200"), "who was there stays");
}

#[tokio::test]
async fn both_http_versions_are_offered() {
    let folder = tempfile::tempdir().unwrap();
    let own = made();
    write(folder.path(), &own);
    let world = world(folder.path()).await;
    for (offered, agreed) in [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&[], None)] {
        let mut stream = connect(&world, own.cert.der(), offered).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed.map(str::as_bytes));
        if agreed == Some("h2") {
            stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
            let mut settings = [0; 9];
            stream.read_exact(&mut settings).await.unwrap();
            assert_eq!(settings[3], 4, "the first frame is SETTINGS");
        } else {
            assert!(ask(&mut stream).await.starts_with("HTTP/1.1 200"));
        }
    }
    // Whoever speaks no TLS gets no answer, and costs nobody anything.
    let mut plain = TcpStream::connect(world.gateway.address()).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut heard = Vec::new();
    let _ = tokio::time::timeout(SOON, plain.read_to_end(&mut heard)).await.expect("the connection ends");
    assert!(!heard.starts_with(b"HTTP"));
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_begun() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (made(), made());
    write(folder.path(), &one);
    let at = |certificate: &str, key: &str| chappe_gateway::Config {
        tls: tls::Config {
            certificate_file: Some(folder.path().join(certificate)),
            key_file: Some(folder.path().join(key)),
        },
        ..chappe_gateway::Config::default()
    };
    let said = |config: chappe_gateway::Config| {
        config.check(folder.path()).iter().map(|problem| problem.to_string()).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(said(at("tls.crt", "tls.key")), "");
    fs::write(folder.path().join("other.key"), other.signing_key.serialize_pem()).unwrap();
    for (config, wrong) in [
        (at("tls.crt", "other.key"), "the key is not that of the certificate"),
        (at("nothing", "tls.key"), "there is no such file"),
        (at("tls.key", "tls.key"), "there is no certificate in it"),
        (at("tls.crt", "tls.crt"), "expected PEM"),
    ] {
        let said = said(config);
        assert!(said.contains("gateway.tls") && said.contains(wrong), "{said}");
    }
    let mut half = at("tls.crt", "tls.key");
    half.tls.key_file = None;
    assert!(said(half).contains("together"));
}
