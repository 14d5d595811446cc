//! One toolchain after another, until one does the work.
//!
//! That a compiler is there says little: its LLVM may be one that bpf-linker cannot be linked with. What failed is
//! passed over for the rest of the run, and for a while after another toolchain has done the same work.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Error, Result};

use crate::{process, toolchain::Toolchain, workspace};

/// How long something that failed is not tried again.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// What has worked, and what has failed where another worked.
pub struct Memory {
    worked: PathBuf,
    failed: PathBuf,
}

impl Memory {
    pub fn new() -> Self {
        Self::at(&workspace::root().join("target/tools"))
    }

    fn at(directory: &Path) -> Self {
        Self {
            worked: directory.join("toolchain-worked"),
            failed: directory.join("toolchains-failed"),
        }
    }

    fn failed(&self) -> Vec<String> {
        if !is_fresh(&self.failed) {
            return Vec::new();
        }
        lines(&self.failed)
    }

    fn has_worked(&self, toolchain: &Toolchain) -> bool {
        lines(&self.worked).contains(&toolchain.key())
    }

    /// Not being able to remember costs the next build time, no more.
    fn remember(&self, worked: &Toolchain, failed: &[String]) {
        let _ = self.worked.parent().map(fs::create_dir_all);
        let _ = fs::write(&self.worked, worked.key() + "\n");
        if !failed.is_empty() {
            let _ = fs::write(&self.failed, failed.join("\n") + "\n");
        }
    }
}

/// Whether a file that remembers a failure is recent enough to be believed.
pub fn is_fresh(file: &Path) -> bool {
    fs::metadata(file)
        .and_then(|file| file.modified())
        .is_ok_and(|time| SystemTime::now().duration_since(time).unwrap_or_default() < REMEMBERED)
}

fn lines(file: &Path) -> Vec<String> {
    fs::read_to_string(file).unwrap_or_default().lines().map(String::from).collect()
}

/// Does `work` with the first toolchain that it works with. `find` gets the keys of those that it must not name.
///
/// A toolchain that has worked before is not doubted: if it fails now, the source is wrong, and nobody wants another
/// compiler installed for a missing semicolon.
pub fn first_that_works(
    memory: &Memory,
    mut find: impl FnMut(&[String]) -> Result<Toolchain>,
    mut work: impl FnMut(&Toolchain) -> Result<()>,
) -> Result<()> {
    let mut excluded = memory.failed();
    let mut failed: Vec<String> = Vec::new();
    let mut first: Option<Error> = None;
    loop {
        let toolchain = match (find(&excluded), first.take()) {
            (Ok(toolchain), earlier) => {
                first = earlier;
                toolchain
            }
            // Nothing is left but what failed the other day: that may have changed.
            (Err(_), None) if !excluded.is_empty() => {
                let _ = fs::remove_file(&memory.failed);
                excluded.clear();
                find(&excluded)?
            }
            (Err(error), None) => return Err(error),
            (Err(none), Some(error)) => return Err(error.context(format!("{none:#}"))),
        };
        let Err(error) = work(&toolchain) else {
            if !failed.is_empty() || !memory.has_worked(&toolchain) {
                memory.remember(&toolchain, &excluded);
            }
            return Ok(());
        };
        if memory.has_worked(&toolchain) || excluded.contains(&toolchain.key()) {
            return Err(error);
        }
        // All that a failed command wrote is for the case that nothing else works.
        let text = format!("{error:#}");
        let reason = text.lines().next().unwrap_or_default();
        process::step("build", "ebpf", &format!("not with {toolchain}: {reason}"));
        excluded.push(toolchain.key());
        failed.push(toolchain.key());
        first.get_or_insert(error);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use anyhow::{anyhow, bail};

    use super::*;
    use crate::toolchain::Compiler;

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let name = format!("sluice-attempt-{}-{name}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }

        fn memory(&self) -> Memory {
            Memory::at(&self.0)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn toolchain(place: &str) -> Toolchain {
        let compiler = Compiler {
            rustc: PathBuf::from(place).join("bin/rustc"),
            sysroot: PathBuf::from(place),
            release: "1.95.0".into(),
            llvm: 22,
            rust_src: false,
            bpf_core: true,
        };
        Toolchain { compiler, build_std: false }
    }

    fn find(excluded: &[String]) -> Result<Toolchain> {
        let all = ["/rustup", "/usr"].map(toolchain);
        let left = all.into_iter().find(|it| !excluded.contains(&it.key()));
        left.ok_or_else(|| anyhow!("no compiler is left"))
    }

    /// Which places were tried, and what came of it.
    fn attempt(place: &Place, good: &[&str]) -> (Vec<String>, Result<()>) {
        let tried = RefCell::new(Vec::new());
        let result = first_that_works(&place.memory(), find, |toolchain| {
            let sysroot = toolchain.compiler.sysroot.display().to_string();
            tried.borrow_mut().push(sysroot.clone());
            if good.contains(&sysroot.as_str()) {
                return Ok(());
            }
            bail!("{sysroot} does not link")
        });
        (tried.into_inner(), result)
    }

    #[test]
    fn the_next_one_is_tried_and_the_failure_remembered() {
        let place = Place::new("next");
        let (tried, result) = attempt(&place, &["/usr"]);
        assert!(result.is_ok());
        assert_eq!(tried, ["/rustup", "/usr"]);
        assert_eq!(attempt(&place, &["/usr"]).0, ["/usr"], "a minute is not spent on it again");
        assert_eq!(attempt(&place, &["/usr"]).0, ["/usr"]);
    }

    #[test]
    fn where_none_works_the_first_failure_is_told_and_none_is_remembered() {
        let place = Place::new("none");
        let (tried, result) = attempt(&place, &[]);
        assert_eq!(tried, ["/rustup", "/usr"]);
        let error = format!("{:#}", result.unwrap_err());
        assert!(error.contains("/rustup does not link"), "{error}");
        assert!(error.contains("no compiler is left"), "{error}");
        assert_eq!(attempt(&place, &["/rustup"]).0, ["/rustup"]);
    }

    #[test]
    fn one_that_has_worked_is_not_replaced_when_the_source_is_wrong() {
        let place = Place::new("source");
        assert!(attempt(&place, &["/rustup"]).1.is_ok());
        let (tried, result) = attempt(&place, &["/usr"]);
        assert_eq!(tried, ["/rustup"]);
        assert_eq!(result.unwrap_err().to_string(), "/rustup does not link");
    }

    #[test]
    fn what_failed_is_tried_again_when_nothing_else_is_left() {
        let place = Place::new("again");
        let memory = place.memory();
        memory.remember(&toolchain("/gone"), &["/rustup", "/usr"].map(|it| toolchain(it).key()));
        let (tried, result) = attempt(&place, &["/rustup"]);
        assert!(result.is_ok());
        assert_eq!(tried, ["/rustup"]);
    }
}
