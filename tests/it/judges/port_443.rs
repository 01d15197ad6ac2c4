//! Two Chromium pages in networks that let out only TCP to port 443.

use serde_json::json;

use super::chromium::Trusted;
use super::client_module::TOOLS;
use super::devtools::Browser;
use crate::authority::Authority;
use crate::lab::{NatKind, Net};
use crate::test_server::TestServer;
use crate::tools;

/// The name that [`Browser`] resolves to the laboratory's 203.0.113.10.
const NAME: &str = "turn.example";

#[tokio::test]
async fn two_pages_that_reach_only_port_443_connect_by_the_servers_name() {
    if !tools::have(&["chromium"]) || !tools::have_laboratory() {
        return;
    }
    let authority = Authority::naming(&[NAME]);
    let _trusted = Trusted::new(&authority);
    let net = Net::new();
    let test_server = TestServer::named(&net.island(10), &authority, 443);
    let hosts = [21, 22].map(|octet| net.behind(&net.nat(NatKind::Port443, octet)));
    let mut pages = Vec::new();
    for host in &hosts {
        let mut browser = Browser::start_on(host);
        let tab = browser.open(&format!("https://{NAME}/")).await;
        browser.evaluate(&tab, TOOLS).await;
        let start = format!(
            "(async () => {{
               const {{ connect }} = await import('/ginnel.js');
               window.client = await connect({{ key: '{}' }});
               client.oncall = ({{ channel }}) => keep(channel);
               client.listen();
               return client.tag;
             }})()",
            test_server.key()
        );
        let tag = browser.evaluate(&tab, &start).await;
        pages.push((browser, tab, tag));
    }
    let callee = pages[1].2.clone();
    let (browser, tab, _) = &mut pages[0];
    let call = format!("client.call({callee}).then((channel) => (keep(channel), channel.path))");
    assert_eq!(browser.evaluate(tab, &call).await, "relay", "{}", test_server.process.printed());
    for (from, to) in [(0, 1), (1, 0)] {
        let (browser, tab, _) = &mut pages[from];
        browser
            .evaluate(tab, &format!("until(() => window.channel).then(() => channel.send('from {from}'))"))
            .await;
        let (browser, tab, _) = &mut pages[to];
        let received = format!("until(() => received.includes('from {from}'))");
        assert_eq!(browser.evaluate(tab, &received).await, true);
    }
    for (browser, tab, _) in &mut pages {
        let relay = "(async () => {
            const stats = await channel.connection.getStats();
            const { selectedCandidatePairId } = [...stats.values()].find(({ type }) => type === 'transport');
            const { candidateType, relayProtocol, url } = stats.get(stats.get(selectedCandidatePairId).localCandidateId);
            return [candidateType, relayProtocol, url];
          })()";
        let expected = json!(["relay", "tls", format!("turns:{NAME}:443?transport=tcp")]);
        assert_eq!(browser.evaluate(tab, relay).await, expected);
    }
}
