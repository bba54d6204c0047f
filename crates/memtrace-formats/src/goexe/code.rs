//! Calls in machine code.

use std::collections::HashMap;
use std::io::{Read, Seek};
use std::ops::Range;

use super::pclntab::Functions;
use super::{damaged, elf};
use crate::Error;

/// What the code was compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Machine {
    Amd64,
    Arm64,
}

/// Where the code is: its address, and its place in the file, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text {
    pub(super) address: u64,
    pub(super) offset: u64,
    pub(super) size: u64,
}

impl Text {
    pub(super) fn end(&self) -> u64 {
        self.address + self.size
    }

    pub(super) fn holds(&self, address: u64) -> bool {
        (self.address..self.end()).contains(&address)
    }
}

#[derive(Debug)]
pub(super) struct Code<R> {
    input: R,
    machine: Machine,
    pub(super) text: Text,
}

/// Code that is held at a time.
const CHUNK: u64 = 1 << 20;
/// Bytes of a call instruction on amd64, and of the longest that is looked at.
const CALL: usize = 5;
const LONGEST: usize = 7;

impl<R: Read + Seek> Code<R> {
    pub(super) fn new(input: R, machine: Machine, text: Text) -> Self {
        Self {
            input,
            machine,
            text,
        }
    }

    /// Gives the address of each instruction in `range` that looks like a direct call,
    /// and where it leads.
    pub(super) fn direct_calls(
        &mut self,
        range: Range<u64>,
        mut sink: impl FnMut(u64, u64),
    ) -> Result<(), Error> {
        let machine = self.machine;
        self.chunks(range, |bytes, at| match machine {
            Machine::Amd64 => amd64(bytes, at, CHUNK, &mut sink),
            Machine::Arm64 => arm64(bytes, at, CHUNK, &mut sink),
        })
    }

    /// Gives each address that the code in `range` seems to refer to (amd64; none for
    /// others).
    pub(super) fn references(
        &mut self,
        range: Range<u64>,
        mut sink: impl FnMut(u64),
    ) -> Result<(), Error> {
        let machine = self.machine;
        self.chunks(range, |bytes, at| {
            if machine == Machine::Amd64 {
                lea(bytes, at, CHUNK, &mut sink);
            }
        })
    }

    /// Gives the code in `range` in pieces, with their addresses.
    fn chunks(&mut self, range: Range<u64>, mut sink: impl FnMut(&[u8], u64)) -> Result<(), Error> {
        let end = range.end.min(self.text.end());
        let mut at = range.start.max(self.text.address);
        while at < end {
            // Into the next chunk as far as an instruction that starts in this one may
            // reach.
            let length = (CHUNK + LONGEST as u64 - 1).min(end - at);
            let offset = self.text.offset + (at - self.text.address);
            sink(&elf::bytes(&mut self.input, (offset, length))?, at);
            at = at.saturating_add(CHUNK);
        }
        Ok(())
    }

    /// The code in `range`, as far as there is any.
    pub(super) fn bytes(&mut self, range: Range<u64>) -> Result<Vec<u8>, Error> {
        let from = range.start.max(self.text.address);
        let length = range.end.min(self.text.end()).saturating_sub(from);
        let offset = from - self.text.address;
        elf::bytes(
            &mut self.input,
            (self.text.offset.saturating_add(offset), length),
        )
    }

    /// A part of the file.
    pub(super) fn part(&mut self, part: elf::Part) -> Result<Vec<u8>, Error> {
        elf::bytes(&mut self.input, part)
    }

    /// The address to which the table's entries are relative. Among what is called most
    /// is `runtime.morestack_noctxt`, from the head of nearly every function: of the
    /// starts that this leaves, the one with which most calls lead to entries.
    pub(super) fn go_start(&mut self, functions: &Functions) -> Result<u64, Error> {
        /// Code from here on is enough of a sample: more than C start-up code.
        const SAMPLE: u64 = 4 << 20;
        const TRIED: usize = 16;
        let mut entries: Vec<u64> = functions.iter().map(|(entry, _)| entry).collect();
        entries.dedup();
        let morestack = functions
            .iter()
            .find(|(_, name)| {
                matches!(
                    *name,
                    "runtime.morestack_noctxt" | "runtime.morestack_noctxt.abi0"
                )
            })
            .map(|(entry, _)| entry)
            .ok_or_else(|| Error::NotAGoProgram {
                what: "a program without Go's runtime, not a Go program".to_owned(),
            })?;
        let text = self.text;
        let sample = text.address..text.address.saturating_add(SAMPLE);
        let mut counts: HashMap<u64, u32> = HashMap::new();
        self.direct_calls(sample, |_, target| {
            if text.holds(target) {
                *counts.entry(target).or_default() += 1;
            }
        })?;
        let mut counts: Vec<(u32, u64)> = counts.into_iter().map(|(t, n)| (n, t)).collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        // Bytes that only look like a call rarely agree on a target.
        let calls = &counts[..counts.partition_point(|(n, _)| *n > 1)];
        let all: u64 = calls.iter().map(|(n, _)| u64::from(*n)).sum();
        let fitting = |start: u64| -> u64 {
            let fits = |t: u64| entries.binary_search(&t.wrapping_sub(start)).is_ok();
            let fit = calls.iter().filter(|(_, t)| fits(*t));
            fit.map(|(n, _)| u64::from(*n)).sum()
        };
        calls
            .iter()
            .take(TRIED)
            .filter_map(|(_, target)| target.checked_sub(morestack))
            .filter(|&start| text.holds(start))
            .map(|start| (fitting(start), start))
            .max()
            // What leads elsewhere is C, where there is any.
            .filter(|(fit, _)| *fit > all / 4)
            .map(|(_, start)| start)
            .ok_or_else(|| damaged("its code does not fit its table of functions"))
    }
}

/// `CALL rel32`: E8 and the distance from the next instruction. Instructions have no
/// alignment, so that every byte may be one.
fn amd64(bytes: &[u8], address: u64, until: u64, sink: &mut impl FnMut(u64, u64)) {
    for (i, window) in bytes.windows(CALL).enumerate().take(until as usize) {
        if let [0xe8, a, b, c, d] = *window {
            let site = address + i as u64;
            let distance = i64::from(i32::from_le_bytes([a, b, c, d]));
            sink(
                site,
                site.wrapping_add(CALL as u64).wrapping_add_signed(distance),
            );
        }
    }
}

/// `LEAQ rel32(IP), register`: a REX.W prefix, 8D, and how the register is told.
fn lea(bytes: &[u8], address: u64, until: u64, sink: &mut impl FnMut(u64)) {
    for (i, window) in bytes.windows(LONGEST).enumerate().take(until as usize) {
        if let [0x48 | 0x4c, 0x8d, register, a, b, c, d] = *window
            && register & 0b1100_0111 == 0b101
        {
            let next = address.wrapping_add((i + LONGEST) as u64);
            sink(next.wrapping_add_signed(i32::from_le_bytes([a, b, c, d]).into()));
        }
    }
}

/// `BL imm26`: the distance in words from the instruction itself.
fn arm64(bytes: &[u8], address: u64, until: u64, sink: &mut impl FnMut(u64, u64)) {
    let misplaced = (address.wrapping_neg() & 3) as usize;
    let aligned = bytes.get(misplaced..).unwrap_or_default();
    for (i, word) in aligned.chunks_exact(4).enumerate() {
        let at = misplaced + 4 * i;
        if at as u64 >= until {
            break;
        }
        let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        if word >> 26 == 0b10_0101 {
            let site = address + at as u64;
            // Sign-extended from 26 bits, times 4.
            let distance = i64::from((word << 6) as i32 >> 4);
            sink(site, site.wrapping_add_signed(distance));
        }
    }
}
