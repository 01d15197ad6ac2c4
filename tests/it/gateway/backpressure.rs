//! One slow receiver does not affect other virtual connections.

use std::collections::HashMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use super::endpoint::{ACCEPT, CLOSE, CREDIT, Endpoint, command, conn_of, data};
use super::{Gateway, KEY, TIMEOUT};
use crate::waiting::{pace, pause_under_test, wait_until};

/// A short limit for pauses, so that the tests are quick.
pub(super) const SHORT_PAUSE: &str = "[gateway.times]\npause = 0.5";
/// The length of a message, and a number of messages that exceeds all buffers.
const SIZE: usize = 16 * 1024;
const COUNT: u32 = 512;

/// A message with its number.
fn numbered(conn: u32, number: u32) -> Vec<u8> {
    let mut message = vec![u8::try_from(number % 251).unwrap(); SIZE];
    message[..4].copy_from_slice(&number.to_le_bytes());
    data(conn, &message)
}

/// Asserts that all messages come once, in order and nothing else.
fn expect_all(endpoint: &mut Endpoint, conn: u32, numbers: std::ops::Range<u32>) {
    for number in numbers {
        assert!(endpoint.receive() == numbered(conn, number), "{number} is lost, late, twice or changed");
    }
}

/// Asserts that messages come once and in order until Close; returns how many.
fn count_until_close(endpoint: &mut Endpoint, conn: u32) -> u32 {
    for number in 0.. {
        let received = endpoint.receive();
        if received == command(CLOSE, &[conn]) {
            return number;
        }
        assert!(received == numbered(conn, number), "{number} is lost, late, twice or changed");
    }
    unreachable!("as many numbers as there are")
}

/// Sends to both until the slow one's id is closed and the other has been sent [`COUNT`] messages; returns how many went to each.
fn send_to_both(sender: &mut Endpoint, slow: u32, quick: u32) -> (u32, u32) {
    let mut receiver = Endpoint { stream: sender.stream.try_clone().unwrap(), answers: false };
    let closed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            receiver.expect_frames(&[command(CLOSE, &[slow])]);
            closed.store(true, Ordering::Relaxed);
        });
        let (mut to_slow, mut to_quick) = (0, 0);
        while !closed.load(Ordering::Relaxed) && !receiver.is_finished() || to_quick < COUNT {
            if !closed.load(Ordering::Relaxed) {
                sender.send(&numbered(slow, to_slow));
                to_slow += 1;
            }
            sender.send(&numbered(quick, to_quick));
            to_quick += 1;
        }
        receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (to_slow, to_quick)
    })
}

/// Closes the quick one's id too. Frames before that answer messages for the closed id.
fn only_closes_of(endpoint: &mut Endpoint, slow: u32, quick: u32) {
    endpoint.send(&command(CLOSE, &[quick]));
    loop {
        let received = endpoint.receive();
        if received == command(CLOSE, &[quick]) {
            return;
        }
        assert_eq!(received, command(CLOSE, &[slow]));
    }
}

#[test]
fn a_client_that_does_not_read_loses_only_its_own_virtual_connection() {
    let gateway = Gateway::start(SHORT_PAUSE);
    let mut server = Endpoint::server(&gateway, 1);
    let (mut slow, mut quick) = (Endpoint::narrow_client(&gateway), Endpoint::client(&gateway));
    let (to_slow, to_quick) = (slow.dial(1), quick.dial(1));
    server.expect_frames(&[command(ACCEPT, &[to_slow, 1]), command(ACCEPT, &[to_quick, 2])]);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| count_until_close(&mut quick, to_quick));
        let (sent_slow, sent_quick) = send_to_both(&mut server, to_slow, to_quick);
        only_closes_of(&mut server, to_slow, to_quick);
        let received = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert_eq!(received, sent_quick, "messages are missing");
        assert!(count_until_close(&mut slow, to_slow) < sent_slow, "nothing was lost and yet it was closed");
    });
    // Only the id was lost.
    let again = slow.dial(1);
    server.expect_frames(&[command(ACCEPT, &[again, 1])]);
    server.send(&numbered(again, 0));
    expect_all(&mut slow, again, 0..1);
}

/// A server sends to the gateway's first client, who does not read, and to another one, who does.
pub(super) fn assert_harms_only_itself(gateway: &Gateway) {
    let mut server = Endpoint::server(gateway, 1);
    let to_slow = super::liveness::dial_until_there(&mut server, 1);
    let mut quick = Endpoint::client(gateway);
    let to_quick = server.dial(2);
    quick.expect_frames(&[command(ACCEPT, &[to_quick, 1])]);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| count_until_close(&mut quick, to_quick));
        let (_, sent) = send_to_both(&mut server, to_slow, to_quick);
        only_closes_of(&mut server, to_slow, to_quick);
        let received = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert_eq!(received, sent, "messages are missing");
    });
    server.fence();
}

#[test]
fn a_server_that_does_not_read_loses_only_its_own_virtual_connection() {
    let gateway = Gateway::start(SHORT_PAUSE);
    let (mut slow, mut quick) = (Endpoint::narrow_server(&gateway, 1), Endpoint::server(&gateway, 2));
    let mut client = Endpoint::client(&gateway);
    let (to_slow, to_quick) = (client.dial(1), client.dial(2));
    slow.expect_frames(&[command(ACCEPT, &[to_slow, 1])]);
    quick.expect_frames(&[command(ACCEPT, &[to_quick, 1])]);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| count_until_close(&mut quick, to_quick));
        let (sent_slow, sent_quick) = send_to_both(&mut client, to_slow, to_quick);
        only_closes_of(&mut client, to_slow, to_quick);
        let received = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert_eq!(received, sent_quick, "messages are missing");
        assert!(count_until_close(&mut slow, to_slow) < sent_slow, "nothing was lost and yet it was closed");
    });
    let again = client.dial(1);
    slow.expect_frames(&[command(ACCEPT, &[again, 1])]);
}

#[test]
fn a_sender_paused_for_a_slow_receiver_loses_nothing() {
    let gateway = Gateway::start("[gateway.times]\npause = 30");
    let mut server = Endpoint::server(&gateway, 1);
    let mut client = Endpoint::narrow_client(&gateway);
    let conn = client.dial(1);
    server.expect_frames(&[command(ACCEPT, &[conn, 1])]);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| (0..4 * COUNT).for_each(|number| server.send(&numbered(conn, number))));
        // More than the queue holds is in flight, and the client does not read.
        wait_until(TIMEOUT, "the sender is paused", || {
            assert!(!sender.is_finished(), "the sender is never paused");
            gateway.metric("pauses_total") >= 1.0
        });
        expect_all(&mut client, conn, 0..4 * COUNT);
    });
    assert_eq!(gateway.metric("slow_connections_total"), 0.0);
    client.fence();
    server.fence();
}

/// The credit of a server of the HMAC listener.
#[derive(Default)]
struct CreditAccount {
    credit: Mutex<HashMap<u32, i64>>,
    more: Condvar,
}

impl CreditAccount {
    /// Subtracts the length of a frame; with `wait`, waits for credit. Returns `false` without credit.
    fn spend(&self, conn: u32, cost: usize, wait: bool) -> bool {
        let mut credit = self.credit.lock().unwrap();
        if wait {
            let none = |credit: &mut HashMap<u32, i64>| credit.get(&conn).is_none_or(|credit| *credit <= 0);
            let (waited, late) = self.more.wait_timeout_while(credit, TIMEOUT, none).unwrap();
            assert!(!late.timed_out(), "no credit for {conn}");
            credit = waited;
        }
        let left = credit.entry(conn).or_default();
        let any = *left > 0;
        if any {
            *left -= i64::try_from(cost).unwrap();
        }
        any
    }

    /// Collects the gateway's grants until the connection is shut. Any other frame is an error.
    fn collect(&self, receiver: &mut Endpoint) {
        while receiver.stream.peek(&mut [0]).is_ok_and(|count| count > 0) {
            let frame = receiver.receive();
            assert!(frame.len() == 17 && frame[8] == CREDIT, "{frame:02x?}");
            let word = |at: usize| u32::from_le_bytes(frame[at..at + 4].try_into().unwrap());
            *self.credit.lock().unwrap().entry(word(9)).or_default() += i64::from(word(13));
            self.more.notify_all();
        }
    }
}

#[test]
fn with_credit_a_slow_receiver_does_not_delay_the_others() {
    let gateway = Gateway::start(SHORT_PAUSE);
    let mut server = Endpoint::hmac_server(&gateway, 1, KEY).unwrap();
    let (mut slow, mut quick) = (Endpoint::narrow_client(&gateway), Endpoint::client(&gateway));
    let (to_slow, to_quick) = (slow.dial(1), quick.dial(1));
    let mut receiver = Endpoint { stream: server.stream.try_clone().unwrap(), answers: false };
    let account = CreditAccount::default();
    // Accept and the first credit of each.
    let mut accepted = Vec::new();
    while accepted.len() < 2 || account.credit.lock().unwrap().len() < 2 {
        let frame = receiver.receive();
        let word = |at: usize| u32::from_le_bytes(frame[at..at + 4].try_into().unwrap());
        match frame[8] {
            ACCEPT => accepted.push((word(9), word(13))),
            CREDIT => {
                assert!(accepted.iter().any(|(conn, _)| *conn == word(9)), "credit before Accept");
                account.credit.lock().unwrap().insert(word(9), word(13).into());
            }
            _ => panic!("{frame:02x?}"),
        }
    }
    assert_eq!(accepted, [(to_slow, 1), (to_quick, 2)]);
    std::thread::scope(|scope| {
        let collecting = scope.spawn(|| account.collect(&mut receiver));
        let reader = scope.spawn(|| expect_all(&mut quick, to_quick, 0..COUNT));
        let mut sent = 0;
        for number in 0..COUNT {
            if sent < COUNT && account.spend(to_slow, SIZE + 8, false) {
                server.send(&numbered(to_slow, sent));
                sent += 1;
            }
            account.spend(to_quick, SIZE + 8, true);
            server.send(&numbered(to_quick, number));
        }
        reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert!(sent < COUNT, "the slow one's credit has no end");
        // Longer than the limit for pauses.
        pause_under_test(Duration::from_secs(2));
        let reader = scope.spawn(|| expect_all(&mut slow, to_slow, 0..COUNT));
        for number in sent..COUNT {
            account.spend(to_slow, SIZE + 8, true);
            server.send(&numbered(to_slow, number));
        }
        reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        server.stream.shutdown(std::net::Shutdown::Both).unwrap();
        collecting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn the_gateway_sends_a_server_with_credit_no_more_than_it_has_granted() {
    const GRANTED: usize = 3 * SIZE;
    let gateway = Gateway::start(SHORT_PAUSE);
    let mut server = Endpoint::hmac_server(&gateway, 1, KEY).unwrap();
    let (mut slow, mut quick) = (Endpoint::client(&gateway), Endpoint::client(&gateway));
    let (from_slow, from_quick) = (slow.dial(1), quick.dial(1));
    // A sender with one virtual connection would be paused without limit.
    slow.dial(1);
    server.send(&command(CREDIT, &[from_slow, u32::try_from(GRANTED).unwrap()]));
    server.send(&command(CREDIT, &[from_quick, u32::try_from(GRANTED).unwrap()]));
    std::thread::scope(|scope| {
        // Its own queue fills up, and then its id is closed: it does not use credit.
        scope.spawn(|| {
            for number in 0..COUNT {
                slow.stream.write_all(&numbered(from_slow, number)).unwrap();
            }
        });
        scope.spawn(|| {
            for number in 0..COUNT {
                quick.stream.write_all(&numbered(from_quick, number)).unwrap();
            }
        });
        let (mut got, mut closed, mut number) = (0, false, 0);
        while !closed || number < COUNT {
            let frame = server.receive();
            match conn_of(&frame) {
                0 => closed |= frame == command(CLOSE, &[from_slow]),
                conn if conn == from_slow => {
                    assert!(got < GRANTED && !closed, "{got} of {GRANTED}");
                    got += frame.len();
                }
                _ => {
                    assert!(
                        frame == numbered(from_quick, number),
                        "{number} is lost, late, twice or changed"
                    );
                    number += 1;
                    server.send(&command(CREDIT, &[from_quick, u32::try_from(frame.len()).unwrap()]));
                }
            }
        }
    });
}

/// Two addresses announce more than the whole memory and stay connected.
#[test]
fn announced_long_frames_that_never_arrive_block_no_other() {
    let gateway = Gateway::start("[gateway.limits]\nmemory = 4194304");
    let mut server = Endpoint::server(&gateway, 1);
    let announced: Vec<_> = (0..16)
        .map(|number| {
            let mut other = Endpoint::client_from(&gateway, [127, 66, 0, 1 + number % 2]);
            other.send(&data(7, &[0; 524_284])[..72]);
            other
        })
        .collect();
    let mut client = Endpoint::client(&gateway);
    let conn = client.dial(1);
    server.receive();
    for number in 0..8 {
        client.send(&numbered(conn, number));
        expect_all(&mut server, conn, number..number + 1);
        server.send(&numbered(conn, number));
        expect_all(&mut client, conn, number..number + 1);
    }
    let dropped = gateway.metric("dropped_total{why=\"slow_frame\"}");
    assert!(dropped == 0.0, "{dropped} others were closed");
    drop((announced, client, server));
    gateway.assert_becomes_empty();
}

/// All received bytes are counted; none are buffered outside of the router.
#[test]
fn a_partial_frame_inside_websocket_counts_in_the_shared_memory() {
    const LEN: usize = 300_000;
    let gateway = Gateway::start("");
    let mut other = Endpoint::connect(gateway.clients()).stream;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    write!(other, "GET /gateway HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n\r\n").unwrap();
    let message = data(7, &vec![0; LEN]);
    // A binary message under a mask of zeros.
    let head = [&[0x82, 0xff][..], &(message.len() as u64).to_be_bytes(), &[0; 4]].concat();
    other.write_all(&[&head[..], &message[..LEN / 2]].concat()).unwrap();
    wait_until(TIMEOUT, "the gateway counts the received bytes", || {
        gateway.metric("waiting_bytes") >= LEN as f64 / 2.0
    });
    drop(other);
    gateway.assert_becomes_empty();
}

#[test]
fn queued_data_shares_one_memory_and_non_reading_clients_release_it() {
    const MEMORY: f64 = 4.0 * 1024.0 * 1024.0;
    let limits = "[gateway.limits]\nmemory = 4194304\nqueue = 8388608";
    let gateway = Gateway::start(&format!("{limits}\n{SHORT_PAUSE}\nping = 2"));
    let mut server = Endpoint::server(&gateway, 1);
    let mut slow: Vec<_> = (0..4).map(|_| Endpoint::narrow_client(&gateway)).collect();
    let conns: Vec<_> = slow.iter_mut().map(|client| client.dial(1)).collect();
    let mut receiver = Endpoint { stream: server.stream.try_clone().unwrap(), answers: true };
    let (done, most) = (AtomicBool::new(false), Mutex::new(0.0_f64));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Also where another thread has failed, this one ends.
            let deadline = Instant::now() + 2 * TIMEOUT;
            while !done.load(Ordering::Relaxed) && Instant::now() < deadline {
                let waiting = gateway.metric("waiting_bytes");
                let mut most = most.lock().unwrap();
                *most = most.max(waiting);
                pace(Duration::from_millis(10));
            }
        });
        scope.spawn(move || {
            while receiver.stream.peek(&mut [0]).is_ok_and(|count| count > 0) {
                receiver.receive();
            }
        });
        for number in 0..COUNT {
            for conn in &conns {
                server.send(&numbered(*conn, number));
            }
        }
        // There is memory for others although four have read nothing.
        let (mut other, mut client) = (Endpoint::server(&gateway, 2), Endpoint::client(&gateway));
        let conn = client.dial(2);
        other.receive();
        for number in 0..32 {
            client.send(&numbered(conn, number));
            expect_all(&mut other, conn, number..number + 1);
        }
        done.store(true, Ordering::Relaxed);
        server.stream.shutdown(std::net::Shutdown::Both).unwrap();
    });
    let most = *most.lock().unwrap();
    assert!((MEMORY / 4.0..=1.25 * MEMORY).contains(&most), "{most}");
    drop(slow);
    gateway.assert_becomes_empty();
}
