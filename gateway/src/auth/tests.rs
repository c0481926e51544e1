//! Goal: only the configured key, algorithm and clock let anyone in, and every refusal says which it was.
//!
//! Method: keys are made here, tokens are signed by the library where it can and put together by hand where an honest
//! library would not; the clock is a constant.

#![allow(clippy::unwrap_used)]

use std::{fs, os::unix::fs::PermissionsExt, time::Instant};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    hmac,
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use chappe_schema::{
    access::Token,
    error::Code,
    id::{DeviceId, UserId},
};
use jsonwebtoken::{DecodingKey, EncodingKey, Header, encode};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// Now, for every test.
pub(super) const NOW_MS: u64 = 1_800_000_000_000;
const NOW_S: u64 = NOW_MS / 1000;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

const LOOPBACK: &str = "127.0.0.1:8080";

// === what signs, and what is signed ===

/// A directory with a key file in it, and the key that signs what it verifies.
pub(super) struct Issuer {
    pub(super) algorithm: Algorithm,
    dir: TempDir,
    pub(super) signing: EncodingKey,
    pub(super) public_pem: String,
}

impl Issuer {
    pub(super) fn hs256() -> Self {
        Self::new(Algorithm::HS256, SECRET.into(), EncodingKey::from_secret(SECRET.as_bytes()))
    }

    pub(super) fn eddsa() -> Self {
        let key = Ed25519KeyPair::generate().unwrap();
        let private = AsDer::<Pkcs8V1Der<'_>>::as_der(&key).unwrap();
        Self::new(
            Algorithm::EdDSA,
            public_pem(key.public_key()),
            EncodingKey::from_ed_pem(pem("PRIVATE KEY", private.as_ref()).as_bytes()).unwrap(),
        )
    }

    pub(super) fn rs256() -> Self {
        let key = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let private = AsDer::<Pkcs8V1Der<'_>>::as_der(&key).unwrap();
        Self::new(
            Algorithm::RS256,
            public_pem(key.public_key()),
            EncodingKey::from_rsa_pem(pem("PRIVATE KEY", private.as_ref()).as_bytes()).unwrap(),
        )
    }

    pub(super) fn es256() -> Self {
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let private = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(algorithm, private.as_ref()).unwrap();
        Self::new(
            Algorithm::ES256,
            public_pem(key.public_key()),
            EncodingKey::from_ec_pem(pem("PRIVATE KEY", private.as_ref()).as_bytes()).unwrap(),
        )
    }

    fn new(algorithm: Algorithm, file: String, signing: EncodingKey) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("key"), &file).unwrap();
        Self { algorithm, dir, signing, public_pem: file }
    }

    fn config(&self) -> Config {
        Config { algorithm: self.algorithm, key_file: Some(self.dir.path().join("key")), ..Config::default() }
    }

    fn verifier(&self) -> Arc<Verifier> {
        self.verifier_with(|_| {})
    }

    fn verifier_with(&self, change: impl FnOnce(&mut Config)) -> Arc<Verifier> {
        let mut config = self.config();
        change(&mut config);
        resolve(&config, "192.0.2.1:443".parse().unwrap(), self.dir.path()).unwrap().verifier()
    }

    fn sign(&self, claims: &Value) -> String {
        encode(&Header::new(self.algorithm.into()), claims, &self.signing).unwrap()
    }

    /// Signs whatever it is given, under any header.
    pub(super) fn sign_with(&self, header: &Value, payload: &[u8]) -> String {
        let message = format!("{}.{}", part(header.to_string().as_bytes()), part(payload));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &self.signing, self.algorithm.into()).unwrap();
        format!("{message}.{signature}")
    }
}

fn public_pem(key: &impl AsDer<PublicKeyX509Der<'static>>) -> String {
    pem("PUBLIC KEY", key.as_der().unwrap().as_ref())
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

fn part(content: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(content)
}

/// A token put together by hand: any header, any payload, signed with HMAC-SHA-256.
pub(super) fn forge(header: &Value, payload: &[u8], secret: &[u8]) -> String {
    let message = format!("{}.{}", part(header.to_string().as_bytes()), part(payload));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
    format!("{message}.{}", part(tag.as_ref()))
}

/// Acceptable claims, with changes: `null` takes a claim away.
pub(super) fn claims(changes: Value) -> Value {
    let mut claims = json!({"sub": "ada", "exp": NOW_S + 3600});
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        }
    }
    claims
}

fn refusal(verifier: &Verifier, changes: Value) -> Error {
    verifier.verify(&Issuer::hs256().sign(&claims(changes)), NOW_MS).unwrap_err()
}

// === tokens that are accepted ===

#[test]
fn each_algorithm_accepts_its_own_tokens() {
    for issuer in [Issuer::hs256(), Issuer::eddsa(), Issuer::rs256(), Issuer::es256()] {
        let token = issuer.sign(&claims(json!({"iat": NOW_S - 1, "device": "phone:1", "ignored": {"deep": [1]}})));
        let expected = Identity {
            user: UserId::new("ada").unwrap(),
            device: Some(DeviceId::new("phone:1").unwrap()),
            token: Token {
                issued_at: NOW_MS - 1_000,
                expires_at: NOW_MS + 3_600_000,
                print: Token::print_of(token.rsplit_once('.').unwrap().0),
                is_bound: true,
            },
        };
        assert_eq!(issuer.verifier().verify(&token, NOW_MS), Ok(expected), "{}", issuer.algorithm);
    }
}

#[test]
fn what_is_optional_may_be_missing() {
    let identity = Issuer::hs256().verifier().verify(&Issuer::hs256().sign(&claims(json!({}))), NOW_MS).unwrap();
    assert_eq!((identity.device, identity.token.is_bound), (None, false));
    assert_eq!(identity.token.issued_at, 0, "older than every log-out");
}

// === signatures ===

#[test]
fn another_key_of_the_same_kind_is_refused() {
    for (ours, theirs) in
        [(Issuer::eddsa(), Issuer::eddsa()), (Issuer::rs256(), Issuer::rs256()), (Issuer::es256(), Issuer::es256())]
    {
        let token = theirs.sign(&claims(json!({})));
        assert_eq!(ours.verifier().verify(&token, NOW_MS), Err(Error::Signature), "{}", ours.algorithm);
    }
    let token = forge(&json!({"alg": "HS256"}), claims(json!({})).to_string().as_bytes(), &[7; 32]);
    assert_eq!(Issuer::hs256().verifier().verify(&token, NOW_MS), Err(Error::Signature));
}

#[test]
fn a_public_key_is_no_secret() {
    for issuer in [Issuer::eddsa(), Issuer::rs256(), Issuer::es256()] {
        let verifier = issuer.verifier();
        let payload = claims(json!({})).to_string();
        let DecodingKeyBytes(der) = DecodingKeyBytes::of(&issuer);
        let file = issuer.public_pem.as_bytes();
        for secret in [file, file.trim_ascii_end(), &der] {
            let confused = forge(&json!({"alg": "HS256", "typ": "JWT"}), payload.as_bytes(), secret);
            assert_eq!(verifier.verify(&confused, NOW_MS), Err(Error::Algorithm), "{}", issuer.algorithm);
            // The same bytes under the configured name are no signature either.
            let renamed = forge(&json!({"alg": issuer.algorithm}), payload.as_bytes(), secret);
            assert_eq!(verifier.verify(&renamed, NOW_MS), Err(Error::Signature), "{}", issuer.algorithm);
        }
    }
}

/// The key's bytes inside the PEM: another secret that a forger may try.
struct DecodingKeyBytes(Vec<u8>);

impl DecodingKeyBytes {
    fn of(issuer: &Issuer) -> Self {
        let key: DecodingKey = keys::read(&issuer.dir.path().join("key"), issuer.algorithm).unwrap();
        Self(key.try_get_as_bytes().unwrap().to_vec())
    }
}

#[test]
fn every_other_algorithm_is_refused() {
    let payload = claims(json!({})).to_string();
    let verifier = Issuer::hs256().verifier();
    for algorithm in ["HS384", "HS512", "RS256", "RS512", "PS256", "ES256", "EdDSA"] {
        let token = forge(&json!({"alg": algorithm}), payload.as_bytes(), SECRET.as_bytes());
        assert_eq!(verifier.verify(&token, NOW_MS), Err(Error::Algorithm), "{algorithm}");
    }
    let rs256 = Issuer::rs256();
    let rs512 = encode(&Header::new(jsonwebtoken::Algorithm::RS512), &claims(json!({})), &rs256.signing).unwrap();
    assert_eq!(rs256.verifier().verify(&rs512, NOW_MS), Err(Error::Algorithm), "a family is not an algorithm");
}

#[test]
fn unsigned_tokens_are_refused() {
    for issuer in [Issuer::hs256(), Issuer::eddsa(), Issuer::rs256(), Issuer::es256()] {
        let verifier = issuer.verifier();
        let payload = part(claims(json!({})).to_string().as_bytes());
        for algorithm in ["none", "None", "NONE", "nOnE", ""] {
            let header = part(json!({"alg": algorithm}).to_string().as_bytes());
            for token in
                [format!("{header}.{payload}."), format!("{header}.{payload}"), format!("{header}.{payload}.AA")]
            {
                assert_eq!(verifier.verify(&token, NOW_MS), Err(Error::Malformed), "{algorithm:?}");
            }
        }
        let stripped = issuer.sign(&claims(json!({})));
        let stripped = &stripped[..=stripped.rfind('.').unwrap()];
        assert_eq!(verifier.verify(stripped, NOW_MS), Err(Error::Signature));
    }
}

#[test]
fn a_changed_token_is_refused() {
    let issuer = Issuer::hs256();
    let verifier = issuer.verifier();
    let token = issuer.sign(&claims(json!({})));
    let [header, payload, signature] = token.split('.').collect::<Vec<_>>()[..] else { panic!("three parts") };
    let eve = part(claims(json!({"sub": "eve"})).to_string().as_bytes());
    assert_eq!(verifier.verify(&format!("{header}.{eve}.{signature}"), NOW_MS), Err(Error::Signature));
    for position in 0..signature.len() - 1 {
        let mut changed = signature.as_bytes().to_vec();
        changed[position] = if changed[position] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert_eq!(verifier.verify(&format!("{header}.{payload}.{changed}"), NOW_MS), Err(Error::Signature));
    }
}

// === headers ===

#[test]
fn a_token_never_brings_its_own_key() {
    let payload = claims(json!({})).to_string();
    let verifier = Issuer::hs256().verifier();
    let theirs = [7; 32];
    let jwk = json!({"kty": "oct", "k": part(&theirs)});
    let header = json!({"alg": "HS256", "jwk": jwk});
    assert_eq!(verifier.verify(&forge(&header, payload.as_bytes(), &theirs), NOW_MS), Err(Error::Signature));
    // Even where the signature is ours.
    assert_eq!(
        verifier.verify(&forge(&header, payload.as_bytes(), SECRET.as_bytes()), NOW_MS),
        Err(Error::Header("jwk"))
    );
    let header = json!({"alg": "HS256", "x5c": ["MIIB"]});
    assert_eq!(
        verifier.verify(&forge(&header, payload.as_bytes(), SECRET.as_bytes()), NOW_MS),
        Err(Error::Header("x5c"))
    );
}

#[test]
fn an_embedded_public_key_is_not_believed() {
    let (ours, theirs) = (Issuer::eddsa(), Issuer::eddsa());
    let DecodingKeyBytes(public) = DecodingKeyBytes::of(&theirs);
    let mut header = Header::new(jsonwebtoken::Algorithm::EdDSA);
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": part(&public)});
    header.jwk = Some(serde_json::from_value(jwk).unwrap());
    let token = encode(&header, &claims(json!({})), &theirs.signing).unwrap();
    assert_eq!(ours.verifier().verify(&token, NOW_MS), Err(Error::Signature));
}

#[test]
fn names_of_keys_are_not_followed() {
    // Nothing listens there; a verifier that asked would be refused a connection, and a test that waited would show.
    let header = json!({
        "alg": "HS256", "kid": "../../../../dev/null", "jku": "http://127.0.0.1:9/jwks", "x5u": "http://127.0.0.1:9/x5u",
    });
    let payload = claims(json!({})).to_string();
    let verifier = Issuer::hs256().verifier();
    assert!(verifier.verify(&forge(&header, payload.as_bytes(), SECRET.as_bytes()), NOW_MS).is_ok());
    for secret in [&b""[..], &[0; 32], b"../../../../dev/null"] {
        assert_eq!(verifier.verify(&forge(&header, payload.as_bytes(), secret), NOW_MS), Err(Error::Signature));
    }
}

#[test]
fn extensions_that_must_be_understood_are_refused() {
    let header = json!({"alg": "HS256", "crit": ["b64"], "b64": false});
    let token = forge(&header, claims(json!({})).to_string().as_bytes(), SECRET.as_bytes());
    assert_eq!(Issuer::hs256().verifier().verify(&token, NOW_MS), Err(Error::Header("crit")));
}

// === time ===

#[test]
fn a_token_ends_at_exp_plus_leeway() {
    let issuer = Issuer::hs256();
    let token = issuer.sign(&claims(json!({"exp": NOW_S})));
    let verifier = issuer.verifier_with(|config| config.leeway_s = 5);
    assert_eq!(verifier.verify(&token, NOW_MS + 4_999).unwrap().token.expires_at, NOW_MS);
    assert_eq!(verifier.verify(&token, NOW_MS + 5_000), Err(Error::Expired));
    let strict = issuer.verifier_with(|config| config.leeway_s = 0);
    assert!(strict.verify(&token, NOW_MS - 1).is_ok());
    assert_eq!(strict.verify(&token, NOW_MS), Err(Error::Expired));
}

#[test]
fn a_token_begins_at_nbf_minus_leeway() {
    let issuer = Issuer::hs256();
    let token = issuer.sign(&claims(json!({"nbf": NOW_S})));
    let verifier = issuer.verifier();
    assert_eq!(verifier.verify(&token, NOW_MS - 5_001), Err(Error::NotYetValid));
    assert!(verifier.verify(&token, NOW_MS - 5_000).is_ok());
}

/// Goal: no token outlives log-outs that are still to come.
#[test]
fn a_token_is_not_issued_in_the_future() {
    let issuer = Issuer::hs256();
    let verifier = issuer.verifier();
    let issued_at = |iat: Value| {
        let token = issuer.sign(&claims(json!({"iat": iat})));
        verifier.verify(&token, NOW_MS).map(|identity| identity.token.issued_at)
    };
    assert_eq!(issued_at(json!(NOW_S + 5)), Ok(NOW_MS + 5_000));
    assert_eq!(issued_at(json!(NOW_S + 6)), Err(Error::NotYetValid));
    assert_eq!(issued_at(json!(u64::MAX)), Err(Error::NotYetValid));
    assert_eq!(issued_at(json!(NOW_MS as f64 / 1000.0 - 0.877)), Ok(NOW_MS - 877), "not a millisecond is lost");
    assert_eq!(issued_at(json!("now")), Err(Error::Claim("iat")));
}

#[test]
fn each_token_has_a_print_that_no_other_spelling_changes() {
    let issuer = Issuer::hs256();
    let verifier = issuer.verifier();
    let print = |token: &str| verifier.verify(token, NOW_MS).map(|identity| identity.token.print);
    let (one, other) = (issuer.sign(&claims(json!({"jti": "1"}))), issuer.sign(&claims(json!({"jti": "2"}))));
    assert_ne!(print(&one), print(&other));
    // The last character of a signature holds bits that count for nothing.
    let end = &one[..one.len() - 1];
    for last in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".chars() {
        if let Ok(found) = print(&format!("{end}{last}")) {
            assert_eq!(Ok(found), print(&one));
        }
    }
}

#[test]
fn times_take_every_form_that_json_allows() {
    let verifier = Issuer::hs256().verifier();
    let expires_at = |exp: Value| {
        let token = Issuer::hs256().sign(&claims(json!({"exp": exp})));
        verifier.verify(&token, NOW_MS).map(|identity| identity.token.expires_at)
    };
    assert_eq!(expires_at(json!(NOW_S as f64 + 0.5)), Ok(NOW_MS + 500));
    assert_eq!(expires_at(json!(u64::MAX)), Ok(u64::MAX));
    assert_eq!(expires_at(json!(1e300)), Ok(u64::MAX));
    assert_eq!(expires_at(json!(0)), Err(Error::Expired));
    assert_eq!(expires_at(json!(-1)), Err(Error::Expired));
    assert_eq!(expires_at(json!(-1e300)), Err(Error::Expired));
    for odd in [json!("soon"), json!(true), json!({}), json!([NOW_S + 1]), json!((NOW_S + 9).to_string())] {
        assert!(matches!(expires_at(odd.clone()), Err(Error::Claim("exp") | Error::Malformed)), "{odd}");
    }
    assert!(matches!(refusal(&verifier, json!({"nbf": "soon"})), Error::Claim("nbf")));
}

// === claims ===

#[test]
fn exp_is_required() {
    assert_eq!(refusal(&Issuer::hs256().verifier(), json!({"exp": null})), Error::Claim("exp"));
}

#[test]
fn the_audience_must_be_ours() {
    let verifier = Issuer::hs256().verifier_with(|config| config.audience = Some("chat".into()));
    let verify = |aud: Value| verifier.verify(&Issuer::hs256().sign(&claims(json!({"aud": aud}))), NOW_MS);
    assert!(verify(json!("chat")).is_ok());
    assert!(verify(json!(["mail", "chat"])).is_ok());
    for other in
        [json!("mail"), json!("Chat"), json!("chat "), json!(""), json!([]), json!(["mail"]), json!(null), json!([7])]
    {
        assert_eq!(verify(other.clone()), Err(Error::Audience), "{other}");
    }
    // RFC 7519 §4.1.3: who is not named must refuse.
    assert_eq!(refusal(&Issuer::hs256().verifier(), json!({"aud": "mail"})), Error::Audience);
}

#[test]
fn the_issuer_must_be_ours() {
    let verifier = Issuer::hs256().verifier_with(|config| config.issuer = Some("https://id.example".into()));
    let verify = |iss: Value| verifier.verify(&Issuer::hs256().sign(&claims(json!({"iss": iss}))), NOW_MS);
    assert!(verify(json!("https://id.example")).is_ok());
    for other in [json!("https://id.example/"), json!(""), json!(null), json!(["https://id.example"])] {
        assert_eq!(verify(other.clone()), Err(Error::Issuer), "{other}");
    }
}

#[test]
fn the_subject_is_a_user_id() {
    let verifier = Issuer::hs256().verifier();
    for sub in ["a".repeat(128), "é".repeat(64), "Ada Lovelace <ada@example.org>".into(), "🦉/../%2e".into()] {
        let token = Issuer::hs256().sign(&claims(json!({"sub": sub})));
        assert_eq!(verifier.verify(&token, NOW_MS).unwrap().user.as_str(), sub);
    }
    let odd = [
        json!(null),
        json!(""),
        json!("a".repeat(129)),
        json!("é".repeat(65)),
        json!("a\nb"),
        json!("a\0"),
        json!("\u{7f}"),
        json!("\u{85}"),
        json!(7),
    ];
    for sub in odd {
        assert_eq!(refusal(&verifier, json!({"sub": sub.clone()})), Error::Subject, "{sub}");
    }
    for sub in [json!(["ada"]), json!({"id": "ada"})] {
        assert!(matches!(refusal(&verifier, json!({"sub": sub})), Error::Subject | Error::Malformed));
    }
}

#[test]
fn a_device_is_a_device_id() {
    let verifier = Issuer::hs256().verifier();
    let token = Issuer::hs256().sign(&claims(json!({"device": "a.B_9:-".repeat(9)})));
    assert!(verifier.verify(&token, NOW_MS).unwrap().device.is_some());
    for device in [json!(""), json!("a b"), json!("é"), json!("a/b"), json!("a".repeat(65)), json!(7), json!(["a"])] {
        assert_eq!(refusal(&verifier, json!({"device": device.clone()})), Error::Claim("device"), "{device}");
    }
}

#[test]
fn a_claim_that_stands_twice_is_refused() {
    for name in ["sub", "exp", "aud", "iss", "nbf", "device", "iat"] {
        let payload = format!(r#"{{"sub":"ada","exp":{},"{name}":1,"{name}":2}}"#, NOW_S + 9);
        let token = forge(&json!({"alg": "HS256"}), payload.as_bytes(), SECRET.as_bytes());
        assert_eq!(Issuer::hs256().verifier().verify(&token, NOW_MS), Err(Error::Malformed), "{name}");
    }
}

// === garbage ===

#[test]
fn no_token_and_no_end_of_token() {
    let issuer = Issuer::hs256();
    let verifier = issuer.verifier();
    assert_eq!(verifier.verify("", NOW_MS), Err(Error::Missing));
    let padded = |bytes: usize| issuer.sign(&claims(json!({"padding": "a".repeat(bytes)})));
    let fits = padded(5_900);
    assert!(fits.len() <= jwt::TOKEN_BYTES_MAX);
    assert!(verifier.verify(&fits, NOW_MS).is_ok());
    let too_long = padded(6_200);
    assert!(too_long.len() > jwt::TOKEN_BYTES_MAX);
    assert_eq!(verifier.verify(&too_long, NOW_MS), Err(Error::TooLong));
    assert_eq!(verifier.verify(&".".repeat(1 << 20), NOW_MS), Err(Error::TooLong));
}

#[test]
fn garbage_is_malformed() {
    let verifier = Issuer::hs256().verifier();
    let good = Issuer::hs256().sign(&claims(json!({})));
    let alg = json!({"alg": "HS256"});
    let nested = format!("{}{}", "[".repeat(3000), "]".repeat(3000));
    let garbage = [
        ".".into(),
        "..".into(),
        "...".into(),
        "a.b.c".into(),
        "🦉.🦉.🦉".into(),
        "\0.\0.\0".into(),
        format!("Bearer {good}"),
        format!("{good}."),
        format!("{good}=="),
        format!("{good}\n"),
        format!(" {good}"),
        format!(".{good}"),
        good.replace('.', ". "),
        forge(&alg, b"", SECRET.as_bytes()),
        forge(&alg, b"null", SECRET.as_bytes()),
        forge(&alg, b"[]", SECRET.as_bytes()),
        forge(&alg, b"\"ada\"", SECRET.as_bytes()),
        forge(&alg, b"\xff\xfe{}", SECRET.as_bytes()),
        forge(&alg, b"{\"sub\":\"\xff\"}", SECRET.as_bytes()),
        forge(&alg, b"{\"sub\":\"\\ud800\"}", SECRET.as_bytes()),
        forge(&alg, nested.as_bytes(), SECRET.as_bytes()),
        forge(&json!([]), b"{}", SECRET.as_bytes()),
        forge(&json!({}), b"{}", SECRET.as_bytes()),
        forge(&json!({"alg": ["HS256"]}), b"{}", SECRET.as_bytes()),
    ];
    for token in garbage {
        assert_eq!(verifier.verify(&token, NOW_MS), Err(Error::Malformed), "{token}");
    }
}

proptest! {
    #[test]
    fn random_strings_are_refused_without_a_panic(token in "\\PC{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let verifier = Issuer::hs256().verifier();
        prop_assert!(verifier.verify(&token, NOW_MS).is_err());
        let (header, tail) = bytes.split_at(bytes.len() / 2);
        let three = format!("{}.{}.{}", part(header), part(tail), part(&bytes));
        prop_assert!(verifier.verify(&three, NOW_MS).is_err());
        let signed = forge(&json!({"alg": "HS256"}), &bytes, SECRET.as_bytes());
        prop_assert!(verifier.verify(&signed, NOW_MS).is_err());
    }

    /// Signed by us and hostile all the same: any claim may be anything.
    #[test]
    fn random_claims_never_panic(
        names in prop::collection::vec(prop::sample::select(vec!["sub", "exp", "nbf", "aud", "iss", "iat", "device"]), 0..7),
        values in prop::collection::vec(json_value(), 7),
        now in any::<u64>(),
    ) {
        let verifier = Issuer::hs256().verifier_with(|config| config.audience = Some("chat".into()));
        let mut claims = claims(json!({"aud": "chat"}));
        for (name, value) in names.iter().zip(&values) {
            claims[*name] = value.clone();
        }
        if let Ok(identity) = verifier.verify(&Issuer::hs256().sign(&claims), now) {
            prop_assert!(now < identity.token.expires_at.saturating_add(5_000));
            prop_assert!(identity.token.issued_at <= now.saturating_add(5_000));
            prop_assert_eq!(identity.user.as_str(), claims["sub"].as_str().unwrap());
        }
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,150}".prop_map(Value::from),
        Just(json!("chat")),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-z]{0,4}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

// === what a refusal tells ===

#[test]
fn refusals_keep_the_token_to_themselves() {
    let issuer = Issuer::hs256();
    let verifier = issuer.verifier();
    let tokens = [
        issuer.sign(&claims(json!({"sub": "marker\n"}))),
        issuer.sign(&claims(json!({"device": "mar ker", "jti": "marker"}))),
        issuer.sign(&claims(json!({"exp": "marker"}))),
        forge(&json!({"alg": "HS256", "marker": 1}), b"marker", b"marker"),
        "marker.marker.marker".into(),
    ];
    for token in tokens {
        let error = verifier.verify(&token, NOW_MS).unwrap_err();
        let shown = format!("{error} {error:?} {}", error.reason());
        assert!(!shown.contains("marker") && !shown.contains("mar ker"), "{shown}");
        assert_eq!(error.code(), Code::AuthInvalid);
    }
    assert_eq!(Error::Missing.code(), Code::AuthRequired);
    assert_eq!(Error::Expired.code(), Code::AuthExpired);
    assert!(!format!("{verifier:?}").contains(SECRET));
}

// === key files ===

fn setup(algorithm: Algorithm, file: &[u8]) -> Result<Auth, SetupError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    fs::write(&path, file).unwrap();
    let config = Config { algorithm, key_file: Some(path), ..Config::default() };
    resolve(&config, LOOPBACK.parse().unwrap(), dir.path())
}

#[test]
fn a_secret_has_32_bytes_and_loses_one_newline() {
    let token = forge(&json!({"alg": "HS256"}), claims(json!({})).to_string().as_bytes(), SECRET.as_bytes());
    for end in ["", "\n", "\r\n"] {
        let auth = setup(Algorithm::HS256, format!("{SECRET}{end}").as_bytes()).unwrap();
        assert!(auth.verifier().verify(&token, NOW_MS).is_ok(), "{end:?}");
        assert!(auth.dev_tokens().is_none(), "a key was configured, so nobody issues tokens here");
    }
    let two = setup(Algorithm::HS256, format!("{SECRET}\n\n").as_bytes()).unwrap();
    assert_eq!(two.verifier().verify(&token, NOW_MS), Err(Error::Signature), "the second newline is part of it");
    for short in [&b""[..], b"\n", b"changeme", &SECRET.as_bytes()[1..], format!("{}\n", &SECRET[1..]).as_bytes()] {
        assert!(matches!(setup(Algorithm::HS256, short), Err(SetupError::SecretTooShort { bytes: ..32, .. })));
    }
}

#[test]
fn a_pem_key_is_no_secret() {
    for issuer in [Issuer::eddsa(), Issuer::rs256(), Issuer::es256()] {
        let file = format!("\n{}", issuer.public_pem);
        assert!(matches!(setup(Algorithm::HS256, file.as_bytes()), Err(SetupError::SecretIsPem { .. })));
    }
}

#[test]
fn public_keys_are_of_their_algorithm() {
    let (eddsa, rs256) = (Issuer::eddsa().public_pem, Issuer::rs256().public_pem);
    let ecdsa = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let ecdsa = public_pem(ecdsa.public_key());
    let wrong = [
        (Algorithm::EdDSA, rs256),
        (Algorithm::RS256, eddsa),
        (Algorithm::EdDSA, ecdsa.clone()),
        (Algorithm::RS256, ecdsa),
        (Algorithm::EdDSA, pem("PUBLIC KEY", b"not DER")),
        (Algorithm::RS256, pem("PUBLIC KEY", b"")),
        (Algorithm::RS256, pem("RSA PUBLIC KEY", b"\x30\x03\x02\x01\x01")),
    ];
    for (algorithm, file) in wrong {
        assert!(matches!(setup(algorithm, file.as_bytes()), Err(SetupError::WrongKey { .. })), "{algorithm} {file}");
    }
}

#[test]
fn short_rsa_keys_are_refused() {
    let file = include_bytes!("../../tests/keys/rsa-1024-public.pem");
    assert!(matches!(setup(Algorithm::RS256, file), Err(SetupError::RsaSize { bits: 1024, .. })));
}

#[test]
fn pkcs1_public_keys_are_accepted() {
    let issuer = Issuer::rs256();
    let DecodingKeyBytes(der) = DecodingKeyBytes::of(&issuer);
    let auth = setup(Algorithm::RS256, pem("RSA PUBLIC KEY", &der).as_bytes()).unwrap();
    assert!(auth.verifier().verify(&issuer.sign(&claims(json!({}))), NOW_MS).is_ok());
}

#[test]
fn files_that_are_no_public_key_are_refused_without_being_quoted() {
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let private = AsDer::<Pkcs8V1Der<'_>>::as_der(&rsa).unwrap();
    let public = Issuer::rs256().public_pem;
    let odd: [(Vec<u8>, &str); 7] = [
        (pem("PRIVATE KEY", private.as_ref()).into(), "`PRIVATE KEY`"),
        (pem("CERTIFICATE", private.as_ref()).into(), "`CERTIFICATE`"),
        (pem("MARKER", b"marker").into(), "another PEM block"),
        (format!("{public}{public}").into(), "several PEM blocks"),
        (b"marker".to_vec(), "no PEM block"),
        (Vec::new(), "no PEM block"),
        (vec![0xff; 40], "no text"),
    ];
    for algorithm in [Algorithm::EdDSA, Algorithm::RS256] {
        for (file, expected) in &odd {
            match setup(algorithm, file) {
                Err(SetupError::NotPublicKey { found, .. }) => assert_eq!(&found, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }
    assert!(matches!(setup(Algorithm::HS256, &vec![b'a'; 65 * 1024]), Err(SetupError::TooLarge { .. })));
}

#[test]
fn a_missing_key_file_is_named() {
    let config = Config { key_file: Some("/nonexistent/key".into()), ..Config::default() };
    let error = resolve(&config, LOOPBACK.parse().unwrap(), Path::new("/nonexistent")).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the key file /nonexistent/key");
}

// === configuration ===

#[test]
fn contradictions_end_the_start() {
    let refused = |config: &Config, listen: &str| {
        let dir = tempfile::tempdir().unwrap();
        let error = resolve(config, listen.parse().unwrap(), dir.path()).unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "no secret is left behind");
        error
    };
    for listen in ["0.0.0.0:8080", "[::]:8080", "192.0.2.1:8080", "[::ffff:192.0.2.1]:8080", "10.0.0.1:1"] {
        let error = refused(&Config::default(), listen);
        assert!(matches!(error, SetupError::NotLoopback { .. }), "{listen}");
        assert!(error.to_string().contains(listen), "{error}");
    }
    let eddsa = Config { algorithm: Algorithm::EdDSA, ..Config::default() };
    assert!(matches!(refused(&eddsa, LOOPBACK), SetupError::NoKeyForAlgorithm(Algorithm::EdDSA)));
    let off = Config { dev_tokens: false, ..Config::default() };
    assert!(matches!(refused(&off, LOOPBACK), SetupError::NoKey));
    let empty = Config { audience: Some(String::new()), ..Config::default() };
    assert!(matches!(refused(&empty, LOOPBACK), SetupError::Empty("audience")));
    let lenient = Config { leeway_s: 31, ..Config::default() };
    assert!(matches!(refused(&lenient, LOOPBACK), SetupError::Leeway(31)));
}

#[test]
fn configuration_is_partial_but_not_misspelt() {
    let read = |json: &str| serde_json::from_str::<Config>(json);
    assert_eq!(read("{}").unwrap(), Config::default());
    assert_eq!(read(r#"{"algorithm":"EdDSA"}"#).unwrap().algorithm, Algorithm::EdDSA);
    for odd in [r#"{"algorithm":"none"}"#, r#"{"algorithm":"HS512"}"#, r#"{"secret":"a"}"#, r#"{"leeway_s":-1}"#] {
        assert!(read(odd).is_err(), "{odd}");
    }
}

// === development tokens ===

fn open(dir: &Path) -> Auth {
    resolve(&Config::default(), LOOPBACK.parse().unwrap(), dir).unwrap()
}

fn issue(auth: &Auth, ttl_s: Option<u64>) -> Issued {
    auth.dev_tokens().unwrap().issue(&UserId::new("ada").unwrap(), None, ttl_s, NOW_MS).unwrap()
}

#[test]
fn development_tokens_let_in_whom_they_name() {
    let dir = tempfile::tempdir().unwrap();
    for listen in [LOOPBACK, "127.9.9.9:1", "[::1]:8080", "[::ffff:127.0.0.1]:8080"] {
        let config =
            Config { audience: Some("chat".into()), issuer: Some("https://id.example".into()), ..Config::default() };
        let auth = resolve(&config, listen.parse().unwrap(), dir.path()).unwrap();
        let (ada, phone) = (UserId::new("ada").unwrap(), DeviceId::new("phone").unwrap());
        let issued = auth.dev_tokens().unwrap().issue(&ada, Some(&phone), Some(60), NOW_MS).unwrap();
        let identity = auth.verifier().verify(&issued.token, NOW_MS).unwrap();
        assert_eq!((identity.user, identity.device), (ada, Some(phone)));
        assert_eq!((identity.token.expires_at, issued.expires_at_ms), (NOW_MS + 60_000, NOW_MS + 60_000));
        assert_eq!(identity.token.issued_at, NOW_MS);
        assert!(!format!("{issued:?} {auth:?}").contains(&issued.token));
    }
}

#[test]
fn development_tokens_last_a_day_and_at_most_a_month() {
    let dir = tempfile::tempdir().unwrap();
    let auth = open(dir.path());
    let lasts_s = |ttl_s| (issue(&auth, ttl_s).expires_at_ms - NOW_MS) / 1000;
    assert_eq!(lasts_s(None), 86_400);
    assert_eq!(lasts_s(Some(0)), 1);
    assert_eq!(lasts_s(Some(7)), 7);
    assert_eq!(lasts_s(Some(u64::MAX)), 30 * 86_400);
    assert_ne!(issue(&auth, None).token, issue(&auth, None).token, "each can be revoked by itself");
}

#[test]
fn development_tokens_survive_a_restart_but_not_another_directory() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("made/on/demand");
    let token = issue(&open(&data), None).token;
    assert!(open(&data).verifier().verify(&token, NOW_MS).is_ok());
    assert_eq!(open(dir.path()).verifier().verify(&token, NOW_MS), Err(Error::Signature));

    // The file serves as a key file too.
    let config = Config { key_file: Some(data.join(dev::SECRET_FILE)), ..Config::default() };
    let auth = resolve(&config, "0.0.0.0:443".parse().unwrap(), dir.path()).unwrap();
    assert!(auth.verifier().verify(&token, NOW_MS).is_ok());
}

#[test]
fn the_development_secret_is_private_and_appears_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(dev::SECRET_FILE);
    let partial = path.with_extension("partial");
    fs::write(&partial, "an interrupted start").unwrap();
    open(dir.path());
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    assert!(!partial.exists());
    let secret = fs::read_to_string(&path).unwrap();
    assert_eq!(secret.len(), 65);
    assert!(secret.trim_end().bytes().all(|byte| byte.is_ascii_hexdigit()));

    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    open(dir.path());
    assert_eq!(mode(), 0o600, "closed again");
    assert_eq!(fs::read_to_string(&path).unwrap(), secret);
}

#[test]
fn a_damaged_development_secret_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(dev::SECRET_FILE), "").unwrap();
    let error = resolve(&Config::default(), LOOPBACK.parse().unwrap(), dir.path()).unwrap_err();
    assert!(matches!(error, SetupError::SecretTooShort { bytes: 0, .. }), "{error}");
}

// === cost ===

/// Prints only: figures for the reader, not a promise.
#[test]
fn the_cost_of_one_check() {
    for issuer in [Issuer::hs256(), Issuer::eddsa(), Issuer::rs256(), Issuer::es256()] {
        let verifier = issuer.verifier();
        let token = issuer.sign(&claims(json!({"device": "phone", "jti": "0192f1a2-7c3e-7000-8000-000000000000"})));
        let checks = 5_000;
        let started = Instant::now();
        for _ in 0..checks {
            std::hint::black_box(verifier.verify(&token, NOW_MS)).unwrap();
        }
        println!("{}: {:.1} µs a check", issuer.algorithm, started.elapsed().as_secs_f64() * 1e6 / f64::from(checks));
    }
}

#[test]
fn a_rotated_key_counts_once_it_is_read_and_a_bad_file_changes_nothing() {
    let old = Issuer::hs256();
    let key_file = old.dir.path().join("rotated");
    fs::write(&key_file, SECRET).unwrap();
    let config = Config { key_file: Some(key_file.clone()), ..Config::default() };
    let auth = resolve(&config, LOOPBACK.parse().unwrap(), old.dir.path()).unwrap();
    let signed = |secret: &str| {
        let claims = json!({"sub": "ada", "exp": NOW_S + 60});
        encode(&Header::default(), &claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
    };
    let new = "another secret that is long enough";
    let holds = |secret: &str| auth.verifier().verify(&signed(secret), NOW_MS).is_ok();
    assert!(holds(SECRET) && !holds(new));

    fs::write(&key_file, "short").unwrap();
    assert!(matches!(auth.reload().refused[..], [SetupError::SecretTooShort { .. }]));
    fs::remove_file(&key_file).unwrap();
    assert!(matches!(auth.reload().refused[..], [SetupError::Read { .. }]));
    assert!(holds(SECRET) && !holds(new), "the former key stays");

    fs::write(&key_file, new).unwrap();
    assert_eq!(auth.reload().read, ["key_file"]);
    assert!(!holds(SECRET) && holds(new));

    let dev = open(old.dir.path());
    let reloaded = dev.reload();
    assert!(reloaded.read.is_empty() && reloaded.refused.is_empty());
}
