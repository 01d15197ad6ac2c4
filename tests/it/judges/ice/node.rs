//! node-datachannel: libdatachannel with the agent libjuice. It has no restart; what follows ICE fails, since our side has no DTLS.

use std::path::PathBuf;
use std::process::Command;

use ginnel::ice::IceRole;

use super::driver::{Foreign, Session};
use super::{ROLES, process};
use crate::tools;

const PACKAGE: &str = "node-datachannel@0.33.4";

/// The folder with the package, kept for later runs; `None`, visibly, where it cannot be had.
fn folder() -> Option<PathBuf> {
    if !tools::have(&["node", "npm"]) {
        return None;
    }
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(PACKAGE);
    if !folder.join("node_modules/.package-lock.json").is_file() {
        let mut install = Command::new("npm");
        install
            .args(["install", "--no-audit", "--no-fund", "--fetch-retries=1", "--prefix"])
            .arg(&folder)
            .arg(PACKAGE);
        let output = install.output().unwrap();
        if !output.status.success() {
            // An unreachable registry is no failure of the agent.
            tools::note(&format!("npm brings no {PACKAGE}: {}", String::from_utf8_lossy(&output.stderr)));
            return None;
        }
    }
    Some(folder)
}

fn start(ours: IceRole) -> Option<Foreign> {
    let mut command = Command::new("node");
    command.arg(tools::client("ice_node.mjs")).arg(folder()?);
    command.arg(if ours == IceRole::Controlling { "controlled" } else { "controlling" });
    Some(process::start("node-datachannel", command))
}

#[tokio::test]
async fn libjuice_connects_in_both_roles() {
    for role in ROLES {
        let Some(foreign) = start(role) else { return };
        let mut session = Session::new(role, false, foreign).await;
        session.connect().await;
    }
}
