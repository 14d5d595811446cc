//! bpf-linker: pinned, built once from source into target/tools.
//!
//! It reads the compiler's bitcode, so it must be linked with an LLVM of the compiler's major version: the one inside
//! a rustup toolchain will do as well as Debian's package.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{process, provision, toolchain::Toolchain, workspace};

const VERSION: &str = "0.13.0";

/// The majors this version of bpf-linker has a feature for.
const LLVMS: std::ops::RangeInclusive<u32> = 21..=23;

/// A shared LLVM that can be linked with.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Llvm {
    /// A prefix as Debian's packages make it.
    Prefix(PathBuf),
    /// The library inside a rustup toolchain, which has no prefix around it.
    Library(PathBuf),
}

/// The linker's path, and whether it is new: what was linked with another one must be linked again.
pub struct Linker {
    pub path: PathBuf,
    pub is_new: bool,
}

pub fn ensure(toolchain: &Toolchain) -> Result<Linker> {
    let major = toolchain.compiler.llvm;
    if !LLVMS.contains(&major) {
        bail!(
            "{toolchain} has LLVM {major}; bpf-linker {VERSION} knows {} to {}\n\
             use a Rust toolchain of that age, or raise the pin in xtask/src/linker.rs",
            LLVMS.start(),
            LLVMS.end()
        );
    }
    let llvm = find_llvm(toolchain)?;
    let tools = workspace::root().join("target/tools");
    let path = tools.join("bin/bpf-linker");
    let stamp = tools.join("bpf-linker.stamp");
    let wanted = format!("bpf-linker {VERSION} llvm-{major} {llvm:?}\n");
    if is_current(&path, &stamp, &wanted) {
        return Ok(Linker { path, is_new: false });
    }
    process::step(
        "install",
        "linker",
        &format!("bpf-linker {VERSION} with LLVM {major} into target/tools, once, about a minute"),
    );
    let prefix = match &llvm {
        Llvm::Prefix(prefix) => prefix.clone(),
        Llvm::Library(library) => wrap(library, &tools.join("llvm"))?,
    };
    process::quiet(
        process::cargo()
            .args(["install", "bpf-linker", "--version", VERSION, "--locked", "--force"])
            .args(["--no-default-features", "--features", &format!("llvm-{major}"), "--root"])
            .arg(&tools)
            .env("LLVM_PREFIX", prefix)
            .env_remove("CARGO_TARGET_DIR"),
    )
    .context("bpf-linker, which links the XDP program, could not be built")?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(Linker { path, is_new: true })
}

/// Whether the linker that is there is the wanted one, of this version and with this LLVM.
fn is_current(linker: &Path, stamp: &Path, wanted: &str) -> bool {
    linker.is_file() && fs::read_to_string(stamp).is_ok_and(|installed| installed == wanted)
}

fn find_llvm(toolchain: &Toolchain) -> Result<Llvm> {
    let major = toolchain.compiler.llvm;
    let look = || {
        let inside = library_in(&toolchain.compiler.sysroot.join("lib"), major);
        let prefix = PathBuf::from(format!("/usr/lib/llvm-{major}"));
        let packaged = prefix.join("lib/libLLVM.so").is_file().then_some(Llvm::Prefix(prefix));
        // Debian's own rustc lives in /usr, whose libLLVM lacks what a linker needs.
        if toolchain.build_std { inside.or(packaged) } else { packaged }
    };
    if let Some(llvm) = look() {
        return Ok(llvm);
    }
    let names = [format!("llvm-{major}-dev"), format!("libpolly-{major}-dev")];
    let debian: Vec<&str> =
        names.iter().map(String::as_str).chain(["libzstd-dev", "zlib1g-dev"]).collect();
    if major == 22 {
        provision::packages("bpf-linker", crate::toolchain::DEBIAN)?;
    }
    look().with_context(|| {
        format!(
            "no LLVM {major} to link bpf-linker with\ninstall it: {}",
            provision::by_hand(&debian)
        )
    })
}

/// rustup's toolchains name it `libLLVM.so.22.1-rust-1.95.0-stable`.
fn library_in(directory: &Path, major: u32) -> Option<Llvm> {
    let start = format!("libLLVM.so.{major}.");
    fs::read_dir(directory)
        .ok()?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&start))
        .map(|entry| Llvm::Library(entry.path()))
}

/// Makes a prefix around the library: `libLLVM.so` to link with, and its own name to be found by at run time.
fn wrap(library: &Path, prefix: &Path) -> Result<PathBuf> {
    let directory = prefix.join("lib");
    let make = || {
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)?;
        symlink(library, directory.join("libLLVM.so"))?;
        symlink(library, directory.join(library.file_name().unwrap_or_default()))
    };
    make().with_context(|| {
        format!("cannot link {} into {}", library.display(), directory.display())
    })?;
    Ok(prefix.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_of_a_rustup_toolchain_is_found_by_its_major_version() {
        let directory = std::env::temp_dir().join(format!("sluice-llvm-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let library = directory.join("libLLVM.so.22.1-rust-1.95.0-stable");
        fs::write(&library, b"").unwrap();
        let found = (library_in(&directory, 22), library_in(&directory, 23));
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(found, (Some(Llvm::Library(library)), None));
    }

    #[test]
    fn the_linker_is_built_once_for_a_version_and_an_llvm() {
        let directory = std::env::temp_dir().join(format!("sluice-linker-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (linker, stamp) = (directory.join("bpf-linker"), directory.join("stamp"));
        let mut seen = Vec::new();
        fs::write(&stamp, "llvm-22").unwrap();
        seen.push(is_current(&linker, &stamp, "llvm-22"));
        fs::write(&linker, b"").unwrap();
        seen.push(is_current(&linker, &stamp, "llvm-22"));
        seen.push(is_current(&linker, &stamp, "llvm-23"));
        fs::remove_file(&stamp).unwrap();
        seen.push(is_current(&linker, &stamp, "llvm-22"));
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(seen, [false, true, false, false]);
    }
}
