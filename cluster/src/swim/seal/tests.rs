use super::*;

fn pair() -> (Sealer, Opener) {
    let keys = Keys::new(&[[7; 32]]).unwrap();
    (Sealer::new(&keys, [1; LIFE]), Opener::new(keys))
}

fn sealed(sealer: &mut Sealer, cluster: u128, payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    sealer.seal(cluster, payload, &mut datagram);
    datagram
}

#[test]
fn what_is_sealed_is_opened_once() {
    let (mut sealer, mut opener) = pair();
    let (first, second) = (sealed(&mut sealer, 0, b"one"), sealed(&mut sealer, 0, b""));
    assert_eq!(opener.open(&second, 0), Ok(&b""[..]), "one may overtake another");
    assert_eq!(opener.open(&first, 0), Ok(&b"one"[..]));
    assert_eq!(opener.open(&first, 0), Err(Dropped::Replayed));
    assert_eq!(opener.open(&second, 0), Err(Dropped::Replayed));
    assert!(!first.windows(3).any(|window| window == b"one"), "it is not readable");
    let largest = sealed(&mut sealer, 0, &[5; PAYLOAD_MAX]);
    assert_eq!((largest.len(), opener.open(&largest, 0).map(<[u8]>::len)), (DATAGRAM_MAX, Ok(PAYLOAD_MAX)));
}

#[test]
fn no_changed_byte_and_no_shorter_datagram_is_opened() {
    let (mut sealer, mut opener) = pair();
    let datagram = sealed(&mut sealer, 0, b"the payload");
    for at in 0..datagram.len() {
        for bit in 0..8 {
            let mut garbled = datagram.clone();
            garbled[at] ^= 1 << bit;
            let expected = if at == 0 { Dropped::Version } else { Dropped::Seal };
            assert_eq!(opener.open(&garbled, 0), Err(expected), "byte {at}, bit {bit}");
        }
        let short = if at < HEAD + CLUSTER + TAG { Dropped::Size } else { Dropped::Seal };
        assert_eq!(opener.open(&datagram[..at], 0), Err(short), "{at} bytes");
    }
    let mut longer = datagram.clone();
    longer.push(0);
    assert_eq!(opener.open(&longer, 0), Err(Dropped::Seal));
    longer.resize(DATAGRAM_MAX + 1, 0);
    assert_eq!(opener.open(&longer, 0), Err(Dropped::Size));
    assert_eq!(opener.lives.len(), 0, "nothing is remembered of what is not authentic");
    assert_eq!(opener.open(&datagram, 0), Ok(&b"the payload"[..]), "nothing of it did any harm");
}

#[test]
fn another_key_and_another_cluster_are_refused() {
    let (mut sealer, mut opener) = pair();
    let mut foreign = Sealer::new(&Keys::new(&[[8; 32]]).unwrap(), [2; LIFE]);
    assert_eq!(opener.open(&sealed(&mut foreign, 0, b"x"), 0), Err(Dropped::Seal));
    assert_eq!(opener.open(&sealed(&mut sealer, 5, b"x"), 6), Err(Dropped::Cluster));
    // Whoever does not know its cluster yet is heard, and hears.
    assert_eq!(opener.open(&sealed(&mut sealer, 0, b"x"), 6), Ok(&b"x"[..]));
    assert_eq!(opener.open(&sealed(&mut sealer, 5, b"x"), 0), Ok(&b"x"[..]));
    assert_eq!(opener.open(&sealed(&mut sealer, 6, b"x"), 6), Ok(&b"x"[..]));
}

#[test]
fn keys_are_replaced_step_by_step() {
    let keys = |bytes: &[u8]| Keys::new(&bytes.iter().map(|byte| [*byte; 32]).collect::<Vec<_>>()).unwrap();
    let mut opener = Opener::new(keys(&[1, 2]));
    let (mut old, mut new) = (Sealer::new(&keys(&[1, 2]), [1; LIFE]), Sealer::new(&keys(&[2, 1]), [2; LIFE]));
    let first = sealed(&mut old, 0, b"old");
    assert_eq!(opener.open(&first, 0), Ok(&b"old"[..]));
    let second = sealed(&mut new, 0, b"new");
    assert_eq!(opener.open(&second, 0), Ok(&b"new"[..]));
    opener.replace(keys(&[2, 3]));
    assert_eq!(opener.open(&sealed(&mut old, 0, b"old"), 0), Err(Dropped::Seal));
    assert_eq!(opener.open(&second, 0), Err(Dropped::Replayed), "what a key that stays was used for is still known");
}

#[test]
fn the_window_knows_what_it_has_seen_and_refuses_what_is_older() {
    let mut seen = Seen::default();
    assert!(seen.note(0) && !seen.note(0));
    assert!(seen.note(5_000) && !seen.note(5_000));
    assert!(!seen.note(5_000 - WINDOW), "that is too old to know");
    assert!(seen.note(5_001 - WINDOW) && !seen.note(5_001 - WINDOW));
    for count in (4_500..5_000).rev() {
        assert!(seen.note(count) && !seen.note(count), "{count}");
    }
    assert!(seen.note(5_001) && !seen.note(5_000) && !seen.note(4_999));
    assert!(!seen.note(u64::MAX) && seen.note(u64::MAX - 1) && !seen.note(u64::MAX - 1) && !seen.note(5_001));
}

#[test]
fn remembered_lives_are_bounded() {
    let keys = Keys::new(&[[7; 32]]).unwrap();
    let mut opener = Opener::new(keys.clone());
    let life = |number: u64| {
        let mut life = [0; LIFE];
        life[..8].copy_from_slice(&number.to_be_bytes());
        life
    };
    let mut first = Sealer::new(&keys, life(0));
    for number in 0..LIVES_MAX as u64 + 10 {
        let mut sealer = Sealer::new(&keys, life(number + 1));
        assert!(opener.open(&sealed(&mut sealer, 0, b"x"), 0).is_ok());
        // This one is heard all the time.
        assert!(opener.open(&sealed(&mut first, 0, b"x"), 0).is_ok());
    }
    assert_eq!(opener.lives.len(), LIVES_MAX);
    assert!(opener.lives.contains_key(&life(0)) && !opener.lives.contains_key(&life(1)));
}

#[test]
fn keys_are_read_and_never_shown() {
    let (one, two) = ("0f".repeat(32), "A0".repeat(32));
    let keys = Keys::parse(&format!("# the cluster's\n{one}\n\n  {two}\n")).unwrap();
    assert_eq!(keys, Keys::new(&[[0x0f; 32], [0xa0; 32]]).unwrap());
    assert_eq!(format!("{keys:?}"), "Keys(2 of ***)");
    let fails = |text: &str| Keys::parse(text).unwrap_err().to_string();
    assert_eq!(
        fails(&format!("{one}\nhunter2")),
        "line 2 of the cluster's keys is not 64 hexadecimal digits (openssl rand -hex 32)"
    );
    assert!(fails(&one[1..]).starts_with("line 1 "));
    assert_eq!(fails("# nothing"), "there are 0 cluster keys; one to 4 can be in force");
    assert!(fails(&format!("{one}\n").repeat(5)).starts_with("there are 5 "));
    let dir = tempfile::tempdir().unwrap();
    let file = SecretFile::new(dir.path().join("cluster.key"));
    assert!(Keys::read(&file).unwrap_err().to_string().contains("cluster.key"));
    std::fs::write(file.path(), format!("{one}\n")).unwrap();
    assert_eq!(Keys::read(&file).unwrap(), Keys::new(&[[0x0f; 32]]).unwrap());
}
