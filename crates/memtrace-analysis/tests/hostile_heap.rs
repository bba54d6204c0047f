//! A Go process whose memory lies: whatever it holds, reading it ends soon, takes memory in
//! proportion to what there is, and what comes out can be asked anything.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // that is how a test tells
#![allow(unreachable_pub)] // shared with a fuzz target

mod hostile;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hostile::{Base, Liar, mix};

fn lies(stripped: bool) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../services/heaptruth");
    let Some(base) = Base::make(&folder, stripped) else {
        return;
    };
    let truth = Liar::new(&base, 0, std::iter::empty());
    let begin = Instant::now();
    let graph = hostile::read(&base, &truth, &[]).unwrap();
    let asked = truth.asked.load(Ordering::Relaxed);
    println!(
        "{} MB, {} objects, {} edges, asked for {} MB in {:?}",
        base.readable >> 20,
        graph.object_count(),
        graph.edges.len(),
        asked >> 20,
        begin.elapsed()
    );
    assert!(graph.object_count() > 1000 && graph.goroutines.len() > 10);
    let number = |name: &str, or: u64| {
        std::env::var(name)
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(or)
    };
    let (rounds, first) = (number("MEMTRACE_LIES", 500), number("MEMTRACE_LIE", 0));
    let (mut read, mut most, mut longest) = (0, 0, Duration::ZERO);
    for seed in first..first + rounds {
        let random = mix(seed);
        let count = 1 << (random % 9);
        let places = (1..=count).map(|i| (mix(random ^ i), mix(mix(random ^ i))));
        let everywhere = if seed % 4 == 0 { mix(random) } else { 0 };
        let liar = Liar::new(&base, everywhere, places);
        let begin = Instant::now();
        // Told before, for one that never ends.
        eprintln!("lie {seed}");
        read += u64::from(hostile::read(&base, &liar, &[]).is_some());
        let took = begin.elapsed();
        let asked = liar.asked.load(Ordering::Relaxed);
        if asked > most || took > longest {
            println!("lie {seed}: {took:?}, {} MB", asked >> 20);
        }
        most = most.max(asked);
        longest = longest.max(took);
    }
    println!(
        "{read} of {rounds} read; at most {} MB, {longest:?}",
        most >> 20
    );
    assert!(read > rounds / 4, "{read} of {rounds}");
    // A sound process of this kind asks for some seven times what it has.
    assert!(most <= 32 * base.readable + (1 << 30), "{most}");
    assert!(longest < Duration::from_secs(120), "{longest:?}");
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .unwrap();
    println!("peak {}", peak.trim());
    let peak: u64 = peak.split_whitespace().next().unwrap().parse().unwrap();
    assert!(peak << 10 < 2 << 30, "{peak} kB");
}

#[test]
fn lies_about_a_program_with_debug_information() {
    lies(false);
}

#[test]
fn lies_about_a_program_without() {
    lies(true);
}
