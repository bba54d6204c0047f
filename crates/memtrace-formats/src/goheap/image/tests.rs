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
    child: Option<Child>,
    pid: u32,
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
        let mut process = Self::attach(child.id());
        process.child = Some(child);
        process
    }

    /// A process that someone else started and ends.
    fn attach(pid: u32) -> Self {
        Self {
            child: None,
            pid,
            memory: File::open(format!("/proc/{pid}/mem")).unwrap(),
        }
    }

    fn regions(&self) -> Vec<Region> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid)).unwrap();
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
        if let Some(child) = &mut self.child {
            child.kill().unwrap();
            child.wait().unwrap();
        }
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
    Image::read(executable, &window, &process.regions())
        .unwrap()
        .0
}

/// The same program without symbols and debug information: the headers of the sections
/// that have them are made to say that there is nothing.
fn stripped(executable: &[u8]) -> Vec<u8> {
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let half = |bytes: &[u8], at: usize| usize::from(bytes[at]) | usize::from(bytes[at + 1]) << 8;
    let mut bytes = executable.to_vec();
    let (table, count, names) = (
        word(&bytes, 40) as usize,
        half(&bytes, 60),
        half(&bytes, 62),
    );
    for i in (0..count).filter(|i| *i != names) {
        let header = table + 64 * i;
        let (kind, address) = (bytes[header + 4], word(&bytes, header + 16));
        // What is not loaded: all but the table of the sections' names.
        if address == 0 || kind == 2 {
            bytes[header + 4..header + 8].fill(0);
            bytes[header + 32..header + 40].fill(0);
        }
    }
    bytes
}

/// What a program is read for, by symbols and debug information or without.
fn compare(program: &Path) {
    let shown = program.display();
    let process = Process::start(program);
    let bytes = std::fs::read(program).unwrap();
    let whole = read(&bytes, &process);
    let bare = read(&stripped(&bytes), &process);
    assert_eq!(whole.version, bare.version, "{shown}");
    assert_eq!(
        format!("{:?}", whole.modules),
        format!("{:?}", bare.modules),
        "{shown}"
    );
    for name in locate::names(&whole.layout) {
        let found = bare.variables.get(name);
        assert_eq!(whole.variables.get(name), found, "{shown}: {name}");
        assert!(found.is_some(), "{shown}: {name}");
    }
    assert!(whole.layout.offsets.len() > 1000, "{shown}");
    let differing = |a: &HashMap<String, u64>, b: &HashMap<String, u64>| {
        let of = a.iter().filter(|(name, value)| b.get(*name) != Some(value));
        of.map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    for (a, b) in [
        (&whole.layout.offsets, &bare.layout.offsets),
        (&whole.layout.sizes, &bare.layout.sizes),
        (&whole.layout.constants, &bare.layout.constants),
    ] {
        assert_eq!(differing(a, b), [""; 0], "{shown}");
    }
    check_types(&whole, &process);
    assert!(
        bare.globals.is_empty() && bare.debug_types.is_empty(),
        "{shown}"
    );
}

/// The fixture's variables have the types that its source gives them.
fn check_types(image: &Image, process: &Process) {
    let window = Window::new(process);
    let kind = |id: DebugTypeId| &image.debug_types[id.0 as usize];
    let global = |name: &str| image.globals.iter().find(|g| g.name == name).unwrap();
    let type_of = |name: &str| kind(global(name).kind.unwrap());

    let DebugShape::Pointer(Some(node)) = type_of("main.head").shape else {
        panic!("{:?}", type_of("main.head"));
    };
    let node = kind(node);
    assert_eq!(node.name, "main.node");
    let DebugShape::Struct(fields) = &node.shape else {
        panic!("{node:?}");
    };
    let told: Vec<String> = fields
        .iter()
        .map(|(at, name, id)| {
            let shape = format!("{:?}", kind(*id).shape);
            let shape = shape
                .split(['(', ' '])
                .next()
                .unwrap_or_default()
                .to_owned();
            format!("{at} {name} {shape} {}", kind(*id).size)
        })
        .collect();
    let expected = [
        "0 next Pointer 8",
        "8 name String 16",
        "24 data Slice 24",
        "48 value EmptyInterface 16",
        "64 index Map 8",
        "72 queue Channel 8",
        "80 call Function 8",
        "88 err Interface 16",
        "104 array Array 24",
    ];
    assert_eq!(told, expected);
    assert_eq!(node.size, 128);
    let array = kind(fields[8].2);
    assert!(matches!(array.shape, DebugShape::Array(_, 3)), "{array:?}");
    assert!(matches!(type_of("main.table").shape, DebugShape::Map));

    // The runtime's descriptor of it, and the variable itself, are where they are told.
    let descriptor = node.runtime.unwrap();
    assert_eq!(window.u64(descriptor).unwrap(), node.size);
    let head = window.u64(global("main.head").address).unwrap();
    let name = window.slice(head + 8).unwrap();
    assert_eq!(window.bytes(name.0, name.1, 100).unwrap(), b"1999");
    assert!(image.globals.is_sorted_by_key(|g| g.address));
}

#[test]
fn stripped_programs_are_read_like_whole_ones() {
    let folder = tempfile::tempdir().unwrap();
    let pie = ["-buildmode=pie"];
    for (name, cgo, flags) in [
        ("plain", false, &[][..]),
        ("pie", false, &pie),
        ("cgo", true, &[]),
        ("cgopie", true, &pie),
        (
            "static",
            true,
            &["-ldflags=-linkmode=external -extldflags=-static"],
        ),
    ] {
        if let Some(program) = build(folder.path(), name, cgo, flags) {
            compare(&program);
        }
    }
}

/// What the linker itself strips is read as well.
#[test]
fn programs_that_the_linker_stripped_are_read() {
    let folder = tempfile::tempdir().unwrap();
    for (name, flags) in [
        ("plain", &["-ldflags=-s -w"][..]),
        ("pie", &["-buildmode=pie", "-ldflags=-s -w"]),
    ] {
        let Some(program) = build(folder.path(), name, false, flags) else {
            continue;
        };
        let process = Process::start(&program);
        let image = read(&std::fs::read(&program).unwrap(), &process);
        for wanted in locate::names(&image.layout) {
            assert!(image.variable(wanted).is_ok(), "{name}: {wanted}");
        }
    }
}

/// The programs in `MEMTRACE_IMAGES`, a list of paths.
#[test]
#[ignore = "for programs of many releases"]
fn given_programs_are_read_like_whole_ones() {
    let Ok(programs) = std::env::var("MEMTRACE_IMAGES") else {
        return;
    };
    for program in programs.split_whitespace() {
        compare(Path::new(program));
        println!("{program}");
    }
}

/// Prints what is read of a process, for work on this module: the program is
/// `MEMTRACE_IMAGE`, which is started or runs as `MEMTRACE_PID`.
#[test]
#[ignore = "for work on this module"]
fn show() {
    let Some(program) = std::env::var_os("MEMTRACE_IMAGE") else {
        return;
    };
    let process = match std::env::var("MEMTRACE_PID") {
        Ok(pid) => Process::attach(pid.parse().unwrap()),
        Err(_) => Process::start(Path::new(&program)),
    };
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

/// The memory that a program starts with, from its file.
struct Loaded<'f>(Elf<'f>);

impl Memory for Loaded<'_> {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let bytes = self.0.segments().find_map(|s| {
            let at = usize::try_from(address.checked_sub(s.address)?).ok()?;
            let (from, size) = (
                usize::try_from(s.offset).ok()?,
                usize::try_from(s.size).ok()?,
            );
            let end = at.checked_add(into.len()).filter(|e| *e <= size)?;
            self.0
                .bytes()
                .get(from.checked_add(at)?..from.checked_add(end)?)
        });
        into.copy_from_slice(bytes.ok_or(Unreadable { address })?);
        Ok(())
    }
}

fn read_loaded(executable: &[u8]) -> Result<Image, Error> {
    let memory = Loaded(Elf::parse(executable)?);
    Ok(Image::read(executable, &Window::new(&memory), &[])?.0)
}

#[test]
fn damaged_programs_do_not_panic() {
    let folder = tempfile::tempdir().unwrap();
    // Debug information is not compressed, so that damage reaches it.
    let flags = ["-ldflags=-compressdwarf=false"];
    let Some(program) = build(folder.path(), "plain", false, &flags) else {
        return;
    };
    let whole = std::fs::read(program).unwrap();
    let image = read_loaded(&whole).unwrap();
    assert!(image.layout.sizes.len() > 90 && !image.globals.is_empty());

    // A generator of Marsaglia's: the same damage each time.
    let mut state = 88_172_645_463_325_252_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below.max(1) as u64) as usize
    };
    let elf = Elf::parse(&whole).unwrap();
    let place = |part: &[u8]| {
        let from = part.as_ptr() as usize - whole.as_ptr() as usize;
        from..from + part.len()
    };
    let debug = |name: &str| match elf.debug_section(name) {
        std::borrow::Cow::Borrowed(bytes) => place(bytes),
        std::borrow::Cow::Owned(_) => panic!("{name} is compressed"),
    };
    let data = place(elf.section(".noptrdata").unwrap().1);
    let table = place(elf.section(".gopclntab").unwrap().1);
    let parts = [
        0..64,
        64..1024,
        debug(".debug_info"),
        debug(".debug_abbrev"),
        debug(".symtab"),
        data,
        table.start..table.start + 256,
        whole.len() - 4096..whole.len(),
    ];
    for (round, part) in parts.iter().cycle().take(8 * 12).enumerate() {
        let mut bytes = whole.clone();
        for _ in 0..1 << (round % 11) {
            let at = part.start + random(part.len());
            bytes[at] = [0, 0xff, 0x80, random(256) as u8][random(4)];
        }
        let _ = read_loaded(&bytes);
        let _ = read_loaded(&stripped(&whole)[..random(whole.len())]);
    }
}

/// Memory that holds the same byte everywhere.
struct Filled(u8);

impl Memory for Filled {
    fn read(&self, _: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        into.fill(self.0);
        Ok(())
    }
}

#[test]
fn memory_that_is_not_the_programs_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = build(folder.path(), "plain", false, &[]) else {
        return;
    };
    let whole = std::fs::read(program).unwrap();
    for byte in [0, 1, 0x7f, 0xff] {
        for executable in [&whole, &stripped(&whole)] {
            let memory = Filled(byte);
            let error = Image::read(executable, &Window::new(&memory), &[]).unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::RuntimeNotFound { .. } | Error::DamagedRuntime { .. }
                ),
                "{error}"
            );
        }
    }
}

#[test]
fn other_files_are_an_error() {
    let tiny = include_bytes!("../../../tests/fixtures/tiny.goexe");
    for (bytes, line) in [
        (&b""[..], "not an ELF program: its file is empty"),
        (&[0; 4096], "not an ELF program: its file starts with"),
        (b"\x7fELF", "a program whose file is damaged: "),
        (
            tiny,
            "a Go program whose runtime was not found: its release",
        ),
    ] {
        let memory = Filled(0);
        // Where memory of its own begins, as that of a file does.
        let bytes = bytes.to_vec();
        let error = Image::read(&bytes, &Window::new(&memory), &[]).unwrap_err();
        assert!(error.to_string().starts_with(line), "{error}");
    }
}

#[test]
fn a_version_is_its_minor_release_and_all_its_words() {
    for (text, minor) in [
        ("go1.27.3", Some(27)),
        ("go1.25.5 X:greenteagc", Some(25)),
        ("go1.26.6-X:nogreenteagc", Some(26)),
        ("go1.28rc1", Some(28)),
        ("devel go1.29-abcdef", Some(29)),
        ("go1.", None),
        ("go2.1", None),
        ("go1.99999999999", None),
        ("", None),
    ] {
        let version = Version::parse(text);
        assert_eq!(version.as_ref().map(|v| v.minor), minor, "{text}");
        assert_eq!(version.map(|v| v.text), minor.map(|_| text.to_owned()));
    }
}

#[test]
fn build_information_tells_the_version() {
    let mut info = goexe::INFO_MAGIC.to_vec();
    info.extend([8, 2]);
    info.resize(32, 0);
    info.push(9);
    info.extend(b"go1.26.10rest");
    assert_eq!(build_info(&info).unwrap().text, "go1.26.10");
    for end in 0..info.len() - 4 {
        assert_eq!(build_info(&info[..end]), None);
    }
    info[15] = 0;
    assert_eq!(build_info(&info), None);
}

#[test]
fn the_table_knows_all_releases_and_guesses_at_newer_ones() {
    let of = |minor| {
        let text = format!("go1.{minor}.0");
        layout::of_version(&Version { minor, text })
    };
    for minor in 21..=27 {
        let (layout, newest) = of(minor).unwrap();
        assert_eq!(newest, None);
        // As measured by other means.
        assert_eq!(layout.at("mheap.allspans").unwrap(), 65_864);
        assert_eq!(layout.at("g.m").unwrap(), 48);
        let kind = if minor < 24 { 10 } else { 16 };
        assert_eq!(layout.at("special.kind").unwrap(), kind);
        assert_eq!(layout.find("hmap.B").is_some(), minor < 24);
        assert_eq!(layout.size("bucket").unwrap(), 48);
        assert!(layout.at("mheap.nothing").is_err() && layout.size("nothing").is_err());
    }
    let (newer, newest) = of(28).unwrap();
    assert_eq!(newest, Some(27));
    assert_eq!(newer.offsets, of(27).unwrap().0.offsets);
    assert!(of(20).is_err());
}

#[test]
fn a_table_is_read_as_it_is_written() {
    let layout = |at| Layout {
        offsets: HashMap::from([("g.m".to_owned(), at), (format!("g.f{at}"), at)]),
        sizes: HashMap::from([("g".to_owned(), at + 8)]),
        constants: HashMap::from([("_Gidle".to_owned(), u64::MAX)]),
    };
    let version = |text| Version::parse(text).unwrap();
    let told = [("go1.21.1", 8), ("go1.22", 16), ("go1.22.1 X:arenas", 24)];
    let table = layout::to_table(&told.map(|(text, at)| (version(text), layout(at))));
    let more = [("go1.22.7 X:boring", 16), ("go1.22.7-X:boring,arenas", 24)];
    for (text, at) in told.into_iter().chain(more) {
        let (read, newest) = layout::of_table(&table, &version(text)).unwrap();
        assert_eq!(newest, None);
        assert_eq!(read.offsets, layout(at).offsets);
        assert_eq!(read.sizes, layout(at).sizes);
        assert_eq!(read.constants, layout(at).constants);
    }
}
