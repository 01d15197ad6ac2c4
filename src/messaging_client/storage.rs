//! The files of an account: its keys, and the state of this device. Several processes may use them at once.

use super::error::ClientError;
use super::state::{Change, PinConflict, State};
use crate::whole_file::replace_file;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::path::{Path, PathBuf};

const ACCOUNT_FILE: &str = "account.json";
const STATE_FILE: &str = "state.json";
/// Locked by whoever changes the state.
const STATE_LOCK: &str = "state.lock";
/// Locked by whoever makes the account.
const ENROLLMENT_LOCK: &str = "enrollment.lock";
/// Locked by whoever reads the mailbox.
const MAILBOX_LOCK: &str = "mailbox.lock";

/// The folder of an account (0700) with its files (0600).
#[derive(Debug, Clone)]
pub(super) struct Storage {
    folder: PathBuf,
}

impl Storage {
    /// Opens a folder that may not exist yet.
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Creates the folder. One that others may read is refused.
    pub(super) fn create_folder(&self) -> Result<(), ClientError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&self.folder).map_err(|source| failed(&self.folder, source))?;
        self.forbid_exposed()
    }

    fn forbid_exposed(&self) -> Result<(), ClientError> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let metadata = fs::metadata(&self.folder).map_err(|source| failed(&self.folder, source))?;
            if metadata.permissions().mode() & 0o077 != 0 {
                let source = io::Error::new(io::ErrorKind::PermissionDenied, "others have access to it");
                return Err(failed(&self.folder, source));
            }
        }
        Ok(())
    }

    /// Reads the account; `None` without one.
    pub(super) fn load_account<T: DeserializeOwned>(&self) -> Result<Option<T>, ClientError> {
        self.read(ACCOUNT_FILE)
    }

    /// Writes the account durably: all of it, or nothing.
    pub(super) fn save_account(&self, account: &impl Serialize) -> Result<(), ClientError> {
        self.write(ACCOUNT_FILE, account)
    }

    /// Removes the account, its keys, and what was pinned for them.
    pub(super) fn remove_account(&self) -> Result<(), ClientError> {
        for name in [STATE_FILE, ACCOUNT_FILE] {
            let path = self.folder.join(name);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(failed(&path, source)),
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn load_state(&self) -> Result<State, ClientError> {
        Ok(self.read(STATE_FILE)?.unwrap_or_default())
    }

    /// Applies a change to the state on disk, durably, and returns the state with what other processes have changed too.
    pub(super) fn apply(&self, change: &Change) -> Result<Result<State, PinConflict>, ClientError> {
        let path = self.folder.join(STATE_LOCK);
        let lock = File::create(&path).and_then(|file| file.lock().map(|()| file));
        let _lock = lock.map_err(|source| failed(&path, source))?;
        let mut state = self.load_state()?;
        if let Err(conflict) = state.apply(change) {
            return Ok(Err(conflict));
        }
        self.write(STATE_FILE, &state)?;
        Ok(Ok(state))
    }

    /// Reserves the mailbox for this process while the file is open; `None` if another one reads it.
    pub(super) fn lock_mailbox(&self) -> Result<Option<File>, ClientError> {
        self.try_lock(MAILBOX_LOCK)
    }

    /// Lets no other process make the account while the file is open. Creates the folder.
    pub(super) fn lock_enrollment(&self) -> Result<File, ClientError> {
        self.create_folder()?;
        let busy = || io::Error::new(io::ErrorKind::ResourceBusy, "another process registers this account");
        self.try_lock(ENROLLMENT_LOCK)?.ok_or_else(|| failed(&self.folder, busy()))
    }

    fn try_lock(&self, name: &str) -> Result<Option<File>, ClientError> {
        let path = self.folder.join(name);
        let file = File::create(&path).map_err(|source| failed(&path, source))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(source)) => Err(failed(&path, source)),
        }
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ClientError> {
        let path = self.folder.join(name);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed(&path, source)),
        };
        self.forbid_exposed()?;
        serde_json::from_str(&text).map(Some).map_err(|error| failed(&path, error.into()))
    }

    fn write(&self, name: &str, value: &impl Serialize) -> Result<(), ClientError> {
        let path = self.folder.join(name);
        let text = serde_json::to_string(value).map_err(|error| failed(&path, error.into()))?;
        replace_file(&path, &text).map_err(|source| failed(&path, source))
    }
}

fn failed(path: &Path, source: io::Error) -> ClientError {
    ClientError::Storage { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messaging_client::keys::Fingerprint;
    use crate::messaging_client::party_name::PartyName;

    fn pinned(byte: u8) -> Change {
        let party: PartyName = "bob".parse().unwrap();
        Change::Pinned { party, fingerprint: Fingerprint::of(&[byte; 32]) }
    }

    #[cfg(unix)]
    #[test]
    fn folder_and_files_are_readable_by_their_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let temporary = tempfile::tempdir().unwrap();
        let storage = Storage::new(&temporary.path().join("a/b"));
        storage.create_folder().unwrap();
        storage.save_account(&"secret").unwrap();
        storage.apply(&pinned(1)).unwrap().unwrap();
        assert_eq!(mode(storage.folder()), 0o700);
        for name in [ACCOUNT_FILE, STATE_FILE] {
            assert_eq!(mode(&storage.folder().join(name)), 0o600, "{name}");
        }
        fs::set_permissions(storage.folder(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(storage.create_folder().is_err());
        assert!(storage.load_account::<String>().is_err());
    }

    #[test]
    fn changes_of_two_processes_are_both_kept_and_pins_that_differ_conflict() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("account");
        let (first, second) = (Storage::new(&folder), Storage::new(&folder));
        first.create_folder().unwrap();
        first.apply(&Change::Mailbox { epoch: 1 }).unwrap().unwrap();
        let state = second.apply(&pinned(1)).unwrap().unwrap();
        assert!(state.mailbox.is_some());
        assert_eq!(first.load_state().unwrap(), state);
        assert!(first.apply(&pinned(2)).unwrap().is_err());
        assert_eq!(first.load_state().unwrap(), state);
    }

    #[test]
    fn one_process_reads_the_mailbox() {
        let temporary = tempfile::tempdir().unwrap();
        let storage = Storage::new(&temporary.path().join("account"));
        storage.create_folder().unwrap();
        let first = storage.lock_mailbox().unwrap();
        assert!(first.is_some());
        assert!(storage.lock_mailbox().unwrap().is_none());
        drop(first);
        assert!(storage.lock_mailbox().unwrap().is_some());
    }

    #[test]
    fn one_process_makes_the_account() {
        let temporary = tempfile::tempdir().unwrap();
        let storage = Storage::new(&temporary.path().join("account"));
        let first = storage.lock_enrollment().unwrap();
        let error = storage.lock_enrollment().unwrap_err().to_string();
        assert!(error.contains("another process registers this account"), "{error}");
        drop(first);
        storage.lock_enrollment().unwrap();
    }

    #[test]
    fn a_damaged_file_is_named_and_not_replaced() {
        let temporary = tempfile::tempdir().unwrap();
        let storage = Storage::new(&temporary.path().join("account"));
        storage.create_folder().unwrap();
        fs::write(storage.folder().join(STATE_FILE), "{\"peers\":").unwrap();
        let error = storage.apply(&pinned(1)).unwrap_err().to_string();
        assert!(error.contains(STATE_FILE), "{error}");
        assert_eq!(fs::read(storage.folder().join(STATE_FILE)).unwrap(), b"{\"peers\":");
    }
}
