//! `messages.js`, served by the server, in tabs of headless Chromium: end-to-end encrypted messages to tabs that close and open again.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::client_module::TOOLS;
use super::devtools::{Browser, Tab};
use crate::test_server::{Lines, TestServer, free_ports};
use crate::tools;

fn messaging_server() -> TestServer {
    let turn = format!("[messaging]\nenabled = true\nport = {}\n", free_ports());
    TestServer::with(&[Ipv4Addr::LOCALHOST.into()], Lines { top: "workers = 1", turn: &turn })
}

/// A tab with the mailbox of a user.
async fn open_mailbox(browser: &mut Browser, server: &TestServer, user: &str) -> Tab {
    let tab = browser.open(&format!("http://{}/", server.address)).await;
    browser.evaluate(&tab, TOOLS).await;
    let open = format!(
        "(async () => {{
           const {{ openMailbox }} = await import('/messages.js');
           window.receipts = [];
           window.refused = [];
           window.mailbox = await openMailbox({{
             user: '{user}',
             onmessage: (message) => received.push(message),
             onreceipt: (receipt) => receipts.push(receipt),
             onrefused: (refusal) => refused.push(refusal),
             onstate: (state) => states.push(state),
           }});
           return mailbox.user;
         }})()"
    );
    assert_eq!(browser.evaluate(&tab, &open).await, user);
    tab
}

async fn send(browser: &mut Browser, tab: &Tab, to: &str, text: &str) -> Value {
    browser.evaluate(tab, &format!("mailbox.send('{to}', {})", json!(text))).await
}

async fn wait(browser: &mut Browser, tab: &Tab, holds: &str) {
    assert_eq!(browser.evaluate(tab, &format!("until(() => {holds})")).await, true);
}

async fn texts(browser: &mut Browser, tab: &Tab) -> Value {
    browser.evaluate(tab, "received.map(({ from, text, encrypted }) => [from, text, encrypted])").await
}

#[tokio::test]
async fn two_tabs_exchange_encrypted_messages_while_one_is_closed_and_opened_again() {
    if !tools::have(&["chromium"]) {
        return;
    }
    let server = messaging_server();
    let mut browser = Browser::start();
    let alice = open_mailbox(&mut browser, &server, "alice").await;
    let bob = open_mailbox(&mut browser, &server, "bob").await;
    let sent = send(&mut browser, &alice, "bob", "héllo bob").await;
    assert_eq!((&sent["state"], &sent["encrypted"]), (&json!("stored"), &json!(true)), "{sent}");
    wait(&mut browser, &bob, "received.length === 1").await;
    assert_eq!(texts(&mut browser, &bob).await, json!([["user:alice", "héllo bob", true]]));
    send(&mut browser, &bob, "alice", "hello alice").await;
    wait(&mut browser, &alice, "received.length === 1 && receipts.length === 1").await;
    let receipt = browser.evaluate(&alice, "receipts[0]").await;
    assert_eq!((&receipt["id"], &receipt["state"]), (&sent["id"], &json!("delivered")), "{receipt}");
    // Each sees the fingerprint that the other has.
    let own = browser.evaluate(&bob, "mailbox.fingerprint").await;
    assert_eq!(browser.evaluate(&alice, "mailbox.fingerprintOf('bob')").await, own);

    browser.close(&bob).await;
    for number in 1..=3 {
        let sent = send(&mut browser, &alice, "bob", &format!("while you were away {number}")).await;
        assert_eq!(sent["state"], "stored", "{sent}");
    }
    let bob = open_mailbox(&mut browser, &server, "bob").await;
    wait(&mut browser, &bob, "received.length === 3").await;
    let expected: Vec<Value> =
        (1..=3).map(|number| json!(["user:alice", format!("while you were away {number}"), true])).collect();
    assert_eq!(texts(&mut browser, &bob).await, json!(expected));
    wait(&mut browser, &alice, "receipts.length === 4").await;
    assert_eq!(browser.evaluate(&alice, "refused.length").await, 0);

    // What was acknowledged does not come again, and the server has nothing in plaintext.
    browser.close(&bob).await;
    let bob = open_mailbox(&mut browser, &server, "bob").await;
    send(&mut browser, &alice, "bob", "the last one").await;
    wait(&mut browser, &bob, "received.length > 0").await;
    assert_eq!(texts(&mut browser, &bob).await, json!([["user:alice", "the last one", true]]));
    let stored = std::fs::read_dir(server.state()).unwrap().map(|entry| entry.unwrap().path());
    for file in stored.filter(|path| path.is_file()) {
        let bytes = std::fs::read(&file).unwrap();
        let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(!holds("while you were") && !holds("the last one"), "{}", file.display());
    }
}

#[tokio::test]
async fn a_tab_sends_after_the_server_has_restarted() {
    if !tools::have(&["chromium"]) {
        return;
    }
    let mut server = messaging_server();
    let mut browser = Browser::start();
    let alice = open_mailbox(&mut browser, &server, "alice").await;
    let bob = open_mailbox(&mut browser, &server, "bob").await;
    send(&mut browser, &alice, "bob", "before").await;
    wait(&mut browser, &bob, "received.length === 1").await;
    server.restart();
    for tab in [&alice, &bob] {
        wait(&mut browser, tab, "states.join() === 'online,offline,online'").await;
    }
    send(&mut browser, &alice, "bob", "after").await;
    wait(&mut browser, &bob, "received.length === 2").await;
    assert_eq!(
        texts(&mut browser, &bob).await,
        json!([["user:alice", "before", true], ["user:alice", "after", true]])
    );
}

/// Puts itself between the page and the server, and changes what the server answers, once.
const MALICIOUS: &str = "window.tamper = (change) => {
    const parse = JSON.parse;
    JSON.parse = (text) => {
      const object = parse(text);
      change(object);
      return object;
    };
    window.honest = () => (JSON.parse = parse);
  };
  window.caught = (promise) => promise.then(() => 'sent', ({ kind, message }) => kind + ': ' + message);
  true";

#[tokio::test]
async fn a_page_sends_nothing_by_a_server_that_swaps_keys() {
    if !tools::have(&["chromium"]) {
        return;
    }
    let server = messaging_server();
    let mut browser = Browser::start();
    let alice = open_mailbox(&mut browser, &server, "alice").await;
    let bob = open_mailbox(&mut browser, &server, "bob").await;
    let eve = open_mailbox(&mut browser, &server, "eve").await;
    send(&mut browser, &alice, "bob", "first").await;
    send(&mut browser, &alice, "eve", "first").await;
    wait(&mut browser, &eve, "received.length === 1").await;
    browser.evaluate(&alice, MALICIOUS).await;
    for (change, reason) in [
        (
            "(object) => object.devices?.forEach((device) => (device.encryption_key = device.signing_key))",
            "not signed by its identity key",
        ),
        ("(object) => { if (object.devices) object.identity_key = btoa('x'.repeat(32)) }", "has changed"),
        ("(object) => { if (object.devices) object.devices = [] }", "nothing is sent in plaintext"),
        ("(object) => { if (object.devices) object.legacy = true }", "nothing is sent in plaintext"),
    ] {
        browser.evaluate(&alice, &format!("tamper({change}); true")).await;
        let outcome = browser.evaluate(&alice, "caught(mailbox.send('bob', 'secret'))").await;
        let outcome = outcome.as_str().unwrap();
        assert!(outcome.starts_with("untrusted: ") && outcome.contains(reason), "{change}: {outcome}");
        browser.evaluate(&alice, "honest(); true").await;
    }
    // Mail under another name, in the way it arrives.
    browser.evaluate(&bob, MALICIOUS).await;
    let rename = "tamper((object) => { if (object.type === 'message') object.from = 'user:alice' }); true";
    browser.evaluate(&bob, rename).await;
    send(&mut browser, &eve, "bob", "I am alice").await;
    wait(&mut browser, &bob, "refused.length === 1").await;
    assert_eq!(browser.evaluate(&bob, "refused[0].reason").await, "another sender has signed it");
    assert_eq!(texts(&mut browser, &bob).await, json!([["user:alice", "first", true]]));
}

#[tokio::test]
async fn a_page_remembers_a_bounded_number_of_messages_and_a_sender_who_floods_it_harms_itself_only() {
    if !tools::have(&["chromium"]) {
        return;
    }
    let server = messaging_server();
    let mut browser = Browser::start();
    let tab = browser.open(&format!("http://{}/", server.address)).await;
    let outcome = browser
        .evaluate(
            &tab,
            "(async () => {
               const { ReplayWindow } = await import('/messages.js');
               const received = new ReplayWindow(10);
               received.add('user:friend', 'f', 50);
               const forgotten = Array.from({ length: 20 }, (_, n) => received.add('user:flood', `m${n}`, 100 + n)).flat();
               const again = new ReplayWindow(10, Object.fromEntries(received.floors));
               return [
                 forgotten.length, forgotten[0], received.has('user:friend', 'f'), received.has('user:flood', 'm19'),
                 received.has('user:flood', 'm0'), received.isTooOld('user:flood', 100), received.isTooOld('user:flood', 119),
                 received.isTooOld('user:friend', 40), again.isTooOld('user:flood', 100),
               ];
             })()",
        )
        .await;
    let expected = json!([11, ["user:flood", "m0"], true, true, false, true, false, false, true]);
    assert_eq!(outcome, expected);
}

#[tokio::test]
async fn a_page_does_not_show_a_repeated_message_and_closes_to_a_server_that_floods_it() {
    if !tools::have(&["chromium"]) {
        return;
    }
    let server = messaging_server();
    let mut browser = Browser::start();
    let alice = open_mailbox(&mut browser, &server, "alice").await;
    let bob = open_mailbox(&mut browser, &server, "bob").await;
    browser.evaluate(&bob, MALICIOUS).await;
    // The same message under the next number, once; then far more events than a server may send.
    let repeat = "window.keep = null;
        tamper((object) => { if (object.type === 'message') keep = keep ? Object.assign(object, { ...keep, sequence: object.sequence }) : { ...object } });
        true";
    browser.evaluate(&bob, repeat).await;
    send(&mut browser, &alice, "bob", "once").await;
    wait(&mut browser, &bob, "received.length === 1").await;
    send(&mut browser, &alice, "bob", "twice").await;
    wait(&mut browser, &alice, "receipts.length === 2").await;
    assert_eq!(texts(&mut browser, &bob).await, json!([["user:alice", "once", true]]));
    browser.evaluate(&bob, "honest(); true").await;
    let flood = "const dispatch = WebSocket.prototype.send;
        WebSocket.prototype.send = function (...data) {
          WebSocket.prototype.send = dispatch;
          dispatch.apply(this, data);
          for (let n = 0; n < 2100; n++) this.onmessage({ data: JSON.stringify({ type: 'receipt', sequence: 1e6 + n, message_id: 'x', from: 'user:x', state: 'delivered' }) });
        };
        mailbox.onreceipt = () => new Promise(() => {});
        caught(mailbox.send('alice', 'hello'))";
    browser.evaluate(&bob, flood).await;
    wait(&mut browser, &bob, "states.includes('offline')").await;
}

/// Runs a command of `agent`; returns what it printed.
async fn agent(home: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
    command.args(arguments).env("AGENT_STATE", home);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

#[tokio::test]
async fn a_tab_and_an_agent_exchange_encrypted_messages() {
    if !tools::have(&["chromium"]) {
        return;
    }
    let server = messaging_server();
    let home = tempfile::tempdir().unwrap();
    let url = format!("ws://{}", server.address);
    agent(home.path(), &["login", &url, "carol"]).await;
    let mut browser = Browser::start();
    let alice = open_mailbox(&mut browser, &server, "alice").await;
    let sent = send(&mut browser, &alice, "carol", "from a tab: héllo").await;
    assert_eq!(sent["encrypted"], true, "{sent}");
    let inbox = agent(home.path(), &["inbox"]).await;
    assert!(inbox.contains("alice  from a tab: héllo"), "{inbox}");
    let fingerprint = browser.evaluate(&alice, "mailbox.fingerprint").await;
    assert!(inbox.contains(fingerprint.as_str().unwrap()), "{fingerprint}: {inbox}");
    wait(&mut browser, &alice, "receipts.length === 1").await;
    agent(home.path(), &["msg", "alice", "from a terminal"]).await;
    wait(&mut browser, &alice, "received.length === 1").await;
    assert_eq!(texts(&mut browser, &alice).await, json!([["user:carol", "from a terminal", true]]));
}
