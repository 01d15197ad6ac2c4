//! Credentials files: read at the start, and reloaded whenever one of them changes. An invalid file changes nothing.

use crate::turn_server::auth::{Authenticator, CredentialsError, UserKeys, parse_credentials};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Interval of checks for changes.
const INTERVAL: Duration = Duration::from_secs(2);

type UserList = Vec<(String, String, UserKeys)>;

/// Why a credentials file is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsFileError {
    /// It cannot be read.
    #[error("credentials file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A line of it is wrong.
    #[error("credentials file {path}: {source}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, and what it must be.
        source: CredentialsError,
    },
    /// It names a realm that is not configured, or not the one it is for.
    #[error("credentials file {path}: the realm {realm:?} does not belong here")]
    Realm {
        /// The file.
        path: PathBuf,
        /// The realm.
        realm: String,
    },
}

/// Detects a change: modification time, length and inode.
type Stamp = (i64, i64, u64, u64);

#[derive(Debug)]
struct CredentialFile {
    path: PathBuf,
    /// Its only realm; all realms without.
    realm: Option<String>,
    seen: Option<Stamp>,
    users: UserList,
}

/// The files, and what was last read from them.
#[derive(Debug)]
pub(super) struct CredentialFiles {
    files: Vec<CredentialFile>,
}

impl CredentialFiles {
    /// Reads every file once.
    pub(super) fn open(
        paths: impl Iterator<Item = (PathBuf, Option<String>)>,
        authority: &Authenticator,
    ) -> Result<Self, CredentialsFileError> {
        let file = |(path, realm)| CredentialFile { path, realm, seen: None, users: Vec::new() };
        let mut files: Vec<_> = paths.map(file).collect();
        for file in &mut files {
            file.read(authority)?;
        }
        let files = Self { files };
        files.install(authority);
        Ok(files)
    }

    /// Checks the files for ever.
    pub(super) async fn watch(mut self, authority: Arc<Authenticator>) {
        if self.files.is_empty() {
            return;
        }
        let mut interval = tokio::time::interval(INTERVAL);
        loop {
            interval.tick().await;
            self.refresh(&authority);
        }
    }

    /// Reloads changed files.
    fn refresh(&mut self, authority: &Authenticator) {
        let mut changed = false;
        for file in self.files.iter_mut().filter(|file| stamp(&file.path) != file.seen) {
            match file.read(authority) {
                Ok(()) => {
                    changed = true;
                    tracing::info!(file = %file.path.display(), users = file.users.len(), "credentials file read again");
                }
                Err(error) => tracing::warn!(%error, "the credentials that were read before stay"),
            }
        }
        if changed {
            self.install(authority);
        }
    }

    fn install(&self, authority: &Authenticator) {
        let users: UserList = self.files.iter().flat_map(|file| file.users.iter().cloned()).collect();
        authority.replace_file_users(&users);
    }
}

impl CredentialFile {
    fn read(&mut self, authority: &Authenticator) -> Result<(), CredentialsFileError> {
        // Before the text, so that the next check detects a change in between.
        self.seen = stamp(&self.path);
        let path = || self.path.clone();
        let text = fs::read_to_string(&self.path)
            .map_err(|source| CredentialsFileError::Read { path: path(), source })?;
        let users =
            parse_credentials(&text).map_err(|source| CredentialsFileError::Line { path: path(), source })?;
        let is_foreign = |realm: &str| match &self.realm {
            Some(own) => realm != own,
            None => !authority.knows_realm(realm),
        };
        if let Some((_, realm, _)) = users.iter().find(|(_, realm, _)| is_foreign(realm)) {
            return Err(CredentialsFileError::Realm { path: path(), realm: realm.clone() });
        }
        self.users = users;
        Ok(())
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.mtime(), metadata.mtime_nsec(), metadata.len(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn_server::auth::{AuthenticatorConfig, RealmCredentials};

    fn authority() -> Authenticator {
        let realm = |name: &str| RealmCredentials { name: name.to_owned(), ..RealmCredentials::default() };
        Authenticator::with(
            AuthenticatorConfig { realms: vec![realm("r"), realm("s")], ..AuthenticatorConfig::default() },
            &[0; 32],
        )
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_bad_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        let key = "0".repeat(32);
        fs::write(&path, format!("alice:r:{key}\n")).unwrap();
        let authority = authority();
        let mut files = CredentialFiles::open(std::iter::once((path.clone(), None)), &authority).unwrap();
        let names =
            |files: &CredentialFiles| files.files[0].users.iter().map(|u| u.0.clone()).collect::<Vec<_>>();
        assert_eq!(names(&files), ["alice"]);
        fs::write(&path, format!("alice:r:{key}\nbob:s:{key}\n")).unwrap();
        files.refresh(&authority);
        assert_eq!(names(&files), ["alice", "bob"]);
        for bad in ["carol:r:short".to_owned(), format!("carol:elsewhere:{key}")] {
            fs::write(&path, bad).unwrap();
            files.refresh(&authority);
            assert_eq!(names(&files), ["alice", "bob"]);
        }
        fs::remove_file(&path).unwrap();
        files.refresh(&authority);
        assert_eq!(names(&files), ["alice", "bob"]);
        fs::write(&path, "").unwrap();
        files.refresh(&authority);
        assert!(names(&files).is_empty());
    }

    #[test]
    fn a_file_that_cannot_serve_stops_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        let open = |realm: Option<&str>| {
            let file = (path.clone(), realm.map(str::to_owned));
            CredentialFiles::open(std::iter::once(file), &authority()).map(drop).map_err(|e| e.to_string())
        };
        assert!(open(None).unwrap_err().contains("users"), "a file that is not there");
        fs::write(&path, format!("alice:r:{}\nbob:r:1\n", "0".repeat(32))).unwrap();
        assert!(open(None).unwrap_err().contains("line 2"));
        fs::write(&path, format!("alice:r:{}\n", "0".repeat(32))).unwrap();
        assert!(open(Some("s")).unwrap_err().contains("\"r\""));
        assert!(open(Some("r")).is_ok());
    }
}
