//! Which compiler can compile for BPF.
//!
//! A compiler needs `core` for the target: built on the way from rust-src, or ready-made as in Debian's packages.
//! `choose` decides from facts alone; `find` gathers the facts and acts until there is a compiler or an instruction.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::{
    process,
    provision::{self, Package, library, program},
    rust_src,
};

pub const TARGET: &str = "bpfel-unknown-none";

/// aya-ebpf needs 1.87, the workspace 1.91.
const OLDEST: (u32, u32) = (1, 91);

/// Debian ships a newer compiler for its browsers, with `core` for BPF beside it. The LLVM is for bpf-linker.
pub const DEBIAN: &[Package] = &[
    library("rustc-web"),
    library("libstd-rust-web-dev-bpf"),
    library("llvm-22-dev"),
    library("libpolly-22-dev"),
    library("libzstd-dev"),
    library("zlib1g-dev"),
    program("gcc", "cc"),
    // Without recommended packages gcc comes without it, and links nothing.
    library("libc6-dev"),
];

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiler {
    pub rustc: PathBuf,
    pub sysroot: PathBuf,
    /// `1.95.0`, `1.97.0-nightly`
    pub release: String,
    /// Major version of its LLVM: the linker's must be the same.
    pub llvm: u32,
    pub rust_src: bool,
    pub bpf_core: bool,
}

/// A compiler and the way to get `core` with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    pub compiler: Compiler,
    pub build_std: bool,
}

#[derive(Debug, Default)]
struct Facts {
    /// The one in PATH first, then rustup's nightly toolchains, then Debian's.
    compilers: Vec<Compiler>,
    /// Keys of the toolchains that were tried in vain.
    failed: Vec<String>,
    /// rustup is there, and adding rust-src has not failed lately.
    can_add_rust_src: bool,
    /// Root, apt-get, and not tried yet.
    can_install: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Use(Toolchain),
    AddRustSrc,
    InstallDebian,
    Nothing,
}

fn choose(facts: &Facts) -> Choice {
    let usable = || facts.compilers.iter().filter(|compiler| recent(&compiler.release));
    let untried = |toolchain: &Toolchain| !facts.failed.contains(&toolchain.key());
    let mut with_rust_src =
        usable().filter(|it| it.rust_src).map(|it| Toolchain::new(it, true)).peekable();
    // rust-src for a toolchain that fails with it helps nobody.
    let has_rust_src = with_rust_src.peek().is_some();
    if let Some(toolchain) = with_rust_src.find(untried) {
        return Choice::Use(toolchain);
    }
    if facts.can_add_rust_src && !has_rust_src {
        return Choice::AddRustSrc;
    }
    let mut with_core = usable().filter(|it| it.bpf_core).map(|it| Toolchain::new(it, false));
    if let Some(toolchain) = with_core.find(untried) {
        return Choice::Use(toolchain);
    }
    if facts.can_install { Choice::InstallDebian } else { Choice::Nothing }
}

fn recent(release: &str) -> bool {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) >= OLDEST,
        _ => false,
    }
}

/// Finds a compiler that is not among those that failed, or makes one available, or says what to do.
pub fn find(failed: &[String]) -> Result<Toolchain> {
    let mut may_install = provision::can_install();
    let mut may_add = true;
    loop {
        let facts = Facts {
            compilers: compilers(),
            failed: failed.to_vec(),
            can_add_rust_src: may_add
                && process::find_program("rustup").is_some()
                && !rust_src::failed_lately(),
            can_install: may_install,
        };
        match choose(&facts) {
            Choice::Use(toolchain) => return Ok(toolchain),
            Choice::AddRustSrc => {
                may_add = false;
                rust_src::add();
            }
            Choice::InstallDebian => {
                may_install = false;
                provision::packages("compiling for BPF", DEBIAN)?;
            }
            Choice::Nothing => bail!(
                "no compiler for {TARGET} here: needs Rust {}.{} or newer with rust-src, or with a prebuilt core\n\
                 with rustup:  rustup component add rust-src\n\
                 on Debian 12: {}\n\
                 then again:   cargo xtask build",
                OLDEST.0,
                OLDEST.1,
                provision::by_hand(&provision::missing(DEBIAN))
            ),
        }
    }
}

impl Toolchain {
    fn new(compiler: &Compiler, build_std: bool) -> Self {
        Self { compiler: compiler.clone(), build_std }
    }

    /// What it is known by from one run to the next, in one line; another version is another toolchain.
    pub fn key(&self) -> String {
        format!("{} ({self})", self.compiler.rustc.display())
    }

    /// The cargo that goes with the compiler: build-std wants the one of the same toolchain, while Debian's cargo
    /// is older than its compiler.
    pub fn cargo(&self) -> Command {
        let own = self.compiler.sysroot.join("bin/cargo");
        let mut command = if self.build_std && own.is_file() {
            process::cargo_at(&own)
        } else {
            process::cargo()
        };
        // aya-ebpf uses an unstable feature, and so does -Z build-std.
        command.env("RUSTC", &self.compiler.rustc).env("RUSTC_BOOTSTRAP", "1");
        command.env_remove("RUSTC_WRAPPER").env_remove("RUSTC_WORKSPACE_WRAPPER");
        command
    }
}

impl std::fmt::Display for Toolchain {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Compiler { rustc, release, .. } = &self.compiler;
        let origin = if rustc == Path::new(DEBIAN_RUSTC) { "Debian rustc" } else { "rustc" };
        let core = if self.build_std { "core from rust-src" } else { "prebuilt core" };
        write!(out, "{origin} {release}, {core}")
    }
}

fn compilers() -> Vec<Compiler> {
    let mut places: Vec<PathBuf> = process::find_program("rustc").into_iter().collect();
    places.extend(nightly_toolchains());
    places.push(PathBuf::from(DEBIAN_RUSTC));
    let mut found: Vec<Compiler> = Vec::new();
    for compiler in places.iter().filter_map(|rustc| inspect(rustc)) {
        if !found.iter().any(|known| known.sysroot == compiler.sysroot) {
            found.push(compiler);
        }
    }
    found
}

/// rustc of each installed nightly. `rustup run` is avoided, for it may download a toolchain.
fn nightly_toolchains() -> Vec<PathBuf> {
    let Ok(home) = process::stdout(Command::new("rustup").args(["show", "home"])) else {
        return Vec::new();
    };
    let entries = fs::read_dir(Path::new(home.trim()).join("toolchains")).into_iter().flatten();
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("nightly"))
        .map(|entry| entry.path().join("bin/rustc"))
        .collect()
}

/// Looks into the sysroot: a rustc of some other version at Debian's place must not be taken for Debian's.
fn inspect(rustc: &Path) -> Option<Compiler> {
    let ask = |args: &[&str]| process::stdout(Command::new(rustc).args(args)).ok();
    let version = ask(&["--version", "--verbose"])?;
    let field = |name: &str| version.lines().find_map(|line| line.strip_prefix(name));
    let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?.trim());
    let rustlib = sysroot.join("lib/rustlib");
    // A rustup proxy would choose again in another directory: keep what it chose here.
    let chosen = sysroot.join("bin/rustc");
    Some(Compiler {
        rustc: if chosen.is_file() { chosen } else { rustc.to_path_buf() },
        release: field("release: ")?.to_string(),
        llvm: field("LLVM version: ")?.split('.').next()?.parse().ok()?,
        rust_src: rustlib.join("src/rust/library/core/src/lib.rs").is_file(),
        bpf_core: has_core(&rustlib.join(TARGET).join("lib")),
        sysroot,
    })
}

fn has_core(libraries: &Path) -> bool {
    fs::read_dir(libraries).into_iter().flatten().flatten().any(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiler(place: &str, release: &str, rust_src: bool, bpf_core: bool) -> Compiler {
        Compiler {
            rustc: PathBuf::from(place).join("bin/rustc"),
            sysroot: PathBuf::from(place),
            release: release.into(),
            llvm: 22,
            rust_src,
            bpf_core,
        }
    }

    fn facts(compilers: Vec<Compiler>, can_add_rust_src: bool, can_install: bool) -> Facts {
        Facts { compilers, failed: Vec::new(), can_add_rust_src, can_install }
    }

    fn used(choice: Choice) -> Option<(String, bool)> {
        match choice {
            Choice::Use(it) => Some((it.compiler.sysroot.display().to_string(), it.build_std)),
            _ => None,
        }
    }

    #[test]
    fn rust_src_comes_before_a_prebuilt_core() {
        let both = vec![
            compiler("/rustup", "1.95.0", true, false),
            compiler("/usr", "1.96.0", false, true),
        ];
        assert_eq!(used(choose(&facts(both, true, true))), Some(("/rustup".into(), true)));
    }

    #[test]
    fn rust_src_is_tried_before_a_prebuilt_core_and_once_only() {
        let debian = || vec![compiler("/usr", "1.96.0", false, true)];
        assert_eq!(choose(&facts(debian(), true, true)), Choice::AddRustSrc);
        assert_eq!(used(choose(&facts(debian(), false, true))), Some(("/usr".into(), false)));
    }

    #[test]
    fn a_compiler_without_the_target_is_not_taken() {
        let plain = || vec![compiler("/usr", "1.96.0", false, false)];
        assert_eq!(choose(&facts(plain(), false, true)), Choice::InstallDebian);
        assert_eq!(choose(&facts(plain(), false, false)), Choice::Nothing);
    }

    #[test]
    fn a_compiler_too_old_is_not_taken() {
        let old = || vec![compiler("/usr", "1.63.0", true, true)];
        assert_eq!(choose(&facts(old(), false, true)), Choice::InstallDebian);
        assert!(recent("1.91.0") && recent("1.97.0-nightly") && recent("2.0.0"));
        assert!(!recent("1.90.1") && !recent("unknown"));
    }

    #[test]
    fn a_nightly_with_rust_src_serves_where_the_stable_has_none() {
        let both = vec![
            compiler("/stable", "1.95.0", false, false),
            compiler("/nightly", "1.97.0-nightly", true, false),
        ];
        assert_eq!(used(choose(&facts(both, true, true))), Some(("/nightly".into(), true)));
    }

    #[test]
    fn after_a_failure_with_rust_src_the_prebuilt_core_is_next() {
        let all = || {
            vec![
                compiler("/rustup", "1.95.0", true, false),
                compiler("/usr", "1.96.0", false, true),
            ]
        };
        let failed = vec![Toolchain::new(&all()[0], true).key()];
        let facts = |compilers| Facts { failed: failed.clone(), ..facts(compilers, true, true) };
        assert_eq!(used(choose(&facts(all()))), Some(("/usr".into(), false)));
        assert_eq!(choose(&facts(all()[..1].to_vec())), Choice::InstallDebian);
    }

    #[test]
    fn after_all_have_failed_there_is_nothing() {
        let all = vec![
            compiler("/rustup", "1.95.0", true, false),
            compiler("/usr", "1.96.0", false, true),
        ];
        let failed =
            vec![Toolchain::new(&all[0], true).key(), Toolchain::new(&all[1], false).key()];
        assert_eq!(choose(&Facts { failed, ..facts(all, true, false) }), Choice::Nothing);
    }

    #[test]
    fn a_newer_version_at_the_same_place_is_another_toolchain() {
        let old = Toolchain::new(&compiler("/rustup", "1.95.0", true, false), true);
        let new = compiler("/rustup", "1.96.0", true, false);
        let facts = Facts { failed: vec![old.key()], ..facts(vec![new], false, false) };
        assert_eq!(used(choose(&facts)), Some(("/rustup".into(), true)));
    }
}
