//! aioice, the ICE agent of aiortc. It has no restart, and nominates one pair for ever.

use std::path::PathBuf;
use std::process::Command;

use ginnel::ice::IceRole;

use super::driver::{Foreign, Session};
use super::{ROLES, process};
use crate::tools;

const PACKAGE: &str = "aioice==0.13.0";

/// The folder with the package, kept for later runs; `None`, visibly, where it cannot be had.
fn folder() -> Option<PathBuf> {
    if !tools::have(&["python3"]) {
        return None;
    }
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(PACKAGE);
    if !folder.join("aioice/ice.py").is_file() {
        let mut install = Command::new("python3");
        install
            .args(["-m", "pip", "install", "--quiet", "--retries", "1", "--target"])
            .arg(&folder)
            .arg(PACKAGE);
        let output = install.output().unwrap();
        if !output.status.success() {
            // An unreachable registry is no failure of the agent.
            tools::note(&format!("pip brings no {PACKAGE}: {}", String::from_utf8_lossy(&output.stderr)));
            return None;
        }
    }
    Some(folder)
}

fn start(ours: IceRole) -> Option<Foreign> {
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", folder()?).arg(tools::client("ice_aioice.py"));
    command.arg(if ours == IceRole::Controlling { "controlled" } else { "controlling" });
    Some(process::start("aioice", command))
}

#[tokio::test]
async fn aioice_connects_in_both_roles_and_keeps_consent() {
    for role in ROLES {
        let Some(foreign) = start(role) else { return };
        let mut session = Session::new(role, false, foreign).await;
        session.connect().await;
        session.exchange("first").await;
        session.keep().await;
        session.exchange("second").await;
    }
}

#[tokio::test]
async fn aioice_whose_role_conflicts_connects_after_the_repair() {
    for role in ROLES {
        let other = if role == IceRole::Controlling { IceRole::Controlled } else { IceRole::Controlling };
        let Some(foreign) = start(other) else { return };
        let mut session = Session::new(role, false, foreign).await;
        session.connect().await;
        session.exchange("after the conflict").await;
    }
}
