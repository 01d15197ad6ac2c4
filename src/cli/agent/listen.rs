//! `agent listen`.

use super::OutputOptions;
use super::error::CommandError;
use super::offer::OfferOptions;
use super::pipe::{self, Directions, StreamOrigin};
use super::report::Reporter;
use crate::agent::Protocol;
use clap::Args;

/// Options of `agent listen`.
#[derive(Debug, Args)]
pub(super) struct Listen {
    #[command(flatten)]
    pub(super) offer: OfferOptions,
    /// Print a ticket instead of a short code: valid as long as this runs, and without limit of time and attempts
    #[arg(long)]
    ticket: bool,
    #[command(flatten)]
    directions: Directions,
    #[command(flatten)]
    output: OutputOptions,
}

impl Listen {
    pub(super) fn output(&self) -> &OutputOptions {
        &self.output
    }

    /// Runs the command and returns the exit code.
    pub(super) async fn run(self, report: &Reporter) -> Result<u8, CommandError> {
        let mut offer = match self.ticket {
            true => self.offer.start(Protocol::PIPE, report).await?,
            false => self.offer.start_with_code(Protocol::PIPE, report).await?,
        };
        let connection = offer.accept().await?;
        drop(offer);
        pipe::run(connection, StreamOrigin::Remote, self.directions, report).await
    }
}
