//! Labels of a real Go program that knows nothing of memtrace, against what it says itself.

#![allow(clippy::unwrap_used, clippy::panic)]
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use memtrace_collect::goproc::tags::{self, Hit, Labels, Probe, TagError, Wanted};
use memtrace_collect::goproc::{self, Running};
use memtrace_formats::goheap::{LabelSites, Process, Program};
use memtrace_model::Time;

struct Service {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Service {
    /// Builds and starts `services/labels`; nothing without Go.
    fn start(build: &[&str], args: &[&str], env: &[(&str, &str)]) -> Option<Self> {
        let go = std::env::var_os("MEMTRACE_GO").unwrap_or_else(|| "go".into());
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("labels");
        let built = Command::new(go)
            .arg("build")
            .args(build)
            .arg("-o")
            .arg(&program)
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../services/labels"))
            .env("CGO_ENABLED", "0")
            .status();
        let Ok(built) = built else {
            eprintln!("skipped: no Go; set MEMTRACE_GO");
            return None;
        };
        assert!(built.success());
        let mut child = Command::new(&program)
            .args(args)
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(line.starts_with("pid"), "{line}");
        // The file may be gone while it runs.
        drop(folder);
        Some(Self { child, lines })
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn sites(&self) -> (Running, LabelSites) {
        let running = goproc::running(self.pid()).unwrap();
        let executable = std::fs::read(format!("/proc/{}/exe", self.pid())).unwrap();
        let program = Program::read(&Process {
            executable: &executable,
            memory: &running,
            regions: running.regions(),
            threads: &[],
            pid: self.pid(),
            start: 0,
            taken: Time(0),
            monotonic: None,
            with_labels: false,
            max_memory: u64::MAX,
        });
        let sites = program.unwrap().label_sites(&running).unwrap();
        (running, sites)
    }

    /// A probe in it, unless this machine does not allow any.
    fn probe(&self, wanted: &[Wanted]) -> Option<Probe> {
        let (running, sites) = self.sites();
        match Probe::start(self.pid(), &running, &sites, wanted) {
            Ok(probe) => Some(probe),
            Err(error @ (TagError::Permission { .. } | TagError::NoProbes)) => {
                eprintln!("SKIPPED: no probes on this machine: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Collects what is seen for a while: how many hits were lost.
fn drain(probe: &mut Probe, hits: &mut Vec<Hit>, time: Duration) -> u64 {
    let until = Instant::now() + time;
    let mut lost = 0;
    while Instant::now() < until {
        let drained = probe.drain();
        assert_eq!(drained.unseen, None);
        lost += drained.lost;
        hits.extend(drained.hits);
        std::thread::sleep(Duration::from_millis(20));
    }
    lost
}

/// What the kernel has for our probes in a service.
fn events(service: &Service) -> Vec<String> {
    let (own, target) = (std::process::id(), service.pid());
    let is_ours = |name: &String| {
        let parts: Vec<&str> = name.split('_').collect();
        parts[1] == own.to_string() && parts[3] == target.to_string()
    };
    tags::definitions()
        .unwrap()
        .into_iter()
        .filter(is_ours)
        .collect()
}

/// Each object is bound to the labels under which the program says that it was made.
fn tells_the_truth(build: &[&str]) {
    const OBJECTS: usize = 200;
    // All allocations are sampled, and the program need not know.
    let env = [("GODEBUG", "memprofilerate=1")];
    let count = OBJECTS.to_string();
    let Some(mut service) = Service::start(build, &["-truth", &count], &env) else {
        return;
    };
    let Some(mut probe) = service.probe(&[Wanted::Sampled]) else {
        return;
    };
    assert_eq!(events(&service).len(), 1);
    let mut hits = Vec::new();
    service
        .child
        .stdin
        .take()
        .unwrap()
        .write_all(b"\n")
        .unwrap();
    // With every allocation of the program in it, there may be more than there is room for.
    drain(&mut probe, &mut hits, Duration::from_millis(1500));
    drop(probe);

    let mut bound: HashMap<u64, Option<Labels>> = HashMap::new();
    for hit in hits {
        if let Hit::Sampled { object, labels, .. } = hit {
            bound.insert(object, labels);
        }
    }
    let mut told = 0;
    loop {
        let mut line = String::new();
        service.lines.read_line(&mut line).unwrap();
        let line = line.trim_end_matches('\n');
        if line == "end" {
            break;
        }
        let (address, block) = line.split_once(' ').unwrap();
        let Some(labels) = bound.get(&address.parse().unwrap()) else {
            continue;
        };
        let labels = labels.as_ref().unwrap();
        assert!(labels.is_whole, "{labels:?}");
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        for (key, value) in &labels.pairs {
            pairs.push((key, value));
        }
        pairs.sort_unstable();
        let long = "a shift with a name that is far too long for what is fetched of …";
        let all = [("block", block), ("line", "main"), ("shift", long)];
        assert_eq!(pairs, if block.is_empty() { &[][..] } else { &all[..] });
        told += 1;
    }
    assert!(told > OBJECTS * 9 / 10, "{told}");
    assert!(service.child.try_wait().unwrap().is_none(), "it goes on");
}

#[test]
fn labels_are_those_of_who_allocated() {
    tells_the_truth(&[]);
}

#[test]
fn stripped_programs() {
    tells_the_truth(&["-ldflags=-s -w"]);
}

#[test]
fn position_independent_programs() {
    tells_the_truth(&["-ldflags=-s -w", "-buildmode=pie"]);
}

/// A section of work begins and ends; both probes at once, and nothing is left.
#[test]
fn sections_begin_and_end() {
    let args = ["-section", "night shift", "-rate", "10e6"];
    let Some(service) = Service::start(&[], &args, &[]) else {
        return;
    };
    // Until Go has its threads: what a thread does before it is known is not seen.
    std::thread::sleep(Duration::from_millis(600));
    let Some(mut probe) = service.probe(&[Wanted::Sampled, Wanted::Changed]) else {
        return;
    };
    assert_eq!(events(&service).len(), 2);
    let mut hits = Vec::new();
    let since = Instant::now();
    let lost = drain(&mut probe, &mut hits, Duration::from_millis(4500));
    assert_eq!(lost, 0);
    drop(probe);
    // Each takes a second, every other second. On a busy machine the looking takes longer, and
    // what a new thread does before it is known is not seen.
    let most = since.elapsed().as_secs() as usize / 2 + 1;
    let (mut begun, mut ended, mut sampled) = (0, 0, 0);
    let mut last = None;
    for hit in &hits {
        match hit {
            Hit::Changed { before, after, .. } => {
                let has = |l: &Option<Labels>| l.as_ref().unwrap().has_value("night shift");
                // Told again: it had not happened yet.
                if last.replace(has(before)) == Some(has(before)) {
                    continue;
                }
                begun += usize::from(!has(before) && has(after));
                ended += usize::from(has(before) && !has(after));
            }
            Hit::Sampled { labels, size, .. } if (4112..=4864).contains(size) => {
                let (key, value) = &labels.as_ref().unwrap().pairs[0];
                assert!(key == "block" && value.starts_with("G001-M"), "{hit:?}");
                sampled += 1;
            }
            Hit::Sampled { .. } => {}
        }
    }
    assert!(
        (1..=most).contains(&begun) && (1..=most).contains(&ended),
        "{begun} {ended} of {most}"
    );
    // 200 MB/s in all: 380 samples a second.
    assert!((900..=3000).contains(&sampled), "{sampled}");
    assert_eq!(events(&service), Vec::<String>::new());
}

/// What cannot be seen is told politely, and nothing is left.
#[test]
fn refusals() {
    let off = [("GODEBUG", "memprofilerate=0")];
    let Some(service) = Service::start(&[], &[], &off) else {
        return;
    };
    let (running, sites) = service.sites();
    let start = |sites: &LabelSites, wanted| {
        Probe::start(service.pid(), &running, sites, &[wanted]).unwrap_err()
    };
    assert_eq!(start(&sites, Wanted::Sampled), TagError::SamplingOff);
    let without = LabelSites {
        sampled: None,
        ..sites
    };
    assert_eq!(start(&without, Wanted::Sampled), TagError::NoSampling);
    let without = LabelSites {
        set_labels: None,
        ..sites
    };
    assert_eq!(start(&without, Wanted::Changed), TagError::NoLabels);
    // In the middle of an instruction.
    let moved = LabelSites {
        set_labels: sites.set_labels.map(|at| at + 1),
        ..sites
    };
    let unsure = start(&moved, Wanted::Changed);
    assert!(matches!(unsure, TagError::Unsure { .. }), "{unsure}");
    match tags::definitions() {
        Ok(_) => assert_eq!(events(&service), Vec::<String>::new()),
        Err(error) => eprintln!("SKIPPED: no probes on this machine: {error}"),
    }
}
