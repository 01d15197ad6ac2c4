//! An account on this device: its folder, its keys and its registration.

use super::client::Client;
use super::enrollment::{Enrollment, Step};
use super::error::{ClientError, ErrorCode};
use super::keys::{DeviceCode, Fingerprint, Keys, Secrets};
use super::machine::{LocalAccount, Receive};
use super::party_name::PartyName;
use super::server_url::ServerUrl;
use super::state::Change;
use super::storage::Storage;
use crate::net::client_tls::Tls;
use crate::net::dialer::Dialer;
use crate::net::proxy_settings::ProxySettings;
use futures_util::{SinkExt, StreamExt};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message as Frame;

/// Time limit of a registration once connected; the server may wait before it hashes a password.
const ENROLLMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// A user at a server, with the keys of this device.
#[derive(Debug, Clone)]
pub struct Account {
    storage: Storage,
    file: AccountFile,
    proxies: ProxySettings,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct AccountFile {
    server: ServerUrl,
    user: String,
    label: String,
    /// Certificates (PEM) to trust in place of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    roots: Option<String>,
    /// The server has accepted the device.
    is_registered: bool,
    #[serde(flatten)]
    secrets: Secrets,
}

/// Options of [`Account::register_with`].
#[derive(Debug, Clone, Default)]
pub struct RegistrationOptions {
    password: Option<String>,
    label: Option<String>,
    roots: Option<String>,
    proxies: ProxySettings,
}

impl RegistrationOptions {
    /// Sets a password, with which clients of the TCP protocol can log in too. It is sent inside TLS only. If the account exists and has no
    /// keys, the password proves that it is the user's.
    #[must_use]
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Sets the name of the device, which the account's devices see.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Trusts these certificates (PEM) in place of the system's.
    #[must_use]
    pub fn roots(mut self, pem: impl Into<String>) -> Self {
        self.roots = Some(pem.into());
        self
    }

    /// Sets the proxy of the connections to the server, as [`Account::proxies`] does.
    #[must_use]
    pub fn proxies(mut self, proxies: ProxySettings) -> Self {
        self.proxies = proxies;
        self
    }
}

impl Account {
    /// Opens the account in this folder; `None` without one.
    ///
    /// # Errors
    /// [`ClientError::Storage`].
    pub fn open(folder: &Path) -> Result<Option<Self>, ClientError> {
        let storage = Storage::new(folder);
        let proxies = ProxySettings::default();
        Ok(storage.load_account()?.map(|file| Self { storage, file, proxies }))
    }

    /// Sets the proxy of the connections to the server; by default there is none. It is not stored in the folder, and the library does not
    /// read the environment.
    #[must_use]
    pub fn proxies(mut self, proxies: ProxySettings) -> Self {
        self.proxies = proxies;
        self
    }

    /// Makes an account with new keys in this folder and registers it.
    ///
    /// # Errors
    /// [`ClientError`]; [`ErrorCode::NameTaken`] if the name is taken.
    pub async fn register(folder: &Path, server: &ServerUrl, user: &str) -> Result<Self, ClientError> {
        Self::register_with(folder, server, user, RegistrationOptions::default()).await
    }

    /// Makes an account as [`Account::register`] does, with options.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn register_with(
        folder: &Path,
        server: &ServerUrl,
        user: &str,
        options: RegistrationOptions,
    ) -> Result<Self, ClientError> {
        let password = options.password.clone();
        if password.is_some() && !server.has_tls() {
            let message = "a password is sent inside TLS only".to_owned();
            return Err(ClientError::Refused { code: ErrorCode::TlsRequired, message });
        }
        let _lock = Storage::new(folder).lock_enrollment()?;
        let (mut account, is_new) = match Self::open(folder)? {
            Some(account) if account.file.is_registered || account.file.user != user => {
                let path = folder.to_owned();
                return Err(ClientError::Storage { path, source: io::ErrorKind::AlreadyExists.into() });
            }
            // An attempt that was interrupted: the server may have these keys.
            Some(mut account) => {
                account.file.server = server.clone();
                account.set_roots(options.roots)?;
                (account.proxies(options.proxies), false)
            }
            None => (Self::create(folder, server, user, options, true)?, true),
        };
        match account.enroll(password.as_deref()).await {
            Ok(()) => {}
            Err(ClientError::Refused { code: ErrorCode::NameTaken, .. }) if !is_new => {
                Client::connect(&account, Receive::Nothing).await?.close().await?;
            }
            Err(error @ ClientError::Refused { .. }) if is_new => {
                account.storage.remove_account()?;
                return Err(error);
            }
            Err(error) => return Err(error),
        }
        account.set_registered()?;
        Ok(account)
    }

    /// Makes the keys of a device for an account that exists. The account must add the [`Account::device_code`].
    pub(crate) fn prepare_device(
        folder: &Path,
        server: &ServerUrl,
        user: &str,
        options: RegistrationOptions,
    ) -> Result<Self, ClientError> {
        let _lock = Storage::new(folder).lock_enrollment()?;
        match Self::open(folder)? {
            Some(account) if account.is_of(server, user) => Ok(account),
            Some(_) => {
                let path = folder.to_owned();
                Err(ClientError::Storage { path, source: io::ErrorKind::AlreadyExists.into() })
            }
            None => Self::create(folder, server, user, options, false),
        }
    }

    fn create(
        folder: &Path,
        server: &ServerUrl,
        user: &str,
        options: RegistrationOptions,
        with_identity: bool,
    ) -> Result<Self, ClientError> {
        let storage = Storage::new(folder);
        storage.create_folder()?;
        let secrets = Secrets::generate(with_identity, &mut ChaCha20Rng::from_os_rng());
        let file = AccountFile {
            server: server.clone(),
            user: user.to_owned(),
            label: options.label.unwrap_or_else(|| "device".to_owned()),
            roots: options.roots,
            is_registered: false,
            secrets,
        };
        let account = Self { storage, file, proxies: options.proxies };
        // Before the server knows the keys: an account whose keys are lost is lost.
        account.storage.save_account(&account.file)?;
        if let Some(fingerprint) = account.identity() {
            let pinned = Change::Trusted { party: account.party(), fingerprint };
            let _ = account.storage.apply(&pinned)?;
        }
        Ok(account)
    }

    async fn enroll(&self, password: Option<&str>) -> Result<(), ClientError> {
        let keys = self.keys()?;
        let mut enrollment = Enrollment::new(&self.file.user, &keys, &self.file.label, password);
        let mut socket = self.file.server.connect(&self.dialer()).await?;
        let lost = |source| ClientError::Unreachable { server: self.file.server.to_string(), source };
        let enrolled = async {
            loop {
                let frame = socket.next().await.ok_or(io::ErrorKind::UnexpectedEof);
                let frame = frame.map_err(|kind| lost(kind.into()))?;
                let step = match frame.map_err(|error| lost(io::Error::other(error)))? {
                    Frame::Text(text) => enrollment.handle_frame(&text)?,
                    Frame::Close(_) => return Err(lost(io::ErrorKind::UnexpectedEof.into())),
                    _ => Step::Wait,
                };
                match step {
                    Step::Done => return Ok(()),
                    Step::Wait => {}
                    Step::Send(frame) => {
                        let sent = socket.send(Frame::text(frame)).await;
                        sent.map_err(|error| lost(io::Error::other(error)))?;
                    }
                }
            }
        };
        timeout(ENROLLMENT_TIMEOUT, enrolled)
            .await
            .unwrap_or_else(|_| Err(lost(io::ErrorKind::TimedOut.into())))
    }

    /// Sets the certificates (PEM) to trust in place of the system's, from the next connection on.
    pub(crate) fn set_roots(&mut self, roots: Option<String>) -> Result<(), ClientError> {
        self.file.roots = roots;
        self.storage.save_account(&self.file)
    }

    /// Uses another address of the server, with or without TLS, from the next connection on; [`Account::set_registered`] makes it durable.
    pub(crate) fn set_server(&mut self, server: &ServerUrl) {
        self.file.server = server.clone();
    }

    /// Returns the fingerprint that is pinned for a party.
    pub(crate) fn pinned(&self, party: &PartyName) -> Result<Option<Fingerprint>, ClientError> {
        Ok(self.storage.load_state()?.peers.pinned(party))
    }

    /// Notes that the server has accepted this device.
    pub(crate) fn set_registered(&mut self) -> Result<(), ClientError> {
        self.file.is_registered = true;
        self.storage.save_account(&self.file)
    }

    /// Returns whether the server has accepted this device.
    pub(crate) fn is_registered(&self) -> bool {
        self.file.is_registered
    }

    /// Returns whether this device has the account's identity key.
    pub(crate) fn has_identity(&self) -> bool {
        self.file.secrets.identity_seed.is_some()
    }

    fn is_of(&self, server: &ServerUrl, user: &str) -> bool {
        self.file.server == *server && self.file.user == user
    }

    /// Returns the name of the user.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.file.user
    }

    /// Returns the server.
    #[must_use]
    pub fn server(&self) -> &ServerUrl {
        &self.file.server
    }

    /// Returns the account as a party.
    pub(crate) fn party(&self) -> PartyName {
        PartyName::from_wire(&format!("user:{}", self.file.user))
    }

    /// Returns the fingerprint of the account's identity key: of a linked device, as it was first seen.
    ///
    /// # Errors
    /// [`ClientError::Storage`].
    pub fn fingerprint(&self) -> Result<Option<Fingerprint>, ClientError> {
        Ok(self.storage.load_state()?.peers.pinned(&self.party()))
    }

    fn identity(&self) -> Option<Fingerprint> {
        let keys = Keys::new(&self.file.secrets)?;
        keys.identity.map(|identity| Fingerprint::of(&identity.public()))
    }

    /// Returns the code with which another device adds this one.
    pub(crate) fn device_code(&self) -> Result<DeviceCode, ClientError> {
        Ok(self.keys()?.device_code(&self.file.label))
    }

    /// Returns the public signing key of this device.
    pub(crate) fn signing_key(&self) -> Result<[u8; 32], ClientError> {
        Ok(self.keys()?.signing.public())
    }

    pub(super) fn storage(&self) -> &Storage {
        &self.storage
    }

    pub(super) fn dialer(&self) -> Dialer {
        let tls = match &self.file.roots {
            Some(roots) => Tls::system().roots(roots.clone()),
            None => Tls::system(),
        };
        Dialer { tls, proxies: self.proxies.clone() }
    }

    fn keys(&self) -> Result<Keys, ClientError> {
        let damaged = || ClientError::Storage {
            path: self.storage.folder().to_owned(),
            source: io::ErrorKind::InvalidData.into(),
        };
        Keys::new(&self.file.secrets).ok_or_else(damaged)
    }

    pub(super) fn local(&self) -> Result<LocalAccount, ClientError> {
        Ok(LocalAccount { user: self.file.user.clone(), party: self.party(), keys: self.keys()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_process_does_not_register_beside_the_first() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("alice");
        let server: ServerUrl = "ws://127.0.0.1:1".parse().unwrap();
        let first = Storage::new(&folder).lock_enrollment().unwrap();
        let busy = |error: ClientError| matches!(error, ClientError::Storage { source, .. } if source.kind() == io::ErrorKind::ResourceBusy);
        assert!(busy(Account::register(&folder, &server, "alice").await.unwrap_err()));
        let options = RegistrationOptions::default();
        assert!(busy(Account::prepare_device(&folder, &server, "alice", options).unwrap_err()));
        assert!(Account::open(&folder).unwrap().is_none(), "no keys were made that the first would find");
        drop(first);
        assert!(
            !busy(Account::register(&folder, &server, "alice").await.unwrap_err()),
            "nobody listens there"
        );
    }
}
