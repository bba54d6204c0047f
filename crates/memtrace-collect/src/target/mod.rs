//! From what the user has at hand to something that can be watched.
//!
//! [`Target::parse`] tells what kind of thing a word is; [`Target::attach`] finds
//! the other half: the address of a pid, the pid behind an address.

mod sockets;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use crate::proc::read_text;
use crate::scrape::{Endpoint, Options, Probe, ScrapeError, TokenSource, probe, sanitise};
use sockets::Listener;

/// More listening ports than this are not asked.
const MAX_PROBES: usize = 32;
/// More processes than this in one container are not looked at.
const MAX_MEMBERS: usize = 256;
const SMALL: u64 = 64 * 1024;

/// Programs that pass a port on: their memory says nothing about the service.
const FORWARDERS: &[&str] = &[
    "docker-proxy",
    "rootlessport",
    "slirp4netns",
    "pasta",
    "conmon",
    "ssh",
    "sshd",
    "kubectl",
    "socat",
    "nginx",
    "haproxy",
    "envoy",
    "traefik",
];

/// What the user named.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// A process of this machine.
    Pid(u32),
    /// A service with pprof, by address.
    Url(Endpoint),
    /// A container, by the (shortened) id that its runtime shows; lower-case hex.
    Container(String),
    /// A file on disk: profile, dump or snapshot.
    File(PathBuf),
}

/// Where a target can be asked, and where its process is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// Where it serves pprof. None for a file.
    pub endpoint: Option<Endpoint>,
    /// Its process on this machine, where it is on this machine.
    pub pid: Option<u32>,
    /// What the user should know, one line each.
    pub notes: Vec<String>,
}

/// Why a target could not be found. One line each, with what to do.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// Not a target in any known form.
    #[error(
        "{text:?} is no target: give a pid, http://host:port, a container id, or an existing file"
    )]
    Unrecognised {
        /// What was given.
        text: String,
    },
    /// It looks like a file, and is not there.
    #[error("{path:?}: no such file")]
    NoSuchFile {
        /// What was given.
        path: String,
    },
    /// It is there, but it holds no profile itself.
    #[error("{path:?} is a folder; name a profile in it, or a store as DIR@TIME")]
    Folder {
        /// What was given.
        path: String,
    },
    /// The address is unusable.
    #[error(transparent)]
    Address(#[from] ScrapeError),
    /// There is no such process.
    #[error("no process with pid {pid}")]
    NoSuchProcess {
        /// The pid.
        pid: u32,
    },
    /// The user may not look at it.
    #[error(
        "process {pid}: permission denied; run memtrace as the same user or as root, or give http://host:port"
    )]
    Permission {
        /// The pid.
        pid: u32,
    },
    /// No running process belongs to the container.
    #[error("no running container with id {id} on this machine")]
    NoContainer {
        /// The id as given.
        id: String,
    },
    /// The shortened id fits several containers.
    #[error("container id {id} fits {count} containers; give more of it")]
    AmbiguousContainer {
        /// The id as given.
        id: String,
        /// How many it fits.
        count: usize,
    },
    /// The process listens on no TCP port.
    #[error("process {pid} ({name}) has no pprof endpoint: it listens on no TCP port; {ADVICE}")]
    NoListener {
        /// The pid.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// The process listens, but none of its ports answers with pprof.
    #[error("process {pid} ({name}) has no pprof endpoint on {asked}; {ADVICE}")]
    NoPprof {
        /// The pid.
        pid: u32,
        /// Its name.
        name: String,
        /// The addresses asked.
        asked: String,
    },
    /// pprof is there, behind a token.
    #[error("process {pid}: pprof at {at} is guarded; {hint}")]
    Guarded {
        /// The pid.
        pid: u32,
        /// The address.
        at: String,
        /// What to do.
        hint: &'static str,
    },
    /// The ports belong to another network namespace and cannot be reached.
    #[error(
        "process {pid} listens on {asked} inside its own network namespace; run memtrace there (nsenter -t {pid} -n memtrace …) or give an address that is reachable from here"
    )]
    OtherNetwork {
        /// The pid.
        pid: u32,
        /// The addresses inside.
        asked: String,
    },
}

const ADVICE: &str = "for Go add import _ \"net/http/pprof\" and serve it on a loopback port (or memtrace.Guard, started with PPROF_ENABLED=1 and a token), then give http://host:port";

impl TargetError {
    /// The process that was found, though it could not be asked for profiles: its
    /// gauges can still be read.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        match self {
            Self::Permission { pid }
            | Self::NoListener { pid, .. }
            | Self::NoPprof { pid, .. }
            | Self::Guarded { pid, .. }
            | Self::OtherNetwork { pid, .. } => Some(*pid),
            _ => None,
        }
    }
}

impl Target {
    /// Tells what the user means. Looks at the file system, contacts nobody. A
    /// number is a pid; an existing file comes before a host of that name.
    ///
    /// # Errors
    /// [`TargetError::Unrecognised`], [`TargetError::NoSuchFile`] or
    /// [`TargetError::Address`].
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        let text = text.trim();
        let unrecognised = || TargetError::Unrecognised {
            text: sanitise(text, 120),
        };
        if !text.is_empty() && text.len() <= 10 && text.bytes().all(|b| b.is_ascii_digit()) {
            let pid = text.parse().ok().filter(|pid| *pid > 0);
            return pid.map(Self::Pid).ok_or_else(unrecognised);
        }
        // As kubectl shows it.
        for runtime in ["docker://", "containerd://", "cri-o://"] {
            if let Some(id) = text.strip_prefix(runtime) {
                return container_id(id)
                    .map(Self::Container)
                    .ok_or_else(unrecognised);
            }
        }
        if text.contains("://") {
            return Ok(Self::Url(Endpoint::parse(text)?));
        }
        match std::fs::metadata(text) {
            Ok(meta) if !meta.is_dir() => return Ok(Self::File(PathBuf::from(text))),
            _ => {}
        }
        if let Some(id) = container_id(text) {
            return Ok(Self::Container(id));
        }
        if has_port(text) {
            return Ok(Self::Url(Endpoint::parse(text)?));
        }
        if text.contains(['/', '.']) && !text.contains('@') {
            let path = sanitise(text, 120);
            return Err(if Path::new(text).is_dir() {
                TargetError::Folder { path }
            } else {
                TargetError::NoSuchFile { path }
            });
        }
        Err(unrecognised())
    }

    /// Finds where to ask for profiles and where the process is. Ports of a pid
    /// are tried out with one small request each, loopback first.
    ///
    /// # Errors
    /// See [`TargetError`]; [`TargetError::pid`] tells whether at least the
    /// process was found.
    pub async fn attach(&self, options: &Options) -> Result<Attached, TargetError> {
        match self {
            Self::File(_) => Ok(Attached::default()),
            Self::Pid(pid) => attach_pid(*pid, options).await,
            Self::Url(endpoint) => Ok(attach_url(endpoint).await),
            Self::Container(id) => attach_container(id, options).await,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pid(pid) => write!(f, "pid {pid}"),
            Self::Url(endpoint) => endpoint.fmt(f),
            Self::Container(id) => write!(f, "container {}", id.get(..12).unwrap_or(id)),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

fn container_id(text: &str) -> Option<String> {
    let hex = (12..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    hex.then(|| text.to_ascii_lowercase())
}

/// `host:port` or `host:port/prefix`, the port in figures.
fn has_port(text: &str) -> bool {
    let authority = text.split('/').next().unwrap_or_default();
    authority.rsplit_once(':').is_some_and(|(_, port)| {
        (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit())
    })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

async fn attach_url(endpoint: &Endpoint) -> Attached {
    let mut attached = Attached {
        endpoint: Some(endpoint.clone()),
        ..Attached::default()
    };
    let addresses: Vec<SocketAddr> = match endpoint.host().parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, endpoint.port())],
        // A name that is unknown now is reported by the first fetch.
        Err(_) => tokio::net::lookup_host((endpoint.host(), endpoint.port()))
            .await
            .map(Iterator::collect)
            .unwrap_or_default(),
    };
    let found = blocking(move || {
        let local: Vec<_> = addresses.into_iter().filter(|a| is_local(a.ip())).collect();
        if local.is_empty() {
            None
        } else {
            Some(sockets::owner(Path::new("/proc"), &local))
        }
    });
    let Some(Some(owner)) = found.await else {
        return attached;
    };
    match owner {
        Some(pid) => {
            let name = process_name(pid);
            if FORWARDERS.contains(&name.as_str()) {
                attached.notes.push(format!(
                    "{endpoint} is passed on by {name} (pid {pid}); give the container id or the pid of the service to read its memory and limits"
                ));
            } else {
                attached.pid = Some(pid);
            }
        }
        None => attached.notes.push(format!(
            "cannot see which process listens on port {}: memory and limits of the process are not read (run memtrace as the same user or as root)",
            endpoint.port()
        )),
    }
    attached
}

/// An address that can be bound is one of this machine's. Nothing is sent.
fn is_local(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    ip.is_loopback() || ip.is_unspecified() || UdpSocket::bind((ip, 0)).is_ok()
}

async fn attach_pid(pid: u32, options: &Options) -> Result<Attached, TargetError> {
    let seen = blocking(move || look_at(pid)).await;
    let seen = seen.ok_or(TargetError::NoSuchProcess { pid })??;
    let name = seen.name;
    if seen.listeners.is_empty() {
        return Err(TargetError::NoListener { pid, name });
    }
    let inside = seen.listeners.iter().map(|l| l.address.to_string());
    let inside = inside
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>()
        .join(", ");
    let addresses = match &seen.foreign {
        None => here(&seen.listeners),
        Some(ips) => there(&seen.listeners, ips),
    };
    match ask_all(&addresses, options).await {
        Asked::Found(endpoint) => Ok(Attached {
            endpoint: Some(endpoint),
            pid: Some(pid),
            notes: Vec::new(),
        }),
        Asked::Guarded(endpoint) => Err(TargetError::Guarded {
            pid,
            at: endpoint.to_string(),
            hint: match options.token {
                TokenSource::None => "give its token with --token-file",
                _ => "the token given is refused",
            },
        }),
        Asked::Nothing if seen.foreign.is_some() => {
            Err(TargetError::OtherNetwork { pid, asked: inside })
        }
        Asked::Nothing => Err(TargetError::NoPprof {
            pid,
            name,
            asked: inside,
        }),
    }
}

/// What `/proc` tells about a pid's ports.
struct Seen {
    name: String,
    listeners: Vec<Listener>,
    /// The addresses of its network namespace, where that is not ours.
    foreign: Option<Vec<IpAddr>>,
}

fn look_at(pid: u32) -> Result<Seen, TargetError> {
    let proc_root = Path::new("/proc");
    let dir = proc_root.join(pid.to_string());
    let sort = |e: io::Error| match e.kind() {
        io::ErrorKind::PermissionDenied => TargetError::Permission { pid },
        _ => TargetError::NoSuchProcess { pid },
    };
    std::fs::metadata(&dir).map_err(sort)?;
    let listeners = sockets::listeners_of(proc_root, pid).map_err(sort)?;
    let ours = std::fs::read_link("/proc/self/ns/net").ok();
    let foreign = match std::fs::read_link(dir.join("ns/net")) {
        Ok(theirs) if ours.is_some_and(|ours| ours != theirs) => Some(sockets::addresses(&dir)),
        _ => None,
    };
    Ok(Seen {
        name: process_name(pid),
        listeners,
        foreign,
    })
}

fn process_name(pid: u32) -> String {
    let text = read_text(Path::new(&format!("/proc/{pid}/comm")), SMALL).unwrap_or_default();
    sanitise(&text, 64)
}

/// Addresses at which listeners of our own network answer, most private first;
/// 6060, Go's custom for pprof, before others.
fn here(listeners: &[Listener]) -> Vec<SocketAddr> {
    let mut all: Vec<(u8, SocketAddr)> = Vec::new();
    for listener in listeners {
        let (ip, port) = (
            listener.address.ip().to_canonical(),
            listener.address.port(),
        );
        match ip {
            _ if ip.is_loopback() => all.push((0, SocketAddr::new(ip, port))),
            IpAddr::V4(v4) if v4.is_unspecified() => {
                all.push((1, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)));
            }
            IpAddr::V6(v6) if v6.is_unspecified() => {
                // Usually open for both; where it is not, one of them is refused at once.
                all.push((1, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)));
                all.push((2, SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port)));
            }
            ip => all.push((3, SocketAddr::new(ip, port))),
        }
    }
    in_order(all)
}

/// Addresses at which listeners of another network namespace may be reached.
fn there(listeners: &[Listener], ips: &[IpAddr]) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    for listener in listeners {
        let (bound, port) = (
            listener.address.ip().to_canonical(),
            listener.address.port(),
        );
        if bound.is_loopback() {
            continue;
        }
        if bound.is_unspecified() {
            all.extend(ips.iter().map(|ip| (0, SocketAddr::new(*ip, port))));
        } else {
            all.push((0, SocketAddr::new(bound, port)));
        }
    }
    in_order(all)
}

fn in_order(mut all: Vec<(u8, SocketAddr)>) -> Vec<SocketAddr> {
    all.sort_by_key(|(rank, a)| (*rank, a.port() != 6060, *a));
    let mut order: Vec<SocketAddr> = Vec::new();
    for (_, address) in all {
        if !order.contains(&address) && order.len() < MAX_PROBES {
            order.push(address);
        }
    }
    order
}

enum Asked {
    Found(Endpoint),
    Guarded(Endpoint),
    Nothing,
}

/// Asks one address after the other. The token goes only to addresses that
/// refused to answer without it.
async fn ask_all(addresses: &[SocketAddr], options: &Options) -> Asked {
    let mut guarded = Vec::new();
    for address in addresses {
        for scheme in ["http", "https"] {
            let Some(endpoint) = Endpoint::at(scheme, *address) else {
                continue;
            };
            match probe(&endpoint, options, false).await {
                Probe::Yes => return Asked::Found(endpoint),
                Probe::Guarded => guarded.push(endpoint),
                Probe::WantsTls => continue,
                Probe::No => {}
            }
            break;
        }
    }
    if options.token != TokenSource::None {
        for endpoint in &guarded {
            if matches!(probe(endpoint, options, true).await, Probe::Yes) {
                return Asked::Found(endpoint.clone());
            }
        }
    }
    guarded
        .into_iter()
        .next()
        .map_or(Asked::Nothing, Asked::Guarded)
}

async fn attach_container(id: &str, options: &Options) -> Result<Attached, TargetError> {
    let wanted = id.to_owned();
    let members = blocking(move || members(Path::new("/proc"), &wanted))
        .await
        .unwrap_or_default();
    let full: BTreeSet<&str> = members.iter().map(|(full, _)| full.as_str()).collect();
    if full.len() > 1 {
        return Err(TargetError::AmbiguousContainer {
            id: id.to_owned(),
            count: full.len(),
        });
    }
    // The first process may be a shell or an init: the service is the one that answers.
    let mut first_error = None;
    for (_, pid) in &members {
        match attach_pid(*pid, options).await {
            Ok(attached) => return Ok(attached),
            Err(error) => {
                let better = match (&first_error, &error) {
                    (None, _) => true,
                    // A process that listens says more than one that does not.
                    (Some(TargetError::NoListener { .. }), e) => !matches!(
                        e,
                        TargetError::NoListener { .. } | TargetError::NoSuchProcess { .. }
                    ),
                    _ => false,
                };
                if better {
                    first_error = Some(error);
                }
            }
        }
    }
    Err(first_error.unwrap_or_else(|| TargetError::NoContainer { id: id.to_owned() }))
}

/// The processes of a container, oldest first, each with the full id.
fn members(proc_root: &Path, id: &str) -> Vec<(String, u32)> {
    let mut found: Vec<(String, u32)> = sockets::pids(proc_root)
        .filter_map(|pid| {
            let text = read_text(&proc_root.join(format!("{pid}/cgroup")), SMALL).ok()?;
            Some((id_in_cgroup(&text, id)?, pid))
        })
        .take(MAX_MEMBERS)
        .collect();
    found.sort_by_key(|(_, pid)| *pid);
    found
}

/// The full id in a `/proc/PID/cgroup` that begins with `id`: a hex word of 12 to
/// 64 figures, as in `/docker/ID`, `docker-ID.scope`, `cri-containerd-ID.scope`.
fn id_in_cgroup(text: &str, id: &str) -> Option<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter(|w| w.starts_with(id)).find_map(container_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognised_without_flags() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("heap.pb.gz");
        std::fs::write(&file, "x").unwrap();
        let file = file.to_str().unwrap();
        for (text, want) in [
            ("4711", "Pid(4711)"),
            (" 1 ", "Pid(1)"),
            ("http://host:6060", "http://host:6060"),
            ("https://host/ns", "https://host/ns"),
            ("host:6060", "http://host:6060"),
            ("host:6060/ns/debug/pprof/heap?x", "http://host:6060/ns"),
            ("localhost:6060", "http://localhost:6060"),
            (":6060", "http://localhost:6060"),
            ("[::1]:6060", "http://[::1]:6060"),
            ("0f3c9d2a7b1e", "Container(0f3c9d2a7b1e)"),
            ("0F3C9D2A7B1E", "Container(0f3c9d2a7b1e)"),
            (
                "containerd://0f3c9d2a7b1e4f5a",
                "Container(0f3c9d2a7b1e4f5a)",
            ),
            ("123456789012", "Container(123456789012)"),
            (file, "File"),
        ] {
            let got = match Target::parse(text).unwrap() {
                Target::Pid(pid) => format!("Pid({pid})"),
                Target::Url(url) => url.to_string(),
                Target::Container(id) => format!("Container({id})"),
                Target::File(_) => "File".to_owned(),
            };
            assert_eq!(got, want, "{text}");
        }
    }

    #[test]
    fn what_is_no_target_says_so() {
        for (text, want) in [
            ("", "is no target"),
            ("0", "is no target"),
            ("99999999999", "is no target"),
            ("cnc", "is no target"),
            ("./none.pb.gz", "no such file"),
            ("/nonexistent/heap", "no such file"),
            ("/", "is a folder"),
            ("ftp://host", "only http"),
            ("docker://xyz", "is no target"),
            ("http://u:p@host", "no credentials"),
            ("host:99999", "not an address"),
        ] {
            let error = Target::parse(text).unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn container_ids_in_cgroups() {
        let full = "0f3c9d2a7b1e4f5a0f3c9d2a7b1e4f5a0f3c9d2a7b1e4f5a0f3c9d2a7b1e4f5a";
        for text in [
            format!("12:memory:/docker/{full}\n"),
            format!("0::/system.slice/docker-{full}.scope\n"),
            format!("0::/kubepods.slice/kubepods-pod1_2.slice/cri-containerd-{full}.scope\n"),
            format!("4:memory:/kubepods/burstable/pod0f3c-9d2a/{full}\n"),
            format!("0::/machine.slice/libpod-{full}.scope/container\n"),
        ] {
            assert_eq!(
                id_in_cgroup(&text, &full[..12]).as_deref(),
                Some(full),
                "{text}"
            );
            assert_eq!(id_in_cgroup(&text, full).as_deref(), Some(full));
            assert_eq!(
                id_in_cgroup(&text, &full[1..13]),
                None,
                "not from its middle"
            );
        }
        let root = tempfile::tempdir().unwrap();
        for (pid, id) in [(30, full), (4, full), (5, "ffffffffffffffff")] {
            let dir = root.path().join(pid.to_string());
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("cgroup"), format!("0::/docker-{id}.scope")).unwrap();
        }
        let found = members(root.path(), &full[..12]);
        assert_eq!(found.iter().map(|m| m.1).collect::<Vec<_>>(), [4, 30]);
    }

    #[test]
    fn order_of_asking() {
        let listeners: Vec<_> = [
            "10.0.0.9:1",
            "0.0.0.0:8080",
            "[::]:6060",
            "127.0.0.1:9000",
            "[::ffff:127.0.0.1]:8",
        ]
        .iter()
        .map(|a| Listener {
            address: a.parse().unwrap(),
            inode: 1,
        })
        .collect();
        let got: Vec<_> = here(&listeners).iter().map(ToString::to_string).collect();
        assert_eq!(
            got,
            [
                "127.0.0.1:8",
                "127.0.0.1:9000",
                "127.0.0.1:6060",
                "127.0.0.1:8080",
                "[::1]:6060",
                "10.0.0.9:1"
            ]
        );
        let ips = ["172.17.0.2".parse().unwrap()];
        let got: Vec<_> = there(&listeners, &ips)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(got, ["172.17.0.2:6060", "10.0.0.9:1", "172.17.0.2:8080"]);
    }
}
