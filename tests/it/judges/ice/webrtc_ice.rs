//! `webrtc-ice`, the agent of webrtc-rs. It nominates one pair for ever, and clears its pairs at a restart.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ginnel::ice::IceRole;
use tokio::sync::mpsc::{self, UnboundedSender};
use webrtc_ice::agent::Agent;
use webrtc_ice::agent::agent_config::AgentConfig;
use webrtc_ice::candidate::candidate_base::unmarshal_candidate;
use webrtc_ice::candidate::{Candidate, CandidateType};
use webrtc_ice::mdns::MulticastDnsMode;
use webrtc_ice::network_type::NetworkType;
use webrtc_ice::state::ConnectionState;
use webrtc_util::Conn;

use super::ROLES;
use super::driver::{Foreign, News, Order, Session};

async fn start(ours: IceRole) -> Foreign {
    let (orders, taken) = mpsc::unbounded_channel();
    let (sender, news) = mpsc::unbounded_channel();
    let config = AgentConfig {
        multicast_dns_mode: MulticastDnsMode::Disabled,
        network_types: vec![NetworkType::Udp4],
        candidate_types: vec![CandidateType::Host],
        is_controlling: ours == IceRole::Controlled,
        include_loopback: true,
        ip_filter: Arc::new(Some(Box::new(|ip: IpAddr| ip.is_loopback()))),
        ..AgentConfig::default()
    };
    let agent = Arc::new(Agent::new(config).await.unwrap());
    report(&agent, &sender);
    tokio::spawn(run(agent, config_role(ours), taken, sender));
    Foreign::new(orders, news)
}

fn config_role(ours: IceRole) -> IceRole {
    if ours == IceRole::Controlling { IceRole::Controlled } else { IceRole::Controlling }
}

fn report(agent: &Arc<Agent>, sender: &UnboundedSender<News>) {
    let candidates = sender.clone();
    agent.on_candidate(Box::new(move |candidate| {
        candidates
            .send(candidate.map_or(News::EndOfCandidates, |candidate| News::Candidate(candidate.marshal())))
            .ok();
        Box::pin(async {})
    }));
    let states = sender.clone();
    agent.on_connection_state_change(Box::new(move |state| {
        let is_connected = matches!(state, ConnectionState::Connected | ConnectionState::Completed);
        states.send(News::Connected(is_connected)).ok();
        Box::pin(async {})
    }));
    let pairs = sender.clone();
    agent.on_selected_candidate_pair_change(Box::new(move |local, remote| {
        let (local, remote): (SocketAddr, SocketAddr) = (local.addr(), remote.addr());
        pairs.send(News::Pair { local, remote }).ok();
        Box::pin(async {})
    }));
}

async fn gather(agent: &Agent, sender: &UnboundedSender<News>) {
    let (ufrag, password) = agent.get_local_user_credentials().await;
    sender.send(News::Credentials { ufrag, password }).ok();
    agent.gather_candidates().unwrap();
}

async fn run(
    agent: Arc<Agent>,
    role: IceRole,
    mut orders: mpsc::UnboundedReceiver<Order>,
    sender: UnboundedSender<News>,
) {
    gather(&agent, &sender).await;
    let (opened, mut connection) = mpsc::unbounded_channel();
    let mut conn: Option<Arc<dyn Conn + Send + Sync>> = None;
    let mut is_started = false;
    loop {
        let order = tokio::select! {
            Some(open) = connection.recv() => {
                conn = Some(open);
                continue;
            }
            order = orders.recv() => order,
        };
        match order {
            Some(Order::Remote { ufrag, password }) if is_started => {
                agent.set_remote_credentials(ufrag, password).await.unwrap();
            }
            Some(Order::Remote { ufrag, password }) => {
                is_started = true;
                tokio::spawn(connect(
                    Arc::clone(&agent),
                    role,
                    (ufrag, password),
                    opened.clone(),
                    sender.clone(),
                ));
            }
            Some(Order::Candidate(text)) => {
                let text = text.trim_start_matches("candidate:");
                let candidate: Arc<dyn Candidate + Send + Sync> =
                    Arc::new(unmarshal_candidate(text).unwrap());
                agent.add_remote_candidate(&candidate).unwrap();
            }
            Some(Order::EndOfCandidates) => {}
            Some(Order::Restart) => {
                agent.restart(String::new(), String::new()).await.unwrap();
                gather(&agent, &sender).await;
            }
            Some(Order::Send(text)) => {
                if let Some(conn) = &conn {
                    conn.send(&[b"\x80", text.as_bytes()].concat()).await.unwrap();
                }
            }
            None => break,
        }
    }
    agent.close().await.ok();
}

async fn connect(
    agent: Arc<Agent>,
    role: IceRole,
    (ufrag, password): (String, String),
    opened: UnboundedSender<Arc<dyn Conn + Send + Sync>>,
    sender: UnboundedSender<News>,
) {
    // Dropping the sender would cancel the checks.
    let (_keep, cancelled) = mpsc::channel(1);
    let conn: Arc<dyn Conn + Send + Sync> = match role {
        IceRole::Controlling => agent.dial(cancelled, ufrag, password).await.unwrap(),
        IceRole::Controlled => agent.accept(cancelled, ufrag, password).await.unwrap(),
    };
    opened.send(Arc::clone(&conn)).ok();
    let mut buffer = [0; 2048];
    while let Ok(len) = conn.recv(&mut buffer).await {
        sender.send(News::Data(String::from_utf8_lossy(&buffer[1..len]).into_owned())).ok();
    }
}

#[tokio::test]
async fn webrtc_ice_connects_in_both_roles_and_keeps_the_path() {
    for role in ROLES {
        let mut session = Session::new(role, false, start(role).await).await;
        session.connect().await;
        session.exchange("first").await;
        session.keep().await;
        session.exchange("second").await;
    }
}

#[tokio::test]
async fn webrtc_ice_restarts_with_ours() {
    for role in ROLES {
        let mut session = Session::new(role, false, start(role).await).await;
        session.connect().await;
        session.restart().await;
        session.exchange("after the restart").await;
    }
}

#[tokio::test]
async fn webrtc_ice_moves_to_another_path_with_ours_by_a_restart() {
    for role in ROLES {
        let mut session = Session::new(role, false, start(role).await).await;
        session.connect().await;
        session.lose_selected().await;
        session.restart().await;
        session.exchange("on the other path").await;
    }
}
