//! Options of every load: the server, the duration, and the report.

use crate::load::{Load, LoadTimes, LoadTransport, Target};
use anyhow::{Context, bail};
use clap::Args;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

#[derive(Debug, Args)]
#[command(next_help_heading = "Server and measurement")]
pub(super) struct Basics {
    /// The server
    #[arg(long, value_name = "HOST:PORT")]
    server: String,
    /// Seconds of measurement; at most 3600 with the warm-up
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Seconds before the measurement
    #[arg(long, default_value_t = 1)]
    warm_up: u64,
    /// Report the CPU time and memory of this process, such as the server's
    #[arg(long)]
    pid: Option<u32>,
    /// Run only on this processor
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,
    /// Open a socket for each client and peer, even on IPv4 loopback, where they can share one
    #[arg(long)]
    own_sockets: bool,
    /// Exit with 1 if more packets than this were lost
    #[arg(long, value_name = "PERCENT")]
    pub(super) max_loss: Option<f64>,
    /// Report as a JSON object
    #[arg(long)]
    pub(super) json: bool,
    /// Agree to put a server with a public address under load
    #[arg(long)]
    yes: bool,
}

impl Basics {
    /// Checks that the server may be put under load.
    pub(super) fn agree(&self, address: SocketAddr, transport: LoadTransport) -> anyhow::Result<Target> {
        match Target::new(address, transport, self.yes) {
            Ok(target) => Ok(target),
            Err(error) => {
                bail!(
                    "{error}; nothing was sent. If you are allowed to do this, repeat the command with --yes"
                )
            }
        }
    }

    pub(super) fn load(&self, transport: LoadTransport) -> anyhow::Result<Load> {
        let named = || format!("--server {}", self.server);
        let mut addresses = self.server.to_socket_addrs().with_context(named)?;
        let address = addresses.next().with_context(named)?;
        let target = self.agree(address, transport)?;
        let seconds = |count: u64| Duration::from_secs(count.min(10_000));
        Ok(Load {
            target,
            times: LoadTimes { warm_up: seconds(self.warm_up), seconds: seconds(self.seconds) },
            pid: self.pid,
            cpu: self.cpu,
            segmentation: true,
            own_sockets: self.own_sockets,
        })
    }
}
