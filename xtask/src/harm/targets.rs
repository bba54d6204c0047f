//! The kinds of process that snapshots are taken of: how they are built and started, and what
//! they say of themselves (`services/targets`).

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::groups::Group;
use super::process;
use crate::matrix::VERSIONS;
use crate::tools::{Outcome, go, go_command, go_version, root, run, target_dir};

/// A target that is told to do something else all the time answers within this.
const PATIENCE: Duration = Duration::from_secs(60);

/// The variable that marks all processes of one run, with the copies that memtrace makes.
pub(crate) const MARK: &str = "MEMTRACE_HARM";

/// How a target is built.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Build {
    /// No C.
    Go,
    /// No C, a position independent executable.
    Pie,
    /// No C, no symbols, no debug information.
    Stripped,
    /// With C.
    Cgo,
    /// With C, linked statically.
    Static,
}

/// What is known of the items that a target holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Truth {
    /// As many as it says, at each moment.
    Exact,
    /// At most so many: it may just have begun.
    AtMost,
    /// Types have no names.
    Unnamed,
}

/// A kind of target.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    build: Build,
    /// Version of Go; the usual one where there is none.
    go: Option<&'static str>,
    mode: &'static str,
    size: u32,
    items: u32,
    /// Words of `-as`, where `memory=MIB`, `pids` and `user` stand for what this side makes.
    set_up: &'static [&'static str],
    pub(crate) truth: Truth,
    /// How many snapshots, in percent of those of a usual kind.
    pub(crate) share: u32,
    /// Parts of the reasons with which a snapshot of it may always be refused.
    pub(crate) refusals: &'static [&'static str],
    /// Only in a full run.
    pub(crate) full_only: bool,
}

const fn kind(name: &'static str, build: Build, mode: &'static str) -> Kind {
    Kind {
        name,
        build,
        go: None,
        mode,
        size: 0,
        items: 2000,
        set_up: &[],
        truth: Truth::Exact,
        share: 100,
        refusals: &[],
        full_only: false,
    }
}

/// All kinds but those of each version of Go.
static KINDS: &[Kind] = &[
    kind("plain", Build::Go, "plain"),
    kind("pie", Build::Pie, "plain"),
    Kind {
        truth: Truth::Unnamed,
        ..kind("stripped", Build::Stripped, "plain")
    },
    kind("cgo", Build::Cgo, "c"),
    kind("static", Build::Static, "c"),
    Kind {
        items: 100_000,
        ..kind("larger", Build::Go, "plain")
    },
    Kind {
        size: 5000,
        share: 20,
        refusals: &["did not stop", "stand still"],
        ..kind("threads", Build::Go, "threads")
    },
    Kind {
        size: 1_000_000,
        share: 4,
        // Its page tables take most of what a pause may.
        refusals: &["could not be copied within"],
        full_only: true,
        ..kind("goroutines", Build::Go, "goroutines")
    },
    kind("profiled", Build::Go, "profiled"),
    Kind {
        truth: Truth::AtMost,
        refusals: &["ended", "is ending", "replaced", "exec", "did not stop"],
        ..kind("exec", Build::Go, "exec")
    },
    // Threads that end one by one while another waits for them.
    Kind {
        size: 400,
        truth: Truth::AtMost,
        refusals: &["ended", "is ending", "replaced", "exec", "did not stop"],
        ..kind("exec-threads", Build::Go, "exec")
    },
    Kind {
        refusals: &["did not stop", "vfork"],
        ..kind("spawn", Build::Go, "spawn")
    },
    Kind {
        set_up: &["init"],
        ..kind("pidns-init", Build::Go, "plain")
    },
    Kind {
        set_up: &["child"],
        ..kind("pidns-child", Build::Go, "plain")
    },
    Kind {
        set_up: &["init"],
        ..kind("pidns-init-spawn", Build::Go, "spawn")
    },
    Kind {
        set_up: &["filter"],
        ..kind("seccomp", Build::Go, "plain")
    },
    Kind {
        set_up: &["subreaper"],
        ..kind("subreaper", Build::Go, "plain")
    },
    Kind {
        set_up: &["of-subreaper"],
        ..kind("of-subreaper", Build::Go, "plain")
    },
    Kind {
        size: 114,
        set_up: &["memory=160"],
        share: 60,
        refusals: &["memory", "MiB"],
        ..kind("memory-limit", Build::Go, "rewrite")
    },
    Kind {
        set_up: &["pids"],
        refusals: &["pids", "task", "process", "unavailable"],
        ..kind("pids-limit", Build::Cgo, "starts")
    },
    Kind {
        set_up: &["user", "nproc"],
        refusals: &["NPROC", "task", "process", "unavailable"],
        ..kind("nproc-limit", Build::Cgo, "starts")
    },
    kind("stacks", Build::Cgo, "stacks"),
    kind("calls", Build::Go, "calls"),
    kind("ring", Build::Go, "ring"),
    Kind {
        refusals: &["did not stop", "vfork"],
        ..kind("vfork", Build::Cgo, "vfork")
    },
    kind("realtime", Build::Cgo, "realtime"),
    Kind {
        set_up: &["user"],
        ..kind("other-user", Build::Go, "plain")
    },
];

/// The kinds of a run: with each version of Go where it is a full one.
pub(crate) fn kinds(full: bool, name: Option<&str>) -> Outcome<Vec<Kind>> {
    const NAMES: [&str; VERSIONS.len()] = [
        "go1.21", "go1.22", "go1.23", "go1.24", "go1.25", "go1.26", "go1.27",
    ];
    let versions = NAMES.iter().zip(VERSIONS).map(|(name, version)| Kind {
        go: Some(version),
        full_only: true,
        ..kind(name, Build::Go, "plain")
    });
    let all: Vec<Kind> = versions.chain(KINDS.iter().copied()).collect();
    let wanted: Vec<Kind> = (all.iter().copied())
        .filter(|k| match name {
            Some(name) => k.name == name,
            None => full || !k.full_only,
        })
        .collect();
    if wanted.is_empty() {
        let names: Vec<&str> = all.iter().map(|k| k.name).collect();
        return Err(format!("no such kind; there are {}", names.join(", ")));
    }
    Ok(wanted)
}

impl Kind {
    /// Builds its program.
    pub(crate) fn build(&self) -> Outcome<PathBuf> {
        build(self.build, self.go)
    }

    /// Whether it must be possible to take snapshots of it nearly always.
    pub(crate) fn must_succeed(&self) -> bool {
        self.refusals.is_empty()
    }

    /// The control groups that it needs.
    pub(crate) fn needs(&self) -> Vec<&'static str> {
        let words = self.set_up.iter();
        words
            .filter_map(|w| match *w {
                "pids" => Some("pids"),
                w if w.starts_with("memory=") => Some("memory"),
                _ => None,
            })
            .collect()
    }

    /// The same under another name.
    pub(crate) fn called(self, name: &'static str) -> Self {
        Self { name, ..self }
    }

    /// A kind of this name, of those that need no other version of Go.
    pub(crate) fn named(name: &str) -> Outcome<Self> {
        let found = KINDS.iter().find(|k| k.name == name);
        found.copied().ok_or_else(|| format!("no kind {name}"))
    }
}

/// What this process has built already: to ask Go again takes seconds each time.
static BUILT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Builds `services/targets`.
pub(crate) fn build(build: Build, version: Option<&str>) -> Outcome<PathBuf> {
    let (name, c, flags): (_, _, &[&str]) = match build {
        Build::Go => ("go", "0", &[]),
        Build::Pie => ("pie", "0", &["-buildmode=pie"]),
        Build::Stripped => ("stripped", "0", &["-ldflags=-s -w"]),
        Build::Cgo => ("cgo", "1", &[]),
        Build::Static => (
            "static",
            "1",
            &["-ldflags=-linkmode external -extldflags -static"],
        ),
    };
    let program = target_dir().join(format!(
        "services/targets-{name}{}",
        version.unwrap_or_default()
    ));
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if built.contains(&program) {
        return Ok(program);
    }
    let compiler = version.map_or_else(go, go_version)?;
    let mut command = go_command(&compiler, &root().join("services/targets"));
    if let Some(version) = version {
        command.env("GOCACHE", target_dir().join(format!("go-cache-{version}")));
    }
    run(command
        .env("CGO_ENABLED", c)
        .args(["build", "-o"])
        .arg(&program)
        .args(flags)
        .arg("."))?;
    built.insert(program.clone());
    Ok(program)
}

/// What a target says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// The longest that its loop of 1 kHz stood still since the last question, ms.
    pub(crate) gap_ms: f64,
    /// The same of its real-time thread.
    pub(crate) late_ms: f64,
    pub(crate) interrupted: i64,
    pub(crate) faults: Vec<String>,
}

/// A running target; it ends with this.
pub(crate) struct Target {
    pub(crate) kind: Kind,
    /// The path by which it was started: its last part is the name of its threads.
    pub(crate) program: PathBuf,
    pub(crate) pid: u32,
    pub(crate) start: u64,
    /// How many items it holds.
    pub(crate) items: u64,
    pub(crate) group: Option<Group>,
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    errors: PathBuf,
}

impl Target {
    /// Starts a target; its files go into `folder`.
    pub(crate) fn start(kind: Kind, folder: &Path, mark: &str) -> Outcome<Self> {
        let built = kind.build()?;
        // The name of the process is that of the link.
        let program = folder.join(format!("harm-{}", kind.name));
        let _ = std::fs::remove_file(&program);
        std::os::unix::fs::symlink(&built, &program).map_err(|e| e.to_string())?;
        let mut group = None;
        let mut words = Vec::new();
        for word in kind.set_up {
            match word.split_once('=') {
                Some(("memory", mib)) => {
                    let mib: u64 = mib.parse().map_err(|_| format!("{word}?"))?;
                    let made = Group::memory(kind.name, mib << 20)?;
                    words.push(format!("group={}", made.folder().display()));
                    group = Some(made);
                }
                None if *word == "pids" => {
                    let made = Group::pids(kind.name)?;
                    let path = made.folder().display();
                    words.push(format!("group={path},pids={path}"));
                    group = Some(made);
                }
                None if *word == "user" => {
                    // Nobody else's, so that nobody else counts towards its limit.
                    words.push(format!("uid={}", 60_000 + std::process::id() % 5000));
                }
                _ => words.push((*word).to_owned()),
            }
        }
        let errors = folder.join(format!("{}.stderr", kind.name));
        let file = std::fs::File::create(&errors).map_err(|e| e.to_string())?;
        let mut child = Command::new(&program)
            .arg(format!("-mode={}", kind.mode))
            .arg(format!("-n={}", kind.size))
            .arg(format!("-items={}", kind.items))
            .arg(format!("-as={}", words.join(",")))
            .env(MARK, mark)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .map_err(|e| format!("{}: {e}", program.display()))?;
        let input = child.stdin.take();
        let (send, lines) = channel();
        if let Some(out) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    if send.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        let mut target = Self {
            kind,
            program,
            pid: 0,
            start: 0,
            items: 0,
            group,
            child,
            input,
            lines,
            errors,
        };
        let hello = target.hear()?;
        target.pid = u32::try_from(hello["pid"].as_u64().unwrap_or(0)).unwrap_or(0);
        target.items = hello["items"].as_u64().unwrap_or(0);
        target.start = process::start_of(target.pid).ok_or("a target ended at once")?;
        Ok(target)
    }

    /// What it says of itself now; the longest gap counts from here anew.
    pub(crate) fn ask(&mut self) -> Outcome<State> {
        let asked = self.input.as_mut().map(|i| i.write_all(b"\n"));
        if !matches!(asked, Some(Ok(()))) {
            return Err(self.obituary("does not listen"));
        }
        let said = self.hear()?;
        let texts = said["fault_texts"].as_array().cloned().unwrap_or_default();
        Ok(State {
            gap_ms: said["gap_ms"].as_f64().unwrap_or(0.0),
            late_ms: said["late_ms"].as_f64().unwrap_or(0.0),
            interrupted: said["interrupted"].as_i64().unwrap_or(0),
            faults: (texts.iter())
                .filter_map(|t| t.as_str().map(str::to_owned))
                .collect(),
        })
    }

    fn hear(&mut self) -> Outcome<Value> {
        let line = match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(_) => return Err(self.obituary("says nothing")),
        };
        serde_json::from_str(&line).map_err(|e| format!("{}: {e}: {line}", self.kind.name))
    }

    /// Why it is silent.
    fn obituary(&mut self, what: &str) -> String {
        std::thread::sleep(Duration::from_millis(200));
        let text = std::fs::read_to_string(&self.errors).unwrap_or_default();
        let first: Vec<&str> = text.lines().take(4).collect();
        let ended = match self.child.try_wait() {
            Ok(Some(status)) => format!("DIED ({status})"),
            _ => what.to_owned(),
        };
        format!("{} {ended}: {}", self.kind.name, first.join(" / "))
    }

    /// Processes that belong to it: itself and those that only wait for it.
    pub(crate) fn family(&self) -> Vec<u32> {
        let mut all = vec![self.pid];
        let mut at = self.pid;
        while at != self.child.id() {
            match process::parent_of(at) {
                Some(parent) if parent > 1 => at = parent,
                _ => break,
            }
            all.push(at);
        }
        all
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        drop(self.input.take());
        let until = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > until {
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Loops that take the processors from others; they end with this.
pub(crate) struct Busy(Vec<Child>);

impl Busy {
    pub(crate) fn start(loops: u32) -> Outcome<Self> {
        let program = build(Build::Go, None)?;
        let started = (0..loops).map(|_| {
            Command::new(&program)
                .arg("-mode=busy")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .map_err(|e| e.to_string())
        });
        started.collect::<Outcome<_>>().map(Self)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for one in &mut self.0 {
            let _ = one.kill();
            let _ = one.wait();
        }
    }
}
