//! Real processes, frozen while they work: what the copy holds, and that they do not
//! notice.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use memtrace_collect::goproc::{self, FreezeError, Method, Options, Programs};
use memtrace_formats::goheap::Memory;

/// Words that the target's writer counts up in order, one after the other.
const WORDS: usize = 4 << 20;

/// The tests start this program again in one of these parts.
const ROLE: &str = "MEMTRACE_TEST_ROLE";

#[test]
fn role() {
    match std::env::var(ROLE).as_deref() {
        Ok("target") => target(),
        Ok("freezer") => freezer(),
        _ => {}
    }
}

/// A program with threads that compute, write, sleep and wait, and look whether all is
/// as it should be. It counts heartbeats as long as it is.
fn target() {
    let words: &'static [AtomicU64] = Vec::leak((0..WORDS).map(|_| AtomicU64::new(0)).collect());
    static BEATS: AtomicU64 = AtomicU64::new(0);
    static BROKEN: AtomicBool = AtomicBool::new(false);
    // Writer: at each moment a number, from some place on the one before.
    std::thread::spawn(move || {
        for round in 1.. {
            for word in words {
                word.store(round, Ordering::Relaxed);
            }
        }
    });
    // In registers only, against the same again.
    std::thread::spawn(|| {
        let walk = |seed: u64| {
            let (mut a, mut b, mut f) = (seed, !seed, 1.0_f64);
            for _ in 0..200_000 {
                a = a.rotate_left(7) ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                b = b.wrapping_add(a >> 3);
                f = f * 1.000_000_1 + 0.5;
            }
            (a, b, f.to_bits())
        };
        let expected = walk(42);
        loop {
            if walk(std::hint::black_box(42)) != expected {
                BROKEN.store(true, Ordering::Relaxed);
            }
            BEATS.fetch_add(1, Ordering::Relaxed);
        }
    });
    // Sleeps never end early, whatever interrupts them.
    for _ in 0..4 {
        std::thread::spawn(|| {
            loop {
                let began = Instant::now();
                std::thread::sleep(Duration::from_millis(15));
                if began.elapsed() < Duration::from_millis(15) {
                    BROKEN.store(true, Ordering::Relaxed);
                }
            }
        });
    }
    // A lock and a channel between threads.
    let (to, from) = std::sync::mpsc::channel::<u64>();
    let (back, answers) = std::sync::mpsc::channel::<u64>();
    std::thread::spawn(move || {
        for n in from {
            back.send(n + 1).unwrap();
        }
    });
    println!(
        "{} {} {}",
        words.as_ptr() as usize,
        BEATS.as_ptr() as usize,
        BROKEN.as_ptr() as usize
    );
    for n in 0.. {
        to.send(n).unwrap();
        if answers.recv().unwrap() != n + 1 {
            BROKEN.store(true, Ordering::Relaxed);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Freezes a process again and again, until it is killed.
fn freezer() {
    let pid = std::env::var("MEMTRACE_TEST_PID").unwrap().parse().unwrap();
    println!("ready");
    loop {
        let frozen = goproc::freeze(pid, &clone_only()).unwrap();
        let mut bytes = vec![0; 1 << 16];
        let region = frozen.regions().iter().find(|r| r.rwx[1]).unwrap();
        bytes.truncate((region.end - region.start) as usize);
        frozen.read(region.start, &mut bytes).unwrap();
    }
}

/// A running program; ends with the test.
struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn new(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    /// `id` marks all processes that come of it.
    fn role(role: &str, pid: u32, id: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "role", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env("MEMTRACE_TEST_ID", id)
            .env("MEMTRACE_TEST_PID", pid.to_string());
        Self::new(&mut command)
    }

    /// The next line that begins with a number or is the given word.
    fn line(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.out.read_line(&mut line).unwrap() > 0, "it ended");
            // The harness writes the test's name before the first line.
            let line = line.trim().rsplit("... ").next().unwrap().to_owned();
            if line.starts_with(|c: char| c.is_ascii_digit()) || line == "ready" {
                return line;
            }
        }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }
}

/// The target of [`target`], from outside.
struct Target {
    running: Running,
    id: String,
    words: u64,
    beats: u64,
    broken: u64,
}

impl Target {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{next}-end", std::process::id());
        let mut running = Running::role("target", 0, &id);
        let line = running.line();
        let numbers: Vec<u64> = line.split(' ').map(|n| n.parse().unwrap()).collect();
        std::thread::sleep(Duration::from_millis(100));
        Self {
            running,
            id,
            words: numbers[0],
            beats: numbers[1],
            broken: numbers[2],
        }
    }

    fn peek<const N: usize>(&self, address: u64) -> [u8; N] {
        use std::os::unix::fs::FileExt as _;
        let memory = std::fs::File::open(format!("/proc/{}/mem", self.running.pid())).unwrap();
        let mut bytes = [0; N];
        memory.read_exact_at(&mut bytes, address).unwrap();
        bytes
    }

    /// It works on, nothing went wrong in it, and it has nothing that is not its own.
    #[track_caller]
    fn is_whole(&self) {
        self.works();
        nothing_left(self.running.pid());
    }

    /// No other process of its mark is left, soon.
    #[track_caller]
    fn is_alone(&self, round: u64) {
        let until = Instant::now() + Duration::from_secs(5);
        let others = || {
            let mut others = marked(&self.id);
            others.remove(&self.running.pid());
            others
        };
        while !others().is_empty() {
            assert!(Instant::now() < until, "round {round}: {:?}", others());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[track_caller]
    fn works(&self) {
        let before = u64::from_le_bytes(self.peek(self.beats));
        let until = Instant::now() + Duration::from_secs(10);
        while u64::from_le_bytes(self.peek(self.beats)) < before + 3 {
            assert!(Instant::now() < until, "its heart stopped");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(self.peek::<1>(self.broken), [0], "it found a fault");
    }
}

fn status(pid: u32, tid: u32, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(name));
    line.unwrap().trim_start_matches(':').trim().to_owned()
}

fn tasks(pid: u32) -> Vec<u32> {
    let listed = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let number = |e: std::fs::DirEntry| e.file_name().to_str()?.parse().ok();
    listed.filter_map(|e| number(e.ok()?)).collect()
}

/// No tracer, no stopped thread, no child.
#[track_caller]
fn nothing_left(pid: u32) {
    for tid in tasks(pid) {
        let path = format!("/proc/{pid}/task/{tid}/children");
        let Ok(children) = std::fs::read_to_string(path) else {
            continue;
        };
        assert_eq!(children, "", "a child is left");
        assert_eq!(status(pid, tid, "TracerPid"), "0");
        let state = status(pid, tid, "State");
        assert!(
            !state.starts_with(['t', 'T', 'Z']),
            "thread {tid} is {state}"
        );
    }
}

/// Processes with this mark, zombies left out.
fn marked(id: &str) -> BTreeSet<u32> {
    let listed = std::fs::read_dir("/proc").unwrap();
    listed
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .filter(|p: &u32| {
            let environ = std::fs::read(format!("/proc/{p}/environ")).unwrap_or_default();
            String::from_utf8_lossy(&environ).contains(id)
        })
        .collect()
}

fn descriptors(pid: u32) -> BTreeSet<PathBuf> {
    let listed = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    listed
        .filter_map(|e| std::fs::read_link(e.ok()?.path()).ok())
        .collect()
}

/// The words of [`target`], in one moment: a number, from some place on the one before.
#[track_caller]
fn check_words(memory: &dyn Memory, address: u64) -> Vec<u8> {
    let mut bytes = vec![0; WORDS * 8];
    memory.read(address, &mut bytes).unwrap();
    let words: Vec<u64> = bytes
        .chunks_exact(8)
        .map(|w| u64::from_le_bytes(w.try_into().unwrap()))
        .collect();
    let steps = words.windows(2).filter(|w| w[0] != w[1]);
    let steps: Vec<(u64, u64)> = steps.map(|w| (w[0], w[1])).collect();
    assert!(steps.len() <= 1, "{} steps", steps.len());
    assert!(steps.iter().all(|(a, b)| *a == b + 1), "{steps:?}");
    assert!(words[0] > 0);
    bytes
}

/// Where many tests share few processors a thread may take its time to stop.
const PATIENCE: Duration = Duration::from_secs(5);

fn clone_only() -> Options {
    Options {
        method: Method::Clone,
        programs: Programs::Any,
        max_pause: PATIENCE,
        ..Options::default()
    }
}

fn taken() -> Options {
    Options {
        method: Method::Direct,
        ..clone_only()
    }
}

#[test]
fn a_copy_is_one_moment_and_the_target_goes_on() {
    let target = Target::new();
    let pid = target.running.pid();
    let files = descriptors(pid);
    let masks = |pid| -> Vec<String> {
        tasks(pid)
            .iter()
            .map(|tid| status(pid, *tid, "SigBlk"))
            .collect()
    };
    let before = masks(pid);
    let frozen = goproc::freeze(pid, &clone_only()).unwrap();
    println!("pause {:?}", frozen.pause());
    assert!(frozen.is_copy());
    assert_eq!(frozen.threads().len(), tasks(pid).len());
    let first = check_words(&frozen, target.words);
    target.works();
    let copies = children(pid);
    assert_eq!(copies.len(), 1);
    assert_eq!(status(copies[0], copies[0], "Name"), "memtrace-copy");
    assert!(check_words(&frozen, target.words) == first, "it moved");
    let exe = std::fs::read(format!("/proc/{pid}/exe")).unwrap();
    assert!(frozen.executable().unwrap() == exe);
    for thread in frozen.threads() {
        let within = |address| {
            let mut all = frozen.regions().iter();
            all.any(|r| r.start <= address && address < r.end)
        };
        assert!(within(thread.registers.pc), "{thread:x?}");
        assert!(within(thread.registers.sp), "{thread:x?}");
    }
    assert!(frozen.read(8, &mut [0; 8]).is_err());
    assert!(frozen.read(u64::MAX - 3, &mut [0; 8]).is_err());
    frozen.whole().unwrap();
    let spent = frozen.thaw().unwrap();
    assert!(!spent.life.is_zero());
    // Its writer went on.
    assert!(spent.written >= 4096, "{spent:?}");
    target.is_whole();
    assert_eq!(descriptors(pid), files);
    assert_eq!(masks(pid), before);
}

#[test]
fn many_copies_in_a_row() {
    let target = Target::new();
    let pid = target.running.pid();
    let mut pauses = Vec::new();
    for _ in 0..50 {
        let frozen = goproc::freeze(pid, &clone_only()).unwrap();
        pauses.push(frozen.pause());
        check_words(&frozen, target.words);
    }
    target.is_whole();
    pauses.sort();
    println!("pauses: median {:?}, worst {:?}", pauses[25], pauses[49]);
}

#[test]
fn taken_without_a_copy() {
    let target = Target::new();
    let pid = target.running.pid();
    let frozen = goproc::freeze(pid, &taken()).unwrap();
    println!("pause {:?}", frozen.pause());
    assert!(!frozen.is_copy());
    target.is_whole();
    let first = check_words(&frozen, target.words);
    std::thread::sleep(Duration::from_millis(50));
    assert!(check_words(&frozen, target.words) == first, "it moved");
    // Also what was not taken: code, and what nobody has written.
    let exe = std::fs::read(format!("/proc/{pid}/exe")).unwrap();
    assert!(frozen.executable().unwrap() == exe);
    let mut bytes = vec![0; 1 << 16];
    for region in frozen.regions().iter().filter(|r| r.rwx[0]) {
        let length = (region.end - region.start).min(1 << 16) as usize;
        let read = frozen.read(region.start, &mut bytes[..length]);
        assert!(read.is_ok() || region.file.starts_with("[v"), "{region:x?}");
    }
    assert!(frozen.read(8, &mut [0; 8]).is_err());
    frozen.whole().unwrap();
    // What was taken outlives the process; the rest does not.
    let target_words = target.words;
    drop(target);
    check_words(&frozen, target_words);
    assert!(matches!(frozen.thaw(), Err(FreezeError::Gone { .. })));
}

#[test]
fn not_longer_than_allowed() {
    let target = Target::new();
    let pid = target.running.pid();
    let none = Duration::from_micros(1);
    for method in [Method::Auto, Method::Clone, Method::Direct] {
        let options = Options {
            method,
            max_pause: none,
            ..clone_only()
        };
        let refused = goproc::freeze(pid, &options).unwrap_err();
        let is_right = matches!(refused, FreezeError::WouldPause { .. });
        assert!(is_right, "{method:?}: {refused}");
    }
    let options = Options {
        max_memory: 1 << 20,
        ..taken()
    };
    let refused = goproc::freeze(pid, &options).unwrap_err();
    assert!(matches!(refused, FreezeError::TooLarge { .. }), "{refused}");
    target.is_whole();
}

#[test]
fn only_what_is_proved_to_be_go_is_stopped() {
    let target = Target::new();
    let pid = target.running.pid();
    let refused = goproc::freeze(pid, &Options::default()).unwrap_err();
    assert!(matches!(refused, FreezeError::Foreign { .. }), "{refused}");
    println!("{refused}");
    target.is_whole();
}

/// The copy is killed while it is read: nothing that was read counts.
#[test]
fn a_copy_that_is_killed() {
    let target = Target::new();
    let pid = target.running.pid();
    for asks_before in [false, true] {
        let frozen = goproc::freeze(pid, &clone_only()).unwrap();
        check_words(&frozen, target.words);
        frozen.whole().unwrap();
        kill(children(pid)[0]);
        let until = Instant::now() + PATIENCE;
        while frozen.read(target.words, &mut [0; 8]).is_ok() {
            assert!(Instant::now() < until, "it lives on");
        }
        if asks_before {
            let lost = frozen.whole().unwrap_err();
            assert!(matches!(lost, FreezeError::CopyLost { .. }), "{lost}");
        }
        let mut core = Vec::new();
        let written = goproc::write_core(&frozen, &mut core, &mut |_, _| ());
        assert!(written.is_err(), "a core of a copy that is no more");
        let lost = frozen.thaw().unwrap_err();
        assert!(matches!(lost, FreezeError::CopyLost { .. }), "{lost}");
        target.is_whole();
    }
}

/// The guard alone is killed: memtrace knows, and cleans up after it.
#[test]
fn a_guard_that_is_killed() {
    let target = Target::new();
    let pid = target.running.pid();
    let frozen = goproc::freeze(pid, &clone_only()).unwrap();
    let copy = children(pid)[0];
    let guard = status(copy, copy, "TracerPid").parse().unwrap();
    kill(guard);
    let lost = frozen.thaw().unwrap_err();
    assert!(matches!(lost, FreezeError::GuardLost { .. }), "{lost}");
    target.is_whole();
}

/// The same at any moment, also before the copy is made or has its name.
#[test]
fn a_guard_that_is_killed_at_any_moment() {
    let target = Target::new();
    let pid = target.running.pid();
    let own = std::process::id();
    let mut lost = 0;
    for round in 0..3 * kills() {
        let stop = AtomicBool::new(false);
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                let named = |p: &u32| {
                    std::fs::read_to_string(format!("/proc/{p}/comm"))
                        .is_ok_and(|name| name.trim() == "memtrace-guard")
                };
                while !stop.load(Ordering::Relaxed) {
                    // Other tests of this process have guards of their own.
                    if let Some(guard) = children(own)
                        .into_iter()
                        .find(|p| named(p) && traced_by(pid, *p))
                    {
                        std::thread::sleep(any_moment(round) / 5);
                        kill_if_there(guard);
                        return;
                    }
                }
            });
            let outcome = goproc::freeze(pid, &clone_only()).and_then(|frozen| {
                // What is read of it may be gone.
                let _ = frozen.read(target.words, &mut vec![0; WORDS * 8]);
                frozen.thaw()
            });
            stop.store(true, Ordering::Relaxed);
            outcome
        });
        if let Err(error) = outcome {
            assert!(matches!(error, FreezeError::GuardLost { .. }), "{error}");
            lost += 1;
        }
        target.is_whole();
    }
    println!("{lost} guards lost");
}

/// A process traces threads of another, or a copy of it.
fn traced_by(pid: u32, tracer: u32) -> bool {
    let tracer = tracer.to_string();
    let of = |pid, tid| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/status"));
        text.is_ok_and(|t| t.lines().any(|l| l == format!("TracerPid:\t{tracer}")))
    };
    tasks(pid).into_iter().any(|tid| of(pid, tid)) || children(pid).iter().any(|c| of(*c, *c))
}

fn kill_if_there(pid: u32) {
    let _ = Command::new("kill")
        .args(["-9", &pid.to_string()])
        .stderr(Stdio::null())
        .status();
}

/// One who asks while a copy lives waits for its end, so that the target pays for one only.
#[test]
fn one_copy_at_a_time() {
    let target = Target::new();
    let pid = target.running.pid();
    let first = goproc::freeze(pid, &clone_only()).unwrap();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| goproc::freeze(pid, &clone_only()).unwrap());
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(children(pid).len(), 1);
        assert!(!second.is_finished());
        first.thaw().unwrap();
        second.join().unwrap().thaw().unwrap();
    });
    target.is_whole();
}

fn kill(pid: u32) {
    signal(pid, "-KILL");
}

fn signal(pid: u32, signal: &str) {
    let sent = Command::new("kill")
        .args([signal, &pid.to_string()])
        .status();
    assert!(sent.unwrap().success());
}

/// People stop a process to look at it: it stays stopped, and nothing is left in it.
#[test]
fn a_process_that_is_stopped() {
    let target = Target::new();
    let pid = target.running.pid();
    signal(pid, "-STOP");
    std::thread::sleep(Duration::from_millis(100));
    for _ in 0..3 {
        let frozen = goproc::freeze(pid, &clone_only()).unwrap();
        check_words(&frozen, target.words);
        frozen.thaw().unwrap();
        assert!(children(pid).is_empty());
        // A thread that was let go needs a processor to stop again.
        let until = Instant::now() + PATIENCE;
        let stopped = |tid: &u32| status(pid, *tid, "State").starts_with('T');
        while !tasks(pid).iter().all(stopped) {
            assert!(Instant::now() < until, "it runs");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    signal(pid, "-CONT");
    target.is_whole();
}

/// A process that ends takes its copy with it: who starts it again must not wait for that.
#[test]
fn a_process_that_ends_while_its_copy_is_read() {
    let target = Target::new();
    let pid = target.running.pid();
    let frozen = goproc::freeze(pid, &clone_only()).unwrap();
    let copy = children(pid)[0];
    kill(pid);
    let until = Instant::now() + PATIENCE;
    let lives = || {
        let stat = std::fs::read_to_string(format!("/proc/{copy}/stat"));
        stat.is_ok_and(|s| !s.contains(") Z") && !s.contains(") X"))
    };
    while lives() {
        assert!(Instant::now() < until, "the copy lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
    let gone = frozen.thaw().unwrap_err();
    assert!(matches!(gone, FreezeError::Gone { .. }), "{gone}");
}

/// `kill -9` of the program that freezes, at any moment.
#[test]
fn killed_at_any_moment() {
    let target = Target::new();
    let pid = target.running.pid();
    for round in 0..kills() {
        let mut freezer = Running::role("freezer", pid, &target.id);
        freezer.line();
        std::thread::sleep(any_moment(round));
        freezer.child.kill().unwrap();
        freezer.child.wait().unwrap();
        // The guard ends what it began.
        target.is_alone(round);
        target.is_whole();
    }
}

/// The same, and the guard is killed with it: the target goes on all the same. The one
/// thing that may be left is a zombie, where the kill fell between the target's making
/// a child and reaping it.
#[test]
fn killed_with_its_guard() {
    let target = Target::new();
    let pid = target.running.pid();
    let mut zombies = 0;
    for round in 0..kills() {
        let mut freezer = Running::role("freezer", pid, &target.id);
        freezer.line();
        std::thread::sleep(any_moment(round));
        for process in marked(&target.id) {
            if process != pid {
                let _ = Command::new("kill")
                    .args(["-9", &process.to_string()])
                    .status();
            }
        }
        freezer.child.wait().unwrap();
        target.is_alone(round);
        target.works();
        // A child that was just being made ends by itself.
        let until = Instant::now() + Duration::from_secs(5);
        let is_zombie = |c: &u32| {
            std::fs::read_to_string(format!("/proc/{c}/status"))
                .is_ok_and(|text| text.contains("State:\tZ"))
        };
        while !children(pid).iter().all(is_zombie) {
            assert!(Instant::now() < until, "round {round}: a child lives");
            std::thread::sleep(Duration::from_millis(5));
        }
        zombies = children(pid).len();
        assert_eq!(status(pid, pid, "TracerPid"), "0");
    }
    println!("{} kills, {zombies} zombies", kills());
    // Those that were old enough to be told from other programs' go with the next copy.
    std::thread::sleep(Duration::from_secs(3));
    goproc::freeze(pid, &clone_only()).unwrap().thaw().unwrap();
    target.is_whole();
}

fn kills() -> u64 {
    match std::env::var("MEMTRACE_FULL") {
        Ok(_) => 200,
        Err(_) => 10,
    }
}

fn any_moment(round: u64) -> Duration {
    let mut seed = (round + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    seed ^= seed >> 29;
    seed = seed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    Duration::from_micros((seed >> 32) % 100_000)
}

fn children(pid: u32) -> Vec<u32> {
    let of = |tid| std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/children"));
    let lists: Vec<String> = tasks(pid)
        .into_iter()
        .filter_map(|tid| of(tid).ok())
        .collect();
    let numbers = lists.iter().flat_map(|l| l.split_whitespace());
    numbers.map(|n| n.parse().unwrap()).collect()
}

#[test]
fn what_cannot_be_frozen() {
    let gone = goproc::freeze(u32::MAX >> 1, &clone_only()).unwrap_err();
    assert!(matches!(gone, FreezeError::NoSuchProcess { .. }), "{gone}");
    let own = goproc::freeze(std::process::id(), &clone_only()).unwrap_err();
    assert!(matches!(own, FreezeError::Unsupported { .. }), "{own}");
    let kernel = goproc::freeze(2, &clone_only()).unwrap_err();
    println!("{kernel}");
}

/// A debugger has it: memtrace says who, and touches nothing.
#[test]
fn a_traced_process() {
    let target = Target::new();
    let pid = target.running.pid();
    let tracer = Command::new("gdb")
        .args(["-batch", "-nx", "-p", &pid.to_string()])
        .args(["-ex", "shell sleep 2"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut tracer) = tracer else {
        eprintln!("skipped: no gdb");
        return;
    };
    let until = Instant::now() + Duration::from_secs(20);
    while status(pid, pid, "TracerPid") == "0" {
        assert!(Instant::now() < until, "gdb does not attach");
        std::thread::sleep(Duration::from_millis(10));
    }
    let twice = goproc::freeze(pid, &clone_only()).unwrap_err();
    assert!(matches!(twice, FreezeError::Traced { .. }), "{twice}");
    assert!(twice.to_string().contains("by gdb"), "{twice}");
    tracer.wait().unwrap();
    target.is_whole();
}

const SERVICE: &str = include_str!("goproc_service.go.txt");

/// Builds the service; `None` without a Go toolchain.
fn service(dir: &Path) -> Option<PathBuf> {
    let Some(go) = std::env::var_os("MEMTRACE_GO") else {
        eprintln!("skipped: MEMTRACE_GO does not name a go program; `cargo xtask test` sets it");
        return None;
    };
    std::fs::write(dir.join("main.go"), SERVICE).unwrap();
    std::fs::write(dir.join("go.mod"), "module service\n\ngo 1.21\n").unwrap();
    let built = Command::new(go)
        .args(["build", "-o", "service", "."])
        .current_dir(dir)
        .status();
    assert!(built.unwrap().success());
    Some(dir.join("service"))
}

/// Requests on one connection until told to stop: how many were answered rightly.
fn client(address: &str, stop: &AtomicBool) -> u64 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut answered = 0;
    while !stop.load(Ordering::Relaxed) {
        let sent = format!("GET /?n={answered} HTTP/1.1\r\nHost: service\r\n\r\n");
        stream.write_all(sent.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let end = format!("<{answered}>");
        while !answer.ends_with(end.as_bytes()) {
            let mut part = [0; 4096];
            let got = stream.read(&mut part).unwrap();
            assert!(got > 0, "the connection was closed");
            answer.extend_from_slice(&part[..got]);
        }
        answered += 1;
    }
    answered
}

/// A Go service under load: no request is lost, however often it is frozen.
#[test]
fn a_go_service_under_load() {
    let full = std::env::var("MEMTRACE_FULL").ok();
    let rounds = full.as_ref().map_or(40, |n| n.parse().unwrap_or(1000));
    let mib = std::env::var("MEMTRACE_HEAP_MIB").unwrap_or("50".into());
    let dir = tempfile::tempdir().unwrap();
    let Some(program) = service(dir.path()) else {
        return;
    };
    let mut running = Running::new(Command::new(program).arg(&mib));
    let address = running.line();
    let pid = running.pid();
    let stop = AtomicBool::new(false);
    let (answered, mut pauses, mut whole) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| client(&address, &stop)))
            .collect();
        let (mut pauses, mut whole) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let began = Instant::now();
            let frozen = goproc::freeze(pid, &clone_only()).unwrap();
            pauses.push(frozen.pause());
            frozen.thaw().unwrap();
            whole.push(began.elapsed());
        }
        stop.store(true, Ordering::Relaxed);
        let answered: u64 = clients.into_iter().map(|c| c.join().unwrap()).sum();
        (answered, pauses, whole)
    });
    nothing_left(pid);
    assert_eq!(running.child.try_wait().unwrap(), None);
    assert!(answered > 0);
    pauses.sort();
    whole.sort();
    let at = |of: &[Duration], share: usize| of[(of.len() - 1) * share / 100];
    println!(
        "{mib} MiB, {rounds} freezes, {answered} requests; pause p50 {:?} p90 {:?} p99 {:?} max {:?}; \
         freeze and thaw p50 {:?} max {:?}",
        at(&pauses, 50),
        at(&pauses, 90),
        at(&pauses, 99),
        at(&pauses, 100),
        at(&whole, 50),
        at(&whole, 100),
    );
}

/// Every readable byte of two: where one has none, it is not compared.
#[track_caller]
fn same_bytes(frozen: &goproc::Frozen, core: &goproc::Frozen) -> u64 {
    let mut compared = 0;
    let (mut a, mut b) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    for region in frozen
        .regions()
        .iter()
        .filter(|r| r.rwx[0] && !r.file.starts_with("[v"))
    {
        for at in (region.start..region.end).step_by(1 << 16) {
            let length = (region.end - at).min(1 << 16) as usize;
            if frozen.read(at, &mut a[..length]).is_ok() && core.read(at, &mut b[..length]).is_ok()
            {
                assert!(a[..length] == b[..length], "at {at:#x} {region:?}");
                compared += length as u64;
            }
        }
    }
    compared
}

fn gdb(arguments: &[&str]) -> Option<String> {
    let output = Command::new("gdb")
        .args(["-batch", "-nx"])
        .args(arguments)
        .output();
    let Ok(output) = output else {
        eprintln!("skipped: no gdb");
        return None;
    };
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_core_of_the_copy() {
    let target = Target::new();
    let pid = target.running.pid();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("core");
    let frozen = goproc::freeze(pid, &clone_only()).unwrap();
    let mut out = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    let mut told = (0, 0);
    goproc::write_core(&frozen, &mut out, &mut |done, all| told = (done, all)).unwrap();
    drop(out);
    assert_eq!(told.0, told.1);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), told.1);
    let core = goproc::open_core(&path, None).unwrap();
    assert_eq!(core.pid(), pid);
    assert_eq!(core.threads().len(), frozen.threads().len());
    for thread in frozen.threads() {
        assert!(core.threads().contains(thread));
    }
    assert_eq!(core.executable().unwrap(), frozen.executable().unwrap());
    check_words(&core, target.words);
    assert!(same_bytes(&frozen, &core) > WORDS as u64 * 8);
    // A core of the core is the same again.
    let again = dir.path().join("again");
    let mut out = std::fs::File::create(&again).unwrap();
    goproc::write_core(&core, &mut out, &mut |_, _| ()).unwrap();
    let again = goproc::open_core(&again, None).unwrap();
    same_bytes(&frozen, &again);
    check_words(&again, target.words);
    frozen.thaw().unwrap();
    target.is_whole();

    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    let (exe, path) = (exe.to_str().unwrap(), path.to_str().unwrap());
    let peek = format!("x/1gx {}", target.words);
    let all = "thread apply all bt";
    let asked = ["-ex", "info threads", "-ex", all, "-ex", &peek, exe, path];
    if let Some(said) = gdb(&asked) {
        for thread in core.threads() {
            assert!(said.contains(&format!("LWP {}", thread.tid)), "{said}");
        }
        assert!(said.contains("goproc::target"), "{said}");
        let mut word = [0; 8];
        core.read(target.words, &mut word).unwrap();
        let word = format!("0x{:016x}", u64::from_le_bytes(word));
        assert!(said.contains(&word), "{word}: {said}");
    }
}

#[test]
fn a_core_of_gcore() {
    let target = Target::new();
    let pid = target.running.pid().to_string();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("core");
    let save = format!("gcore {}", path.display());
    if gdb(&["-p", &pid, "-ex", &save]).is_none() {
        return;
    }
    let core = goproc::open_core(&path, None).unwrap();
    assert_eq!(core.pid(), target.running.pid());
    assert_eq!(core.threads().len(), tasks(core.pid()).len());
    check_words(&core, target.words);
    assert!(core.executable().is_ok());
}

/// A core that was cut off, or has other bytes in its headers: an error or what is left.
#[test]
fn a_damaged_core() {
    let target = Target::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("core");
    let frozen = goproc::freeze(target.running.pid(), &clone_only()).unwrap();
    let mut bytes = Vec::new();
    goproc::write_core(&frozen, &mut bytes, &mut |_, _| ()).unwrap();
    bytes.truncate(64 << 10);
    let look = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        if let Ok(core) = goproc::open_core(&path, None) {
            let _ = core.read(target.words, &mut [0; 16]);
            for region in core.regions() {
                let _ = core.read(region.start, &mut [0; 64]);
            }
        }
    };
    for length in [0, 3, 63, 64, 100, 1000, 4096, 10_000] {
        look(&bytes[..length]);
    }
    for at in (0..1200).chain(frozen.regions().len() * 56..frozen.regions().len() * 56 + 300) {
        for byte in [0, 1, 0x7f, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] = byte;
            look(&damaged);
        }
    }
    assert!(goproc::open_core(&dir.path().join("none"), None).is_err());
}

/// A service whose filter of system calls would end it at an injected `clone`.
#[test]
fn a_filter_of_system_calls() {
    let dir = tempfile::tempdir().unwrap();
    let Some(program) = service(dir.path()) else {
        return;
    };
    let mut running = Running::new(Command::new(program).args(["8", "filter"]));
    let address = running.line();
    let pid = running.pid();
    assert_eq!(status(pid, pid, "Seccomp"), "2");
    for method in [Method::Clone, Method::Auto, Method::Direct] {
        let options = Options {
            method,
            ..clone_only()
        };
        match goproc::freeze(pid, &options) {
            Ok(frozen) => assert_eq!(frozen.is_copy(), method != Method::Direct),
            // Only root may take a filter off.
            Err(error) => println!("{error}"),
        }
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let one = scope.spawn(|| client(&address, &stop));
        std::thread::sleep(Duration::from_millis(100));
        stop.store(true, Ordering::Relaxed);
        assert!(one.join().unwrap() > 0);
    });
    nothing_left(pid);
    assert_eq!(running.child.try_wait().unwrap(), None);
}

/// A service that is the init of its container, and waits for no child.
#[test]
fn the_init_of_a_container() {
    let dir = tempfile::tempdir().unwrap();
    let Some(program) = service(dir.path()) else {
        return;
    };
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--kill-child"]);
    let probe = Command::new("unshare")
        .args(["--pid", "--fork", "true"])
        .status();
    if !probe.is_ok_and(|s| s.success()) {
        eprintln!("skipped: unshare is not there, or not allowed");
        return;
    }
    let mut running = Running::new(unshare.arg(program).arg("8"));
    let address = running.line();
    let pid = children(running.pid())[0];
    assert!(status(pid, pid, "NSpid").ends_with("\t1"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let one = scope.spawn(|| client(&address, &stop));
        for _ in 0..20 {
            let frozen = goproc::freeze(pid, &clone_only()).unwrap();
            let copies = children(pid);
            assert_eq!(copies.len(), 1);
            assert_eq!(descriptors(copies[0]).len(), 0, "it holds files");
            frozen.thaw().unwrap();
            nothing_left(pid);
        }
        stop.store(true, Ordering::Relaxed);
        assert!(one.join().unwrap() > 0);
    });
}
