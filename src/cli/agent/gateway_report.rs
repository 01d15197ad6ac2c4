//! What `agent share` and `agent connect --gateway` report on standard error.

use super::report::{Reporter, VERSION};
use crate::agent::{ServiceConnection, ServiceEvent};
use crate::gateway::client::Status;
use serde_json::json;
use std::net::SocketAddr;

impl Reporter {
    pub(super) fn sharing(&self, gateway: &str, id: u32, to: &str) {
        self.write(
            || format!("Sharing  {to} as {id} at {gateway}"),
            || json!({"v": VERSION, "t": "serving", "gateway": gateway, "id": id, "to": to}),
        );
    }

    pub(super) fn service_event(&self, connection: ServiceConnection, event: &ServiceEvent) {
        let ServiceConnection { client, conn } = connection;
        let json = |kind: &str, what: Option<String>| json!({"v": VERSION, "t": kind, "client": client, "conn": conn, "what": what});
        match event {
            ServiceEvent::Opened => self.write(|| format!("Found    {connection}"), || json("found", None)),
            ServiceEvent::Closed { sent, received } => self.write(
                || format!("Closed   {connection}: {sent} B out, {received} B in"),
                || {
                    json!({
                        "v": VERSION, "t": "closed", "client": client, "conn": conn, "bytes_in": received, "bytes_out": sent,
                    })
                },
            ),
            ServiceEvent::Unreachable(error) => self.write(
                || format!("Failed   {connection}: cannot reach the service: {error}"),
                || json("failed", Some(error.to_string())),
            ),
            ServiceEvent::Broken(error) => {
                self.write(|| format!("Broken   {connection}: {error}"), || json("broken", Some(error.to_string())));
            }
        }
    }

    pub(super) fn status(&self, gateway: &str, status: &Status) {
        match status {
            Status::Reconnecting(loss) => self.write(
                || format!("Lost     {gateway}: {loss}; reconnecting"),
                || json!({"v": VERSION, "t": "lost", "gateway": gateway, "what": loss.to_string()}),
            ),
            Status::Connected => self.write(
                || format!("Back     {gateway}"),
                || json!({"v": VERSION, "t": "back", "gateway": gateway}),
            ),
            Status::Closed(_) => {}
        }
    }

    pub(super) fn reached(&self, gateway: &str, id: u32, conn: u32) {
        self.write(
            || format!("Found    {id} via gateway {gateway} · virtual connection {conn}"),
            || json!({"v": VERSION, "t": "found", "gateway": gateway, "id": id, "conn": conn}),
        );
    }

    pub(super) fn listening(&self, at: SocketAddr, gateway: &str, id: u32) {
        self.write(
            || format!("Listening {at} → {id} via gateway {gateway}"),
            || json!({"v": VERSION, "t": "listening", "at": at.to_string(), "gateway": gateway, "id": id}),
        );
    }
}
