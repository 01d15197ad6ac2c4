//! A headless Chromium, driven over the Chrome DevTools Protocol.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::proc::{Proc, Stdout};

const START: Duration = Duration::from_secs(60);
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
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--allow-loopback-in-peer-connection",
    "--remote-debugging-port=0",
];

/// A running browser and the one connection that drives it.
pub(crate) struct Browser {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    next: u64,
    process: Proc,
    _profile: TempDir,
}

/// One tab.
#[derive(Clone)]
pub(crate) struct Tab {
    session: String,
}

impl Browser {
    /// Starts Chromium with a fresh profile.
    pub(crate) async fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut chromium = Command::new("chromium");
        chromium.args(FLAGS).arg(format!("--user-data-dir={}", profile.path().display()));
        set_home(&mut chromium, profile.path());
        let process = Proc::start("chromium", chromium, Stdout::Lines);
        let url = process.expect("DevTools address", START, |line| {
            line.strip_prefix("DevTools listening on ").map(str::to_owned)
        });
        let (socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
        Self { socket, next: 0, process, _profile: profile }
    }

    /// Opens `url` in a new tab; returns once the page has taken the place of the empty one.
    pub(crate) async fn open(&mut self, url: &str) -> Tab {
        let target = self.command(None, "Target.createTarget", json!({ "url": "about:blank" })).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = self.command(None, "Target.attachToTarget", attach).await;
        let tab = Tab { session: attached["sessionId"].as_str().unwrap().to_owned() };
        let navigated = self.command(Some(&tab), "Page.navigate", json!({ "url": url })).await;
        assert!(navigated["errorText"].is_null(), "{url}: {navigated}");
        tab
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
        self.socket.send(Message::text(command.to_string())).await.unwrap();
        let answer = timeout(ANSWER, self.answer(id)).await;
        let mut answer =
            answer.unwrap_or_else(|_| panic!("no answer to {command}\n{}", self.process.printed()));
        assert!(answer["error"].is_null(), "{command}: {}", answer["error"]);
        answer["result"].take()
    }

    async fn answer(&mut self, id: u64) -> Value {
        loop {
            let Message::Text(text) = self.socket.next().await.unwrap().unwrap() else { continue };
            let message: Value = serde_json::from_str(text.as_str()).unwrap();
            if message["id"] == id {
                return message;
            }
        }
    }
}

/// Keeps the start script and the browser from the user's own files.
fn set_home(command: &mut Command, folder: &Path) {
    for name in ["HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"] {
        command.env(name, folder);
    }
}
