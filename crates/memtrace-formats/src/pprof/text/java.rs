//! `--- heapz 1 ---` of Java: stacks of numbers, and a table that names them.

use std::collections::HashMap;

use memtrace_model::{Function, FunctionId, Label, LabelValue, Line, LocationId};

use super::build::Builder;
use super::scan::{Scan, hex_numbers};
use super::{BadLines, maps, unsample};
use crate::Limits;
use crate::pprof::Parsed;

/// Mean distance between samples of Java's heap profiler, bytes.
const RATE: i64 = 512 << 10;

/// Java's heap text.
pub(in crate::pprof) fn java_heap(text: &str, limits: &Limits) -> Option<Parsed> {
    let mut b = Builder::new(limits);
    let mut bad = BadLines::default();
    let label = b.profile.intern("bytes");
    let mut lines = text
        .lines()
        .enumerate()
        .skip_while(|(_, l)| l.trim().is_empty());
    lines.next()?;
    let mut lines = lines.peekable();

    let mut unit = "bytes";
    while let Some((_, line)) = lines.next_if(|(_, l)| l.trim().is_empty() || l.contains('=')) {
        match line.split_once('=').map(|(k, v)| (k.trim(), v.trim())) {
            Some(("format", format)) if format != "java" => return None,
            Some(("resolution", resolution)) => unit = resolution,
            _ => {}
        }
    }
    b.sample_types(&[("inuse_objects", "count"), ("inuse_space", unit)]);

    // Where a name goes: the location, by the number that stacks use.
    let mut numbers: HashMap<u64, LocationId> = HashMap::new();
    let mut functions: HashMap<&str, FunctionId> = HashMap::new();
    for (i, line) in lines {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        if line.starts_with("0x") {
            name(&mut b, &mut numbers, &mut functions, line);
            continue;
        }
        let Some((size, count, stack)) = sample(line) else {
            bad.add(i);
            continue;
        };
        let is_full = b.is_full(stack.len());
        for &number in stack.iter().filter(|_| !is_full) {
            let id = b.location(number);
            numbers.insert(number, id);
        }
        let labels = [Label {
            key: label,
            value: LabelValue::Number(size / count, Default::default()),
        }];
        let (count, size) = unsample(count, size, RATE);
        b.sample(&[count, size], stack.into_iter(), &[], &labels, false);
    }
    // The numbers name rows of the table; they are no addresses once they are resolved.
    for l in &mut b.profile.locations {
        if l.line_count > 0 {
            l.address = 0;
        }
    }
    b.memory_map(maps::entries(""));
    for l in &mut b.profile.locations {
        l.address = 0;
    }
    b.legacy_frames();
    Some(b.done(&bad, None, text.len()))
}

/// `7048     1 @ 0x00000003 0x00000004`: bytes, objects, stack.
fn sample(line: &str) -> Option<(i64, i64, Vec<u64>)> {
    let mut scan = Scan::new(line);
    let size = scan.integer()?;
    scan.spaces();
    let count = scan.integer()?;
    scan.spaces();
    scan.expect('@')?;
    let sound = size >= 0 && count > 0;
    Some((size, count, hex_numbers(scan.rest())?)).filter(|_| sound)
}

/// `0x00000003 com.example.function003 (Source003.java:103)`, also
/// `name (library path)`, `generated stub/JIT`, or the name of a state (`GC`).
fn name<'a>(
    b: &mut Builder,
    numbers: &mut HashMap<u64, LocationId>,
    functions: &mut HashMap<&'a str, FunctionId>,
    line: &'a str,
) {
    let Some((number, rest)) = line.split_once(char::is_whitespace) else {
        return;
    };
    let Some(&id) = number
        .strip_prefix("0x")
        .and_then(|n| u64::from_str_radix(n, 16).ok())
        .and_then(|n| numbers.get(&n))
    else {
        return;
    };
    let rest = rest.trim();
    let place = rest
        .strip_suffix(')')
        .and_then(|r| r.rsplit_once(" ("))
        .map(|(name, place)| (name.trim_end(), place));
    let (function, file, line) = match place {
        Some((name, place)) => match place.rsplit_once(':') {
            Some((file, line)) if line.parse::<i64>().is_ok() => {
                (name, file, line.parse().unwrap_or(0).max(0))
            }
            // The path of a library: its name is enough.
            _ => (name, place.rsplit('/').next().unwrap_or(place), 0),
        },
        None if rest.contains("generated stub/JIT") => ("STUB", "", 0),
        None => (rest, "", 0),
    };
    if b.profile.locations[id.index()].line_count > 0 {
        return;
    }
    // The first file that a function was met in stays.
    let function = *functions.entry(function).or_insert_with(|| {
        let name = b.intern(function);
        let file = b.intern(file);
        b.function(Function {
            name,
            system_name: name,
            file,
            start_line: 0,
        })
    });
    let first = b.profile.lines.len() as u32;
    b.profile.lines.push(Line {
        function,
        line,
        column: 0,
    });
    let location = &mut b.profile.locations[id.index()];
    location.first_line = first;
    location.line_count = 1;
}
