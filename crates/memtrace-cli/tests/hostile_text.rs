//! Names, labels, types, answers and paths that want to give orders to the terminal or to
//! forge lines: none of it leaves memtrace as it came.

#![allow(clippy::panic)] // that is how a test fails

mod common;
// The heap of the unit tests, whose names are made hostile here.
#[allow(dead_code)]
#[path = "../src/heap/sample.rs"]
mod sample;

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use common::{memtrace, run};
use memtrace_formats::pprof;
use memtrace_model::{
    HeapGraph, Label, LabelSetId, LabelValue, Mapping, MappingId, Profile, StackId, Strings,
    ValueType, snapshot,
};
use serde_json::Value;

/// What `sample` wants to make of its graph.
struct Loaded;

impl Loaded {
    fn of(_: HeapGraph) -> Self {
        Self
    }
}

/// Colours, a title, an erased screen, new lines, a bell, NUL, C1 controls, directions, and
/// what nobody sees.
const EVIL: &str = "\x1b[31m\x1b]0;owned\x07\x1b[2J\r\nFORGED 1 2\u{b}\u{c}\u{85}FORGED\u{2028}FORGED\u{2029}FORGED\
    \0\x08\x7f\u{9b}31m\u{202e}\u{2066}\u{61c}\u{200f}\u{200b}\u{feff}\u{ad}\u{e0041}]]>&<img src=x>;'\"\tx";

fn evil(name: &str) -> String {
    format!("{name}{EVIL}")
}

/// What no terminal, page or log may get.
fn is_forbidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

/// Only text, and no line that a name began.
fn check(what: &str, bytes: &[u8]) -> String {
    let text = String::from_utf8(bytes.to_vec()).unwrap_or_else(|e| panic!("{what}: {e}"));
    for line in text.split('\n') {
        if let Some((before, _)) = line.split_once(is_forbidden) {
            panic!(
                "{what}: {before:?}, then {:?}",
                line[before.len()..].chars().next()
            );
        }
        assert!(
            !line.trim_start().starts_with("FORGED"),
            "{what}: a forged line"
        );
    }
    text
}

/// The program's output was only text; it ended with one of `codes`.
fn checked(args: &[&str], codes: &[i32]) -> (String, Output) {
    let output = run(args);
    let err = check(&format!("stderr of {args:?}"), &output.stderr);
    check(&format!("stdout of {args:?}"), &output.stdout);
    let code = output.status.code();
    assert!(
        code.is_some_and(|c| codes.contains(&c)),
        "{args:?}: {code:?}: {err}"
    );
    (err, output)
}

fn lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|b| **b == b'\n').count()
}

/// A heap profile in which everything that has a name has an evil one; `grown` bytes more
/// are held and were allocated by the heaviest stack.
fn profile(grown: i64, name: &dyn Fn(&str) -> String) -> Profile {
    let mut p = Profile::default();
    for kind in [
        "alloc_objects",
        "alloc_space",
        "inuse_objects",
        "inuse_space",
    ] {
        let unit = if kind.ends_with("space") {
            "bytes"
        } else {
            "count"
        };
        let (kind, unit) = (p.intern(kind), p.intern(unit));
        p.sample_types.push(ValueType { kind, unit });
    }
    let (kind, unit) = (p.intern("space"), p.intern("bytes"));
    p.period_type = ValueType { kind, unit };
    p.period = 512 << 10;
    p.time_nanos = 1_767_225_600_000_000_000 + grown;
    let file = p.intern(&name("/usr/bin/shop"));
    p.mappings.push(Mapping {
        start: 0x40_0000,
        limit: 0x80_0000,
        file,
        ..Mapping::default()
    });
    let names = ["main.main", "main.(*Cache).Add", "main.serve 7"].map(name);
    let ids = names.map(|n| p.add_location(&n, 42));
    let source = p.intern(&name("/src/main.go"));
    p.functions.iter_mut().for_each(|f| f.file = source);
    // A place that has no function, only a binary with a name.
    let nameless = p.add_location("", 0);
    let at = &mut p.locations[nameless.index()];
    (at.line_count, at.address, at.mapping) = (0, 0x40_1000, Some(MappingId(0)));
    let (key, value) = (p.intern(&name("tenant")), p.intern(&name("acme")));
    let label = Label {
        key,
        value: LabelValue::Text(value),
    };
    for (stack, objects, bytes) in [
        (vec![ids[1], ids[0]], 2000 + grown / 1024, (4 << 20) + grown),
        (vec![ids[2], ids[0]], 100, 1 << 20),
        (vec![nameless, ids[0]], 50, 600 << 10),
    ] {
        let stack = p.stacks.intern(&stack).expect("few stacks");
        let labels = p.label_sets.intern(&[label]).expect("few labels");
        p.sample_stacks.push(StackId(stack));
        p.sample_labels.push(LabelSetId(labels));
        p.values.extend([objects, bytes, objects, bytes]);
    }
    p
}

fn plain(name: &str) -> String {
    name.to_owned()
}

/// A folder with an evil name.
struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a folder"),
        }
    }

    /// A path whose last part is evil.
    fn evil(&self, name: &str) -> PathBuf {
        // No name of a file has these.
        let evil = EVIL.replace(['\0', '/'], "");
        self.dir.path().join(format!("{name}{evil}"))
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_string_lossy().into_owned()
    }

    fn write(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        std::fs::write(&path, bytes).expect("a file");
        path
    }
}

/// Old and new, evil or not.
fn pair(folder: &Folder, kind: &str, name: &dyn Fn(&str) -> String) -> [String; 2] {
    [0, 90 << 20].map(|grown| {
        let bytes = pprof::write(&profile(grown, name));
        folder.write(&format!("{kind}-{grown}.pb.gz"), &bytes)
    })
}

#[test]
fn profiles_in_words_and_json() {
    let folder = Folder::new();
    let [old, new] = &pair(&folder, "evil", &evil);
    let [plain_old, plain_new] = &pair(&folder, "plain", &plain);
    for verb in [
        &["top", "NEW", "--cum"][..],
        &["top", "NEW", "--lines", "--type", "alloc_space"],
        &["diff", "OLD", "NEW"],
        &["hot", "OLD", "NEW", "--for", "10s", "--all"],
        &[
            "hot", "OLD", "NEW", "--for", "10s", "--all", "--by", "package",
        ],
    ] {
        let with = |old: &str, new: &str| -> Vec<String> {
            let word = |w: &&str| w.replace("OLD", old).replace("NEW", new);
            verb.iter().map(word).collect()
        };
        let run = |words: Vec<String>| {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            checked(&words, &[0]).1
        };
        let (seen, harmless) = (run(with(old, new)), run(with(plain_old, plain_new)));
        assert_eq!(lines(&seen.stdout), lines(&harmless.stdout), "{verb:?}");
        let text = String::from_utf8_lossy(&seen.stdout);
        // A package ends before what is evil of a function's name.
        if verb.contains(&"--by") {
            continue;
        }
        assert!(
            text.contains("Cache") && text.contains(r"\x1b[31m"),
            "{text}"
        );
        let mut json = with(old, new);
        json.push("--json".to_owned());
        let text = run(json).stdout;
        let found = String::from_utf8(text).expect("text").lines().any(|line| {
            let value: Value = serde_json::from_str(line).expect("JSON");
            has(&value, &|text| text.contains(EVIL))
        });
        assert!(found, "{verb:?}: JSON has another name");
    }
}

/// A megabyte of a name is a line that ends, and other rows are not as wide as it.
#[test]
fn long_names() {
    let folder = Folder::new();
    let long = |name: &str| name.to_owned() + &"x".repeat(1 << 20);
    let [old, new] = &pair(&folder, "long", &long);
    for args in [
        &["top", new.as_str()][..],
        &["diff", old, new],
        &["hot", old, new, "--for", "10s", "--all"],
    ] {
        let (_, seen) = checked(args, &[0]);
        let text = String::from_utf8_lossy(&seen.stdout);
        let lengths = text.lines().map(|l| l.chars().count());
        assert!(
            text.contains('…') && lengths.max() <= Some(4000),
            "{args:?}"
        );
    }
}

/// Whether a text within the value is what is looked for.
fn has(value: &Value, wanted: &dyn Fn(&str) -> bool) -> bool {
    match value {
        Value::String(text) => wanted(text),
        Value::Array(list) => list.iter().any(|v| has(v, wanted)),
        Value::Object(map) => map.iter().any(|(k, v)| wanted(k) || has(v, wanted)),
        _ => false,
    }
}

#[test]
fn the_sample_of_the_corpus() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus/pprof-odd/esc.pb.gz");
    if !path.is_file() {
        eprintln!("skipped: {} is not there", path.display());
        return;
    }
    let path = path.to_string_lossy();
    let (_, seen) = checked(&["top", &path], &[0]);
    assert_eq!(lines(&seen.stdout), 4);
}

/// `python3`, which has an XML parser that knows what is not well formed.
fn is_well_formed(file: &str) {
    let parse = "import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])";
    match Command::new("python3").args(["-c", parse, file]).output() {
        Err(_) => eprintln!("skipped: no python3 to read {file}"),
        Ok(done) => assert!(
            done.status.success(),
            "{file}: {}",
            String::from_utf8_lossy(&done.stderr)
        ),
    }
}

#[test]
fn pictures_pages_and_files() {
    let folder = Folder::new();
    let [old, new] = &pair(&folder, "evil", &evil);
    let read = |path: &str| std::fs::read(path).expect("the file");

    let folded = folder.path("x.folded");
    checked(&["convert", new, &folded], &[0]);
    let text = check("folded", &read(&folded));
    let mut depths: Vec<usize> = text.lines().map(|l| l.matches(';').count()).collect();
    depths.sort_unstable();
    assert_eq!(depths, [1, 1, 1], "{text}");

    let speedscope = folder.path("x.speedscope.json");
    checked(&["convert", new, &speedscope], &[0]);
    let text = check("speedscope", &read(&speedscope));
    let value: Value = serde_json::from_str(&text).expect("JSON");
    let files = &value["shared"]["frames"][0]["file"];
    assert_eq!(files, &evil("/src/main.go"), "{value:#}");

    // What is kept keeps the names.
    let kept = folder.path("x.pb.gz");
    checked(&["convert", new, &kept], &[0]);
    let again = pprof::parse(&read(&kept)).expect("a profile").profile;
    assert!(
        again
            .functions
            .iter()
            .any(|f| again.text(f.name) == evil("main.(*Cache).Add"))
    );

    let (svg, html) = (folder.path("x.svg"), folder.path("x.html"));
    let flame = folder.path("flame.svg");
    checked(&["convert", new, &flame], &[0]);
    checked(&["diff", old, new, "--svg", &svg, "--html", &html], &[0]);
    let (hot_svg, hot_html) = (folder.path("hot.svg"), folder.path("hot.html"));
    let pictures = ["--svg", hot_svg.as_str(), "--html", hot_html.as_str()];
    let hot = ["hot", old.as_str(), new, "--for", "10s", "--all"];
    checked(&[&hot[..], &pictures].concat(), &[0]);
    for picture in [&flame, &svg, &hot_svg] {
        let text = String::from_utf8(read(picture)).expect("text");
        // The script of the picture is indented by tabs.
        let text = check(picture, text.replace('\t', " ").as_bytes());
        assert!(
            text.contains("Cache") && !text.contains("<img"),
            "{picture}"
        );
        is_well_formed(picture);
    }
    // A name that ends in a number is no second value: only the other one is differential.
    assert!(!String::from_utf8_lossy(&read(&flame)).contains("%; "));
    for page in [&html, &hot_html] {
        let text = check(page, &read(page));
        assert!(text.contains("Cache") && !text.contains("<img"), "{page}");
    }
}

#[test]
fn snapshots() {
    let folder = Folder::new();
    let kept = |name: &str, more: u32, change: &dyn Fn(&str) -> String| {
        let mut graph = sample::graph(more);
        let mut strings = Strings::default();
        for id in 0..graph.strings.len() as u32 {
            let text = graph.strings.get(id);
            let text = if text.is_empty() {
                String::new()
            } else {
                change(text)
            };
            assert_eq!(strings.intern(&text), id);
        }
        graph.strings = strings;
        let mut bytes = Vec::new();
        snapshot::write(&graph, &mut bytes, &mut |_| {}).expect("memory takes it");
        folder.write(name, &bytes)
    };
    let evils = [0, 40, 80].map(|n| kept(&format!("evil-{n}.mtsnap"), n, &evil));
    let plains = [0, 40, 80].map(|n| kept(&format!("plain-{n}.mtsnap"), n, &plain));
    for verb in [
        &["report", "A"][..],
        &["why", "A", "--type", "TYPE"],
        &["why", "A", "--stack", "Login"],
        &["why", "A", "--object", "0xc00000000000"],
        &["diff", "A", "B"],
        &[
            "survivors",
            "A",
            "B",
            "C",
            "--cycles",
            "1",
            "--retainers",
            "1",
        ],
    ] {
        let with = |files: &[String; 3], name: &dyn Fn(&str) -> String, more: &[&str]| {
            let word = |w: &&str| match *w {
                "A" => files[0].clone(),
                "B" => files[1].clone(),
                "C" => files[2].clone(),
                // No argument has a NUL in it.
                "TYPE" => name("main.Node")
                    .split('\0')
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
                other => other.to_owned(),
            };
            let words: Vec<String> = verb.iter().chain(more).map(word).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            checked(&words, &[0]).1
        };
        let seen = with(&evils, &evil, &[]);
        let text = String::from_utf8_lossy(&seen.stdout);
        assert!(text.contains(r"\x1b[31m"), "{verb:?}: {text}");
        let harmless = with(&plains, &plain, &[]);
        assert_eq!(
            lines(&seen.stdout),
            lines(&harmless.stdout),
            "{verb:?}: {text}"
        );
        let json = with(&evils, &evil, &["--json"]).stdout;
        let value: Value = serde_json::from_slice(&json).expect("JSON");
        assert!(has(&value, &|text| text.contains(EVIL)), "{verb:?}");
    }
    let page = folder.path("report.html");
    checked(&["report", &evils[0], "--html", &page], &[0]);
    let text = check("page", &std::fs::read(&page).expect("the page"));
    assert!(text.contains("main.Session") && !text.contains("<img"));
}

#[test]
fn files_and_arguments() {
    let folder = Folder::new();
    let path = folder.evil("profile");
    let bytes = pprof::write(&profile(0, &evil));
    std::fs::write(&path, &bytes[..bytes.len() - 9]).expect("a file");
    let missing = folder.evil("missing");
    let program = || {
        let mut program = memtrace();
        program.stdin(Stdio::null());
        program
    };
    for (verb, more, code) in [
        ("top", &[][..], 0),
        ("convert", &["/no/such/folder/x.svg"], 1),
        ("snapshot", &[], 1),
        ("report", &[], 1),
        ("watch", &["--for", "1s"], 2),
    ] {
        let output = program()
            .arg(verb)
            .arg(&path)
            .args(more)
            .output()
            .expect("it starts");
        let err = check(&format!("{verb} of a file"), &output.stderr);
        check(verb, &output.stdout);
        assert_eq!(output.status.code(), Some(code), "{verb}: {err}");
        assert!(err.lines().all(|l| l.starts_with("memtrace: ")), "{err}");
        let output = program()
            .arg(verb)
            .arg(&missing)
            .args(more)
            .output()
            .expect("it starts");
        let err = check(&format!("{verb} of no file"), &output.stderr);
        assert_eq!(err.lines().count(), 1, "{err}");
        assert_ne!(output.status.code(), Some(0), "{verb}");
    }
    // Bytes that are no text.
    let mut odd = folder.dir.path().join("odd").into_os_string();
    odd.push(OsStr::from_bytes(b"\x9b31m\xff\x1b[31m\nFORGED"));
    for (verb, more) in [
        ("top", None),
        ("convert", Some("x.svg")),
        ("report", None),
        ("watch", None),
    ] {
        let output = program().arg(verb).arg(&odd).args(more).output();
        let err = check(verb, &output.expect("it starts").stderr);
        assert_eq!(err.lines().count(), 1, "{err}");
    }
    let evil = EVIL.replace('\0', "");
    let sound = folder.write("sound.pb.gz", &bytes);
    for (args, code) in [
        (&["EVIL"][..], 2),
        (&["watch", "EVIL"], 2),
        (&["watch", "127.0.0.1:1", "--interval", "EVIL"], 2),
        (&["watch", "127.0.0.1:1", "--EVIL"], 2),
        (&["watch", "http://127.0.0.1:1/EVIL", "--for", "1s"], 3),
        (&["watch", "http://EVIL:1", "--for", "1s"], 2),
        (&["top", "127.0.0.1:1", "--type", "EVIL"], 3),
        (&["why", "/no/such", "--stack", "EVIL["], 2),
        (&["why", "/no/such", "--object", "EVIL"], 2),
        (&["convert", "PROFILE", "EVIL"], 2),
        (&["top", "EVIL@EVIL"], 2),
    ] {
        let args: Vec<String> = args
            .iter()
            .map(|a| a.replace("EVIL", &evil).replace("PROFILE", &sound))
            .collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        checked(&args, &[code]);
    }
}

/// Answers each request on a free port; the base URL.
fn serve(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let n = stream.read(&mut request).unwrap_or(0);
            let text = String::from_utf8_lossy(&request[..n]).into_owned();
            // The client may hang up on purpose.
            let _ = stream.write_all(&answer(&text));
        }
    });
    url
}

fn answer(status: &[u8], headers: &str, body: &[u8]) -> Vec<u8> {
    let rest = format!(
        "\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n",
        body.len()
    );
    [b"HTTP/1.1 ", status, rest.as_bytes(), body].concat()
}

#[test]
fn hostile_servers() {
    let page = format!("<html><title>{EVIL}</title>{EVIL}");
    let raw = "500 \u{9b}31m\u{202e}".as_bytes();
    for (what, status, headers, body) in [
        ("a failure", raw, "", EVIL),
        ("an order in the reason", b"500 \x1b[31mno", "", EVIL),
        (
            "not found",
            b"404 Not\tFound",
            "Content-Type: text/\u{9b}31m\u{202e}\r\n",
            EVIL,
        ),
        (
            "refused",
            b"403 No",
            "WWW-Authenticate: \u{9b}31m\u{202e}\r\n",
            EVIL,
        ),
        ("a page", b"200 OK", "Content-Type: text/html\r\n", &page),
        ("text", b"200 OK", "", EVIL),
        (
            "a redirect",
            b"302 Found",
            "Location: http://\u{9b}31m\u{202e}.invalid/\u{202e}\r\n",
            "",
        ),
        (
            "an encoding",
            b"200 OK",
            "Content-Encoding: \u{9b}31m\u{202e}\r\n",
            EVIL,
        ),
        (
            "a time",
            b"503 Later",
            "Retry-After: \u{9b}31m\u{202e}\r\n",
            EVIL,
        ),
    ] {
        let whole = answer(status, headers, body.as_bytes());
        let url = serve(move |_| whole.clone());
        let (err, _) = checked(&["top", &url], &[1, 3]);
        assert_eq!(err.lines().count(), 1, "{what}: {err}");
        let (_, seen) = checked(&["hot", &url, "--for", "100ms"], &[1, 3]);
        assert_eq!(lines(&seen.stderr), 1, "{what}");
        checked(&["watch", &url, "--interval", "300ms", "--for", "1s"], &[3]);
        let json = [
            "watch",
            &url,
            "--interval",
            "300ms",
            "--for",
            "1s",
            "--json",
        ];
        checked(&json, &[0, 3]);
    }
}

/// Serves a service that leaks under evil names.
fn leaking() -> String {
    let (started, count) = (std::time::Instant::now(), AtomicU64::new(0));
    serve(move |request| {
        let path = request.split_whitespace().nth(1).unwrap_or_default();
        if path.starts_with("/debug/pprof/heap") {
            count.fetch_add(1, Ordering::Relaxed);
            let grown = started.elapsed().as_millis() as i64 * (40 << 10);
            return answer(b"200 OK", "", &pprof::write(&profile(grown, &evil)));
        }
        answer(b"404 Not Found", "", EVIL.as_bytes())
    })
}

#[test]
fn a_watch_of_a_leak() {
    let url = leaking();
    let watch = [
        "watch",
        &url,
        "--interval",
        "100ms",
        "--for",
        "12s",
        "--settle",
        "800ms",
    ];
    let folder = Folder::new();
    let store = folder.path("store");
    std::thread::scope(|scope| {
        let json = scope.spawn(|| checked(&[&watch[..], &["--json"]].concat(), &[0]).1);
        let (_, seen) = checked(&[&watch[..], &["--store", &store]].concat(), &[0]);
        let text = String::from_utf8_lossy(&seen.stdout);
        assert!(
            text.contains("GROWING") || text.contains("LEAKING"),
            "{text}"
        );
        assert!(text.contains(r"main.(*Cache).Add\x1b[31m"), "{text}");
        let json = json.join().unwrap_or_else(|_| panic!("the watch failed"));
        let text = String::from_utf8(json.stdout).expect("text");
        let mut found = false;
        for line in text.lines() {
            let value: Value = serde_json::from_str(line).expect("JSON");
            found |= has(&value, &|text| text == evil("main.(*Cache).Add"));
        }
        assert!(found, "{text}");
    });
    // What was kept is told again.
    let kept = format!("{store}@2099-01-01T00:00:00Z");
    let (_, seen) = checked(&["top", &kept], &[0]);
    assert!(String::from_utf8_lossy(&seen.stdout).contains("Cache"));
    checked(&["top", &format!("{store}@{EVIL}").replace('\0', "")], &[2]);
}

/// A process, ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_with_an_evil_name() {
    let folder = Folder::new();
    let program = folder.evil("sleep");
    std::fs::copy("/bin/sleep", &program).expect("a copy of a program");
    // Its file, its name and its command line.
    let name = EVIL.replace('\0', "");
    let start = || Command::new(&program).args(["300"]).env("X", &name).spawn();
    let mut started = start();
    // A process that another test starts meanwhile has our file open until it runs its own.
    while matches!(&started, Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy) {
        std::thread::sleep(std::time::Duration::from_millis(10));
        started = start();
    }
    let service = Running(started.expect("it starts"));
    let pid = service.0.id().to_string();
    let _ = std::fs::write(format!("/proc/{pid}/comm"), "\x1b[31m\r\nFORGED");
    for args in [
        &["watch", &pid, "--interval", "300ms", "--for", "1s"][..],
        &[
            "watch",
            &pid,
            "--interval",
            "300ms",
            "--for",
            "1s",
            "--json",
        ],
        &["snapshot", &pid, "-o", &folder.path("x.mtsnap")],
        &["report", &pid],
        &["top", &pid],
        &["hot", &pid],
    ] {
        checked(args, &[0, 1, 2, 3]);
    }
}
