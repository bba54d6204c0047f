//! What the control groups of a process allow it: version 1, version 2, and both at once.

use std::path::{Component, Path, PathBuf};

use super::{LARGE, SMALL, read_text};

/// A path to the root deeper than this is not followed further.
const MAX_DEPTH: usize = 64;

/// Version 1 writes "no limit" as the greatest number rounded down to a page.
const NO_LIMIT: u64 = 1 << 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// What a control group says, bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// Charged to the group, less its inactive file cache.
    pub(super) usage: Option<u64>,
    /// The tightest limit between the group and the root that can be seen.
    pub(super) limit: Option<u64>,
}

/// Reads the memory group of a process.
pub(super) fn read(proc_root: &Path, pid: u32) -> Memory {
    Groups::of(proc_root, pid, "memory").map_or_else(Memory::default, |g| g.memory())
}

/// The group of a process that one controller uses, and those above it as far as they can be
/// seen.
#[derive(Debug)]
pub(crate) struct Groups {
    version: Version,
    /// Its own first.
    levels: Vec<PathBuf>,
}

impl Groups {
    /// Finds them. The path in `cgroup` and the roots in `mountinfo` are both written as the
    /// reader's cgroup namespace sees them, so they fit together; where our own mounts do not
    /// show the group (a container beside the target's), the target's mounts are looked at
    /// through its root.
    pub(crate) fn of(proc_root: &Path, pid: u32, controller: &str) -> Option<Self> {
        let dir = proc_root.join(pid.to_string());
        let groups = read_text(&dir.join("cgroup"), SMALL).ok()?;
        let (version, path) = group_of(&groups, controller)?;
        let views = [
            (proc_root.join("self/mountinfo"), PathBuf::from("/")),
            (dir.join("mountinfo"), dir.join("root")),
        ];
        views.into_iter().find_map(|(mountinfo, root)| {
            let mounts = read_text(&mountinfo, LARGE).ok()?;
            let (mount, below) = locate(&mounts, version, controller, path)?;
            let mount = root.join(mount.strip_prefix("/").ok()?);
            let groups = Self::below(&mount, &below, version);
            groups.exist().then_some(groups)
        })
    }

    fn below(mount: &Path, below: &Path, version: Version) -> Self {
        let own = mount.join(below);
        let levels = own.ancestors().take(MAX_DEPTH);
        let levels = levels.take_while(|level| level.starts_with(mount));
        Self {
            version,
            levels: levels.map(Path::to_path_buf).collect(),
        }
    }

    fn exist(&self) -> bool {
        self.levels.first().is_some_and(|own| own.is_dir())
    }

    /// Usage of the group, and the tightest limit of all levels.
    fn memory(&self) -> Memory {
        let Some(own) = self.levels.first() else {
            return Memory::default();
        };
        let stat = read_regular(&own.join("memory.stat")).unwrap_or_default();
        let [(usage, limit), ..] = self.memory_files();
        let usage = number(&own.join(usage));
        let usage = usage.map(|u| u.saturating_sub(self.inactive(&stat)));
        let limits = self.levels.iter().filter_map(|l| finite(&l.join(limit)));
        Memory {
            usage,
            limit: self.limit_above(&stat).into_iter().chain(limits).min(),
        }
    }

    /// Bytes that may still be charged before the kernel reclaims, throttles (`memory.high`) or
    /// kills, at the tightest of all levels; `None` where nothing is limited. File cache that
    /// is not in use counts as free; it is asked for only where less than `enough` is left
    /// without it, since the kernel sums it up anew each time.
    pub(crate) fn memory_room(&self, enough: u64) -> Option<u64> {
        let mut tightest: Option<u64> = None;
        for (depth, level) in self.levels.iter().enumerate() {
            let rooms = self
                .memory_files()
                .into_iter()
                .filter_map(|(usage, limit)| {
                    let limit = finite(&level.join(limit))?;
                    Some(limit.saturating_sub(number(&level.join(usage))?))
                });
            let mut room = rooms.min();
            let sums_up = depth == 0 && self.version == Version::V1;
            if sums_up || room.is_some_and(|r| r < enough) {
                let stat = read_regular(&level.join("memory.stat")).unwrap_or_default();
                let inactive = self.inactive(&stat);
                room = room.map(|r| r.saturating_add(inactive));
                // Limits of levels that cannot be seen hold for this one, too.
                let usage = number(&level.join(self.memory_files()[0].0));
                if let (0, Some(limit), Some(usage)) = (depth, self.limit_above(&stat), usage) {
                    let left = limit.saturating_sub(usage.saturating_sub(inactive));
                    room = Some(room.map_or(left, |r| r.min(left)));
                }
            }
            tightest = [tightest, room].into_iter().flatten().min();
        }
        tightest
    }

    /// Processes and threads that may still be started, at the tightest of all levels.
    pub(crate) fn pids_room(&self) -> Option<u64> {
        let rooms = self.levels.iter().filter_map(|level| {
            let limit = finite(&level.join("pids.max"))?;
            Some(limit.saturating_sub(number(&level.join("pids.current"))?))
        });
        rooms.min()
    }

    /// Whether the end of one process for want of memory ends all of the group: the kernel does
    /// that where it was told to, systemd where the group is a service (`OOMPolicy=stop`).
    pub(crate) fn dies_as_one(&self) -> bool {
        let service = |level: &PathBuf| level.extension().is_some_and(|e| e == "service");
        let told = |level: &PathBuf| number(&level.join("memory.oom.group")) == Some(1);
        let v2 = self.version == Version::V2;
        v2 && self
            .levels
            .iter()
            .any(|level| service(level) || told(level))
    }

    /// Names of usage and limit, as pairs: that of memory first.
    fn memory_files(&self) -> [(&'static str, &'static str); 2] {
        match self.version {
            Version::V1 => [
                ("memory.usage_in_bytes", "memory.limit_in_bytes"),
                ("memory.memsw.usage_in_bytes", "memory.memsw.limit_in_bytes"),
            ],
            Version::V2 => [
                ("memory.current", "memory.max"),
                ("memory.current", "memory.high"),
            ],
        }
    }

    fn inactive(&self, stat: &str) -> u64 {
        let name = match self.version {
            Version::V1 => "total_inactive_file",
            Version::V2 => "inactive_file",
        };
        stat_field(stat, name).unwrap_or(0)
    }

    /// Version 1 sums up limits above the mount too, which a container cannot see.
    fn limit_above(&self, stat: &str) -> Option<u64> {
        match self.version {
            Version::V1 => stat_field(stat, "hierarchical_memory_limit").filter(|l| *l < NO_LIMIT),
            Version::V2 => None,
        }
    }
}

fn number(path: &Path) -> Option<u64> {
    read_regular(path)?.trim().parse().ok()
}

fn finite(path: &Path) -> Option<u64> {
    parse_limit(&read_regular(path)?)
}

/// The group that a controller uses, from `/proc/PID/cgroup`.
fn group_of<'a>(text: &'a str, controller: &str) -> Option<(Version, &'a str)> {
    let mut unified = None;
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        // A controller belongs to one version at a time; listed here, it is in version 1.
        if controllers.split(',').any(|c| c == controller) {
            return Some((Version::V1, path));
        }
        if id == "0" && controllers.is_empty() {
            unified = Some((Version::V2, path));
        }
    }
    unified
}

/// Where the group is mounted: mount point and path below it.
fn locate(
    mountinfo: &str,
    version: Version,
    controller: &str,
    group: &str,
) -> Option<(PathBuf, PathBuf)> {
    let mut best: Option<(usize, PathBuf, PathBuf)> = None;
    for line in mountinfo.lines() {
        let Some((mount, fs)) = line.split_once(" - ") else {
            continue;
        };
        let mut fs = fs.split(' ');
        let (Some(kind), Some(_), Some(options)) = (fs.next(), fs.next(), fs.next()) else {
            continue;
        };
        let fits = match version {
            Version::V1 => kind == "cgroup" && options.split(',').any(|o| o == controller),
            Version::V2 => kind == "cgroup2",
        };
        let mut mount = mount.split(' ').skip(3);
        let (true, Some(root), Some(point)) = (fits, mount.next(), mount.next()) else {
            continue;
        };
        let (root, point) = (unescape(root), PathBuf::from(unescape(point)));
        let Ok(below) = Path::new(group).strip_prefix(&root) else {
            continue;
        };
        // A removed group is marked so; `..` would lead out of the mount.
        if below
            .components()
            .any(|c| !matches!(c, Component::Normal(_)))
        {
            continue;
        }
        // The mount nearest to the root of the hierarchy shows the most limits.
        if best
            .as_ref()
            .is_none_or(|(length, ..)| root.len() < *length)
        {
            best = Some((root.len(), point, below.to_owned()));
        }
    }
    best.map(|(_, point, below)| (point, below))
}

/// `\040` and the like, as mountinfo writes blanks.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|d| first == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match octal {
            Some(d) => {
                let value = d.iter().fold(0_u32, |v, b| v * 8 + u32::from(b - b'0'));
                out.push((value & 0xff) as u8);
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// None for no limit.
fn parse_limit(text: &str) -> Option<u64> {
    text.trim().parse::<u64>().ok().filter(|l| *l < NO_LIMIT)
}

fn stat_field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(' '))?
        .trim()
        .parse()
        .ok()
}

/// Under a container's root anything may lie at the path, a pipe included.
fn read_regular(path: &Path) -> Option<String> {
    std::fs::metadata(path)
        .ok()
        .filter(std::fs::Metadata::is_file)?;
    read_text(path, SMALL).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1_DOCKER: &str = "12:memory:/docker/0f3c9d2a7b1e4f5a\n11:cpu,cpuacct:/docker/0f3c9d2a7b1e4f5a\n1:name=systemd:/docker/0f3c\n";
    const V2_SYSTEMD: &str = "0::/system.slice/docker-0f3c9d2a7b1e4f5a.scope\n";
    const V2_K8S: &str = "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope\n";
    const HYBRID: &str = "9:name=systemd:/\n4:memory:/process_api/bced\n3:cpuset:/\n0::/\n";
    const HYBRID_V2_MEMORY: &str =
        "5:cpu,cpuacct:/a\n1:name=systemd:/user.slice\n0::/user.slice/user-1000.slice\n";

    #[test]
    fn the_group_of_the_memory_controller() {
        for (text, want) in [
            (V1_DOCKER, Some((Version::V1, "/docker/0f3c9d2a7b1e4f5a"))),
            (
                V2_SYSTEMD,
                Some((Version::V2, "/system.slice/docker-0f3c9d2a7b1e4f5a.scope")),
            ),
            (HYBRID, Some((Version::V1, "/process_api/bced"))),
            (
                HYBRID_V2_MEMORY,
                Some((Version::V2, "/user.slice/user-1000.slice")),
            ),
            ("0::/a:b/c\n", Some((Version::V2, "/a:b/c"))),
            ("5:cpu,hugememory:/x\n", None),
            ("", None),
            (":::\n0\n0:\n", None),
        ] {
            assert_eq!(group_of(text, "memory"), want, "{text}");
        }
    }

    #[test]
    fn mounts_on_hosts_and_in_containers() {
        let v2_host =
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let v1_host = "34 25 0:29 / /sys/fs/cgroup/memory rw shared:15 - cgroup cgroup rw,memory\n\
            35 25 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";
        let v1_docker = "650 640 0:29 /docker/0f3c9d2a7b1e4f5a /sys/fs/cgroup/memory ro master:15 - cgroup cgroup rw,memory\n";
        let v2_beside =
            "900 899 0:26 /../cri-containerd-abc.scope /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let two = "1 1 0:1 /a/b /mnt/ab rw - cgroup2 c rw\n2 1 0:1 /a /mnt/a rw - cgroup2 c rw\n";
        for (mounts, version, group, want) in [
            (
                v2_host,
                Version::V2,
                "/system.slice/x",
                Some(("/sys/fs/cgroup", "system.slice/x")),
            ),
            (v2_host, Version::V2, "/", Some(("/sys/fs/cgroup", ""))),
            (v2_host, Version::V1, "/x", None),
            (
                v1_host,
                Version::V1,
                "/docker/1",
                Some(("/sys/fs/cgroup/memory", "docker/1")),
            ),
            (
                v1_docker,
                Version::V1,
                "/docker/0f3c9d2a7b1e4f5a",
                Some(("/sys/fs/cgroup/memory", "")),
            ),
            (v1_docker, Version::V1, "/docker/other", None),
            (
                v2_beside,
                Version::V2,
                "/../cri-containerd-abc.scope",
                Some(("/sys/fs/cgroup", "")),
            ),
            (v2_host, Version::V2, "/../cri-containerd-abc.scope", None),
            (
                hybrid,
                Version::V1,
                "/process_api/b",
                Some(("/sys/fs/cgroup/memory", "process_api/b")),
            ),
            (two, Version::V2, "/a/b/c", Some(("/mnt/a", "b/c"))),
            (
                "junk\n - cgroup2\n1 2 3 4 - cgroup2 a b\n",
                Version::V2,
                "/",
                None,
            ),
        ] {
            let want = want.map(|(a, b)| (PathBuf::from(a), PathBuf::from(b)));
            assert_eq!(
                locate(mounts, version, "memory", group),
                want,
                "{group} in {mounts}"
            );
        }
        assert_eq!(unescape(r"/a\040b\011\x\04"), "/a b\t\\x\\04");
        assert_eq!(group_of(V2_K8S, "memory").map(|g| g.0), Some(Version::V2));
    }

    #[test]
    fn limits_as_written() {
        for (text, want) in [
            ("max\n", None),
            ("536870912\n", Some(536_870_912)),
            ("9223372036854771712\n", None),
            ("9223372036854710272\n", None),
            ("18446744073709551615", None),
            ("-1\n", None),
            ("0\n", Some(0)),
            ("", None),
        ] {
            assert_eq!(parse_limit(text), want, "{text}");
        }
    }

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        dir
    }

    #[test]
    fn the_tightest_limit_on_the_way_up() {
        let v2 = tree(&[
            ("pods/pod1/app/memory.current", "1000\n"),
            (
                "pods/pod1/app/memory.stat",
                "anon 5\ninactive_file 300\nactive_file 9\n",
            ),
            ("pods/pod1/app/memory.max", "max\n"),
            ("pods/pod1/memory.max", "4000\n"),
            ("pods/memory.max", "9000\n"),
        ]);
        let got = Groups::below(v2.path(), Path::new("pods/pod1/app"), Version::V2).memory();
        assert_eq!(
            got,
            Memory {
                usage: Some(700),
                limit: Some(4000)
            }
        );
        let got = Groups::below(v2.path(), Path::new("pods"), Version::V2).memory();
        assert_eq!(
            got,
            Memory {
                usage: None,
                limit: Some(9000)
            }
        );
        assert_eq!(
            Groups::below(v2.path(), Path::new("none"), Version::V2).memory(),
            Memory::default()
        );

        let v1 = tree(&[
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("docker/1/memory.usage_in_bytes", "100\n"),
            ("docker/1/memory.limit_in_bytes", "2000\n"),
            (
                "docker/1/memory.stat",
                "inactive_file 1\nhierarchical_memory_limit 1500\ntotal_inactive_file 400\n",
            ),
        ]);
        let got = Groups::below(v1.path(), Path::new("docker/1"), Version::V1).memory();
        assert_eq!(
            got,
            Memory {
                usage: Some(0),
                limit: Some(1500)
            },
            "cache above usage: 0, not a wrap"
        );
    }

    #[test]
    fn room_at_the_tightest_level() {
        let room = |files: &[(&str, &str)], below: &str, version| {
            let dir = tree(files);
            Groups::below(dir.path(), Path::new(below), version).memory_room(100)
        };
        // The group above is fuller than its own.
        let nested = [
            ("a/b/memory.current", "100\n"),
            ("a/b/memory.max", "1000\n"),
            ("a/memory.current", "1900\n"),
            ("a/memory.max", "2000\n"),
        ];
        assert_eq!(room(&nested, "a/b", Version::V2), Some(100));
        // Beyond `memory.high` the kernel throttles.
        let high = [
            ("a/memory.current", "300\n"),
            ("a/memory.max", "max\n"),
            ("a/memory.high", "350\n"),
            ("a/memory.stat", "inactive_file 20\n"),
        ];
        assert_eq!(room(&high, "a", Version::V2), Some(70));
        let none = [("a/memory.current", "300\n"), ("a/memory.max", "max\n")];
        assert_eq!(room(&none, "a", Version::V2), None);
        // Memory and swap together are tighter.
        let swap = [
            ("a/memory.usage_in_bytes", "300\n"),
            ("a/memory.limit_in_bytes", "1000\n"),
            ("a/memory.memsw.usage_in_bytes", "900\n"),
            ("a/memory.memsw.limit_in_bytes", "1000\n"),
        ];
        assert_eq!(room(&swap, "a", Version::V1), Some(100));
        // A limit that only the sum over all levels shows.
        let hidden = [
            ("memory.usage_in_bytes", "300\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            (
                "memory.stat",
                "hierarchical_memory_limit 400\ntotal_inactive_file 50\n",
            ),
        ];
        assert_eq!(room(&hidden, "", Version::V1), Some(150));
    }

    #[test]
    fn groups_that_end_as_one() {
        let as_one = |files: &[(&str, &str)], below: &str, version| {
            let dir = tree(files);
            Groups::below(dir.path(), Path::new(below), version).dies_as_one()
        };
        let told = [
            ("pods/a/memory.oom.group", "1\n"),
            ("pods/a/b/memory.oom.group", "0\n"),
        ];
        assert!(as_one(&told, "pods/a/b", Version::V2));
        assert!(!as_one(&told, "pods", Version::V2));
        assert!(as_one(&[], "system.slice/app.service", Version::V2));
        assert!(!as_one(&[], "system.slice/docker-1.scope", Version::V2));
        assert!(!as_one(&[], "system.slice/app.service", Version::V1));
    }

    #[test]
    fn pids_at_the_tightest_level() {
        let dir = tree(&[
            ("a/b/pids.max", "max\n"),
            ("a/b/pids.current", "3\n"),
            ("a/pids.max", "20\n"),
            ("a/pids.current", "17\n"),
        ]);
        let room = |below| Groups::below(dir.path(), Path::new(below), Version::V2).pids_room();
        assert_eq!(room("a/b"), Some(3));
        assert_eq!(room(""), None);
    }

    #[test]
    fn a_whole_proc_seen_from_the_container_beside() {
        let dir = tree(&[
            ("7/cgroup", "0::/../abc.scope\n"),
            (
                "7/mountinfo",
                "9 8 0:26 /../abc.scope /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
            ),
            ("7/root/sys/fs/cgroup/memory.current", "50\n"),
            ("7/root/sys/fs/cgroup/memory.max", "64\n"),
            (
                "self/mountinfo",
                "9 8 0:26 / /nonexistent/cgroup ro - cgroup2 cgroup rw\n",
            ),
        ]);
        assert_eq!(
            read(dir.path(), 7),
            Memory {
                usage: Some(50),
                limit: Some(64)
            }
        );
        assert_eq!(read(dir.path(), 8), Memory::default());
    }

    #[test]
    fn damaged_files_do_not_panic() {
        let mounts = "650 640 0:29 /docker/\\0400f3c /sys/fs/cgroup/memory ro master:15 - cgroup cgroup rw,memory\n";
        for text in crate::damaged(mounts) {
            let _ = locate(&text, Version::V1, "memory", "/docker/ 0f3c/x");
            let _ = unescape(&text);
        }
        for text in crate::damaged(HYBRID) {
            let _ = group_of(&text, "memory");
        }
        for text in crate::damaged("hierarchical_memory_limit 1500\ntotal_inactive_file 400\n") {
            let _ = (stat_field(&text, "total_inactive_file"), parse_limit(&text));
        }
    }
}
