//! What outlives the process, so that the same command goes on with a transfer: in the folder `transfers` of the state folder, one file for each.
//!
//! A sender's file is found by what is sent. It has the secret of the listener, so that the ticket of the other side stays valid. A receiver's is
//! found by the target folder, or by the ticket.

use super::error::{FilesError, state_error};
use crate::file_transfer::{Id, RootPlan};
use crate::whole_file::replace_file;
use clap::Args;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Age of a state that is forgotten: nobody goes on with it any more.
const MAX_AGE: Duration = Duration::from_secs(30 * 86_400);
/// Longest file that is read.
const MAX_LEN: u64 = 16 << 20;

/// Where the state of transfers is.
#[derive(Debug, Args)]
pub(super) struct StateOptions {
    /// The folder for what is needed to go on with a transfer [default: $XDG_STATE_HOME/ginnel-agent or ~/.local/state/ginnel-agent]
    #[arg(long, env = "AGENT_STATE", value_name = "DIR", hide_env_values = true)]
    pub(super) state: Option<PathBuf>,
}

/// The folder of the transfers.
#[derive(Debug)]
pub(super) struct Transfers(PathBuf);

/// A transfer that this side sends.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SendState {
    #[serde(with = "hex")]
    pub(super) transfer: Id,
    /// The secret of the listener.
    #[serde(with = "hex")]
    pub(super) secret: [u8; 32],
    /// The receiver that has accepted.
    receiver: Option<String>,
}

impl SendState {
    pub(super) fn receiver(&self) -> Option<Id> {
        let bytes = HEXLOWER.decode(self.receiver.as_ref()?.as_bytes()).ok()?;
        bytes.try_into().ok()
    }

    pub(super) fn set_receiver(&mut self, receiver: Id) {
        self.receiver = Some(HEXLOWER.encode(&receiver));
    }
}

/// What became of a root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SavedPlan {
    Create(String),
    Replace(String),
    Skip,
}

/// A transfer that this side receives.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct RecvState {
    #[serde(with = "hex")]
    pub(super) transfer: Id,
    #[serde(with = "hex")]
    pub(super) receiver: Id,
    /// Reaches the sender.
    pub(super) ticket: String,
    /// The target folder, as it was.
    folder: PathBuf,
    plans: Vec<SavedPlan>,
    /// What it is, for people.
    pub(super) title: String,
}

mod hex {
    use data_encoding::HEXLOWER;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer, const N: usize>(
        bytes: &[u8; N],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_str(&HEXLOWER.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
        from: D,
    ) -> Result<[u8; N], D::Error> {
        let text = String::deserialize(from)?;
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(D::Error::custom)?;
        bytes.try_into().map_err(|_| D::Error::custom("a wrong length"))
    }
}

impl Transfers {
    /// Opens the folder of the transfers, and creates it if needed; `state` is the state folder, if it is not the default one.
    pub(super) fn open(state: Option<PathBuf>) -> Result<Self, FilesError> {
        let state = match (state, std::env::var_os("XDG_STATE_HOME"), std::env::home_dir()) {
            (Some(state), ..) => state,
            (None, Some(base), _) if !base.is_empty() => Path::new(&base).join("ginnel-agent"),
            (None, _, Some(home)) => home.join(".local/state/ginnel-agent"),
            _ => return Err(state_error(Path::new("~"), io::ErrorKind::NotFound.into())),
        };
        let folder = state.join("transfers");
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|source| state_error(&folder, source))?;
        let transfers = Self(folder);
        transfers.forget_old();
        Ok(transfers)
    }

    fn forget_old(&self) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let age =
                entry.metadata().and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok());
            if age.is_some_and(|age| age > MAX_AGE) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn path(&self, name: &str, ending: &str) -> PathBuf {
        self.0.join(format!("{name}.{ending}"))
    }

    fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
        let data = fs::metadata(path).ok().filter(|data| data.len() <= MAX_LEN);
        data.and_then(|_| serde_json::from_slice(&fs::read(path).ok()?).ok())
    }

    fn write(path: &Path, state: &impl Serialize) -> Result<(), FilesError> {
        let text = serde_json::to_string(state).map_err(io::Error::from);
        text.and_then(|text| replace_file(path, &text)).map_err(|source| state_error(path, source))
    }

    /// Returns the state of what is sent, if it was begun before, and otherwise a new one; and a lock on it. `key` identifies what is sent.
    pub(super) fn open_send(&self, key: &[u8; 32]) -> Result<(SendFiles, SendState, bool), FilesError> {
        let name = format!("send-{}", HEXLOWER.encode(&key[..16]));
        let files =
            SendFiles { state: self.path(&name, "json"), journal: self.path(&name, "journal"), lock: None };
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let lock_path = self.path(&name, "lock");
        let lock = options.open(&lock_path).and_then(|lock| {
            // Held until the process ends, in whatever way.
            lock.try_lock().map(|()| lock).map_err(io::Error::from)
        });
        let lock = lock.map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => FilesError::Running,
            _ => state_error(&lock_path, source),
        })?;
        let files = SendFiles { lock: Some((lock, lock_path)), ..files };
        if let Some(state) = Self::read::<SendState>(&files.state) {
            let is_begun = state.receiver.is_some();
            return Ok((files, state, is_begun));
        }
        let state = SendState { transfer: rand::random(), secret: rand::random(), receiver: None };
        Ok((files, state, false))
    }

    fn recv_path(&self, transfer: &Id) -> PathBuf {
        self.path(&format!("recv-{}", HEXLOWER.encode(transfer)), "json")
    }

    /// Returns the unfinished transfers of a folder, the latest first.
    pub(super) fn unfinished(&self, folder: &Path) -> Vec<RecvState> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut found: Vec<_> = entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("recv-"))
            .filter_map(|entry| {
                let state = Self::read::<RecvState>(&entry.path())?;
                let time = entry.metadata().ok()?.modified().ok()?;
                (state.folder == folder).then_some((time, state))
            })
            .collect();
        found.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
        found.into_iter().map(|(_, state)| state).collect()
    }

    /// Keeps the state of a transfer that was accepted.
    pub(super) fn save_recv(&self, state: &RecvState) -> Result<(), FilesError> {
        Self::write(&self.recv_path(&state.transfer), state)
    }

    /// Forgets a transfer that is complete.
    pub(super) fn forget_recv(&self, transfer: &Id) {
        let _ = fs::remove_file(self.recv_path(transfer));
    }
}

impl RecvState {
    pub(super) fn new((transfer, receiver): (Id, Id), ticket: String, folder: &Path, title: String) -> Self {
        Self { transfer, receiver, ticket, folder: folder.to_owned(), plans: Vec::new(), title }
    }

    pub(super) fn set_plans(&mut self, plans: &[RootPlan]) {
        let save = |plan: &RootPlan| match plan {
            RootPlan::Create(name) => SavedPlan::Create(name.clone()),
            RootPlan::Replace(name) => SavedPlan::Replace(name.clone()),
            RootPlan::Skip | RootPlan::Refused(_) => SavedPlan::Skip,
        };
        self.plans = plans.iter().map(save).collect();
    }

    pub(super) fn plans(&self) -> Vec<RootPlan> {
        let load = |plan: &SavedPlan| match plan {
            SavedPlan::Create(name) => RootPlan::Create(name.clone()),
            SavedPlan::Replace(name) => RootPlan::Replace(name.clone()),
            SavedPlan::Skip => RootPlan::Skip,
        };
        self.plans.iter().map(load).collect()
    }
}

/// The files of a transfer that this side sends. No other process has them.
#[derive(Debug)]
pub(super) struct SendFiles {
    state: PathBuf,
    pub(super) journal: PathBuf,
    lock: Option<(File, PathBuf)>,
}

/// Keeps the state of what is sent.
#[derive(Debug, Clone)]
pub(super) struct SendSaver(PathBuf);

impl SendSaver {
    pub(super) fn save(&self, state: &SendState) -> Result<(), FilesError> {
        Transfers::write(&self.0, state)
    }
}

impl SendFiles {
    pub(super) fn saver(&self) -> SendSaver {
        SendSaver(self.state.clone())
    }

    /// Forgets the transfer.
    pub(super) fn forget(self) {
        let lock = self.lock.as_ref().map(|(_, path)| path);
        for path in [Some(&self.state), Some(&self.journal), lock].into_iter().flatten() {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfers(folder: &Path) -> Transfers {
        Transfers::open(Some(folder.to_owned())).unwrap()
    }

    #[test]
    fn the_same_command_finds_its_transfer_until_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let transfers = transfers(folder.path());
        let (files, mut state, is_begun) = transfers.open_send(&[1; 32]).unwrap();
        assert!(!is_begun);
        assert!(transfers.open_send(&[1; 32]).is_err(), "another process has it");
        state.set_receiver([9; 16]);
        files.saver().save(&state).unwrap();
        drop(files);
        let (files, again, is_begun) = transfers.open_send(&[1; 32]).unwrap();
        assert!(is_begun && again.transfer == state.transfer && again.secret == state.secret);
        assert_eq!(again.receiver(), Some([9; 16]));
        assert_ne!(transfers.open_send(&[2; 32]).unwrap().1.transfer, state.transfer);
        files.forget();
        assert!(!transfers.open_send(&[1; 32]).unwrap().2);
    }

    #[test]
    fn a_folder_finds_its_unfinished_transfers() {
        let folder = tempfile::tempdir().unwrap();
        let transfers = transfers(folder.path());
        let mut state =
            RecvState::new(([1; 16], [2; 16]), "agent:x".to_owned(), Path::new("/a"), "video".to_owned());
        let plans = [RootPlan::Create("a".into()), RootPlan::Replace("b".into()), RootPlan::Skip];
        state.set_plans(&plans);
        transfers.save_recv(&state).unwrap();
        let found = transfers.unfinished(Path::new("/a"));
        assert_eq!((found.len(), found[0].plans(), found[0].receiver), (1, plans.to_vec(), [2; 16]));
        assert!(transfers.unfinished(Path::new("/b")).is_empty());
        transfers.forget_recv(&state.transfer);
        assert!(transfers.unfinished(Path::new("/a")).is_empty());
    }
}
