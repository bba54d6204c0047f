//! A snapshot file: the columns are as the input says, packed and with checksums that fit.
#![no_main]
#![allow(dead_code, unreachable_pub)] // shared with a test

#[path = "../../crates/memtrace-analysis/tests/hostile/mod.rs"]
mod hostile;

use libfuzzer_sys::fuzz_target;
use memtrace_model::snapshot;

/// Blocks of a column, how many items and how many bytes (two bytes each), and those bytes.
fn file(mut input: &[u8]) -> Vec<u8> {
    let mut file = snapshot::MAGIC.to_vec();
    file.extend(snapshot::VERSION.to_le_bytes());
    let mut blocks = 0_u32;
    while let Some((&[column, i0, i1, l0, l1], rest)) = input.split_first_chunk::<5>() {
        let length = usize::from(u16::from_le_bytes([l0, l1])).min(rest.len());
        let (block, rest) = rest.split_at(length);
        input = rest;
        let items = u32::from(u16::from_le_bytes([i0, i1]));
        let packed = zstd::bulk::compress(block, 1).expect("a block");
        file.push(column);
        for number in [items, block.len() as u32, packed.len() as u32] {
            file.extend(number.to_le_bytes());
        }
        let seed = u64::from(column) << 32 | u64::from(items);
        let hash = xxhash_rust::xxh3::xxh3_64_with_seed(&packed, seed);
        file.extend(hash.to_le_bytes());
        file.extend(packed);
        blocks += 1;
    }
    file.push(255);
    file.extend(blocks.to_le_bytes());
    file
}

/// Columns pack a hundredfold; what is analysed of them has an entry for each object.
const PER_BYTE: usize = 1024;
const CONSTANT: usize = 256 << 20;

fuzz_target!(|bytes: &[u8]| {
    memtrace_fuzz::within(bytes, PER_BYTE, CONSTANT, || check(bytes));
});

fn check(bytes: &[u8]) {
    // As it is, too.
    let _ = snapshot::read(&mut &bytes[..], 16 << 20);
    let Ok(graph) = snapshot::read(&mut &file(bytes)[..], 16 << 20) else {
        return;
    };
    assert_eq!(graph.check(), Ok(()));
    let mut again = Vec::new();
    snapshot::write(&graph, &mut again, &mut |_| ()).expect("what was read");
    assert_eq!(
        snapshot::read(&mut &again[..], 64 << 20).expect("what was written"),
        graph
    );
    hostile::ask(&graph);
}
