//! Secrets of `agent`: from arguments, the environment, a file, or a prompt on the terminal.

use super::error::UsageError;
use super::terminal::{PromptAnswer, prompt};
use clap::Args;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Maximum number of bytes that are read from a file.
const MAX_LEN: u64 = 4096;

/// Where the access key comes from.
#[derive(Debug, Args)]
pub(super) struct KeySource {
    /// The access key of the server, or the key of the gateway; `ginnel key` and `ginnel key --gateway` print them there. Other users of this
    /// machine can see arguments: prefer --key-file or --ask-key [env: AGENT_KEY]
    #[arg(long, conflicts_with_all = ["key_file", "ask_key"])]
    key: Option<String>,
    /// The key in the environment
    #[arg(long, env = "AGENT_KEY", hide = true, hide_env_values = true)]
    environment_key: Option<String>,
    /// File that contains the key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Prompt for the key on the terminal
    #[arg(long, conflicts_with = "key_file")]
    ask_key: bool,
}

impl KeySource {
    /// Returns the key, if there is one. If it is required and was not given, prompts for it.
    pub(super) fn key(&self, is_required: bool) -> Result<Option<String>, UsageError> {
        let key = match (&self.key_file, self.key.as_ref().or(self.environment_key.as_ref())) {
            (Some(file), _) => Some(first_line(&read_file("--key-file", file)?)),
            (None, _) if self.ask_key => Some(prompt_for("Key")?.ok_or(UsageError::NoTerminal)?),
            (None, Some(key)) => Some(first_line(key)),
            (None, None) if is_required => prompt_for("Key")?,
            (None, None) => None,
        };
        Ok(key.filter(|key| !key.is_empty()))
    }
}

fn first_line(text: &str) -> String {
    text.trim_start().lines().next().unwrap_or_default().trim().to_owned()
}

/// Reads a file that contains a secret.
pub(super) fn read_file(option: &'static str, path: &Path) -> Result<String, UsageError> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_LEN).read_to_string(&mut text));
    match read {
        Ok(_) => Ok(text),
        Err(source) => Err(UsageError::File { option, file: path.display().to_string(), source }),
    }
}

/// Reads a descriptor that contains a secret.
pub(super) fn read_descriptor(option: &'static str, number: u32) -> Result<String, UsageError> {
    read_file(option, Path::new(&format!("/dev/fd/{number}")))
}

/// Prompts on the terminal; `None` without a terminal or an answer.
pub(super) fn prompt_for(what: &str) -> Result<Option<String>, UsageError> {
    match prompt(what) {
        PromptAnswer::Line(line) => Ok(Some(line)),
        PromptAnswer::None => Ok(None),
        PromptAnswer::Interrupted => Err(UsageError::Interrupted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_first_line_of_the_argument_or_file() {
        for text in ["abc", " abc\n", "\nabc\r\n", "abc\nmore"] {
            assert_eq!(first_line(text), "abc", "{text:?}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, "  from a file\n").unwrap();
        let source = |key: Option<&str>, key_file| KeySource {
            key: key.map(Into::into),
            environment_key: Some("of the environment".into()),
            key_file,
            ask_key: false,
        };
        assert_eq!(source(None, Some(file)).key(false).unwrap().as_deref(), Some("from a file"));
        assert_eq!(source(None, None).key(true).unwrap().as_deref(), Some("of the environment"));
        assert_eq!(source(Some(" typed\n"), None).key(false).unwrap().as_deref(), Some("typed"));
        assert_eq!(source(Some(" "), None).key(false).unwrap(), None);
        let missing = source(None, Some(folder.path().join("none"))).key(false);
        assert!(matches!(missing, Err(UsageError::File { option: "--key-file", .. })), "{missing:?}");
    }
}
