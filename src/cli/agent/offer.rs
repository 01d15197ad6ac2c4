//! Who reaches a command: the options of everyone who waits for peers.
//!
//! A command flattens [`OfferOptions`] into its own. [`OfferOptions::start`] registers with the server and prints what the other side types;
//! [`Offer::accept`] returns one connection after the other:
//!
//! ```ignore
//! let mut offer = self.offer.start(Protocol::PIPE, report).await?;
//! let connection = offer.accept().await?;
//! drop(offer); // nobody else is accepted; the connection stays
//! path_line::show_while(report, connection.path_changes(), work(connection)).await
//! ```
//!
//! With `start_with_code` the other side types a short code instead of a ticket; it admits one connection.
//! A call that fails is reported and does not end the offer. Every error ends the command as it is. Ctrl-C is [`UsageError::Interrupted`]; after
//! the first connection of several, the command handles it beside `accept`.

use super::BACKOFF;
use super::error::{CommandError, UsageError};
#[cfg(feature = "messaging-client")]
use super::messages;
use super::network::NetworkOptions;
use super::proxy_environment;
use super::report::Reporter;
use super::terminal::{close_politely, interrupted};
use crate::agent::{
    Agent, CodeEnd, CodeEvent, Config, ConnectError, Connection, Listener, OfferError, OfferedCode, Protocol,
    RegistrationError, Ticket,
};
use crate::limits::Backoff;
use crate::net::network_changes::NetworkChanges;
use clap::Args;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
#[cfg(all(feature = "files", unix, feature = "messaging-client"))]
use std::path::Path;
#[cfg(all(feature = "files", unix))]
use std::path::PathBuf;
use std::pin::Pin;
use tokio::time::sleep;

/// See the [module](self).
#[derive(Debug, Args)]
pub(super) struct OfferOptions {
    #[cfg(feature = "messaging-client")]
    #[command(flatten)]
    account: messages::TicketOptions,
    #[command(flatten)]
    pub(super) network: NetworkOptions,
}

/// A registered listener. Dropped, it accepts nobody else; its connections stay.
pub(super) struct Offer<'a> {
    /// `None` after a signal.
    listener: Option<Listener>,
    server: String,
    report: &'a Reporter,
    interrupt: Interrupt,
    /// The code that can be used.
    code: Option<OfferedCode>,
    /// A call has used the code, and its connection is not accepted yet.
    is_used: bool,
}

/// Resolves at the first signal. One for the whole time: a signal between two would be lost.
type Interrupt = Pin<Box<dyn Future<Output = ()> + Send>>;

impl OfferOptions {
    /// Returns the state folder, if it is not the default one.
    #[cfg(all(feature = "files", unix))]
    pub(super) fn state(&self) -> Option<PathBuf> {
        #[cfg(feature = "messaging-client")]
        return self.account.state().map(Path::to_path_buf);
        #[cfg(not(feature = "messaging-client"))]
        return std::env::var_os("AGENT_STATE").map(PathBuf::from);
    }

    /// Registers, and prints the ticket with `agent connect`. Retries until the server is reachable.
    pub(super) async fn start<'a>(
        &self,
        protocol: Protocol,
        report: &'a Reporter,
    ) -> Result<Offer<'a>, CommandError> {
        self.start_for(protocol, "connect", report).await
    }

    /// The same for another command of the other side; `command` is what stands between `agent` and the ticket.
    pub(super) async fn start_for<'a>(
        &self,
        protocol: Protocol,
        command: &str,
        report: &'a Reporter,
    ) -> Result<Offer<'a>, CommandError> {
        self.start_with(self.network.config(protocol)?, command, report).await
    }

    /// The same with a configuration.
    pub(super) async fn start_with<'a>(
        &self,
        config: Config,
        command: &str,
        report: &'a Reporter,
    ) -> Result<Offer<'a>, CommandError> {
        let (offer, ticket) = self.register(config, report).await?;
        report.ticket(&offer.server, command, &ticket);
        Ok(offer)
    }

    /// The same with a short code for one connection, which is replaced when it ends without one. Programs get the ticket too.
    pub(super) async fn start_with_code<'a>(
        &self,
        protocol: Protocol,
        report: &'a Reporter,
    ) -> Result<Offer<'a>, CommandError> {
        let (mut offer, ticket) = self.register(self.network.config(protocol)?, report).await?;
        if report.is_json() {
            report.ticket(&offer.server, "connect", &ticket);
        }
        match offer.offer_code().await {
            Ok(()) => {}
            Err(error) => {
                report.note(&format!("no short code: {error}"));
                if !report.is_json() {
                    report.ticket(&offer.server, "connect", &ticket);
                }
            }
        }
        Ok(offer)
    }

    /// Registers; returns the ticket too.
    async fn register<'a>(
        &self,
        config: Config,
        report: &'a Reporter,
    ) -> Result<(Offer<'a>, Ticket), CommandError> {
        let name = self.network.server.first().ok_or(UsageError::NoServer)?;
        let (server, agent) = (name.to_string(), Agent::new(config));
        #[cfg(feature = "messaging-client")]
        let account = self.account.account(report)?;
        proxy_environment::report(report, &name.host, name.port);
        let mut interrupt: Interrupt = Box::pin(interrupted());
        let listener = tokio::select! {
            listener = register(&agent, &server, report) => listener?,
            () = &mut interrupt => return Err(UsageError::Interrupted.into()),
        };
        #[cfg(feature = "messaging-client")]
        let ticket = listener.ticket().clone().with_account(account);
        #[cfg(not(feature = "messaging-client"))]
        let ticket = listener.ticket().clone();
        Ok((
            Offer { listener: Some(listener), server, report, interrupt, code: None, is_used: false },
            ticket,
        ))
    }
}

impl Offer<'_> {
    /// Returns the ticket.
    pub(super) fn ticket(&self) -> Option<&Ticket> {
        self.listener.as_ref().map(Listener::ticket)
    }

    /// Waits for the next connection. An error ends the offer: nobody can connect any more, or a signal has arrived.
    pub(super) async fn accept(&mut self) -> Result<Connection, CommandError> {
        loop {
            let Some(listener) = &mut self.listener else { return Err(UsageError::Interrupted.into()) };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                event = next_event(&mut self.code) => {
                    self.handle_code_event(event).await;
                    continue;
                }
                () = &mut self.interrupt => {
                    self.listener = None;
                    close_politely().await;
                    return Err(UsageError::Interrupted.into());
                }
            };
            match accepted {
                Some(Ok(connection)) => return Ok(connection),
                Some(Err(ConnectError::Registration(
                    error @ (RegistrationError::Replaced
                    | RegistrationError::Revoked
                    | RegistrationError::TagLost),
                ))) => return Err(CommandError::at(&self.server, error)),
                // The other side may try again or use the gateway.
                Some(Err(error)) => {
                    self.report.call_failed(&CommandError::at(&self.server, error));
                    if std::mem::take(&mut self.is_used) {
                        self.replace_code().await;
                    }
                }
                None => return Err(CommandError::at(&self.server, RegistrationError::TagLost)),
            }
        }
    }
}

impl Offer<'_> {
    /// Offers a code and prints it.
    async fn offer_code(&mut self) -> Result<(), OfferError> {
        let listener = self.listener.as_ref().ok_or(OfferError::Ended)?;
        let code = listener.offer_code().await?;
        self.report.code(&self.server, code.code());
        self.code = Some(code);
        Ok(())
    }

    async fn handle_code_event(&mut self, event: CodeEvent) {
        match event {
            CodeEvent::WrongWords { left } => self.report.wrong_code(left),
            CodeEvent::Ended(CodeEnd::Used) => (self.code, self.is_used) = (None, true),
            CodeEvent::Ended(end) => {
                self.code = None;
                self.report.code_ended(end);
                self.replace_code().await;
            }
        }
    }

    /// Offers another code. Retries until the server gives out a number.
    async fn replace_code(&mut self) {
        let mut backoff = Backoff::new(BACKOFF, ChaCha20Rng::from_os_rng());
        while let Err(error) = self.offer_code().await {
            if error == OfferError::Ended {
                return;
            }
            self.report.note(&format!("no short code: {error}"));
            tokio::select! {
                () = sleep(backoff.wait()) => {}
                () = &mut self.interrupt => {
                    // The next call of `accept` returns.
                    self.interrupt = Box::pin(std::future::ready(()));
                    return;
                }
            }
        }
    }
}

/// Waits for an event of the code; for ever if there is none.
async fn next_event(code: &mut Option<OfferedCode>) -> CodeEvent {
    match code {
        Some(code) => code.next_event().await,
        None => std::future::pending().await,
    }
}

/// Registers; retries until the server is reachable.
async fn register(agent: &Agent, server: &str, report: &Reporter) -> Result<Listener, CommandError> {
    let mut backoff = Backoff::new(BACKOFF, ChaCha20Rng::from_os_rng());
    let mut network = NetworkChanges::start();
    let mut reported = None;
    loop {
        let error = match agent.listen().await {
            Ok(listener) => return Ok(listener),
            Err(error @ (RegistrationError::Unreachable { .. } | RegistrationError::TimedOut { .. })) => {
                CommandError::at(server, error)
            }
            Err(error) => return Err(CommandError::at(server, error)),
        };
        // The same reason is reported once.
        let reason = error.message();
        if reported.as_ref() != Some(&reason) {
            report.waiting(server, "unreachable", &reason, error.hint());
            reported = Some(reason);
        }
        network.wait_to_retry(&mut backoff).await;
    }
}
