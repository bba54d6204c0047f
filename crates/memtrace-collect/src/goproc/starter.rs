//! Where guards come from.
//!
//! A guard inherits the priority of the thread that starts it. A watch steps back behind
//! other programs, and who has no right to come forward again must not hold a target with a
//! guard that gets no processor: it asks for a thread that starts guards before it does.

use std::io;
use std::os::fd::RawFd;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::sys;

type Work = Box<dyn FnOnce() + Send>;

struct Job {
    keep: RawFd,
    work: Work,
    started: Sender<io::Result<u32>>,
}

static STARTER: Mutex<Option<Sender<Job>>> = Mutex::new(None);

fn starter() -> MutexGuard<'static, Option<Sender<Job>>> {
    STARTER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on guards have the priority that the calling thread has now.
pub fn prepare() {
    let (to, jobs) = channel::<Job>();
    let work = move || {
        for job in jobs {
            // Who asked may have given up.
            let _ = job.started.send(sys::spawn(job.keep, job.work));
        }
    };
    let thread = std::thread::Builder::new().name("guards".to_owned());
    // Without it they have the priority of who freezes.
    if thread.spawn(work).is_ok() {
        *starter() = Some(to);
    }
}

/// Starts a process that runs `work`: its pid.
pub(super) fn spawn(keep: RawFd, work: Work) -> io::Result<u32> {
    let (started, answer) = channel();
    let job = Job {
        keep,
        work,
        started,
    };
    let unsent = match &*starter() {
        Some(to) => to.send(job).err().map(|unsent| unsent.0),
        None => Some(job),
    };
    match unsent {
        Some(job) => sys::spawn(job.keep, job.work),
        None => answer
            .recv()
            .unwrap_or(Err(io::ErrorKind::BrokenPipe.into())),
    }
}
