//! An ELF file with the function table of a Go program: whatever it says, names and
//! calls are looked up within it.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use memtrace_formats::goexe::{self, Program};

/// Tables of functions and calls.
const PER_BYTE: usize = 64;
const CONSTANT: usize = 32 << 20;

fuzz_target!(|bytes: &[u8]| {
    memtrace_fuzz::within(bytes, PER_BYTE, CONSTANT, || check(bytes));
});

fn check(bytes: &[u8]) {
    let _ = goexe::look(Cursor::new(bytes));
    let Ok(mut program) = Program::read(Cursor::new(bytes)) else {
        return;
    };
    let callers = program.callers(|_| true).expect("what was read before");
    for caller in callers.keys() {
        program.calls(caller).expect("what was read before");
    }
    let _ = program.pointer_types(callers.into_keys());
    for address in [0, 0x40_1010, 0x40_1040, u64::MAX] {
        let _ = program.function_at(address);
    }
}
