//! Programs that Go builds here, in every form that its linker gives them, while they
//! run; and damaged ones.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::*;
use crate::goheap::memory::{Memory, Unreadable};

/// A process that runs as long as this is held.
struct Process {
    child: Child,
    memory: File,
}

impl Process {
    /// Starts the fixture and waits until it is ready.
    fn start(program: &Path) -> Self {
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        assert!(line.starts_with("ready"), "{line}");
        let memory = File::open(format!("/proc/{}/mem", child.id())).unwrap();
        Self { child, memory }
    }

    fn regions(&self) -> Vec<Region> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.child.id())).unwrap();
        let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let lines = maps.lines().map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (start, end) = words[0].split_once('-').unwrap();
            Region {
                start: hex(start),
                end: hex(end),
                offset: hex(words[2]),
                file: words.get(5).copied().unwrap_or_default().to_owned(),
                rwx: ["r", "w", "x"].map(|c| words[1].contains(c)),
            }
        });
        lines.collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Memory for Process {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let read = self.memory.read_exact_at(into, address);
        read.map_err(|_| Unreadable { address })
    }
}

fn go() -> PathBuf {
    std::env::var_os("MEMTRACE_GO").map_or_else(|| "go".into(), PathBuf::from)
}

/// Builds the fixture; `None`, with a message, where Go or a C compiler is missing.
fn build(folder: &Path, name: &str, cgo: bool, flags: &[&str]) -> Option<PathBuf> {
    let program = folder.join(name);
    let built = Command::new(go())
        .args(["build", "-o"])
        .arg(&program)
        .args(flags)
        .arg(".")
        .env("CGO_ENABLED", if cgo { "1" } else { "0" })
        .env("GOTOOLCHAIN", "local")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/goimage"))
        .output();
    match built {
        Ok(output) if output.status.success() => Some(program),
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(why.contains("C compiler"), "{name}: {why}");
            eprintln!("skipped {name}: {why}");
            None
        }
        Err(error) => {
            eprintln!("skipped: {:?}: {error}; set MEMTRACE_GO", go());
            None
        }
    }
}

fn read(executable: &[u8], process: &Process) -> Image {
    let window = Window::new(process);
    Image::read(executable, &window, &process.regions()).unwrap()
}

/// Prints what is read of a process, for work on this module: the program is
/// `MEMTRACE_IMAGE`.
#[test]
#[ignore = "for work on this module"]
fn show() {
    let Some(program) = std::env::var_os("MEMTRACE_IMAGE") else {
        return;
    };
    let process = Process::start(Path::new(&program));
    let bytes = std::fs::read(&program).unwrap();
    let start = std::time::Instant::now();
    let image = read(&bytes, &process);
    println!(
        "{:?} in {:?}, notes {:?}",
        image.version,
        start.elapsed(),
        image.notes
    );
    println!(
        "{} offsets, {} sizes, {} constants, {} variables, {} globals, {} types, {} of them with descriptors",
        image.layout.offsets.len(),
        image.layout.sizes.len(),
        image.layout.constants.len(),
        image.variables.len(),
        image.globals.len(),
        image.debug_types.len(),
        image
            .debug_types
            .iter()
            .filter(|t| t.runtime.is_some())
            .count(),
    );
    println!("{:x?}", image.modules);
    for global in image.globals.iter().filter(|g| g.name.starts_with("main.")) {
        let kind = global.kind.map(|k| &image.debug_types[k.0 as usize]);
        println!(
            "{:x} {} {} {kind:?}",
            global.address, global.name, global.size
        );
    }
    for name in [
        "mspan.startAddr",
        "g.sched.pc",
        "g.goid",
        "mheap.allspans",
        "sudog.elem",
    ] {
        println!("{name} {:?}", image.layout.find(name));
    }
    for name in ["mheap_", "allgs", "mbuckets", "sync.allPools"] {
        println!("{name} {:x?}", image.variables.get(name));
    }
}
