//! Pages in Chromium: the example without a server, the code that the start page prints, and the reasons of relay refusals.

use serde_json::{Value, json};

use super::chromium::serve_example;
use super::client_module::{Client, TOOLS};
use super::devtools::{Browser, Tab};
use crate::test_server::TestServer;
use crate::tools;

async fn wait(browser: &mut Browser, tab: &Tab, holds: &str) {
    assert_eq!(browser.evaluate(tab, &format!("until(() => {holds})")).await, true);
}

#[tokio::test]
async fn the_example_page_shows_why_it_cannot_start_and_starts_when_it_can() {
    if !tools::have(&["chromium"]) {
        return;
    }
    let mut test_server = TestServer::on_loopback("");
    let query = format!("?server={}&key={}", test_server.address, test_server.key());
    test_server.stop();
    let mut browser = Browser::start();
    let tab = browser.open(&format!("http://{}/{query}", serve_example())).await;
    browser.evaluate(&tab, TOOLS).await;
    wait(&mut browser, &tab, "document.getElementById('log')?.innerText.includes('! ')").await;
    // A form that the page does not handle would be sent, and take the query away.
    let press = "document.getElementById('log').replaceChildren();
      document.querySelector('#call input').value = 'abcdefghijklmnopqrstuvwx';
      document.getElementById('call').requestSubmit()";
    browser.evaluate(&tab, press).await;
    wait(&mut browser, &tab, "document.getElementById('log').innerText.includes('! ')").await;
    assert_eq!(browser.evaluate(&tab, "location.search").await, query);
    test_server.begin();
    browser.evaluate(&tab, press).await;
    // The server answers now: no such tag.
    wait(&mut browser, &tab, "document.getElementById('log').innerText.includes('203')").await;
    assert_eq!(browser.evaluate(&tab, "location.search + client.state").await, format!("{query}online"));
}

#[tokio::test]
async fn a_channel_knows_its_path_as_soon_as_it_is_open() {
    if !tools::have(&["chromium"]) {
        return;
    }
    let test_server = TestServer::on_loopback("");
    let mut browser = Browser::start();
    for (policy, path) in [("all", "direct"), ("relay", "relay")] {
        let caller = Client::new(&mut browser, &test_server, policy).await;
        let callee = Client::new(&mut browser, &test_server, policy).await;
        let listen = "window.taken = new Promise((go) => (client.oncall = ({ channel }) => go([channel.state, channel.path]))); true";
        callee.get(&mut browser, listen).await;
        let call = format!("client.call({}).then(({{ state, path }}) => [state, path])", callee.tag);
        assert_eq!(caller.get(&mut browser, &call).await, json!(["connected", path]));
        assert_eq!(callee.get(&mut browser, "taken").await, json!(["connected", path]));
    }
}

/// The code of the server's own page, as a function that a console can call: `tag` and what it fetches are given, `client` is kept.
const PRINTED: &str = "const code = document.querySelector('pre').innerText;
  window.logged = [];
  console.log = (text) => logged.push(text);
  window.fetch = async () => ({ text: async () => KEY });
  const AsyncFunction = (async () => {}).constructor;
  window.printed = (code, tag) => new AsyncFunction('tag', code
    .replace(/^import (.*) from (.*);$/m, 'const $1 = await import($2);')
    .replace('const client =', 'window.client ='))(tag);
  window.lines = code.split('\\n');
  true";

#[tokio::test]
async fn the_code_that_the_servers_page_prints_calls_and_is_called() {
    if !tools::have(&["chromium"]) {
        return;
    }
    let test_server = TestServer::on_loopback("");
    let mut browser = Browser::start();
    let mut tabs = Vec::new();
    for _ in 0..2 {
        let tab = browser.open(&format!("http://{}/", test_server.address)).await;
        browser.evaluate(&tab, TOOLS).await;
        browser.evaluate(&tab, &PRINTED.replace("KEY", &json!(test_server.key()).to_string())).await;
        tabs.push(tab);
    }
    // The one that is called runs what stands before the call.
    let first = "printed(lines.slice(0, lines.findIndex((line) => line.includes('client.call('))).join('\\n')).then(() => client.tag)";
    let tag = browser.evaluate(&tabs[0], first).await;
    assert!(tag.is_string(), "{tag}");
    browser.evaluate(&tabs[1], &format!("printed(lines.join('\\n'), {tag})")).await;
    wait(&mut browser, &tabs[1], "logged.includes('hello')").await;
    assert!(browser.evaluate(&tabs[0], "lines.join().includes('gk_')").await == false);
}

/// Replaces a page's client by one with relays of its own; returns its tag.
const RECONNECT: &str = "window.reconnect = async (iceServers) => {
    client.close();
    const { connect } = await import('/ginnel.js');
    window.client = await connect({ iceServers: async () => iceServers, iceTransportPolicy: 'relay' });
    client.listen();
    return client.tag;
  }; true";

/// The result of a relay-only call.
async fn refused(browser: &mut Browser, caller: &Client, tag: &Value) -> Value {
    let call = format!(
        "client.call({tag}, {{ timeout: 6000 }}).then(() => 'a channel', ({{ kind, message, relay }}) => [kind, relay?.errorCode, message])"
    );
    caller.get(browser, &call).await
}

fn assert_told(outcome: &Value, code: &Value, reason: &str) {
    assert_eq!((&outcome[0], &outcome[1]), (&json!("no-path"), code), "{outcome}");
    let message = outcome[2].as_str().unwrap();
    assert!(message.contains(reason) && !message.contains("blocked"), "{message}");
}

#[tokio::test]
async fn a_relay_refusal_reaches_the_page_with_its_reason() {
    if !tools::have(&["chromium"]) {
        return;
    }
    let (test_server, other) =
        (TestServer::on_loopback("allocations_per_user = 1"), TestServer::on_loopback(""));
    let mut browser = Browser::start();
    let caller = Client::new(&mut browser, &test_server, "relay").await;
    let callee = Client::new(&mut browser, &test_server, "relay").await;
    for client in [&caller, &callee] {
        client.get(&mut browser, RECONNECT).await;
    }
    // Each has a relayed address at another server, and neither relay may send to loopback.
    let elsewhere = format!("reconnect({}.iceServers)", other.printed_ice());
    let foreign = callee.get(&mut browser, &elsewhere).await;
    let outcome = refused(&mut browser, &caller, &foreign).await;
    assert_told(&outcome, &Value::Null, "403");
    // The only allocation of this user is taken already.
    let take = "(async () => {
        for (;;) {
          window.other = new RTCPeerConnection({ iceServers: client.iceServers, iceTransportPolicy: 'relay' });
          other.createDataChannel('');
          await other.setLocalDescription();
          await until(() => other.iceGatheringState === 'complete');
          if (other.localDescription.sdp.includes(' typ relay ')) return true;
          other.close(); // the allocation of the call before is still there
        }
      })()";
    assert_eq!(caller.get(&mut browser, take).await, true);
    assert_told(&refused(&mut browser, &caller, &foreign).await, &json!(486), "no more allocations");
    // Credentials that the server never gave out.
    let wrong =
        format!("[{{ urls: 'turn:{}', username: 'nobody', credential: 'nothing' }}]", test_server.address);
    caller.get(&mut browser, &format!("reconnect({wrong})")).await;
    assert_told(&refused(&mut browser, &caller, &foreign).await, &json!(401), "refused the credentials");
}
