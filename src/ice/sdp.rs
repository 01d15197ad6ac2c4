//! Offers and answers with ICE, as far as a data channel needs them ([RFC 8839](https://www.rfc-editor.org/rfc/rfc8839)).

use super::candidate::Candidate;
use super::credentials::IceCredentials;
use std::fmt;
use std::str::FromStr;

/// Longest text that is read, in bytes.
const MAX_LEN: usize = 64 * 1024;
/// Most candidates that are read.
const MAX_CANDIDATES: usize = 64;

/// Why a text is no session description with ICE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SdpError {
    /// A line is not `x=value`, `v=0` is not the first one, or the text is too long.
    #[error("the session description is malformed")]
    Malformed,
    /// There is no `ice-ufrag` or no `ice-pwd`, or one of them is malformed.
    #[error("the session description has no ICE credentials")]
    Credentials,
}

/// What ICE needs of an offer or answer with one media section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionDescription {
    /// The credentials.
    pub credentials: IceCredentials,
    /// The candidates that are known.
    pub candidates: Vec<Candidate>,
    /// Whether there will be more (RFC 8838).
    pub is_end_of_candidates: bool,
    /// Whether `ice-options` has `renomination`.
    pub renomination: bool,
    /// Whether the side implements only ICE-lite.
    pub is_lite: bool,
}

impl fmt::Display for SessionDescription {
    /// Writes an SDP with the section of a data channel; its default address is that of no candidate (RFC 8839 section 4.3.1).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = if self.renomination { "trickle ice2 renomination" } else { "trickle ice2" };
        write!(f, "v=0\r\no=- 0 0 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n")?;
        write!(
            f,
            "a=ice-options:{options}\r\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\n"
        )?;
        write!(
            f,
            "a=ice-ufrag:{}\r\na=ice-pwd:{}\r\n",
            self.credentials.ufrag(),
            self.credentials.password()
        )?;
        for candidate in &self.candidates {
            write!(f, "a={candidate}\r\n")?;
        }
        if self.is_end_of_candidates {
            f.write_str("a=end-of-candidates\r\n")?;
        }
        Ok(())
    }
}

impl FromStr for SessionDescription {
    type Err = SdpError;

    /// Reads the session part and the first media section. Candidates that cannot be used are left out.
    fn from_str(text: &str) -> Result<Self, SdpError> {
        if text.len() > MAX_LEN {
            return Err(SdpError::Malformed);
        }
        let mut lines = text.lines().filter(|line| !line.is_empty());
        if lines.next() != Some("v=0") {
            return Err(SdpError::Malformed);
        }
        let (mut ufrag, mut password, mut media) = (None, None, 0);
        let mut candidates = Vec::new();
        let (mut is_end_of_candidates, mut renomination, mut is_lite) = (false, false, false);
        for line in lines {
            let (kind, value) =
                line.split_once('=').filter(|(kind, _)| kind.len() == 1).ok_or(SdpError::Malformed)?;
            media += usize::from(kind == "m");
            if kind != "a" || media > 1 {
                continue;
            }
            match value.split_once(':').unwrap_or((value, "")) {
                ("ice-ufrag", value) => ufrag = Some(value),
                ("ice-pwd", value) => password = Some(value),
                ("ice-options", value) => {
                    renomination |= value.split_ascii_whitespace().any(|o| o == "renomination")
                }
                ("ice-lite", _) => is_lite = true,
                ("candidate", value) if candidates.len() < MAX_CANDIDATES => candidates.extend(value.parse()),
                ("end-of-candidates", _) => is_end_of_candidates = true,
                _ => {}
            }
        }
        let (ufrag, password) = ufrag.zip(password).ok_or(SdpError::Credentials)?;
        let credentials = IceCredentials::new(ufrag, password).map_err(|_| SdpError::Credentials)?;
        Ok(Self { credentials, candidates, is_end_of_candidates, renomination, is_lite })
    }
}

#[cfg(test)]
mod tests {
    use super::super::candidate::CandidateTransport;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_can_be_read() {
        let description = SessionDescription {
            credentials: IceCredentials::new("abcd", &"p".repeat(22)).unwrap(),
            candidates: vec![
                Candidate::host(CandidateTransport::Udp, "192.0.2.1:5".parse().unwrap(), 9),
                Candidate::relayed("[2001:db8::1]:6".parse().unwrap(), 9),
            ],
            is_end_of_candidates: true,
            renomination: true,
            is_lite: false,
        };
        assert_eq!(description.to_string().parse(), Ok(description));
    }

    #[test]
    fn an_offer_of_a_browser_is_read() {
        let offer = "v=0\r\no=- 4611731400430051336 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\na=msid-semantic: WMS\r\n\
            m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\na=ice-ufrag:EsAw\r\n\
            a=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1\r\na=ice-options:trickle\r\n\
            a=candidate:1 1 udp 2122260223 0b1b-4f.local 4 typ host\r\n\
            a=candidate:2 1 udp 1686052607 203.0.113.5 4 typ srflx raddr 0.0.0.0 rport 0 generation 0\r\n\
            a=fingerprint:sha-256 D2:FA\r\na=setup:actpass\r\na=mid:0\r\na=sctp-port:5000\r\n\
            m=audio 9 X 0\r\na=ice-ufrag:other\r\n";
        let read: SessionDescription = offer.parse().unwrap();
        assert_eq!((read.credentials.ufrag(), read.candidates.len()), ("EsAw", 1));
        assert!(!read.is_end_of_candidates && !read.renomination);
    }

    #[test]
    fn a_text_without_credentials_is_refused() {
        assert_eq!("".parse::<SessionDescription>(), Err(SdpError::Malformed));
        assert_eq!("v=0\nnothing".parse::<SessionDescription>(), Err(SdpError::Malformed));
        assert_eq!("v=0\na=ice-ufrag:abcd".parse::<SessionDescription>(), Err(SdpError::Credentials));
        assert_eq!(
            "v=0\na=ice-ufrag:abcd\na=ice-pwd:short".parse::<SessionDescription>(),
            Err(SdpError::Credentials)
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
            let _ = format!("v=0\na={text}").parse::<SessionDescription>();
        }
    }
}
