//! A certificate authority for tests, with one certificate.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;

/// The authority's key is thrown away as soon as it has signed.
pub(crate) struct Authority {
    folder: TempDir,
    root: Vec<u8>,
}

impl Authority {
    /// Makes an authority and its certificate for 127.0.0.1 and localhost.
    pub(crate) fn new() -> Self {
        Self::naming(&["localhost", "127.0.0.1"])
    }

    /// Makes an authority and its certificate for these names.
    pub(crate) fn naming(names: &[&str]) -> Self {
        let root_key = KeyPair::generate().unwrap();
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        root.distinguished_name.push(DnType::CommonName, "a test's authority");
        let root_der = root.self_signed(&root_key).unwrap().der().to_vec();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        let leaf = leaf.signed_by(&key, &Issuer::new(root, root_key)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("certificate.pem"), pem("CERTIFICATE", leaf.der())).unwrap();
        std::fs::write(folder.path().join("key.pem"), pem("PRIVATE KEY", &key.serialize_der())).unwrap();
        std::fs::write(folder.path().join("root.pem"), pem("CERTIFICATE", &root_der)).unwrap();
        Self { folder, root: root_der }
    }

    /// The server's certificate, PEM.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }

    /// Its key, PEM.
    pub(crate) fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    /// The authority's own certificate, PEM.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("root.pem")
    }

    /// The same as policies of Chromium take it.
    pub(crate) fn root_base64(&self) -> String {
        BASE64.encode(&self.root)
    }

    /// A folder that lives as long as this.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in BASE64.encode(der).as_bytes().chunks(64) {
        writeln!(pem, "{}", String::from_utf8_lossy(line)).unwrap();
    }
    writeln!(pem, "-----END {label}-----").unwrap();
    pem
}
