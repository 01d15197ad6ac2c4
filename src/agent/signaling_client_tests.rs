//! The signalling client and the listener against a scripted server.

use super::*;
use crate::agent::call_auth::CallAuth;
use crate::agent::keys::Secret;
use crate::agent::{Agent, Config, ConnectError, Listener, RegistrationError, ServerName, Ticket};
use crate::signaling::wire::IceDescription;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::accept_async;

/// The server's end of one connection.
struct Script(WebSocketStream<TcpStream>);

impl Script {
    async fn send(&mut self, message: Message) {
        self.0.send(Frame::text(message.encode())).await.unwrap();
    }

    async fn receive(&mut self) -> Message {
        loop {
            if let Frame::Text(text) = self.0.next().await.unwrap().unwrap() {
                return wire::decode(text.as_bytes()).unwrap();
            }
        }
    }

    async fn receive_request(&mut self) -> Request {
        match self.receive().await {
            Message::Request(request) => request,
            Message::Response(response) => panic!("{response:?}"),
        }
    }

    async fn respond(&mut self, mid: Option<i64>, body: ResponseBody) {
        self.send(Message::Response(Response { mid, body })).await;
    }

    async fn request(&mut self, mid: i64, body: RequestBody) {
        self.send(Message::Request(Request { mid: Some(mid), body })).await;
    }

    /// Accepts a connection and registers it as `tag`.
    async fn register(listener: &TcpListener, tag: &str) -> (Self, RequestBody) {
        Self::register_as(listener, tag, None).await
    }

    /// The same as session number `epoch`.
    async fn register_as(listener: &TcpListener, tag: &str, epoch: Option<i64>) -> (Self, RequestBody) {
        let (mut script, request) = Self::accept(listener).await;
        let registered = ResponseBody::Registered {
            tag: Tag::new(tag).unwrap(),
            ice_servers: vec![],
            stun2: None,
            spray: true,
            epoch,
            seen: None,
        };
        script.respond(request.mid, registered).await;
        (script, request.body)
    }

    /// Accepts a connection and receives its registration.
    async fn accept(listener: &TcpListener) -> (Self, Request) {
        let (stream, _) = listener.accept().await.unwrap();
        let mut script = Self(accept_async(stream).await.unwrap());
        let request = script.receive_request().await;
        (script, request)
    }
}

async fn server() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn server_name(address: SocketAddr) -> ServerName {
    ServerName { host: address.ip().to_string(), port: address.port(), tls: false }
}

fn agent(address: SocketAddr) -> Agent {
    Agent::new(Config::new().server(server_name(address)))
}

fn token() -> Token {
    Token::new("act").unwrap()
}

#[tokio::test]
async fn responses_are_matched_to_requests_and_the_rest_are_events() {
    let (listener, address) = server().await;
    let scripted = async {
        let (mut script, registered) = Script::register(&listener, "me").await;
        assert_eq!(
            registered,
            RequestBody::Register {
                key: Some("k".into()),
                secret: None,
                epoch: None,
                proof: None,
                laddrs: None
            }
        );
        let call = script.receive_request().await;
        let second = script.receive_request().await;
        script.respond(second.mid, ResponseBody::Ended { token: token() }).await;
        script.respond(call.mid, ResponseBody::Calling { token: token() }).await;
        script.request(7, RequestBody::Status { token: token() }).await;
        let late = ResponseBody::Failed {
            t: wire::MessageType::Call,
            token: Some(token()),
            code: ErrorCode::NoAnswer,
            em: "late".into(),
        };
        script.respond(call.mid, late).await;
        script.0.send(Frame::text("no message")).await.unwrap();
        script.0.close(None).await.unwrap();
    };
    let agent = async {
        let (events, mut events_rx) = mpsc::channel(8);
        let registration = RegistrationParams { key: Some("k".into()), secret: None, epoch: None };
        let server = server_name(address);
        let stream = connect(&Dialer::default(), &server).await.unwrap().stream;
        let (client, registered) =
            SignalingClient::open(stream, &server, &registration, events).await.unwrap();
        assert_eq!(registered.tag.as_str(), "me");
        let call = RequestBody::Call {
            tag: registered.tag,
            rtag: Tag::new("you").unwrap(),
            ice: IceDescription::default(),
        };
        let end = RequestBody::End { token: token(), reason: None };
        let (calling, ended) = tokio::join!(client.request(call), client.request(end));
        assert_eq!(calling.unwrap(), ResponseBody::Calling { token: token() });
        assert_eq!(ended.unwrap(), ResponseBody::Ended { token: token() });
        let question = Request { mid: Some(7), body: RequestBody::Status { token: token() } };
        assert!(
            matches!(events_rx.recv().await, Some(ServerEvent::Request(request)) if *request == question)
        );
        let failed = events_rx.recv().await;
        assert!(
            matches!(failed, Some(ServerEvent::CallFailed { code: ErrorCode::NoAnswer, .. })),
            "{failed:?}"
        );
        assert!(matches!(events_rx.recv().await, Some(ServerEvent::Closed)));
        assert!(matches!(client.request(RequestBody::Open).await, Err(SignalingError::TimedOut)));
    };
    tokio::join!(scripted, agent);
}

#[tokio::test]
async fn a_refused_registration_is_an_error() {
    let (listener, address) = server().await;
    let scripted = async {
        let (mut script, request) = Script::accept(&listener).await;
        script
            .send(Message::Response(Response::failure(
                wire::MessageType::Register,
                request.mid,
                ErrorCode::NotAllowed,
            )))
            .await;
    };
    let agent = agent(address);
    let (refused, ()) = tokio::join!(agent.listen(), scripted);
    assert!(matches!(refused, Err(RegistrationError::KeyRejected)), "{refused:?}");
}

#[tokio::test]
async fn a_caller_who_only_knows_the_tag_is_refused_before_a_socket_is_opened() {
    let (listener, address) = server().await;
    let agent = agent(address);
    let (listening, (mut script, _)) = tokio::join!(agent.listen(), Script::register(&listener, "me"));
    let listening = listening.unwrap();
    let ltag = Tag::new("another").unwrap();
    let offers = [
        IceDescription::default(),
        IceDescription { ufrag: Some("abcd".into()), pwd: Some("p".repeat(32)), ..IceDescription::default() },
    ];
    for (mid, ice) in (1..).zip(offers) {
        script
            .request(mid, RequestBody::Notify { token: token(), ltag: ltag.clone(), from: None, ice })
            .await;
        let refusal = ResponseBody::Failed {
            t: wire::MessageType::Notify,
            token: Some(token()),
            code: ErrorCode::NotAllowed,
            em: ErrorCode::NotAllowed.text().to_owned(),
        };
        assert_eq!(script.receive().await, Message::Response(Response { mid: Some(mid), body: refusal }));
    }
    script.request(9, RequestBody::Trickle { token: token(), cands: vec![], done: true, nat: None }).await;
    let received = script.receive().await;
    assert!(
        matches!(
            &received,
            Message::Response(Response { body: ResponseBody::Failed { code: ErrorCode::BadToken, .. }, .. })
        ),
        "{received:?}"
    );
    drop(listening);
}

fn tag(text: &str) -> Tag {
    Tag::new(text).unwrap()
}

/// What `caller` offers to the listener `me`.
fn offer(secret: &Secret, ufrag: &str) -> IceDescription {
    let mut ice = IceDescription { ufrag: Some(ufrag.into()), ..IceDescription::default() };
    CallAuth::of_connector(secret, [&tag("caller"), &tag("me")], ufrag).sign(&mut ice);
    ice
}

fn notify(token: &str, caller: &str, ice: IceDescription) -> RequestBody {
    RequestBody::Notify { token: Token::new(token).unwrap(), ltag: tag(caller), from: None, ice }
}

#[tokio::test]
async fn an_offer_is_accepted_once_and_only_from_its_caller() {
    let (listener, address) = server().await;
    let agent = agent(address);
    let (listening, (mut script, _)) = tokio::join!(agent.listen(), Script::register(&listener, "me"));
    let listening = listening.unwrap();
    let secret = listening.ticket().secret.clone();
    let (first, second) = (offer(&secret, "first"), offer(&secret, "second"));
    let requests = [
        (notify("act1", "another", first.clone()), false),
        (notify("act2", "caller", first.clone()), true),
        (notify("act3", "caller", first.clone()), false),
        (notify("act4", "caller", IceDescription { ufrag: second.ufrag.clone(), ..first }), false),
        (notify("act5", "caller", second.clone()), true),
        (notify("act6", "caller", second), false),
    ];
    for (mid, (body, taken)) in (1..).zip(requests) {
        script.request(mid, body).await;
        let answer = loop {
            match script.receive().await {
                Message::Response(response) if response.mid == Some(mid) => break response.body,
                _ => {}
            }
        };
        match answer {
            ResponseBody::Accepted { .. } => assert!(taken, "{mid}"),
            ResponseBody::Failed { code: ErrorCode::NotAllowed, .. } => assert!(!taken, "{mid}"),
            other => panic!("{mid}: {other:?}"),
        }
    }
    drop(listening);
}

#[tokio::test]
async fn a_connector_rejects_an_answer_that_was_made_for_another_call() {
    let (listener, address) = server().await;
    let secret = Secret([5; 16]);
    let ticket = Ticket::new(server_name(address), "me", secret.0);
    let mut earlier = IceDescription { ufrag: Some("earlier".into()), ..IceDescription::default() };
    let tags = [&tag("caller"), &tag("me")];
    CallAuth::of_listener(&secret, tags, &mut offer(&secret, "earlier call"), ("earlier", |_: &str| None))
        .unwrap()
        .sign(&mut earlier);
    let scripted = async {
        let (mut script, _) = Script::register(&listener, "caller").await;
        let call = loop {
            let request = script.receive_request().await;
            if matches!(request.body, RequestBody::Call { .. }) {
                break request;
            }
        };
        script.respond(call.mid, ResponseBody::Calling { token: token() }).await;
        script.request(7, RequestBody::Answered { token: token(), from: None, ice: earlier }).await;
        while let Some(Ok(_)) = script.0.next().await {}
    };
    let agent = Agent::new(Config::default());
    let (connected, ()) = tokio::join!(agent.connect(&ticket), scripted);
    assert!(matches!(connected, Err(ConnectError::Handshake(_))), "{connected:?}");
}

#[tokio::test]
async fn the_number_of_concurrent_calls_is_bounded() {
    let (listener, address) = server().await;
    let agent = agent(address);
    let (listening, (mut script, _)) = tokio::join!(agent.listen(), Script::register(&listener, "me"));
    let listening = listening.unwrap();
    let secret = listening.ticket().secret.clone();
    let (mut accepted, mut refused) = (0, 0);
    for mid in 1..=12 {
        script
            .request(mid, notify(&format!("act{mid}"), "caller", offer(&secret, &format!("call{mid}"))))
            .await;
    }
    while accepted + refused < 12 {
        match script.receive().await {
            Message::Response(Response { body: ResponseBody::Accepted { ice, .. }, .. }) => {
                assert!(ice.pwd.is_some());
                accepted += 1;
            }
            Message::Response(Response {
                body: ResponseBody::Failed { code: ErrorCode::TooMany, .. },
                ..
            }) => refused += 1,
            _ => {}
        }
    }
    assert_eq!((accepted, refused), (8, 4));
    drop(listening);
}

/// A listener whose first session has the number 41, and what it registered with.
async fn listening(listener: &TcpListener, address: SocketAddr) -> (Listener, Script, RequestBody) {
    let agent = agent(address);
    let (listening, (script, first)) =
        tokio::join!(agent.listen(), Script::register_as(listener, "me", Some(41)));
    (listening.unwrap(), script, first)
}

#[tokio::test]
async fn a_listener_registers_with_a_higher_epoch_each_time() {
    let (listener, address) = server().await;
    let (_listening, mut script, first) = listening(&listener, address).await;
    let RequestBody::Register { secret, epoch: None, .. } = first else { panic!("{first:?}") };
    assert!(secret.is_some());
    script.0.close(None).await.unwrap();
    // The answer to the second one is lost, and so the third counts on.
    let (script, second) = Script::accept(&listener).await;
    drop(script);
    let (mut script, third) = Script::register_as(&listener, "me", Some(60)).await;
    script.0.close(None).await.unwrap();
    let (_script, fourth) = Script::accept(&listener).await;
    for (body, expected) in [(second.body, 42), (third, 43), (fourth.body, 61)] {
        let again = RequestBody::Register {
            key: None,
            secret: secret.clone(),
            epoch: Some(expected),
            proof: None,
            laddrs: None,
        };
        assert_eq!(body, again);
    }
}

/// A code, and whether an error is the one that it makes.
type Loss = (ErrorCode, fn(&ConnectError) -> bool);

/// The two ways in which a tag is lost for good.
fn losses() -> [Loss; 2] {
    [
        (ErrorCode::Replaced, |error| {
            matches!(error, ConnectError::Registration(RegistrationError::Replaced))
        }),
        (ErrorCode::Revoked, |error| matches!(error, ConnectError::Registration(RegistrationError::Revoked))),
    ]
}

/// A listener does not reconnect after 210 or 211.
async fn assert_ended(mut listening: Listener, listener: &TcpListener, is_why: fn(&ConnectError) -> bool) {
    let error = listening.accept().await;
    assert!(error.as_ref().is_some_and(|error| error.as_ref().is_err_and(is_why)), "{error:?}");
    assert!(listening.accept().await.is_none());
    let longer_than_the_backoff = Duration::from_secs(2);
    assert!(timeout(longer_than_the_backoff, listener.accept()).await.is_err());
}

#[tokio::test]
async fn a_listener_ends_when_its_tag_is_lost() {
    for (code, is_why) in losses() {
        let (listener, address) = server().await;
        let (listening, mut script, _) = listening(&listener, address).await;
        script.send(Message::Response(Response::failure(wire::MessageType::Register, None, code))).await;
        script.0.close(None).await.unwrap();
        assert_ended(listening, &listener, is_why).await;
    }
}

#[tokio::test]
async fn a_listener_ends_when_its_tag_was_lost_before_it_reconnects() {
    for (code, is_why) in losses() {
        let (listener, address) = server().await;
        let (listening, mut script, _) = listening(&listener, address).await;
        script.0.close(None).await.unwrap();
        let (mut script, request) = Script::accept(&listener).await;
        script
            .send(Message::Response(Response::failure(wire::MessageType::Register, request.mid, code)))
            .await;
        assert_ended(listening, &listener, is_why).await;
    }
}
