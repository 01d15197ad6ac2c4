//! `agent msg`: sends one message.

use super::account::{AccountOptions, cause, party, report_pinned};
use super::error::MessagingError;
use crate::cli::agent::error::CommandError;
use crate::cli::agent::escape;
use crate::cli::agent::report::{Reporter, VERSION};
use crate::cli::agent::terminal::interrupted;
use crate::cli::agent::{INTERRUPTED, OutputOptions};
use crate::messaging_client::{
    Client, ClientError, Event, PartyName, Protection, ReceiptState, Receive, Sent,
};
use clap::Args;
use serde_json::json;
use std::io::{self, IsTerminal, Read};
use std::time::Duration;
use tokio::time::{interval, timeout};

/// Longest text that is read.
const MAX_TEXT: u64 = 128 * 1024;
pub(super) const EMPTY: &str = "the message is empty";
const USAGE: &str = "agent msg NAME TEXT     or the text on standard input";
/// How long a message may take to be stored.
const STORE_TIMEOUT: Duration = Duration::from_secs(60);
/// How often the receipts of another `agent inbox` are read.
const RECEIPT_CHECK: Duration = Duration::from_millis(200);

/// Options of `agent msg`.
#[derive(Debug, Args)]
pub(in crate::cli::agent) struct Msg {
    /// The recipient: a user, or dev:ID for a device of the TCP protocol
    #[arg(value_parser = party)]
    name: PartyName,
    /// The message; without it, standard input is the message
    text: Vec<String>,
    /// Also wait until a device of the recipient has it, at most so long
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "86400")]
    wait: Option<u64>,
    /// Refuse a recipient who has no keys
    #[arg(long)]
    encrypted_only: bool,
    #[command(flatten)]
    account: AccountOptions,
}

impl Msg {
    pub(super) fn output(&self) -> &OutputOptions {
        &self.account.output
    }

    fn text(&self, report: &Reporter) -> Result<String, MessagingError> {
        let input = |what| MessagingError::Input { what, hint: USAGE };
        if !self.text.is_empty() {
            let text = self.text.join(" ");
            return if text.is_empty() { Err(input(EMPTY)) } else { Ok(text) };
        }
        if io::stdin().is_terminal() {
            report.note("type the message; Ctrl-D at the start of a line ends it");
        }
        let mut bytes = Vec::new();
        let read = io::stdin().lock().take(MAX_TEXT).read_to_end(&mut bytes);
        read.map_err(|_| input("cannot read standard input"))?;
        let text = String::from_utf8(bytes).map_err(|_| input("the message is not UTF-8"))?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        match text.is_empty() {
            true => Err(input(EMPTY)),
            false => Ok(text.to_owned()),
        }
    }

    pub(super) async fn run(self, report: &Reporter) -> Result<u8, CommandError> {
        // Before standard input is read.
        self.account.choice.account()?;
        let text = self.text(report)?;
        tokio::select! {
            done = self.send(&text, report) => done,
            () = interrupted() => Ok(INTERRUPTED),
        }
    }

    async fn send(&self, text: &str, report: &Reporter) -> Result<u8, CommandError> {
        let receive = if self.wait.is_some() { Receive::Everything } else { Receive::Nothing };
        let (mut client, reads_mailbox) = match self.account.choice.connect(receive, report).await {
            Ok((_, client)) => (client, self.wait.is_some()),
            // `agent inbox --follow` has the mailbox; it writes the receipts down.
            Err(CommandError::Messaging(MessagingError::Client(ClientError::Replaced))) => {
                (self.account.choice.connect(Receive::Nothing, report).await?.1, false)
            }
            Err(error) => return Err(error),
        };
        let sent = send_text(&mut client, &self.name, text, self.encrypted_only, report).await?;
        if let Some(limit) = self.wait {
            let delivery = async {
                match reads_mailbox {
                    true => receipt_from_server(&mut client, &sent.message_id).await,
                    false => receipt_from_state(&client, &sent.message_id).await,
                }
            };
            let state = timeout(Duration::from_secs(limit), delivery).await;
            let state =
                state.map_err(|_| MessagingError::NotDelivered(limit))?.map_err(MessagingError::from)?;
            report_receipt(report, &self.name, &sent.message_id, state);
        }
        client.close().await.map_err(MessagingError::from)?;
        Ok(0)
    }
}

/// Sends a text, and reports that it is stored.
pub(super) async fn send_text(
    client: &mut Client,
    to: &PartyName,
    text: &str,
    encrypted_only: bool,
    report: &Reporter,
) -> Result<Sent, MessagingError> {
    let sending = client.send_reporting(to, text, encrypted_only, |event| match event {
        Event::Disconnected { reason } => {
            report.note(&format!("connection lost, trying again: {}", escape::line(&reason)));
        }
        Event::Pinned { party, fingerprint } => report_pinned(report, &party, &fingerprint),
        _ => {}
    });
    let sent = timeout(STORE_TIMEOUT, sending).await;
    let sent = match sent.map_err(|_| MessagingError::NotStored(STORE_TIMEOUT.as_secs()))? {
        Ok(sent) => sent,
        Err(error) => return Err(cause(client, error).await),
    };
    report_sent(report, to, &sent);
    Ok(sent)
}

/// Waits for the receipt; other messages stay unacknowledged in the mailbox.
async fn receipt_from_server(client: &mut Client, sent_id: &str) -> Result<ReceiptState, ClientError> {
    loop {
        if let Event::Receipt { message_id, state, .. } = client.next_event().await?
            && message_id == sent_id
        {
            return Ok(state);
        }
    }
}

/// Waits until another client of this device has received the receipt.
async fn receipt_from_state(client: &Client, sent_id: &str) -> Result<ReceiptState, ClientError> {
    let mut ticks = interval(RECEIPT_CHECK);
    loop {
        ticks.tick().await;
        if let Some(state) = client.receipt_of(sent_id)? {
            return Ok(state);
        }
    }
}

fn report_sent(report: &Reporter, name: &PartyName, sent: &Sent) {
    let is_encrypted = sent.protection == Protection::EndToEnd;
    report.write(
        || {
            let how = match (is_encrypted, sent.devices) {
                (false, _) => "NOT ENCRYPTED: the recipient has no keys".to_owned(),
                (true, 1) => "encrypted to 1 device".to_owned(),
                (true, devices) => format!("encrypted to {devices} devices"),
            };
            format!("Stored   for {} · {how} · id {}", escape::name(&name.to_string()), sent.message_id)
        },
        || {
            json!({
                "v": VERSION, "t": "stored", "to": name.to_string(), "id": sent.message_id, "encrypted": is_encrypted,
                "devices": sent.devices,
            })
        },
    );
}

/// Reports what became of a message.
pub(super) fn report_receipt(report: &Reporter, name: &PartyName, id: &str, state: ReceiptState) {
    let (label, code) = match state {
        ReceiptState::Delivered => ("Delivered", "delivered"),
        ReceiptState::Expired => ("Expired  ", "expired"),
    };
    report.write(
        || format!("{label} to {} · id {}", escape::name(&name.to_string()), escape::line(id)),
        || json!({"v": VERSION, "t": "receipt", "to": name.to_string(), "id": id, "state": code}),
    );
}
