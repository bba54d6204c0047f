//! What the file of a local Go program tells beside its profiles.

use std::fs::File;

use memtrace_analysis::leaks::Code;
use memtrace_collect::Process;
use memtrace_formats::goexe::Program;

/// Which function of the program's own code calls what leak patterns are told by.
/// `None` where the file cannot be read, or is no Go program. It takes a tenth of a second
/// for a program of 20 MB, away from the tasks that must answer; nothing is kept but the
/// result.
pub(crate) async fn code(process: &Process) -> Option<Code> {
    with(process, |mut program| {
        let callers = program.callers(Code::matters).ok()?;
        let code = Code::new(program.functions(), callers);
        let users: Vec<String> = code.pool_users().map(str::to_owned).collect();
        let types = program.pointer_types(users).unwrap_or_default();
        Some(code.with_types(types))
    })
    .await
}

/// Names of the functions at addresses of the running process, in their order; empty
/// where an address is not in the program's code.
pub(crate) async fn names(process: &Process, addresses: Vec<u64>) -> Option<Vec<String>> {
    let (mapped, offset) = process.exe_mapping()?;
    with(process, move |program| {
        let bias = program.bias(mapped, offset);
        let name = |a: &u64| {
            program
                .function_at(a.wrapping_sub(bias))
                .unwrap_or_default()
        };
        Some(addresses.iter().map(|a| name(a).to_owned()).collect())
    })
    .await
}

async fn with<T: Send + 'static>(
    process: &Process,
    ask: impl FnOnce(Program<File>) -> Option<T> + Send + 'static,
) -> Option<T> {
    let file = process.open_exe().ok()?;
    let read = move || ask(Program::read(file).ok()?);
    tokio::task::spawn_blocking(read).await.ok()?
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::path::Path;
    use std::process::{Command, Stdio};

    use super::*;

    /// A position-independent, stripped program tells where one of its functions is.
    #[tokio::test]
    async fn addresses_and_calls_of_a_running_program() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        let go = std::env::var_os("MEMTRACE_GO").unwrap_or_else(|| "go".into());
        let source = "../memtrace-formats/tests/fixtures/gocalls";
        let built = Command::new(go)
            .args(["build", "-ldflags=-s -w", "-buildmode=pie", "-o"])
            .arg(&program)
            .env("CGO_ENABLED", "0")
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(source))
            .status();
        let Ok(built) = built else {
            eprintln!("skipped: no Go; set MEMTRACE_GO");
            return;
        };
        assert!(built.success());
        let mut child = Command::new(&program)
            .arg("wait")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let address: u64 = line.trim().parse().unwrap();

        // The file may be replaced while it runs.
        std::fs::remove_file(&program).unwrap();
        let process = Process::open(child.id()).unwrap();
        let names = names(&process, vec![address, address + 1, 0]).await;
        let code = code(&process).await;
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        child.wait().unwrap();

        assert_eq!(names.unwrap(), ["main.parse", "main.parse", ""]);
        let facts = format!("{code:?}");
        assert!(
            facts.contains("\"main.parse\": {\"sync.(*Pool).Get\", \"sync.(*Pool).Put\"}"),
            "{facts}"
        );
        assert!(
            facts.contains("\"main.parse\": {\"*main.command\"}"),
            "{facts}"
        );
        assert!(
            facts.contains("\"main.newBuffer\": {\"runtime.SetFinalizer\"}"),
            "{facts}"
        );
    }

    #[tokio::test]
    async fn other_programs_tell_nothing() {
        let me = Process::open(std::process::id()).unwrap();
        assert_eq!(code(&me).await, None);
        assert_eq!(names(&me, vec![0]).await, None);
    }
}
