//! How a key comes from its file, and which keys are refused.
//!
//! A key is read at the start, and again when an operator says so (SIGHUP). Anything doubtful ends the start with a
//! sentence, or leaves the former key in force: a gateway with a weak or mistaken key looks exactly like one that works.

use std::{fs::File, io::Read, path::Path};

use jsonwebtoken::{DecodingKey, DecodingKeyKind, crypto::aws_lc};

use super::{Algorithm, SetupError, key_set::sized};

/// Largest key file: a PEM of the longest accepted key is 1.5 KiB. Larger: it is some other file.
pub const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Shortest HS256 secret: as long as the hash (RFC 7518 §3.2). Shorter could be searched for off line.
pub const SECRET_BYTES_MIN: usize = 32;

/// Shortest RSA modulus (RFC 7518 §3.3).
pub const RSA_BITS_MIN: usize = 2048;

/// Longest RSA modulus: the library verifies none that is longer.
pub const RSA_BITS_MAX: usize = 8192;

/// Length of an Ed25519 public key.
pub(super) const ED25519_BYTES: usize = 32;

/// Length of a point of P-256, not compressed.
pub(super) const P256_BYTES: usize = 65;

const PEM_BEGIN: &str = "-----BEGIN ";

/// The key in `path`, for `algorithm`.
///
/// # Errors
/// When the file cannot be read or holds no acceptable key for `algorithm`.
pub(super) fn read(path: &Path, algorithm: Algorithm) -> Result<DecodingKey, SetupError> {
    match algorithm {
        Algorithm::HS256 => Ok(DecodingKey::from_secret(&secret(path)?)),
        Algorithm::EdDSA => ed25519(path),
        Algorithm::RS256 => rsa(path),
        Algorithm::ES256 => p256(path),
    }
}

/// The secret in `path`, without the newline that an editor or `echo` left at its end.
///
/// # Errors
/// When the file cannot be read, holds fewer than [`SECRET_BYTES_MIN`] bytes, or holds a PEM key.
pub(super) fn secret(path: &Path) -> Result<Vec<u8>, SetupError> {
    let mut secret = content(path)?;
    if secret.ends_with(b"\n") {
        secret.pop();
        if secret.ends_with(b"\r") {
            secret.pop();
        }
    }
    if secret.windows(PEM_BEGIN.len()).any(|window| window == PEM_BEGIN.as_bytes()) {
        return Err(SetupError::SecretIsPem { path: path.into() });
    }
    if secret.len() < SECRET_BYTES_MIN {
        return Err(SetupError::SecretTooShort { path: path.into(), bytes: secret.len() });
    }
    Ok(secret)
}

fn ed25519(path: &Path) -> Result<DecodingKey, SetupError> {
    let wrong = || SetupError::WrongKey { path: path.into(), algorithm: Algorithm::EdDSA };
    let key = DecodingKey::from_ed_pem(&public_pem(path)?).map_err(|_| wrong())?;
    sized(key, ED25519_BYTES).ok_or_else(wrong)
}

fn p256(path: &Path) -> Result<DecodingKey, SetupError> {
    let wrong = || SetupError::WrongKey { path: path.into(), algorithm: Algorithm::ES256 };
    let key = DecodingKey::from_ec_pem(&public_pem(path)?).map_err(|_| wrong())?;
    // Points of other curves have other lengths.
    sized(key, P256_BYTES).ok_or_else(wrong)
}

fn rsa(path: &Path) -> Result<DecodingKey, SetupError> {
    let wrong = || SetupError::WrongKey { path: path.into(), algorithm: Algorithm::RS256 };
    let key = DecodingKey::from_rsa_pem(&public_pem(path)?).map_err(|_| wrong())?;
    let DecodingKeyKind::SecretOrDer(der) = key.kind() else { return Err(wrong()) };
    let components = aws_lc::DEFAULT_PROVIDER.key_utils.rsa_pub_components_from_public_key;
    let (modulus, _) = components(der).map_err(|_| wrong())?;
    let bits = bit_length(&modulus);
    if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
        return Err(SetupError::RsaSize { path: path.into(), bits });
    }
    Ok(key)
}

/// Length of a big-endian number.
pub(super) fn bit_length(number: &[u8]) -> usize {
    match number.iter().position(|byte| *byte != 0) {
        Some(first) => (number.len() - first) * 8 - number[first].leading_zeros() as usize,
        None => 0,
    }
}

/// The file at `path`, if it is one PEM block with a public key. The library would also take certificates and private
/// keys, and find in them something that is not the key.
fn public_pem(path: &Path) -> Result<Vec<u8>, SetupError> {
    let pem = content(path)?;
    let not = |found: String| SetupError::NotPublicKey { path: path.into(), found };
    let text = std::str::from_utf8(&pem).map_err(|_| not("no text".into()))?;
    let mut blocks = text.split(PEM_BEGIN).skip(1);
    let Some(block) = blocks.next() else { return Err(not("no PEM block".into())) };
    let label = block.split("-----").next().unwrap_or_default();
    if !matches!(label, "PUBLIC KEY" | "RSA PUBLIC KEY") {
        // Only a label of PEM is shown: anything else might be a secret in the wrong place.
        let known = ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "CERTIFICATE"];
        let found = known.iter().find(|known| **known == label);
        return Err(not(found.map_or_else(|| "another PEM block".into(), |known| format!("`{known}`"))));
    }
    if blocks.next().is_some() {
        return Err(not("several PEM blocks".into()));
    }
    Ok(pem)
}

/// A small file.
///
/// # Errors
/// When it cannot be read or is larger than [`FILE_BYTES_MAX`].
pub(super) fn content(path: &Path) -> Result<Vec<u8>, SetupError> {
    let read = |source| SetupError::Read { path: path.into(), source };
    let mut content = Vec::new();
    let file = File::open(path).map_err(read)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content).map_err(read)?;
    if content.len() as u64 > FILE_BYTES_MAX {
        return Err(SetupError::TooLarge { path: path.into() });
    }
    Ok(content)
}
