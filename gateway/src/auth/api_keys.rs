//! API keys: server-side callers, each with a name and what it may do.
//!
//! The file holds hashes only. A key is long and random (see [`KEY_BYTES_MIN`]), so that a plain SHA-256 of it tells
//! nothing; a password would need a slow one, and none is accepted here. The presented key is hashed and the hash
//! compared with every known one in constant time.

use std::{fmt, path::Path, sync::Arc};

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest};
use chappe_schema::operation::Scope;
use serde::Deserialize;

use super::{SetupError, keys};

/// Shortest key that is looked at: 32 hexadecimal digits are 128 bits. Shorter: refused, whatever the file says, so that
/// nobody can hash a password into it.
pub const KEY_BYTES_MIN: usize = 32;

/// Longest key that is looked at. Longer: refused before anything is hashed.
pub const KEY_BYTES_MAX: usize = 256;

/// Most keys of one file: each is compared with whatever is presented. More: the file is refused.
pub const KEYS_MAX: usize = 256;

/// Longest name of a key. It stands in logs and beside what was done with it. Longer: the file is refused.
pub const NAME_BYTES_MAX: usize = 64;

/// Who may come with an API key.
#[derive(Default)]
pub struct ApiKeys(Vec<ApiKey>);

struct ApiKey {
    hash: [u8; 32],
    caller: Arc<Caller>,
}

/// A server-side caller.
#[derive(Debug, PartialEq, Eq)]
pub struct Caller {
    /// The name of its key.
    pub name: Arc<str>,
    scopes: Vec<Scope>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    key: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    sha256: String,
    scopes: Vec<Scope>,
}

impl ApiKeys {
    /// The keys in the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, or anything in it is doubtful.
    pub(super) fn read(path: &Path) -> Result<Self, SetupError> {
        let refused = |why: String| SetupError::ApiKeys { path: path.into(), why };
        let content = keys::content(path).map_err(|error| match error {
            SetupError::Read { source, .. } => refused(source.to_string()),
            other => refused(other.to_string()),
        })?;
        let text = std::str::from_utf8(&content).map_err(|_| refused("it is not text".to_owned()))?;
        Self::parse(text).map_err(refused)
    }

    /// The sentence says which entry is wrong, and nothing of what is in it but its name.
    fn parse(text: &str) -> Result<Self, String> {
        // The parser's own sentence would quote the file, in which somebody may have put a key.
        let file: File = toml::from_str(text).map_err(|error| match error.span() {
            Some(span) => {
                let line = 1 + text.get(..span.start).unwrap_or_default().matches('\n').count();
                format!("line {line}: expected [[key]] with name, sha256 and scopes, and scopes that exist")
            }
            None => "it is not TOML".to_owned(),
        })?;
        if file.key.len() > KEYS_MAX {
            return Err(format!("{} keys; at most {KEYS_MAX} are accepted", file.key.len()));
        }
        let mut keys: Vec<ApiKey> = Vec::with_capacity(file.key.len());
        for (place, Entry { name, sha256, scopes }) in (1..).zip(file.key) {
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_name) {
                return Err(format!("the name of key {place} is not 1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 . _ -"));
            }
            let Some(hash) = hash_of(&sha256) else {
                return Err(format!("the sha256 of `{name}` is not 64 hexadecimal digits"));
            };
            if scopes.is_empty() {
                return Err(format!("`{name}` has no scopes, so it is for nothing"));
            }
            if keys.iter().any(|known| *known.caller.name == *name) {
                return Err(format!("`{name}` stands twice"));
            }
            if let Some(same) = keys.iter().find(|known| known.hash == hash) {
                return Err(format!("`{name}` and `{}` are the same key", same.caller.name));
            }
            keys.push(ApiKey { hash, caller: Arc::new(Caller { name: name.into(), scopes }) });
        }
        Ok(Self(keys))
    }

    /// Whose key this is.
    #[must_use]
    pub fn caller(&self, presented: &str) -> Option<Arc<Caller>> {
        if !(KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&presented.len()) {
            return None;
        }
        let hash = digest::digest(&digest::SHA256, presented.as_bytes());
        // Every key is compared, so that the time tells nothing about the place.
        self.0.iter().fold(None, |found, key| {
            let is_it = verify_slices_are_equal(&key.hash, hash.as_ref()).is_ok();
            if is_it { Some(Arc::clone(&key.caller)) } else { found }
        })
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| &key.caller)).finish()
    }
}

impl Caller {
    /// Whether its key is for this.
    #[must_use]
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }
}

fn hash_of(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "chappe_3f1c7a90c2d84be5a6f0e1d2c3b4a596";

    fn sha256(key: &str) -> String {
        let hash = digest::digest(&digest::SHA256, key.as_bytes());
        hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn entry(name: &str, key: &str, scopes: &str) -> String {
        format!("[[key]]\nname = \"{name}\"\nsha256 = \"{}\"\nscopes = [{scopes}]\n", sha256(key))
    }

    #[test]
    fn a_key_is_known_by_its_hash_and_for_its_scopes_only() {
        let other = "x".repeat(KEY_BYTES_MIN);
        let text =
            entry("backend", KEY, r#""users.read", "as_user.write""#) + &entry("other", &other, r#""users.write""#);
        let keys = ApiKeys::parse(&text).unwrap();
        let backend = keys.caller(KEY).unwrap();
        assert_eq!(&*backend.name, "backend");
        assert!(backend.may(Scope::UsersRead) && backend.may(Scope::AsUserWrite));
        assert!(!backend.may(Scope::UsersWrite) && !backend.may(Scope::AsUserRead));
        assert_eq!(&*keys.caller(&other).unwrap().name, "other");
        for wrong in ["", "chappe_", &KEY[1..], &format!("{KEY} "), &KEY.to_uppercase(), &sha256(KEY)] {
            assert_eq!(keys.caller(wrong), None, "{wrong}");
        }
        assert!(!format!("{keys:?}").contains(&sha256(KEY)));
        assert!(ApiKeys::parse("").unwrap().is_empty());
    }

    #[test]
    fn a_password_is_no_key_even_if_its_hash_is_in_the_file() {
        let keys = ApiKeys::parse(&entry("weak", "correct horse", r#""users.read""#)).unwrap();
        assert_eq!(keys.caller("correct horse"), None);
        let long = "y".repeat(KEY_BYTES_MAX + 1);
        let keys = ApiKeys::parse(&entry("long", &long, r#""users.read""#)).unwrap();
        assert_eq!(keys.caller(&long), None);
    }

    #[test]
    fn a_doubtful_file_is_refused_with_a_sentence_that_holds_no_key() {
        let good = entry("a", KEY, r#""users.read""#);
        for (text, said) in [
            (format!("{good}{good}"), "stands twice"),
            (good.clone() + &entry("b", KEY, r#""users.read""#), "are the same key"),
            (good.replace(r#""users.read""#, ""), "no scopes"),
            (good.replace("users.read", "everything"), "line 4"),
            (good.replace("name = \"a\"", "name = \"a b\""), "the name of key 1"),
            (good.replace("name = \"a\"", "name = \"\""), "the name of key 1"),
            (good.replace("name = \"a\"", &format!("name = \"{}\"", "n".repeat(65))), "the name of key 1"),
            (good.replace(&sha256(KEY), KEY), "64 hexadecimal digits"),
            (good.replace("sha256", "key"), "line "),
            (format!("{good}{KEY}"), "line 5"),
            (
                (0..=KEYS_MAX).map(|n| entry(&format!("k{n}"), &format!("{KEY}{n}"), r#""users.read""#)).collect(),
                "257 keys",
            ),
        ] {
            let why = ApiKeys::parse(&text).unwrap_err();
            assert!(why.contains(said) && !why.contains(KEY), "{why}");
        }
        let missing = ApiKeys::read(Path::new("/nonexistent/keys")).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/keys"), "{missing}");
        assert_eq!(missing.setting(), "api_keys_file");
    }
}
