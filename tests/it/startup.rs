//! The output of a server at its start, and its start-up errors.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::proc::{Proc, Stdout};
use crate::test_server::{TestServer, free_ports};
use crate::tools;

const SHORT: Duration = Duration::from_secs(20);

/// A folder with what the configurations of the table below name.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, text) in [
            ("text", "not PEM at all\n"),
            ("short", "12345"),
            ("users", "alice:ginnel:12\n"),
            ("strangers", "alice:elsewhere:8493fbc53ba582fb4c044c456bdc40eb\n"),
            (
                "old.pem",
                "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END EC PRIVATE KEY-----\n",
            ),
        ] {
            std::fs::write(folder.path(name), text).unwrap();
        }
        if tools::have(&["openssl"]) {
            for key in ["a", "b"] {
                folder.openssl(&format!(
                    "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 9 -subj /CN=t.example \
                     -addext subjectAltName=DNS:t.example -keyout {key}.key -out {key}.pem"
                ));
            }
            folder.openssl("pkcs8 -topk8 -in a.key -out locked.key -passout pass:secret");
        }
        folder
    }

    fn openssl(&self, arguments: &str) {
        let output =
            Command::new("openssl").args(arguments.split(' ')).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Starts a server with an invalid configuration (`@` is the folder); returns its output.
    fn refused(&self, config: &str) -> String {
        let folder = self.0.path().display().to_string();
        let path = self.path("ginnel.toml");
        std::fs::write(&path, config.replace('@', &folder)).unwrap();
        let mut ginnel = Command::new("timeout");
        ginnel
            .args(["20", env!("CARGO_BIN_EXE_ginnel"), "serve", "--config"])
            .arg(&path)
            .current_dir(&folder);
        let output = ginnel.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{config}: {text}");
        text.replace(&folder, "@")
    }
}

/// The error, what must be named, and the cause that must appear once.
type Row<'a> = (&'a str, &'a str, &'a str);

/// Asserts that each row is refused with its cause once, and with what to type.
fn assert_refused(folder: &Folder, head: &str, rows: &[Row<'_>]) {
    for (config, named, cause) in rows {
        let text = folder.refused(&format!("{head}{config}"));
        let (error, advice) = text.split_once("\n  try: ").unwrap_or_else(|| panic!("{config}: {text}"));
        let error = error.rsplit_once("error: ").unwrap().1;
        assert!(error.contains(named), "{config}: {text}");
        assert_eq!(error.matches(cause).count(), 1, "{config}: {text}");
        assert!(!advice.trim().is_empty() && !text.contains("panicked"), "{config}: {text}");
    }
}

#[test]
fn every_startup_error_has_its_cause_once_its_file_and_the_next_command() {
    if !tools::have(&["openssl"]) {
        return;
    }
    let folder = Folder::new();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let free = free_ports();
    let start =
        format!("state = '@/state'\nlisten = ['127.0.0.1']\nport = {free}\naux_port = {}\n", free + 1);
    let taken_twice = format!("[tls]\nport = 0\n[gateway]\nserver_port = {port}");
    let (missing, in_use) = ("No such file or directory", "Address already in use");
    assert_refused(
        &folder,
        &start,
        &[
            ("[tls]\nport = 0\ncertificate = '@/none.pem'\nkey = '@/a.key'", "@/none.pem", missing),
            ("[tls]\nport = 0\ncertificate = '@/a.pem'\nkey = '@/none.key'", "@/none.key", missing),
            ("[tls]\nport = 0\ncertificate = '@/text'\nkey = '@/a.key'", "@/text", "no certificate found"),
            ("[tls]\nport = 0\ncertificate = '@/a.pem'\nkey = '@/text'", "@/text", "no private key found"),
            ("[tls]\nport = 0\ncertificate = '@/a.pem'\nkey = '@/locked.key'", "@/locked.key", "encrypted"),
            ("[tls]\nport = 0\ncertificate = '@/a.pem'\nkey = '@/old.pem'", "@/old.pem", "encrypted"),
            (
                "[tls]\nport = 0\ncertificate = '@/a.pem'\nkey = '@/b.key'",
                "@/a.pem and @/b.key",
                "KeyMismatch",
            ),
            ("[tls]\nport = 0\n[auth]\ncredentials_file = '@/none'", "@/none", missing),
            ("[tls]\nport = 0\n[auth]\ncredentials_file = '@/users'", "@/users", "line 1"),
            ("[tls]\nport = 0\n[auth]\ncredentials_file = '@/strangers'", "@/strangers", "elsewhere"),
            ("[tls]\nport = 0\n[gateway]\nkey_file = '@/none'", "@/none", missing),
            ("[tls]\nport = 0\n[gateway]\nkey_file = '@/short'", "gateway.key_file", "at least 16 bytes"),
            (
                "[tls]\nport = 0\n[gateway]\ntls_port = 1\nclient_ca = '@/text'",
                "@/text",
                "no certificate found",
            ),
            ("[signaling.jwt]\nalgorithm = 'HS256'\nkey_file = '@/none'", "@/none", missing),
            (
                "[tls]\nport = 0\n[turn]\nrelay_addresses = ['198.51.100.9']",
                "198.51.100.9",
                "Cannot assign requested address",
            ),
            (&taken_twice, &port.to_string(), in_use),
            ("[turn]\nuserz = 1", "ginnel.toml", "unknown field"),
            ("[log]\nlevel = 'verbose'", "ginnel.toml", "`log.level`"),
            ("port = ", "ginnel.toml", "line 5"),
        ],
    );
    let main_taken = format!("state = '@/state'\nlisten = ['127.0.0.1']\nport = {port}\n");
    let elsewhere = format!("state = '@/state'\nlisten = ['198.51.100.9']\nport = {free}\n");
    assert_refused(&folder, &main_taken, &[("", &port.to_string(), in_use)]);
    assert_refused(&folder, &elsewhere, &[("", "198.51.100.9", "Cannot assign requested address")]);
}

#[test]
fn every_command_names_a_missing_configuration_file() {
    let folder = tempfile::tempdir().unwrap();
    let commands: [&[&str]; 4] = [&["serve"], &["key"], &["gateway", "ticket"], &["credentials"]];
    for command in commands {
        let mut ginnel = Command::new(env!("CARGO_BIN_EXE_ginnel"));
        ginnel.args(command).args(["--config", "nowhere.toml"]).current_dir(folder.path());
        let output = ginnel.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.matches("No such file").count()), (Some(1), 1), "{text}");
        assert!(
            text.contains("error: configuration: nowhere.toml: No") && text.contains("\n  try: "),
            "{text}"
        );
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was made");
}

#[test]
fn an_unusable_state_folder_is_named_with_the_next_command() {
    let folder = Folder::new();
    for (name, mode) in [("open", 0o755), ("broken", 0o700), ("weak", 0o700), ("loose", 0o700)] {
        std::fs::create_dir(folder.path(name)).unwrap();
        std::fs::set_permissions(folder.path(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    let secret = format!("{}\n", "ab".repeat(32));
    for (file, text, mode) in [
        ("open/secret", &*secret, 0o600),
        ("broken/secret", "", 0o600),
        ("weak/secret", &secret, 0o600),
        ("weak/key", "12345\n", 0o600),
        ("loose/secret", &secret, 0o644),
    ] {
        std::fs::write(folder.path(file), text).unwrap();
        std::fs::set_permissions(folder.path(file), PermissionsExt::from_mode(mode)).unwrap();
    }
    assert_refused(
        &folder,
        "",
        &[
            ("state = '@/open'", "@/open", "others have access"),
            ("state = '@/loose'", "@/loose/secret", "others have access"),
            ("state = '@/broken'", "@/broken/secret", "damaged"),
            ("state = '@/weak'", "@/weak/key", "16 to 128 bytes"),
            ("state = '@/text/state'", "@/text/state", "Not a directory"),
            ("state = '@/text'", "@/text", "File exists"),
        ],
    );
}

#[test]
fn an_empty_readable_state_folder_is_made_private_and_used() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    std::fs::set_permissions(&state, PermissionsExt::from_mode(0o755)).unwrap();
    let port = free_ports();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_ginnel"));
    serve.args(["serve", "--listen", "127.0.0.1", "--port", &port.to_string(), "--state"]).arg(&state);
    let server = Proc::start("ginnel serve", serve, Stdout::Lines);
    server.expect("line that begins with Ready.", SHORT, |line| line.starts_with("Ready.").then_some(()));
    assert_eq!(std::fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_full_disk_at_the_first_start_leaves_no_partial_file() {
    if !tools::is_root_for("a file system of its own") || !tools::have(&["unshare", "mount"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("ginnel.toml");
    let port = free_ports();
    let text = format!(
        "state = {:?}\nlisten = [\"127.0.0.1\"]\nport = {port}\naux_port = {}\n[tls]\nport = 0\n[gateway]\nenabled = false\n",
        folder.path().join("disk/state"),
        port + 1
    );
    std::fs::write(&config, text).unwrap();
    let program = r#"
        mkdir "$1/disk" && mount -t tmpfs -o size=64k,mode=0700 none "$1/disk" || exit 9
        cat /dev/zero > "$1/disk/filler" 2>/dev/null
        "$0" serve --config "$2" && exit 8
        echo "left: $(ls -A "$1/disk/state" | tr '\n' ' ')"
        rm "$1/disk/filler"
        "$0" serve --config "$2" &
        server=$!
        for try in $(seq 100); do
            test -s "$1/disk/state/tls.pem" && break
            kill -0 $server || exit 7
            read -t 0.1 _ < /dev/zero || sleep 0.1
        done
        kill $server; wait $server
    "#;
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--mount", "sh", "-c", program, env!("CARGO_BIN_EXE_ginnel")])
        .arg(folder.path())
        .arg(&config);
    let output = unshare.output().unwrap();
    let printed =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}");
    assert!(printed.contains("No space left on device") && printed.contains("  try: df "), "{printed}");
    assert!(printed.contains("left: \n"), "{printed}");
}

fn is_log(line: &str) -> bool {
    [" TRACE ", " DEBUG ", " INFO ", " WARN ", " ERROR "].iter().any(|level| line.contains(level))
}

#[test]
fn the_banner_is_whole_and_no_internals_are_logged() {
    // Its own ports may be in use by another server, which is reported.
    let mut test_server = TestServer::on_loopback("[gateway]\nenabled = false");
    test_server.process.terminate();
    test_server.process.succeed(SHORT);
    let lines = test_server.process.lines(|line| Some(line.clone()));
    let begins = lines.iter().position(|line| line.starts_with("ginnel ")).unwrap();
    let ready = lines.iter().position(|line| line.starts_with("Ready.")).unwrap();
    let banner = &lines[begins..=ready];
    assert!(banner.iter().any(|line| line.contains("self-test")), "{lines:#?}");
    assert!(!banner.iter().any(|line| is_log(line)), "{lines:#?}");
    assert_eq!(lines.iter().filter(|line| is_log(line)).collect::<Vec<_>>(), [""; 0], "no log lines");
}

#[test]
fn a_json_log_is_only_json_and_contains_the_banner() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("ginnel.toml");
    let port = free_ports();
    let text = format!(
        "state = {:?}\nlisten = [\"127.0.0.1\"]\nport = {port}\naux_port = {}\n[log]\njson = true\n",
        folder.path().join("state"),
        port + 1
    );
    std::fs::write(&config, text).unwrap();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_ginnel"));
    serve.args(["serve", "--config"]).arg(&config);
    let mut server = Proc::start("ginnel serve", serve, Stdout::Lines);
    let ready = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        (line["fields"]["message"] == "ready").then_some(line)
    };
    let ready = server.expect("line that says ready", SHORT, ready);
    let fields = &ready["fields"];
    assert!(fields["listen"].as_str().unwrap().contains(&port.to_string()), "{ready}");
    assert_eq!(
        (&fields["stun"], &fields["turn_udp"], &fields["turn_tcp"]),
        (&true.into(), &true.into(), &true.into())
    );
    // A second one on the same port also reports its error as JSON.
    let mut second = Command::new(env!("CARGO_BIN_EXE_ginnel"));
    second.args(["serve", "--config"]).arg(&config);
    let mut second = Proc::start("second ginnel serve", second, Stdout::Lines);
    assert!(!second.wait(SHORT).success(), "{}", second.printed());
    let error: Value = serde_json::from_str(&second.lines(|line| Some(line.clone())).concat()).unwrap();
    assert!(error["fields"]["message"].as_str().unwrap().contains("Address already in use"), "{error}");
    assert!(error["fields"]["try"].as_str().unwrap().contains("ss -lptun"), "{error}");
    server.terminate();
    server.succeed(SHORT);
    for line in server.lines(|line| Some(line.clone())) {
        serde_json::from_str::<Value>(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
    }
}

/// Runs a server on a pseudo-terminal until it has logged a line; prints the terminal's output.
const TERMINAL: &str = r#"
import os, pty, signal, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
seen = b""
def until(text):
    global seen
    while text not in seen:
        seen += os.read(terminal, 4096)
until(b"Ready.")
os.kill(pid, signal.SIGHUP)
until(b"SIGHUP")
os.kill(pid, signal.SIGTERM)
try:
    while True:
        seen += os.read(terminal, 4096) or sys.exit(1)
except OSError:
    pass
os.waitpid(pid, 0)
sys.stdout.buffer.write(seen)
"#;

#[test]
fn a_terminal_gets_colours_unless_no_color_is_set() {
    if !tools::have(&["python3"]) {
        return;
    }
    let seen = |no_color: Option<&str>| {
        let folder = tempfile::tempdir().unwrap();
        let mut python = Command::new("timeout");
        python.args([
            "20",
            "python3",
            "-c",
            TERMINAL,
            env!("CARGO_BIN_EXE_ginnel"),
            "serve",
            "--listen",
            "127.0.0.1",
        ]);
        python.args(["--port", &free_ports().to_string(), "--state"]).arg(folder.path().join("state"));
        python.env_remove("NO_COLOR").envs(no_color.map(|value| ("NO_COLOR", value)));
        let output = python.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout.contains(&0x1b)
    };
    assert_eq!([seen(None), seen(Some("1")), seen(Some(""))], [true, false, true]);
}

/// The `iceServers` and the banner of a server with a certificate on a port.
fn urls_on(port: u16, tls: &str, folder: &Folder) -> (Vec<String>, String) {
    let config = folder.path("ginnel.toml");
    let at = folder.0.path();
    let text = format!(
        "state = {:?}\nlisten = [\"127.0.4.43\"]\nport = {port}\naux_port = 0\n[tls]\n{tls}\ncertificate = {:?}\nkey = {:?}\n",
        at.join("state"),
        at.join("a.pem"),
        at.join("a.key"),
    );
    std::fs::write(&config, text).unwrap();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_ginnel"));
    serve.args(["serve", "--print-ice", "--config"]).arg(&config);
    let server = Proc::start("ginnel serve", serve, Stdout::Lines);
    server.expect("line that begins with Ready.", SHORT, |line| line.starts_with("Ready.").then_some(()));
    let ice =
        |line: &str| serde_json::from_str::<Value>(line).ok().filter(|line| line["iceServers"].is_array());
    let printed = server.expect("iceServers", SHORT, ice);
    let minted = Command::new(env!("CARGO_BIN_EXE_ginnel"))
        .args(["credentials", "--ice", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    let minted: Value = serde_json::from_slice(&minted.stdout).unwrap_or_else(|_| panic!("{minted:?}"));
    let urls = |ice: &Value| ice["iceServers"][1]["urls"].clone();
    assert_eq!(urls(&printed), urls(&minted), "`ginnel credentials` offers the same");
    let urls =
        urls(&printed).as_array().unwrap().iter().map(|url| url.as_str().unwrap().to_owned()).collect();
    (urls, server.printed())
}

#[test]
fn with_a_certificate_on_port_443_every_url_has_that_port() {
    if !tools::is_root_for("port 443") || !tools::have(&["openssl"]) {
        return;
    }
    let folder = Folder::new();
    let (urls, printed) = urls_on(443, "", &folder);
    let expected = [
        "turn:127.0.4.43:443?transport=udp",
        "turn:127.0.4.43:443?transport=tcp",
        "turns:t.example:443?transport=tcp",
    ];
    assert_eq!(urls, expected);
    assert!(
        printed.contains("https://t.example/\n") && printed.contains("Bearer KEY' https://t.example/ice\n"),
        "{printed}"
    );
    let port = free_ports();
    let (urls, printed) = urls_on(port, "port = 443", &folder);
    assert!(urls.contains(&"turns:t.example:443?transport=tcp".to_owned()), "{urls:?}");
    assert!(printed.contains("https://t.example/\n"), "{printed}");
    let (urls, printed) = urls_on(port, "", &folder);
    assert!(urls.contains(&"turns:t.example:5349?transport=tcp".to_owned()), "{urls:?}");
    assert!(printed.contains(&format!("https://t.example:{port}/\n")), "{printed}");
}
