//! Certificates: whom they cover, how they are made and read.

use std::{fs, os::unix::fs::PermissionsExt, sync::Barrier, thread};

use super::*;
use crate::link::quic::identity::IdentityError;

#[test]
fn a_certificate_covers_its_role_and_a_strict_one_its_process_only() {
    let world = World::new();
    let node = world.authority.issue(Role::Node, None).unwrap();
    assert!(Role::Node.is_covered_by(7, node.own()) && Role::Node.is_covered_by(8, node.own()));
    assert!(!Role::Gateway.is_covered_by(7, node.own()));
    let strict = world.authority.issue(Role::Node, Some(7)).unwrap();
    assert!(Role::Node.is_covered_by(7, strict.own()));
    assert!(!Role::Node.is_covered_by(8, strict.own()) && !Role::Gateway.is_covered_by(7, strict.own()));
    let gateway = world.authority.issue(Role::Gateway, None).unwrap();
    assert!(Role::Gateway.is_covered_by(7, gateway.own()) && !Role::Node.is_covered_by(7, gateway.own()));
}

#[test]
fn processes_that_begin_an_authority_at_once_have_the_same() {
    for _ in 0..8 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tls");
        let all = Barrier::new(6);
        let begin = || {
            all.wait();
            Authority::open_or_create(&path).unwrap().certificate_pem().to_owned()
        };
        let found: Vec<String> = thread::scope(|scope| {
            let threads: Vec<_> = (0..6).map(|_| scope.spawn(begin)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(found.iter().all(|pem| *pem == found[0] && pem.contains("BEGIN CERTIFICATE")));
        assert!(!found[0].contains("PRIVATE"), "the public part is public");
        let mut files: Vec<_> =
            fs::read_dir(&path).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        assert_eq!(files, ["authority.pem", "ca.pem"]);
        let mode = fs::metadata(path.join("authority.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_to_string(path.join("ca.pem")).unwrap(), found[0]);
    }
}

#[test]
fn what_an_authority_issues_can_be_read_from_files_and_what_is_wrong_is_said() {
    let (world, other) = (World::new(), World::new());
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let (certificate, key) = world.authority.issue_pem(Role::Node, Some(7)).unwrap();
    let (_, other_key) = world.authority.issue_pem(Role::Node, Some(7)).unwrap();
    let ca = write("ca.pem", world.authority.certificate_pem());
    let certificate = write("node.pem", &certificate);
    let key = write("node.key", &key);
    let identity = Identity::load(&ca, &certificate, &key).unwrap();
    assert!(Role::Node.is_covered_by(7, identity.own()));

    let foreign = write("foreign.pem", other.authority.certificate_pem());
    let other_key = write("other.key", &other_key);
    let empty = write("empty.pem", "nothing");
    let missing = folder.path().join("missing.pem");
    assert!(matches!(Identity::load(&foreign, &certificate, &key), Err(IdentityError::Unusable(_))));
    assert!(matches!(Identity::load(&ca, &certificate, &other_key), Err(IdentityError::Unusable(_))));
    assert!(matches!(Identity::load(&empty, &certificate, &key), Err(IdentityError::Content { .. })));
    assert!(matches!(Identity::load(&ca, &certificate, &empty), Err(IdentityError::Content { .. })));
    assert!(matches!(Identity::load(&ca, &missing, &key), Err(IdentityError::File { .. })));

    let hour = Duration::from_secs(3600);
    let now = SystemTime::now();
    assert!(world.identity("node.chappe", now - hour, 2 * hour).is_ok());
    let error = world.identity("node.chappe", now - 2 * hour, hour).err().unwrap();
    assert!(error.to_string().contains("expired"), "{error}");
    assert!(world.identity("node.chappe", now + hour, hour).is_err());
}

#[tokio::test]
async fn an_endpoint_is_not_bound_with_anothers_certificate() {
    let world = World::new();
    let identity = world.authority.issue(Role::Gateway, None).unwrap();
    let bound = Endpoint::bind(HERE, identity, hello(Role::Node, 1), Settings::default(), Arc::new(Probe::default()));
    let said = bound.err().unwrap().to_string();
    assert!(said.contains("neither for node.chappe nor for 0000000000000001.node.chappe"), "{said}");
}
