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
use crate::agent::{Agent, Config, ConnectError, Connection, Listener, Protocol, RegistrationError, Ticket};
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
        let ticket = listener.ticket();
        report.ticket(&server, command, &ticket);
        Ok(Offer { listener: Some(listener), server, report, interrupt })
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
                Some(Err(error)) => self.report.call_failed(&CommandError::at(&self.server, error)),
                None => return Err(CommandError::at(&self.server, RegistrationError::TagLost)),
            }
        }
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
