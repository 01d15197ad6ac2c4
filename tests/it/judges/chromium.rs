//! Two pages of `examples/browser/` in headless Chromium exchange data over a data channel.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::devtools::Browser;
use crate::authority::Authority;
use crate::test_server::{Lines, TestServer};
use crate::tools;

const MESSAGES: u32 = 1000;

/// Waits for the tag that the page has registered as.
const TAG: &str = "new Promise((resolve, reject) => {
  const look = (tries) => {
    if (window.client) return resolve(window.client.tag);
    if (tries === 0) return reject(new Error('no tag: ' + document.body.innerText));
    setTimeout(look, 10, tries - 1);
  };
  look(1000);
})";

/// Collects what comes in over a channel, before anything can.
const COLLECT: &str = "window.received = [];
  window.collect = (channel) => {
    channel.addEventListener('message', ({ data }) => window.received.push(data));
    return channel;
  };
  window.opened = new Promise((resolve) =>
    window.client.addEventListener('call', ({ channel }) => resolve(window.collect(channel))));
  true";

/// Sends every message, waits for as many, and returns them with the candidate pair.
fn exchange() -> String {
    format!(
        "(async () => {{
           const channel = await window.opened;
           for (let i = 0; i < {MESSAGES}; i++) channel.send('message ' + i);
           while (window.received.length < {MESSAGES}) await new Promise((go) => setTimeout(go, 10));
           const stats = await channel.connection.getStats();
           const transport = [...stats.values()].find((entry) => entry.type === 'transport');
           const pair = stats.get(transport.selectedCandidatePairId);
           return {{
             inOrder: window.received.every((text, i) => text === 'message ' + i),
             count: window.received.length,
             local: stats.get(pair.localCandidateId).candidateType,
             remote: stats.get(pair.remoteCandidateId).candidateType,
             sent: pair.bytesSent,
           }};
         }})()"
    )
}

/// Serves the files of `examples/browser/` until the test ends.
pub(super) fn serve_example() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream).ok());
        }
    });
    address
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    request.read_line(&mut first)?;
    let mut line = String::new();
    while request.read_line(&mut line)? > 2 {
        line.clear();
    }
    let path = first.split_whitespace().nth(1).unwrap_or("/").split('?').next().unwrap_or("/");
    let (name, kind) = match path {
        "/" => ("index.html", "text/html"),
        other => (&other[1..], "text/javascript"),
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/browser");
    let file = (!name.contains("..")).then(|| std::fs::read(folder.join(name)).ok()).flatten();
    let status = if file.is_some() { "200 OK" } else { "404 Not Found" };
    let body = file.unwrap_or_default();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    stream.write_all(&body)
}

async fn two_pages_talk(policy: &str) {
    // Without an exception: relayed addresses reach each other even on loopback.
    let test_server = TestServer::on_loopback("");
    let page = format!(
        "http://{}/?server={}&key={}&policy={policy}",
        serve_example(),
        test_server.address,
        test_server.key()
    );
    let mut browser = Browser::start();
    let (listener, caller) = (browser.open(&page).await, browser.open(&page).await);
    for tab in [&listener, &caller] {
        browser.evaluate(tab, TAG).await;
        browser.evaluate(tab, COLLECT).await;
    }
    let tag = browser.evaluate(&listener, TAG).await;
    browser
        .evaluate(&caller, &format!("window.opened = window.client.call({tag}).then(window.collect); true"))
        .await;
    // The first exchange starts by itself; awaiting it here would delay the other page's.
    browser.evaluate(&listener, &format!("window.exchange = {}; true", exchange())).await;
    for (tab, expression) in [(&caller, exchange()), (&listener, "window.exchange".to_owned())] {
        let outcome = browser.evaluate(tab, &expression).await;
        assert_eq!(outcome["count"], MESSAGES, "{outcome}");
        assert_eq!(outcome["inOrder"], true, "{outcome}");
        if policy == "relay" {
            assert_eq!(outcome["local"], "relay", "{outcome}");
        } else {
            assert_ne!(outcome["local"], json!("relay"), "{outcome}");
        }
    }
}

#[tokio::test]
async fn two_chromium_pages_exchange_a_thousand_messages_over_the_relay_only() {
    if tools::have(&["chromium"]) {
        two_pages_talk("relay").await;
    }
}

#[tokio::test]
async fn two_chromium_pages_exchange_a_thousand_messages_over_any_path() {
    if tools::have(&["chromium"]) {
        two_pages_talk("all").await;
    }
}

/// Two connections in one page, whose `iceServers` are what the server printed, over those of its relay whose URL has `part`.
fn pasted(ice: &str, part: &str) -> String {
    format!(
        "(async () => {{
           const {{ iceServers }} = {ice};
           for (const server of iceServers) {{
             server.urls = server.urls.filter((url) => url.includes('{part}'));
           }}
           const configuration = {{
             iceServers: iceServers.filter(({{ urls }}) => urls.length > 0),
             iceTransportPolicy: 'relay',
           }};
           const [left, right] = [new RTCPeerConnection(configuration), new RTCPeerConnection(configuration)];
           const errors = [];
           for (const [here, there] of [[left, right], [right, left]]) {{
             here.onicecandidate = ({{ candidate }}) => candidate && there.addIceCandidate(candidate);
             here.onicecandidateerror = ({{ url, errorCode, errorText }}) => errors.push(`${{url}} ${{errorCode}} ${{errorText}}`);
           }}
           const channel = left.createDataChannel('talk');
           right.ondatachannel = ({{ channel }}) => (channel.onmessage = ({{ data }}) => channel.send(data + ', echoed'));
           const received = new Promise((resolve, reject) => {{
             channel.onopen = () => channel.send('hello');
             channel.onmessage = ({{ data }}) => resolve(data);
             setTimeout(() => reject(new Error('nothing received: ' + errors.join('; '))), 30000);
           }});
           await left.setLocalDescription();
           await right.setRemoteDescription(left.localDescription);
           await right.setLocalDescription();
           await left.setRemoteDescription(right.localDescription);
           return await received;
         }})()"
    )
}

async fn pasted_servers_work(test_server: TestServer, part: &str) {
    let ice = test_server.printed_ice();
    let mut browser = Browser::start();
    let tab = browser.open(&format!("http://{}/", serve_example())).await;
    assert_eq!(browser.evaluate(&tab, &pasted(&ice, part)).await, "hello, echoed");
}

#[tokio::test]
async fn printed_ice_servers_relay_over_udp_when_pasted_into_a_page() {
    if tools::have(&["chromium"]) {
        pasted_servers_work(TestServer::on_loopback(""), "transport=udp").await;
    }
}

#[tokio::test]
async fn printed_ice_servers_relay_over_tcp_when_pasted_into_a_page() {
    if tools::have(&["chromium"]) {
        pasted_servers_work(TestServer::on_loopback(""), "transport=tcp").await;
    }
}

/// A policy that has every Chromium on this machine trust an authority, until dropped. The authority's key is gone already.
pub(super) struct Trusted(PathBuf);

impl Trusted {
    pub(super) fn new(authority: &Authority) -> Self {
        let folder = Path::new("/etc/chromium/policies/managed");
        std::fs::create_dir_all(folder).unwrap();
        let file = folder.join(format!("ginnel-test-{}.json", std::process::id()));
        let policy = json!({ "CACertificates": [authority.root_base64()] });
        std::fs::write(&file, policy.to_string()).unwrap();
        Self(file)
    }
}

impl Drop for Trusted {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

#[tokio::test]
async fn printed_ice_servers_relay_over_tls_when_pasted_into_a_page() {
    if tools::have(&["chromium"]) && tools::is_root_for("a policy of Chromium") {
        let authority = Authority::new();
        let _trusted = Trusted::new(&authority);
        pasted_servers_work(TestServer::with_tls(Lines::default(), Some(&authority)), "turns:").await;
    }
}

#[tokio::test]
async fn a_certificate_that_the_page_does_not_trust_carries_no_relay() {
    if tools::have(&["chromium"]) {
        let test_server = TestServer::with_tls(Lines::default(), Some(&Authority::new()));
        let ice = test_server.printed_ice();
        let mut browser = Browser::start();
        let tab = browser.open(&format!("http://{}/", serve_example())).await;
        let caught = "return await received.catch((error) => 'refused: ' + error);";
        let script =
            pasted(&ice, "turns:").replace("30000", "5000").replace("return await received;", caught);
        let outcome = browser.evaluate(&tab, &script).await;
        assert!(outcome.as_str().unwrap().starts_with("refused: "), "{outcome}");
    }
}
