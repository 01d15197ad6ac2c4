//! Short codes: two agents find each other by one, and neither others nor the server profit from it.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use futures_util::{SinkExt, StreamExt};
use ginnel::agent::{
    Agent, CodeEnd, CodeEvent, Config, ConnectError, Connection, ConnectionError, Listener, OfferedCode,
    Refusal, ShortCode, TicketLimits,
};
use serde_json::Value;
use spake2::{Ed25519Group, Identity, Password, Spake2};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{accept_async, connect_async};

use crate::proc::{Proc, Stdout};
use crate::recording_proxy::RecordingProxy;
use crate::test_server::TestServer;
use crate::waiting::wait_for;

const UP: Duration = Duration::from_secs(30);

fn agent(name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Proc {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
    for name in ["AGENT_KEY", "AGENT_TICKET", "AGENT_CODE"] {
        command.env_remove(name);
    }
    command.args(arguments).envs(environment.iter().copied());
    Proc::start(name, command, Stdout::Pipe)
}

fn config(server: SocketAddr, key: Option<&str>) -> Config {
    let config = Config::new().server(server.to_string().parse().unwrap());
    match key {
        Some(key) => config.key(key),
        None => config,
    }
}

async fn listen(server: SocketAddr, test_server: &TestServer) -> Listener {
    Agent::new(config(server, Some(&test_server.key()))).listen().await.unwrap()
}

async fn connect(server: SocketAddr, code: &ShortCode) -> Result<Connection, ConnectError> {
    Agent::new(config(server, None)).connect_code(code).await
}

/// Returns the code with other words.
fn with_wrong_words(code: &ShortCode) -> ShortCode {
    let words = if code.to_string().ends_with("-zoo-zone") { "zone-zoo" } else { "zoo-zone" };
    format!("{}-{words}", code.locator()).parse().unwrap()
}

/// Sends a line over a new stream and returns what the other side received.
async fn exchange(connector: &Connection, listener: &Connection) -> String {
    let (mut send, _recv) = connector.open_bi().await.unwrap();
    send.write_all(b"hello").await.unwrap();
    let (sent, received) = tokio::join!(send.finish(), async {
        let (_send, mut recv) = listener.accept_bi().await.unwrap();
        let mut text = String::new();
        recv.read_to_string(&mut text).await.unwrap();
        text
    });
    sent.unwrap();
    received
}

/// The code that a listener prints to programs after those that were `known`.
fn code(listener: &Proc, known: &[&str]) -> String {
    listener.expect("code", UP, |line| {
        let event: Value = serde_json::from_str(line).ok()?;
        let code = event["code"].as_str().filter(|code| event["t"] == "code" && !known.contains(code))?;
        Some(code.to_owned())
    })
}

#[test]
fn a_code_is_typed_read_from_the_environment_or_from_a_descriptor() {
    let test_server = TestServer::on_loopback("");
    let (server, key) = (test_server.address.to_string(), test_server.key());
    for way in ["argument", "environment", "descriptor"] {
        let mut listener = agent("listener", &["listen", "--server", &server], &[("AGENT_KEY", &key)]);
        let typed =
            listener.expect("command", UP, |line| line.strip_prefix("    agent connect ").map(str::to_owned));
        listener.expect("rules", UP, |line| (line == "    (10 min, one use)").then_some(()));
        let code = typed.rsplit(' ').next().unwrap();
        let (folder, connect) = (tempfile::tempdir().unwrap(), ["connect", "--server", &server]);
        let mut connector = match way {
            "argument" => {
                let words: Vec<&str> = std::iter::once("connect").chain(typed.split(' ')).collect();
                agent("connector", &words, &[])
            }
            "environment" => agent("connector", &connect, &[("AGENT_CODE", code)]),
            _ => {
                let file = folder.path().join("code");
                std::fs::write(&file, format!("{code}\n")).unwrap();
                let mut command = Command::new("sh");
                let program = format!("exec \"$0\" \"$@\" --code-fd 3 3< {}", file.display());
                command.args(["-c", &program, env!("CARGO_BIN_EXE_agent")]).args(connect);
                command.env_remove("AGENT_TICKET");
                Proc::start("connector", command, Stdout::Pipe)
            }
        };
        let (mut to_listener, _) = connector.take_pipes();
        let (to_connector, mut from_listener) = listener.take_pipes();
        to_listener.write_all(b"hello\n").unwrap();
        drop((to_listener, to_connector));
        let mut received = String::new();
        from_listener.read_to_string(&mut received).unwrap();
        assert_eq!(received, "hello\n", "{way}\n{}\n{}", connector.printed(), listener.printed());
        listener.succeed(UP);
        connector.succeed(UP);
    }
}

#[test]
fn three_wrong_codes_burn_the_code_and_both_sides_say_so() {
    let test_server = TestServer::on_loopback("");
    let (server, key) = (test_server.address.to_string(), test_server.key());
    let mut listener = agent("listener", &["listen", "--server", &server, "--json"], &[("AGENT_KEY", &key)]);
    let first = code(&listener, &[]);
    let wrong = with_wrong_words(&first.parse().unwrap()).to_string();
    let connect = |code: &str| agent("connector", &["connect", "--server", &server, code], &[]);
    for left in [2, 1, 0] {
        let mut connector = connect(&wrong);
        assert_eq!(connector.wait(UP).code(), Some(4), "{}", connector.printed());
        let printed = connector.printed();
        for part in ["error: refused: the words of the code are wrong", "\n  tried   ", "\n  try     "] {
            assert!(printed.contains(part), "no {part:?}\n{printed}");
        }
        let report = format!(r#"{{"left":{left},"t":"wrong_code","v":1}}"#);
        listener.expect("wrong code", UP, |line| (line == report).then_some(()));
    }
    listener.expect("end of the code", UP, |line| line.contains(r#""why":"burnt""#).then_some(()));
    let second = code(&listener, &[&first]);
    let mut late = connect(&first);
    let status = late.wait(UP).code();
    assert!(matches!(status, Some(3 | 4)), "the right code after the third attempt\n{}", late.printed());
    let mut connector = connect(&second);
    drop((connector.take_pipes(), listener.take_pipes()));
    connector.succeed(UP);
    listener.succeed(UP);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_code_admits_one_connection() {
    let test_server = TestServer::on_loopback("");
    let mut listener = listen(test_server.address, &test_server).await;
    let offered = listener.offer_code().await.unwrap();
    let code = offered.code().clone();
    // Two at once, and one later.
    let (first, second) =
        tokio::join!(connect(test_server.address, &code), connect(test_server.address, &code));
    let (winner, loser) = if first.is_ok() { (first, second) } else { (second, first) };
    let winner = winner.unwrap();
    assert!(matches!(loser, Err(ConnectError::Refused(_))), "{loser:?}");
    assert_eq!(offered.ended().await, CodeEnd::Used);
    let accepted = listener.accept().await.unwrap().unwrap();
    assert_eq!(exchange(&winner, &accepted).await, "hello");
    let later = connect(test_server.address, &code).await;
    assert!(matches!(later, Err(ConnectError::Refused(Refusal::UnknownCode))), "{later:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_code_survives_a_new_connection_to_the_server_but_not_a_restart() {
    let mut test_server = TestServer::on_loopback("");
    let recorder = RecordingProxy::before(test_server.address);
    let mut listener = listen(recorder.address, &test_server).await;
    let offered = listener.offer_code().await.unwrap();
    recorder.cut();
    let registrations = || {
        let registered = |[_, received]: &[Vec<Value>; 2]| received.iter().any(|text| text["t"] == -62);
        recorder
            .texts()
            .iter()
            .any(registered)
            .then_some(())
            .ok_or_else(|| "the locator was not checked".to_owned())
    };
    tokio::task::block_in_place(|| wait_for(UP, registrations));
    let (connected, accepted) = tokio::join!(connect(test_server.address, offered.code()), async {
        listener.accept().await.unwrap()
    });
    assert_eq!(exchange(&connected.unwrap(), &accepted.unwrap()).await, "hello");
    let offered = listener.offer_code().await.unwrap();
    tokio::task::block_in_place(|| test_server.restart());
    recorder.cut();
    assert_eq!(offered.ended().await, CodeEnd::Lost);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_sees_neither_the_words_nor_what_they_are_used_for() {
    let test_server = TestServer::on_loopback("");
    let recorder = RecordingProxy::before(test_server.address);
    let mut listener = listen(recorder.address, &test_server).await;
    let offered = listener.offer_code().await.unwrap();
    let code = offered.code().clone();
    let wrong = connect(recorder.address, &with_wrong_words(&code)).await;
    assert!(matches!(wrong, Err(ConnectError::Refused(Refusal::WrongCode))), "{wrong:?}");
    let right = connect(recorder.address, &code).await.unwrap();
    let accepted = listener.accept().await.unwrap().unwrap();
    assert_eq!(exchange(&right, &accepted).await, "hello");
    let seen = recorder.texts();
    let exchanges = |sent_by_client: bool, t: i64| -> Vec<String> {
        let texts = seen.iter().flat_map(|[sent, received]| if sent_by_client { sent } else { received });
        let exchanges = texts.filter(|text| text["t"] == t).filter_map(|text| sdp(text)?.as_str());
        exchanges.map(str::to_owned).collect()
    };
    // A message and an answer of each run; those of the wrong words have the form of the others.
    for messages in [exchanges(true, 4), exchanges(true, -51)] {
        let [wrong, right] = &messages[..] else { panic!("{seen:?}") };
        assert!(wrong != right && wrong.len() == right.len(), "{messages:?}");
    }
    let seen = format!("{seen:?}").to_lowercase();
    for word in code.to_string().split('-').skip(1) {
        assert!(!seen.contains(&format!("\"{word}")) && !seen.contains(&code.to_string()), "{word}: {seen}");
    }
}

/// The place of an exchange's message.
fn sdp(text: &Value) -> Option<&Value> {
    [&text["params"]["sdp"], &text["extra"]["sdp"], &text["sdp"]].into_iter().find(|sdp| sdp.is_string())
}

/// A server that forwards everything, except for the messages of exchanges, in whose place it puts its own with words that it has guessed.
async fn man_in_the_middle(server: SocketAddr, guess: &'static str) -> (SocketAddr, Arc<Mutex<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, swapped) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(0)));
    let count = Arc::clone(&swapped);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let (mut client, upstream) =
                    (accept_async(stream).await.unwrap(), connect_async(format!("ws://{server}/ws")).await);
                let (mut upstream, _) = upstream.unwrap();
                let mut own = String::new();
                let mut called = String::new();
                loop {
                    tokio::select! {
                        Some(Ok(frame)) = client.next() => {
                            let frame = swap(frame, guess, (&mut own, &mut called), &count);
                            upstream.send(frame).await.unwrap();
                        }
                        Some(Ok(frame)) = upstream.next() => {
                            let frame = swap(frame, guess, (&mut own, &mut called), &count);
                            client.send(frame).await.unwrap();
                        }
                        else => return,
                    }
                }
            });
        }
    });
    (address, swapped)
}

/// Puts a message of its own in the place of an exchange's.
fn swap(
    frame: Message,
    guess: &str,
    (own, called): (&mut String, &mut String),
    swapped: &Mutex<usize>,
) -> Message {
    let Ok(Ok(mut text)) = frame.to_text().map(serde_json::from_str::<Value>) else { return frame };
    let shown = text.to_string();
    if text["t"] == -1 {
        *own = text["extra"]["tag"].as_str().unwrap_or_default().to_owned();
    }
    if text["t"] == -62 {
        *called = text["extra"]["tag"].as_str().unwrap_or_default().to_owned();
    }
    let is_answer = text["t"] == 52;
    let Some(sdp) = sdp(&text).and_then(Value::as_str).map(str::to_owned) else { return frame };
    let password = Password::new(guess.as_bytes());
    let identity = |role: &str, tag: &str| Identity::new(format!("ginnel/2 {role} {tag}").as_bytes());
    let (connector, listener) = (identity("connector", own), identity("listener", called));
    let mut message = match is_answer {
        false => Spake2::<Ed25519Group>::start_a(&password, &connector, &listener).1,
        true => Spake2::<Ed25519Group>::start_b(&password, &connector, &listener).1,
    };
    if is_answer {
        message.extend_from_slice(&[7; 32]);
    }
    *swapped.lock().unwrap() += 1;
    for place in ["params", "extra"] {
        if text[place]["sdp"].is_string() {
            text[place]["sdp"] = BASE64URL_NOPAD.encode(&message).into();
        }
    }
    assert!(!sdp.is_empty() && text != shown);
    Message::text(text.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_agents_refuse_a_server_that_swaps_the_messages_of_the_exchange() {
    let test_server = TestServer::on_loopback("");
    let listener = listen(test_server.address, &test_server).await;
    let mut offered: OfferedCode = listener.offer_code().await.unwrap();
    let (between, swapped) = man_in_the_middle(test_server.address, "zone-zoo").await;
    for left in [2, 1, 0] {
        let refused = connect(between, offered.code()).await;
        assert!(matches!(refused, Err(ConnectError::Refused(Refusal::WrongCode))), "{refused:?}");
        assert_eq!(offered.next_event().await, CodeEvent::WrongWords { left });
    }
    assert_eq!(*swapped.lock().unwrap(), 6, "a message and an answer each");
    assert_eq!(offered.next_event().await, CodeEvent::Ended(CodeEnd::Burnt));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_further_ticket_admits_as_often_as_it_says_and_is_revoked_with_its_connections() {
    let test_server = TestServer::on_loopback("");
    let mut listener = listen(test_server.address, &test_server).await;
    let once = listener.add_ticket(TicketLimits::new().uses(1)).await.unwrap();
    let lasting = listener.add_ticket(TicketLimits::new()).await.unwrap();
    assert_ne!(once, lasting);
    let connector = Agent::new(Config::new());
    let first = connector.connect(&once).await.unwrap();
    let accepted = listener.accept().await.unwrap().unwrap();
    assert_eq!(exchange(&first, &accepted).await, "hello");
    let again = connector.connect(&once).await;
    assert!(matches!(again, Err(ConnectError::Refused(Refusal::Ticket))), "{again:?}");
    let guest = connector.connect(&lasting).await.unwrap();
    let its_end = listener.accept().await.unwrap().unwrap();
    assert!(listener.revoke(&lasting).await && !listener.revoke(&lasting).await);
    assert!(matches!(its_end.closed().await, ConnectionError::Revoked));
    let reason = guest.closed().await;
    assert!(
        matches!(&reason, ConnectionError::PeerClosed(why) if why.contains("no longer valid")),
        "{reason:?}"
    );
    let revoked = connector.connect(&lasting).await;
    assert!(matches!(revoked, Err(ConnectError::Refused(Refusal::Ticket))), "{revoked:?}");
    // The other ticket's connection, and the listener's own ticket, are as before.
    assert_eq!(exchange(&first, &accepted).await, "hello");
    let own = listener.ticket().clone();
    let (connected, accepted) =
        tokio::join!(connector.connect(&own), async { listener.accept().await.unwrap() });
    assert_eq!(exchange(&connected.unwrap(), &accepted.unwrap()).await, "hello");
}
