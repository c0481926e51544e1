//! An authority for development: whoever may read its folder may make certificates, and processes that share the folder
//! believe each other. Operators bring certificates of their own instead.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use xxhash_rust::xxh3::xxh3_64;

use super::identity::{Identity, IdentityError, Role, certificates};
use crate::process::files::make_private;

/// The authority's key and certificate, for whoever may issue.
const SECRET: &str = "authority.pem";
/// Its certificate alone, for whoever only has to believe.
const PUBLIC: &str = "ca.pem";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Longer than any development cluster lives.
const AUTHORITY_LIVES: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Longer than any of its processes runs: each start issues anew.
const CERTIFICATE_LIVES: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Makes certificates for the processes of a development cluster.
pub struct Authority {
    certificate: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The authority of this folder; a new one if it has none yet. Of several processes that begin one at once one wins, and
    /// all have that one.
    ///
    /// # Errors
    /// When the folder cannot be read or written, or holds something else.
    pub fn open_or_create(folder: &Path) -> Result<Self, IdentityError> {
        make_private(folder).map_err(|error| IdentityError::File { path: folder.to_owned(), error })?;
        let secret = folder.join(SECRET);
        if !secret.exists() {
            create(folder, &secret)?;
        }
        let authority = Self::open(&secret)?;
        // All write the same.
        place(folder, &folder.join(PUBLIC), authority.pem.as_bytes(), 0o644, |from, to| fs::rename(from, to))?;
        Ok(authority)
    }

    fn open(secret: &Path) -> Result<Self, IdentityError> {
        let text = fs::read(secret).map_err(|error| IdentityError::File { path: secret.to_owned(), error })?;
        let wrong = |why: String| IdentityError::Content { path: secret.to_owned(), why };
        let mut found = certificates(secret, &text)?;
        let certificate = found.remove(0);
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| wrong(error.to_string()))?;
        let key = KeyPair::try_from(&key).map_err(|error| wrong(error.to_string()))?;
        let text = String::from_utf8_lossy(&text);
        // The certificate stands before the key, as `create` wrote them.
        let pem = text.split_inclusive("-----END CERTIFICATE-----").next().unwrap_or_default();
        let pem = format!("{}\n", pem.trim());
        Ok(Self { certificate, pem, issuer: Issuer::new(params(&key)?, key) })
    }

    /// A certificate for a process: of any number in this role, or of this one only.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn issue(&self, role: Role, uid: Option<u64>) -> Result<Identity, IdentityError> {
        let (certificate, key) = self.make(&role.certified(uid), SystemTime::now() - DAY, CERTIFICATE_LIVES)?;
        let key =
            PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| IdentityError::Unusable(error.to_owned()))?;
        Identity::new(
            std::slice::from_ref(&self.certificate),
            vec![certificate.der().clone()],
            key,
            self.issuer.key().serialized_der(),
        )
    }

    /// The same as text: the certificate and its key, both in PEM.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn issue_pem(&self, role: Role, uid: Option<u64>) -> Result<(String, String), IdentityError> {
        let (certificate, key) = self.make(&role.certified(uid), SystemTime::now() - DAY, CERTIFICATE_LIVES)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// The authority's own certificate, in PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    pub(super) fn make(
        &self,
        name: &str,
        from: SystemTime,
        lives: Duration,
    ) -> Result<(rcgen::Certificate, KeyPair), IdentityError> {
        let key = KeyPair::generate().map_err(unusable)?;
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(unusable)?;
        params.distinguished_name = named(name);
        params.not_before = from.into();
        params.not_after = (from + lives).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(unusable)?;
        Ok((certificate, key))
    }
}

fn unusable(error: rcgen::Error) -> IdentityError {
    IdentityError::Unusable(error.to_string())
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// What follows from an authority's key: its name too, so that one is not taken for another.
fn params(key: &KeyPair) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::new(Vec::new()).map_err(unusable)?;
    params.distinguished_name = named(&format!("Chappe development {:016x}", xxh3_64(key.public_key_raw())));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn create(folder: &Path, secret: &Path) -> Result<(), IdentityError> {
    let key = KeyPair::generate().map_err(unusable)?;
    let mut params = params(&key)?;
    let now = SystemTime::now();
    params.not_before = (now - DAY).into();
    params.not_after = (now + AUTHORITY_LIVES).into();
    let certificate = params.self_signed(&key).map_err(unusable)?;
    let text = format!("{}{}", certificate.pem(), key.serialize_pem());
    // A second name for the same file: unlike a renaming it leaves alone what another process has put there.
    let name = |from: &Path, to: &Path| match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        named => named,
    };
    place(folder, secret, text.as_bytes(), 0o600, name)
}

/// Writes a file whole or not at all: under a name that nobody else has, then under its own.
fn place(
    folder: &Path,
    path: &Path,
    text: &[u8],
    mode: u32,
    name: impl FnOnce(&Path, &Path) -> io::Result<()>,
) -> Result<(), IdentityError> {
    let draft: PathBuf = folder.join(format!(".{:016x}.draft", rand::random::<u64>()));
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
        file.write_all(text)?;
        file.sync_all()?;
        name(&draft, path)
    };
    let written = write();
    // Gone already where it was renamed.
    let _ = fs::remove_file(&draft);
    written.map_err(|error| IdentityError::File { path: path.to_owned(), error })
}
