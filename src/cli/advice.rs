//! Error messages of `ginnel`: each cause once, and what to type if that is known.

use crate::config::ConfigError;
use crate::server::{CertificateError, CredentialsFileError, ServerError};
use crate::state::StateError;
use std::error::Error;
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

/// Advice for unexpected errors.
const START_AGAIN: &str =
    "start it again; if it fails again, the log with log.level = \"debug\" shows what precedes";

/// Time limit for a write to standard error.
const PRINT_TIMEOUT: Duration = Duration::from_secs(1);

/// Separates an error from its advice.
const TRY: &str = "\n  try: ";

/// Formats an error as lines: `error: …` with its causes, and `  try: …`.
#[must_use]
pub(super) fn report(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        let cause = cause.trim_end();
        // Some libraries repeat the cause in the text.
        if text.contains(cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(cause);
    }
    match error.chain().find_map(advice) {
        Some(advice) => format!("error: {text}{TRY}{advice}\n"),
        None => format!("error: {text}\n"),
    }
}

/// Prints a report to standard error; gives up after a second if it is not read.
pub(super) fn print(report: String) {
    let (done, is_done) = sync_channel(1);
    let write = move || {
        // The reader may be gone.
        let _ = io::stderr().write_all(report.as_bytes());
        let _ = done.send(());
    };
    if thread::Builder::new().spawn(write).is_ok() {
        let _ = is_done.recv_timeout(PRINT_TIMEOUT);
    }
}

/// An error that has been logged already.
#[derive(Debug, thiserror::Error)]
#[error("logged")]
pub(super) struct AlreadyLogged(());

/// Logs an error, for programs that read only the log.
#[must_use]
pub(super) fn log(error: &anyhow::Error) -> AlreadyLogged {
    let text = report(error);
    let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
    let (text, advice) = text.split_once(TRY).unwrap_or((text, ""));
    tracing::error!(r#try = advice, "{text}");
    AlreadyLogged(())
}

fn advice(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref::<StateError>() {
        return Some(of_state(error));
    }
    if let Some(error) = error.downcast_ref::<ConfigError>() {
        return Some(of_configuration(error));
    }
    if let Some(error) = error.downcast_ref::<ServerError>() {
        return of_server(error);
    }
    error.downcast_ref::<io::Error>().and_then(of_system)
}

fn of_state(error: &StateError) -> String {
    match error {
        StateError::Io { path, source } => of_state_file(path, source),
        // Other files in it do not belong to the server.
        StateError::Exposed(path) if path.is_dir() && !path.join("secret").exists() => {
            format!("use a folder for the server only: --state {}", path.join("state").display())
        }
        StateError::Exposed(path) => {
            let path = path.display();
            format!("chmod -R go= {path} (and in a systemd unit: StateDirectoryMode=0700)")
        }
        StateError::Damaged(path) | StateError::Key(path) => {
            format!("restore it from a backup, or let the server create a new one: rm {}", path.display())
        }
        StateError::Missing(_) => {
            "start the server there once, or name its folder with --state or --config; with \
                                   systemd that is mostly --state /var/lib/ginnel"
                .to_owned()
        }
    }
}

fn of_state_file(path: &Path, source: &io::Error) -> String {
    let (is_there, path) = (path.exists(), path.display());
    match source.kind() {
        io::ErrorKind::PermissionDenied if is_there => {
            format!("as root: chown -R USER {path}, or a folder that this user may write: --state DIR")
        }
        io::ErrorKind::PermissionDenied => {
            format!(
                "as root: install -d -m 700 -o USER {path}, or a folder that this user may write: --state DIR"
            )
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            format!("df {path} shows the free space; free some, or use another folder: --state DIR")
        }
        io::ErrorKind::ReadOnlyFilesystem => "use a writable folder: --state DIR".to_owned(),
        _ => "use another folder: --state DIR".to_owned(),
    }
}

fn of_configuration(error: &ConfigError) -> String {
    match error {
        ConfigError::Read { path, source } => of_file(path, source),
        _ => "ginnel config prints every key with its default".to_owned(),
    }
}

fn of_server(error: &ServerError) -> Option<String> {
    let text = match error {
        ServerError::Listen { address, source, .. } => return Some(of_port(address.port(), source)),
        ServerError::State(error) => return Some(of_state(error)),
        ServerError::Certificate(error) => return Some(of_certificate(error)),
        ServerError::CredentialsFile(error) => return Some(of_credentials_file(error)),
        ServerError::System(error) => {
            return of_system(error).or_else(|| Some(START_AGAIN.to_owned()));
        }
        ServerError::RelayAddress { .. } => {
            "ip address shows this host's addresses; behind a 1:1 NAT name the inner one, and the outer one in `public`"
        }
        ServerError::NoRelayAddress => {
            "ip address shows this host's addresses; name one: turn.relay_addresses = [\"IP\"], or --listen IP"
        }
        _ => START_AGAIN,
    };
    Some(text.to_owned())
}

fn of_port(port: u16, source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::AddrInUse => format!(
            "ss -lptun 'sport = :{port}' shows who has it; another port: --port, --aux-port, or the key in the configuration"
        ),
        io::ErrorKind::PermissionDenied => {
            "sudo setcap cap_net_bind_service=+ep $(command -v ginnel), or in a systemd unit \
             AmbientCapabilities=CAP_NET_BIND_SERVICE: ports below 1024 need this capability"
                .to_owned()
        }
        io::ErrorKind::AddrNotAvailable => {
            "ip address shows this host's addresses; behind a 1:1 NAT: --listen INNER --public OUTER"
                .to_owned()
        }
        _ => "another address or port: --listen IP, --port PORT".to_owned(),
    }
}

fn of_certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::Io { path, source } => of_file(path, source),
        CertificateError::Encrypted { path } => {
            let path = path.display();
            format!("(umask 077; openssl pkey -in {path} -out {path}.plain), and tls.key = \"{path}.plain\"")
        }
        CertificateError::Content { path, .. } => {
            let path = path.display();
            format!("head -n 1 {path}: PEM begins with -----BEGIN; tls.certificate names the chain, tls.key its key")
        }
        _ => "both must have the same key: openssl x509 -noout -pubkey -in CERTIFICATE and openssl pkey -pubout -in KEY \
              print the same"
            .to_owned(),
    }
}

fn of_credentials_file(error: &CredentialsFileError) -> String {
    match error {
        CredentialsFileError::Read { path, source } => of_file(path, source),
        CredentialsFileError::Realm { .. } => {
            "use only lines of turn.realm or of an auth.realms.name: ginnel credentials key USER --realm REALM --line".to_owned()
        }
        _ => "ginnel credentials key USER --realm REALM --line prints a valid line".to_owned(),
    }
}

fn of_file(path: &Path, source: &io::Error) -> String {
    let shown = path.display();
    match source.kind() {
        io::ErrorKind::NotFound => format!("ls -l {shown}: is the path right?"),
        io::ErrorKind::PermissionDenied => {
            format!(
                "let the server's user read it, as root: setfacl -m u:USER:r {shown} (and u:USER:x on its folders)"
            )
        }
        _ => format!("name a readable file instead of {shown}"),
    }
}

fn of_system(error: &io::Error) -> Option<String> {
    let of_descriptors = [24, 23];
    match error.raw_os_error() {
        Some(code) if of_descriptors.contains(&code) => {
            Some("ulimit -n 65536, or in a systemd unit: LimitNOFILE=65536".to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn each_cause_is_printed_once_with_what_to_type() {
        let source = io::Error::from_raw_os_error(98);
        let listen = ServerError::Listen { address: ([0, 0, 0, 0], 3478).into(), transport: "tcp", source };
        let error = Err::<(), _>(listen).context("the server did not start").unwrap_err();
        let text = report(&error);
        assert_eq!(text.matches("Address already in use").count(), 1, "{text}");
        assert!(text.starts_with("error: the server did not start: cannot listen on 0.0.0.0:3478 (tcp): "));
        assert!(
            text.ends_with("configuration\n") && text.contains("\n  try: ss -lptun 'sport = :3478'"),
            "{text}"
        );
        assert_eq!(report(&anyhow::anyhow!("a text\n")), "error: a text\n");
    }

    #[test]
    fn a_lack_of_descriptors_names_the_limit_to_raise() {
        let error = ServerError::System(io::Error::from_raw_os_error(24));
        assert!(report(&error.into()).contains("LimitNOFILE"));
    }
}
