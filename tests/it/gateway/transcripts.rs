//! Byte transcripts and the handshake vector recorded from the reference, replayed by a plain socket. The gateway's connection ids replace the
//! recorded ones.

use super::endpoint::{ACCEPT, CLOSE, Endpoint, Pair, command, data, md5_answer};
use super::{Gateway, KEY};

/// The recorded bytes, as hexadecimal digits; `conn` takes the place of the recorded id.
fn recorded(digits: &str, conn: u32) -> Vec<u8> {
    let id: String = conn.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let digits = digits.replace("CONN", &id).replace(' ', "");
    data_encoding::HEXLOWER.decode(digits.as_bytes()).unwrap()
}

#[test]
fn the_transcript_of_the_reference_is_replayed_with_the_ids_that_are_drawn() {
    let gateway = Gateway::start("");
    let (mut server, mut client) = (Endpoint::server(&gateway, 1), Endpoint::connect(gateway.clients()));
    client.send(&recorded("05 00 00 00  00 00 00 00  00", 0));
    let opened = client.receive();
    let conn = u32::from_le_bytes(opened[9..].try_into().unwrap());
    assert_eq!(opened, recorded("09 00 00 00  00 00 00 00  01  CONN", conn));
    client.send(&recorded("0d 00 00 00  00 00 00 00  02  CONN  01 00 00 00", conn));
    // The client receives the server's id, and the server the client's, which is 1.
    let accepted = recorded("0d 00 00 00  00 00 00 00  04  CONN  01 00 00 00", conn);
    client.expect_frames(std::slice::from_ref(&accepted));
    server.expect_frames(&[accepted]);
    let hello = recorded("09 00 00 00  CONN  48 65 6c 6c 6f", conn);
    client.send(&hello);
    server.expect_frames(std::slice::from_ref(&hello));
    server.send(&hello);
    client.expect_frames(&[hello]);
    let close = recorded("09 00 00 00  00 00 00 00  05  CONN", conn);
    client.send(&close);
    client.expect_frames(std::slice::from_ref(&close));
    server.expect_frames(&[close]);
    // Dial an unknown server.
    client.send(&recorded("05 00 00 00  00 00 00 00  00", 0));
    let opened = client.receive();
    let conn = u32::from_le_bytes(opened[9..].try_into().unwrap());
    client.send(&recorded("0d 00 00 00  00 00 00 00  02  CONN  02 00 00 00", conn));
    client.expect_frames(&[recorded("09 00 00 00  00 00 00 00  03  CONN", conn)]);
}

#[test]
fn a_quiet_endpoint_receives_the_recorded_ping_and_answers_with_the_same_bytes() {
    let gateway = Gateway::start("[gateway.times]\nping = 1");
    let ping = recorded("05 00 00 00  00 00 00 00  06", 0);
    let mut pair = Pair::new(&gateway, 1);
    for _ in 0..2 {
        for endpoint in [&mut pair.client, &mut pair.server] {
            endpoint.expect_frames(std::slice::from_ref(&ping));
            endpoint.send(&ping);
        }
    }
    pair.client.answers = true;
    pair.server.answers = true;
    pair.exchange_data();
}

#[test]
fn the_references_md5_vector_admits_a_server() {
    let vector = recorded("ed f3 ad 78 fb f7 3d 14 e3 9f 20 1c c1 5a c9 0c  7b 00 00 00", 0);
    assert_eq!(md5_answer([1, 2, 3, 4, 5, 6, 7, 8], b"123", 123), vector);
    // The reference's key is too short for us; the sum is the same.
    let gateway = Gateway::start("");
    let mut challenges = Vec::new();
    for id in [123, 0x0102_0304] {
        let mut server = Endpoint::connect(gateway.md5);
        let challenge = server.bytes(8).try_into().unwrap();
        server.send(&md5_answer(challenge, KEY.as_bytes(), id));
        // Silence is success: the first frame is the answer to the request.
        server.fence();
        challenges.push(challenge);
        let mut client = Endpoint::client(&gateway);
        let conn = client.dial(id);
        server.expect_frames(&[command(ACCEPT, &[conn, u32::try_from(challenges.len()).unwrap()])]);
    }
    assert_ne!(challenges[0], challenges[1]);
}

/// The layouts of S2-27 (connection 9527, remote 1), with New as 0.
#[test]
fn the_seven_worked_layouts_are_the_bytes_on_the_wire() {
    let gateway = Gateway::start("");
    let Pair { mut client, mut server, .. } = Pair::new(&gateway, 9527);
    // New, Open
    client.send(b"\x05\0\0\0\0\0\0\0\0");
    let opened = client.receive();
    assert_eq!((opened.len(), &opened[..9]), (13, &b"\x09\0\0\0\0\0\0\0\x01"[..]));
    let id: [u8; 4] = opened[9..].try_into().unwrap();
    // Dial: the server's id is 9527, in little-endian bytes.
    client.send(&[b"\x0d\0\0\0\0\0\0\0\x02", &id[..], b"\x37\x25\0\0"].concat());
    // Accept to both
    client.expect_frames(&[[b"\x0d\0\0\0\0\0\0\0\x04", &id[..], b"\x37\x25\0\0"].concat()]);
    server.expect_frames(&[[b"\x0d\0\0\0\0\0\0\0\x04", &id[..], b"\x01\0\0\0"].concat()]);
    // Close, to both
    let close = [b"\x09\0\0\0\0\0\0\0\x05", &id[..]].concat();
    server.send(&close);
    for endpoint in [&mut client, &mut server] {
        endpoint.expect_frames(std::slice::from_ref(&close));
    }
    // Refuse
    let conn = client.open().to_le_bytes();
    client.send(&[b"\x0d\0\0\0\0\0\0\0\x02", &conn[..], b"\x02\0\0\0"].concat());
    client.expect_frames(&[[b"\x09\0\0\0\0\0\0\0\x03", &conn[..]].concat()]);
    // an unsolicited Ping
    client.send(b"\x05\0\0\0\0\0\0\0\x06");
    client.fence();
}

#[test]
fn command_1_is_not_new() {
    let gateway = Gateway::start("");
    let mut client = Endpoint::client(&gateway);
    client.send(b"\x05\0\0\0\0\0\0\0\x01");
    client.assert_closed();
}

#[test]
fn messages_of_any_content_and_length_are_forwarded_unchanged() {
    let gateway = Gateway::start("");
    let mut pair = Pair::new(&gateway, 5);
    let every_byte: Vec<u8> = (0..=255).collect();
    let command_like = command(CLOSE, &[pair.conn]);
    // The longest packet is 512 KiB including the connection id.
    let longest = vec![0xa5; 512 * 1024 - 4];
    for message in [&b""[..], b"{}", &every_byte, &command_like, &longest, b""] {
        let frame = data(pair.conn, message);
        pair.client.send(&frame);
        pair.server.expect_frames(std::slice::from_ref(&frame));
        pair.server.send(&frame);
        pair.client.expect_frames(&[frame]);
    }
}

#[test]
fn frames_are_independent_of_how_the_stream_is_split() {
    let gateway = Gateway::start("");
    let mut pair = Pair::new(&gateway, 5);
    let frames: Vec<_> = (0..100_u8).map(|number| data(pair.conn, &vec![number; number.into()])).collect();
    let bytes = frames.concat();
    pair.client.send(&bytes);
    pair.server.expect_frames(&frames);
    for byte in &bytes[..200] {
        pair.server.send(&[*byte]);
    }
    pair.server.send(&bytes[200..]);
    pair.client.expect_frames(&frames);
}
