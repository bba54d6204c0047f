//! The kernel's file system of trace events, of which only dynamic ones on user code are
//! used.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::TagError;
use crate::proc;

/// All events of memtrace are in this group.
const GROUP: &str = "memtrace";
/// Where it is mounted by others.
const MOUNTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
const DEFINITIONS: &str = "uprobe_events";
/// Files of it that are read, bytes.
const MAX_FILE: u64 = 1 << 20;
/// An event that is still on its way out is tried again after this time.
const AGAIN: Duration = Duration::from_millis(20);

/// Its root.
#[derive(Debug)]
pub(super) struct Tracefs {
    root: OwnedFd,
}

impl Tracefs {
    /// Mounts it where nobody sees it, so that nothing is left behind; where that cannot be,
    /// takes what is mounted.
    pub(super) fn open() -> Result<Self, TagError> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mounted = || {
            let roots = MOUNTS
                .iter()
                .filter_map(|path| openat(CWD, *path, flags, Mode::empty()).ok());
            let mut roots = roots.map(|root| Self { root });
            roots.find(|fs| fs.file(DEFINITIONS, OFlags::RDONLY).is_ok())
        };
        let own = match mount() {
            Ok(root) => Self { root },
            Err(error) => return mounted().ok_or_else(|| refused("mount tracefs", error.into())),
        };
        match own.file(DEFINITIONS, OFlags::WRONLY | OFlags::APPEND) {
            Ok(_) => Ok(own),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(TagError::NoProbes),
            Err(error) => Err(refused("define an event", error)),
        }
    }

    fn file(&self, path: &str, flags: OFlags) -> io::Result<File> {
        let file = openat(
            self.root.as_fd(),
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(File::from(file))
    }

    fn text(&self, path: &str) -> io::Result<String> {
        let mut bytes = Vec::new();
        self.file(path, OFlags::RDONLY)?
            .take(MAX_FILE)
            .read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// One definition. Without `APPEND` and with truncation, all events of all programs
    /// would go.
    fn write(&self, line: &str) -> io::Result<()> {
        self.file(DEFINITIONS, OFlags::WRONLY | OFlags::APPEND)?
            .write_all(format!("{line}\n").as_bytes())
    }

    /// Defines an event on the program of a process: its number and its format.
    pub(super) fn define(
        &self,
        name: &str,
        pid: u32,
        offset: u64,
        arguments: &str,
    ) -> Result<(u64, String), TagError> {
        let line = format!("p:{GROUP}/{name} /proc/{pid}/exe:{offset:#x} {arguments}");
        self.write(&line)
            .map_err(|error| refused("define an event", error))?;
        let read = |file: &str| {
            self.text(&format!("events/{GROUP}/{name}/{file}"))
                .map_err(|error| refused("read an event's format", error))
        };
        let number = read("id")?.trim().parse().map_err(|_| TagError::Io {
            what: "read an event's number",
            reason: "it is none".to_owned(),
        })?;
        Ok((number, read("format")?))
    }

    /// Removes an event; it waits for those who still use it. Whether it is gone.
    pub(super) fn remove(&self, name: &str, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        loop {
            match self.write(&format!("-:{GROUP}/{name}")) {
                Ok(()) => return true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return true,
                Err(error) if error.raw_os_error() != Some(libc::EBUSY) => return false,
                Err(_) if Instant::now() >= until => return false,
                Err(_) => std::thread::sleep(AGAIN),
            }
        }
    }

    /// Names of the events of all memtraces.
    pub(super) fn ours(&self) -> Vec<String> {
        let lines = self.text(DEFINITIONS).unwrap_or_default();
        let name = |line: &str| {
            let (_, after) = line.split_once(&format!(":{GROUP}/"))?;
            Some(after.split_whitespace().next()?.to_owned())
        };
        lines.lines().filter_map(name).collect()
    }

    /// Removes the events of memtraces that are no more. One that lives where it cannot be
    /// seen from here (in another pid namespace) holds its events open: they stay.
    pub(super) fn remove_stale(&self) {
        for name in self.ours() {
            if owner(&name).is_some_and(|(pid, started)| !lives(pid, started)) {
                self.remove(&name, Duration::ZERO);
            }
        }
    }
}

fn mount() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
}

/// A name for an event of this process on another, that tells whose it is.
pub(super) fn name(kind: &str, target: u32, number: u64) -> String {
    let pid = std::process::id();
    let started = started(pid).unwrap_or(0);
    format!("{kind}_{pid}_{started}_{target}_{number}")
}

/// The pid and the start, in ticks, of the memtrace that an event is of.
fn owner(name: &str) -> Option<(u32, u64)> {
    let mut parts = name.split('_').skip(1);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn lives(pid: u32, start: u64) -> bool {
    started(pid) == Some(start)
}

fn started(pid: u32) -> Option<u64> {
    proc::Process::open(pid).ok().map(|p| p.start_ticks())
}

/// What is missing when the system says no.
pub(super) fn refused(what: &'static str, error: io::Error) -> TagError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TagError::Permission {
            what,
            missing: "memtrace needs to be root, or CAP_SYS_ADMIN and CAP_PERFMON (in a container \
                      --cap-add SYS_ADMIN,PERFMON), and the kernel must not be locked down",
        },
        Some(libc::ENODEV | libc::ENOSYS) => TagError::NoProbes,
        _ => TagError::Io {
            what,
            reason: error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_owner() {
        let own = name("s", 4242, 7);
        assert!(own.len() < 64 && own.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
        let (pid, start) = owner(&own).unwrap();
        assert_eq!(pid, std::process::id());
        assert!(lives(pid, start));
        assert!(!lives(pid, start + 1));
        for other in ["", "s", "s_1", "s_x_2_3_4", "s__2"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
