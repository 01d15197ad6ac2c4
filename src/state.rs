//! The state folder: the server's secret and its keys, made at the first start and readable by nobody else.

pub(crate) use crate::whole_file::{make_file, replace_file};
use data_encoding::{BASE32_NOPAD, HEXLOWER};
use rand::TryRngCore;
use rand::rngs::OsRng;
use ring::hmac;
use std::fs::{self, DirBuilder};
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The file of the secret, and those of the keys.
const SECRET: &str = "secret";
const ACCESS_KEY: &str = "key";
const ADMIN_KEY: &str = "admin-key";

/// How long a key may be, in bytes.
const KEY_LENGTHS: RangeInclusive<usize> = 16..=128;

/// What the folder holds.
#[derive(Debug, Clone)]
pub struct State {
    /// Where it is.
    pub folder: PathBuf,
    /// Whether this call made the secret.
    pub is_new: bool,
    /// Whether this call made the admin key of a folder that had none, where the access key admitted to everything.
    pub is_upgraded: bool,
    /// Whether this call took an empty folder's permissions away from others.
    pub is_tightened: bool,
    /// The access key that lets clients register and relay.
    pub access_key: String,
    admin_key: Option<String>,
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
    /// Others may read the folder, which is not empty, or a file in it.
    #[error("state {0}: others have access to it")]
    Exposed(PathBuf),
    /// A file does not hold what it should.
    #[error("state {0}: damaged")]
    Damaged(PathBuf),
    /// A key is so short that it can be guessed, or too long, or no text in one line.
    #[error("state {0}: a key must be one word of 16 to 128 bytes")]
    Key(PathBuf),
    /// No server was started there.
    #[error("no state at {0}: no server has been started there")]
    Missing(PathBuf),
}

impl State {
    /// Opens the folder, making it (0700), its secret and its keys (0600) from the system's randomness where they are missing. An empty folder
    /// that others have access to is closed to them.
    ///
    /// # Errors
    /// [`StateError`] names the file.
    pub fn open(folder: &Path) -> Result<Self, StateError> {
        let failed = |source| StateError::Io { path: folder.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let is_tightened = tighten_if_empty(folder).map_err(failed)?;
        // Before anything is put into a folder that is somebody else's.
        forbid_exposed(folder)?;
        let (_, is_new) = read_or_make(&folder.join(SECRET), |bytes| HEXLOWER.encode(bytes))?;
        let key = |prefix: &'static str| {
            move |bytes: &[u8; 32]| format!("{prefix}_{}", BASE32_NOPAD.encode(&bytes[..20]).to_lowercase())
        };
        read_or_make(&folder.join(ACCESS_KEY), key("gk"))?;
        let (_, is_made) = read_or_make(&folder.join(ADMIN_KEY), key("ga"))?;
        Ok(Self { is_new, is_upgraded: is_made && !is_new, is_tightened, ..Self::existing(folder)? })
    }

    /// Opens the folder of a server that was started before, and changes nothing.
    ///
    /// # Errors
    /// [`StateError`] names the file; [`StateError::Missing`] where there is none.
    pub fn existing(folder: &Path) -> Result<Self, StateError> {
        let missing = || StateError::Missing(folder.to_owned());
        let secret_file = folder.join(SECRET);
        let secret = read_line(&secret_file)?.ok_or_else(missing)?;
        forbid_exposed(folder)?;
        let secret = HEXLOWER.decode(secret.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        Ok(Self {
            folder: folder.to_owned(),
            is_new: false,
            is_upgraded: false,
            is_tightened: false,
            access_key: read_key(&folder.join(ACCESS_KEY))?.ok_or_else(missing)?,
            admin_key: read_key(&folder.join(ADMIN_KEY))?,
            secret: secret.ok_or(StateError::Damaged(secret_file))?,
        })
    }

    /// Returns the key that operators show to revoke; none in a folder of an older server until [`State::open`].
    #[must_use]
    pub fn admin_key(&self) -> Option<&str> {
        self.admin_key.as_deref()
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
        let path = self.folder.join(name);
        replace_file(&path, text).map_err(|source| StateError::Io { path, source })
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

/// Makes an empty folder private: package managers and container engines create open ones. Returns whether it did.
fn tighten_if_empty(folder: &Path) -> io::Result<bool> {
    let is_exposed = fs::metadata(folder)?.permissions().mode() & 0o077 != 0;
    if !is_exposed || fs::read_dir(folder)?.next().is_some() {
        return Ok(false);
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    Ok(true)
}

/// Reads a one-line file, or creates it from 32 random bytes; returns whether it was created.
fn read_or_make(path: &Path, write: impl Fn(&[u8; 32]) -> String) -> Result<(String, bool), StateError> {
    if let Some(line) = read_line(path)? {
        return Ok((line, false));
    }
    let failed = |source| StateError::Io { path: path.to_owned(), source };
    let mut random = [0; 32];
    OsRng.try_fill_bytes(&mut random).map_err(|error| failed(io::Error::other(error)))?;
    let made = make_file(path, &format!("{}\n", write(&random))).map_err(failed)?;
    let line = read_line(path)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    Ok((line, made))
}

/// Reads the file of a key, which may be somebody's own; `None` where there is none.
fn read_key(path: &Path) -> Result<Option<String>, StateError> {
    let is_key =
        |key: &String| KEY_LENGTHS.contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    match read_line(path)? {
        Some(key) if !is_key(&key) => Err(StateError::Key(path.to_owned())),
        key => Ok(key),
    }
}

/// Reads a one-line file; `None` where there is none.
fn read_line(path: &Path) -> Result<Option<String>, StateError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text.trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(StateError::Damaged(path.to_owned()));
        }
        Err(source) => return Err(StateError::Io { path: path.to_owned(), source }),
    };
    forbid_exposed(path)?;
    if text.is_empty() { Err(StateError::Damaged(path.to_owned())) } else { Ok(Some(text)) }
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
    fn an_empty_folder_is_closed_to_others_and_one_that_is_not_empty_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let state = State::open(temporary.path()).unwrap();
        assert!(state.is_new && state.is_tightened);
        assert_eq!(mode(temporary.path()), 0o700);
        assert!(!State::open(temporary.path()).unwrap().is_tightened);
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for opened in [State::open(temporary.path()), State::existing(temporary.path())] {
            assert!(matches!(opened, Err(StateError::Exposed(path)) if path == temporary.path()));
        }
        assert_eq!(mode(temporary.path()), 0o755, "left as it was");
    }

    #[test]
    fn nothing_is_put_into_a_folder_that_others_may_read() {
        let temporary = tempfile::tempdir().unwrap();
        fs::write(temporary.path().join("something"), "else").unwrap();
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(State::open(temporary.path()), Err(StateError::Exposed(_))));
        assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_of_before_keeps_its_key_and_gets_an_admin_key() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("state");
        assert!(matches!(State::existing(&folder), Err(StateError::Missing(path)) if path == folder));
        assert!(!folder.exists());
        let first = State::open(&folder).unwrap();
        assert!(!first.is_upgraded && first.admin_key().is_some_and(|key| key.starts_with("ga_")));
        fs::remove_file(folder.join(ADMIN_KEY)).unwrap();
        assert_eq!(State::existing(&folder).unwrap().admin_key(), None);
        let second = State::open(&folder).unwrap();
        assert!(second.is_upgraded && second.admin_key().is_some());
        assert_eq!(second.access_key, first.access_key);
        for weak in ["12345\n", "two words of a key\n"] {
            fs::write(folder.join(ADMIN_KEY), weak).unwrap();
            assert!(
                matches!(State::open(&folder), Err(StateError::Key(path)) if path == folder.join(ADMIN_KEY))
            );
        }
        fs::write(folder.join(ADMIN_KEY), second.admin_key().unwrap()).unwrap();
        let third = State::open(&folder).unwrap();
        assert!(!third.is_upgraded && third.admin_key() == second.admin_key());
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
        fs::write(folder.join("secret"), [0xff; 9]).unwrap();
        assert!(matches!(State::open(&folder), Err(StateError::Damaged(_))));
    }
}
