//! Who listens where: `/proc/PID/net/tcp`, `/proc/PID/fd`.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use crate::proc::read_text;

/// Listening sockets come first in the kernel's tables: the rest, one line for
/// each connection, need not be read to its end.
const MAX_TABLE: u64 = 16 * 1024 * 1024;
const MAX_FDS: usize = 1 << 20;
const MAX_PIDS: usize = 1 << 20;

/// A listening TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    pub(super) inode: u64,
}

/// The listening sockets that the process itself holds.
pub(super) fn listeners_of(proc_root: &Path, pid: u32) -> io::Result<Vec<Listener>> {
    let dir = proc_root.join(pid.to_string());
    let held = socket_inodes(&dir)?;
    let mut all = tables(&dir);
    all.retain(|l| held.contains(&l.inode));
    Ok(all)
}

/// The process that listens at one of the addresses of this machine. Of several
/// that share the socket the oldest, but not the one that only hands it on (pid 1).
pub(super) fn owner(proc_root: &Path, addresses: &[SocketAddr]) -> Option<u32> {
    let fits = |l: &Listener, a: &SocketAddr| {
        let (bound, asked) = (l.address.ip().to_canonical(), a.ip().to_canonical());
        l.address.port() == a.port()
            && (bound == asked
                || asked.is_unspecified()
                || match bound {
                    IpAddr::V4(v4) => v4.is_unspecified() && asked.is_ipv4(),
                    IpAddr::V6(v6) => v6.is_unspecified(),
                })
    };
    let inodes: HashSet<u64> = tables(&proc_root.join("self"))
        .iter()
        .filter(|l| addresses.iter().any(|a| fits(l, a)))
        .map(|l| l.inode)
        .collect();
    if inodes.is_empty() {
        return None;
    }
    let holds = |pid: &u32| {
        let held = socket_inodes(&proc_root.join(pid.to_string()));
        held.is_ok_and(|held| !held.is_disjoint(&inodes))
    };
    let mut pids: Vec<u32> = pids(proc_root).collect();
    pids.sort_unstable_by_key(|pid| (*pid == 1, *pid));
    pids.into_iter().find(holds)
}

/// The pids of this machine (or of our pid namespace), in no order.
pub(super) fn pids(proc_root: &Path) -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir(proc_root)
        .into_iter()
        .flatten()
        .take(MAX_PIDS);
    entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
}

/// The local addresses of a process's network namespace, loopback left out.
pub(super) fn addresses(dir: &Path) -> Vec<IpAddr> {
    let v4 = read_text(&dir.join("net/fib_trie"), MAX_TABLE).unwrap_or_default();
    let v6 = read_text(&dir.join("net/if_inet6"), MAX_TABLE).unwrap_or_default();
    let mut all = local_v4(&v4);
    all.extend(local_v6(&v6));
    all
}

fn tables(dir: &Path) -> Vec<Listener> {
    let mut all = Vec::new();
    for name in ["net/tcp", "net/tcp6"] {
        let text = read_text(&dir.join(name), MAX_TABLE).unwrap_or_default();
        all.extend(parse_tcp(&text));
    }
    all
}

fn socket_inodes(dir: &Path) -> io::Result<HashSet<u64>> {
    let entries = std::fs::read_dir(dir.join("fd"))?.take(MAX_FDS);
    Ok(entries
        .filter_map(|entry| {
            let link = std::fs::read_link(entry.ok()?.path()).ok()?;
            link.to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')?
                .parse()
                .ok()
        })
        .collect())
}

/// The listening sockets of `/proc/net/tcp` or `tcp6`.
fn parse_tcp(text: &str) -> Vec<Listener> {
    const LISTEN: &str = "0A";
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let address = parse_address(fields.next()?)?;
            if fields.nth(1)? != LISTEN {
                return None;
            }
            let inode = fields.nth(5)?.parse().ok()?;
            Some(Listener { address, inode })
        })
        .collect()
}

/// `0100007F:17AC`: 32-bit words as the machine stores them, port in hex.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let hex = ip.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(hex, 16).ok()?.to_ne_bytes())
    };
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for (i, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(i)?);
            }
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The addresses marked as local in `fib_trie`: each mark follows its address.
fn local_v4(text: &str) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = Vec::new();
    let mut last: Option<Ipv4Addr> = None;
    for line in text.lines() {
        let line = line.trim();
        if let Some(ip) = line.strip_prefix("|-- ") {
            last = ip.parse().ok();
        } else if line == "/32 host LOCAL"
            && let Some(ip) = last
            && !ip.is_loopback()
            && !all.contains(&ip.into())
        {
            all.push(ip.into());
        }
    }
    all
}

/// The addresses in `if_inet6` that can be used without naming an interface.
fn local_v6(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let hex = line
                .split_ascii_whitespace()
                .next()
                .filter(|h| h.len() == 32)?;
            let ip = Ipv6Addr::from(u128::from_str_radix(hex, 16).ok()?);
            (!ip.is_loopback() && !ip.is_unicast_link_local()).then_some(ip.into())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    #[test]
    #[cfg(target_endian = "little")]
    fn listening_lines() {
        let text = format!(
            "{HEAD}   0: 0100007F:17AC 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1677 1 0000 100 0 0 10 0\n\
                1: 0100007F:17AC 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 1678 1 0000 20 4 0 10 -1\n\
                2: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000  0 55 1 0 100 0 0 10 0\n\
                3: 0000000000000000FFFF00000100007F:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 56\n\
                4: 0100007F:17"
        );
        let got: Vec<_> = parse_tcp(&text)
            .iter()
            .map(|l| (l.address.to_string(), l.inode))
            .collect();
        let want = [
            ("127.0.0.1:6060", 1677),
            ("[::1]:8080", 55),
            ("[::ffff:127.0.0.1]:80", 56),
        ];
        assert_eq!(got, want.map(|(a, i)| (a.to_owned(), i)));
    }

    #[test]
    fn damaged_lines_are_skipped() {
        for line in [
            "",
            "0:",
            "0: :",
            "0: zz:zz x 0A",
            "0: 0100007F:17AC",
            "0: é100007F:17AC r 0A a b c d e f",
            "0: 0100007F:99999 r 0A a b c d e 5",
        ] {
            assert_eq!(parse_tcp(line), [], "{line}");
        }
    }

    #[test]
    fn addresses_of_a_namespace() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n        |-- 127.0.0.0\n           /8 host LOCAL\n        |-- 127.0.0.1\n           /32 host LOCAL\n        |-- 172.17.0.2\n           /32 host LOCAL\n        |-- 172.17.255.255\n           /32 link BROADCAST\nLocal:\n        |-- 172.17.0.2\n           /32 host LOCAL\n";
        assert_eq!(local_v4(trie), ["172.17.0.2".parse::<IpAddr>().unwrap()]);
        let six = "00000000000000000000000000000001 01 80 10 80       lo\nfe80000000000000024200fffe110002 06 40 20 80     eth0\nfd000000000000000000000000000042 06 40 00 80     eth0\njunk\n";
        assert_eq!(local_v6(six), ["fd00::42".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn finds_its_own_listeners() {
        let root = Path::new("/proc");
        let four = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = four.local_addr().unwrap();
        let mine = listeners_of(root, std::process::id()).unwrap();
        assert!(mine.iter().any(|l| l.address == address));
        assert_eq!(owner(root, &[address]), Some(std::process::id()));

        let any = TcpListener::bind("0.0.0.0:0").unwrap();
        let asked = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), any.local_addr().unwrap().port());
        assert_eq!(owner(root, &[asked]), Some(std::process::id()));
        drop(any);
        assert_eq!(owner(root, &[asked]), None);
    }

    #[test]
    fn damaged_tables_do_not_panic() {
        let line = "2: 00000000000000000000000001000000:1F90 0:0 0A 0:0 00:0 0 1000 0 55 1\n1: 0100007F:17AC 0:0 0A 0:0 00:0 0 0 0 9 1";
        for text in crate::damaged(line) {
            let _ = parse_tcp(&text);
        }
        for text in crate::damaged("|-- 172.17.0.2\n /32 host LOCAL\n") {
            let _ = local_v4(&text);
        }
        for text in crate::damaged("fd000000000000000000000000000042 06 40 00 80 eth0\n") {
            let _ = local_v6(&text);
        }
    }
}
