//! The state folder: the server's secret and its access key, made at the first start and readable by nobody else.

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use rand::TryRngCore;
use rand::rngs::OsRng;
use ring::hmac;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What the folder holds.
#[derive(Debug, Clone)]
pub struct State {
    /// Where it is.
    pub folder: PathBuf,
    /// Whether this call made the secret.
    pub is_new: bool,
    /// The access key that admits clients to the relay.
    pub access_key: String,
    secret: [u8; 32],
}

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// A file or the folder could not be made or read.
    #[error("state {path}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Others may read the folder or a file in it.
    #[error("state {0}: others have access to it; type: chmod -R go= {0}")]
    Exposed(PathBuf),
    /// A file does not hold what it should.
    #[error("state {0}: damaged; remove it to have a new one made")]
    Damaged(PathBuf),
}

impl State {
    /// Opens the folder, making it (0700), its secret and its access key (0600) from the system's randomness where they are
    /// missing.
    ///
    /// # Errors
    /// [`StateError`] names the file.
    pub fn open(folder: &Path) -> Result<Self, StateError> {
        let failed = |source| StateError::Io { path: folder.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        forbid_exposed(folder)?;
        let (secret, is_new) = read_or_make(&folder.join("secret"), |bytes| HEXLOWER.encode(bytes))?;
        let (access_key, _) = read_or_make(&folder.join("key"), |bytes| {
            format!("gk_{}", BASE32_NOPAD.encode(&bytes[..20]).to_lowercase())
        })?;
        let secret = HEXLOWER.decode(secret.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        let secret = secret.ok_or_else(|| StateError::Damaged(folder.join("secret")))?;
        Ok(Self { folder: folder.to_owned(), is_new, access_key, secret })
    }

    /// Reads a text that was kept before; empty where none was.
    ///
    /// # Errors
    /// [`StateError`] names the file.
    pub fn kept(&self, name: &str) -> Result<String, StateError> {
        let path = self.folder.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => forbid_exposed(&path).map(|()| text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(source) => Err(StateError::Io { path, source }),
        }
    }

    /// Keeps a text for later starts (0600): all of it, or the one before when that fails.
    ///
    /// # Errors
    /// [`StateError`] names the file.
    pub fn keep(&self, name: &str, text: &str) -> Result<(), StateError> {
        let (path, new) = (self.folder.join(name), self.folder.join(format!("{name}.new")));
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().map_err(|source| StateError::Io { path: path.clone(), source })
    }

    /// Derives the secret for one purpose, so that one leaked use does not spoil the others.
    #[must_use]
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.secret);
        let mut derived = [0; 32];
        derived.copy_from_slice(hmac::sign(&key, purpose.as_bytes()).as_ref());
        derived
    }
}

fn forbid_exposed(path: &Path) -> Result<(), StateError> {
    let metadata = fs::metadata(path).map_err(|source| StateError::Io { path: path.to_owned(), source })?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(StateError::Exposed(path.to_owned()));
    }
    Ok(())
}

/// Reads a one-line file, or makes it of 32 random bytes; says whether it was made.
fn read_or_make(path: &Path, write: impl Fn(&[u8; 32]) -> String) -> Result<(String, bool), StateError> {
    let failed = |source| StateError::Io { path: path.to_owned(), source };
    let made = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => {
            let mut random = [0; 32];
            OsRng.try_fill_bytes(&mut random).map_err(|error| failed(io::Error::other(error)))?;
            let line = format!("{}\n", write(&random));
            file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
            true
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(failed(error)),
    };
    forbid_exposed(path)?;
    let text = fs::read_to_string(path).map_err(failed)?.trim().to_owned();
    if text.is_empty() { Err(StateError::Damaged(path.to_owned())) } else { Ok((text, made)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_start_makes_what_a_second_one_finds() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("state");
        let first = State::open(&folder).unwrap();
        assert!(first.is_new && first.access_key.starts_with("gk_"));
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(folder.join("secret")).unwrap().permissions().mode() & 0o777, 0o600);
        let second = State::open(&folder).unwrap();
        assert!(!second.is_new);
        assert_eq!((&second.access_key, second.derive("x")), (&first.access_key, first.derive("x")));
        assert_ne!(first.derive("x"), first.derive("y"));
    }

    #[test]
    fn a_folder_that_others_may_read_is_refused_with_what_to_type() {
        let temporary = tempfile::tempdir().unwrap();
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let error = State::open(temporary.path()).unwrap_err().to_string();
        assert!(error.contains("chmod"), "{error}");
    }

    #[test]
    fn a_text_is_kept_for_its_owner_alone_and_replaced_as_a_whole() {
        let temporary = tempfile::tempdir().unwrap();
        let state = State::open(&temporary.path().join("state")).unwrap();
        assert_eq!(state.kept("revoked").unwrap(), "");
        for text in ["a long text\n", "short\n"] {
            state.keep("revoked", text).unwrap();
            assert_eq!(state.kept("revoked").unwrap(), text);
        }
        let path = state.folder.join("revoked");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(state.kept("revoked"), Err(StateError::Exposed(_))));
    }

    #[test]
    fn a_damaged_secret_is_named() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("state");
        State::open(&folder).unwrap();
        fs::write(folder.join("secret"), "short\n").unwrap();
        assert!(matches!(State::open(&folder), Err(StateError::Damaged(_))));
    }
}
