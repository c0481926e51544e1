//! The check of one token.
//!
//! `jsonwebtoken` takes the token apart and checks the signature; everything that its claims mean is decided here, on
//! the caller's clock. Claims are looked at only after the signature held: a forger learns nothing about them.

use std::fmt;

use chappe_schema::{
    access::{By, Token},
    error::Code,
    id::{DeviceId, UserId},
    wire::Actor,
};
use jsonwebtoken::{DecodingKey, Header, Validation, errors::ErrorKind};
use serde::Deserialize;
use serde_json::Value;

use super::{Config, KeySet};

/// Longest token that is looked at. Issuers' tokens are 0.3 to 2 KiB; an HTTP header must hold one. Longer: refused
/// before anything is decoded.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Checks tokens against the keys of now and one algorithm. Shared by all connections, replaced when the keys are.
pub struct Verifier {
    keys: Keys,
    validation: Validation,
    audience: Option<String>,
    issuer: Option<String>,
    leeway_ms: u64,
}

/// What signatures are checked with.
enum Keys {
    /// The one in a file.
    One(DecodingKey),
    /// Those of an issuer's set.
    Set(KeySet),
    /// An issuer's set that was never fetched.
    Unknown,
}

/// What a token said, once it is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The token's `sub`.
    pub user: UserId,
    /// The token's `device`: when set, the connection must be of this device.
    pub device: Option<DeviceId>,
    /// When it was issued and when it ends (within the leeway that is already past), and what tells it from others.
    pub token: Token,
}

/// Why a token is refused. Names the class of the reason and never holds a part of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no token.
    #[error("a token is required")]
    Missing,
    /// Longer than [`TOKEN_BYTES_MAX`].
    #[error("the token is longer than {TOKEN_BYTES_MAX} bytes")]
    TooLong,
    /// Not three base64url parts, or not JSON inside; unsigned tokens (`alg: none`) end here too.
    #[error("the token is malformed")]
    Malformed,
    /// A header that would have us trust the token's own word: an embedded key, or an extension we do not know.
    #[error("the token's header must not hold `{0}`")]
    Header(&'static str),
    /// Signed in another way than the configured one.
    #[error("the token is signed with another algorithm than the configured one")]
    Algorithm,
    /// Signed with a key that is not in the issuer's set, by its name.
    #[error("the token is signed with a key that is not known")]
    UnknownKey,
    /// Names no key, and the issuer's set has several.
    #[error("the token does not name its key (`kid`), and there are several")]
    KeyNotNamed,
    /// The issuer's set could not be fetched yet: nobody can tell.
    #[error("the issuer's keys are not known yet")]
    NoKeys,
    /// Not signed with the configured key.
    #[error("the token's signature does not match")]
    Signature,
    /// After `exp`.
    #[error("the token has expired")]
    Expired,
    /// Before `nbf`, or before `iat`.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// `aud` is missing, is another, or is there while no audience is configured.
    #[error("the token is for another audience")]
    Audience,
    /// `iss` is missing or another.
    #[error("the token is from another issuer")]
    Issuer,
    /// `sub` is missing or not a user id.
    #[error("the token's `sub` is not a user id: 1 to 128 bytes of text without control characters")]
    Subject,
    /// Another claim is missing or not of its form.
    #[error("the token's claim `{0}` is missing or not of its form")]
    Claim(&'static str),
    /// A token of ours could not be signed.
    #[error("the token could not be signed")]
    Signing,
}

// === impl Verifier ===

impl Verifier {
    /// A verifier for `config`'s algorithm, audience, issuer and leeway, with the key that belongs to them.
    pub(super) fn new(config: &Config, key: DecodingKey) -> Self {
        Self::with(config, Keys::One(key))
    }

    /// One with an issuer's keys.
    pub(super) fn of_set(config: &Config, set: KeySet) -> Self {
        Self::with(config, Keys::Set(set))
    }

    /// One that believes nothing, until an issuer's keys are known.
    pub(super) fn without_keys(config: &Config) -> Self {
        Self::with(config, Keys::Unknown)
    }

    fn with(config: &Config, keys: Keys) -> Self {
        let mut validation = Validation::new(config.algorithm.into());
        // The library is left with algorithm and signature: its clock is not ours, and its audience check lets a
        // token without `aud` pass.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        Self {
            keys,
            validation,
            audience: config.audience.clone(),
            issuer: config.issuer.clone(),
            leeway_ms: config.leeway_s.saturating_mul(1000),
        }
    }

    /// Whom `token` names, if it is to be believed at `now_unix_ms` (milliseconds since the Unix epoch).
    ///
    /// # Errors
    /// When the token is missing, malformed, not signed by the configured key and algorithm, out of its time, for
    /// another audience, from another issuer, or does not name a user.
    pub fn verify(&self, token: &str, now_unix_ms: u64) -> Result<Identity, Error> {
        if token.is_empty() {
            return Err(Error::Missing);
        }
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Error::TooLong);
        }
        let signed = jsonwebtoken::decode::<Claims>(token, self.key(token)?, &self.validation)
            .map_err(|error| Error::from_library(error.kind()))?;
        check_header(&signed.header)?;
        let claims = signed.claims;

        let expires_at_ms = claims.exp.as_ref().and_then(numeric_date_ms).ok_or(Error::Claim("exp"))?;
        if now_unix_ms >= expires_at_ms.saturating_add(self.leeway_ms) {
            return Err(Error::Expired);
        }
        if let Some(nbf) = &claims.nbf {
            let not_before_ms = numeric_date_ms(nbf).ok_or(Error::Claim("nbf"))?;
            if now_unix_ms.saturating_add(self.leeway_ms) < not_before_ms {
                return Err(Error::NotYetValid);
            }
        }
        if !self.issued_by_ours(claims.iss.as_ref()) {
            return Err(Error::Issuer);
        }
        if !self.meant_for_us(claims.aud.as_ref()) {
            return Err(Error::Audience);
        }
        // One that does not say when it was issued counts as older than every log-out.
        let issued_at = claims.iat.as_ref().map_or(Some(0), numeric_date_ms).ok_or(Error::Claim("iat"))?;
        if now_unix_ms.saturating_add(self.leeway_ms) < issued_at {
            // Else it would outlive log-outs to come.
            return Err(Error::NotYetValid);
        }
        let user = claims.sub.as_ref().and_then(Value::as_str).ok_or(Error::Subject)?;
        let device = claims.device.as_ref().map(device).transpose()?;
        // What is signed cannot be written in another way; a signature may be.
        let signed = token.rsplit_once('.').map_or(token, |(signed, _)| signed);
        let is_bound = device.is_some();
        Ok(Identity {
            user: UserId::new(user).map_err(|_| Error::Subject)?,
            device,
            token: Token { issued_at, expires_at: expires_at_ms, print: Token::print_of(signed), is_bound },
        })
    }

    /// The key to check a token with. Its name is all that the token has a say in.
    fn key(&self, token: &str) -> Result<&DecodingKey, Error> {
        match &self.keys {
            Keys::One(key) => Ok(key),
            Keys::Unknown => Err(Error::NoKeys),
            Keys::Set(set) => {
                let header = jsonwebtoken::decode_header(token).map_err(|error| Error::from_library(error.kind()))?;
                set.find(header.kid.as_deref())
            }
        }
    }

    fn issued_by_ours(&self, iss: Option<&Value>) -> bool {
        match &self.issuer {
            Some(ours) => iss.and_then(Value::as_str) == Some(ours),
            None => true,
        }
    }

    fn meant_for_us(&self, aud: Option<&Value>) -> bool {
        match (&self.audience, aud) {
            (Some(ours), Some(Value::String(one))) => one == ours,
            (Some(ours), Some(Value::Array(several))) => several.iter().any(|one| one.as_str() == Some(ours)),
            (Some(_), _) => false,
            (None, aud) => aud.is_none(),
        }
    }
}

impl Identity {
    /// As whom its owner asks, on the device that the token names or else on the one that the client does.
    #[must_use]
    pub fn actor(self, declared: Option<DeviceId>) -> Actor {
        Actor { user: self.user, device: self.device.or(declared), by: By::Token(self.token) }
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("algorithms", &self.validation.algorithms)
            .field("audience", &self.audience)
            .field("issuer", &self.issuer)
            .field("leeway_ms", &self.leeway_ms)
            .finish_non_exhaustive()
    }
}

// === impl Error ===

impl Error {
    /// The class of the reason, as a label for logs and metrics.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::Header(_) => "header",
            Self::Algorithm => "algorithm",
            Self::UnknownKey => "unknown_key",
            Self::KeyNotNamed => "key_not_named",
            Self::NoKeys => "no_keys",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Audience => "audience",
            Self::Issuer => "issuer",
            Self::Subject => "subject",
            Self::Claim(_) => "claim",
            Self::Signing => "signing",
        }
    }

    /// The row of the table of errors that a client sees.
    #[must_use]
    pub const fn code(self) -> Code {
        match self {
            Self::Missing => Code::AuthRequired,
            Self::Expired => Code::AuthExpired,
            Self::Signing => Code::Internal,
            Self::NoKeys => Code::Unavailable,
            _ => Code::AuthInvalid,
        }
    }

    fn from_library(kind: &ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidAlgorithm => Self::Algorithm,
            ErrorKind::InvalidSignature => Self::Signature,
            _ => Self::Malformed,
        }
    }
}

/// The claims that we read, as they came. Each is examined by itself, so that a refusal can name it; a claim that
/// stands twice makes the token malformed.
#[derive(Deserialize)]
struct Claims {
    sub: Option<Value>,
    exp: Option<Value>,
    nbf: Option<Value>,
    aud: Option<Value>,
    iss: Option<Value>,
    iat: Option<Value>,
    device: Option<Value>,
}

/// `kid` only chooses among the keys that we have; `jku` and `x5u` are read by nobody. A key inside the token is refused even where the signature holds: no
/// honest issuer sends one. `crit` names extensions that must be understood (RFC 7515 §4.1.11), and we know none.
fn check_header(header: &Header) -> Result<(), Error> {
    if header.jwk.is_some() {
        return Err(Error::Header("jwk"));
    }
    if header.x5c.is_some() {
        return Err(Error::Header("x5c"));
    }
    if header.crit.is_some() {
        return Err(Error::Header("crit"));
    }
    Ok(())
}

/// Seconds since the epoch, with or without a fraction (RFC 7519 §2), in milliseconds. A time before the epoch is the
/// epoch; one beyond all clocks is the end of time.
fn numeric_date_ms(value: &Value) -> Option<u64> {
    if let Some(seconds) = value.as_u64() {
        return Some(seconds.saturating_mul(1000));
    }
    // A float's cast saturates, and JSON knows neither NaN nor infinity.
    value.as_f64().map(|seconds| (seconds * 1000.0).round() as u64)
}

fn device(value: &Value) -> Result<DeviceId, Error> {
    value.as_str().and_then(|text| DeviceId::new(text).ok()).ok_or(Error::Claim("device"))
}
