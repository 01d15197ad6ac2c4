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
        let mut offer = self.offer.start(Protocol::PIPE, report).await?;
        let connection = offer.accept().await?;
        drop(offer);
        pipe::run(connection, StreamOrigin::Remote, self.directions, report).await
    }
}
