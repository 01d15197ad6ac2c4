//! The answer of a server to `GET /healthz`, or of what stands in its place.

/// Bytes of an answer that are read.
pub(super) const MAX_ANSWER: usize = 8 << 10;
/// What a server that is up answers.
const HEALTHY: &str = "ok";
/// Characters of a redirection that are kept.
const MAX_LOCATION: usize = 120;
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A parsed answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpAnswer {
    pub(super) status: u16,
    /// The target of a redirection, without characters that a terminal acts on.
    pub(super) location: Option<String>,
    /// Seconds since the Unix epoch, by the clock of the answering side.
    pub(super) date: Option<u64>,
    is_ok: bool,
}

impl HttpAnswer {
    /// Parses an answer that may lack the end of its body.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
        let mut answer =
            Self { status, location: None, date: None, is_ok: status == 200 && body.trim_end() == HEALTHY };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "date" => answer.date = parse_date(value),
                "location" => {
                    let shown = value.chars().filter(|c| c.is_ascii_graphic()).take(MAX_LOCATION);
                    answer.location = Some(shown.collect());
                }
                _ => {}
            }
        }
        Some(answer)
    }

    /// Returns whether it is what a ginnel server that is up answers.
    pub(super) fn is_healthy(&self) -> bool {
        self.is_ok
    }
}

/// Parses a date of HTTP, such as `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 section 5.6.7), to seconds since the Unix epoch.
fn parse_date(text: &str) -> Option<u64> {
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    let [_, day, month, year, time, "GMT"] = fields[..] else { return None };
    let month = u64::try_from(MONTHS.iter().position(|name| *name == month)?).ok()? + 1;
    let (day, year): (u64, u64) = (day.parse().ok()?, year.parse().ok()?);
    let mut clock = time.splitn(3, ':').map(str::parse::<u64>);
    let (hours, minutes, seconds) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
    if !(1970..10_000).contains(&year)
        || !(1..=31).contains(&day)
        || hours > 23
        || minutes > 59
        || seconds > 60
    {
        return None;
    }
    // March is the first month of this count, so that a leap day is the last of its year.
    let (count_year, count_month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = count_year / 4 - count_year / 100 + count_year / 400;
    let days = count_year * 365 + leap_days + (count_month * 153 + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    Some(days * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_server_that_is_up_is_told_from_what_stands_in_its_place() {
        let up =
            b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\nok\n";
        let answer = HttpAnswer::parse(up).unwrap();
        assert!(answer.is_healthy());
        assert_eq!(answer.date, Some(784_111_777));
        let portal = b"HTTP/1.1 302 Found\r\nLocation: http://portal.example/\x1b[2J?x\r\n\r\n";
        let answer = HttpAnswer::parse(portal).unwrap();
        assert!(!answer.is_healthy());
        assert_eq!((answer.status, answer.location.as_deref()), (302, Some("http://portal.example/[2J?x")));
        for other in [&b"HTTP/1.1 200 OK\r\n\r\n<html>log in</html>"[..], b"HTTP/1.0 511 Login\r\n\r\n"] {
            assert!(!HttpAnswer::parse(other).unwrap().is_healthy());
        }
        for none in [&b""[..], b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 x\r\n\r\n"] {
            assert_eq!(HttpAnswer::parse(none), None);
        }
    }

    #[test]
    fn dates_are_seconds_since_the_epoch() {
        for (text, expected) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Tue, 29 Feb 2000 12:00:00 GMT", Some(951_825_600)),
            ("Mon, 30 Nov 2026 20:30:00 GMT", Some(1_796_070_600)),
            ("Sun, 06 Nov 1994 08:49:37", None),
            ("Sun, 06 Nov 1994 24:49:37 GMT", None),
            ("Sun, 06 Foo 1994 08:49:37 GMT", None),
            ("", None),
        ] {
            assert_eq!(parse_date(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_arrives_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), date in ".{0,40}") {
            let _ = HttpAnswer::parse(&bytes);
            let _ = parse_date(&date);
        }
    }
}
