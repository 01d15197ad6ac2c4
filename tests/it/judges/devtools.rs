//! A headless Chromium, driven over the Chrome DevTools Protocol.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{ChildStdin, Command};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::lab::Host;
use crate::proc::{Proc, Stdout};

const ANSWER: Duration = Duration::from_secs(60);

/// A browser without a screen and without traffic of its own.
const FLAGS: &[&str] = &[
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-features=WebRtcHideLocalIpsWithMdns,MediaRouter,OptimizationHints",
    "--disable-default-apps",
    "--no-proxy-server",
    "--host-resolver-rules=MAP turn.example 203.0.113.10, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE 203.0.113.*",
    "--allow-loopback-in-peer-connection",
    "--remote-debugging-pipe",
];

/// Gives Chromium the pipes where it looks for them, whatever network it is in.
const PIPES: &str = "exec \"$0\" \"$@\" 3<&0 4>&1 0</dev/null 1>&2";
const END: u8 = 0;

/// A running browser and the pipes that drive it.
pub(crate) struct Browser {
    orders: ChildStdin,
    answers: mpsc::UnboundedReceiver<Value>,
    next: u64,
    process: Proc,
    _profile: TempDir,
}

/// One tab.
#[derive(Clone)]
pub(crate) struct Tab {
    session: String,
    target: Value,
}

impl Browser {
    /// Starts Chromium with a fresh profile.
    pub(crate) fn start() -> Self {
        Self::start_by(Command::new("sh"))
    }

    /// Starts Chromium on a host of the laboratory.
    pub(crate) fn start_on(host: &Host) -> Self {
        Self::start_by(host.command("sh"))
    }

    fn start_by(mut shell: Command) -> Self {
        let profile = tempfile::tempdir().unwrap();
        shell.args(["-c", PIPES, "chromium"]).args(FLAGS);
        shell.arg(format!("--user-data-dir={}", profile.path().display()));
        set_home(&mut shell, profile.path());
        let mut process = Proc::start("chromium", shell, Stdout::Pipe);
        let (orders, answers) = process.take_pipes();
        Self { orders, answers: follow(answers), next: 0, process, _profile: profile }
    }

    /// Opens `url` in a new tab; returns once the page has taken the place of the empty one.
    pub(crate) async fn open(&mut self, url: &str) -> Tab {
        let target = self.command(None, "Target.createTarget", json!({ "url": "about:blank" })).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = self.command(None, "Target.attachToTarget", attach).await;
        let session = attached["sessionId"].as_str().unwrap().to_owned();
        let tab = Tab { session, target: target["targetId"].clone() };
        let navigated = self.command(Some(&tab), "Page.navigate", json!({ "url": url })).await;
        assert!(navigated["errorText"].is_null(), "{url}: {navigated}");
        tab
    }

    /// Closes a tab, as a user would.
    pub(crate) async fn close(&mut self, tab: &Tab) {
        self.command(None, "Target.closeTarget", json!({ "targetId": tab.target })).await;
    }

    /// Evaluates an expression in a tab and waits for the value of its promise.
    pub(crate) async fn evaluate(&mut self, tab: &Tab, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let answer = self.command(Some(tab), "Runtime.evaluate", parameters).await;
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].clone()
    }

    async fn command(&mut self, tab: Option<&Tab>, method: &str, parameters: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut command = json!({ "id": id, "method": method, "params": parameters });
        if let Some(tab) = tab {
            command["sessionId"] = json!(tab.session);
        }
        let mut bytes = command.to_string().into_bytes();
        bytes.push(END);
        self.orders.write_all(&bytes).unwrap();
        let answer = timeout(ANSWER, self.answer(id)).await;
        let mut answer =
            answer.unwrap_or_else(|_| panic!("no answer to {command}\n{}", self.process.printed()));
        assert!(answer["error"].is_null(), "{command}: {}", answer["error"]);
        answer["result"].take()
    }

    async fn answer(&mut self, id: u64) -> Value {
        loop {
            let Some(message) = self.answers.recv().await else {
                panic!("Chromium has ended\n{}", self.process.printed());
            };
            if message["id"] == id {
                return message;
            }
        }
    }
}

/// What comes out of a pipe, message by message.
fn follow(pipe: impl Read + Send + 'static) -> mpsc::UnboundedReceiver<Value> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut bytes = Vec::new();
        while pipe.read_until(END, &mut bytes).is_ok() && bytes.pop() == Some(END) {
            let message = serde_json::from_slice(&bytes).unwrap();
            if sender.send(message).is_err() {
                return;
            }
            bytes.clear();
        }
    });
    receiver
}

/// Keeps the start script and the browser from the user's own files.
fn set_home(command: &mut Command, folder: &Path) {
    for name in ["HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"] {
        command.env(name, folder);
    }
}
