//! Goal: of a published set only the keys for the configured algorithm count, and a token chooses among them by name and
//! nothing else.

use jsonwebtoken::{Header, encode, jwk::Jwk as Published};
use serde_json::{Value, json};

use super::*;
use crate::auth::{
    Config, Verifier,
    tests::{Issuer, NOW_MS, claims},
};

/// The public half of an issuer's key, as it would publish it.
pub(crate) fn published(issuer: &Issuer, kid: Option<&str>) -> Value {
    let jwk = Published::from_encoding_key(&issuer.signing, issuer.algorithm.into()).unwrap();
    let mut jwk = serde_json::to_value(jwk).unwrap();
    if let Some(kid) = kid {
        jwk["kid"] = json!(kid);
    }
    jwk["use"] = json!("sig");
    jwk
}

fn parsed(algorithm: Algorithm, keys: &[Value]) -> Result<KeySet, String> {
    KeySet::parse(json!({ "keys": keys }).to_string().as_bytes(), algorithm)
}

fn verifier(algorithm: Algorithm, keys: &[Value]) -> Verifier {
    let config = Config { algorithm, ..Config::default() };
    Verifier::of_set(&config, parsed(algorithm, keys).unwrap())
}

fn signed(issuer: &Issuer, kid: Option<&str>) -> String {
    let header = Header { kid: kid.map(str::to_owned), ..Header::new(issuer.algorithm.into()) };
    encode(&header, &claims(json!({})), &issuer.signing).unwrap()
}

fn refusal(verifier: &Verifier, token: &str) -> Option<Error> {
    verifier.verify(token, NOW_MS).err()
}

#[test]
fn each_algorithm_takes_its_own_keys_by_name() {
    for make in [Issuer::hs256, Issuer::eddsa, Issuer::rs256, Issuer::es256] {
        let (one, other) = (make(), make());
        let verifier = verifier(one.algorithm, &[published(&one, Some("1")), published(&other, Some("2"))]);
        assert_eq!(refusal(&verifier, &signed(&one, Some("1"))), None, "{}", one.algorithm);
        if one.algorithm != Algorithm::HS256 {
            assert_eq!(refusal(&verifier, &signed(&one, Some("2"))), Some(Error::Signature), "another's name");
        }
        assert_eq!(refusal(&verifier, &signed(&one, Some("3"))), Some(Error::UnknownKey));
        assert_eq!(refusal(&verifier, &signed(&one, Some(""))), Some(Error::UnknownKey));
        assert_eq!(refusal(&verifier, &signed(&one, None)), Some(Error::KeyNotNamed));
    }
}

#[test]
fn keys_overlap_while_they_are_replaced() {
    let (old, new) = (Issuer::eddsa(), Issuer::eddsa());
    let keys = [published(&old, Some("old")), published(&new, Some("new"))];
    let (from_old, from_new) = (signed(&old, Some("old")), signed(&new, Some("new")));
    for (set, old_holds, new_holds) in [(&keys[..1], true, false), (&keys[..], true, true), (&keys[1..], false, true)] {
        let verifier = verifier(Algorithm::EdDSA, set);
        let unknown = |holds: bool| (!holds).then_some(Error::UnknownKey);
        assert_eq!(refusal(&verifier, &from_old), unknown(old_holds));
        assert_eq!(refusal(&verifier, &from_new), unknown(new_holds));
    }
}

#[test]
fn a_single_key_needs_no_name_and_a_nameless_one_has_none() {
    let issuer = Issuer::eddsa();
    let named = verifier(Algorithm::EdDSA, &[published(&issuer, Some("1"))]);
    assert_eq!(refusal(&named, &signed(&issuer, None)), None);
    let nameless = verifier(Algorithm::EdDSA, &[published(&issuer, None)]);
    assert_eq!(refusal(&nameless, &signed(&issuer, None)), None);
    assert_eq!(refusal(&nameless, &signed(&issuer, Some("1"))), Some(Error::UnknownKey));
    // Beside a named one nobody could tell when it is meant.
    let set = parsed(Algorithm::EdDSA, &[published(&issuer, Some("1")), published(&Issuer::eddsa(), None)]).unwrap();
    assert_eq!((set.len(), set.skipped()), (1, 1));
}

#[test]
fn what_is_not_for_us_is_skipped() {
    let (ours, other) = (Issuer::eddsa(), Issuer::eddsa());
    let with = |changes: Value| {
        let mut key = published(&other, Some("other"));
        for (name, value) in changes.as_object().unwrap() {
            key[name] = value.clone();
        }
        key
    };
    let long = "k".repeat(257);
    for key in [
        with(json!({"use": "enc"})),
        with(json!({"alg": "RS256"})),
        with(json!({"alg": "HS256"})),
        with(json!({"key_ops": ["encrypt"]})),
        with(json!({"kty": "RSA"})),
        with(json!({"kty": "from the future"})),
        with(json!({"crv": "Ed448"})),
        with(json!({"x": "AAAA"})),
        with(json!({"x": "not base64!"})),
        with(json!({"x": null})),
        with(json!({"kid": long})),
        with(json!({"kid": 7})),
        published(&Issuer::rs256(), Some("rsa")),
        published(&Issuer::hs256(), Some("secret")),
        json!("not a key"),
        json!({}),
    ] {
        let set = parsed(Algorithm::EdDSA, &[published(&ours, Some("ours")), key.clone()]).unwrap();
        assert_eq!((set.len(), set.skipped()), (1, 1), "{key}");
        let alone = parsed(Algorithm::EdDSA, &[key]).unwrap_err();
        assert_eq!(alone, "none of its 1 keys is for EdDSA");
    }
    let known = with(json!({"alg": "EdDSA", "key_ops": ["verify", "sign"], "x5t": "thumb", "unknown": {"deep": [1]}}));
    assert_eq!(parsed(Algorithm::EdDSA, &[known]).unwrap().len(), 1);
}

#[test]
fn weak_keys_are_no_keys() {
    let mut short = published(&Issuer::hs256(), Some("1"));
    short["k"] = json!(URL_SAFE_NO_PAD.encode([7; SECRET_BYTES_MIN - 1]));
    assert!(parsed(Algorithm::HS256, &[short]).is_err());
    let strong = published(&Issuer::rs256(), Some("1"));
    for (name, bytes) in [
        ("n", vec![0xff; 128]),
        ("n", vec![0xff; 1025]),
        ("n", Vec::new()),
        ("e", vec![1]),
        ("e", vec![4]),
        ("e", vec![]),
    ] {
        let mut weak = strong.clone();
        weak[name] = json!(URL_SAFE_NO_PAD.encode(&bytes));
        assert!(parsed(Algorithm::RS256, &[weak]).is_err(), "{name} of {} bytes", bytes.len());
    }
    let mut flat = published(&Issuer::es256(), Some("1"));
    flat["y"] = json!(URL_SAFE_NO_PAD.encode([1; 31]));
    assert!(parsed(Algorithm::ES256, &[flat]).is_err());
}

#[test]
fn a_set_that_cannot_be_meant_is_refused_whole() {
    let issuer = Issuer::eddsa();
    let key = published(&issuer, Some("1"));
    let mut private = key.clone();
    private["d"] = json!("marker");
    for (document, said) in [
        (json!({"keys": [key, published(&Issuer::eddsa(), Some("1"))]}).to_string(), "the same `kid`"),
        (json!({"keys": [key, private]}).to_string(), "a private key"),
        (json!({"keys": vec![key.clone(); 65]}).to_string(), "65 keys"),
        (json!({"keys": []}).to_string(), "none of its 0 keys"),
        (json!({"keys": {}}).to_string(), "an array `keys`"),
        (json!({}).to_string(), "an array `keys`"),
        (json!([key]).to_string(), "an array `keys`"),
        (String::new(), "an array `keys`"),
        ("<html>marker</html>".to_owned(), "an array `keys`"),
        ("{\"keys\":[".to_owned() + &"[".repeat(10_000), "an array `keys`"),
        (format!("{{\"keys\":[],\"x\":\"{}\"}}", "x".repeat(SET_BYTES_MAX)), "larger than"),
    ] {
        let why = KeySet::parse(document.as_bytes(), Algorithm::EdDSA).unwrap_err();
        assert!(why.contains(said) && !why.contains("marker"), "{why}");
    }
}

/// Goal: nothing that a token says of itself lets it in. Method: everything that has let one in somewhere.
#[test]
fn hostile_tokens_choose_nothing_but_a_name() {
    use crate::auth::tests::forge;
    let issuer = Issuer::rs256();
    let set = [published(&issuer, Some("1"))];
    let verifier = verifier(Algorithm::RS256, &set);
    let payload = claims(json!({})).to_string();
    let payload = payload.as_bytes();
    // The public key, in every spelling, as a secret.
    let n = URL_SAFE_NO_PAD.decode(set[0]["n"].as_str().unwrap()).unwrap();
    let spellings = [
        set[0].to_string().into_bytes(),
        n,
        set[0]["n"].as_str().unwrap().as_bytes().to_vec(),
        issuer.public_pem.clone().into(),
    ];
    for secret in spellings {
        let token = forge(&json!({"alg": "HS256", "kid": "1"}), payload, &secret);
        assert_eq!(refusal(&verifier, &token), Some(Error::Algorithm));
        let token = forge(&json!({"alg": "RS256", "kid": "1"}), payload, &secret);
        assert_eq!(refusal(&verifier, &token), Some(Error::Signature));
    }
    let thief = Issuer::rs256();
    let embedded = published(&thief, Some("1"));
    for (header, error) in [
        (json!({"alg": "none", "kid": "1"}), Error::Malformed),
        (json!({"alg": "RS512", "kid": "1"}), Error::Algorithm),
        (json!({"alg": "RS256"}), Error::Signature),
        (json!({"alg": "RS256", "kid": "thief"}), Error::UnknownKey),
        (json!({"alg": "RS256", "kid": "../../etc/passwd"}), Error::UnknownKey),
        (json!({"alg": "RS256", "kid": "1' OR '1'='1"}), Error::UnknownKey),
        (json!({"alg": "RS256", "kid": "x".repeat(4_000)}), Error::UnknownKey),
        (json!({"alg": "RS256", "kid": 1}), Error::Malformed),
        (json!({"alg": "RS256", "kid": ["1"]}), Error::Malformed),
        (json!({"alg": "RS256", "kid": "1", "jwk": embedded}), Error::Signature),
        (json!({"alg": "RS256", "kid": "1", "jku": "https://thief.example/keys"}), Error::Signature),
        (json!({"alg": "RS256", "kid": "1", "x5u": "https://thief.example/chain"}), Error::Signature),
        (json!({"alg": "RS256", "kid": "1", "x5c": ["AAAA"]}), Error::Signature),
    ] {
        let token = thief.sign_with(&header, payload);
        assert_eq!(refusal(&verifier, &token), Some(error), "{header}");
    }
    // Even where the signature holds, a key inside a token is none of its business.
    for header in
        [json!({"alg": "RS256", "kid": "1", "jwk": embedded}), json!({"alg": "RS256", "kid": "1", "x5c": ["AAAA"]})]
    {
        assert!(matches!(refusal(&verifier, &issuer.sign_with(&header, payload)), Some(Error::Header(_))), "{header}");
    }
}
