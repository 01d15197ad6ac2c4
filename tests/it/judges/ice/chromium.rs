//! Chromium, at the level of ICE: what follows never begins, since our side has no DTLS.

use std::time::Duration;

use ginnel::ice::{IceRole, IceState};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use super::ROLES;
use super::driver::{Foreign, News, Order, Session};
use super::process::{from_json, to_json};
use crate::judges::devtools::Browser;
use crate::tools;

/// How often the page's news are fetched.
const PERIOD: Duration = Duration::from_millis(50);

/// A connection, its news, and what it does with orders. `ROLE` is that of the page.
const PAGE: &str = r"
  window.news = [];
  const report = (kind, fields = {}) => news.push({ news: kind, ...fields });
  const value = (sdp, name) => sdp.match(new RegExp(`^a=${name}:(.*)$`, 'm'))[1].trim();
  window.connection = new RTCPeerConnection();
  if (ROLE === 'controlling') connection.createDataChannel('judge');
  connection.onicecandidate = ({ candidate }) => {
    if (candidate?.candidate) report('candidate', { candidate: candidate.candidate });
    else if (!candidate) report('end');
  };
  connection.oniceconnectionstatechange = () => {
    const state = connection.iceConnectionState;
    report('connected', { connected: state === 'connected' || state === 'completed' });
  };
  let known;
  window.look = async () => {
    const stats = await connection.getStats();
    const transport = [...stats.values()].find(({ type }) => type === 'transport');
    const pair = transport && stats.get(transport.selectedCandidatePairId);
    if (pair) {
      const text = ({ address, port }) => `${address}:${port}`;
      const [local, remote] = [pair.localCandidateId, pair.remoteCandidateId].map((id) => text(stats.get(id)));
      if (known !== local + remote) report('pair', { local, remote });
      known = local + remote;
    }
    return news.splice(0);
  };
  const own = async () => {
    await connection.setLocalDescription();
    const { sdp } = connection.localDescription;
    report('credentials', { ufrag: value(sdp, 'ice-ufrag'), password: value(sdp, 'ice-pwd') });
  };
  const describe = ({ ufrag, password }) => [
    'v=0', 'o=- 1 ' + (window.version = (window.version ?? 0) + 1) + ' IN IP4 127.0.0.1', 's=-', 't=0 0',
    'a=group:BUNDLE 0', 'm=application 9 UDP/DTLS/SCTP webrtc-datachannel', 'c=IN IP4 0.0.0.0', 'a=mid:0',
    'a=ice-options:trickle OPTIONS', 'a=ice-ufrag:' + ufrag, 'a=ice-pwd:' + password,
    'a=fingerprint:sha-256 ' + Array(32).fill('AB').join(':'),
    'a=setup:' + (ROLE === 'controlling' ? 'active' : 'actpass'), 'a=sctp-port:5000', ''].join('\r\n');
  let done = Promise.resolve();
  window.order = (order) => (done = done.then(async () => {
    if (order.order === 'remote' && ROLE === 'controlling') {
      await connection.setRemoteDescription({ type: 'answer', sdp: describe(order) });
    } else if (order.order === 'remote') {
      await connection.setRemoteDescription({ type: 'offer', sdp: describe(order) });
      await own();
    } else if (order.order === 'candidate') {
      await connection.addIceCandidate({ candidate: order.candidate, sdpMid: '0' });
    } else if (order.order === 'restart' && ROLE === 'controlling') {
      connection.restartIce();
      await own();
    }
  }));
  if (ROLE === 'controlling') done = done.then(own);
  true";

async fn start(ours: IceRole, options: &str) -> Foreign {
    let (orders, taken) = mpsc::unbounded_channel();
    let (sender, news) = mpsc::unbounded_channel();
    let role = if ours == IceRole::Controlling { "controlled" } else { "controlling" };
    let page = format!("{{ const ROLE = '{role}'; {} }}", PAGE.replace("OPTIONS", options));
    let mut browser = Browser::start();
    let tab = browser.open("about:blank").await;
    browser.evaluate(&tab, &page).await;
    tokio::spawn(run(browser, tab, taken, sender));
    Foreign::new(orders, news)
}

async fn run(
    mut browser: Browser,
    tab: crate::judges::devtools::Tab,
    mut orders: UnboundedReceiver<Order>,
    sender: UnboundedSender<News>,
) {
    let mut ticks = tokio::time::interval(PERIOD);
    loop {
        tokio::select! {
            order = orders.recv() => {
                let Some(order) = order else { return };
                browser.evaluate(&tab, &format!("order({})", to_json(order))).await;
            }
            _ = ticks.tick() => {
                let news = browser.evaluate(&tab, "look()").await;
                for news in news.as_array().into_iter().flatten().filter_map(from_json) {
                    sender.send(news).ok();
                }
            }
        }
    }
}

#[tokio::test]
async fn chromium_connects_in_both_roles_and_keeps_consent() {
    if !tools::have(&["chromium"]) {
        return;
    }
    for role in ROLES {
        let mut session = Session::new(role, false, start(role, "").await).await;
        session.connect().await;
        session.keep().await;
    }
}

#[tokio::test]
async fn chromium_restarts_with_ours() {
    if !tools::have(&["chromium"]) {
        return;
    }
    for role in ROLES {
        let mut session = Session::new(role, false, start(role, "").await).await;
        session.connect().await;
        session.restart().await;
        session.keep().await;
    }
}

#[tokio::test]
async fn chromium_moves_to_another_path_with_ours() {
    if !tools::have(&["chromium"]) {
        return;
    }
    for (role, renomination) in
        [(IceRole::Controlling, false), (IceRole::Controlling, true), (IceRole::Controlled, false)]
    {
        let options = if renomination { "renomination" } else { "" };
        let mut session = Session::new(role, renomination, start(role, options).await).await;
        session.connect().await;
        session.lose_selected().await;
        session.wait("agreed on the other path", Session::is_agreed).await;
        assert_eq!(session.ours.agent.state(), IceState::Connected, "{role:?} {renomination}");
    }
}

#[tokio::test]
async fn chromium_connects_over_tcp_in_both_roles() {
    if !tools::have(&["chromium"]) {
        return;
    }
    for role in ROLES {
        let mut session = Session::over_tcp(role, start(role, "").await).await;
        session.connect().await;
        session.keep().await;
    }
}
