//! TLS: rustls over aws-lc, certificates always verified.

use super::target::Parsed;
use fred::types::config::{TlsConfig, TlsConnector};
use mainstay_policy::Error;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};
use std::sync::Arc;

/// `None` for a URL without TLS.
pub(super) fn config(parsed: &Parsed, given: Option<&[u8]>) -> Result<Option<TlsConfig>, Error> {
    if !parsed.tls {
        return match given {
            Some(_) => Err(Error::invalid(
                "redis: authorities to trust, but a URL without TLS; write rediss in place of redis",
            )),
            None => Ok(None),
        };
    }
    let roots = match (given, &parsed.authorities) {
        (Some(pem), _) => read(pem, "those given to `trust_only`")?,
        (None, Some(file)) => {
            let pem = std::fs::read(file).map_err(|error| {
                Error::invalid(format!(
                    "redis: the file that `ssl_ca_certs` names cannot be read ({})",
                    error.kind()
                ))
            })?;
            read(&pem, "the file that `ssl_ca_certs` names")?
        }
        (None, None) => system()?,
    };
    // Not what a process has installed: with two to choose from, that is a panic.
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::invalid(format!("redis: TLS cannot be set up: {error}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Some(TlsConnector::from(config).into()))
}

fn read(pem: &[u8], source: &str) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let added = certificate.ok().and_then(|certificate| roots.add(certificate).ok());
        if added.is_none() {
            return Err(Error::invalid(format!(
                "redis: a certificate among {source} cannot be read; PEM is expected"
            )));
        }
    }
    if roots.is_empty() {
        return Err(Error::invalid(format!(
            "redis: there is no certificate in {source}; PEM is expected, -----BEGIN CERTIFICATE-----"
        )));
    }
    Ok(roots)
}

fn system() -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    // One that is broken must not take the others along.
    for certificate in rustls_native_certs::load_native_certs().certs {
        let _ = roots.add(certificate);
    }
    if roots.is_empty() {
        return Err(Error::invalid(
            "redis: this system has no certificates of authorities; install them \
             (ca-certificates), or name some with `ssl_ca_certs`",
        ));
    }
    Ok(roots)
}
