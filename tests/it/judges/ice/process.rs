//! Agents of others in processes of their own: JSON lines in and out.

use std::io::{BufRead, BufReader, Write};
use std::process::Command;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::driver::{Foreign, News, Order};
use crate::proc::{Proc, Stdout};

pub(super) fn to_json(order: Order) -> Value {
    match order {
        Order::Remote { ufrag, password } => json!({"order": "remote", "ufrag": ufrag, "password": password}),
        Order::Candidate(candidate) => json!({"order": "candidate", "candidate": candidate}),
        Order::EndOfCandidates => json!({"order": "end"}),
        Order::Restart => json!({"order": "restart"}),
        Order::Send(data) => json!({"order": "send", "data": data}),
    }
}

pub(super) fn from_json(line: &Value) -> Option<News> {
    let text = |name: &str| line[name].as_str().map(str::to_owned);
    Some(match line["news"].as_str()? {
        "credentials" => News::Credentials { ufrag: text("ufrag")?, password: text("password")? },
        "candidate" => News::Candidate(text("candidate")?),
        "end" => News::EndOfCandidates,
        "connected" => News::Connected(line["connected"].as_bool()?),
        "pair" => News::Pair { local: text("local")?.parse().ok()?, remote: text("remote")?.parse().ok()? },
        "data" => News::Data(text("data")?),
        _ => return None,
    })
}

/// Starts a process; it ends when the agent is dropped.
pub(super) fn start(name: &'static str, command: Command) -> Foreign {
    let mut process = Proc::start(name, command, Stdout::Pipe);
    let (mut stdin, stdout) = process.take_pipes();
    let (orders, mut taken) = mpsc::unbounded_channel();
    let (sender, news) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let parsed = serde_json::from_str(&line).ok().as_ref().and_then(from_json);
            let Some(parsed) = parsed else { continue };
            if sender.send(parsed).is_err() {
                return;
            }
        }
    });
    std::thread::spawn(move || {
        while let Some(order) = taken.blocking_recv() {
            if writeln!(stdin, "{}", to_json(order)).and_then(|()| stdin.flush()).is_err() {
                break;
            }
        }
        drop(process);
    });
    Foreign::new(orders, news)
}
