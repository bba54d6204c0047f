use std::fmt;
use std::net::IpAddr;

use reqwest::Url;

use super::ScrapeError;

/// The root under which a service serves `/debug/pprof/`: scheme, host, port and
/// prefix. Holds no credentials.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Without query and fragment; the path ends with `/`.
    base: Url,
    /// Found on this machine: a proxy of the environment cannot reach it.
    direct: bool,
}

impl Endpoint {
    /// Takes `http(s)://host[:port][/prefix]` or `host:port[/prefix]`. A pasted
    /// address of a profile (`…/debug/pprof/heap?debug=1`) works too.
    ///
    /// # Errors
    /// [`ScrapeError::BadAddress`] for another scheme, a missing host, or
    /// credentials in the address.
    pub fn parse(text: &str) -> Result<Self, ScrapeError> {
        let shown = super::error::sanitise(text, 120);
        let bad = |why: &str| ScrapeError::BadAddress(format!("{shown}: {why}"));
        let lower = text.get(..8).unwrap_or(text).to_ascii_lowercase();
        let full = if lower.starts_with("http://") || lower.starts_with("https://") {
            text.to_owned()
        } else if text.contains("://") {
            return Err(bad("only http:// and https:// can be scraped"));
        } else {
            // `:6060`, as a Go service prints it.
            let host = if text.starts_with(':') {
                "localhost"
            } else {
                ""
            };
            format!("http://{host}{text}")
        };
        let Ok(mut base) = Url::parse(&full) else {
            return Err(ScrapeError::BadAddress(match full.contains('@') {
                true => "not an address".to_owned(),
                false => format!("{shown}: not an address"),
            }));
        };
        if !base.username().is_empty() || base.password().is_some() {
            return Err(ScrapeError::BadAddress(format!(
                "{}: no credentials in an address, others can see them; use a token file",
                base.host_str().unwrap_or("address"),
            )));
        }
        if base.host_str().is_none_or(str::is_empty) {
            return Err(bad("no host"));
        }
        base.set_query(None);
        base.set_fragment(None);
        let path = base.path().to_owned();
        let prefix = path
            .find("/debug/pprof")
            .map_or(path.as_str(), |at| &path[..at]);
        base.set_path(&format!("{}/", prefix.trim_end_matches('/')));
        Ok(Self {
            base,
            direct: false,
        })
    }

    /// The endpoint at a socket address found on this machine.
    #[must_use]
    pub(crate) fn at(scheme: &str, address: std::net::SocketAddr) -> Option<Self> {
        let parsed = Self::parse(&format!("{scheme}://{address}")).ok()?;
        Some(Self {
            direct: true,
            ..parsed
        })
    }

    /// Host name or address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        self.base
            .host_str()
            .unwrap_or_default()
            .trim_matches(['[', ']'])
    }

    /// TCP port, that of the scheme where none is written.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.base.port_or_known_default().unwrap_or(80)
    }

    /// Whether the connection is encrypted.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.base.scheme() == "https"
    }

    /// Whether the host is this machine's loopback, by name or number.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let host = self.host();
        host.eq_ignore_ascii_case("localhost")
            || host
                .parse::<IpAddr>()
                .is_ok_and(|ip| ip.to_canonical().is_loopback())
    }

    /// Whether proxies of the environment are left aside.
    pub(super) fn is_direct(&self) -> bool {
        self.direct || self.is_loopback()
    }

    /// The address of something below `/debug/`.
    pub(super) fn url(&self, what: &str) -> Option<Url> {
        self.base.join(&format!("debug/{what}")).ok()
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.base.as_str().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_people_have_them() {
        for (text, want) in [
            ("http://host:6060", "http://host:6060"),
            ("HTTP://Host:6060/", "http://host:6060"),
            ("host:6060", "http://host:6060"),
            (":6060", "http://localhost:6060"),
            ("[::1]:6060", "http://[::1]:6060"),
            ("https://h/a/b/", "https://h/a/b"),
            ("h:1/debug/pprof/heap?debug=1#x", "http://h:1"),
            ("http://h:1/ns/debug/pprof", "http://h:1/ns"),
        ] {
            let endpoint = Endpoint::parse(text).unwrap();
            assert_eq!(endpoint.to_string(), want, "{text}");
            let url = endpoint.url("pprof/heap").unwrap();
            assert_eq!(url.as_str(), format!("{want}/debug/pprof/heap"));
        }
    }

    #[test]
    fn refused_addresses_never_repeat_a_password() {
        for text in [
            "ftp://h/x",
            "http://",
            "http://:6060",
            "http://user:s3cret@h:6060",
            "user:s3cret@h:6060",
            "http://user:s3cret@h:x",
            "http://h:99999",
        ] {
            let error = Endpoint::parse(text).unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn loopback_by_name_and_number() {
        for (text, want) in [
            ("localhost:1", true),
            ("127.3.2.1:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("10.0.0.1:1", false),
            ("example.com:1", false),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().is_loopback(), want, "{text}");
        }
    }
}
