//! The rules of ARCHITECTURE.md and CONTRIBUTING.md, checked against the sources.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Maximum length of a file and of a function, in lines.
const FILE_LINES: usize = 700;
const FUNCTION_LINES: usize = 90;

/// Pure files in addition to every `wire.rs` and `machine.rs`; an entry with a trailing `/` is a folder.
const PURE: &[&str] = &[
    "src/stun.rs",
    "src/stun/",
    "src/stun_server/",
    "src/turn_server/",
    "src/ice/",
    "src/ids.rs",
    "src/clock.rs",
    "src/clock/",
    "src/forwarding/policy.rs",
    "src/gateway/budget.rs",
    "src/gateway/client/codec.rs",
    "src/gateway/client/error.rs",
    "src/gateway/client/machine.rs",
    "src/gateway/client/settings.rs",
    "src/gateway/commands.rs",
    "src/gateway/config.rs",
    "src/gateway/connection.rs",
    "src/gateway/counters.rs",
    "src/gateway/endpoint.rs",
    "src/gateway/flow_control.rs",
    "src/gateway/handshake.rs",
    "src/gateway/recently_closed.rs",
    "src/gateway/liveness.rs",
    "src/gateway/outbox.rs",
    "src/gateway/token.rs",
    "src/gateway/wire.rs",
    "src/limits/backoff.rs",
    "src/limits/keyed_rate.rs",
    "src/limits/prefix.rs",
    "src/limits/quota.rs",
    "src/limits/rate.rs",
    "src/limits/sampler.rs",
    "src/limits/table.rs",
    "src/turn_client/",
    "src/turn_wire.rs",
    "src/load/credentials.rs",
    "src/load/gateway/virtual_connections.rs",
    "src/load/gateway/flows.rs",
    "src/load/gateway/message.rs",
    "src/load/gateway/report.rs",
    "src/load/histogram.rs",
    "src/load/outcome.rs",
    "src/load/pacing.rs",
    "src/load/packets.rs",
    "src/load/process_share.rs",
    "src/load/report.rs",
    "src/load/search.rs",
    "src/load/signaling/clients.rs",
    "src/load/signaling/report.rs",
    "src/load/packet_stamp.rs",
    "src/load/target.rs",
    "src/messaging_client/encryption.rs",
    "src/messaging_client/enrollment.rs",
    "src/messaging_client/error.rs",
    "src/messaging_client/event.rs",
    "src/messaging_client/keys.rs",
    "src/messaging_client/known_peers.rs",
    "src/messaging_client/party_name.rs",
    "src/messaging_client/receiving.rs",
    "src/messaging_client/replay_window.rs",
    "src/messaging_client/sending.rs",
    "src/messaging_client/state.rs",
    "src/messaging_wire/",
    "src/messaging/commands.rs",
    "src/messaging/config.rs",
    "src/messaging/contacts.rs",
    "src/messaging/counters.rs",
    "src/messaging/delivery.rs",
    "src/messaging/devices.rs",
    "src/messaging/dispatcher.rs",
    "src/messaging/account_devices.rs",
    "src/messaging/follow.rs",
    "src/messaging/json_login.rs",
    "src/messaging/json_sending.rs",
    "src/messaging/json_session.rs",
    "src/messaging/presence.rs",
    "src/messaging/login.rs",
    "src/messaging/rates.rs",
    "src/messaging/sending.rs",
    "src/messaging/session.rs",
    "src/messaging/store_request.rs",
    "src/net/connection_limiter.rs",
    "src/net/dtls_cookie.rs",
    "src/net/demux.rs",
    "src/net/forwarded.rs",
    "src/net/unauthenticated.rs",
    "src/net/proxy.rs",
    "src/net/proxy_settings.rs",
    "src/dataplane/framing.rs",
    "src/signaling/call_requests.rs",
    "src/signaling/access.rs",
    "src/signaling/access/",
    "src/signaling/response_cache.rs",
    "src/signaling/bus.rs",
    "src/signaling/call.rs",
    "src/signaling/call_table.rs",
    "src/signaling/config.rs",
    "src/signaling/counters.rs",
    "src/signaling/envelope.rs",
    "src/net/websocket/frame.rs",
    "src/net/websocket/message.rs",
    "src/signaling/pending_queries.rs",
    "src/signaling/tag_ownership.rs",
    "src/signaling/local_addresses.rs",
    "src/signaling/client_addr.rs",
    "src/signaling/online_list.rs",
    "src/signaling/message.rs",
    "src/signaling/message_type.rs",
    "src/signaling/error_code.rs",
    "src/signaling/ice_description.rs",
    "src/signaling/connections.rs",
    "src/signaling/replies.rs",
    "src/signaling/pending_request.rs",
    "src/signaling/wire/",
    "src/signaling/tag_id.rs",
    "src/signaling/presence.rs",
    "src/signaling/registry.rs",
    "src/signaling/nodes.rs",
    "src/signaling/subscriptions.rs",
    "src/signaling/hub_messages.rs",
    "src/signaling/watches.rs",
    "src/agent/admission.rs",
    "src/agent/call_auth.rs",
    "src/agent/code/exchange.rs",
    "src/agent/code/guesses.rs",
    "src/agent/code/mod.rs",
    "src/agent/candidate.rs",
    "src/agent/initial_keys.rs",
    "src/agent/keys.rs",
    "src/agent/pinned_tls.rs",
    "src/agent/diagnosis/http_answer.rs",
    "src/agent/diagnosis/nat_behavior.rs",
    "src/agent/diagnosis/observations.rs",
    "src/agent/diagnosis/pair.rs",
    "src/agent/diagnosis/remedies.rs",
    "src/agent/diagnosis/sections.rs",
    "src/agent/diagnosis/verdict.rs",
    "src/agent/gathering.rs",
    "src/agent/hard_nat/",
    "src/agent/mesh/",
    "src/agent/nat.rs",
    "src/agent/nat64.rs",
    "src/agent/path.rs",
    "src/agent/protocol.rs",
    "src/agent/port_mapping/upnp_message.rs",
    "src/agent/relay_reason.rs",
    "src/agent/session.rs",
    "src/agent/ticket.rs",
    "src/agent/config.rs",
    "src/agent/error.rs",
    "src/file_transfer/names.rs",
    "src/file_transfer/plan.rs",
    "src/file_transfer/tree.rs",
    "src/store/account.rs",
    "src/store/mailbox.rs",
    "src/store/party.rs",
];
/// Names that a pure file must not use.
const IMPURE: &[&str] = &[
    "tokio::",
    "axum::",
    "mio::",
    "hyper",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "std::fs",
    "std::env",
    "Instant::now",
    "SystemTime::now",
    "OsRng",
    "from_os_rng",
    "rand::rng(",
    "spawn(",
];
/// The rule, the paths that it applies to, the exceptions, and the names that are forbidden there.
const BORDERS: &[(&str, &str, &[&str], &[&str])] = &[
    (
        "the agent imports only signaling::wire",
        "src/agent/",
        &[],
        &[
            "signaling::machine",
            "signaling::Hub",
            "signaling::service",
            "signaling::Service",
            "signaling::start",
        ],
    ),
    (
        "the agent imports no state machine of the server",
        "src/agent/",
        &[],
        &["turn_server::machine", "crate::server", "stun_server"],
    ),
    (
        "the agent imports only gateway::client and gateway::wire",
        "src/agent/",
        &[],
        &[
            "gateway::machine",
            "gateway::service",
            "gateway::worker",
            "gateway::config",
            "gateway::Router",
            "gateway::Service",
            "gateway::start",
            "crate::gateway::{",
        ],
    ),
    ("turn_server does not import signaling", "src/turn_server/", &[], &["signaling"]),
    (
        "signaling imports only turn_server::auth",
        "src/signaling/",
        &[],
        &[
            "turn_server::machine",
            "turn_server::policy",
            "turn_server::ports",
            "turn_server::wire",
            "turn_server::Relay",
        ],
    ),
    (
        "the gateway imports no other service",
        "src/gateway/",
        &[],
        &["crate::signaling", "crate::turn_server", "crate::server", "crate::config", "crate::agent"],
    ),
    (
        "messaging imports no other service",
        "src/messaging/",
        &[],
        &["crate::signaling", "crate::turn_server", "crate::server", "crate::config", "crate::gateway"],
    ),
    (
        "the messaging client imports only the JSON wire and the signatures of messaging",
        "src/messaging_client/",
        &[],
        &[
            "messaging::machine",
            "messaging::service",
            "messaging::session",
            "messaging::config",
            "crate::store",
            "crate::server",
            "crate::config",
            "crate::agent",
        ],
    ),
    ("HPKE is named in one file", "src/", &["src/messaging_client/encryption.rs"], &["hpke::"]),
    ("RSA and AES are named in one file", "src/", &["src/messaging/crypto.rs"], &["rsa::", "aes::"]),
    ("signaling does not import the gateway", "src/signaling/", &[], &["crate::gateway"]),
    (
        "the packet path does not import the server",
        "src/dataplane/",
        &[],
        &["crate::server", "crate::config", "crate::gateway", "crate::agent"],
    ),
    ("services do not import config", "src/server", &[], &["crate::config"]),
    ("services do not import config", "src/signaling/", &[], &["crate::config"]),
    ("services do not import config", "src/agent/", &[], &["crate::config"]),
    (
        "the second ICE engine is named in one file",
        "src/",
        &["src/agent/webrtc_engine.rs"],
        &["webrtc_ice", "webrtc_util"],
    ),
    (
        "the DTLS engine is named in one file",
        "src/",
        &["src/dataplane/dtls.rs", "src/dataplane/dtls_tests.rs"],
        &["dimpl::"],
    ),
    ("SQL is in one folder", "src/", &["src/store/sqlite/"], &["rusqlite"]),
    (
        "the stun crate is only used in tests",
        "src/",
        &["src/stun/tests.rs"],
        &[" ::stun::", "(::stun::", "use stun::"],
    ),
    ("the clocks are read in one file", "src/", &["src/net/time.rs"], &["Instant::now(", "SystemTime::now("]),
    (
        "the library does not print, exit or read the environment",
        "src/",
        &["src/cli/", "src/bin/"],
        &["println!", "print!(", "process::exit", "env::var", "io::stdout("],
    ),
    (
        "unsafe code is in two files",
        "src/",
        &["src/net/heap.rs", "src/net/udp/mmsg.rs"],
        &["unsafe {", "unsafe fn", "unsafe impl", "allow(unsafe_code", "expect(unsafe_code"],
    ),
    ("errors are enums", "src/", &[], &["Other(String)", "anyhow::Error>"]),
];
const BANNED_MODULES: [&str; 7] = ["utils", "util", "helpers", "common", "types", "manager", "misc"];

struct Source {
    path: String,
    /// Lines that are neither comments nor tests, with their numbers.
    code: Vec<(usize, String)>,
    all: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.extension().is_some_and(|e| e == ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("tests.rs") || path.contains("/scenarios") || path.contains("/tests/")
}

fn sources() -> Vec<Source> {
    let read = |path: PathBuf| {
        let all = fs::read_to_string(&path).unwrap();
        let path = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        let end =
            if is_test_file(&path) { 0 } else { all.find("#[cfg(test)]\nmod tests {").unwrap_or(all.len()) };
        let code = all[..end].lines().enumerate();
        let code = code.filter(|(_, line)| !line.trim_start().starts_with("//"));
        let code = code.map(|(number, line)| (number + 1, line.to_owned())).collect();
        Source { path, code, all }
    };
    let sources: Vec<_> = files(&root().join("src"), "rs").into_iter().map(read).collect();
    assert!(sources.len() > 20, "the sources were not found");
    sources
}

fn is_pure(path: &str) -> bool {
    path.ends_with("/wire.rs")
        || path.ends_with("/machine.rs")
        || PURE.iter().any(|pure| if pure.ends_with('/') { path.starts_with(pure) } else { path == *pure })
}

fn assert_none(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

#[test]
fn pure_files_name_no_runtime_socket_clock_or_random_source() {
    let sources = sources();
    for pure in PURE {
        assert!(
            sources.iter().any(|source| source.path.starts_with(pure)),
            "{pure} is listed but does not exist"
        );
    }
    let mut broken = Vec::new();
    for source in sources.iter().filter(|source| is_pure(&source.path)) {
        for (number, line) in &source.code {
            broken.extend(
                IMPURE
                    .iter()
                    .filter(|word| line.contains(*word))
                    .map(|word| format!("{}:{number} names {word}", source.path)),
            );
        }
    }
    assert_none("pure files do no I/O", &broken);
}

#[test]
fn modules_import_only_what_the_rules_permit() {
    let mut broken = Vec::new();
    for source in sources() {
        for &(rule, place, exceptions, words) in BORDERS {
            if !source.path.starts_with(place) || exceptions.iter().any(|e| source.path.starts_with(e)) {
                continue;
            }
            for (number, line) in &source.code {
                if let Some(word) = words.iter().find(|word| line.contains(*word)) {
                    broken.push(format!("{}:{number} names {word}: {rule}", source.path));
                }
            }
        }
    }
    assert_none("modules import only what the rules permit", &broken);
}

/// Clippy forbids the macros that panic on a failed write. No `allow` may permit them, and the log crate's own use of such a macro must stay
/// disabled.
#[test]
fn nothing_prints_with_macros_that_panic() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| !is_test_file(&source.path)) {
        for (number, line) in &source.code {
            let is_log = line.contains("tracing_subscriber::fmt()") && source.path != "src/telemetry.rs";
            if line.contains("clippy::print_std") || is_log {
                broken.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    let telemetry = fs::read_to_string(root().join("src/telemetry.rs")).unwrap();
    if !telemetry.contains(".log_internal_errors(false)") {
        broken.push(
            "src/telemetry.rs: tracing_subscriber reports its own errors by a macro that panics".to_owned(),
        );
    }
    let lints = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for lint in ["print_stdout = \"deny\"", "print_stderr = \"deny\""] {
        if !lints.contains(lint) {
            broken.push(format!("Cargo.toml: no {lint}"));
        }
    }
    assert_none("a failed write does not stop the program", &broken);
}

#[test]
fn module_names_are_specific_and_no_todo_is_left() {
    let mut broken = Vec::new();
    for source in sources() {
        let name = Path::new(&source.path).file_stem().unwrap().to_string_lossy().into_owned();
        if BANNED_MODULES.contains(&name.as_str()) {
            broken.push(format!("{}: the module name does not describe its content", source.path));
        }
        for (number, line) in source.all.lines().enumerate() {
            if line.contains("TODO") && !line.contains('#') || line.contains("FIXME") {
                broken.push(format!("{}:{}: a TODO without an issue", source.path, number + 1));
            }
        }
    }
    assert_none("module names and TODOs", &broken);
}

#[test]
fn files_and_functions_stay_small() {
    let sources = sources();
    let mut broken = Vec::new();
    for source in &sources {
        let lines = source.all.lines().count();
        if lines > FILE_LINES {
            broken.push(format!("{}: {lines} lines", source.path));
        }
        let mut open: Option<(usize, String)> = None;
        for (number, line) in source.all.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let begins = line.contains("fn ") && !line.trim_start().starts_with("//");
            if begins && open.is_none() && !line.ends_with(';') && !line.ends_with('}') {
                open = Some((number, " ".repeat(indent) + "}"));
            }
            if let Some((start, close)) = &open
                && line == close
            {
                if number - start > FUNCTION_LINES {
                    broken.push(format!(
                        "{}:{}: a function of {} lines",
                        source.path,
                        start + 1,
                        number - start
                    ));
                }
                open = None;
            }
        }
    }
    let mut lengths: Vec<_> = sources.iter().map(|source| source.all.lines().count()).collect();
    lengths.sort_unstable();
    let (median, p90) = (lengths[lengths.len() / 2], lengths[lengths.len() * 9 / 10]);
    if median > 280 || p90 > 480 {
        broken.push(format!("median {median} lines (280), p90 {p90} (480)"));
    }
    assert_none("ceilings", &broken);
}

/// The path of a file's module: `a/b.rs` and `a/b/mod.rs` are `a::b`, and `a/b_tests.rs` holds the tests of `a::b`.
fn module(file: &Path) -> String {
    let path = file.with_extension("").to_string_lossy().replace('/', "::");
    let path = path.strip_suffix("::mod").unwrap_or(&path);
    path.strip_suffix("_tests").unwrap_or(path).to_owned()
}

#[test]
fn every_test_that_the_docs_name_exists() {
    let mut known = HashSet::new();
    for folder in ["src", "tests/it"] {
        let folder = root().join(folder);
        for path in files(&folder, "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let names = text.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next());
            // Tables of tests, as `pairs!` has them: one name and a colon at the beginning of a line.
            let rows = text.lines().filter_map(|line| line.trim_start().split_once(':'));
            let module = module(path.strip_prefix(&folder).unwrap());
            for name in names.chain(rows.map(|(name, _)| name)) {
                known.insert(name.to_owned());
                known.extend([format!("{module}::{name}"), format!("{module}::tests::{name}")]);
            }
        }
    }
    let mut broken = Vec::new();
    let mut named = 0;
    for path in files(&root().join("docs"), "md") {
        let text = fs::read_to_string(&path).unwrap();
        let mut in_test_table = false;
        for (number, line) in text.lines().enumerate() {
            in_test_table = match line.starts_with('|') {
                true => in_test_table || line.trim_end().ends_with("| test |"),
                false => false,
            };
            let Some(cell) =
                line.trim_end().trim_end_matches('|').rsplit('|').next().filter(|_| in_test_table)
            else {
                continue;
            };
            for name in cell.split('`').skip(1).step_by(2) {
                named += 1;
                if !known.contains(name) {
                    broken.push(format!("{}:{}: no test {name}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(named > 20, "the tables of tests were not found");
    assert_none("tests named in docs/", &broken);
}

/// The requirement numbers in a text, such as `S0-14` or `S2-A5`.
fn requirement_numbers(text: &str) -> HashSet<String> {
    let mut numbers = HashSet::new();
    for (at, _) in text.match_indices('S') {
        if text[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &text.as_bytes()[at + 1..];
        let [b'0'..=b'4', b'-', tail @ ..] = rest else { continue };
        let letter = usize::from(tail.first() == Some(&b'A'));
        let digits = tail[letter..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits > 0 {
            numbers.insert(text[at..at + 3 + letter + digits].to_owned());
        }
    }
    numbers
}

#[test]
fn every_requirement_has_a_test_and_every_cited_one_is_listed() {
    const UNTESTED: [&str; 2] = ["not built yet", "nothing to show"];
    let page = fs::read_to_string(root().join("docs/requirements.md")).unwrap();
    let mut listed = HashSet::new();
    let mut broken = Vec::new();
    for line in page.lines().filter(|line| line.starts_with("| S")) {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        if !listed.insert(cells[1].to_owned()) {
            broken.push(format!("{} is listed twice", cells[1]));
        }
        if !cells[3].starts_with('`') && !UNTESTED.contains(&cells[3]) {
            broken.push(format!("{} has no test", cells[1]));
        }
    }
    assert!(listed.len() > 200, "the requirements were not found");
    let folders =
        [("src", "rs"), ("tests", "rs"), ("tests", "py"), ("benches", "rs"), ("docs", "md"), ("web", "js")];
    for (folder, ending) in folders {
        for path in files(&root().join(folder), ending) {
            let text = fs::read_to_string(&path).unwrap();
            let unknown = requirement_numbers(&text).into_iter().filter(|number| !listed.contains(number));
            broken.extend(unknown.map(|number| format!("{}: {number} is not listed", path.display())));
        }
    }
    assert_none("requirements", &broken);
}

#[test]
fn tests_wait_for_conditions_and_sleep_in_one_place() {
    const WAITING: &str = "tests/it/waiting.rs";
    let mut broken = Vec::new();
    for path in files(&root().join("tests/it"), "rs") {
        let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        if name == WAITING || name == file!() {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            if line.contains("sleep(") || line.contains("::sleep") {
                broken.push(format!("{name}:{}: wait with {WAITING}", number + 1));
            }
        }
    }
    assert_none("no sleeps in tests", &broken);
}

#[test]
fn every_direct_dependency_is_named_and_has_its_reason() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let text = |folders: &[&str]| -> String {
        let paths = folders.iter().flat_map(|folder| files(&root().join(folder), "rs"));
        paths.map(|path| fs::read_to_string(path).unwrap()).collect()
    };
    let (product, tests) = (text(&["src"]), text(&["src", "tests", "benches", "examples"]));
    let mut broken = Vec::new();
    let (mut table, mut count) = (String::new(), 0);
    for line in manifest.lines() {
        if let Some(name) = line.strip_prefix('[') {
            name.trim_end_matches(']').clone_into(&mut table);
            continue;
        }
        let (true, Some((name, rest))) = (table.ends_with("dependencies"), line.split_once(" = ")) else {
            continue;
        };
        count += 1;
        if !rest.contains(" # ") {
            broken.push(format!("{name} has no reason"));
        }
        let sources = if table.starts_with("dev-") { &tests } else { &product };
        let name = name.replace('-', "_");
        // `webpki` is the name of `rustls-webpki`'s library, `md5` that of `md-5`.
        let library = match name.as_str() {
            "rustls_webpki" => "webpki",
            "md_5" => "md5",
            other => other,
        };
        if ![format!("{library}::"), format!("use {library};")].iter().any(|use_| sources.contains(use_)) {
            broken.push(format!("{name} is not used"));
        }
    }
    assert!(count > 20, "the dependencies were not found");
    assert_none("dependencies", &broken);
}

/// The pages at the top and under `docs/`, with their texts.
fn pages() -> Vec<(String, String)> {
    let mut paths = files(&root().join("docs"), "md");
    paths.extend(fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path()));
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "md"));
    let read = |path: PathBuf| {
        let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        (name, fs::read_to_string(&path).unwrap())
    };
    paths.into_iter().map(read).collect()
}

#[test]
fn every_file_that_the_pages_name_exists() {
    const FOLDERS: [&str; 8] =
        ["src/", "tests/", "docs/", "fuzz/", "benches/", "examples/", "web/", "scripts/"];
    let mut broken = Vec::new();
    let mut named = 0;
    for (page, text) in pages() {
        let folder = root().join(&page).parent().unwrap().to_owned();
        let in_code = text.split('`').skip(1).step_by(2).filter(|name| {
            !name.contains(|c: char| c.is_whitespace() || "*<>{}…".contains(c)) && !name.contains("TARGET")
        });
        for name in in_code {
            let is_module = page == "ARCHITECTURE.md" && name.ends_with(".rs");
            let path = match FOLDERS.iter().any(|folder| name.starts_with(folder)) {
                true => root().join(name),
                false if is_module && name.contains('/') => root().join("src").join(name),
                false => continue,
            };
            named += 1;
            if !path.exists() {
                broken.push(format!("{page}: no {name}"));
            }
        }
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if !link.is_empty() && !link.contains(':') && !folder.join(link).exists() {
                broken.push(format!("{page}: no {link}"));
            }
        }
    }
    assert!(named > 50, "the pages were not found");
    assert_none("files named by the pages", &broken);
}

#[test]
fn the_architecture_fits_on_120_lines() {
    let lines = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap().lines().count();
    assert!(lines <= 120, "{lines} lines");
}

#[test]
fn no_public_type_name_is_defined_twice_unless_the_glossary_lists_it() {
    const KINDS: [&str; 4] = ["pub struct ", "pub enum ", "pub trait ", "pub type "];
    let glossary = fs::read_to_string(root().join("docs/glossary.md")).unwrap();
    let (_, table) = glossary.split_once("## Duplicate type names").unwrap();
    let listed: HashSet<_> =
        table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let mut places: HashMap<String, Vec<String>> = HashMap::new();
    for source in sources().iter().filter(|source| !is_test_file(&source.path)) {
        for (_, line) in &source.code {
            let name = KINDS.iter().find_map(|kind| line.strip_prefix(kind));
            let name = name.and_then(|rest| rest.split(|c: char| !c.is_alphanumeric()).next());
            if let Some(name) = name {
                places.entry(name.to_owned()).or_default().push(source.path.clone());
            }
        }
    }
    assert!(places.len() > 100, "the types were not found");
    let twice = places.iter().filter(|(name, paths)| paths.len() > 1 && !listed.contains(name.as_str()));
    let broken: Vec<_> = twice.map(|(name, paths)| format!("{name}: {}", paths.join(", "))).collect();
    assert_none("each public type has one definition", &broken);
}
