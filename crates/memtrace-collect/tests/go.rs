//! A real Go service: found by its pid, asked for everything.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use memtrace_collect::{Options, Process, Scraper, Target, scrape};
use memtrace_model::Gauge;

const SERVICE: &str = r#"
package main

import (
	"fmt"
	"net"
	"net/http"
	_ "net/http/pprof"
)

var keep [][]byte

func main() {
	for i := 0; i < 64; i++ {
		keep = append(keep, make([]byte, 1<<20))
	}
	other, _ := net.Listen("tcp", "127.0.0.1:0")
	go func() {
		for {
			c, err := other.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("220 not http\r\n"))
			c.Close()
		}
	}()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(l.Addr())
	http.Serve(l, nil)
}
"#;

/// Ends the service when the test ends, however it ends.
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_go_service_by_its_pid() {
    let Some(go) = std::env::var_os("MEMTRACE_GO") else {
        eprintln!("skipped: MEMTRACE_GO does not name a go program; `cargo xtask test` sets it");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("main.go"), SERVICE).unwrap();
    std::fs::write(dir.path().join("go.mod"), "module service\n\ngo 1.21\n").unwrap();
    let built = Command::new(go)
        .args(["build", "-o", "service", "."])
        .current_dir(dir.path())
        .status();
    assert!(built.unwrap().success());
    let mut child = Command::new(dir.path().join("service"))
        .env("GOMEMLIMIT", "512MiB")
        .stdout(Stdio::piped())
        .spawn()
        .map(Child)
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let pid = child.0.id();

    let target = Target::parse(&pid.to_string()).unwrap();
    let attached = target.attach(&Options::default()).await.unwrap();
    let endpoint = attached.endpoint.unwrap();
    assert_eq!(endpoint.to_string(), format!("http://{}", line.trim()));
    let back = Target::parse(line.trim())
        .unwrap()
        .attach(&Options::default())
        .await
        .unwrap();
    assert_eq!(back.pid, Some(pid));

    let mut options = Options::default();
    options.gc = true;
    let mut scraper = Scraper::new(endpoint, options).unwrap();
    for _ in 0..3 {
        let heap = scraper.heap().await.unwrap();
        println!("heap {heap:?}");
        assert!(heap.body.starts_with(&[0x1f, 0x8b]));
    }
    println!("allocs {:?}", scraper.allocs().await.unwrap());
    println!(
        "goroutine {:?}",
        scraper.goroutines().await.unwrap().unwrap()
    );
    assert!(scraper.goroutines().await.unwrap().is_none());
    let stats = scrape::mem_stats(&scraper.mem_stats().await.unwrap().body);
    let heap_alloc = stats.get(Gauge::HeapAlloc).unwrap();
    assert!(heap_alloc > 64e6 && heap_alloc < 100e6, "{heap_alloc}");
    assert!(stats.get(Gauge::GcCycles).unwrap() >= 3.0);

    let process = Process::open(pid).unwrap();
    println!(
        "{} {:?} {:?} since {}",
        process.name(),
        process.command(),
        process.exe(),
        process.started()
    );
    assert!(process.exe().and_then(|e| e.build_id.as_ref()).is_some());
    let gauges = process.read().unwrap();
    for (gauge, value) in gauges.iter() {
        println!("{} {value}", gauge.name());
    }
    assert_eq!(
        gauges.get(Gauge::RuntimeLimit),
        Some(512.0 * 1024.0 * 1024.0)
    );
    let begun = std::time::Instant::now();
    for _ in 0..100 {
        process.read().unwrap();
    }
    println!("one reading takes {:?}", begun.elapsed() / 100);
    assert!(begun.elapsed() < Duration::from_secs(5));
}
