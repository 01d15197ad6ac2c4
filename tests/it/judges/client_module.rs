//! `ginnel.js`, served by the server, in two tabs of headless Chromium.

use serde_json::{Value, json};

use super::devtools::{Browser, Tab};
use crate::lab::Net;
use crate::test_server::TestServer;
use crate::tools;

/// Helpers in a tab.
pub(super) const TOOLS: &str = "window.until = async (holds) => {
    while (!holds()) await new Promise((go) => setTimeout(go, 10));
    return true;
  };
  window.received = [];
  window.states = [];
  window.paths = [];
  window.ends = [];
  window.keep = (channel) => {
    window.channel = channel;
    channel.onmessage = ({ data }) => received.push(data);
    channel.onstate = ({ state, path }) => paths.push(path ? state + ' ' + path : state);
    channel.onclose = ({ error }) => ends.push(String(error));
    return channel.peer;
  };
  window.caught = (promise) => promise.then(
    (value) => ({ unexpected: String(value) }),
    ({ name, kind, code, stage }) => ({ name, kind, code, stage }));
  true";

/// A tab on the server's own page, with a registered client that takes calls.
pub(super) struct Client {
    tab: Tab,
    pub(super) tag: Value,
}

impl Client {
    pub(super) async fn new(browser: &mut Browser, test_server: &TestServer, policy: &str) -> Self {
        let tab = empty_tab(browser, test_server).await;
        let start = format!(
            "(async () => {{
               const {{ connect }} = await import('/ginnel.js');
               window.client = await connect({{ key: '{}', iceTransportPolicy: '{policy}' }});
               client.onstate = ({{ state }}) => states.push(state);
               client.oncall = ({{ channel }}) => keep(channel);
               client.listen();
               return client.tag;
             }})()",
            test_server.key()
        );
        let tag = browser.evaluate(&tab, &start).await;
        assert!(tag.is_string(), "{tag}");
        Self { tab, tag }
    }

    /// Calls `other` and has an open channel with it.
    async fn call(&self, browser: &mut Browser, other: &Self) {
        let script = format!("client.call({}).then(keep)", other.tag);
        assert_eq!(browser.evaluate(&self.tab, &script).await, other.tag);
        self.wait(browser, "channel.path !== undefined").await;
        other
            .wait(browser, &format!("window.channel?.peer === {} && channel.readyState === 'open' && channel.path !== undefined", self.tag))
            .await;
    }

    async fn send(&self, browser: &mut Browser, text: &str) {
        browser.evaluate(&self.tab, &format!("channel.send({})", json!(text))).await;
    }

    /// Waits until a text was received.
    async fn receive(&self, browser: &mut Browser, text: &str) {
        self.wait(browser, &format!("received.includes({})", json!(text))).await;
    }

    /// Waits until an expression holds.
    async fn wait(&self, browser: &mut Browser, holds: &str) {
        assert_eq!(browser.evaluate(&self.tab, &format!("until(() => {holds})")).await, true);
    }

    /// The value of an expression.
    pub(super) async fn get(&self, browser: &mut Browser, expression: &str) -> Value {
        browser.evaluate(&self.tab, expression).await
    }
}

async fn empty_tab(browser: &mut Browser, test_server: &TestServer) -> Tab {
    let tab = browser.open(&format!("http://{}/", test_server.address)).await;
    browser.evaluate(&tab, TOOLS).await;
    tab
}

/// Text both ways.
async fn exchange(browser: &mut Browser, [left, right]: [&Client; 2], words: &str) {
    for (from, to) in [(left, right), (right, left)] {
        let text = format!("{words}, from {}", from.tag);
        from.send(browser, &text).await;
        to.receive(browser, &text).await;
    }
}

#[tokio::test]
async fn two_tabs_connect_by_tag_and_exchange_text_both_ways() {
    if !tools::have(&["chromium"]) {
        return;
    }
    let test_server = TestServer::on_loopback("");
    let mut browser = Browser::start();
    let caller = Client::new(&mut browser, &test_server, "all").await;
    let callee = Client::new(&mut browser, &test_server, "all").await;
    caller.call(&mut browser, &callee).await;
    exchange(&mut browser, [&caller, &callee], "héllo").await;
    for client in [&caller, &callee] {
        assert_eq!(client.get(&mut browser, "channel.path").await, "direct");
    }
    // One side closes it and the other side notices.
    caller.get(&mut browser, "channel.close()").await;
    for client in [&caller, &callee] {
        client.wait(&mut browser, "ends.length === 1 && channel.readyState === 'closed'").await;
    }
    // So it is with a whole client; neither end is an error.
    callee.call(&mut browser, &caller).await;
    callee.get(&mut browser, "client.close()").await;
    for client in [&caller, &callee] {
        client.wait(&mut browser, "ends.length === 2 && channel.readyState === 'closed'").await;
        assert_eq!(client.get(&mut browser, "ends").await, json!(["undefined", "undefined"]));
    }
    assert_eq!(callee.get(&mut browser, "client.state").await, "closed");
}

#[tokio::test]
async fn channels_and_tags_outlive_a_restart_of_the_server_and_a_new_call_works() {
    if !tools::have(&["chromium"]) {
        return;
    }
    let mut test_server = TestServer::on_loopback("");
    let mut browser = Browser::start();
    let caller = Client::new(&mut browser, &test_server, "all").await;
    let callee = Client::new(&mut browser, &test_server, "all").await;
    caller.call(&mut browser, &callee).await;
    exchange(&mut browser, [&caller, &callee], "before").await;
    test_server.restart();
    for client in [&caller, &callee] {
        client.wait(&mut browser, "states.includes('offline') && client.state === 'online'").await;
        assert_eq!(client.get(&mut browser, "client.tag").await, client.tag);
        assert_eq!(
            client.get(&mut browser, "[channel.readyState, ends, paths.includes('interrupted')]").await,
            json!(["open", [], false])
        );
    }
    exchange(&mut browser, [&caller, &callee], "after").await;
    callee.call(&mut browser, &caller).await;
    exchange(&mut browser, [&caller, &callee], "over a new channel").await;
}

#[tokio::test]
async fn refusals_reach_the_page_as_errors_with_their_codes() {
    if !tools::have(&["chromium"]) {
        return;
    }
    let test_server = TestServer::on_loopback("");
    let mut browser = Browser::start();
    let caller = Client::new(&mut browser, &test_server, "all").await;
    let callee = Client::new(&mut browser, &test_server, "all").await;
    let error = |kind: &str, code: u16| json!({ "name": "GinnelError", "kind": kind, "code": code, "stage": "signal" });
    // A key function is called at each registration.
    let renewed = format!(
        "(async () => {{
           const {{ connect }} = await import('/ginnel.js');
           let requests = 0;
           const sockets = [];
           const WebSocket = class extends window.WebSocket {{
             constructor(url) {{ sockets.push(super(url)); }}
           }};
           const client = await connect({{ WebSocket, key: async () => (requests += 1, '{}') }});
           sockets[0].close();
           await until(() => sockets.length === 2 && client.state === 'online');
           const relayed = client.iceServers.some(({{ credential }}) => credential);
           client.close();
           const none = await caught(connect({{ key: () => {{ throw new TypeError('no key today'); }} }}));
           return [requests, relayed, none.name];
         }})()",
        test_server.key()
    );
    assert_eq!(caller.get(&mut browser, &renewed).await, json!([2, true, "TypeError"]));
    let wrong_key = "(async () => caught((await import('/ginnel.js')).connect({ key: 'a wrong one' })))()";
    assert_eq!(caller.get(&mut browser, wrong_key).await, error("not-allowed", 204));
    let nobody = "caught(client.call('abcdefghijklmnopqrstuvwx'))";
    assert_eq!(caller.get(&mut browser, nobody).await, error("not-online", 203));
    let elsewhere = "(async () => caught((await import('/ginnel.js')).connect({ server: '127.0.0.1:9' })))()";
    assert_eq!(caller.get(&mut browser, elsewhere).await, error("unreachable", 0));
    // The callee learns the caller and may refuse.
    let refuse = "client.listen({ accept: (from) => !(window.caller = from) }); true";
    callee.get(&mut browser, refuse).await;
    let call = format!("caught(client.call({}))", callee.tag);
    assert_eq!(caller.get(&mut browser, &call).await, error("not-allowed", 204));
    assert_eq!(callee.get(&mut browser, "caller").await, caller.tag);
}

#[tokio::test]
async fn a_replaced_client_learns_the_reason_and_does_not_reconnect() {
    if !tools::have(&["chromium"]) {
        return;
    }
    let test_server = TestServer::on_loopback("");
    let mut browser = Browser::start();
    let start = "(async () => {
        const { connect } = await import('/ginnel.js');
        window.client = await connect({ secret: 'a secret that two tabs share' });
        client.onstate = ({ state }) => states.push(state);
        client.onclose = ({ error }) => ends.push(`${error.kind} ${error.code}`);
        return client.tag;
      })()";
    let (older, newer) =
        (empty_tab(&mut browser, &test_server).await, empty_tab(&mut browser, &test_server).await);
    let tag = browser.evaluate(&older, start).await;
    assert_eq!(browser.evaluate(&newer, start).await, tag);
    let ends = browser.evaluate(&older, "until(() => ends.length > 0).then(() => ends)").await;
    assert_eq!(ends, json!(["replaced 210"]));
    // Two that took turns would do so within a second.
    let later = "new Promise((go) => setTimeout(() => go(states), 3000))";
    assert_eq!(browser.evaluate(&newer, later).await, json!([]), "the newer one notices nothing");
    assert_eq!(browser.evaluate(&older, "client.state").await, "closed");
}

#[tokio::test]
async fn a_tag_of_a_key_is_the_same_on_every_server_and_outlives_a_restart() {
    if !tools::have(&["chromium"]) {
        return;
    }
    let (mut test_server, other) = (TestServer::on_loopback(""), TestServer::on_loopback(""));
    let mut browser = Browser::start();
    let tab = empty_tab(&mut browser, &test_server).await;
    let start = format!(
        "(async () => {{
          const {{ connect, createIdentity }} = await import('/ginnel.js');
          const identity = await createIdentity();
          window.client = await connect({{ identity }});
          client.onstate = ({{ state }}) => states.push(state);
          const elsewhere = await connect({{ identity, server: '{}' }});
          const other = await connect({{ identity: await createIdentity() }});
          return [client.secret === undefined, identity.privateKey.extractable, elsewhere.tag === client.tag,
            other.tag === client.tag];
        }})()",
        other.address
    );
    assert_eq!(browser.evaluate(&tab, &start).await, json!([true, false, true, false]));
    let tag = browser.evaluate(&tab, "client.tag").await;
    test_server.restart();
    let back = "until(() => states.includes('offline') && client.state === 'online').then(() => client.tag)";
    assert_eq!(browser.evaluate(&tab, back).await, tag);
}

#[tokio::test]
async fn messages_wait_for_their_first_listener_up_to_a_cap() {
    if !tools::have(&["chromium"]) {
        return;
    }
    let test_server = TestServer::on_loopback("");
    let mut browser = Browser::start();
    let caller = Client::new(&mut browser, &test_server, "all").await;
    let callee = Client::new(&mut browser, &test_server, "all").await;
    // The callee iterates, and listens to nothing yet.
    let iterate = "client.oncall = null;
      window.calls = client.listen()[Symbol.asyncIterator]();
      window.first = calls.next();
      true";
    callee.get(&mut browser, iterate).await;
    let call = format!("client.call({}).then(keep)", callee.tag);
    caller.get(&mut browser, &call).await;
    caller.get(&mut browser, "for (let i = 0; i < 1000; i++) channel.send('message ' + i); true").await;
    let late = "(async () => {
      const { value } = await first;
      await new Promise((go) => setTimeout(go, 200));
      keep(value);
      await until(() => received.length === 1000);
      return received.every((text, i) => text === 'message ' + i);
    })()";
    assert_eq!(callee.get(&mut browser, late).await, true);
    // A second channel is never listened to, and gets more than waits.
    caller.get(&mut browser, &call).await;
    caller
        .get(&mut browser, "for (let i = 0; i < 300; i++) channel.send(('message ' + i).padEnd(4096)); true")
        .await;
    let over = "(async () => {
      const { value } = await calls.next();
      return await new Promise((resolve) => {
        value.onclose = ({ error }) => resolve(error.kind);
        if (value.readyState === 'closed') resolve('closed before');
      });
    })()";
    let outcome = callee.get(&mut browser, over).await;
    assert!(outcome == "queue-full" || outcome == "closed before", "{outcome}");
    caller.wait(&mut browser, "ends.length === 1").await;
}

#[tokio::test]
async fn a_channel_and_a_tag_recover_after_a_network_outage() {
    if !tools::have(&["chromium"]) || !tools::have_laboratory() {
        return;
    }
    let net = Net::new();
    let (server_host, caller_host, callee_host) = (net.public(10), net.public(20), net.public(30));
    let test_server = TestServer::on(&server_host);
    let (mut here, mut there) = (Browser::start_on(&caller_host), Browser::start_on(&callee_host));
    let caller = Client::new(&mut here, &test_server, "all").await;
    let callee = Client::new(&mut there, &test_server, "all").await;
    caller.get(&mut here, &format!("client.call({}).then(keep)", callee.tag)).await;
    caller.send(&mut here, "before").await;
    callee.receive(&mut there, "before").await;
    callee_host.link(false);
    caller.wait(&mut here, "paths.includes('interrupted')").await;
    callee.wait(&mut there, "states.includes('offline')").await;
    callee_host.link(true);
    callee.wait(&mut there, "client.state === 'online'").await;
    assert_eq!(callee.get(&mut there, "client.tag").await, callee.tag);
    for (client, browser) in [(&caller, &mut here), (&callee, &mut there)] {
        client.wait(browser, "channel.state === 'connected'").await;
        assert_eq!(client.get(browser, "ends").await, json!([]));
    }
    caller.send(&mut here, "after").await;
    callee.receive(&mut there, "after").await;
    callee.send(&mut there, "and back").await;
    caller.receive(&mut here, "and back").await;
}

#[tokio::test]
async fn a_page_learns_of_presence_changes_and_of_its_replacement() {
    if !tools::have(&["chromium"]) {
        return;
    }
    let test_server = TestServer::on_loopback("");
    let mut browser = Browser::start();
    let watcher = Client::new(&mut browser, &test_server, "all").await;
    let watched = Client::new(&mut browser, &test_server, "all").await;
    let watch = format!(
        "(async () => {{
           window.presence = [];
           client.onpresence = ({{ tag, online }}) => presence.push([tag, online]);
           return [...await client.watch([{}, 'abcdefghijklmnopqrstuvwx'])];
         }})()",
        watched.tag
    );
    let standing = json!([[watched.tag, true], ["abcdefghijklmnopqrstuvwx", false]]);
    assert_eq!(watcher.get(&mut browser, &watch).await, standing);
    // A newer client with the same secret takes the tag: the older one is notified, the watcher is not.
    let replace = "(async () => {
        const { connect } = await import('/ginnel.js');
        window.replaced = new Promise((resolve) => (client.onclose = ({ error }) => resolve(error.kind)));
        window.newer = await connect({ secret: client.secret });
        return [await replaced, newer.tag];
      })()";
    assert_eq!(watched.get(&mut browser, replace).await, json!(["replaced", watched.tag]));
    assert_eq!(watcher.get(&mut browser, "presence").await, json!([]));
    watched.get(&mut browser, "newer.close()").await;
    watcher.wait(&mut browser, "presence.length === 1").await;
    assert_eq!(watcher.get(&mut browser, "presence").await, json!([[watched.tag, false]]));
}
