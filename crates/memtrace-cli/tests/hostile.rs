//! A profile of some hundred bytes that stands for hundreds of millions of frames: every
//! verb gives an answer, and a watch of several targets goes on with the others.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::{memtrace, run};
use memtrace_formats::pprof;
use memtrace_model::{FunctionId, LabelSetId, Line, Profile, StackId, ValueType};

/// A stack of 20,000 calls of a location that has 20,000 inlined calls; the second time it holds twice
/// as much.
fn bomb(times: i64) -> Vec<u8> {
    let mut p = Profile::default();
    let types = [
        "alloc_objects",
        "alloc_space",
        "inuse_objects",
        "inuse_space",
    ];
    for kind in types {
        let kind = p.intern(kind);
        let unit = p.intern("bytes");
        p.sample_types.push(ValueType { kind, unit });
    }
    let location = p.add_location("main.a", 1);
    let line = Line {
        function: FunctionId(0),
        ..Line::default()
    };
    p.lines = vec![line; 20_000];
    p.locations[0].line_count = 20_000;
    let stack = p.stacks.intern(&vec![location; 20_000]);
    p.sample_stacks.push(StackId(stack.expect("there is room")));
    let none = p.label_sets.intern(&[]);
    p.sample_labels
        .push(LabelSetId(none.expect("there is room")));
    p.values = vec![times, 600_000 * times, times, 600_000 * times];
    p.time_nanos = 1_700_000_000_000_000_000 + times * 1_000_000_000;
    p.period = 524_288;
    pprof::write(&p)
}

fn file(folder: &tempfile::TempDir, name: &str, bytes: &[u8]) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("there is room");
    path.display().to_string()
}

/// Serves a profile; gives the URL and the times at which the heap profile was asked for.
fn serve(profile: Vec<u8>) -> (String, Arc<Mutex<Vec<Instant>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    let beats: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let asked = beats.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let n = stream.read(&mut request).unwrap_or(0);
            let is_heap = request[..n].starts_with(b"GET /debug/pprof/heap");
            let (status, body) = if is_heap {
                let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
                asked.push(Instant::now());
                ("200 OK", &profile[..])
            } else {
                ("404 Not Found", &[][..])
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            // The client may have gone.
            let _ = stream
                .write_all(head.as_bytes())
                .and_then(|()| stream.write_all(body));
        }
    });
    (url, beats)
}

/// The file that was met in the field, where the corpus is there, else the one made here.
fn met() -> Vec<u8> {
    let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/corpus/pprof-odd/inline_bomb.pb.gz");
    std::fs::read(corpus).unwrap_or_else(|_| {
        eprintln!("the corpus is not there: a bomb made here must do");
        bomb(1)
    })
}

#[test]
fn a_watch_goes_on_with_the_others() {
    let small = {
        let mut p = pprof::parse(&bomb(1)).expect("a profile").profile;
        p.locations[0].line_count = 1;
        pprof::write(&p)
    };
    let ((honest, beats), (enemy, asked)) = (serve(small), serve(met()));
    let output = memtrace()
        .args(["watch", &enemy, &honest, "--json"])
        .args(["--interval", "500ms", "--for", "5s"])
        .output()
        .expect("memtrace starts");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for (which, beats) in [("honest", beats), ("enemy", asked)] {
        let beats = beats.lock().unwrap_or_else(PoisonError::into_inner);
        // Of ten; a busy machine may be late, but nothing may stand still.
        assert!(beats.len() >= 5, "{which}: {} profiles", beats.len());
        let gaps = beats.windows(2).map(|w| w[1] - w[0]);
        let gap = gaps.max().unwrap_or_default();
        assert!(gap < Duration::from_secs(2), "{which}: {gap:?}");
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let warned = said.lines().filter(|l| l.contains("deeper than"));
    // Once, not with every profile.
    assert_eq!(warned.count(), 1, "{said}");
}

#[test]
fn every_verb_gives_an_answer() {
    let folder = tempfile::tempdir().expect("a folder");
    let (old, new) = (
        file(&folder, "old.pb.gz", &bomb(1)),
        file(&folder, "new.pb.gz", &bomb(2)),
    );
    let met = file(&folder, "met.pb.gz", &met());
    let out = |name: &str| folder.path().join(name).display().to_string();
    let verbs: [&[&str]; 8] = [
        &["top", &met],
        &["top", &new, "--lines"],
        &[
            "diff",
            &old,
            &new,
            "--svg",
            &out("d.svg"),
            "--html",
            &out("d.html"),
        ],
        &["hot", &old, &new, "--for", "10s"],
        &["convert", &met, &out("x.folded")],
        &["convert", &met, &out("x.speedscope.json")],
        &["convert", &met, &out("x.svg")],
        &["convert", &met, &out("x.pb.gz")],
    ];
    for args in verbs {
        let begun = Instant::now();
        let output = run(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {said}");
        assert!(
            said.contains("deeper than 65536 frames"),
            "{args:?}: {said}"
        );
        assert!(begun.elapsed() < Duration::from_secs(60), "{args:?}");
    }
    // The function that allocates is still told.
    let top = run(&["top", &met]);
    assert!(
        String::from_utf8_lossy(&top.stdout).contains("100.00%  main.a"),
        "{top:?}"
    );
    for name in [
        "x.folded",
        "x.speedscope.json",
        "x.svg",
        "x.pb.gz",
        "d.svg",
        "d.html",
    ] {
        let bytes = std::fs::metadata(out(name)).expect("it was written").len();
        assert!((1..64 << 20).contains(&bytes), "{name}: {bytes}");
    }
}
