//! The certificate of TLS and DTLS: read from PEM files, or self-signed and kept in the state folder.

use crate::state::make_file;
use data_encoding::BASE64;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use tokio_rustls::rustls;

/// The file of the self-signed certificate and its key.
const OWN: &str = "tls.pem";
/// The name in a self-signed certificate: one that no host has.
const OWN_NAME: &str = "ginnel.invalid";

/// A certificate chain and its key.
#[derive(Debug)]
pub(crate) struct Certificate {
    /// The server's certificate first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// PKCS #8, SEC 1 or PKCS #1.
    pub(crate) key: PrivateKeyDer<'static>,
    /// Whether it is the self-signed one of the state folder.
    pub(crate) self_signed: bool,
    /// The names of both files, for errors.
    pub(crate) files: String,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// A file could not be created or read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The content of a file is not a PEM certificate or key.
    #[error("{path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The private key is encrypted.
    #[error(
        "{path}: the private key is encrypted; decrypt it first, because the server cannot ask for its password"
    )]
    Encrypted {
        /// The file.
        path: PathBuf,
    },
    /// The self-signed certificate could not be created.
    #[error("creating a self-signed certificate: {0}")]
    Make(String),
    /// TLS or DTLS cannot use the certificate or its key.
    #[error("certificate and key ({files}): {reason}")]
    Unusable {
        /// The files of the certificate and its key.
        files: String,
        /// The reason.
        reason: String,
    },
}

impl Certificate {
    /// Reads a chain and its key from PEM files.
    ///
    /// # Errors
    /// [`CertificateError`] names the file.
    pub(crate) fn load(chain: &Path, key: &Path) -> Result<Self, CertificateError> {
        let (certificates, private) = (read(chain)?, read(key)?);
        let content =
            |path: &Path, reason: String| CertificateError::Content { path: path.to_owned(), reason };
        let certificates = CertificateDer::pem_slice_iter(&certificates)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| content(chain, error.to_string()))?;
        if certificates.is_empty() {
            return Err(content(
                chain,
                "no certificate found; it must be PEM, the server's certificate first".to_owned(),
            ));
        }
        if is_encrypted(&private) {
            return Err(CertificateError::Encrypted { path: key.to_owned() });
        }
        let private = PrivateKeyDer::from_pem_slice(&private)
            .map_err(|_| content(key, "no private key found; it must be PEM".to_owned()))?;
        let files = format!("{} and {}", chain.display(), key.display());
        Ok(Self { chain: certificates, key: private, self_signed: false, files })
    }

    /// Returns the error that this certificate cannot be used.
    pub(crate) fn unusable(&self, reason: impl std::fmt::Display) -> CertificateError {
        CertificateError::Unusable { files: self.files.clone(), reason: reason.to_string() }
    }

    /// Reads the self-signed certificate of the state folder; creates it (ECDSA P-256, mode 0600) if it does not exist.
    ///
    /// # Errors
    /// [`CertificateError`] names the file.
    pub(crate) fn own(folder: &Path) -> Result<Self, CertificateError> {
        let path = folder.join(OWN);
        if !path.try_exists().is_ok_and(|exists| exists) {
            make_file(&path, &create()?)
                .map_err(|source| CertificateError::Io { path: path.clone(), source })?;
        }
        Ok(Self { self_signed: true, ..Self::load(&path, &path)? })
    }

    /// Reads certificates from a PEM file.
    ///
    /// # Errors
    /// [`CertificateError`] names the file.
    pub(crate) fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
        let read = read(path)?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read).collect();
        let content = |reason: String| CertificateError::Content { path: path.to_owned(), reason };
        match certificates {
            Ok(certificates) if certificates.is_empty() => Err(content("no certificate found".to_owned())),
            Ok(certificates) => Ok(certificates),
            Err(error) => Err(content(error.to_string())),
        }
    }

    /// Returns its first DNS name that is no wildcard.
    pub(crate) fn name(&self) -> Option<String> {
        self.names().into_iter().next()
    }

    /// Returns its DNS names without wildcards.
    pub(crate) fn names(&self) -> Vec<String> {
        Self::names_of(&self.chain)
    }

    /// Returns the DNS names of a chain without its key.
    pub(crate) fn names_of(chain: &[CertificateDer<'_>]) -> Vec<String> {
        let certificate = chain.first().and_then(|own| webpki::EndEntityCert::try_from(own).ok());
        let Some(certificate) = certificate else { return Vec::new() };
        certificate.valid_dns_names().filter(|name| !name.starts_with('*')).map(str::to_owned).collect()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    fs::read(path).map_err(|source| CertificateError::Io { path: path.to_owned(), source })
}

/// Returns whether a PEM file has an encrypted key: PKCS #8, or OpenSSL's older format.
fn is_encrypted(pem: &[u8]) -> bool {
    let text = String::from_utf8_lossy(pem);
    text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || text.contains("Proc-Type: 4,ENCRYPTED")
}

fn create() -> Result<String, CertificateError> {
    let failed = |error: rcgen::Error| CertificateError::Make(error.to_string());
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let params = rcgen::CertificateParams::new([OWN_NAME.to_owned()]).map_err(failed)?;
    let certificate = params.self_signed(&pair).map_err(failed)?;
    Ok(pem("CERTIFICATE", certificate.der()) + &pem("PRIVATE KEY", &pair.serialize_der()))
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        let _ = writeln!(pem, "{}", String::from_utf8_lossy(line));
    }
    let _ = writeln!(pem, "-----END {label}-----");
    pem
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_self_signed_certificate_is_created_once_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let first = Certificate::own(folder.path()).unwrap();
        let second = Certificate::own(folder.path()).unwrap();
        assert!(first.self_signed && first.chain == second.chain);
        let mode = fs::metadata(folder.path().join(OWN)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(first.name().as_deref(), Some(OWN_NAME));
    }

    #[test]
    fn an_error_names_the_bad_file() {
        let folder = tempfile::tempdir().unwrap();
        let (missing, wrong, good) =
            (folder.path().join("missing.pem"), folder.path().join("wrong.pem"), folder.path().join(OWN));
        fs::write(&wrong, "not PEM at all\n").unwrap();
        Certificate::own(folder.path()).unwrap();
        for (chain, key, named) in
            [(&missing, &good, &missing), (&wrong, &good, &wrong), (&good, &wrong, &wrong)]
        {
            let error = Certificate::load(chain, key).unwrap_err().to_string();
            assert!(error.starts_with(&named.display().to_string()), "{error}");
        }
    }
}
