//! coturn's `turnutils_stunclient`.

use std::process::Command;

use crate::test_server::TestServer;
use crate::tools;

#[test]
fn stunclient_learns_its_own_address() {
    if !tools::have(&["turnutils_stunclient"]) {
        return;
    }
    let test_server = TestServer::on_loopback("");
    let port = test_server.address.port().to_string();
    let output = Command::new("turnutils_stunclient").args(["-p", &port, "127.0.0.1"]).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}", output.status);
    assert!(text.contains("UDP reflexive addr: 127.0.0.1:"), "{text}");
}
