use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use memtrace_model::is_visible;

/// Why a profile did not come. Sorted by who must act; one line each; never
/// holds a token.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ScrapeError {
    // The user of memtrace must act: a repeat fails the same way.
    /// The address is not one that can be asked.
    #[error("{0}")]
    BadAddress(String),
    /// The token could not be read from its file or variable.
    #[error("cannot read the token from {from}: {reason}")]
    Token {
        /// `file PATH` or `variable NAME`.
        from: String,
        /// Why.
        reason: String,
    },
    /// A certificate or key file is unusable, or no roots are known.
    #[error("TLS set-up: {file}: {reason}")]
    TlsSetup {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// 401 or 403.
    #[error("token refused: {at} answered {status} (header {header}; {hint})")]
    TokenRefused {
        /// The address asked.
        at: String,
        /// HTTP status.
        status: u16,
        /// Name of the header that carries the token.
        header: String,
        /// What to do.
        hint: &'static str,
    },
    /// The answer is larger than the cap; it was cut off.
    #[error("{at} sends more than {cap} bytes; stopped reading")]
    TooLarge {
        /// The address asked.
        at: String,
        /// The cap, bytes.
        cap: u64,
    },
    /// The TLS handshake failed.
    #[error("TLS with {at} failed: {reason}")]
    Tls {
        /// The address asked.
        at: String,
        /// Why.
        reason: String,
    },

    // The owner of the service must act.
    /// 404.
    #[error(
        "no pprof at {at} ({status}: {said}); wrong port or prefix, or the service must import net/http/pprof"
    )]
    NoPprof {
        /// The address asked.
        at: String,
        /// HTTP status.
        status: u16,
        /// First words of the answer.
        said: String,
    },
    /// Something came, but not a profile.
    #[error("{at} answered {status} with {what} instead of a profile: {said:?}")]
    NotAProfile {
        /// The address asked.
        at: String,
        /// HTTP status.
        status: u16,
        /// `HTML`, `JSON`, `text`, `nothing`.
        what: &'static str,
        /// First words of the answer.
        said: String,
    },
    /// The answer points to another host; it was not followed.
    #[error("{at} redirects to {to}; not followed, name that address instead")]
    Redirect {
        /// The address asked.
        at: String,
        /// Scheme, host and port it points to.
        to: String,
    },

    // Time may help: a repeat can succeed.
    /// Nothing listens there.
    #[error("{at}: connection refused; is the service up and the port right?")]
    Refused {
        /// The address asked.
        at: String,
    },
    /// The name is unknown.
    #[error("{at}: host name not found")]
    Dns {
        /// The address asked.
        at: String,
    },
    /// No way there, or the connection could not be made.
    #[error("{at}: cannot connect: {reason}")]
    Unreachable {
        /// The address asked.
        at: String,
        /// Why.
        reason: String,
    },
    /// Too slow.
    #[error("{at}: no complete answer within {waited:.1?} ({phase})")]
    Timeout {
        /// The address asked.
        at: String,
        /// `connecting`, `reading`, or `in all`.
        phase: &'static str,
        /// How long was waited.
        waited: Duration,
    },
    /// The service failed.
    #[error("{at} answered {status}: {said}")]
    Status {
        /// The address asked.
        at: String,
        /// HTTP status.
        status: u16,
        /// First words of the answer.
        said: String,
    },
    /// The service asked to be left alone for a while.
    #[error("{at} asks to wait {wait:.1?} more")]
    Busy {
        /// The address asked.
        at: String,
        /// How long from now.
        wait: Duration,
    },
    /// The connection ended before the answer did.
    #[error("{at}: answer cut short after {got} bytes: {reason}")]
    Truncated {
        /// The address asked.
        at: String,
        /// Bytes that came.
        got: u64,
        /// Why.
        reason: String,
    },
}

impl ScrapeError {
    /// Whether repeating is useless until a person changes something.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        !self.is_transient()
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::BadAddress(_)
            | Self::Token { .. }
            | Self::TlsSetup { .. }
            | Self::TokenRefused { .. }
            | Self::TooLarge { .. }
            | Self::Tls { .. }
            | Self::NoPprof { .. }
            | Self::NotAProfile { .. }
            | Self::Redirect { .. } => false,
            Self::Status { status, .. } => *status >= 500 || *status == 429 || *status == 408,
            Self::Refused { .. }
            | Self::Dns { .. }
            | Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Busy { .. }
            | Self::Truncated { .. } => true,
        }
    }

    /// Whether there is nothing of the kind at that address. A refused token may be one
    /// that is being changed.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(
            self,
            Self::NoPprof { .. } | Self::NotAProfile { .. } | Self::Redirect { .. }
        ) || matches!(self, Self::Status { status, .. } if (400..500).contains(status) && *status != 429 && *status != 408)
    }

    /// Whether an immediate repeat within the interval is worth its cost. A slow
    /// target is not asked again at once.
    pub(super) fn is_retryable(&self) -> bool {
        match self {
            Self::Timeout { phase, .. } => *phase == "connecting",
            Self::Busy { .. } => false,
            other => other.is_transient(),
        }
    }

    /// Whether the service may have produced a profile for this request.
    pub(super) fn may_have_cost(&self) -> bool {
        match self {
            Self::Timeout { phase, .. } => *phase != "connecting",
            Self::Truncated { .. } | Self::NotAProfile { .. } | Self::TooLarge { .. } => true,
            _ => false,
        }
    }

    /// Sorts an error of the HTTP client that came before or with the head.
    pub(super) fn from_send(at: &str, error: &reqwest::Error, waited: Duration) -> Self {
        let at = at.to_owned();
        if let Some(reason) = find::<rustls::Error>(error) {
            let reason = match reason {
                rustls::Error::InvalidMessage(_) => "it does not speak TLS; try http://".to_owned(),
                other => sanitise(&other.to_string(), 160),
            };
            return Self::Tls { at, reason };
        }
        if error.is_timeout() {
            let phase = if error.is_connect() {
                "connecting"
            } else {
                "reading"
            };
            return Self::Timeout { at, phase, waited };
        }
        if says(error, "dns error") {
            return Self::Dns { at };
        }
        let io = find::<io::Error>(error);
        if error.is_connect() {
            if io.is_some_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
                return Self::Refused { at };
            }
            return Self::Unreachable {
                at,
                reason: root_cause(error),
            };
        }
        Self::Truncated {
            at,
            got: 0,
            reason: root_cause(error),
        }
    }

    /// Sorts an error of the HTTP client that came with the body.
    pub(super) fn from_body(at: &str, error: &reqwest::Error, got: u64, waited: Duration) -> Self {
        let at = at.to_owned();
        if error.is_timeout() {
            return Self::Timeout {
                at,
                phase: "reading",
                waited,
            };
        }
        Self::Truncated {
            at,
            got,
            reason: root_cause(error),
        }
    }
}

fn chain(error: &reqwest::Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    std::iter::successors(error.source(), |e| cause(*e)).take(16)
}

fn cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    // An io::Error shows what it wraps through get_ref, not through source.
    match error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref)
    {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

fn find<E: StdError + 'static>(error: &reqwest::Error) -> Option<&E> {
    chain(error).filter_map(|e| e.downcast_ref::<E>()).last()
}

fn says(error: &reqwest::Error, words: &str) -> bool {
    chain(error).any(|e| e.to_string().contains(words))
}

fn root_cause(error: &reqwest::Error) -> String {
    match chain(error).last() {
        Some(e) => sanitise(&e.to_string(), 120),
        None => "connection failed".to_owned(),
    }
}

/// The first words of what a stranger sent: one line, printable, at most `max`
/// characters.
pub(crate) fn sanitise(text: &str, max: usize) -> String {
    let mut out = String::new();
    let mut count = 0;
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()) {
        if word.is_empty() {
            continue;
        }
        if count > 0 {
            out.push(' ');
            count += 1;
        }
        for c in word.chars() {
            if count >= max {
                while out.chars().count() >= max {
                    out.pop();
                }
                out.truncate(out.trim_end().len());
                out.push('…');
                return out;
            }
            // Bidirectional controls and other invisible marks could forge a line.
            out.push(if is_visible(c) { c } else { '\u{fffd}' });
            count += 1;
        }
    }
    out.truncate(out.trim_end().len());
    out
}

#[cfg(test)]
mod tests {
    use super::sanitise;

    #[test]
    fn first_words_are_one_short_printable_line() {
        for (input, max, want) in [
            ("", 80, ""),
            ("  <h1>\n\tBad\r\nGateway</h1>", 80, "<h1> Bad Gateway</h1>"),
            ("\x1b[31mred\x07", 80, "[31mred"),
            ("abcdef", 4, "abc…"),
            ("abcd", 4, "abcd"),
            ("a\u{202e}b", 80, "a\u{fffd}b"),
        ] {
            assert_eq!(sanitise(input, max), want, "{input:?}");
        }
        let long = sanitise(&"word ".repeat(10_000), 80);
        assert!(long.chars().count() <= 80, "{long}");
    }
}
