//! What many sessions cost one process, and what those who misbehave cost the others.

use std::sync::Arc;
use std::time::Duration;

use ginnel::agent::{Agent, Config, Connection, Ticket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::test_server::TestServer;
use crate::tools;
use crate::waiting::{wait_until, wait_until_steady};

const UP: Duration = Duration::from_secs(30);
/// Descriptors that may come and go: timers and connections of the runtime.
const SLACK: usize = 4;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn config(server: &TestServer) -> Config {
    Config::new().server(server.address.to_string().parse().unwrap()).key(server.key()).port_mapping(false)
}

fn test_server() -> TestServer {
    TestServer::on_loopback("allow_peers = [\"127.0.0.0/8\"]\n")
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

/// Answers every connection with what it sends.
async fn echo(connection: Connection) {
    if let Ok((mut send, mut recv)) = connection.accept_bi().await
        && tokio::io::copy(&mut recv, &mut send).await.is_ok()
        && send.finish().await.is_ok()
    {
        let _ = connection.finish().await;
    }
}

async fn talk(connection: Connection) {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(b"hello").await.unwrap();
    send.finish().await.unwrap();
    let mut echo = String::new();
    recv.read_to_string(&mut echo).await.unwrap();
    assert_eq!(echo, "hello");
    connection.finish().await.unwrap();
}

/// Lets so many sessions begin and end one after the other; the process has no more afterwards than after the first ones.
fn assert_nothing_is_left(sessions: usize) {
    const FIRST: usize = 3;
    let server = test_server();
    let runtime = runtime();
    let (ticket, listening) = runtime.block_on(async {
        let mut listener = Agent::new(config(&server)).listen().await.unwrap();
        let ticket = listener.ticket().clone();
        let listening = tokio::spawn(async move {
            while let Some(Ok(connection)) = listener.accept().await {
                tokio::spawn(echo(connection));
            }
        });
        (ticket, listening)
    });
    let session = |ticket: &Ticket| {
        runtime.block_on(async {
            talk(Agent::new(config(&server)).connect(ticket).await.unwrap()).await;
        });
    };
    let tasks = || runtime.metrics().num_alive_tasks();
    (0..FIRST).for_each(|_| session(&ticket));
    let (open, alive) = wait_until_steady(UP, Duration::from_secs(1), || (descriptors(), tasks()));
    let resident = resident_kib();
    (0..sessions).for_each(|_| session(&ticket));
    wait_until(UP, "descriptors or tasks are left", || {
        descriptors() <= open + SLACK && tasks() <= alive + SLACK
    });
    let grown = resident_kib().saturating_sub(resident);
    let now = format!("{} descriptors, {} tasks", descriptors(), tasks());
    tools::print(&format!("{sessions} sessions: {now}; before {open}, {alive}; {grown} KiB more"));
    // The allocator keeps what a few sessions have used; a leak grows with their number.
    assert!(grown < 32 * 1024, "{grown} KiB for {sessions} sessions");
    listening.abort();
}

#[test]
fn sessions_that_have_ended_leave_no_descriptors_and_no_tasks() {
    assert_nothing_is_left(10);
}

#[test]
#[ignore = "long: 200 sessions one after the other in one process"]
fn long_endurance() {
    assert_nothing_is_left(tools::switch("GINNEL_LONG_RUNS", 200));
}

#[test]
fn half_of_many_connectors_may_be_silent() {
    const CONNECTORS: usize = 50;
    // A listener negotiates eight calls at a time, and refuses more.
    const AT_ONCE: usize = 6;
    let server = test_server();
    runtime().block_on(async {
        let mut listener = Agent::new(config(&server)).listen().await.unwrap();
        let ticket = listener.ticket().clone();
        tokio::spawn(async move {
            while let Some(accepted) = listener.accept().await {
                if let Ok(connection) = accepted {
                    tokio::spawn(echo(connection));
                }
            }
        });
        let (mut connectors, negotiating) = (JoinSet::new(), Arc::new(Semaphore::new(AT_ONCE)));
        for number in 0..CONNECTORS {
            let (agent, ticket) = (Agent::new(config(&server)), ticket.clone());
            let negotiating = Arc::clone(&negotiating);
            connectors.spawn(async move {
                let permit = negotiating.acquire_owned().await.unwrap();
                let connection = agent.connect(&ticket).await;
                let connection = connection.unwrap_or_else(|error| panic!("{number}: {error}"));
                drop(permit);
                // The silent ones stay as they are until all others have talked.
                match number % 2 {
                    0 => Some(connection),
                    _ => {
                        talk(connection).await;
                        None
                    }
                }
            });
        }
        let ended = tokio::time::timeout(2 * UP, connectors.join_all()).await.unwrap();
        assert_eq!(ended.iter().flatten().count(), CONNECTORS / 2);
    });
}
