//! The connector's side of a code: finds the listener by the locator, and runs the exchange in a call of its own.

use super::super::error::{ConnectError, Refusal, RegistrationError};
use super::super::keys::Secret;
use super::super::signaling_client::{ServerEvent, SignalingClient};
use super::exchange::{ConnectorExchange, Parties};
use super::{DONE, OPTION, ShortCode, WRONG};
use crate::signaling::wire::{ErrorCode, IceDescription, Request, RequestBody, ResponseBody, Tag, Token};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Time limit for the listener's answer; the server gives up after 7.5 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit for the server to take note of a failed exchange.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Returns the listener's tag and the secret of the connection. `own` is the tag of this side at `server`.
pub(in crate::agent) async fn resolve(
    code: &ShortCode,
    (client, events): (&SignalingClient, &mut mpsc::Receiver<ServerEvent>),
    own: &Tag,
    server: &str,
) -> Result<(Tag, Secret), ConnectError> {
    let silent = || ConnectError::from(RegistrationError::TimedOut { server: server.to_owned() });
    let locate = RequestBody::Locate { tag: own.clone(), locator: code.locator() };
    let listener = match client.request(locate).await {
        Ok(ResponseBody::Located { tag }) => tag,
        Ok(ResponseBody::Failed { code: ErrorCode::NotOnline, .. }) => {
            return Err(ConnectError::Refused(Refusal::UnknownCode));
        }
        Ok(ResponseBody::Failed { code, em, .. }) => return Err(ConnectError::from_code(code, Some(em))),
        Ok(_) | Err(_) => return Err(silent()),
    };
    let parties = Parties { connector: own.as_str(), listener: listener.as_str() };
    let (exchange, message) = ConnectorExchange::start(code, parties);
    let ice =
        IceDescription { opts: vec![OPTION.to_owned()], sdp: Some(message), ..IceDescription::default() };
    let call = RequestBody::Call { tag: own.clone(), rtag: listener.clone(), ice };
    match client.request(call).await {
        Ok(ResponseBody::Calling { .. }) => {}
        Ok(ResponseBody::Failed { code, em, .. }) => return Err(ConnectError::from_code(code, Some(em))),
        Ok(_) | Err(_) => return Err(silent()),
    }
    let answered =
        timeout(ANSWER_TIMEOUT, answer(client, events)).await.map_err(|_| ConnectError::Offline)?;
    let (token, answer) = answered?.ok_or_else(silent)?;
    let secret = exchange.finish(&answer, parties);
    let end = |reason: &str| RequestBody::End { token, reason: Some(reason.to_owned()) };
    match secret {
        Ok(secret) => {
            client.notify(end(DONE)).await;
            Ok((listener, secret))
        }
        Err(error) => {
            tracing::debug!(%error, "the exchange of the code failed");
            // The program may end at once, and the listener is to be told.
            let _ = timeout(END_TIMEOUT, client.request(end(WRONG))).await;
            Err(ConnectError::Refused(Refusal::WrongCode))
        }
    }
}

/// Waits for the listener's answer; `None` if the connection to the server has ended.
async fn answer(
    client: &SignalingClient,
    events: &mut mpsc::Receiver<ServerEvent>,
) -> Result<Option<(Token, String)>, ConnectError> {
    while let Some(event) = events.recv().await {
        match event {
            ServerEvent::Request(request) => {
                let Request { mid, body } = *request;
                if let RequestBody::Answered { token, ice, .. } = body {
                    client.respond(mid, ResponseBody::Noted { token: token.clone() }).await;
                    return Ok(Some((token, ice.sdp.unwrap_or_default())));
                }
            }
            // The listener does not accept the exchange.
            ServerEvent::CallFailed { code: ErrorCode::NotAllowed, .. } => {
                return Err(ConnectError::Refused(Refusal::SpentCode));
            }
            ServerEvent::CallFailed { code, .. } | ServerEvent::TagLost(code) => {
                return Err(ConnectError::from_code(code, None));
            }
            ServerEvent::Closed => break,
        }
    }
    Ok(None)
}
