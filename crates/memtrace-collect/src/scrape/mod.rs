//! Profiles over HTTP, from a service that must not be disturbed.
//!
//! A [`Scraper`] holds one connection to one service and never has more than one
//! request under way: every fetch borrows it mutably. What a fetch may cost the
//! service is bounded by [`Options`]; what it may cost us, by its cap.

mod answer;
mod endpoint;
mod error;
mod tls;
mod token;

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _};
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use memtrace_model::{Gauge, Gauges, Time};
use reqwest::header::{self, HeaderName};
use reqwest::{Client, Response, Url, redirect};
use tokio::time::Instant;

pub use endpoint::Endpoint;
pub use error::ScrapeError;
pub(crate) use error::sanitise;
use token::Token;
pub use token::TokenSource;

/// The header that carries the token unless another is named.
pub const TOKEN_HEADER: &str = "X-Pprof-Token";

/// A goroutine dump stops the world for a moment: never more often than this.
pub const GOROUTINE_GAP: Duration = Duration::from_secs(60);

/// A Retry-After longer than this is shortened to it.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

const USER_AGENT: &str = concat!("memtrace/", env!("CARGO_PKG_VERSION"));
const LONGEST: Duration = Duration::from_secs(24 * 3600);
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
/// How long what the SDK tells is waited for, and the largest answer, bytes.
const SDK_PATIENCE: Duration = Duration::from_secs(2);
const SDK_BYTES: u64 = 2 << 20;
/// Longest name of a function that is taken from the service, bytes.
const LONGEST_NAME: usize = 1024;
/// Addresses in one request for their names: it must fit into the line of a GET.
const SYMBOLS_AT_ONCE: usize = 200;
/// As much of an answer is looked at.
const SYMBOL_PAGE: usize = 1 << 20;
/// How much of an answer that is not a profile is read to say what it was.
const ERROR_BODY: usize = 4096;

/// Largest answer of a service that is watched, bytes: the heap profile of the largest programs
/// takes a tenth, compressed, and what is not compressed (their calls into the runtime) about half.
pub const WATCH_BYTES: u64 = 16 << 20;

/// How to talk to a service.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Where the token is kept.
    pub token: TokenSource,
    /// Name of the header that carries the token; default [`TOKEN_HEADER`].
    pub token_header: String,
    /// Ask for a garbage collection before each heap profile (`heap?gc=1`): the
    /// profile is exact to the moment, at the price of a GC cycle. Default off.
    pub gc: bool,
    /// Time between two profiles. A fetch, with all its repeats, ends within it.
    pub interval: Duration,
    /// Longest time to make a connection.
    pub connect_timeout: Duration,
    /// Longest silence while an answer is awaited or read.
    pub read_timeout: Duration,
    /// Longest time for one request as a whole.
    pub total_timeout: Duration,
    /// Largest answer, bytes as sent (profiles come compressed). Default 256 MiB, for one
    /// profile that somebody asked for; who watches many services takes [`WATCH_BYTES`].
    pub max_bytes: u64,
    /// How often a failed request is repeated within the interval.
    pub retries: u32,
    /// Certificates to trust besides the system's (PEM).
    pub ca_file: Option<PathBuf>,
    /// Certificate that memtrace shows the service (PEM; may hold the key too).
    pub client_cert: Option<PathBuf>,
    /// Key of `client_cert` (PEM).
    pub client_key: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            token: TokenSource::None,
            token_header: TOKEN_HEADER.to_owned(),
            gc: false,
            interval: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(3),
            read_timeout: Duration::from_secs(10),
            total_timeout: Duration::from_secs(20),
            max_bytes: 256 * 1024 * 1024,
            retries: 3,
            ca_file: None,
            client_cert: None,
            client_key: None,
        }
    }
}

/// A profile as the service sent it.
#[derive(Clone)]
pub struct Fetched {
    /// The bytes, usually gzip around a protobuf.
    pub body: Vec<u8>,
    /// When the request that succeeded was sent: the moment the profile is about.
    pub started: Time,
    /// From sending that request to its last byte.
    pub took: Duration,
}

impl fmt::Debug for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetched")
            .field("bytes", &self.body.len())
            .field("started", &self.started)
            .field("took", &self.took)
            .finish()
    }
}

/// When each service last made a goroutine dump for this process, so that a
/// scraper made anew does not ask again too early.
static LAST_DUMP: LazyLock<Mutex<HashMap<Endpoint, Instant>>> = LazyLock::new(Mutex::default);

fn last_dumps() -> std::sync::MutexGuard<'static, HashMap<Endpoint, Instant>> {
    LAST_DUMP.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One service, one connection, one request at a time.
pub struct Scraper {
    endpoint: Endpoint,
    options: Options,
    header: HeaderName,
    client: Client,
    token: Option<Token>,
    not_before: Option<Instant>,
}

impl fmt::Debug for Scraper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scraper")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// A failed attempt.
struct Failure {
    error: ScrapeError,
    retry_after: Option<Duration>,
}

impl From<ScrapeError> for Failure {
    fn from(error: ScrapeError) -> Self {
        Self {
            error,
            retry_after: None,
        }
    }
}

/// What an answer should look like.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Profile,
    Text,
    Json,
}

/// What is asked for.
#[derive(Clone, Copy)]
struct Ask<'a> {
    /// Below `/debug/`.
    path: &'a str,
    form: Form,
    /// An attempt that may have made the service work is not repeated.
    once: bool,
}

impl Scraper {
    /// Prepares a scraper; the token and the certificates are read now, the
    /// service is not contacted.
    ///
    /// # Errors
    /// What the user must set right: token, header name, certificate files.
    pub fn new(endpoint: Endpoint, mut options: Options) -> Result<Self, ScrapeError> {
        // Clocks overflow on what a caller may mean by "for ever".
        for time in [
            &mut options.interval,
            &mut options.connect_timeout,
            &mut options.read_timeout,
            &mut options.total_timeout,
        ] {
            *time = (*time).min(LONGEST);
        }
        let header = HeaderName::from_bytes(options.token_header.as_bytes()).map_err(|_| {
            ScrapeError::BadAddress(format!(
                "{:?} is not the name of a header",
                sanitise(&options.token_header, 40)
            ))
        })?;
        let token = options.token.read()?;
        let client = client(&endpoint, &options)?;
        Ok(Self {
            endpoint,
            options,
            header,
            client,
            token,
            not_before: None,
        })
    }

    /// The service this scraper talks to.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What the user should know about this set-up, one line each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut all = Vec::new();
        if self.token.is_some() && !self.endpoint.is_https() && !self.endpoint.is_loopback() {
            all.push(format!(
                "the token travels unencrypted to {}; use https:// outside a protected network",
                self.endpoint.host()
            ));
        }
        all
    }

    /// The in-use heap profile (`/debug/pprof/heap`).
    ///
    /// # Errors
    /// One clear line; see [`ScrapeError::is_transient`].
    pub async fn heap(&mut self) -> Result<Fetched, ScrapeError> {
        let path = if self.options.gc {
            "pprof/heap?gc=1"
        } else {
            "pprof/heap"
        };
        self.fetch(Ask {
            path,
            form: Form::Profile,
            once: false,
        })
        .await
    }

    /// The allocation profile since the start of the service
    /// (`/debug/pprof/allocs`): in Go the same samples as [`Self::heap`].
    ///
    /// # Errors
    /// As for [`Self::heap`].
    pub async fn allocs(&mut self) -> Result<Fetched, ScrapeError> {
        self.fetch(Ask {
            path: "pprof/allocs",
            form: Form::Profile,
            once: false,
        })
        .await
    }

    /// The goroutine profile as protobuf, the cheap form. None when the last one
    /// of this service is younger than [`GOROUTINE_GAP`].
    ///
    /// # Errors
    /// As for [`Self::heap`]. An attempt that may have made the service dump
    /// counts, even when its answer was lost.
    pub async fn goroutines(&mut self) -> Result<Option<Fetched>, ScrapeError> {
        let now = Instant::now();
        let before = {
            let mut last = last_dumps();
            let before = last.get(&self.endpoint).copied();
            if !dump_is_due(before, now) {
                return Ok(None);
            }
            // Taken before asking, so that a dropped future counts as a dump.
            last.retain(|_, at| now.saturating_duration_since(*at) < GOROUTINE_GAP);
            last.insert(self.endpoint.clone(), now);
            before
        };
        let not_before = self.not_before;
        let result = self
            .fetch(Ask {
                path: "pprof/goroutine",
                form: Form::Profile,
                once: true,
            })
            .await;
        if matches!(&result, Err(ScrapeError::Status { status: 429, .. })) {
            // A service that limits dumps, as the Go SDK's guard does, still gives heap profiles.
            self.not_before = not_before;
        }
        let mut last = last_dumps();
        match &result {
            Err(e) if !e.may_have_cost() => match before {
                Some(before) => last.insert(self.endpoint.clone(), before),
                None => last.remove(&self.endpoint),
            },
            // The gap runs from the end: a retry may have made the dump late.
            _ => last.insert(self.endpoint.clone(), Instant::now()),
        };
        result.map(Some)
    }

    /// The heap profile as text (`heap?debug=1`), which ends with the runtime's
    /// memory statistics; [`mem_stats`] reads them. Only on request: the service
    /// stops its world for `runtime.ReadMemStats`.
    ///
    /// # Errors
    /// As for [`Self::heap`].
    pub async fn mem_stats(&mut self) -> Result<Fetched, ScrapeError> {
        self.fetch(Ask {
            path: "pprof/heap?debug=1",
            form: Form::Text,
            once: false,
        })
        .await
    }

    /// The heap profile as text with the memory statistics, as [`Self::mem_stats`] gives
    /// it; after a collection where [`Options::gc`] asks for one.
    ///
    /// # Errors
    /// As for [`Self::heap`].
    pub async fn heap_text(&mut self) -> Result<Fetched, ScrapeError> {
        let path = match self.options.gc {
            true => "pprof/heap?gc=1&debug=1",
            false => "pprof/heap?debug=1",
        };
        self.fetch(Ask {
            path,
            form: Form::Text,
            once: false,
        })
        .await
    }

    /// Names of the functions at code addresses of the service
    /// (`/debug/pprof/symbol`); an address it does not know has none.
    ///
    /// # Errors
    /// As for [`Self::heap`].
    pub async fn symbols(
        &mut self,
        addresses: &[u64],
    ) -> Result<HashMap<u64, String>, ScrapeError> {
        let mut names = HashMap::new();
        for some in addresses.chunks(SYMBOLS_AT_ONCE) {
            let list: Vec<String> = some.iter().map(|a| format!("{a:#x}")).collect();
            let fetched = self
                .fetch(Ask {
                    path: &format!("pprof/symbol?{}", list.join("+")),
                    form: Form::Text,
                    once: false,
                })
                .await?;
            let body = &fetched.body[..fetched.body.len().min(SYMBOL_PAGE)];
            let text = String::from_utf8_lossy(body);
            names.extend(text.lines().take(2 * SYMBOLS_AT_ONCE).filter_map(|line| {
                let (address, name) = line.strip_prefix("0x")?.split_once(' ')?;
                let address = u64::from_str_radix(address, 16).ok();
                let name = memtrace_model::cut(name, LONGEST_NAME);
                // What was not asked for is not taken.
                Some((address.filter(|a| some.contains(a))?, name.to_owned()))
            }));
        }
        Ok(names)
    }

    /// What the memtrace SDK in the service serves under `/debug/memtrace/`, as JSON:
    /// `tags`, or `events?since=N`.
    ///
    /// # Errors
    /// As for [`Self::heap`]; [`ScrapeError::is_absent`] where the service has no SDK.
    pub async fn sdk(&mut self, what: &str) -> Result<Fetched, ScrapeError> {
        self.fetch(Ask {
            path: &format!("memtrace/{what}"),
            form: Form::Json,
            once: false,
        })
        .await
    }

    async fn fetch(&mut self, ask: Ask<'_>) -> Result<Fetched, ScrapeError> {
        let begun = Instant::now();
        let patience = match ask.form {
            // An extra: profiles must not wait for it.
            Form::Json => self.options.interval.min(SDK_PATIENCE),
            _ => self.options.interval,
        };
        let deadline = begun + patience;
        let shown = format!("{}/debug/{}", self.endpoint, ask.path);
        let Some(url) = self.endpoint.url(ask.path) else {
            return Err(ScrapeError::BadAddress(format!("{shown}: not an address")));
        };
        if let Some(wait) = self
            .not_before
            .and_then(|at| at.checked_duration_since(begun))
            && !wait.is_zero()
        {
            return Err(ScrapeError::Busy { at: shown, wait });
        }
        self.not_before = None;

        let mut tries = 0;
        let mut reread = false;
        loop {
            let (sent, started) = (Instant::now(), crate::now());
            let budget = self
                .options
                .total_timeout
                .min(deadline.saturating_duration_since(sent));
            let attempt = tokio::time::timeout(budget, self.attempt(&url, &shown, ask)).await;
            let failure = match attempt {
                Ok(Ok(body)) => {
                    return Ok(Fetched {
                        body,
                        started,
                        took: sent.elapsed(),
                    });
                }
                Ok(Err(failure)) => failure,
                Err(_) => ScrapeError::Timeout {
                    at: shown.clone(),
                    phase: "in all",
                    waited: budget,
                }
                .into(),
            };
            if matches!(failure.error, ScrapeError::TokenRefused { .. }) && !reread {
                reread = true;
                // A file that is missing in the middle of its rotation is looked at
                // again with the next refusal.
                if let Ok(fresh) = self.options.token.read()
                    && fresh != self.token
                {
                    self.token = fresh;
                    continue;
                }
            }
            if let Some(wait) = failure.retry_after {
                self.not_before = Some(Instant::now() + wait.min(MAX_RETRY_AFTER));
            }
            let again =
                failure.error.is_retryable() && !(ask.once && failure.error.may_have_cost());
            if !again || tries >= self.options.retries {
                return Err(failure.error);
            }
            let backoff = jittered(FIRST_BACKOFF.saturating_mul(1 << tries.min(10)));
            let wait = failure
                .retry_after
                .unwrap_or_default()
                .min(MAX_RETRY_AFTER)
                .max(backoff);
            // Not worth a repeat that the end of the interval would cut off.
            if Instant::now() + wait >= deadline {
                return Err(failure.error);
            }
            tokio::time::sleep(wait).await;
            self.not_before = None;
            tries += 1;
        }
    }

    async fn attempt(&self, url: &Url, shown: &str, ask: Ask<'_>) -> Result<Vec<u8>, Failure> {
        let sent = Instant::now();
        let mut request = self.client.get(url.clone());
        if let Some(token) = &self.token {
            request = request.header(self.header.clone(), token.0.clone());
        }
        let mut answer = request
            .send()
            .await
            .map_err(|e| ScrapeError::from_send(shown, &e, sent.elapsed()))?;
        if answer.status() != reqwest::StatusCode::OK {
            return Err(self.refusal(answer, url, shown).await);
        }

        let cap = match ask.form {
            Form::Json => self.options.max_bytes.min(SDK_BYTES),
            _ => self.options.max_bytes,
        };
        let too_large = || ScrapeError::TooLarge {
            at: shown.to_owned(),
            cap,
        };
        // Returning drops the answer, and with it the connection.
        if answer.content_length().is_some_and(|n| n > cap) {
            return Err(too_large().into());
        }
        let kind = header_text(&answer, &header::CONTENT_TYPE);
        let mut body: Vec<u8> = Vec::new();
        let mut checked = false;
        loop {
            let got = body.len() as u64;
            let chunk = answer
                .chunk()
                .await
                .map_err(|e| ScrapeError::from_body(shown, &e, got, sent.elapsed()))?;
            let end = chunk.is_none();
            if let Some(chunk) = chunk {
                if got + chunk.len() as u64 > cap {
                    return Err(too_large().into());
                }
                body.extend_from_slice(&chunk);
            }
            // Judged early, so that a stranger's page is not read to its end.
            if !checked && (end || body.len() >= ERROR_BODY) {
                checked = true;
                if let Some(what) = answer::not_a_profile(&kind, &body, ask.form) {
                    return Err(ScrapeError::NotAProfile {
                        at: shown.to_owned(),
                        status: answer.status().as_u16(),
                        what,
                        said: self.words_without_token(&body),
                    }
                    .into());
                }
            }
            if end {
                return Ok(body);
            }
        }
    }

    /// Names an answer other than 200.
    async fn refusal(&self, mut answer: Response, url: &Url, shown: &str) -> Failure {
        let at = shown.to_owned();
        let status = answer.status().as_u16();
        if answer.status().is_redirection() {
            let to = answer
                .headers()
                .get(header::LOCATION)
                .and_then(|v| v.to_str().ok());
            let to = to.and_then(|to| url.join(to).ok());
            let to = to.map_or("nowhere".to_owned(), |to| origin(&to));
            return ScrapeError::Redirect { at, to }.into();
        }
        let wait = matches!(status, 429 | 503)
            .then(|| header_text(&answer, &header::RETRY_AFTER))
            .and_then(|v| answer::retry_after(&v, SystemTime::now()));
        let mut body = Vec::new();
        while body.len() < ERROR_BODY {
            match answer.chunk().await {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk[..chunk.len().min(ERROR_BODY)]),
                _ => break,
            }
        }
        let mut said = self.words_without_token(&body);
        if said.is_empty() {
            answer
                .status()
                .canonical_reason()
                .unwrap_or("no text")
                .clone_into(&mut said);
        }
        let error = match status {
            401 | 403 => ScrapeError::TokenRefused {
                at,
                status,
                header: self.header_name(),
                hint: match self.token {
                    None => "none was sent; give --token-file",
                    Some(_) => "the token sent is not the service's; check --token-file",
                },
            },
            404 => ScrapeError::NoPprof { at, status, said },
            _ => ScrapeError::Status { at, status, said },
        };
        Failure {
            error,
            retry_after: wait,
        }
    }

    /// As the user wrote it; `HeaderName` keeps lower case only.
    fn header_name(&self) -> String {
        sanitise(&self.options.token_header, 60)
    }

    /// A service that echoes its request must not put the token into an error.
    fn words_without_token(&self, body: &[u8]) -> String {
        let secret = self
            .token
            .as_ref()
            .and_then(|t| t.0.to_str().ok())
            .unwrap_or_default();
        if secret.is_empty() {
            return words(body);
        }
        words(
            String::from_utf8_lossy(body)
                .replace(secret, "…")
                .as_bytes(),
        )
    }
}

/// The runtime's memory statistics at the end of what [`Scraper::mem_stats`]
/// fetched: HeapAlloc, Sys (bytes) and NumGC.
#[must_use]
pub fn mem_stats(text: &[u8]) -> Gauges {
    let mut gauges = Gauges::default();
    for line in text.split(|b| *b == b'\n').filter(|l| l.starts_with(b"# ")) {
        let Ok(line) = std::str::from_utf8(line) else {
            continue;
        };
        let Some((name, value)) = line[2..].split_once(" = ") else {
            continue;
        };
        let gauge = match name {
            "HeapAlloc" => Gauge::HeapAlloc,
            "Sys" => Gauge::RuntimeSys,
            "NumGC" => Gauge::GcCycles,
            _ => continue,
        };
        if let Ok(value) = value.trim().parse::<u64>() {
            gauges.set(gauge, value as f64);
        }
    }
    gauges
}

/// Whether a service answers at `/debug/pprof/`, found out cheaply.
#[derive(Debug)]
pub(crate) enum Probe {
    /// pprof is there.
    Yes,
    /// Something guards the path.
    Guarded,
    /// It speaks TLS.
    WantsTls,
    /// Something else is there, or nothing.
    No,
}

/// Asks for the index page once, and for the heap profile's head where there is
/// no index. `with_token` decides whether the token goes along.
pub(crate) async fn probe(endpoint: &Endpoint, options: &Options, with_token: bool) -> Probe {
    const PATIENCE: Duration = Duration::from_secs(2);
    let mut options = options.clone();
    options.connect_timeout = options.connect_timeout.min(Duration::from_secs(1));
    options.read_timeout = options.read_timeout.min(PATIENCE);
    if !with_token {
        options.token = TokenSource::None;
    }
    let Ok(scraper) = Scraper::new(endpoint.clone(), options) else {
        return Probe::No;
    };
    for what in ["pprof/", "pprof/heap"] {
        let Some(url) = endpoint.url(what) else {
            return Probe::No;
        };
        let answer = tokio::time::timeout(PATIENCE, scraper.probe_one(&url)).await;
        match answer {
            Ok(Some(Probe::No)) => {}
            Ok(Some(other)) => return other,
            Ok(None) | Err(_) => return Probe::No,
        }
    }
    Probe::No
}

impl Scraper {
    /// None when nobody speaks HTTP there.
    async fn probe_one(&self, url: &Url) -> Option<Probe> {
        let mut request = self.client.get(url.clone());
        if let Some(token) = &self.token {
            request = request.header(self.header.clone(), token.0.clone());
        }
        let mut answer = request.send().await.ok()?;
        let status = answer.status().as_u16();
        let mut body = Vec::new();
        while body.len() < ERROR_BODY {
            match answer.chunk().await {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk[..chunk.len().min(ERROR_BODY)]),
                _ => break,
            }
        }
        let said = |what: &str| String::from_utf8_lossy(&body).contains(what);
        Some(match status {
            200 if body.starts_with(&[0x1f, 0x8b]) => Probe::Yes,
            200 if said("/debug/pprof/") && said("goroutine") => Probe::Yes,
            401 | 403 => Probe::Guarded,
            400 if said("HTTPS server") => Probe::WantsTls,
            _ => Probe::No,
        })
    }
}

fn client(endpoint: &Endpoint, options: &Options) -> Result<Client, ScrapeError> {
    tls::install_provider();
    let mut builder = Client::builder()
        .user_agent(USER_AGENT)
        .http1_only()
        .tls_backend_preconfigured(tls::config(options, endpoint.is_https())?)
        .redirect(same_origin_only())
        .referer(false)
        .connect_timeout(options.connect_timeout)
        .read_timeout(options.read_timeout)
        .pool_max_idle_per_host(1)
        .pool_idle_timeout(
            options
                .interval
                .saturating_mul(3)
                .max(Duration::from_secs(90)),
        );
    if endpoint.is_direct() {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|_| {
        ScrapeError::BadAddress(format!("{endpoint}: the HTTP client cannot be set up"))
    })
}

/// Follows a service that tidies its own paths; anything else gets no token.
fn same_origin_only() -> redirect::Policy {
    redirect::Policy::custom(|attempt| {
        let same = attempt
            .previous()
            .last()
            .is_some_and(|p| origin(p) == origin(attempt.url()));
        if same && attempt.previous().len() <= 3 {
            attempt.follow()
        } else {
            attempt.stop()
        }
    })
}

fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

fn dump_is_due(last: Option<Instant>, now: Instant) -> bool {
    last.is_none_or(|last| now.saturating_duration_since(last) >= GOROUTINE_GAP)
}

/// Between half of `base` and all of it, so that many watchers spread out.
fn jittered(base: Duration) -> Duration {
    let random = std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish();
    base.mul_f64(0.5 + (random >> 11) as f64 / (1u64 << 54) as f64)
}

fn header_text(answer: &Response, name: &HeaderName) -> String {
    answer
        .headers()
        .get(name)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

fn words(body: &[u8]) -> String {
    sanitise(
        &String::from_utf8_lossy(&body[..body.len().min(ERROR_BODY)]),
        answer::WORDS,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_is_due_after_a_minute() {
        let now = Instant::now();
        assert!(dump_is_due(None, now));
        assert!(!dump_is_due(Some(now), now));
        assert!(!dump_is_due(Some(now), now + Duration::from_millis(59_999)));
        assert!(dump_is_due(Some(now), now + Duration::from_secs(60)));
        assert!(
            !dump_is_due(Some(now + Duration::from_secs(5)), now),
            "clock of another core"
        );
    }

    #[test]
    fn jitter_stays_within_half_and_all() {
        let base = Duration::from_millis(800);
        let all: Vec<_> = (0..200).map(|_| jittered(base)).collect();
        assert!(all.iter().all(|d| *d >= base / 2 && *d <= base));
        assert!(all.iter().max() > all.iter().min());
    }

    #[test]
    fn memory_statistics_of_the_text_form() {
        let text = b"heap profile: 1: 2 [3: 4] @ heap/1048576\n\n# runtime.MemStats\n# Alloc = 7\n\
            # Sys = 13130760\n# HeapAlloc = 1234567\n# NumGC = 42\n# DebugGC = false\n# x\n#\n# Sys2 = = \xff\n";
        let gauges = mem_stats(text);
        assert_eq!(gauges.get(Gauge::HeapAlloc), Some(1_234_567.0));
        assert_eq!(gauges.get(Gauge::RuntimeSys), Some(13_130_760.0));
        assert_eq!(gauges.get(Gauge::GcCycles), Some(42.0));
        assert_eq!(gauges.iter().count(), 3);
    }
}
