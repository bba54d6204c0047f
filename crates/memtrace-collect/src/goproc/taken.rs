//! The memory of a process that was taken while it stood still.
//!
//! What may change was taken; what is only read, such as code and tables of types, is read
//! from the process itself, which goes on.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use memtrace_formats::goheap::Unreadable;

use super::FreezeError;
use super::guard::TakenMemory;
use super::sys::Shared;

#[derive(Debug)]
pub(super) struct Taken {
    buffer: Arc<Shared>,
    /// Mappings that were taken, ascending.
    ranges: Vec<(u64, u64)>,
    /// Address, bytes, and place in the buffer, ascending. What is in none is zero.
    runs: Vec<(u64, u64, usize)>,
    /// The memory that the process had then: where it becomes another program, this one
    /// ends.
    process: Option<File>,
}

impl Taken {
    pub(super) fn new(taken: &TakenMemory, buffer: Arc<Shared>, process: Option<File>) -> Self {
        let mut at = 0;
        let placed = taken.runs.iter().map(|(address, length)| {
            let place = at;
            at += *length as usize;
            (*address, *length, place)
        });
        Self {
            runs: placed.collect(),
            ranges: taken.ranges.clone(),
            buffer,
            process,
        }
    }

    pub(super) fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let unreadable = Unreadable { address };
        let end = address.checked_add(into.len() as u64).ok_or(unreadable)?;
        let mut at = address;
        while at < end {
            let next = self.ranges.partition_point(|r| r.1 <= at);
            let range = self.ranges.get(next).filter(|r| r.0 < end);
            let taken = range.filter(|r| r.0 <= at);
            let stop = match (taken, range) {
                (Some(range), _) => range.1.min(end),
                (None, Some(range)) => range.0,
                (None, None) => end,
            };
            let piece = &mut into[(at - address) as usize..(stop - address) as usize];
            if taken.is_some() {
                self.copy_out(at, piece);
            } else {
                let file = self.process.as_ref().ok_or(unreadable)?;
                file.read_exact_at(piece, at).map_err(|_| unreadable)?;
            }
            at = stop;
        }
        Ok(())
    }

    fn copy_out(&self, address: u64, into: &mut [u8]) {
        into.fill(0);
        let end = address + into.len() as u64;
        let first = self.runs.partition_point(|run| run.0 + run.1 <= address);
        for (start, length, place) in self.runs[first..].iter().copied() {
            if start >= end {
                break;
            }
            let (from, to) = (start.max(address), (start + length).min(end));
            let part = &mut into[(from - address) as usize..(to - address) as usize];
            // It is within: the guard counted as it filled.
            self.buffer.get(place + (from - start) as usize, part);
        }
    }

    /// Runs of bytes within, start and end, that are not zero.
    pub(super) fn present(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let within = self.runs.iter().map(|run| (run.0, run.0 + run.1));
        let cut = within.map(|run| (run.0.max(start), run.1.min(end)));
        cut.filter(|run| run.0 < run.1).collect()
    }

    /// The process is still the program that was read.
    pub(super) fn whole(&self, pid: u32) -> Result<(), FreezeError> {
        let first = self.ranges.first().map_or(0, |r| r.0);
        let there = |file: &File| file.read_exact_at(&mut [0], first).is_ok();
        match self.process.as_ref().is_some_and(there) {
            true => Ok(()),
            false => Err(FreezeError::Gone { pid }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_what_lies_between() {
        let buffer = Arc::new(Shared::new(64).unwrap());
        let source: Vec<u8> = (1..=12).collect();
        let own = source.as_ptr() as u64;
        buffer.fill(0, 12, std::process::id(), own).unwrap();
        assert!(buffer.fill(60, 8, std::process::id(), own).is_err());
        let taken = TakenMemory {
            ranges: vec![(100, 140)],
            runs: vec![(104, 8), (120, 4)],
            ..TakenMemory::default()
        };
        let taken = Taken::new(&taken, buffer, None);
        let mut bytes = [9; 26];
        taken.read(100, &mut bytes).unwrap();
        assert_eq!(bytes[..4], [0; 4]);
        assert_eq!(bytes[4..12], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[12..20], [0; 8]);
        assert_eq!(bytes[20..24], [9, 10, 11, 12]);
        assert_eq!(bytes[24..], [0; 2]);
        let mut bytes = [0; 2];
        taken.read(110, &mut bytes).unwrap();
        assert_eq!(bytes, [7, 8]);
        // Nothing to read the rest from.
        assert!(taken.read(98, &mut [0; 4]).is_err());
        assert!(taken.read(138, &mut [0; 4]).is_err());
        assert!(taken.read(u64::MAX, &mut [0; 4]).is_err());
    }
}
