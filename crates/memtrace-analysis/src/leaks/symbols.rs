//! What a Go function name tells about where the code comes from.

use memtrace_model::Frame;

/// First path elements of the standard library's import paths (`go list std`).
const STANDARD: &[&str] = &[
    "archive",
    "bufio",
    "builtin",
    "bytes",
    "cmp",
    "compress",
    "container",
    "context",
    "crypto",
    "database",
    "debug",
    "embed",
    "encoding",
    "errors",
    "expvar",
    "flag",
    "fmt",
    "go",
    "hash",
    "html",
    "image",
    "index",
    "internal",
    "io",
    "iter",
    "log",
    "maps",
    "math",
    "mime",
    "net",
    "os",
    "path",
    "plugin",
    "reflect",
    "regexp",
    "runtime",
    "slices",
    "sort",
    "strconv",
    "strings",
    "structs",
    "sync",
    "syscall",
    "testing",
    "text",
    "time",
    "unicode",
    "unique",
    "unsafe",
    "vendor",
    "weak",
];

/// Whether the function belongs to the Go runtime or standard library.
pub(crate) fn is_standard(function: &str) -> bool {
    let package = package(function);
    let first = package.split('/').next().unwrap_or(package);
    STANDARD.contains(&first)
}

/// A package path ends at the first dot after the last slash; a generic argument in
/// brackets may hold slashes of its own.
fn package_end(function: &str) -> usize {
    let path = function.split('[').next().unwrap_or(function);
    let last = path.rfind('/').map_or(0, |slash| slash + 1);
    last + path[last..].find('.').unwrap_or(0)
}

/// The first frame that is neither runtime nor standard library: the code that a
/// person can change.
pub(crate) fn culprit(stack: &[Frame]) -> Option<&Frame> {
    stack.iter().find(|f| !is_standard(&f.function))
}

/// The runtime and library frames below the culprit: what it called.
pub(crate) fn callee_frames(stack: &[Frame]) -> impl Iterator<Item = &str> {
    stack
        .iter()
        .map(|f| f.function.as_str())
        .take_while(|f| is_standard(f))
}

/// The function that a closure was written in: `p.(*T).Run.func1.2` → `p.(*T).Run`.
pub(crate) fn enclosing(function: &str) -> &str {
    let mut name = function;
    while let Some((outer, last)) = name.rsplit_once('.') {
        let number = last
            .strip_prefix("func")
            .or(last.strip_prefix("gowrap"))
            .or(last.strip_prefix("deferwrap"))
            .unwrap_or(last);
        // The body of a range-over-func loop is `func2-range1`.
        let number = number.split('-').next().unwrap_or(number);
        let is_closure = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        if !is_closure || outer.is_empty() {
            break;
        }
        name = outer;
    }
    name
}

/// The package of a function: `a/b.(*T).Run` → `a/b`.
pub(crate) fn package(function: &str) -> &str {
    &function[..package_end(function)]
}

/// The type that a method belongs to, with its package: `a/b.(*T).Run.func1` → `a/b.T`.
/// `None` of a plain function.
pub(crate) fn receiver(function: &str) -> Option<String> {
    let package = package(function);
    let rest = enclosing(function).get(package.len() + 1..)?;
    let (receiver, _) = match rest.find("[").filter(|_| rest.ends_with(']')) {
        Some(arguments) => rest[..arguments].rsplit_once('.')?,
        None => rest.rsplit_once('.')?,
    };
    let name = receiver.trim_start_matches("(*").trim_end_matches(')');
    // Of a generic type, without its arguments.
    let name = name.split('[').next().unwrap_or(name);
    Some(format!("{package}.{name}"))
}

/// The last part of a name: of a method without its type, of a function without its
/// package, of an instance without its arguments.
pub(crate) fn short(function: &str) -> &str {
    // A generic type in front of a method, or the function's own arguments at the end.
    let end = match function.find('[') {
        Some(open) if function.ends_with(']') => open,
        _ => function.len(),
    };
    let name = &function[..end];
    name.rsplit_once('.').map_or(name, |(_, last)| last)
}

/// What a blocked goroutine waits for, in the runtime's own words, told from the
/// frames below its first application frame.
pub(crate) fn wait_reason(stack: &[Frame]) -> Option<&'static str> {
    callee_frames(stack).find_map(|f| {
        let f = f.strip_prefix("internal/").unwrap_or(f);
        Some(match f {
            _ if f.starts_with("runtime.chanrecv") => "chan receive",
            _ if f.starts_with("runtime.chansend") => "chan send",
            "runtime.selectgo" => "select",
            "runtime.block" => "select (no cases)",
            "runtime.netpollblock" | "poll.runtime_pollWait" => "IO wait",
            "time.Sleep" => "sleep",
            "sync.runtime_notifyListWait" => "sync.Cond.Wait",
            "sync.runtime_SemacquireWaitGroup" | "sync.(*WaitGroup).Wait" => "sync.WaitGroup.Wait",
            _ if f.starts_with("sync.runtime_SemacquireRWMutex") => "sync.RWMutex",
            "sync.runtime_SemacquireMutex" | "sync.(*Mutex).Lock" => "sync.Mutex.Lock",
            "sync.runtime_Semacquire" => "semacquire",
            _ => return None,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(functions: &[&str]) -> Vec<Frame> {
        functions
            .iter()
            .map(|f| Frame {
                function: (*f).into(),
                ..Frame::default()
            })
            .collect()
    }

    #[test]
    fn standard_library_is_told_from_application() {
        for standard in [
            "runtime.mallocgc",
            "encoding/json.(*Decoder).Decode",
            "slices.Grow[go.shape.[]github.com/x/y.T]",
            "internal/runtime/maps.(*Map).grow",
            "vendor/golang.org/x/net/http2/hpack.NewDecoder",
            "net/http.(*conn).serve",
        ] {
            assert!(is_standard(standard), "{standard}");
        }
        for application in [
            "main.main",
            "cnc/internal/gcode.(*Cache).Lookup",
            "github.com/your-org/nc/core.(*TaskRunner).Run.func1",
            "golang.org/x/net/http2.(*Framer).ReadFrame",
            "netx.Dial",
            "malloc",
            "",
            "0x45e1f0",
        ] {
            assert!(!is_standard(application), "{application}");
        }
    }

    #[test]
    fn closures_name_their_function() {
        for (closure, function) in [
            ("a/b.(*T).Run.func1", "a/b.(*T).Run"),
            ("a/b.(*T).Run.func1.2.3", "a/b.(*T).Run"),
            ("a/b.Run.gowrap2", "a/b.Run"),
            ("a/b.Run.deferwrap1", "a/b.Run"),
            ("a/b.Run.func2-range1", "a/b.Run"),
            ("main.main", "main.main"),
            ("main.func1", "main"),
            ("", ""),
        ] {
            assert_eq!(enclosing(closure), function, "{closure}");
        }
    }

    #[test]
    fn parts_of_names() {
        for (function, of, receiver_type, last) in [
            ("a.io/b/c.(*T).Run", "a.io/b/c", Some("a.io/b/c.T"), "Run"),
            ("a.io/b.(*T).Run.func1", "a.io/b", Some("a.io/b.T"), "func1"),
            ("main.T.Run", "main", Some("main.T"), "Run"),
            ("main.(*T[...]).Run", "main", Some("main.T"), "Run"),
            ("main.run", "main", None, "run"),
            ("main.run.func2", "main", None, "func2"),
            (
                "runtime.AddCleanup[go.shape.a/b.T]",
                "runtime",
                None,
                "AddCleanup",
            ),
            ("malloc", "", None, "malloc"),
            ("", "", None, ""),
        ] {
            assert_eq!(package(function), of, "{function}");
            assert_eq!(receiver(function).as_deref(), receiver_type, "{function}");
            assert_eq!(short(function), last, "{function}");
        }
    }

    #[test]
    fn wait_reasons() {
        for (frames, reason) in [
            (
                &[
                    "runtime.gopark",
                    "runtime.chanrecv",
                    "runtime.chanrecv1",
                    "a.f",
                ][..],
                Some("chan receive"),
            ),
            (
                &["runtime.gopark", "runtime.selectgo", "a.f"],
                Some("select"),
            ),
            (
                &[
                    "runtime.gopark",
                    "runtime.netpollblock",
                    "internal/poll.runtime_pollWait",
                    "a.f",
                ],
                Some("IO wait"),
            ),
            (
                &[
                    "runtime.gopark",
                    "internal/sync.runtime_SemacquireMutex",
                    "a.f",
                ],
                Some("sync.Mutex.Lock"),
            ),
            (&["a.f", "runtime.chanrecv"], None),
            (&[], None),
        ] {
            assert_eq!(wait_reason(&stack(frames)), reason, "{frames:?}");
        }
    }
}
