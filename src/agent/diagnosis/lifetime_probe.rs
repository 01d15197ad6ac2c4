//! How long a mapping of UDP lives without packets ([RFC 5780 section 4.6](https://www.rfc-editor.org/rfc/rfc5780#section-4.6)).
//!
//! A mapping for each time is left alone for that time; then the server is asked, by another socket, to answer to its port. All run at once.

use super::observations::MappingLifetime;
use super::stun_socket::{StunOptions, StunSocket, answer, request};
use crate::net::time;
use futures_util::future::join_all;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::sleep_until;

/// The times after which a mapping is tested.
const AGES: [u64; 17] = [1, 2, 3, 5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 90, 100, 110, 118];
/// How long an answer may take, and how often it is asked for.
const ANSWER_TIME: Duration = Duration::from_millis(400);
const TRIES: usize = 3;
/// The longest measurement.
pub(super) const LONGEST: Duration = Duration::from_secs(120);

/// Measures for at most `longest`.
pub(super) async fn measure(server: SocketAddr, longest: Duration) -> MappingLifetime {
    let ages = AGES.map(Duration::from_secs).into_iter().filter(|age| *age <= longest.min(LONGEST));
    let results: Vec<(Duration, Option<bool>)> =
        join_all(ages.map(|age| async move { (age, is_alive_after(server, age).await) })).await;
    conclude(&results)
}

/// Returns whether a mapping is alive at this age; `None` if it could not be tested.
async fn is_alive_after(server: SocketAddr, age: Duration) -> Option<bool> {
    let (socket, asking) = (StunSocket::bind(server)?, StunSocket::bind(server)?);
    let mapped =
        socket.ask(server, StunOptions::default(), time::runtime() + 2 * ANSWER_TIME).await?.mapped?;
    sleep_until((time::runtime() + age).into()).await;
    for _ in 0..TRIES {
        let id: [u8; 12] = rand::random();
        asking.send(server, &request(id, StunOptions { change: 0, response_port: Some(mapped.port()) }));
        let until = time::runtime() + ANSWER_TIME;
        while let Some((bytes, _)) = socket.receive(until).await {
            if answer(&bytes, id).is_some() {
                return Some(true);
            }
        }
    }
    Some(false)
}

/// Draws the conclusion. A mapping that is gone at once shows that the answers are lost for another reason.
fn conclude(results: &[(Duration, Option<bool>)]) -> MappingLifetime {
    let with = |alive: bool| results.iter().filter(move |(_, is)| *is == Some(alive)).map(|(age, _)| *age);
    match (with(true).max(), with(false).min()) {
        (Some(alive), Some(gone)) if alive < gone => MappingLifetime::Between(alive, gone),
        // A lost packet looks like a mapping that is gone.
        (Some(alive), _) => {
            let gone = with(false).filter(|gone| *gone > alive).min();
            gone.map_or(MappingLifetime::AtLeast(alive), |gone| MappingLifetime::Between(alive, gone))
        }
        (None, _) => MappingLifetime::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lifetime_is_between_the_last_that_lived_and_the_first_that_was_gone() {
        let seen = |results: &[(u64, Option<bool>)]| {
            let results: Vec<_> = results.iter().map(|(age, is)| (Duration::from_secs(*age), *is)).collect();
            conclude(&results).to_string()
        };
        assert_eq!(seen(&[(1, Some(true)), (2, Some(true)), (3, Some(false)), (5, None)]), "2 to 3 s");
        assert_eq!(seen(&[(1, Some(true)), (118, Some(true))]), "at least 118 s");
        assert_eq!(seen(&[(1, Some(false)), (2, Some(true)), (3, Some(false))]), "2 to 3 s");
        assert_eq!(seen(&[(1, Some(false)), (2, Some(true))]), "at least 2 s");
        assert_eq!(seen(&[(1, Some(false)), (2, None)]), "unknown");
        assert_eq!(seen(&[]), "unknown");
    }
}
