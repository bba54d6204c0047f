//! `cargo xtask bench harm`: does a watch move the jitter of a 1 kHz control loop?
//!
//! One service, turns with and without `memtrace watch` in the order A B B A, so
//! that a slow drift of the machine hits both alike. The histograms of all turns of
//! a kind are pooled before the quantile is taken; the spread over pairs of turns
//! says how far the ratio is noise.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::demo::{Service, get};
use crate::tools::{Outcome, build_cnc, build_memtrace, memtrace_command, post, record, root};

/// Quantile of interest.
const QUANTILE: f64 = 0.999;

/// Counts of ticks by the top of their bucket, nanoseconds.
pub(crate) type Histogram = BTreeMap<u64, u64>;

/// Runs `pairs` pairs of turns of `seconds` each with a watch at `interval`, and
/// appends the result to `bench/harm.md`.
pub(crate) fn run(pairs: u32, seconds: u64, interval: &str) -> Outcome {
    let (cnc, memtrace) = (build_cnc()?, build_memtrace()?);
    let service =
        Service::start(Command::new(cnc).args(["-listen", "127.0.0.1:0", "-load", "500"]))?;
    // Caches and the heap's size settle first.
    std::thread::sleep(Duration::from_secs(20));

    let (mut on, mut off) = (Histogram::new(), Histogram::new());
    let mut ratios = Vec::new();
    for pair in 0..pairs {
        let turn = |watched: bool| -> Outcome<Histogram> {
            let watch = watched
                .then(|| {
                    memtrace_command(&memtrace)
                        .args(["watch", &service.url, "--interval", interval, "--json"])
                        .stdout(Stdio::null())
                        .spawn()
                })
                .transpose()
                .map_err(|e| e.to_string())?;
            let seen = one_turn(&service, seconds);
            if let Some(mut watch) = watch {
                let _ = watch.kill();
                let _ = watch.wait();
            }
            seen
        };
        let (a, b) = if pair % 2 == 0 {
            let a = turn(true)?;
            (a, turn(false)?)
        } else {
            let b = turn(false)?;
            (turn(true)?, b)
        };
        let ratio = quantile(&a) as f64 / quantile(&b).max(1) as f64;
        println!(
            "pair {}: p99.9 {} µs on, {} µs off, ratio {ratio:.3}",
            pair + 1,
            quantile(&a) / 1000,
            quantile(&b) / 1000
        );
        ratios.push(ratio);
        merge(&mut on, a);
        merge(&mut off, b);
    }
    ratios.sort_by(f64::total_cmp);
    let pooled = quantile(&on) as f64 / quantile(&off).max(1) as f64;
    let at = |q: f64| ratios[((ratios.len() - 1) as f64 * q) as usize];
    let mut text = format!(
        "`cargo xtask bench harm --pairs {pairs} --seconds {seconds} --interval {interval}`\n\n"
    );
    let _ = writeln!(
        text,
        "| p99.9 jitter, watched | not watched | pooled ratio | median of pairs | quartiles of pairs |\n|---|---|---|---|---|\n\
         | {:.1} µs | {:.1} µs | **{pooled:.3}** | {:.3} | {:.3} … {:.3} |",
        quantile(&on) as f64 / 1e3,
        quantile(&off) as f64 / 1e3,
        at(0.5),
        at(0.25),
        at(0.75),
    );
    println!("\n{text}");
    record(
        &root().join("bench/harm.md"),
        "Harm: jitter of a 1 kHz control loop",
        &text,
    )
}

/// What the control loop sees in the next seconds.
pub(crate) fn one_turn(service: &Service, seconds: u64) -> Outcome<Histogram> {
    // The first scrape of a watch comes at once; the start of its process is no part of watching.
    std::thread::sleep(Duration::from_millis(300));
    post(&service.url, "/jitter/reset")?;
    std::thread::sleep(Duration::from_secs(seconds));
    let state: Value =
        serde_json::from_str(&get(&service.url, "/state")?).map_err(|e| e.to_string())?;
    let buckets = state["servo"]["jitter_ns"]["buckets"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let seen: Histogram = buckets
        .iter()
        .filter_map(|b| Some((b[0].as_u64()?, b[1].as_u64()?)))
        .collect();
    if seen.values().sum::<u64>() < seconds * 500 {
        return Err("the control loop recorded too few ticks".into());
    }
    Ok(seen)
}

/// Adds the counts of one histogram to another.
pub(crate) fn merge(into: &mut Histogram, from: Histogram) {
    for (top, count) in from {
        *into.entry(top).or_default() += count;
    }
}

/// The quantile in nanoseconds, interpolated inside its bucket.
pub(crate) fn quantile(histogram: &Histogram) -> u64 {
    let total: u64 = histogram.values().sum();
    let rank = QUANTILE * total as f64;
    let (mut seen, mut below) = (0.0, 0u64);
    for (&top, &count) in histogram {
        if seen + count as f64 >= rank {
            let inside = (rank - seen) / count as f64;
            // A bucket starts at most 1/16 below its top; the last seen top may be further away.
            let start = below.max(top - top / 16);
            return start + ((top - start) as f64 * inside) as u64;
        }
        seen += count as f64;
        below = top;
    }
    below
}
