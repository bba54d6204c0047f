//! A program of a few hundred bytes, whole and damaged. `tests/goexe.rs` has real ones.

use std::io::Cursor;

use super::Program;
use crate::Error;

const TEXT: u64 = 0x40_1000;
const NAMES: [&str; 3] = ["runtime.morestack_noctxt.abi0", "main.a", "main.b"];

/// `main.a` calls `main.b` and, as `main.b` does too, `runtime.morestack_noctxt`; in
/// front of Go's code stand 16 bytes that are not Go's.
fn tiny(sections: bool) -> Vec<u8> {
    let mut code = vec![0x90; 16 + 3 * 32];
    let mut call = |at: usize, to: i32| {
        code[at] = 0xe8;
        code[at + 1..at + 5].copy_from_slice(&(to - (at as i32 + 5)).to_le_bytes());
    };
    let (morestack, b) = (16, 80);
    call(48, morestack);
    call(60, b);
    call(90, morestack);
    // Into the middle of main.b: no call.
    call(70, b + 3);

    let names: Vec<u8> = NAMES
        .iter()
        .flat_map(|n| [n.as_bytes(), b"\0"].concat())
        .collect();
    let mut table = vec![0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8];
    let names_at = 72;
    let lines_at = (names_at + names.len()).next_multiple_of(8);
    for word in [3, 0, 0, names_at, names_at + names.len(), 0, 0, lines_at] {
        table.extend((word as u64).to_le_bytes());
    }
    table.extend(&names);
    table.resize(lines_at, 0);
    let descriptors_at = 3 * 8 + 4;
    for i in 0..3_u32 {
        table.extend((32 * i).to_le_bytes());
        table.extend((descriptors_at + 8 * i).to_le_bytes());
    }
    table.extend(96_u32.to_le_bytes());
    let mut name = 0_u32;
    for i in 0..3_u32 {
        table.extend((32 * i).to_le_bytes());
        table.extend(name.to_le_bytes());
        name += NAMES[i as usize].len() as u32 + 1;
    }

    let (text_at, table_at) = (64 + 2 * 56, 64 + 2 * 56 + code.len());
    let section_names = b"\0.text\0.gopclntab\0.shstrtab\0";
    let strings_at = table_at + table.len();
    let headers_at = strings_at + section_names.len();
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |elf: &mut Vec<u8>, v: u16| elf.extend(v.to_le_bytes());
    let word = |elf: &mut Vec<u8>, v: u32| elf.extend(v.to_le_bytes());
    let long = |elf: &mut Vec<u8>, v: u64| elf.extend(v.to_le_bytes());
    half(&mut elf, 2); // an executable
    half(&mut elf, 62); // x86-64
    word(&mut elf, 1);
    long(&mut elf, TEXT);
    long(&mut elf, 64);
    long(&mut elf, if sections { headers_at as u64 } else { 0 });
    word(&mut elf, 0);
    let count: u16 = if sections { 4 } else { 0 };
    for v in [64, 56, 2, 64, count, count.saturating_sub(1)] {
        half(&mut elf, v);
    }
    // Loadable segments: flags, offset, address, bytes.
    for (flags, at, address, size) in [
        (5, text_at, TEXT, code.len()),
        (4, table_at, 0x50_0000, table.len()),
    ] {
        word(&mut elf, 1);
        word(&mut elf, flags);
        for v in [at as u64, address, address, size as u64, size as u64, 8] {
            long(&mut elf, v);
        }
    }
    elf.extend(&code);
    elf.extend(&table);
    if sections {
        elf.extend(section_names);
        elf.extend([0; 64]);
        // Name, kind, flags, address, offset, bytes.
        for (name, kind, flags, address, at, size) in [
            (1, 1, 6, TEXT, text_at, code.len()),
            (7, 1, 2, 0x50_0000, table_at, table.len()),
            (18, 3, 0, 0, strings_at, section_names.len()),
        ] {
            word(&mut elf, name);
            word(&mut elf, kind);
            for v in [flags, address, at as u64, size as u64, 0, 1, 0] {
                long(&mut elf, v);
            }
        }
    }
    elf
}

fn read(bytes: &[u8]) -> Result<Program<Cursor<&[u8]>>, Error> {
    Program::read(Cursor::new(bytes))
}

#[test]
fn calls_lead_to_entries() {
    for sections in [true, false] {
        let bytes = tiny(sections);
        let mut program = read(&bytes).unwrap();
        assert_eq!((program.len(), program.is_empty()), (3, false));
        let calls = |p: &mut Program<_>, f: &str| -> Vec<String> {
            p.calls(f).unwrap().into_iter().collect()
        };
        assert_eq!(calls(&mut program, "main.a"), ["main.b", NAMES[0]]);
        assert_eq!(calls(&mut program, "main.b"), [NAMES[0]]);
        assert_eq!(calls(&mut program, NAMES[0]), [""; 0]);
        let callers = program.callers(|name| name == "main.b").unwrap();
        assert_eq!(callers.len(), 1);
        assert_eq!(callers["main.a"].iter().collect::<Vec<_>>(), ["main.b"]);
        for (address, name) in [
            (TEXT, None),
            (TEXT + 16, Some(NAMES[0])),
            (TEXT + 47, Some(NAMES[0])),
            (TEXT + 48, Some("main.a")),
            (TEXT + 111, Some("main.b")),
            (TEXT + 112, None),
            (0, None),
            (u64::MAX, None),
        ] {
            assert_eq!(program.function_at(address), name, "{address:#x}");
        }
        let start = 64 + 2 * 56;
        assert_eq!(program.bias(TEXT - start, 0), 0);
        assert_eq!(program.bias(0x7000 + TEXT, start), 0x7000);
    }
}

#[test]
fn damaged_programs_do_not_panic() {
    for whole in [tiny(true), tiny(false)] {
        let use_up = |bytes: &[u8]| {
            if let Ok(mut program) = read(bytes) {
                let _ = program.calls("main.a");
                let _ = program.callers(|_| true);
                let _ = program.function_at(TEXT + 50);
            }
        };
        for end in 0..whole.len() {
            use_up(&whole[..end]);
        }
        for at in 0..whole.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff, whole[at] ^ 0x10] {
                let mut bytes = whole.clone();
                bytes[at] = byte;
                use_up(&bytes);
            }
        }
    }
}

/// The fuzzer starts from this file. `UPDATE_SEED=1 cargo test -p memtrace-formats`
/// writes it anew.
#[test]
fn the_seed_of_the_fuzzer_is_this_program() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny.goexe");
    if std::env::var_os("UPDATE_SEED").is_some() {
        std::fs::write(path, tiny(true)).unwrap();
    }
    assert_eq!(std::fs::read(path).unwrap(), tiny(true));
}
