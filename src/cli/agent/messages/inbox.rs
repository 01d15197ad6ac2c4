//! `agent inbox`: shows messages and receipts.

use super::account::{AccountOptions, cause, report_pinned, utc};
use super::error::MessagingError;
use super::msg::report_receipt;
use crate::cli::agent::error::CommandError;
use crate::cli::agent::escape;
use crate::cli::agent::report::{Reporter, VERSION};
use crate::cli::agent::terminal::interrupted;
use crate::cli::agent::{INTERRUPTED, OutputOptions};
use crate::messaging_client::{Client, Distrust, Event, PartyName, Protection, Receive, ReceivedMessage};
use clap::Args;
use futures_util::FutureExt;
use serde_json::json;
use std::io::{self, Write};

/// The exit code when a message was refused.
const REFUSED: u8 = 4;
/// What the ids of copies for the own devices begin with.
const COPY: &str = "copy-";
/// The most messages that are shown before they are acknowledged.
const BATCH: u64 = 50;

/// Options of `agent inbox`.
#[derive(Debug, Args)]
pub(in crate::cli::agent) struct Inbox {
    /// Go on and show messages as they arrive
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    account: AccountOptions,
}

/// What was shown so far.
#[derive(Default)]
struct Shown {
    /// The number of the last event, if it was not acknowledged.
    unacknowledged: Option<u64>,
    since_acknowledgement: u64,
    messages: u64,
    is_refused: bool,
    is_done: bool,
}

impl Inbox {
    pub(super) fn output(&self) -> &OutputOptions {
        &self.account.output
    }

    pub(super) async fn run(self, report: &Reporter) -> Result<u8, CommandError> {
        let receive = if self.follow { Receive::Everything } else { Receive::Stored };
        let (_, mut client) = tokio::select! {
            connected = self.account.choice.connect(receive, report) => connected?,
            () = interrupted() => return Ok(INTERRUPTED),
        };
        let shown = tokio::select! {
            shown = show_all(&mut client, report) => shown?,
            () = interrupted() => return Ok(INTERRUPTED),
        };
        client.close().await.map_err(MessagingError::from)?;
        if shown.messages == 0 && !shown.is_refused {
            report.write(
                || "Inbox    no new messages".to_owned(),
                || json!({"v": VERSION, "t": "inbox", "messages": 0}),
            );
        }
        Ok(if shown.is_refused { REFUSED } else { 0 })
    }
}

/// Shows events up to the last one; with `--follow` there is none. A message is acknowledged after it was written out.
async fn show_all(client: &mut Client, report: &Reporter) -> Result<Shown, CommandError> {
    let mut shown = Shown::default();
    while !shown.is_done {
        let event = match client.next_event().now_or_never() {
            Some(event) if shown.since_acknowledgement < BATCH => event,
            event => {
                acknowledge(client, &mut shown).await?;
                match event {
                    Some(event) => event,
                    None => client.next_event().await,
                }
            }
        };
        show(event.map_err(MessagingError::from)?, report, &mut shown)?;
    }
    Ok(shown)
}

async fn acknowledge(client: &mut Client, shown: &mut Shown) -> Result<(), CommandError> {
    if let Some(number) = shown.unacknowledged.take() {
        io::stdout().flush().map_err(CommandError::Output)?;
        if let Err(error) = client.acknowledge(number).await {
            return Err(cause(client, error).await.into());
        }
    }
    shown.since_acknowledgement = 0;
    Ok(())
}

fn show(event: Event, report: &Reporter, shown: &mut Shown) -> Result<(), CommandError> {
    let number = match event {
        Event::Message(message) => {
            write_message(&message, report).map_err(CommandError::Output)?;
            shown.messages += 1;
            message.number
        }
        Event::SentElsewhere { number, to, message_id, text, sent_at_ms } => {
            write_sent(&to, &message_id, &text, sent_at_ms, report).map_err(CommandError::Output)?;
            shown.messages += 1;
            number
        }
        Event::Receipt { number, message_id, party, state, .. } => {
            if !message_id.starts_with(COPY) {
                report_receipt(report, &party, &message_id, state);
            }
            number
        }
        Event::Refused { number, from, message_id, reason } => {
            report_refused(report, &from, &message_id, reason);
            shown.is_refused = true;
            number
        }
        Event::Pinned { party, fingerprint } => {
            report_pinned(report, &party, &fingerprint);
            return Ok(());
        }
        Event::MailboxReset => {
            report.note("the server has another mailbox for this device than before: messages may be lost");
            return Ok(());
        }
        Event::Disconnected { reason } => {
            report.note(&format!("connection lost, trying again: {}", escape::line(&reason)));
            return Ok(());
        }
        Event::CaughtUp => {
            shown.is_done = true;
            return Ok(());
        }
        _ => return Ok(()),
    };
    shown.unacknowledged = Some(number);
    shown.since_acknowledgement += 1;
    Ok(())
}

/// Writes a message to standard output.
fn write_message(message: &ReceivedMessage, report: &Reporter) -> io::Result<()> {
    let from = message.from.to_string();
    let protection = match message.protection {
        Protection::EndToEnd => "end_to_end",
        Protection::RemovedDevice => "removed_device",
        Protection::None => "none",
        _ => "none_despite_keys",
    };
    let text = match report.is_json() {
        true => json!({
            "v": VERSION, "t": "message", "from": from, "id": message.message_id, "text": message.text,
            "sent_at": message.sent_at_ms, "protection": protection,
        })
        .to_string(),
        false => {
            let mark = match message.protection {
                Protection::EndToEnd => "",
                Protection::RemovedDevice => " (from a device that was removed)",
                Protection::None => " (NOT ENCRYPTED)",
                _ => " (NOT ENCRYPTED, could be forged)",
            };
            let (time, from) = (utc(message.sent_at_ms), escape::name(&from));
            format!("{time}  {from}{mark}  {}", escape::lines(&message.text))
        }
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(format!("{text}\n").as_bytes())?;
    stdout.flush()
}

/// Writes what another device of the account has sent.
fn write_sent(to: &PartyName, id: &str, text: &str, sent_at_ms: u64, report: &Reporter) -> io::Result<()> {
    let to = to.to_string();
    let line = match report.is_json() {
        true => json!({"v": VERSION, "t": "sent", "to": to, "id": id, "text": text, "sent_at": sent_at_ms})
            .to_string(),
        false => format!("{}  (sent) to {}  {}", utc(sent_at_ms), escape::name(&to), escape::lines(text)),
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(format!("{line}\n").as_bytes())?;
    stdout.flush()
}

fn report_refused(report: &Reporter, from: &PartyName, id: &str, reason: Distrust) {
    let code = match reason {
        Distrust::IdentityChanged { .. } => "identity_changed",
        Distrust::KeysWithheld => "keys_withheld",
        Distrust::Certificate => "certificate",
        Distrust::Signature => "signature",
        Distrust::Unreadable => "unreadable",
        Distrust::Misdirected => "misdirected",
        Distrust::Replayed => "replayed",
        _ => "other",
    };
    report.write(
        || {
            let (from, id) = (escape::name(&from.to_string()), escape::line(id));
            format!("Refused  a message in the name of {from}, which may be forged: {reason} · id {id}")
        },
        || {
            json!({
                "v": VERSION, "t": "refused", "from": from.to_string(), "id": id, "code": code, "what": reason.to_string(),
            })
        },
    );
}
