//! The scraper against servers that do everything a server can do wrong.

#![allow(clippy::unwrap_used, clippy::panic)]

mod server;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use memtrace_collect::{Endpoint, Options, ScrapeError, Scraper, TokenSource};
use server::{PROFILE, Server, answer, profile};

fn options() -> Options {
    let mut options = Options::default();
    options.interval = Duration::from_secs(10);
    options.connect_timeout = Duration::from_secs(1);
    options.read_timeout = Duration::from_millis(700);
    options.total_timeout = Duration::from_secs(3);
    options
}

fn scraper(url: &str, options: Options) -> Scraper {
    Scraper::new(Endpoint::parse(url).unwrap(), options).unwrap()
}

async fn heap_error(url: &str, options: Options) -> ScrapeError {
    let error = scraper(url, options).heap().await.unwrap_err();
    let line = error.to_string();
    assert!(!line.contains('\n') && line.chars().count() < 400, "{line}");
    assert_ne!(error.is_fatal(), error.is_transient());
    error
}

#[tokio::test]
async fn profiles_come_over_one_kept_connection() {
    let server = Server::start(|_, out| profile(out));
    let mut scraper = scraper(&server.url(), options());
    for _ in 0..5 {
        let fetched = scraper.heap().await.unwrap();
        assert_eq!(fetched.body, PROFILE);
        assert!(fetched.started.0 > 1_600_000_000_000);
        assert!(fetched.took < Duration::from_secs(1));
    }
    scraper.allocs().await.unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 6);
    assert_eq!(server.connections(), 1, "kept alive");
    assert_eq!(requests[0].path, "/debug/pprof/heap");
    assert_eq!(requests[5].path, "/debug/pprof/allocs");
    let agent = requests[0].header("user-agent").unwrap();
    assert_eq!(agent, concat!("memtrace/", env!("CARGO_PKG_VERSION")));
    assert_eq!(requests[0].header("x-pprof-token"), None);
}

#[tokio::test]
async fn a_collection_is_forced_only_when_asked() {
    let server = Server::start(|_, out| profile(out));
    let mut options = options();
    options.gc = true;
    scraper(&format!("{}/ns", server.url()), options)
        .heap()
        .await
        .unwrap();
    assert_eq!(server.requests()[0].path, "/ns/debug/pprof/heap?gc=1");
}

#[tokio::test]
async fn a_closed_kept_connection_is_opened_again() {
    let server = Server::start(|_, out| {
        profile(out);
        false
    });
    let mut scraper = scraper(&server.url(), options());
    for _ in 0..3 {
        scraper.heap().await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(server.connections(), 3);
}

#[tokio::test]
async fn a_closed_port_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut options = options();
    options.interval = Duration::from_millis(900);
    let begun = Instant::now();
    let error = heap_error(&format!("http://{address}"), options).await;
    assert!(matches!(error, ScrapeError::Refused { .. }), "{error}");
    assert!(error.is_transient());
    assert!(
        begun.elapsed() < Duration::from_millis(1000),
        "never beyond the interval"
    );
}

#[tokio::test]
async fn unknown_names_and_unreachable_hosts() {
    let mut once = options();
    once.retries = 0;
    let error = heap_error("http://no-such-host.invalid:6060", once.clone()).await;
    assert!(matches!(error, ScrapeError::Dns { .. }), "{error}");
    // TEST-NET-1: no route, or silence.
    once.connect_timeout = Duration::from_millis(300);
    let error = heap_error("http://192.0.2.251:6060", once).await;
    assert!(
        matches!(
            error,
            ScrapeError::Unreachable { .. }
                | ScrapeError::Timeout {
                    phase: "connecting",
                    ..
                }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn pages_that_are_no_profile_are_named() {
    for (kind, body, what) in [
        (
            "text/html",
            "<html><body>Welcome to nginx!</body></html>",
            "HTML",
        ),
        ("application/json", "{\"error\": \"no\"}", "JSON"),
        ("text/plain", "hello\u{7} world\nagain", "text"),
        ("application/octet-stream", "", "nothing"),
    ] {
        let server = Server::start(move |_, out| {
            answer(
                out,
                "200 OK",
                &format!("Content-Type: {kind}\r\n"),
                body.as_bytes(),
            )
        });
        let error = heap_error(&server.url(), options()).await;
        let ScrapeError::NotAProfile {
            what: got, said, ..
        } = &error
        else {
            panic!("{error}")
        };
        assert_eq!(*got, what);
        assert!(
            said.chars().count() <= 80 && !said.contains('\u{7}'),
            "{said}"
        );
        assert!(error.is_fatal());
        assert_eq!(server.requests().len(), 1, "not repeated");
    }
}

#[tokio::test]
async fn missing_pprof_is_404() {
    let server = Server::start(|_, out| answer(out, "404 Not Found", "", b"404 page not found\n"));
    let error = heap_error(&server.url(), options()).await;
    assert!(matches!(error, ScrapeError::NoPprof { .. }), "{error}");
    assert!(error.to_string().contains("404 page not found"));
}

#[tokio::test]
async fn a_service_with_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "first-secret\n").unwrap();
    let valid = Arc::new(std::sync::Mutex::new("first-secret".to_owned()));
    let check = Arc::clone(&valid);
    let server = Server::start(move |request, out| {
        if request.header("X-Pprof-Token") == Some(check.lock().unwrap().as_str()) {
            profile(out)
        } else {
            let got = format!("you sent {:?}", request.header("X-Pprof-Token"));
            answer(out, "403 Forbidden", "", got.as_bytes())
        }
    });

    let error = heap_error(&server.url(), options()).await;
    assert!(
        error
            .to_string()
            .contains("(header X-Pprof-Token; none was sent; give --token-file)"),
        "{error}"
    );

    let mut with_token = options();
    with_token.token = TokenSource::File(file.clone());
    let mut scraper = scraper(&server.url(), with_token.clone());
    scraper.heap().await.unwrap();
    let shown = format!("{scraper:?} {with_token:?}");
    assert!(!shown.contains("first-secret"), "{shown}");

    // Rotated: the file first, then the service.
    *valid.lock().unwrap() = "second-secret".to_owned();
    std::fs::write(&file, "second-secret").unwrap();
    let before = server.requests().len();
    scraper.heap().await.unwrap();
    assert_eq!(
        server.requests().len(),
        before + 2,
        "refused once, then right"
    );
    scraper.heap().await.unwrap();
    assert_eq!(server.requests().len(), before + 3);

    // Revoked: the file has nothing new, so the service is not asked twice.
    *valid.lock().unwrap() = "third-secret".to_owned();
    let before = server.requests().len();
    let error = scraper.heap().await.unwrap_err();
    assert!(
        matches!(error, ScrapeError::TokenRefused { status: 403, .. }),
        "{error}"
    );
    assert!(error.is_fatal());
    assert_eq!(server.requests().len(), before + 1);
    for secret in ["first", "second", "third"] {
        assert!(!format!("{error} {error:?}").contains(secret));
    }
}

#[tokio::test]
async fn any_header_can_carry_the_token_and_no_error_repeats_it() {
    let server = Server::start(|request, out| {
        let echo = request
            .header("authorization")
            .unwrap_or_default()
            .to_owned();
        answer(
            out,
            "500 Internal Server Error",
            "",
            format!("bad: {echo}").as_bytes(),
        )
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "Bearer s3cret").unwrap();
    let mut options = options();
    options.token = TokenSource::File(file);
    options.token_header = "Authorization".to_owned();
    options.retries = 0;
    let error = heap_error(&server.url(), options).await;
    assert_eq!(
        server.requests()[0].header("authorization"),
        Some("Bearer s3cret")
    );
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
}

#[tokio::test]
async fn a_failure_is_repeated_after_a_pause() {
    let server = Server::start(|request, out| match request.number {
        0 | 1 => answer(out, "500 Internal Server Error", "", b"starting"),
        _ => profile(out),
    });
    let begun = Instant::now();
    scraper(&server.url(), options()).heap().await.unwrap();
    assert_eq!(server.requests().len(), 3);
    // 100 to 200 ms, then 200 to 400 ms.
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_millis(300) && took < Duration::from_secs(2),
        "{took:?}"
    );
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn repeats_end() {
    let server = Server::start(|_, out| {
        answer(
            out,
            "502 Bad Gateway",
            "Content-Type: text/html\r\n",
            b"<h1>Bad</h1>",
        )
    });
    let error = heap_error(&server.url(), options()).await;
    assert!(
        matches!(error, ScrapeError::Status { status: 502, .. }),
        "{error}"
    );
    assert_eq!(server.requests().len(), 4, "one and three repeats");
}

#[tokio::test]
async fn retry_after_is_obeyed() {
    let server = Server::start(|request, out| match request.number {
        0 => answer(
            out,
            "429 Too Many Requests",
            "Retry-After: 1\r\n",
            b"slow down",
        ),
        _ => profile(out),
    });
    let begun = Instant::now();
    scraper(&server.url(), options()).heap().await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn a_long_retry_after_keeps_later_fetches_away() {
    let server = Server::start(|_, out| {
        answer(
            out,
            "429 Too Many Requests",
            "Retry-After: 86400\r\n",
            b"tomorrow",
        )
    });
    let mut scraper = scraper(&server.url(), options());
    let begun = Instant::now();
    let error = scraper.heap().await.unwrap_err();
    assert!(
        matches!(error, ScrapeError::Status { status: 429, .. }),
        "{error}"
    );
    let error = scraper.heap().await.unwrap_err();
    let ScrapeError::Busy { wait, .. } = error else {
        panic!("{error}")
    };
    assert!(wait <= Duration::from_secs(300), "capped: {wait:?}");
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(server.requests().len(), 1, "left alone");
}

#[tokio::test]
async fn a_body_cut_short_is_an_error_and_is_repeated() {
    let server = Server::start(|request, out| {
        if request.number > 0 {
            return profile(out);
        }
        let _ = out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n\x1f\x8b\x08abc");
        false
    });
    let mut once = options();
    once.retries = 0;
    let error = heap_error(&server.url(), once).await;
    assert!(
        matches!(error, ScrapeError::Truncated { got: 6, .. }),
        "{error} {error:?}"
    );

    let server = Server::start(|request, out| {
        if request.number > 0 {
            return profile(out);
        }
        let _ = out.write_all(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n\x1f\x8b\x08abc\r\n",
        );
        false
    });
    assert_eq!(
        scraper(&server.url(), options()).heap().await.unwrap().body,
        PROFILE
    );
}

#[tokio::test]
async fn a_silent_server_times_out() {
    let server = Server::start(|_, _| {
        std::thread::sleep(Duration::from_secs(30));
        false
    });
    let begun = Instant::now();
    let error = heap_error(&server.url(), options()).await;
    assert!(
        matches!(
            error,
            ScrapeError::Timeout {
                phase: "reading",
                ..
            }
        ),
        "{error}"
    );
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(
        server.requests().len(),
        1,
        "a slow service is not asked again at once"
    );
}

#[tokio::test]
async fn a_server_that_drips_times_out_in_all() {
    let server = Server::start(|_, out| {
        let _ = out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n\x1f\x8b");
        while out.write_all(b"x").is_ok() && out.flush().is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
        false
    });
    let mut options = options();
    options.total_timeout = Duration::from_millis(1500);
    let begun = Instant::now();
    let error = heap_error(&server.url(), options).await;
    assert!(
        matches!(
            error,
            ScrapeError::Timeout {
                phase: "in all",
                ..
            }
        ),
        "{error}"
    );
    assert!(begun.elapsed() < Duration::from_millis(2500));
}

fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_ascii_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

#[tokio::test]
async fn an_endless_answer_is_stopped_at_the_cap() {
    const CAP: u64 = 32 << 20;
    let sent = Arc::new(AtomicU64::new(0));
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2147483648\r\n\r\n",
    ] {
        sent.store(0, Ordering::SeqCst);
        let count = Arc::clone(&sent);
        let server = Server::start(move |_, out| {
            let _ = out.write_all(head.as_bytes());
            let _ = out.write_all(b"\x1f\x8b\x08");
            let block = vec![0x55; 1 << 20];
            while count.load(Ordering::SeqCst) < 2 << 30 && out.write_all(&block).is_ok() {
                count.fetch_add(block.len() as u64, Ordering::SeqCst);
            }
            false
        });
        let mut options = options();
        options.max_bytes = CAP;
        options.total_timeout = Duration::from_secs(10);
        let begun = Instant::now();
        let error = heap_error(&server.url(), options).await;
        let took = begun.elapsed();
        assert!(
            matches!(error, ScrapeError::TooLarge { cap: CAP, .. }),
            "{error}"
        );
        assert!(error.is_fatal());
        std::thread::sleep(Duration::from_millis(200));
        let sent = sent.load(Ordering::SeqCst);
        let most = if head.contains("Length") {
            16 << 20
        } else {
            CAP + (16 << 20)
        };
        assert!(sent <= most, "{} MiB were sent", sent >> 20);
        assert!(took < Duration::from_secs(5), "{took:?}");
        println!(
            "stopped after {} MiB, {took:?}, peak {} MiB",
            sent >> 20,
            peak_memory() >> 20
        );
    }
    assert!(peak_memory() < 200 << 20, "{} MiB", peak_memory() >> 20);
}

#[tokio::test]
async fn an_endless_page_is_not_read_to_the_cap() {
    let sent = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&sent);
    let server = Server::start(move |_, out| {
        let _ = out.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>");
        while out.write_all(&[b'x'; 65536]).is_ok() && count.load(Ordering::SeqCst) < 1 << 30 {
            count.fetch_add(65536, Ordering::SeqCst);
        }
        false
    });
    let error = heap_error(&server.url(), options()).await;
    assert!(
        matches!(error, ScrapeError::NotAProfile { what: "HTML", .. }),
        "{error}"
    );
    std::thread::sleep(Duration::from_millis(100));
    assert!(sent.load(Ordering::SeqCst) < 32 << 20);
}

#[tokio::test]
async fn a_redirect_elsewhere_gets_no_token() {
    let other = Server::start(|_, out| profile(out));
    let to = other.url();
    let server = Server::start(move |_, out| {
        let location = format!("Location: {to}/debug/pprof/heap?key=v\r\n");
        answer(out, "302 Found", &location, b"")
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "s3cret").unwrap();
    let mut options = options();
    options.token = TokenSource::File(file);
    let error = heap_error(&server.url(), options.clone()).await;
    let ScrapeError::Redirect { to, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(*to, other.url());
    assert!(other.requests().is_empty(), "never contacted");

    // Within the service a redirect is its own affair.
    let server = Server::start(|request, out| match request.path.as_str() {
        "/debug/pprof/heap" => answer(out, "301 Moved", "Location: /internal/heap\r\n", b""),
        "/internal/heap" => profile(out),
        _ => answer(out, "404 Not Found", "", b""),
    });
    scraper(&server.url(), options.clone())
        .heap()
        .await
        .unwrap();
    assert_eq!(server.requests()[1].header("x-pprof-token"), Some("s3cret"));

    let server =
        Server::start(|_, out| answer(out, "302 Found", "Location: /debug/pprof/heap\r\n", b""));
    let error = heap_error(&server.url(), options).await;
    assert!(matches!(error, ScrapeError::Redirect { .. }), "{error}");
    assert!(server.requests().len() <= 5, "a circle ends");
}

#[tokio::test]
async fn goroutine_dumps_come_once_a_minute() {
    let server = Server::start(|_, out| profile(out));
    let mut first = scraper(&server.url(), options());
    assert!(first.goroutines().await.unwrap().is_some());
    assert!(first.goroutines().await.unwrap().is_none());
    // A new scraper does not begin anew.
    let mut second = scraper(&server.url(), options());
    assert!(second.goroutines().await.unwrap().is_none());
    second.heap().await.unwrap();
    let paths: Vec<_> = server.requests().iter().map(|r| r.path.clone()).collect();
    assert_eq!(paths, ["/debug/pprof/goroutine", "/debug/pprof/heap"]);
}

#[tokio::test]
async fn a_dump_that_was_refused_does_not_count_but_a_lost_one_does() {
    let server = Server::start(|request, out| match request.number {
        0 => answer(out, "403 Forbidden", "", b""),
        1 => {
            let _ = out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n\x1f\x8b\x08");
            false
        }
        _ => profile(out),
    });
    let mut scraper = scraper(&server.url(), options());
    assert!(matches!(
        scraper.goroutines().await,
        Err(ScrapeError::TokenRefused { .. })
    ));
    assert!(matches!(
        scraper.goroutines().await,
        Err(ScrapeError::Truncated { .. })
    ));
    assert!(scraper.goroutines().await.unwrap().is_none());
    assert_eq!(server.requests().len(), 2, "a lost dump is not repeated");
}

#[tokio::test]
async fn a_limit_on_dumps_does_not_hold_up_heap_profiles() {
    let server = Server::start(|request, out| match request.path.as_str() {
        "/debug/pprof/goroutine" => answer(
            out,
            "429 Too Many Requests",
            "Retry-After: 60\r\n",
            b"too many requests",
        ),
        _ => profile(out),
    });
    let mut scraper = scraper(&server.url(), options());
    assert!(matches!(
        scraper.goroutines().await,
        Err(ScrapeError::Status { status: 429, .. })
    ));
    scraper.heap().await.unwrap();
}

#[tokio::test]
async fn bytes_that_are_not_http() {
    let server = Server::start(|_, out| {
        let _ = out.write_all(b"SSH-2.0-OpenSSH_9.6\r\n");
        false
    });
    let mut options = options();
    options.retries = 0;
    let error = heap_error(&server.url(), options).await;
    assert!(matches!(error, ScrapeError::Truncated { .. }), "{error}");
}

#[test]
fn a_proxy_of_the_environment_is_not_asked_about_loopback() {
    let proxy = Server::start(|_, out| answer(out, "502 Bad Gateway", "", b"proxy"));
    let me = std::env::current_exe().unwrap();
    let mut again = std::process::Command::new(me);
    again.args(["--exact", "profiles_come_over_one_kept_connection"]);
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        again.env(name, proxy.url());
    }
    let output = again
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
    assert!(proxy.requests().is_empty());
}

#[tokio::test]
async fn fetches_can_run_as_tasks() {
    let server = Server::start(|_, out| profile(out));
    let mut scraper = scraper(&server.url(), options());
    let task = tokio::spawn(async move {
        scraper.goroutines().await.unwrap();
        scraper.heap().await.unwrap()
    });
    assert_eq!(task.await.unwrap().body, PROFILE);
    let target = memtrace_collect::Target::parse(&server.url()).unwrap();
    tokio::spawn(async move { target.attach(&options()).await })
        .await
        .unwrap()
        .unwrap();
}
