//! Control groups for targets that have little room, version 1 and 2.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::process::counter;
use crate::tools::Outcome;

const ROOT: &str = "/sys/fs/cgroup";

/// A control group; it is removed with this, once nobody is in it.
pub(crate) struct Group {
    folder: PathBuf,
}

/// What must not happen in a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Events {
    /// Processes that were ended for want of memory.
    pub(crate) oom_kills: u64,
    /// Memory ran out.
    pub(crate) oom: u64,
    /// Tasks that were not made since there were too many.
    pub(crate) refused_tasks: u64,
}

impl Group {
    /// With a limit of memory, swap included where that is counted.
    pub(crate) fn memory(name: &str, limit: u64) -> Outcome<Self> {
        let group = Self::new("memory", name)?;
        let limit = limit.to_string();
        let write = |file: &str| std::fs::write(group.folder.join(file), &limit);
        write("memory.limit_in_bytes")
            .or_else(|_| write("memory.max"))
            .map_err(|e| format!("{}: {e}", group.folder.display()))?;
        let _ = write("memory.memsw.limit_in_bytes");
        let _ = std::fs::write(group.folder.join("memory.swap.max"), "0");
        Ok(group)
    }

    /// Whose number of tasks can be limited.
    pub(crate) fn pids(name: &str) -> Outcome<Self> {
        Self::new("pids", name)
    }

    /// Whether groups of this kind can be made here.
    pub(crate) fn can(controller: &str) -> bool {
        Self::new(controller, "probe").is_ok()
    }

    fn new(controller: &str, name: &str) -> Outcome<Self> {
        let first = Path::new(ROOT).join(controller);
        let base = if first.is_dir() {
            // Where we are, if that may have groups below it.
            let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
            let own = own.lines().find_map(|l| {
                let (controllers, path) = l.split_once(':')?.1.split_once(':')?;
                let ours = controllers.split(',').any(|c| c == controller);
                ours.then(|| path.trim_start_matches('/').to_owned())
            });
            let own = first.join(own.unwrap_or_default());
            if own.is_dir() { own } else { first }
        } else {
            // In version 2 the root alone may have both processes and groups.
            let root = PathBuf::from(ROOT);
            let switch = format!("+{controller}");
            let _ = std::fs::write(root.join("cgroup.subtree_control"), switch);
            root
        };
        let folder = base.join(format!("harm-{}-{name}", std::process::id()));
        std::fs::create_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let group = Self { folder };
        let has = |file: &str| group.folder.join(file).exists();
        let usable = match controller {
            "memory" => has("memory.limit_in_bytes") || has("memory.max"),
            _ => has("pids.max"),
        };
        if usable {
            Ok(group)
        } else {
            Err(format!("no control group for {controller}"))
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What happened in it until now.
    pub(crate) fn events(&self) -> Events {
        let read = |file: &str, word: &str| counter(&self.folder.join(file), word);
        Events {
            oom_kills: read("memory.oom_control", "oom_kill ")
                .or_else(|| read("memory.events", "oom_kill "))
                .unwrap_or(0),
            oom: read("memory.oom_control", "under_oom ")
                .or_else(|| read("memory.events", "oom "))
                .unwrap_or(0),
            refused_tasks: read("pids.events", "max ").unwrap_or(0),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..100 {
            if std::fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
