//! Where profiles are read and judged: away from the tasks that must answer.
//!
//! What the reading of one profile may cost is bounded, but it is not nothing, and
//! one target of many must not make the others wait for it. As many works run at a time as
//! there are processors, two at least, and a target has one at a time: one that costs much
//! leaves room for the others.

use std::sync::LazyLock;
use std::thread::available_parallelism;

use tokio::sync::Semaphore;

/// Works at a time, where there are fewer processors than that.
const LEAST_AT_ONCE: usize = 2;

static ROOM: LazyLock<Semaphore> = LazyLock::new(|| {
    let processors = available_parallelism().map_or(1, usize::from);
    Semaphore::new(processors.max(LEAST_AT_ONCE))
});

/// Does `work` on a thread of its own. `None` where it panicked.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    // It is never closed.
    let room = ROOM.acquire().await.ok()?;
    let done = tokio::task::spawn_blocking(move || {
        // Held to the end of the work, even where nobody waits for it any more.
        let _room = room;
        work()
    });
    done.await.ok()
}
