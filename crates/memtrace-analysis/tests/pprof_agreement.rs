//! Flat and cumulative values agree with `go tool pprof`, number by number, for
//! every sample type of real profiles of several producers, alone and as a difference.

// Helpers of a test fail as tests do.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use memtrace_analysis::top::{Granularity, Top, diff, top};
use memtrace_formats::pprof;
use memtrace_model::Profile;

/// Rows by name; equal names are several rows.
type Table = BTreeMap<String, Vec<(String, String)>>;

/// The pprof program itself; `None`, with a message, where there is no Go.
fn peer() -> Option<PathBuf> {
    let go = std::env::var_os("MEMTRACE_GO").unwrap_or_else(|| "go".into());
    // `go tool -n` names the program, and builds it where it has to.
    let found = Command::new(&go)
        .args(["tool", "-n", "pprof"])
        .output()
        .ok()
        .filter(|o| o.status.success())
        .map(|o| PathBuf::from(String::from_utf8_lossy(&o.stdout).trim()));
    if found.is_none() {
        eprintln!("skipped: no `go tool pprof` ({go:?}; set MEMTRACE_GO)");
    }
    found
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn corpus_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus/pprof")
}

/// Profiles of others, where the checkout has them beside it.
fn corpus() -> Vec<PathBuf> {
    let folder = corpus_folder();
    let Ok(files) = std::fs::read_dir(&folder) else {
        eprintln!("skipped: no corpus at {}", folder.display());
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = files.filter_map(|f| Some(f.ok()?.path())).collect();
    files.sort();
    files
}

/// Profiles of a Go process, made now.
fn fresh(folder: &Path) -> Vec<PathBuf> {
    let go = std::env::var_os("MEMTRACE_GO").unwrap_or_else(|| "go".into());
    let made = Command::new(go)
        .args(["run", "."])
        .arg(folder)
        .current_dir(fixtures().join("goheap"))
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    files(folder)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|f| f.unwrap().path())
        .filter(|f| f.is_file())
        .collect();
    files.sort();
    files
}

/// Go writes names as comments, which pprof skips and memtrace reads: without them
/// both see the same.
fn without_comments(bytes: &[u8]) -> Vec<u8> {
    if !bytes.windows(3).any(|w| w == b"\n#\t") {
        return bytes.to_vec();
    }
    let text = String::from_utf8_lossy(bytes);
    let kept: Vec<&str> = text.lines().filter(|l| !l.starts_with("#\t")).collect();
    kept.join("\n").into_bytes()
}

fn read(file: &Path) -> Option<Profile> {
    let bytes = without_comments(&std::fs::read(file).unwrap());
    pprof::parse(&bytes).ok().map(|p| p.profile)
}

fn flag(granularity: Granularity) -> &'static str {
    match granularity {
        Granularity::Functions => "-functions",
        Granularity::FileFunctions => "-filefunctions",
        Granularity::Files => "-files",
        Granularity::Lines => "-lines",
        Granularity::Addresses => "-addresses",
    }
}

/// What pprof prints, with numbers in the unit of the sample type.
fn theirs(
    peer: &Path,
    file: &Path,
    base: Option<&Path>,
    profile: &Profile,
    sample_type: usize,
    granularity: Granularity,
) -> (Table, String) {
    let unit = profile.text(profile.sample_types[sample_type].unit);
    let mut command = Command::new(peer);
    command.args([
        "-top",
        "-symbolize=none",
        "-nodefraction=0",
        "-edgefraction=0",
    ]);
    command.arg(flag(granularity));
    command.arg(format!("-unit={unit}"));
    command.arg(format!("-sample_index={sample_type}"));
    if let Some(base) = base {
        command.arg("-diff_base").arg(base);
    }
    let out = command.arg(file).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success(),
        "{}: {}",
        file.display(),
        String::from_utf8_lossy(&out.stderr)
    );
    let total = text
        .lines()
        .find_map(|l| l.strip_prefix("Showing nodes accounting for "))
        .and_then(|l| l.split(" of ").nth(1))
        .and_then(|l| l.split(' ').next())
        .unwrap_or_default();
    let mut table = Table::new();
    let rows = text
        .lines()
        .skip_while(|l| !l.trim_start().starts_with("flat  flat%"));
    for row in rows.skip(1) {
        let mut rest = row;
        let mut fields = [""; 5];
        for field in &mut fields {
            rest = rest.trim_start();
            let end = rest.find(' ').unwrap_or(rest.len());
            *field = &rest[..end];
            rest = &rest[end..];
        }
        let name = rest.strip_prefix("  ").unwrap_or(rest);
        let name = [" (inline)", " (partial-inline)"]
            .iter()
            .find_map(|label| name.strip_suffix(label))
            .unwrap_or(name);
        table
            .entry(name.to_owned())
            .or_default()
            .push((number(fields[0]), number(fields[3])));
    }
    (sorted(table), number(total))
}

/// A number without its unit.
fn number(text: &str) -> String {
    text.trim_end_matches(|c: char| !c.is_ascii_digit())
        .trim_end_matches(',')
        .to_owned()
}

fn ours(top: &Top) -> Table {
    let mut table = Table::new();
    for row in &top.rows {
        table
            .entry(row.name.trim_end().to_owned())
            .or_default()
            .push((row.flat.to_string(), row.cum.to_string()));
    }
    sorted(table)
}

fn sorted(mut table: Table) -> Table {
    table.values_mut().for_each(|rows| rows.sort());
    table
}

fn difference(ours: &Table, theirs: &Table) -> String {
    let mut lines = Vec::new();
    for name in ours.keys().chain(theirs.keys()) {
        if ours.get(name) != theirs.get(name) {
            lines.push(format!(
                "{name}: ours {:?}, theirs {:?}",
                ours.get(name),
                theirs.get(name)
            ));
        }
    }
    lines.truncate(12);
    lines.join("\n")
}

/// Functions for every sample type; the others once a profile, for the sake of time,
/// and not for large ones.
fn granularities(file: &Path, sample_type: usize, types: usize) -> &'static [Granularity] {
    const ALL: [Granularity; 5] = [
        Granularity::Functions,
        Granularity::FileFunctions,
        Granularity::Files,
        Granularity::Lines,
        Granularity::Addresses,
    ];
    let small = std::fs::metadata(file).is_ok_and(|m| m.len() < 500_000);
    if small && sample_type + 1 == types {
        &ALL
    } else {
        &ALL[..1]
    }
}

#[test]
fn every_profile_alone() {
    let Some(peer) = peer() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (mut profiles, mut tables, mut rows) = (0, 0, 0);
    let all = [
        corpus(),
        files(&fixtures().join("profiles")),
        fresh(folder.path()),
    ]
    .concat();
    for file in &all {
        let Some(profile) = read(file) else {
            eprintln!("refused: {}", file.display());
            continue;
        };
        profiles += 1;
        // What is written must mean the same to pprof.
        let written = folder.path().join("written.pb.gz");
        std::fs::write(&written, pprof::write(&profile)).unwrap();
        let types = profile.sample_types.len();
        for sample_type in 0..types {
            for &granularity in granularities(file, sample_type, types) {
                let found = top(&profile, sample_type, granularity);
                let (expected, total) =
                    theirs(&peer, file, None, &profile, sample_type, granularity);
                assert!(
                    ours(&found) == expected,
                    "{} {sample_type} {granularity:?}\n{}",
                    file.display(),
                    difference(&ours(&found), &expected)
                );
                assert_eq!(found.total.to_string(), total, "{}", file.display());
                tables += 1;
                rows += found.rows.len();
            }
            let again = theirs(
                &peer,
                &written,
                None,
                &profile,
                sample_type,
                Granularity::Functions,
            );
            let found = top(&profile, sample_type, Granularity::Functions);
            assert!(ours(&found) == again.0, "written {}", file.display());
        }
    }
    eprintln!("{profiles} profiles, {tables} tables, {rows} rows agree with pprof");
    // The large ones are in the corpus, which not every clone has beside it.
    let least = if corpus_folder().is_dir() {
        10_000
    } else {
        1_000
    };
    assert!(profiles >= 12 && rows > least, "{profiles} {rows}");
}

#[test]
fn differences() {
    let Some(peer) = peer() else { return };
    let folder = tempfile::tempdir().unwrap();
    fresh(folder.path());
    let fresh = |name: &str| folder.path().join(name);
    let fixture = |name: &str| fixtures().join("profiles").join(name);
    let mut pairs = vec![
        (fresh("heap2.pb.gz"), fresh("heap1.pb.gz")),
        (fresh("heap1.pb.gz"), fresh("heap2.pb.gz")),
        (fresh("heap2.txt"), fresh("heap1.txt")),
        (fresh("allocs.pb.gz"), fresh("heap1.pb.gz")),
        (fixture("tcmalloc2.heap"), fixture("tcmalloc1.heap")),
    ];
    pairs.retain(|(a, b)| a.exists() && b.exists());
    for file in corpus() {
        // A profile against itself leaves nothing.
        pairs.push((file.clone(), file));
    }
    let (mut tables, mut rows) = (0, 0);
    for (new_file, base_file) in &pairs {
        let (Some(new), Some(base)) = (read(new_file), read(base_file)) else {
            continue;
        };
        let types = new.sample_types.len();
        for sample_type in 0..types {
            for &granularity in granularities(new_file, sample_type, types) {
                let found = diff(&new, &base, sample_type, granularity).unwrap();
                let (expected, total) = theirs(
                    &peer,
                    new_file,
                    Some(base_file),
                    &new,
                    sample_type,
                    granularity,
                );
                assert!(
                    ours(&found) == expected,
                    "{} {sample_type} {granularity:?}\n{}",
                    new_file.display(),
                    difference(&ours(&found), &expected)
                );
                assert_eq!(found.total.to_string(), total, "{}", new_file.display());
                tables += 1;
                rows += found.rows.len();
            }
        }
    }
    // Profiles made just now differ from run to run: some 900 to 1,200 rows. A profile against
    // itself adds none, so the corpus does not raise what is asked for.
    assert!(rows > 500, "{rows}");
    eprintln!(
        "{} pairs, {tables} tables, {rows} rows agree with pprof",
        pairs.len()
    );
}

/// Frames to drop: whole locations, inlined parts, with exceptions, at the root.
#[test]
fn dropped_frames() {
    let Some(peer) = peer() else { return };
    let folder = tempfile::tempdir().unwrap();
    let go = read(&fixtures().join("profiles/go-heap.pb.gz")).unwrap();
    let mut cpp = go.clone();
    // Names of C++, whose parentheses are not all of an argument list.
    for (i, name) in [
        "(anonymous namespace)::Pool::get(unsigned long)",
        "Pool::operator()(int) const",
        "operator()",
        ".dotted(int)",
        "std::vector<int>::push_back(int&&)",
    ]
    .iter()
    .cycle()
    .take(cpp.functions.len())
    .enumerate()
    {
        cpp.functions[i].name = cpp.intern(&format!("{name}{}", i / 5));
    }
    let mut expected_rows = Vec::new();
    for (profile, drop, keep) in [
        (&go, "", ""),
        (&go, "runtime\\..*|main\\.grow", ""),
        (&go, "runtime\\..*|main\\.(grow|work)", "main\\.work"),
        (&go, "main\\..*", "main\\.main"),
        (&go, ".*", ""),
        (&go, "(not a regular expression", ""),
        (&go, "fmt\\..*|strings\\.ToUpper|.*Sort", ""),
        (&cpp, "\\(anonymous namespace\\)::Pool::get", ""),
        (&cpp, "Pool::operator\\(\\)|dotted", ""),
        (&cpp, "operator\\(\\)[0-9]*|std::vector<int>::push_back", ""),
    ] {
        let mut profile = profile.clone();
        profile.drop_frames = profile.intern(drop);
        profile.keep_frames = profile.intern(keep);
        let file = folder.path().join("dropped.pb.gz");
        std::fs::write(&file, pprof::write(&profile)).unwrap();
        let base = folder.path().join("base.pb.gz");
        std::fs::write(&base, pprof::write(&cpp)).unwrap();
        for granularity in [Granularity::Functions, Granularity::Lines] {
            let found = top(&profile, 3, granularity);
            let (expected, _) = theirs(&peer, &file, None, &profile, 3, granularity);
            assert!(
                ours(&found) == expected,
                "{drop}\n{}",
                difference(&ours(&found), &expected)
            );
            let found = diff(&profile, &cpp, 3, granularity).unwrap();
            let (expected, _) = theirs(&peer, &file, Some(&base), &profile, 3, granularity);
            assert!(
                ours(&found) == expected,
                "{drop} base\n{}",
                difference(&ours(&found), &expected)
            );
        }
        expected_rows.push(top(&profile, 3, Granularity::Functions).rows);
    }
    let changed = expected_rows
        .iter()
        .filter(|r| **r != expected_rows[0])
        .count();
    assert!(changed >= 6, "{changed}");
}
