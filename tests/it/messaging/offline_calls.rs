//! `agent connect --message`: a message for the user of a listener that is offline.

use std::time::Duration;

use ginnel::agent::Ticket;
use serde_json::Value;

use super::agents::{Home, Run};
use super::{CHEAP, Messaging};
use crate::proc::{Proc, Stdout};

const UP: Duration = Duration::from_secs(60);
/// The exit codes of wrong arguments, of a peer that is offline, of something that was refused, and of a signal.
const USAGE: i32 = 2;
const OFFLINE: i32 = 3;
const REFUSED: i32 = 4;
const INTERRUPTED: i32 = 130;

fn start_listener(messaging: &Messaging, home: &Home, options: &[&str]) -> (Proc, String) {
    let server = messaging.server.address.to_string();
    let command = home.command(&[&["listen", "--ticket", "--server", &server], options].concat());
    let listener = Proc::start("listener", command, Stdout::Pipe);
    let ticket = |line: &str| line.trim_start().strip_prefix("agent connect ").map(str::to_owned);
    let ticket = listener.expect("ticket", UP, ticket);
    (listener, ticket)
}

/// Returns the ticket of a listener that has gone away.
fn ticket_of_the_past(messaging: &Messaging, home: &Home, options: &[&str]) -> String {
    let (mut listener, ticket) = start_listener(messaging, home, options);
    // At once: nothing is lost between the ticket and the wait for a call.
    listener.terminate();
    assert_eq!(listener.wait(UP).code(), Some(INTERRUPTED));
    ticket
}

#[track_caller]
fn assert_ends(run: &Run, code: i32, mentions: &[&str]) {
    assert_eq!(run.code, Some(code), "{run:?}");
    assert!(mentions.iter().all(|mention| run.stderr.contains(mention)), "{mentions:?}: {run:?}");
}

#[test]
fn a_call_to_a_listener_that_is_gone_leaves_its_user_an_encrypted_message() {
    let messaging = Messaging::start(CHEAP);
    let (alice, bob) = (Home::registered(&messaging, "alice"), Home::registered(&messaging, "bob"));
    let ticket = ticket_of_the_past(&messaging, &bob, &[]);
    let left = alice.run(&["connect", &ticket, "--message", "call me back"]);
    let stored = ["leaving bob a message", "New key  of bob: ", "Stored   for bob · encrypted to 1 device"];
    assert_ends(&left, OFFLINE, &stored);
    assert!(left.stdout.is_empty(), "{left:?}");
    assert!(bob.inbox().stdout.ends_with("  alice  call me back\n"));
    assert!(alice.inbox().stderr.contains("Delivered to bob"));
    let left = alice.run(&["connect", &ticket, "--message", "again", "--json"]);
    let events: Vec<Value> = left.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(left.code, Some(OFFLINE), "{left:?}");
    assert_eq!(events.iter().map(|event| &event["t"]).collect::<Vec<_>>(), ["offline", "stored"]);
    assert_eq!((&events[0]["user"], &events[1]["encrypted"]), (&"bob".into(), &true.into()));
    let without = alice.run(&["connect", &ticket]);
    assert_ends(&without, OFFLINE, &["the other side is not online", "--message TEXT"]);
    assert_eq!(bob.inbox().stdout.lines().count(), 1);
}

#[test]
fn a_listener_that_is_online_is_called_and_gets_no_message() {
    let messaging = Messaging::start(CHEAP);
    let (alice, bob) = (Home::registered(&messaging, "alice"), Home::registered(&messaging, "bob"));
    let (mut listener, ticket) = start_listener(&messaging, &bob, &[]);
    let called = alice.command(&["connect", &ticket, "--message", "call me back"]);
    let mut connector = Proc::start("connector", called, Stdout::Pipe);
    drop((listener.take_pipes(), connector.take_pipes()));
    connector.succeed(UP);
    listener.succeed(UP);
    assert!(bob.inbox().stderr.contains("no new messages"));
}

#[test]
fn what_a_message_needs_is_said_before_the_call() {
    let messaging = Messaging::start(CHEAP);
    let (alice, bob) = (Home::registered(&messaging, "alice"), Home::registered(&messaging, "bob"));
    let nobody = Home::new(&messaging);
    let named = ticket_of_the_past(&messaging, &bob, &[]);
    let unnamed = ticket_of_the_past(&messaging, &bob, &["--no-account"]);
    let without_login = ticket_of_the_past(&messaging, &nobody, &[]);
    assert!(unnamed.len() < named.len() && unnamed.len() == without_login.len(), "{named} {unnamed}");
    let message = |home: &Home, ticket: &str| home.run(&["connect", ticket, "--message", "hello"]);
    assert_ends(&message(&nobody, &named), USAGE, &["agent login SERVER USER"]);
    for ticket in [unnamed, without_login] {
        let refused = message(&alice, &ticket);
        assert_ends(
            &refused,
            USAGE,
            &["the ticket names no account", "`agent login` and then `agent listen`"],
        );
    }
    assert_ends(&alice.run(&["connect", &named, "--message", ""]), USAGE, &["the message is empty"]);
    let gateway = alice.run(&["connect", "--gateway", "h", "--id", "1", "--message", "hello"]);
    assert_ends(&gateway, USAGE, &["cannot be used with"]);
    // The same server, but under a name of which this is not known.
    let elsewhere = Home::at(alice.server.replace("127.0.0.1", "localhost"));
    elsewhere.ok(&["login", &elsewhere.server, "carl"]);
    let refused = message(&elsewhere, &named);
    let at = messaging.server.address.to_string();
    assert_ends(
        &refused,
        USAGE,
        &[&format!("the account of the ticket is at {at}, yours at ws://localhost:")],
    );
    assert!(bob.inbox().stderr.contains("no new messages"));
    // A ticket of a listener that has no account at all, as older agents make it.
    let parsed: Ticket = named.parse().unwrap();
    let old = Ticket::new(parsed.server().clone(), parsed.tag(), [7; 16]).to_string();
    assert_ends(&message(&alice, &old), USAGE, &["the ticket names no account"]);
}

#[test]
fn a_full_mailbox_refuses_the_message_of_a_call() {
    let messaging = Messaging::start(&format!("[messaging.limits]\nmessages_per_mailbox = 1\n{CHEAP}"));
    let (alice, bob) = (Home::registered(&messaging, "alice"), Home::registered(&messaging, "bob"));
    let ticket = ticket_of_the_past(&messaging, &bob, &[]);
    let message = || alice.run(&["connect", &ticket, "--message", "hello"]);
    assert_ends(&message(), OFFLINE, &["Stored   for bob"]);
    assert_ends(&message(), REFUSED, &["leaving bob a message", "when the other side has read"]);
    assert!(bob.inbox().stdout.ends_with("  alice  hello\n"));
    assert_ends(&message(), OFFLINE, &["Stored   for bob"]);
}

#[test]
fn the_account_of_a_ticket_can_be_chosen_and_one_that_is_damaged_is_left_out() {
    let messaging = Messaging::start(CHEAP);
    let (alice, bob) = (Home::registered(&messaging, "alice"), Home::registered(&messaging, "bob"));
    bob.ok(&["login", &bob.server, "carl"]);
    let account = format!("bob@{}", messaging.server.address);
    let ticket = ticket_of_the_past(&messaging, &bob, &["--account", &account]);
    let left = alice.run(&["connect", &ticket, "--message", "for bob"]);
    assert_ends(&left, OFFLINE, &["Stored   for bob"]);
    let missing = bob.run(&["listen", "--server", "h", "--account", "dora"]);
    assert_ends(&missing, USAGE, &["there is no account dora"]);
    std::fs::write(alice.file("account.json"), "{").unwrap();
    let (listener, _) = start_listener(&messaging, &alice, &[]);
    let printed = listener.printed();
    assert!(
        printed.contains("the ticket names no account: ") && printed.contains("account.json"),
        "{printed}"
    );
}
