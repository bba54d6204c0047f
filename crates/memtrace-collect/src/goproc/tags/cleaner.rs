//! Removes definitions of events when memtrace ends, also by `kill -9`: a process of its
//! own, in another session, that learns of the end from a socket. The breakpoints
//! themselves go with memtrace's files; the kernel keeps only the definitions.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::super::sys;
use super::tracefs::Tracefs;

/// How long it waits for somebody who still uses an event, after memtrace's end.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same while memtrace waits.
const QUICKLY: Duration = Duration::from_secs(2);
/// How long it may take to begin.
const START: Duration = Duration::from_secs(10);

/// The process that will clean up.
#[derive(Debug)]
pub(super) struct Cleaner {
    guard: u32,
    socket: UnixStream,
}

impl Cleaner {
    /// Starts it; it can remove events before the first is defined.
    pub(super) fn start(names: Vec<String>) -> io::Result<Self> {
        let (mut ours, mut theirs) = UnixStream::pair()?;
        let guard = sys::spawn(theirs.as_raw_fd(), || work(&names, &mut theirs))?;
        drop(theirs);
        let mut word = [0];
        let answered = ours
            .set_read_timeout(Some(START))
            .and_then(|()| ours.read_exact(&mut word));
        if answered.is_ok() && word == [1] {
            return Ok(Self {
                guard,
                socket: ours,
            });
        }
        sys::kill(guard, libc::SIGKILL);
        sys::reap(guard);
        Err(io::Error::other("the process that cleans up did not start"))
    }
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        let _ = self.socket.write_all(&[0]);
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        sys::reap(self.guard);
    }
}

fn work(names: &[String], socket: &mut UnixStream) {
    let Ok(tracefs) = Tracefs::open() else {
        let _ = socket.write_all(&[0]);
        return;
    };
    let _ = socket.write_all(&[1]);
    // A word, or the end of memtrace.
    let patience = match socket.read(&mut [0]) {
        Ok(1) => QUICKLY,
        _ => PATIENCE,
    };
    for name in names {
        tracefs.remove(name, patience);
    }
}
