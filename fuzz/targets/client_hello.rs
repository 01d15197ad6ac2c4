//! What is read of a connection or session before anybody is known: the PROXY header, and the DTLS ClientHello with its cookie.

use ginnel::Now;
use ginnel::internals::net::dtls_cookie::{ClientHello, CookieExchange, HelloVerdict, is_client_hello};
use ginnel::internals::net::proxy::{self, Start};
use ginnel::internals::net::time;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use std::net::SocketAddr;
use std::time::Duration;

/// The longest header that is taken: of version 2, with its extensions.
const MAX_PROXY: usize = 536;
/// Bytes of the headers of a record and of a handshake message, and of version and random behind them.
const BEFORE_FIELDS: usize = 25 + 34;

/// The first byte chooses: a PROXY header as it is, a ClientHello as it is, or one whose headers are mended to fit.
pub(crate) fn run(data: &[u8]) {
    let [choice, rest @ ..] = data else { return };
    match choice % 3 {
        0 => proxy_header(rest),
        1 => hello(rest),
        _ => hello(&mended(rest)),
    }
}

/// However the bytes arrive, the same is read from them, and no more is waited for than a header may be long.
fn proxy_header(stream: &[u8]) {
    let whole = proxy::parse(stream);
    for end in 0..=stream.len().min(MAX_PROXY + 1) {
        match proxy::parse(&stream[..end]) {
            Ok(None) => assert!(end < MAX_PROXY, "more is waited for than a header may have"),
            told => assert_eq!(told, whole, "{end} bytes have told, and more tell something else"),
        }
    }
    let Ok(Some(Start::Header { len, client })) = whole else { return };
    assert!((8..=MAX_PROXY).contains(&len) && len <= stream.len());
    assert!(client.is_none_or(|client| client.ip() == client.ip().to_canonical()));
    assert_eq!(proxy::parse(&stream[..len]), whole, "what follows a header is no part of it");
    assert!(proxy::parse(&stream[..len - 1]).is_ok_and(|start| start.is_none()));
}

/// Prepends headers with the correct lengths.
fn mended(body: &[u8]) -> Vec<u8> {
    let body = &body[..body.len().min(1500)];
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let record = u16::try_from(body.len() + 12).unwrap().to_be_bytes();
    let mut datagram = vec![22, 0xFE, 0xFD, 0, 0, 0, 0, 0, 0, 0, 1];
    datagram.extend(record);
    datagram.push(1);
    datagram.extend(&length[1..]);
    datagram.extend([0, 1, 0, 0, 0]);
    datagram.extend(&length[1..]);
    datagram.extend(body);
    if let Some(version) = datagram.get_mut(25..27) {
        version.copy_from_slice(&[0xFE, 0xFD]);
    }
    datagram
}

fn hello(datagram: &[u8]) {
    let Some(hello) = ClientHello::parse(datagram) else { return };
    assert!(is_client_hello(datagram));
    assert_eq!(hello.random().len(), 32);
    assert!(hello.record_number() < 1 << 48);
    for end in 0..datagram.len() {
        assert!(ClientHello::parse(&datagram[..end]).is_none(), "half a ClientHello is none");
    }
    let first = hello.first();
    let again = ClientHello::parse(&first).expect("a ClientHello without its cookie is one");
    assert_eq!((again.random(), again.record_number(), again.cookie()), (hello.random(), 0, None));
    assert_eq!(again.first(), first);
    exchange(datagram, &hello);
}

/// No client is admitted without a cookie for its address and this ClientHello, and no answer is longer than the request.
fn exchange(datagram: &[u8], hello: &ClientHello<'_>) {
    let now: Now = time::now();
    let client: SocketAddr = ([192, 0, 2, 7], 1000).into();
    let mut cookies = CookieExchange::new(now, ChaCha20Rng::from_seed([1; 32]));
    let answer = match cookies.check(now, client, hello) {
        HelloVerdict::Accept(_) => panic!("the cookie was guessed"),
        HelloVerdict::Refuse(alert) => {
            assert!(alert.len() <= datagram.len());
            return;
        }
        HelloVerdict::Verify(answer) => answer,
    };
    assert!(answer.len() <= datagram.len(), "an answer larger than its question");
    let (first, cookie) = (hello.first(), &answer[answer.len() - 32..]);
    let second = with_cookie(&first, cookie);
    let second = ClientHello::parse(&second).expect("with the cookie it is a ClientHello as well");
    assert!(
        matches!(cookies.check(now, client, &second), HelloVerdict::Accept(admitted) if admitted == cookie)
    );
    let neighbour: SocketAddr = ([192, 0, 2, 7], 1001).into();
    assert!(
        !matches!(cookies.check(now, neighbour, &second), HelloVerdict::Accept(_)),
        "somebody else's cookie"
    );
    let late = now.after(Duration::from_secs(180));
    assert!(!matches!(cookies.check(late, client, &second), HelloVerdict::Accept(_)), "an old cookie");
}

/// Puts a cookie into a ClientHello that has none.
fn with_cookie(first: &[u8], cookie: &[u8]) -> Vec<u8> {
    let session = usize::from(first[BEFORE_FIELDS]);
    let at = BEFORE_FIELDS + 1 + session;
    assert_eq!(first[at], 0, "the first has no cookie");
    let body = [&first[25..at], &[32], cookie, &first[at + 1..]].concat();
    mended(&body)
}
