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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_takes_long_leaves_room_for_others() {
        let (let_go, held) = std::sync::mpsc::channel::<()>();
        let long = tokio::spawn(run(move || held.recv().is_ok()));
        for i in 0..100 {
            assert_eq!(run(move || i).await, Some(i));
        }
        let_go.send(()).unwrap();
        assert_eq!(long.await.unwrap(), Some(true));
    }

    #[tokio::test]
    async fn a_panic_is_told_and_gives_its_room_back() {
        for _ in 0..100 {
            let broken: Option<()> = run(|| panic!("a panic of the test")).await;
            assert_eq!(broken, None);
        }
        assert_eq!(run(|| 5).await, Some(5));
    }
}
