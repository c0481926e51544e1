//! What an operator sees: health, metrics, configuration, a polite end.

use std::{
    os::unix::fs::PermissionsExt,
    process::Command,
    time::{Duration, Instant},
};

use chappe_loadtest::{
    client::{http::Http, token::Signer},
    server::Setup,
};
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_port_tells_how_it_is() {
    let mut server = super::server().await;
    let admin = Http::new(&server.admin_url());
    for path in ["/livez", "/readyz", "/readyz?verbose", "/startupz", "/health", "/version", "/metrics"] {
        assert!(!admin.text(path).await.unwrap().is_empty(), "{path}");
    }
    let verbose = admin.text("/readyz?verbose").await.unwrap();
    for condition in ["log_open", "entities", "clients"] {
        assert!(verbose.contains(condition), "{verbose}");
    }
    let token = Http::new(&server.url()).token("ada").await.unwrap();
    assert!(!token.is_empty());
    let metrics = admin.text("/metrics").await.unwrap();
    assert!(metrics.contains("chappe_build_info{"), "{metrics}");
    assert!(!metrics.contains("ada"), "a user's name is in the metrics");
    assert!(server.terminate().await.unwrap().success(), "a polite end has status 0");
    // The same directory again, and nothing has been lost of it.
    server.restart().await.unwrap();
    assert!(Http::new(&server.url()).token("ada").await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_start_is_refused_with_a_sentence() {
    let server = super::server().await;
    let run = |args: &[&str]| {
        let output = Command::new(server.binary()).args(args).output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout),
        )
    };
    let (code, said) = run(&["--check-config", "--set", "gateway.listne=1", "--set", "node.shards=many"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("gateway.listne") && said.contains("node.shards"), "not every mistake is named: {said}");
    assert_eq!(run(&["--check-config"]).0, Some(0));
    let (code, dumped) = run(&["--dump-config", "--set", "node.shards=3"]);
    assert!(code == Some(0) && dumped.contains("shards = 3"), "{dumped}");
    // Two processes never share a log.
    let data = server.data_dir().display().to_string();
    let (code, said) = run(&["--data-dir", &data, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    assert!(code == Some(1) && said.contains(&data), "{said}");
    // Beyond loopback a key is needed.
    let home = tempfile::tempdir().unwrap();
    let other = home.path().join("other").display().to_string();
    let url = server.url();
    let listen = url.trim_start_matches("http://");
    let (code, said) = run(&["--data-dir", &other, "--listen", "0.0.0.0:0", "--admin", "127.0.0.1:0"]);
    assert!(code == Some(2) && said.contains("gateway.auth.key_file"), "{said}");
    assert!(!home.path().join("other").exists(), "a start that is refused opens nothing");
    // A port that is taken is found out before the data is touched.
    let (code, said) = run(&["--data-dir", &other, "--listen", listen, "--admin", "127.0.0.1:0"]);
    assert!(code == Some(1) && said.contains(listen), "{said}");
    assert!(!home.path().join("other").exists(), "a start that is refused opens nothing");
}

/// Goal: `--check-config` refuses what the start would refuse and what nobody can mean, by the setting's path, and leaves
/// no traces.
#[test]
fn nonsense_is_refused_by_its_path() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data").display().to_string();
    let file = home.path().join("file");
    std::fs::write(&file, "short").unwrap();
    let file = file.display().to_string();
    let check = |set: &[&str]| {
        let set = set.iter().flat_map(|set| ["--set", set]);
        let output =
            Command::new(super::binary()).args(["--check-config", "--data-dir", &data]).args(set).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(check(&[]).0, Some(0));
    let in_file = format!("server.data_dir={file}");
    let below_file = format!("server.data_dir={file}/data");
    let short_key = format!("gateway.auth.key_file={file}");
    let no_set = format!("gateway.auth.jwks_file={file}");
    let no_keys = format!("gateway.auth.api_keys_file={file}");
    for (set, path) in [
        ("server.data_dir=", "server.data_dir"),
        (&in_file, "server.data_dir"),
        (&below_file, "server.data_dir"),
        ("server.admin=127.0.0.1:8080", "server.admin"),
        ("server.admin=0.0.0.0:8080", "server.admin"),
        ("server.admin=224.0.0.1:1", "server.admin"),
        ("server.drain_delay=1h", "server.drain_delay"),
        ("log.filter=a=b=c", "log.filter"),
        ("node.shards=100000", "node.shards"),
        ("node.idle_after=0s", "node.idle_after"),
        ("node.entity_memory=1 KiB", "node.entity_memory"),
        ("store.cache_size=0", "store.cache_size"),
        ("store.journal_size_max=1MiB", "store.journal_size_max"),
        ("store.log_memtable_size=0", "store.log_memtable_size"),
        ("store.table_memtable_size=100TiB", "store.table_memtable_size"),
        ("store.free_space_min=100TiB", "store.free_space_min"),
        ("gateway.listen=0.0.0.0:8080", "gateway.auth.key_file"),
        ("gateway.allowed_origins=chat.example.com", "gateway.allowed_origins.0"),
        ("gateway.trusted_proxies=nonsense", "gateway.trusted_proxies"),
        ("gateway.drain_window=9h", "gateway.drain_window"),
        ("gateway.limits.keys_max=0", "gateway.limits.keys_max"),
        ("gateway.auth.leeway_s=31", "gateway.auth.leeway_s"),
        ("gateway.auth.expiry_grace=1m", "gateway.auth.expiry_grace"),
        ("gateway.auth.api_keys_file=", "gateway.auth.api_keys_file"),
        (&no_keys, "gateway.auth.api_keys_file"),
        (&no_set, "gateway.auth.jwks_file"),
        ("gateway.auth.jwks_url=https://id.example.com/keys", "gateway.auth.jwks_url"),
        ("gateway.auth.jwks_refresh=2d", "gateway.auth.jwks_refresh"),
        ("gateway.auth.jwks_ca_file=/nonexistent", "gateway.auth.jwks_ca_file"),
        (&short_key, "gateway.auth.key_file"),
    ] {
        let (code, said) = check(&[set]);
        assert!(code == Some(2) && said.contains(path), "{set}: {said}");
    }
    let (_, said) = check(&["node.shards=100000", "gateway.auth.leeway_s=31", "store.cache_size=0"]);
    assert!(said.contains("3 problems"), "not all of them are named: {said}");
    assert!(!home.path().join("data").exists(), "a check leaves no traces");
}

/// Goal: whoever asks `/readyz` hears of the end before clients do. Method: a pause of two seconds, looked at from both
/// ports.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_asked_to_end_serves_through_its_pause() {
    let args = ["--set", "gateway.drain_window=0s", "--set", "server.drain_delay=2s"].map(str::to_owned).to_vec();
    let mut server = super::start(Setup { args, ..Setup::default() }).await.unwrap();
    let began = Instant::now();
    server.signal(Signal::TERM).unwrap();
    let admin = Http::new(&server.admin_url());
    while admin.text("/readyz").await.is_ok() {
        assert!(began.elapsed() < Duration::from_secs(1), "/readyz still says yes");
    }
    // A client of its own, so a connection of its own.
    assert!(Http::new(&server.url()).token("ada").await.is_ok(), "clients are still let in");
    assert!(server.ended().await.unwrap().success());
    assert!(began.elapsed() >= Duration::from_secs(2));

    server.restart().await.unwrap();
    let began = Instant::now();
    server.signal(Signal::TERM).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.signal(Signal::TERM).unwrap();
    assert_eq!(server.ended().await.unwrap().code(), Some(143), "a second signal ends it there and then");
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_rotated_without_a_restart() {
    let (keys, next) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let key = |dir: &tempfile::TempDir| dir.path().join("dev-token.secret");
    std::fs::write(key(&keys), "the first secret, which is long enough\n").unwrap();
    std::fs::write(key(&next), "the second secret, which is long enough\n").unwrap();
    let args = vec!["--set".to_owned(), format!("gateway.auth.key_file={}", key(&keys).display())];
    let server = super::start(Setup { args, ..Setup::default() }).await.unwrap();
    let [first, second] = [&keys, &next].map(|dir| Signer::of_data_dir(dir.path()).unwrap().sign("ada").unwrap());
    let http = Http::new(&server.url());
    let holds = async |token: &str| {
        http.call(hyper::Method::GET, "/v1/conversations", Some(token), None).await.unwrap().status == 200
    };
    let said = async |event: &str| {
        let began = Instant::now();
        while !server.last_words().contains(event) {
            assert!(began.elapsed() < Duration::from_secs(10), "no {event}: {}", server.last_words());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(holds(&first).await && !holds(&second).await);
    std::fs::write(key(&keys), "short").unwrap();
    server.signal(Signal::HUP).unwrap();
    said("configuration_reload_failed").await;
    assert!(holds(&first).await && !holds(&second).await, "a bad file keeps the old key");
    std::fs::copy(key(&next), key(&keys)).unwrap();
    server.signal(Signal::HUP).unwrap();
    said("configuration_reloaded").await;
    assert!(!holds(&first).await && holds(&second).await);
}

/// The key pair of RFC 8037, appendix A.
const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
const PUBLISHED: &str =
    r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"1","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

/// Goal: a server whose issuer cannot be reached yet starts, is not ready, and is as soon as it has the keys. Method: an
/// issuer that hangs up on whoever asks first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_ready_when_it_has_its_issuers_keys() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = listener.local_addr().unwrap();
    tokio::spawn(async move {
        drop(listener.accept().await.unwrap());
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{PUBLISHED}", PUBLISHED.len());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let set = [format!("gateway.auth.jwks_url=http://{issuer}/keys"), "gateway.auth.algorithm=EdDSA".to_owned()];
    let args = set.into_iter().flat_map(|set| ["--set".to_owned(), set]).collect();
    // Waits for `/readyz`.
    let server = super::start(Setup { args, ..Setup::default() }).await.unwrap();
    assert!(server.last_words().contains("auth_keys_refresh_failed"), "{}", server.last_words());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let header =
        jsonwebtoken::Header { kid: Some("1".into()), ..jsonwebtoken::Header::new(jsonwebtoken::Algorithm::EdDSA) };
    let key = jsonwebtoken::EncodingKey::from_ed_pem(PRIVATE.as_bytes()).unwrap();
    let token = jsonwebtoken::encode(&header, &serde_json::json!({ "sub": "ada", "exp": now + 60 }), &key).unwrap();
    let answer = Http::new(&server.url()).call(hyper::Method::GET, "/v1/conversations", Some(&token), None).await;
    assert_eq!(answer.unwrap().status, 200);
    let metrics = server.metrics().await.unwrap();
    assert_eq!(metrics.get("chappe_auth_keys"), 1.0);
}

/// Goal: nobody but the server's own user reads what people said. Method: every file and folder of a data directory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_is_for_its_owner_only() {
    let mut server = super::server().await;
    Http::new(&server.url()).token("ada").await.unwrap();
    let mut open = Vec::new();
    let mut folders = vec![server.data_dir().to_owned()];
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    while let Some(folder) = folders.pop() {
        open.extend(Some(folder.clone()).filter(|folder| mode(folder) & 0o077 != 0));
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => open.extend(Some(path).filter(|path| mode(path) & 0o077 != 0)),
            }
        }
    }
    assert!(open.is_empty(), "{open:?}");
    assert!(!server.last_words().contains("data_directory_open"));
    // One that others may read is served, and said to be so.
    std::fs::set_permissions(server.data_dir(), std::fs::Permissions::from_mode(0o755)).unwrap();
    server.restart().await.unwrap();
    assert!(server.last_words().contains("data_directory_open"), "{}", server.last_words());
}

/// Goal: a log that cannot be written harms nobody. Method: standard error is a device that is always full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_on_a_full_disk_does_not_end_the_server() {
    let wrapper = ["sh", "-c", "exec \"$0\" \"$@\" 2>/dev/full"].map(str::to_owned).to_vec();
    let mut server = super::start(Setup { unlimited: true, wrapper, ..Setup::default() }).await.unwrap();
    let http = Http::new(&server.url());
    for user in ["ada", "bob"] {
        assert!(!http.token(user).await.unwrap().is_empty());
    }
    assert!(!server.has_ended().unwrap());
    assert!(server.terminate().await.unwrap().success(), "a polite end has status 0");
}
