//! Gauges of a process, from `/proc` and its cgroups.
//!
//! Everything under `/proc` is read with a bound and parsed by pure functions. A
//! file that cannot be read leaves its gauge out; only the end of the process is
//! an error.

mod cgroup;
mod exe;
mod smaps;
mod stat;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use memtrace_model::{Gauge, Gauges, Time};

pub(crate) use cgroup::Groups;
pub use exe::Exe;
pub(crate) use stat::kib_field;

/// `smaps_rollup` walks the whole address space under the target's mmap lock:
/// read at most this often.
pub const SMAPS_GAP: Duration = Duration::from_secs(60);

/// Enough for any small file of `/proc`.
const SMALL: u64 = 64 * 1024;
/// Enough for `environ` and `mountinfo` of any sane process.
const LARGE: u64 = 4 * 1024 * 1024;
/// `smaps` has some 700 bytes for each of at most 65,530 mappings (the kernel's default).
const MAX_SMAPS: u64 = 64 * 1024 * 1024;

/// Why a process could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProcError {
    /// The user named a process that does not exist.
    #[error("no process with pid {pid}")]
    NoSuchProcess {
        /// The pid.
        pid: u32,
    },
    /// The user may not look at it.
    #[error("process {pid}: permission denied; run memtrace as the same user, or as root")]
    Permission {
        /// The pid.
        pid: u32,
    },
    /// The process ended, or another one has its pid now.
    #[error("process {pid} is gone ({reason})")]
    Gone {
        /// The pid.
        pid: u32,
        /// `exited` or `pid reused`.
        reason: &'static str,
    },
    /// The kernel's answer makes no sense, or there is none.
    #[error("process {pid}: cannot read {file}: {reason}")]
    Io {
        /// The pid.
        pid: u32,
        /// File under `/proc/PID`.
        file: &'static str,
        /// Why.
        reason: String,
    },
}

/// One process, known by its pid and its start.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    proc_root: PathBuf,
    start_ticks: u64,
    started: Time,
    name: String,
    command: String,
    exe: Option<Exe>,
    runtime_limit: Option<u64>,
    smaps_gap: Duration,
    last_smaps: Mutex<Option<Instant>>,
    last_owners: Mutex<Option<Instant>>,
}

impl Process {
    /// Looks at a process for the first time.
    ///
    /// # Errors
    /// [`ProcError::NoSuchProcess`], or what keeps its `stat` from being read.
    pub fn open(pid: u32) -> Result<Self, ProcError> {
        Self::open_at(Path::new("/proc"), pid)
    }

    fn open_at(proc_root: &Path, pid: u32) -> Result<Self, ProcError> {
        let dir = proc_root.join(pid.to_string());
        let stat = read_text(&dir.join("stat"), SMALL).map_err(|e| open_error(pid, &e))?;
        let Some(stat) = stat::parse_stat(&stat) else {
            return Err(ProcError::Io {
                pid,
                file: "stat",
                reason: "unknown form".to_owned(),
            });
        };
        if stat.is_dead() {
            return Err(ProcError::Gone {
                pid,
                reason: "exited",
            });
        }
        let boot = read_text(&proc_root.join("stat"), LARGE).ok();
        let boot = boot
            .and_then(|t| stat::boot_seconds(&t))
            .unwrap_or_default();
        let command = read_bytes(&dir.join("cmdline"), 4096).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let environ = read_bytes(&dir.join("environ"), LARGE).ok();
        Ok(Self {
            pid,
            proc_root: proc_root.to_owned(),
            start_ticks: stat.start_ticks,
            started: stat.started(boot),
            name: crate::scrape::sanitise(&stat.name, 64),
            command: crate::scrape::sanitise(&command, 256),
            exe: Exe::read(&dir.join("exe")),
            runtime_limit: environ.and_then(|e| stat::go_memory_limit(&e)),
            smaps_gap: SMAPS_GAP,
            last_smaps: Mutex::new(None),
            last_owners: Mutex::new(None),
        })
    }

    /// Asks for [`Gauge::Pss`] at most every `gap`, or never with
    /// [`Duration::MAX`]; default and least [`SMAPS_GAP`].
    #[must_use]
    pub fn with_smaps_gap(mut self, gap: Duration) -> Self {
        self.smaps_gap = gap.max(SMAPS_GAP);
        self
    }

    /// Start after boot, in ticks: with the pid, the identity of a process.
    pub(crate) fn start_ticks(&self) -> u64 {
        self.start_ticks
    }

    /// The pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When the process started, from the time of the boot, which the kernel
    /// tells in whole seconds: up to a second early. Whether a pid has a new owner
    /// is decided on the exact ticks, by [`Self::check`].
    #[must_use]
    pub fn started(&self) -> Time {
        self.started
    }

    /// The kernel's name for it (at most 15 bytes).
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its command line for display: one line, shortened; empty for a kernel thread.
    #[must_use]
    pub fn command(&self) -> &str {
        &self.command
    }

    /// The file it runs, where it may be seen.
    #[must_use]
    pub fn exe(&self) -> Option<&Exe> {
        self.exe.as_ref()
    }

    /// Reads every gauge that can be read now. [`Gauge::Pss`] comes only every
    /// [`SMAPS_GAP`]; the others each time.
    ///
    /// # Errors
    /// [`ProcError::Gone`] when the process ended or its pid has another owner.
    pub fn read(&self) -> Result<Gauges, ProcError> {
        let dir = self.dir();
        let mut gauges = Gauges::default();
        // status tells RSS from the same counters as statm, but in bytes rather
        // than pages, and swap and threads with it; it takes no lock of the target.
        if let Ok(status) = read_text(&dir.join("status"), SMALL) {
            let fields = stat::parse_status(&status);
            for (gauge, value) in [
                (Gauge::Rss, fields.rss),
                (Gauge::Swap, fields.swap),
                (Gauge::Threads, fields.threads),
            ] {
                set(&mut gauges, gauge, value);
            }
        }
        set(&mut gauges, Gauge::Fds, count_fds(&dir.join("fd")));
        set(&mut gauges, Gauge::Pss, self.pss());
        let memory = cgroup::read(&self.proc_root, self.pid);
        set(&mut gauges, Gauge::CgroupUsage, memory.usage);
        set(&mut gauges, Gauge::CgroupLimit, memory.limit);
        set(&mut gauges, Gauge::RuntimeLimit, self.runtime_limit);
        if let Ok(info) = read_text(&self.proc_root.join("meminfo"), SMALL) {
            set(
                &mut gauges,
                Gauge::HostTotal,
                stat::kib_field(&info, "MemTotal"),
            );
            set(
                &mut gauges,
                Gauge::HostAvailable,
                stat::kib_field(&info, "MemAvailable"),
            );
        }
        // Last, so that no number of a successor passes for ours.
        self.check()?;
        Ok(gauges)
    }

    /// Whether it is still the same process.
    ///
    /// # Errors
    /// [`ProcError::Gone`] when it is not.
    pub fn check(&self) -> Result<(), ProcError> {
        let pid = self.pid;
        let text =
            read_text(&self.dir().join("stat"), SMALL).map_err(|e| match open_error(pid, &e) {
                ProcError::NoSuchProcess { .. } => ProcError::Gone {
                    pid,
                    reason: "exited",
                },
                other => other,
            })?;
        match stat::parse_stat(&text) {
            Some(stat) if stat.start_ticks != self.start_ticks => Err(ProcError::Gone {
                pid,
                reason: "pid reused",
            }),
            Some(stat) if stat.is_dead() => Err(ProcError::Gone {
                pid,
                reason: "exited",
            }),
            Some(_) => Ok(()),
            None => Err(ProcError::Io {
                pid,
                file: "stat",
                reason: "unknown form".to_owned(),
            }),
        }
    }

    fn dir(&self) -> PathBuf {
        self.proc_root.join(self.pid.to_string())
    }

    /// Resident memory by owner: [`Gauge::RssGo`], [`Gauge::RssBrk`],
    /// [`Gauge::RssArenas`], [`Gauge::RssAnon`]. `None` within [`SMAPS_GAP`] of the last
    /// time, and where the kernel refuses.
    ///
    /// To write `smaps` the kernel walks every page table of the target, some 20 ms for
    /// each GB in small pages, and locks a mapping while it does: a target that maps
    /// memory may wait for it. So this is for a process whose memory is in question, not
    /// for every one.
    /// The reading itself is left to the caller, who has threads for what takes long.
    #[must_use]
    pub fn rss_by_owner(&self) -> Option<impl FnOnce() -> Gauges + Send + use<>> {
        if !due(&self.last_owners, SMAPS_GAP) {
            return None;
        }
        let file = File::open(self.dir().join("smaps")).ok()?;
        self.check().ok()?;
        Some(move || smaps::classify(io::BufReader::new(file.take(MAX_SMAPS))))
    }

    /// A reader of the program's file, which stays readable after the file is removed.
    ///
    /// # Errors
    /// What the system says.
    pub fn open_exe(&self) -> io::Result<File> {
        File::open(self.dir().join("exe"))
    }

    /// Address and file offset of the first executable mapping of the program.
    #[must_use]
    pub fn exe_mapping(&self) -> Option<(u64, u64)> {
        let path = self.exe.as_ref()?.path.to_str()?;
        stat::exe_mapping(&read_text(&self.dir().join("maps"), LARGE).ok()?, path)
    }

    fn pss(&self) -> Option<u64> {
        if self.smaps_gap == Duration::MAX || !due(&self.last_smaps, self.smaps_gap) {
            return None;
        }
        let text = read_text(&self.dir().join("smaps_rollup"), SMALL).ok()?;
        stat::kib_field(&text, "Pss")
    }
}

/// Whether `gap` has passed since the last time that this was so.
fn due(last: &Mutex<Option<Instant>>, gap: Duration) -> bool {
    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    let due = last.is_none_or(|at| now.duration_since(at) >= gap);
    if due {
        *last = Some(now);
    }
    due
}

fn set(gauges: &mut Gauges, gauge: Gauge, value: Option<u64>) {
    if let Some(value) = value {
        gauges.set(gauge, value as f64);
    }
}

/// Since Linux 6.2 the size of the directory is the number of descriptors.
fn count_fds(dir: &Path) -> Option<u64> {
    const MANY: usize = 1 << 20;
    let entries = std::fs::read_dir(dir).ok()?;
    match std::fs::metadata(dir) {
        Ok(meta) if meta.len() > 0 => Some(meta.len()),
        _ => Some(entries.take(MANY).count() as u64),
    }
}

fn open_error(pid: u32, error: &io::Error) -> ProcError {
    // A process that ends while its file is read gives ESRCH.
    const ESRCH: i32 = 3;
    if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(ESRCH) {
        return ProcError::NoSuchProcess { pid };
    }
    if error.kind() == io::ErrorKind::PermissionDenied {
        return ProcError::Permission { pid };
    }
    ProcError::Io {
        pid,
        file: "stat",
        reason: error.to_string(),
    }
}

pub(crate) fn read_bytes(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// At most `max` bytes; what is not UTF-8 is replaced.
pub(crate) fn read_text(path: &Path, max: u64) -> io::Result<String> {
    let bytes = read_bytes(path, max)?;
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn reads_itself() {
        let me = Process::open(std::process::id()).unwrap();
        let age = crate::now().since(me.started());
        assert!((-1.0..600.0).contains(&age), "started {age} s ago");
        assert!(me.name().starts_with("memtrace_collec"), "{}", me.name());
        assert!(me.command().contains("memtrace_collect"));
        assert!(me.exe().is_some_and(|e| e.size > 0 && !e.deleted));

        let all = me.read().unwrap();
        let get = |g| {
            all.get(g)
                .unwrap_or_else(|| panic!("{} missing", Gauge::name(g)))
        };
        assert!(get(Gauge::Rss) > 1e6 && get(Gauge::Rss) < 1e10);
        assert!(get(Gauge::Pss) > 1e5 && get(Gauge::Pss) <= get(Gauge::Rss) * 1.5);
        assert!(get(Gauge::Threads) >= 1.0);
        assert!(get(Gauge::Fds) >= 3.0);
        assert!(get(Gauge::HostTotal) >= get(Gauge::HostAvailable));
        assert!(
            me.read().unwrap().get(Gauge::Pss).is_none(),
            "smaps at most once a minute"
        );
    }

    #[test]
    fn descriptors_are_counted() {
        let me = Process::open(std::process::id()).unwrap();
        let before = me.read().unwrap().get(Gauge::Fds).unwrap();
        let open: Vec<_> = (0..200)
            .map(|_| File::open("/proc/self/stat").unwrap())
            .collect();
        let during = me.read().unwrap().get(Gauge::Fds).unwrap();
        drop(open);
        assert!((during - before - 200.0).abs() < 60.0, "{before} {during}");
    }

    #[test]
    fn a_child_that_is_killed_is_gone() {
        let mut child = Command::new("sleep")
            .arg("1000")
            .env("GOMEMLIMIT", "3GiB")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // The exec may be a moment behind the fork.
        std::thread::sleep(Duration::from_millis(100));
        let process = Process::open(child.id()).unwrap();
        assert_eq!(process.command(), "sleep 1000");
        let gauges = process.read().unwrap();
        assert_eq!(
            gauges.get(Gauge::RuntimeLimit),
            Some(3.0 * 1024.0 * 1024.0 * 1024.0)
        );
        child.kill().unwrap();
        // Killed but not waited for: a zombie is gone too.
        std::thread::sleep(Duration::from_millis(100));
        assert!(
            matches!(process.read(), Err(ProcError::Gone { .. })),
            "zombie"
        );
        child.wait().unwrap();
        assert!(matches!(process.read(), Err(ProcError::Gone { .. })));
        assert!(matches!(
            Process::open(child.id()),
            Err(ProcError::NoSuchProcess { .. })
        ));
    }

    fn fake(root: &Path, pid: u32, stat: &str) {
        let dir = root.join(pid.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("stat"), stat).unwrap();
    }

    #[test]
    fn a_reused_pid_is_gone_and_missing_files_leave_gauges_out() {
        let root = tempfile::tempdir().unwrap();
        let line = |start| {
            format!("9 (a b) c) S 1 9 9 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 7 0 {start} 1 2 3")
        };
        fake(root.path(), 9, &line(500));
        std::fs::write(root.path().join("stat"), "cpu 1 2\nbtime 1700000000\n").unwrap();
        let process = Process::open_at(root.path(), 9).unwrap();
        assert_eq!(process.started(), Time(1_700_000_005_000));
        assert_eq!(process.name(), "a b) c");
        assert_eq!(process.read().unwrap().iter().count(), 0);
        fake(root.path(), 9, &line(501));
        assert_eq!(
            process.read(),
            Err(ProcError::Gone {
                pid: 9,
                reason: "pid reused"
            })
        );
        fake(root.path(), 9, "garbage");
        assert!(matches!(process.read(), Err(ProcError::Io { .. })));
        std::fs::remove_dir_all(root.path().join("9")).unwrap();
        assert_eq!(
            process.read(),
            Err(ProcError::Gone {
                pid: 9,
                reason: "exited"
            })
        );
    }
}
