//! `cargo xtask cross`: what runs on edge machines, built for 64-bit ARM and tested under qemu's user-mode emulation.
//!
//! The compiler is the workspace's own when its libraries for the target are installed (`rustup target add`). Where rustup cannot
//! reach its server, `--fetch` unpacks Debian's compiler and its ARM libraries into the user's cache: no root, nothing installed.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, bail, ensure};
use cargo_metadata::TargetKind;
use clap::Args;

use crate::command::{cargo, status};
use crate::later::MISSING;
use crate::workspace::{Workspace, cache_dir, target_folder};

/// The processor that edge machines have.
const TARGET: &str = "aarch64-unknown-linux-gnu";
/// The linker that Debian ships for it.
const LINKER: &str = "aarch64-linux-gnu-gcc";
/// Where Debian's cross compiler keeps the target's C library.
const C_LIBRARY: &str = "/usr/aarch64-linux-gnu";
/// The crates that hold kernels for the processor or read files on it.
const TESTED: &[&str] = &["mneme-quant", "mneme-weights", "mneme-text"];
/// Random cases of each property: emulation is some twenty times slower.
const CASES: &str = "24";
/// The suite of Debian whose compiler is new enough.
const SUITE: &str = "sid";
/// What Debian's compiler consists of, with the libraries that it loads, so that the machine's own may be older.
const PACKAGES: &[&str] = &[
    "rustc:amd64",
    "libstd-rust-dev:amd64",
    "libstd-rust-dev:arm64",
    "libc6:amd64",
    "libgcc-s1:amd64",
    "libstdc++6:amd64",
    "zlib1g:amd64",
    "libzstd1:amd64",
    "libffi8:amd64",
    "libedit2:amd64",
    "libtinfo6:amd64",
    "libbsd0:amd64",
    "libmd0:amd64",
    "liblzma5:amd64",
];
/// Packages whose names carry a version; the newest by `apt-cache depends` is taken.
const DEPENDED_ON: &[(&str, &str)] =
    &[("libstd-rust-dev", "libstd-rust-"), ("LIBSTD", "libllvm"), ("LLVM", "libxml2"), ("LLVM", "libz3-")];

/// Options of `cross`.
#[derive(Debug, Args)]
pub(crate) struct CrossArguments {
    /// Unpack Debian's compiler into the user's cache if the workspace's own lacks the target (about 170 MB to download).
    #[arg(long)]
    fetch: bool,
    /// Also build the daemon and the client, in the release profile.
    #[arg(long)]
    programs: bool,
    /// Build the tests, but run none.
    #[arg(long)]
    no_run: bool,
    /// Handed to the tests.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds and tests, or says what is not installed for that.
pub(crate) fn run(workspace: &Workspace, arguments: &CrossArguments) -> anyhow::Result<ExitCode> {
    let mut missing = Vec::new();
    let compiler = compiler(arguments.fetch)?;
    if compiler.is_none() {
        missing.push(format!(
            "Rust's libraries for {TARGET} (rustup target add {TARGET}; or, with apt-get, cargo xtask cross --fetch)"
        ));
    }
    if !works(LINKER) {
        missing.push(format!("{LINKER} (Debian: apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross)"));
    }
    let emulator = ["qemu-aarch64-static", "qemu-aarch64"].into_iter().find(|program| works(program));
    if emulator.is_none() && !arguments.no_run {
        missing.push("qemu-aarch64 (Debian: apt install qemu-user-static)".to_owned());
    }
    let (Some(compiler), true) = (compiler, missing.is_empty()) else {
        println!("cargo xtask cross is not possible here; missing:");
        for part in missing {
            println!("  {part}");
        }
        return Ok(ExitCode::from(MISSING));
    };
    println!("compiler: {}", compiler.version);
    let with = |command: &mut Command| {
        if let Some(program) = &compiler.program {
            // Another compiler's artefacts: in the common folder each run would rebuild the other's.
            command.env("RUSTC", program).env("CARGO_TARGET_DIR", target_folder(&workspace.root).join("cross"));
        }
        command
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER)
            .env("CC_aarch64_unknown_linux_gnu", LINKER);
        if let Some(emulator) = emulator {
            let runner = format!("{emulator} -L {C_LIBRARY}");
            command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", runner);
        }
    };
    let mut command = cargo(&workspace.root);
    command.args(["test", "--target", TARGET, "--no-fail-fast", "--lib", "--bins", "--tests"]);
    TESTED.iter().for_each(|package| {
        command.args(["--package", package]);
    });
    if arguments.no_run {
        command.arg("--no-run");
    } else {
        // The tests of the kernels fail when the path that is to be tested is not among those that run.
        command.arg("--").args(&arguments.arguments);
        command.env("MNEME_EXPECT_PATH", "neoni8mm").env("PROPTEST_CASES", CASES);
    }
    with(&mut command);
    if !status(&mut command)?.success() {
        return Ok(ExitCode::FAILURE);
    }
    if arguments.programs {
        let mut command = cargo(&workspace.root);
        command.args(["build", "--release", "--target", TARGET]);
        for (package, program) in [("mneme-daemon", "mnemed"), ("mneme-cli", "mneme")] {
            if workspace.has_target(package, &TargetKind::Bin, program) {
                command.args(["--package", package]);
            }
        }
        with(&mut command);
        if !status(&mut command)?.success() {
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A compiler that has the target's libraries.
struct Compiler {
    /// A program in place of the workspace's own.
    program: Option<PathBuf>,
    version: String,
}

fn compiler(fetch: bool) -> anyhow::Result<Option<Compiler>> {
    let own = PathBuf::from(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    if let Some(version) = knows_target(&own)? {
        return Ok(Some(Compiler { program: None, version }));
    }
    let folder = cache_dir()?.join("cross-debian");
    let program = folder.join("rustc");
    if !program.is_file() {
        if !fetch {
            return Ok(None);
        }
        unpack_debian(&folder)?;
    }
    let version = knows_target(&program)?;
    let version = version.with_context(|| {
        format!(
            "{} does not run or lacks the target\nhint: remove {} and fetch again",
            program.display(),
            folder.display()
        )
    })?;
    Ok(Some(Compiler { program: Some(program), version }))
}

/// The compiler's version, if it has the libraries of the target.
fn knows_target(rustc: &Path) -> anyhow::Result<Option<String>> {
    let said = |arguments: &[&str]| -> anyhow::Result<String> {
        let output = Command::new(rustc).args(arguments).output();
        let output = output.with_context(|| format!("could not run {}", rustc.display()))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let libraries = said(&["--print", "target-libdir", "--target", TARGET])?;
    // The folder may be there without libraries; the core library is what every build starts from.
    let has_core = fs_err::read_dir(libraries).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    });
    Ok(if has_core { Some(said(&["--version"])?) } else { None })
}

/// Downloads Debian's packages with apt in a folder of its own, and unpacks them beside a program that starts the compiler with the C
/// library that it was built for.
fn unpack_debian(folder: &Path) -> anyhow::Result<()> {
    for program in ["apt-get", "apt-cache", "dpkg-deb"] {
        ensure!(works(program), "{program} is needed to fetch Debian's compiler");
    }
    let staging = folder.with_extension("partial");
    if staging.exists() {
        fs_err::remove_dir_all(&staging)?;
    }
    let (lists, packages, root) = (staging.join("lists"), staging.join("packages"), staging.join("root"));
    for part in [lists.join("partial"), staging.join("cache/archives/partial"), packages.clone(), root.clone()] {
        fs_err::create_dir_all(part)?;
    }
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let source = format!("deb [arch=amd64,arm64 signed-by={keys}] http://deb.debian.org/debian {SUITE} main\n");
    fs_err::write(staging.join("sources.list"), source)?;
    let apt = |program: &str| {
        let mut command = Command::new(program);
        command.current_dir(&packages).args([
            "-o".to_owned(),
            format!("Dir::Etc::sourcelist={}", staging.join("sources.list").display()),
            "-o".to_owned(),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            "-o".to_owned(),
            format!("Dir::State::lists={}", lists.display()),
            "-o".to_owned(),
            format!("Dir::Cache={}", staging.join("cache").display()),
            "-o".to_owned(),
            "APT::Architectures::=arm64".to_owned(),
        ]);
        command
    };
    ensure!(status(apt("apt-get").args(["--quiet", "update"]))?.success(), "apt-get update failed");
    let mut wanted: Vec<String> = PACKAGES.iter().map(|name| (*name).to_owned()).collect();
    let (mut standard, mut llvm) = (String::new(), String::new());
    for (of, start) in DEPENDED_ON {
        let of = match *of {
            "LIBSTD" => standard.as_str(),
            "LLVM" => llvm.as_str(),
            other => other,
        };
        let output = apt("apt-cache").args(["depends", &format!("{of}:amd64")]).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let found = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with(start))
            .with_context(|| format!("{of} depends on no {start}*: Debian's packages have changed"))?;
        let name = found.split(':').next().unwrap_or(found).to_owned();
        match *start {
            "libstd-rust-" => standard.clone_from(&name),
            "libllvm" => llvm.clone_from(&name),
            _ => {}
        }
        wanted.push(format!("{name}:amd64"));
    }
    ensure!(status(apt("apt-get").args(["--quiet", "download"]).args(&wanted))?.success(), "apt-get download failed");
    for entry in fs_err::read_dir(&packages)? {
        let package = entry?.path();
        let mut command = Command::new("dpkg-deb");
        if !command.arg("--extract").arg(&package).arg(&root).status()?.success() {
            bail!("{} could not be unpacked", package.display());
        }
    }
    for spare in [&packages, &lists, &staging.join("cache"), &root.join("usr/share")] {
        fs_err::remove_dir_all(spare)?;
    }
    let script = "#!/bin/sh\n\
        # Debian's compiler with the C library that it was built for: the machine's own may be older.\n\
        root=$(dirname \"$0\")/root\n\
        libraries=$root/usr/lib/x86_64-linux-gnu\n\
        exec \"$libraries/ld-linux-x86-64.so.2\" --library-path \"$libraries:$root/usr/lib\" --argv0 rustc \\\n\
        \x20   \"$root/usr/bin/rustc\" --sysroot \"$root/usr\" \"$@\"\n";
    let program = staging.join("rustc");
    fs_err::write(&program, script)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs_err::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    }
    fs_err::rename(&staging, folder)?;
    Ok(())
}

fn works(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
