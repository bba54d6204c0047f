//! What the file of a local Go program tells beside its profiles.

use std::fs::File;

use memtrace_analysis::leaks::Code;
use memtrace_collect::Process;
use memtrace_formats::goexe::Program;

/// Which function of the program's own code calls what leak patterns are told by.
/// `None` where the file cannot be read, or is no Go program. It takes some 20 ms for
/// each 10 MB of code, away from the tasks that must answer; nothing is kept but the
/// result.
pub(crate) async fn code(process: &Process) -> Option<Code> {
    with(process, |mut program| {
        let callers = program.callers(Code::matters).ok()?;
        Some(Code::new(program.functions(), callers))
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
