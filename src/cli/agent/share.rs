//! `agent share`: services for guests with a ticket, or one service at a gateway.

use super::OutputOptions;
use super::error::CommandError;
#[cfg(feature = "forward")]
use super::forward_report::SeenMessages;
#[cfg(feature = "forward")]
use super::forward_spec::{parse_duration, parse_services};
use super::gateway::PublishOptions;
use super::offer::OfferOptions;
use super::report::Reporter;
use clap::Args;
#[cfg(feature = "forward")]
use {
    super::{INTERRUPTED, error::UsageError, terminal::raise_descriptor_limit},
    crate::{
        agent::{Connection, Protocol},
        forwarding::{
            policy::{Policy, Service, ServiceTarget},
            session::Session,
            sharing::{self, OnSharingEvent, SharingEvent},
        },
        limits::NetworkPrefix,
    },
    std::{sync::Arc, time::Duration},
    tokio::{
        sync::watch,
        task::JoinSet,
        time::{sleep, timeout},
    },
};

/// How long the end of a share waits for the guests to be informed.
#[cfg(feature = "forward")]
const END_TIMEOUT: Duration = Duration::from_secs(1);

const AFTER_HELP: &str = "\
  agent share tcp 22 --name ssh                      for agent forward 2222:ssh
  agent share tcp 10.0.0.5:80 udp 53 unix /run/docker.sock --name web --name dns --name docker
  agent share any --allow-net 192.168.1.0/24         for agent socks 1080
  agent share --gateway HOST --id N --to 22          for agent connect --gateway HOST --id N";

/// Options of `agent share`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Share {
    #[cfg(feature = "forward")]
    #[command(flatten)]
    services: ServiceOptions,
    #[command(flatten)]
    gateway: PublishOptions,
    #[command(flatten)]
    offer: OfferOptions,
    #[command(flatten)]
    output: OutputOptions,
}

/// What guests may use.
#[cfg(feature = "forward")]
#[derive(Debug, Args)]
struct ServiceOptions {
    /// What to share, any number one after the other: `tcp PORT`, `tcp HOST:PORT`, `udp PORT`, `udp HOST:PORT`, `unix PATH`, or `any` for every
    /// public address, as `agent socks` needs it
    #[arg(value_name = "SERVICE", conflicts_with = "gateway")]
    services: Vec<String>,
    /// Name of a service, which `agent forward PORT:NAME` uses; given once for each, in their order [default: its port or file name]
    #[arg(long, value_name = "NAME", conflicts_with = "gateway")]
    name: Vec<String>,
    /// With `any`: permit this network too, such as 192.168.1.0/24; by default only public addresses are
    #[arg(long, value_name = "NETWORK", conflicts_with = "gateway")]
    allow_net: Vec<NetworkPrefix>,
    /// Permit `agent forward -R`: guests may have this host listen at any port of loopback, or only at these, such as
    /// --allow-reverse=8000-8999,0.0.0.0:9000
    #[arg(long, value_name = "PORTS", num_args = 0..=1, require_equals = true, default_missing_value = "", conflicts_with = "gateway")]
    allow_reverse: Option<String>,
    /// Most guests at a time
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=512), conflicts_with = "gateway")]
    guests: u16,
    /// End after this time, such as 2h, 30m or 90s
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration, conflicts_with = "gateway")]
    time: Option<Duration>,
}

impl Share {
    pub(super) fn output(&self) -> &OutputOptions {
        &self.output
    }

    /// Runs the command and returns the exit code.
    pub(super) async fn run(self, report: &Reporter) -> Result<u8, CommandError> {
        if self.gateway.is_used() {
            let network = &self.offer.network;
            return self.gateway.run((&network.key, &network.tls), report).await;
        }
        self.run_services(report).await
    }

    #[cfg(not(feature = "forward"))]
    async fn run_services(self, _report: &Reporter) -> Result<u8, CommandError> {
        Err(super::error::UsageError::NoGateway.into())
    }

    #[cfg(feature = "forward")]
    async fn run_services(self, report: &Reporter) -> Result<u8, CommandError> {
        let options = &self.services;
        let policy = parse_services(
            &options.services,
            &options.name,
            &options.allow_net,
            options.allow_reverse.as_deref(),
        )?;
        let (policy, limit) = (Arc::new(policy), usize::from(options.guests));
        raise_descriptor_limit();
        let mut offer = self.offer.start_for(Protocol::FORWARD, &command_for(&policy), report).await?;
        report.shared(&policy, limit, options.time);
        let (stop, stopped) = watch::channel(None);
        let mut guests = JoinSet::new();
        let end = async {
            match options.time {
                Some(time) => sleep(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(end);
        let mut number = 0;
        let (ended, reason) = loop {
            tokio::select! {
                accepted = offer.accept() => match accepted {
                    Ok(connection) if guests.len() >= limit => {
                        guests.spawn(connection_refused(connection));
                    }
                    Ok(connection) => {
                        number += 1;
                        let guest = Guest { number, report: report.clone(), policy: Arc::clone(&policy) };
                        guests.spawn(guest.serve(connection, stopped.clone()));
                    }
                    Err(CommandError::Usage(UsageError::Interrupted)) => {
                        break (Ok(INTERRUPTED), "it is not shared any more");
                    }
                    Err(error) => break (Err(error), "it is not shared any more"),
                },
                Some(_) = guests.join_next() => {}
                () = &mut end => break (Ok(0), "the time for which it was shared is over"),
            }
        };
        stop.send_replace(Some(reason));
        let informed = async { while guests.join_next().await.is_some() {} };
        let _ = timeout(END_TIMEOUT, informed).await;
        ended
    }
}

/// Returns a command that uses the first service; its local port is not a privileged one.
#[cfg(feature = "forward")]
fn command_for(policy: &Policy) -> String {
    let Some(Service { name, target }) = policy.services().first() else {
        return match policy.is_any_allowed() {
            true => "socks 1080".to_owned(),
            false => "forward -R PORT:HOST:PORT".to_owned(),
        };
    };
    let local = |port: u16| if port < 1024 { port + 8000 } else { port };
    match target {
        ServiceTarget::Tcp(address) => format!("forward {}:{name}", local(address.port)),
        ServiceTarget::Udp(address) => format!("forward {}:{name}/udp", local(address.port)),
        ServiceTarget::Unix(_) => format!("forward ./{name}.sock:{name}"),
    }
}

/// Waits for the end of the share, and returns what its guests are told.
#[cfg(feature = "forward")]
async fn end_reason(stopped: &mut watch::Receiver<Option<&'static str>>) -> &'static str {
    let reason = stopped.wait_for(Option::is_some).await;
    reason.ok().and_then(|reason| *reason).unwrap_or_default()
}

/// Tells a guest that there are too many.
#[cfg(feature = "forward")]
async fn connection_refused(connection: Connection) {
    connection.abort("too many guests: try again later").await;
}

/// One connection to this share.
#[cfg(feature = "forward")]
struct Guest {
    number: u64,
    report: Reporter,
    policy: Arc<Policy>,
}

#[cfg(feature = "forward")]
impl Guest {
    async fn serve(self, connection: Connection, mut stopped: watch::Receiver<Option<&'static str>>) {
        let session = Session::new(connection);
        let mut changes = session.connection().path_changes();
        let serving = async {
            sharing::serve(&session, &self.policy, self.on_event()).await;
            session.connection().closed().await
        };
        tokio::pin!(serving);
        let why = loop {
            tokio::select! {
                why = &mut serving => break why,
                Some(path) = changes.next() => self.report.guest_path(self.number, &path),
                reason = end_reason(&mut stopped) => {
                    session.connection().shut_down(reason).await;
                    break crate::agent::ConnectionError::Closed;
                }
            }
        };
        self.report.guest_left(self.number, &session.traffic, &why);
    }

    fn on_event(&self) -> OnSharingEvent {
        let (number, report, seen) = (self.number, self.report.clone(), SeenMessages::default());
        Arc::new(move |event| match event {
            SharingEvent::Refused(target, refusal) => {
                let target = target.to_string();
                if seen.is_new(&format!("{target} {refusal}")) {
                    report.guest_refused(number, &target, &refusal);
                }
            }
            SharingEvent::Listening(at) => report.guest_listening(number, at),
        })
    }
}
