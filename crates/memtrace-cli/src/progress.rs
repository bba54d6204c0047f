//! What takes long is told while it takes, on a terminal.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::out;

/// What is over sooner is not worth a word.
const AT_ONCE: Duration = Duration::from_millis(700);
const BEAT: Duration = Duration::from_millis(250);
/// How much is done is not known.
const UNKNOWN: u32 = u32::MAX;

/// Work that goes on until this is dropped; its line on stderr is gone then.
pub(crate) struct Step {
    /// Percent.
    done: Arc<AtomicU32>,
    line: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Step {
    pub(crate) fn begin(what: impl Into<String>) -> Self {
        let done = Arc::new(AtomicU32::new(UNKNOWN));
        let (what, of_line) = (what.into(), done.clone());
        let line = out::notes_are_read().then(|| {
            let (stop, stopped) = channel();
            let work = move || {
                let begun = Instant::now();
                let mut wait = AT_ONCE;
                while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                    wait = BEAT;
                    let so_far = match of_line.load(Ordering::Relaxed) {
                        UNKNOWN => format!("{:.0} s", begun.elapsed().as_secs_f64()),
                        percent => format!("{percent} %"),
                    };
                    out::step(Some((&what, &so_far)));
                }
                if wait == BEAT {
                    out::step(None);
                }
            };
            (stop, std::thread::spawn(work))
        });
        Self { done, line }
    }

    /// How much is done, 0 to 1.
    pub(crate) fn done(&self, share: f64) {
        let percent = (100.0 * share.clamp(0.0, 1.0)) as u32;
        self.done.store(percent, Ordering::Relaxed);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some((stop, line)) = self.line.take() {
            drop(stop);
            // Nothing to say where it broke off.
            let _ = line.join();
        }
    }
}
