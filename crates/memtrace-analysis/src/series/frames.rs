//! Frames of the stacks that were seen alive, in a bounded memory.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use memtrace_model::{Frame, FrameRef, Profile, StackId, StackKey, cut};

use super::store::Row;

/// Bytes of frames that are kept of one process: those of 2,000 stacks of common depth.
const MOST_BYTES: usize = 8 << 20;
/// Frames of a stack, the leaf first, that are kept: what a finding is told by stands there.
const MOST_FRAMES: usize = 512;
/// Calls into the runtime that are put below a stack.
const MOST_CALLS: usize = 64;

/// Names of functions and files are cut at so many bytes.
const LONGEST: usize = 1024;

#[derive(Clone, Debug, Default)]
pub(super) struct Frames {
    of: HashMap<StackKey, Vec<Frame>>,
    bytes: usize,
    /// Stacks whose calls into the runtime were asked for.
    calls_known: HashSet<StackKey>,
}

impl Frames {
    /// Frames of a stack, the leaf first; empty when they are not known.
    pub(super) fn get(&self, key: StackKey) -> &[Frame] {
        self.of.get(&key).map_or(&[], Vec::as_slice)
    }

    /// Takes in the stacks that are alive. Where that is too much, the heaviest are kept:
    /// `weight` tells what a stack that was taken in earlier holds now.
    pub(super) fn add(
        &mut self,
        profile: &Profile,
        rows: &[Row],
        stacks: &[StackId],
        weight: impl Fn(StackKey) -> u64,
    ) {
        let alive = rows.iter().zip(stacks).filter(|(row, _)| row.live > 0);
        let mut new: Vec<(&Row, StackId)> = alive
            .filter(|(row, _)| !self.of.contains_key(&row.key) && row.key != StackKey::other())
            .map(|(row, &stack)| (row, stack))
            .collect();
        new.sort_by_key(|(row, _)| std::cmp::Reverse((row.bytes, row.live)));
        let mut made_room = false;
        for (row, stack) in new {
            let frames: Vec<Frame> = profile.frames(stack).take(MOST_FRAMES).map(short).collect();
            let bytes = bytes(&frames);
            if self.bytes + bytes > MOST_BYTES && !made_room {
                made_room = true;
                self.make_room(&weight);
            }
            if self.bytes + bytes > MOST_BYTES {
                break;
            }
            self.bytes += bytes;
            self.of.insert(row.key, frames);
        }
    }

    /// Forgets the stacks that hold least, until half of the memory is free.
    fn make_room(&mut self, weight: &impl Fn(StackKey) -> u64) {
        let mut order: Vec<(u64, StackKey)> = self.of.keys().map(|&k| (weight(k), k)).collect();
        order.sort_unstable();
        for (_, key) in order {
            if self.bytes <= MOST_BYTES / 2 {
                break;
            }
            if let Some(frames) = self.of.remove(&key) {
                self.bytes -= bytes(&frames);
            }
            self.calls_known.remove(&key);
        }
    }

    /// Forgets what is in none of the series, where that has become most.
    pub(super) fn retain(&mut self, followed: usize, is_followed: impl Fn(StackKey) -> bool) {
        if self.of.len() <= 4 * followed + 1024 {
            return;
        }
        self.of.retain(|&key, frames| {
            let stays = is_followed(key);
            if !stays {
                self.bytes -= bytes(frames);
            }
            stays
        });
        let known = &self.of;
        self.calls_known.retain(|key| known.contains_key(key));
    }

    /// Whether a stack may call something in the runtime that was not asked for yet.
    pub(super) fn hides_calls(&self, key: StackKey) -> bool {
        !self.calls_known.contains(&key) && !self.get(key).first().is_some_and(is_runtime)
    }

    /// Puts what stacks call in the runtime below them; see
    /// [`History::runtime_calls`](super::History::runtime_calls).
    pub(super) fn runtime_calls(&mut self, calls: &HashMap<Vec<(String, i64)>, Vec<Arc<str>>>) {
        for (&key, frames) in &mut self.of {
            self.calls_known.insert(key);
            if frames.first().is_some_and(is_runtime) {
                continue;
            }
            let shown: Vec<(String, i64)> = frames
                .iter()
                .map(|f| (f.function.clone(), f.line))
                .collect();
            let Some(functions) = calls.get(&shown) else {
                continue;
            };
            let hidden: Vec<Frame> = functions
                .iter()
                .take(MOST_CALLS)
                .map(|function| Frame {
                    function: cut(function, LONGEST).to_owned(),
                    ..Frame::default()
                })
                .collect();
            // The list itself is counted already.
            let bytes = bytes(&hidden) - size_of::<Vec<Frame>>();
            if self.bytes + bytes > MOST_BYTES {
                break;
            }
            self.bytes += bytes;
            frames.splice(0..0, hidden);
        }
    }
}

fn is_runtime(frame: &Frame) -> bool {
    frame.function.starts_with("runtime.") || frame.function.starts_with("internal/runtime/")
}

fn short(frame: FrameRef<'_>) -> Frame {
    Frame::from(FrameRef {
        function: cut(frame.function, LONGEST),
        file: cut(frame.file, LONGEST),
        ..frame
    })
}

fn bytes(frames: &[Frame]) -> usize {
    let own = |f: &Frame| size_of::<Frame>() + f.function.capacity() + f.file.capacity();
    frames.iter().map(own).sum::<usize>() + size_of::<Vec<Frame>>()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many stacks of 100 frames with names of their own, the last the heaviest.
    fn profile(stacks: usize, round: usize) -> (Profile, Vec<Row>, Vec<StackId>) {
        let mut p = Profile::default();
        let mut ids = Vec::new();
        for s in 0..stacks {
            let name = |f: usize| format!("{}.{round}.{s}.{f}", "n".repeat(3000));
            let list: Vec<_> = (0..100).map(|f| p.add_location(&name(f), 0)).collect();
            ids.push(StackId(p.stacks.intern(&list).unwrap()));
        }
        let keys = p.stack_keys();
        let row = |(i, &key): (usize, &StackKey)| Row {
            key,
            live: 1,
            bytes: i as u64,
            ..Row::default()
        };
        let rows = keys.iter().enumerate().map(row).collect();
        (p, rows, ids)
    }

    #[test]
    fn memory_is_bounded_and_the_heaviest_stay() {
        let mut frames = Frames::default();
        for round in 0..3 {
            let (p, rows, ids) = profile(400, round);
            frames.add(&p, &rows, &ids, |_| 0);
            let counted: usize = frames.of.values().map(|f| bytes(f)).sum();
            assert_eq!(counted, frames.bytes);
            assert!(frames.bytes <= MOST_BYTES && frames.bytes > MOST_BYTES / 4);
            assert_eq!(frames.get(rows[399].key).len(), 100, "the heaviest");
            assert!(frames.get(rows[0].key).is_empty(), "the lightest");
            let name = &frames.get(rows[399].key)[0].function;
            assert_eq!(name.len(), LONGEST);
        }
    }

    #[test]
    fn calls_into_the_runtime_take_of_the_same_memory() {
        let mut frames = Frames::default();
        let (p, rows, ids) = profile(40, 0);
        frames.add(&p, &rows, &ids, |_| 0);
        let name: Arc<str> = "r".repeat(LONGEST).into();
        let shown = |frames: &Vec<Frame>| {
            let shown = frames.iter().map(|f| (f.function.clone(), f.line));
            (shown.collect(), vec![name.clone(); 1000])
        };
        let calls = frames.of.values().map(shown).collect();
        for _ in 0..3 {
            frames.runtime_calls(&calls);
            let counted: usize = frames.of.values().map(|f| bytes(f)).sum();
            assert_eq!(counted, frames.bytes);
            assert!(frames.bytes <= MOST_BYTES, "{}", frames.bytes);
        }
        let told = |f: &&Vec<Frame>| f.len() == 100 + MOST_CALLS;
        assert!(frames.of.values().filter(told).count() > 10);
    }

    #[test]
    fn the_other_row_is_no_stack() {
        let mut p = Profile::default();
        let stack = p.other_stack();
        let row = Row {
            key: p.stack_keys()[0],
            live: 1,
            ..Row::default()
        };
        assert_eq!(row.key, StackKey::other());
        let mut frames = Frames::default();
        frames.add(&p, &[row], &[stack], |_| 0);
        assert!(frames.of.is_empty());
    }
}
