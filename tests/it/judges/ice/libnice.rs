//! libnice, the agent of GStreamer and of Pidgin, over Debian's Python bindings.

use std::process::Command;

use ginnel::ice::IceRole;

use super::driver::{Foreign, Session};
use super::{ROLES, process};
use crate::tools;

/// Debian's bindings are for Debian's interpreter.
const PYTHON: &str = "/usr/bin/python3";

fn start(ours: IceRole, protocol: &str) -> Option<Foreign> {
    let has_bindings = Command::new(PYTHON)
        .args(["-c", "import gi; gi.require_version('Nice', '0.1'); from gi.repository import Nice"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !has_bindings {
        tools::note("gir1.2-nice-0.1 and python3-gi not installed");
        return None;
    }
    let mut command = Command::new(PYTHON);
    command.arg(tools::client("ice_libnice.py"));
    command.arg(if ours == IceRole::Controlling { "controlled" } else { "controlling" }).arg(protocol);
    Some(process::start("libnice", command))
}

#[tokio::test]
async fn libnice_connects_in_both_roles_and_keeps_consent() {
    for role in ROLES {
        let Some(foreign) = start(role, "udp") else { return };
        let mut session = Session::new(role, false, foreign).await;
        session.connect().await;
        session.exchange("first").await;
        session.keep().await;
        session.exchange("second").await;
    }
}

#[tokio::test]
async fn libnice_restarts_with_ours() {
    for role in ROLES {
        let Some(foreign) = start(role, "udp") else { return };
        let mut session = Session::new(role, false, foreign).await;
        session.connect().await;
        session.restart().await;
        session.exchange("after the restart").await;
    }
}

/// It stays on the nominated pair of the highest priority until that one has no consent; after that it needs a restart.
#[tokio::test]
async fn libnice_moves_to_another_path_with_ours_by_a_restart() {
    for role in ROLES {
        let Some(foreign) = start(role, "udp") else { return };
        let mut session = Session::new(role, false, foreign).await;
        session.connect().await;
        session.lose_selected().await;
        session.restart().await;
        session.exchange("on the other path").await;
    }
}

#[tokio::test]
async fn libnice_connects_over_tcp_in_both_roles() {
    for role in ROLES {
        let Some(foreign) = start(role, "tcp") else { return };
        let mut session = Session::over_tcp(role, foreign).await;
        session.connect().await;
        session.exchange("over TCP").await;
        session.keep().await;
    }
}
