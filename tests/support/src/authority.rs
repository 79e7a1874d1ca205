//! Certificates that nobody else trusts.

use crate::{directory, process::give};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// An authority that signs the certificates of private servers.
#[derive(Debug)]
pub struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    /// A new one.
    #[must_use]
    pub fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        // Two of one name would be told apart by their signatures alone.
        let name = format!("authority {}", fastrand::u64(..));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = directory::temporary();
        fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { dir, issuer }
    }

    /// Its own certificate in PEM, for those who are to trust it.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Writes `tls.pem` and `tls.key` for a server of this name into a directory, and `ca.pem` for what
    /// it is to trust.
    pub(crate) fn sign(&self, name: &str, dir: &Path) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(dir.join("tls.pem"), certificate.pem()).unwrap();
        fs::write(dir.join("ca.pem"), self.issuer.pem()).unwrap();
        // PostgreSQL uses no key that others may read.
        fs::write(dir.join("tls.key"), key.serialize_pem()).unwrap();
        fs::set_permissions(dir.join("tls.key"), fs::Permissions::from_mode(0o600)).unwrap();
        give(&dir.join("tls.key"));
    }
}
