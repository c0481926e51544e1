//! What an operator sees: health, metrics, configuration, a polite end.

use std::process::Command;

use chappe_loadtest::client::http::Http;

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
    let other = tempfile::tempdir().unwrap();
    let other = other.path().display().to_string();
    let (code, said) = run(&["--data-dir", &other, "--listen", "0.0.0.0:0", "--admin", "127.0.0.1:0"]);
    assert!(code == Some(1) && said.contains("key_file"), "{said}");
}
