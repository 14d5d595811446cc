//! `cargo xtask build`: the XDP program, then the agent with the program inside.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    attempt::{self, Memory},
    linker, process, toolchain,
    toolchain::Toolchain,
    workspace::{self, Metadata},
};

/// The variant of `sluice` that tells of each packet's way, of the same source.
const TRACED: &str = "traced";

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Release,
    Debug,
}

impl Profile {
    pub fn flag(self) -> &'static [&'static str] {
        match self {
            Self::Release => &["--release"],
            Self::Debug => &[],
        }
    }

    fn directory(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Debug => "debug",
        }
    }
}

/// Builds everything and returns the directory of the host binaries.
pub fn build(profile: Profile) -> Result<PathBuf> {
    objects()?;
    let start = Instant::now();
    process::run(
        process::cargo()
            .current_dir(workspace::root())
            .args(["build", "--package", "lb-agent"])
            .args(profile.flag())
            .args(process::quiet_unless_watched()),
    )?;
    let metadata = Metadata::own(&workspace::root().join("Cargo.toml"))?;
    let binaries = metadata.target_directory().join(profile.directory());
    let agent = workspace::shown(&binaries.join("lb-agent"));
    process::step("build", "agent", &format!("{agent}  ({:.1} s)", start.elapsed().as_secs_f32()));
    Ok(binaries)
}

/// Compiles lb-ebpf, one object per binary, and puts each in target/bpf if it is not already there.
pub fn objects() -> Result<()> {
    attempt::first_that_works(&Memory::new(), toolchain::find, objects_with)
}

fn objects_with(toolchain: &Toolchain) -> Result<()> {
    let start = Instant::now();
    let linker = linker::ensure(toolchain)?;
    let built = workspace::root().join("target/ebpf");
    if linker.is_new && built.exists() {
        fs::remove_dir_all(&built).with_context(|| format!("cannot remove {}", built.display()))?;
    }
    let traced = built.join(TRACED);
    compile(toolchain, &linker.path, &built, &["--bins"])?;
    compile(toolchain, &linker.path, &traced, &["--bin", "sluice", "--features", "trace"])?;

    let objects = workspace::objects();
    fs::create_dir_all(&objects).with_context(|| format!("cannot make {}", objects.display()))?;
    let names = Metadata::own(&workspace::ebpf_manifest())?.binaries("lb-ebpf");
    let mut all: Vec<_> = names.iter().map(|name| (&built, name.as_str(), name.as_str())).collect();
    all.push((&traced, "sluice", TRACED));
    for (built, binary, name) in all {
        let to = objects.join(format!("{name}.o"));
        let changed =
            copy_if_changed(&built.join(toolchain::TARGET).join("release").join(binary), &to)?;
        let detail = format!(
            "{}  via {toolchain}: {}  ({:.1} s)",
            workspace::shown(&to),
            state(&to, changed),
            start.elapsed().as_secs_f32()
        );
        process::step("build", "ebpf", &detail);
    }
    Ok(())
}

/// What the line about an object says of it.
fn state(object: &Path, changed: bool) -> String {
    if !changed {
        return "unchanged".into();
    }
    let size = fs::metadata(object).map_or(0, |file| file.len());
    format!("{} kB", size.div_ceil(1024))
}

fn compile(toolchain: &Toolchain, linker: &Path, into: &Path, what: &[&str]) -> Result<()> {
    let Some(arch) = kernel_arch(env::consts::ARCH) else {
        bail!("no eBPF register layout known for {}: see kernel_arch", env::consts::ARCH);
    };
    let mut flags = vec![
        "-Cdebuginfo=2".to_string(),
        "-Clink-arg=--btf".to_string(),
        // Without it LLVM calls a byte-wise memset for every struct that is cleared.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_string(),
        "-Ctarget-cpu=v3".to_string(),
        format!("-Clinker={}", linker.display()),
        format!("--cfg=bpf_target_arch=\"{arch}\""),
    ];
    // The same source and compiler give the same object wherever things lie.
    let homes = [
        (workspace::root().to_path_buf(), "."),
        (workspace::cargo_home(), "cargo"),
        (toolchain.compiler.sysroot.clone(), "rust"),
    ];
    flags.extend(homes.map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())));
    let mut cargo = toolchain.cargo();
    cargo
        .args(["build", "--release", "--target", toolchain::TARGET])
        .args(what)
        .args(process::quiet_unless_watched())
        .arg("--manifest-path")
        .arg(workspace::ebpf_manifest())
        .arg("--target-dir")
        .arg(into)
        // Wins over RUSTFLAGS and over config files, and allows blanks in paths.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    if toolchain.build_std {
        cargo.args(["-Z", "build-std=core"]);
    }
    process::run(&mut cargo)
        .with_context(|| format!("the XDP program does not compile ({toolchain})"))
}

/// aya-ebpf's name for the architecture the program will run on, which is the one it is built on.
fn kernel_arch(host: &str) -> Option<&'static str> {
    match host {
        "x86_64" => Some("x86_64"),
        "aarch64" => Some("aarch64"),
        "riscv64" => Some("riscv64"),
        "powerpc64" => Some("powerpc64"),
        "s390x" => Some("s390x"),
        _ => None,
    }
}

/// An untouched object keeps its time, so that the agent is not built again.
fn copy_if_changed(from: &Path, to: &Path) -> Result<bool> {
    let new = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(false);
    }
    // Renamed into place: whoever builds the agent meanwhile sees the old object or the new one.
    let part = to.with_extension("part");
    fs::write(&part, new)
        .and_then(|()| fs::rename(&part, to))
        .with_context(|| format!("cannot write {}", to.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The agent embeds the object and is built again when the file's time changes.
    #[test]
    fn an_object_that_came_out_the_same_is_left_alone() {
        let directory = env::temp_dir().join(format!("sluice-build-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (from, to) = (directory.join("new"), directory.join("sluice.o"));
        let mut seen = Vec::new();
        for contents in [vec![1; 1024], vec![1; 1024], vec![2; 1025]] {
            fs::write(&from, contents).unwrap();
            let changed = copy_if_changed(&from, &to).unwrap();
            seen.push(state(&to, changed));
            if changed {
                let old = std::time::SystemTime::UNIX_EPOCH;
                fs::File::open(&to).unwrap().set_modified(old).unwrap();
            }
            let time = fs::metadata(&to).unwrap().modified().unwrap();
            assert_eq!(time, std::time::SystemTime::UNIX_EPOCH, "after {seen:?}");
        }
        assert_eq!(fs::read(&to).unwrap(), [2; 1025]);
        fs::remove_dir_all(directory).unwrap();
        assert_eq!(seen, ["1 kB", "unchanged", "2 kB"]);
    }
}
