//! `cargo test` as a child whose output is passed on and read along: which binary ran, and what became of its tests.

use std::{
    io::{BufRead as _, BufReader},
    process::Command,
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::process;

/// What one test binary reported.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Binary {
    /// As cargo names it: `unittests src/lib.rs`, `tests/packets.rs`, `Doc-tests lb_common`.
    pub name: String,
    pub package: String,
    pub passed: u32,
    pub failed: u32,
    pub ignored: u32,
    pub seconds: f32,
    pub finished: bool,
}

/// Reads cargo's and the test runner's lines in the order in which they were written.
#[derive(Debug, Default)]
pub struct Reader {
    binaries: Vec<Binary>,
}

impl Reader {
    pub fn line(&mut self, line: &str) {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix("Running ") {
            // `Running tests/packets.rs (target/debug/deps/packets-0a1b2c)`
            if let Some((name, file)) = rest.rsplit_once(" (") {
                self.begin(name, package_of(file.trim_end_matches(')')));
            }
        } else if let Some(package) = line.strip_prefix("Doc-tests ") {
            self.begin(line, package);
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            let Some(result) = parse_result(counts) else { return };
            match self.binaries.last_mut().filter(|binary| !binary.finished) {
                Some(binary) => {
                    let (name, package) = (binary.name.clone(), binary.package.clone());
                    *binary = Binary { name, package, ..result };
                }
                None => self.binaries.push(Binary { name: "?".into(), ..result }),
            }
        }
    }

    fn begin(&mut self, name: &str, package: &str) {
        self.binaries.push(Binary {
            name: name.into(),
            package: package.into(),
            ..Binary::default()
        });
    }

    /// A binary that died, and a build that failed, count as one failure: no number must hide them.
    pub fn finish(mut self, success: bool) -> Vec<Binary> {
        for binary in self.binaries.iter_mut().filter(|binary| !binary.finished) {
            binary.failed = 1;
        }
        if !success && self.binaries.iter().all(|binary| binary.failed == 0) {
            self.binaries.push(Binary { name: "build".into(), failed: 1, ..Binary::default() });
        }
        self.binaries
    }
}

/// `target/debug/deps/lb_agent-0a1b2c3d` is of `lb_agent`.
fn package_of(file: &str) -> &str {
    let stem = file.rsplit('/').next().unwrap_or(file);
    stem.rsplit_once('-').map_or(stem, |(name, _)| name)
}

/// `ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.05s`
fn parse_result(counts: &str) -> Option<Binary> {
    let (_, counts) = counts.split_once(". ")?;
    let mut result = Binary { finished: true, ..Binary::default() };
    for part in counts.split(';').map(str::trim) {
        if let Some(time) = part.strip_prefix("finished in ") {
            result.seconds = time.trim_end_matches('s').parse().ok()?;
        } else if let Some((number, what)) = part.split_once(' ') {
            let number = number.parse().ok()?;
            match what {
                "passed" => result.passed = number,
                "failed" => result.failed = number,
                "ignored" => result.ignored = number,
                _ => {}
            }
        }
    }
    Some(result)
}

/// How long to wait for more output once cargo has ended.
const LAST_LINES: Duration = Duration::from_secs(5);

/// Runs cargo, passing both its streams on through one pipe so that their order is kept.
pub fn run(mut command: Command) -> Result<Vec<Binary>> {
    let (reader, writer) = std::io::pipe().context("no pipe for the tests' output")?;
    command.env("CARGO_TERM_COLOR", "never").stdout(writer.try_clone()?).stderr(writer);
    let mut child =
        command.spawn().with_context(|| format!("cannot run `{}`", process::display(&command)))?;
    // It holds the pipe's writing end: as long as it lives, reading has no end.
    drop(command);

    // Read beside, for a process that a failed test left behind may hold the pipe open for ever.
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut results = Reader::default();
    loop {
        match lines.recv_timeout(LAST_LINES) {
            Ok(line) => {
                let line = String::from_utf8_lossy(&line);
                println!("{line}");
                results.line(&line);
            }
            Err(RecvTimeoutError::Timeout) if child.try_wait()?.is_some() => break,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait().context("lost the tests' exit status")?;
    Ok(results.finish(status.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &str, success: bool) -> Vec<Binary> {
        let mut reader = Reader::default();
        lines.lines().for_each(|line| reader.line(line));
        reader.finish(success)
    }

    const GOOD: &str = "\
   Compiling tests v0.1.0
     Running unittests src/lib.rs (target/debug/deps/lb_agent-0a1b2c3d)

running 2 tests
test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.05s

     Running tests/packets.rs (target/debug/deps/packets-0a1b2c3d)
test result: FAILED. 40 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s
   Doc-tests lb_common
test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s
";

    #[test]
    fn counts_are_read_binary_by_binary() {
        let binaries = read(GOOD, false);
        let counts: Vec<_> = binaries
            .iter()
            .map(|it| (it.package.as_str(), it.name.as_str(), it.passed, it.failed, it.ignored))
            .collect();
        assert_eq!(
            counts,
            [
                ("lb_agent", "unittests src/lib.rs", 12, 0, 1),
                ("packets", "tests/packets.rs", 40, 2, 0),
                ("lb_common", "Doc-tests lb_common", 3, 0, 0),
            ]
        );
        assert!((binaries[1].seconds - 1.5).abs() < 1e-6);
    }

    #[test]
    fn a_binary_that_dies_is_a_failure() {
        let binaries = read("     Running tests/e2e.rs (target/debug/deps/e2e-12)\nSIGSEGV", false);
        assert_eq!((binaries.len(), binaries[0].passed, binaries[0].failed), (1, 0, 1));
    }

    #[test]
    fn a_build_that_fails_is_a_failure() {
        let binaries = read("error: could not compile `tests`", false);
        assert_eq!(
            (binaries.len(), binaries[0].name.as_str(), binaries[0].failed),
            (1, "build", 1)
        );
    }

    #[test]
    fn a_process_left_behind_does_not_keep_us_waiting() {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo 'Running a (b/c-d)'; echo 'test result: ok. 7 passed'; sleep 60 &"]);
        let start = std::time::Instant::now();
        let binaries = run(command).unwrap();
        assert_eq!((binaries.len(), binaries[0].passed, binaries[0].failed), (1, 7, 0));
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn nothing_to_run_is_no_failure() {
        assert_eq!(read("    Finished `test` profile", true), []);
    }

    #[test]
    fn what_a_test_prints_is_not_taken_for_a_result() {
        let binaries = read("Running away\ntest result: none\nDoc-tests", true);
        assert_eq!(binaries, []);
    }
}
