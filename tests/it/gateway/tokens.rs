//! Clients with gateway tokens.

use std::process::Command;

use super::endpoint::{ACCEPT, Endpoint, NEW, PING, TOKEN, command, data};
use super::{Gateway, TIMEOUT};
use crate::waiting::wait_until;

/// What `ginnel gateway token` prints.
pub(super) fn token(gateway: &Gateway, arguments: &[&str]) -> String {
    let mut ginnel = Command::new(env!("CARGO_BIN_EXE_ginnel"));
    ginnel.args(["gateway", "token", "--state"]).arg(gateway.test_server.state()).args(arguments);
    let output = ginnel.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    assert!(text.starts_with("gt_"), "{text}");
    text
}

/// The frame that carries the token.
fn token_frame(token: &str) -> Vec<u8> {
    let bytes = data_encoding::BASE64URL_NOPAD.decode(token.strip_prefix("gt_").unwrap().as_bytes()).unwrap();
    data(0, &[&[TOKEN][..], &bytes].concat())
}

fn client_with(gateway: &Gateway, first: &[u8]) -> Endpoint {
    let mut client = Endpoint::connect(gateway.clients());
    client.send(first);
    client
}

#[test]
fn a_client_with_a_token_dials_and_one_without_is_dropped() {
    let gateway = Gateway::start("require_token = true");
    let mut server = Endpoint::server(&gateway, 7);
    let mut client = client_with(&gateway, &token_frame(&token(&gateway, &["--ttl", "600"])));
    let conn = client.dial(7);
    server.expect_frames(&[command(ACCEPT, &[conn, 1])]);
    for first in [command(NEW, &[]), command(PING, &[])] {
        client_with(&gateway, &first).assert_closed();
    }
    // A server needs no token and receives no other frame.
    server.fence();
}

#[test]
fn a_forged_or_truncated_token_is_refused() {
    let gateway = Gateway::start("require_token = true");
    let good = token_frame(&token(&gateway, &["--ttl", "600"]));
    for at in [9, 16, 17, 20, 21, 52] {
        let mut forged = good.clone();
        forged[at] ^= 1;
        client_with(&gateway, &forged).assert_closed();
    }
    client_with(&gateway, &data(0, &good[8..52])).assert_closed();
    client_with(&gateway, &data(0, &[&good[8..], b"\0"].concat())).assert_closed();
    let another = Gateway::start("require_token = true");
    client_with(&another, &good).assert_closed();
    client_with(&gateway, &good).fence();
}

#[test]
fn a_token_expires() {
    let gateway = Gateway::start("require_token = true");
    let token = token_frame(&token(&gateway, &["--ttl", "2"]));
    wait_until(TIMEOUT, "the token expires", || {
        let mut client = client_with(&gateway, &[&token[..], &command(NEW, &[])].concat());
        client.first_bytes().is_empty()
    });
}

#[test]
fn a_token_for_one_server_dials_no_other() {
    let gateway = Gateway::start("require_token = true");
    let (_seven, _eight) = (Endpoint::server(&gateway, 7), Endpoint::server(&gateway, 8));
    let mut client =
        client_with(&gateway, &token_frame(&token(&gateway, &["--ttl", "600", "--server", "7"])));
    client.dial_refused(8);
    client.dial(7);
}
