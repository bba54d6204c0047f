//! From a pid or an address to the other half, with this test as the target.

#![allow(clippy::unwrap_used, clippy::panic)]

mod server;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use memtrace_collect::{Endpoint, Options, Process, Scraper, Target, TargetError, TokenSource};
use memtrace_model::Gauge;
use server::{Server, answer, profile};

const INDEX: &[u8] =
    b"<html><title>/debug/pprof/</title><a href='goroutine?debug=1'>goroutine</a></html>";

#[tokio::test]
async fn a_pid_is_asked_on_its_own_ports_only() {
    // One process of the test runner: other tests of this file listen too.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "s3cret").unwrap();
    let plain = Server::start(|_, out| answer(out, "404 Not Found", "", b"nothing here"));
    let guarded = Server::start(|request, out| match request.header("x-pprof-token") {
        Some("s3cret") if request.path == "/debug/pprof/" => answer(out, "200 OK", "", INDEX),
        Some("s3cret") => profile(out),
        _ => answer(out, "403 Forbidden", "", b"forbidden"),
    });
    let target = Target::parse(&std::process::id().to_string()).unwrap();

    let error = target.attach(&Options::default()).await.unwrap_err();
    let TargetError::Guarded { at, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(*at, guarded.url());
    assert_eq!(error.pid(), Some(std::process::id()));

    let mut options = Options::default();
    options.token = TokenSource::File(file);
    let attached = target.attach(&options).await.unwrap();
    let endpoint = attached.endpoint.unwrap();
    assert_eq!(endpoint.to_string(), guarded.url());
    assert!(
        plain
            .requests()
            .iter()
            .all(|r| r.header("x-pprof-token").is_none())
    );
    Scraper::new(endpoint, options)
        .unwrap()
        .heap()
        .await
        .unwrap();

    // The other way round: the address of a local service leads to its pid.
    let attached = Target::parse(&guarded.url())
        .unwrap()
        .attach(&Options::default())
        .await
        .unwrap();
    assert_eq!(attached.pid, Some(std::process::id()));
    let process = Process::open(std::process::id()).unwrap();
    assert!(process.read().unwrap().get(Gauge::Rss).is_some());
}

#[tokio::test]
async fn a_process_without_ports_and_one_that_is_gone() {
    let mut child = Command::new("sleep")
        .arg("60")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let target = Target::Pid(child.id());
    let error = target.attach(&Options::default()).await.unwrap_err();
    assert!(matches!(error, TargetError::NoListener { .. }), "{error}");
    assert!(error.to_string().contains("net/http/pprof"), "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    let error = target.attach(&Options::default()).await.unwrap_err();
    assert!(
        matches!(error, TargetError::NoSuchProcess { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn addresses_that_are_not_here() {
    let url = Endpoint::parse("http://192.0.2.250:6060").unwrap();
    let attached = Target::Url(url.clone())
        .attach(&Options::default())
        .await
        .unwrap();
    assert_eq!((attached.endpoint, attached.pid), (Some(url), None));
    let error = Target::parse("0123456789abcdef")
        .unwrap()
        .attach(&Options::default())
        .await
        .unwrap_err();
    assert!(matches!(error, TargetError::NoContainer { .. }), "{error}");
    let file = Target::parse("/proc/self/exe")
        .unwrap()
        .attach(&Options::default())
        .await
        .unwrap();
    assert_eq!(file.endpoint, None);
}

#[tokio::test]
async fn a_port_that_never_answers_does_not_hold_up_for_long() {
    // Accepted by the kernel, never read.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint::parse(&silent.local_addr().unwrap().to_string()).unwrap();
    let begun = Instant::now();
    let attached = Target::Url(endpoint)
        .attach(&Options::default())
        .await
        .unwrap();
    assert_eq!(attached.pid, Some(std::process::id()));
    assert!(begun.elapsed() < Duration::from_secs(3));
}
