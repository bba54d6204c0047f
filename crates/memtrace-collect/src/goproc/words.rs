//! What guard and memtrace say to each other: messages of 8-byte words, their number first.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::budget::Short;
use super::guard::{End, Fault, Report, TakenMemory};
use super::maps;
use super::sys;

/// A message has no more words than this.
const MOST: usize = 1 << 28;
const THREAD: usize = 1 + sys::REGISTER_WORDS;

/// A report, or why there is none.
pub(super) fn report(outcome: &Result<Report, Fault>) -> Vec<u8> {
    let mut words = Vec::new();
    match outcome {
        Ok(report) => {
            words.extend([0, u64::from(report.memory), nanoseconds(report.pause)]);
            words.push(report.threads.len() as u64);
            for (tid, registers) in &report.threads {
                words.push(u64::from(*tid));
                words.extend(registers);
            }
            if let Some(taken) = &report.taken {
                for pairs in [&taken.ranges, &taken.runs] {
                    words.push(pairs.len() as u64);
                    words.extend(pairs.iter().flat_map(|(a, b)| [*a, *b]));
                }
                words.push(taken.maps.len() as u64);
                let bytes = taken.maps.as_bytes().chunks(8);
                words.extend(bytes.map(|chunk| {
                    let mut word = [0; 8];
                    word[..chunk.len()].copy_from_slice(chunk);
                    u64::from_le_bytes(word)
                }));
            }
        }
        Err(fault) => words.extend(match *fault {
            Fault::Seize(number) => [1, number as u64],
            Fault::Gone => [2, 0],
            Fault::Stuck(tid) => [3, u64::from(tid)],
            Fault::Late(tid) => [4, u64::from(tid)],
            Fault::Clone(number) => [5, number as u64],
            Fault::Large(bytes) => [6, bytes],
            Fault::Other(number) => [7, number as u64],
        }),
    }
    message(&words)
}

/// How a copy ended.
pub(super) fn end(end: &End) -> Vec<u8> {
    let words = match *end {
        End::Whole { life, written } => [0, nanoseconds(life), written, 0],
        End::Killed => [1, 0, 0, 0],
        End::Short(Short::Memory {
            group,
            free,
            needed,
        }) => [2, u64::from(group), free, needed],
        End::Short(Short::Pids { free, needed }) => [3, 0, free, needed],
        End::Late(life) => [4, nanoseconds(life), 0, 0],
        End::Gone => [5, 0, 0, 0],
    };
    message(&words)
}

/// Reads a report; `None` when the guard ended without a word.
pub(super) fn hear_report(socket: &mut UnixStream) -> Option<Result<Report, Fault>> {
    let words = hear(socket)?;
    let mut words = Words(&words);
    Some(match words.next()? {
        0 => {
            let mut report = Report {
                memory: u32::try_from(words.next()?).ok()?,
                pause: Duration::from_nanos(words.next()?),
                ..Report::default()
            };
            let count = usize::try_from(words.next()?).ok()?;
            for thread in words.take(count.checked_mul(THREAD)?)?.chunks_exact(THREAD) {
                let registers = thread[1..].try_into().ok()?;
                report
                    .threads
                    .push((u32::try_from(thread[0]).ok()?, registers));
            }
            if !words.0.is_empty() {
                let mut taken = TakenMemory::default();
                for pairs in [&mut taken.ranges, &mut taken.runs] {
                    let count = usize::try_from(words.next()?).ok()?.checked_mul(2)?;
                    *pairs = (words.take(count)?.as_chunks::<2>().0.iter())
                        .map(|pair| (pair[0], pair[1]))
                        .collect();
                }
                let length = usize::try_from(words.next()?).ok()?;
                let text = words.take(length.div_ceil(8))?.iter();
                let mut bytes: Vec<u8> = text.flat_map(|word| word.to_le_bytes()).collect();
                bytes.truncate(length.min(maps::MAX_MAPS as usize));
                taken.maps = String::from_utf8_lossy(&bytes).into_owned();
                report.taken = Some(taken);
            }
            Ok(report)
        }
        kind => {
            let word = words.next()?;
            let (number, tid) = (word as i32, u32::try_from(word).unwrap_or(0));
            Err(match kind {
                1 => Fault::Seize(number),
                2 => Fault::Gone,
                3 => Fault::Stuck(tid),
                4 => Fault::Late(tid),
                5 => Fault::Clone(number),
                6 => Fault::Large(word),
                _ => Fault::Other(number),
            })
        }
    })
}

/// Reads how a copy ended; `None` when the guard ended without a word.
pub(super) fn hear_end(mut socket: &UnixStream) -> Option<End> {
    let words = hear(&mut socket)?;
    let [kind, a, b, c] = *words.first_chunk()?;
    Some(match kind {
        0 => End::Whole {
            life: Duration::from_nanos(a),
            written: b,
        },
        1 => End::Killed,
        2 => End::Short(Short::Memory {
            group: a != 0,
            free: b,
            needed: c,
        }),
        3 => End::Short(Short::Pids { free: b, needed: c }),
        4 => End::Late(Duration::from_nanos(a)),
        _ => End::Gone,
    })
}

fn message(words: &[u64]) -> Vec<u8> {
    let count = words.len() as u64;
    let words = std::iter::once(count).chain(words.iter().copied());
    words.flat_map(u64::to_le_bytes).collect()
}

fn hear(socket: &mut impl std::io::Read) -> Option<Vec<u64>> {
    let mut count = [0; 8];
    socket.read_exact(&mut count).ok()?;
    let count = usize::try_from(u64::from_le_bytes(count)).ok()?;
    if count > MOST {
        return None;
    }
    let mut bytes = Vec::new();
    let length = count as u64 * 8;
    socket.take(length).read_to_end(&mut bytes).ok()?;
    let words = bytes.as_chunks::<8>().0.iter();
    let words: Vec<u64> = words.map(|word| u64::from_le_bytes(*word)).collect();
    (words.len() == count).then_some(words)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

struct Words<'a>(&'a [u64]);

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn take(&mut self, count: usize) -> Option<&'a [u64]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[track_caller]
    fn check(outcome: Result<Report, Fault>) {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        there.write_all(&report(&outcome)).unwrap();
        assert_eq!(hear_report(&mut here), Some(outcome));
    }

    #[test]
    fn what_is_said_is_heard() {
        let copied = Report {
            memory: 7,
            pause: Duration::from_micros(1234),
            threads: vec![(8, [9; 27]), (10, [u64::MAX; 27])],
            taken: None,
        };
        let taken = TakenMemory {
            maps: "c000000000-c000400000 rw-p 0 00:00 0 \n".to_owned(),
            ranges: vec![(1, 9)],
            runs: vec![(1, 2), (5, 1)],
        };
        check(Ok(Report {
            taken: Some(taken),
            ..Report::default()
        }));
        check(Ok(copied));
        for fault in [
            Fault::Seize(1),
            Fault::Gone,
            Fault::Stuck(77),
            Fault::Late(0),
            Fault::Clone(-1),
            Fault::Large(1 << 40),
            Fault::Other(5),
        ] {
            check(Err(fault));
        }
        for ended in [
            End::Whole {
                life: Duration::from_millis(5),
                written: 77,
            },
            End::Killed,
            End::Gone,
            End::Short(Short::Memory {
                group: true,
                free: 1,
                needed: 2,
            }),
            End::Short(Short::Pids { free: 3, needed: 4 }),
            End::Late(Duration::from_secs(3)),
        ] {
            let (here, mut there) = UnixStream::pair().unwrap();
            there.write_all(&end(&ended)).unwrap();
            assert_eq!(hear_end(&here), Some(ended));
        }
    }

    #[test]
    fn an_end_without_a_word() {
        let (mut here, there) = UnixStream::pair().unwrap();
        drop(there);
        assert_eq!(hear_report(&mut here), None);
        assert_eq!(hear_end(&here), None);
    }

    #[test]
    fn words_cut_off() {
        let whole = report(&Ok(Report {
            taken: Some(TakenMemory {
                maps: "abc".to_owned(),
                ranges: vec![(1, 2)],
                runs: vec![(3, 4)],
            }),
            threads: vec![(1, [2; 27])],
            ..Report::default()
        }));
        for length in 0..whole.len() {
            let (mut here, mut there) = UnixStream::pair().unwrap();
            there.write_all(&whole[..length]).unwrap();
            drop(there);
            assert_eq!(hear_report(&mut here), None, "{length}");
        }
    }
}
