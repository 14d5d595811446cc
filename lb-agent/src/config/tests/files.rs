//! Files that cannot be read, and texts that are no configuration at all.

use super::*;
use proptest::prelude::*;
use std::path::PathBuf;

/// A file of this test's own, gone afterwards.
struct TestFile(PathBuf);

impl TestFile {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path =
            std::env::temp_dir().join(format!("sluice-config-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Self(path)
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_good_file_is_loaded() {
    let file = TestFile::new("good.toml", minimal().as_bytes());
    assert_eq!(load(&file.0), Ok(valid(&minimal())));
}

#[test]
fn errors_name_the_file_as_the_caller_does() {
    let file = TestFile::new("bad.toml", b"x = 1");
    let errors = load(&file.0).unwrap_err().to_string();
    assert!(
        errors.starts_with(&format!("{}:1: key \"x\" is not known", file.0.display())),
        "{errors}"
    );
}

#[test]
fn a_missing_file() {
    assert_eq!(
        load("/nonexistent/edge.toml").unwrap_err().to_string(),
        "/nonexistent/edge.toml: cannot be read: No such file or directory (os error 2): \
         name a file that this user may read"
    );
}

#[test]
fn a_directory() {
    let errors = load("/").unwrap_err().to_string();
    assert!(errors.starts_with("/: cannot be read: Is a directory"), "{errors}");
}

#[test]
fn a_file_that_is_not_utf8() {
    let file = TestFile::new("latin1.toml", b"[edge]\nname = \"caf\xe9\"\n");
    assert_eq!(
        load(&file.0).unwrap_err().to_string(),
        format!("{}:2: the text is not UTF-8: save the file as UTF-8", file.0.display())
    );
}

#[test]
fn a_file_without_end() {
    assert_eq!(
        load("/dev/zero").unwrap_err().to_string(),
        "/dev/zero: is larger than 16 MiB: name a configuration file"
    );
}

#[test]
fn a_syntax_error_is_one_error_with_its_line() {
    for (text, message) in [
        (
            "[edge]\nname = eth0\n",
            "edge.toml:2: name = … is not valid TOML: \
             string values must be quoted, expected literal string",
        ),
        ("[edge]\n[edge]\n", "edge.toml:2: [edge] is not valid TOML: duplicate key"),
        ("[edge\n", "edge.toml:1: [edge is not valid TOML: unclosed table, expected `]`"),
        (
            "x = 1\ny = \"a\nz = 2\n",
            "edge.toml:2: y = … is not valid TOML: invalid basic string, expected `\"`",
        ),
    ] {
        assert_eq!(errors(text), message);
    }
}

#[test]
fn an_empty_file_says_what_is_needed() {
    assert_eq!(
        errors(""),
        r#"edge.toml:1: edge: name is missing: add e.g. name = "edge-1"
edge.toml:1: edge: hash_seed is missing: add e.g. hash_seed = "same on every edge"
edge.toml:1: edge: interfaces is missing: add e.g. interfaces = ["eth0"]
edge.toml:1: [[service]] is missing: add at least one, with name, listen and [[service.backend]]"#
    );
}

#[test]
fn a_file_of_mistakes_is_reported_in_reasonable_time_and_size() {
    let unknown: String = (0..100_000).map(|n| format!("key_{n} = {n}\n")).collect();
    let (name, value) = ("k".repeat(1_000_000), "v".repeat(1_000_000));
    let text = format!("{unknown}{name} = \"{value}\"\n{}", minimal());
    let errors = parse("edge.toml", &text).unwrap_err();
    assert_eq!(errors.iter().count(), 100_001);
    assert!(errors.iter().all(|error| error.to_string().len() < 200));
}

/// Pieces of which configurations are made, in no sensible order.
fn scrap() -> impl Strategy<Value = String> {
    let words: Vec<&str> = SECTIONS
        .iter()
        .flat_map(|section| section.keys.iter().copied().chain([section.heading]))
        .chain([" = ", "\n", "\n", "\"", "{ ", " }", "[", "]", ".", ", ", "true", "-1", "0.5", "é"])
        .chain([
            "\"10.2.0.2:9000\"",
            "\"[2001:db8::2]:80\"",
            "\"http\"",
            "\"l7\"",
            "\"2s\"",
            "9999999999",
        ])
        .collect();
    proptest::collection::vec(prop_oneof![3 => proptest::sample::select(words).prop_map(str::to_owned), 1 => any::<char>().prop_map(String::from)], 0..60)
        .prop_map(|pieces| pieces.concat())
}

/// A valid file in which values were replaced at random.
fn mutant() -> impl Strategy<Value = String> {
    let values = [
        "1",
        "-1",
        "\"\"",
        "\"é\"",
        "[]",
        "[1]",
        "{}",
        "{ a = 1 }",
        "true",
        "0.5",
        "1979-05-27",
        "\"0s\"",
        "[[]]",
        "[{}]",
    ];
    let example = include_str!("../../../../edge.example.toml");
    let change = (0..example.lines().count(), proptest::sample::select(values.to_vec()));
    proptest::collection::vec(change, 0..8).prop_map(move |changes| {
        let mut lines: Vec<String> = example.lines().map(str::to_owned).collect();
        for (line, value) in changes {
            if let Some((key, _)) = lines[line].clone().split_once('=') {
                lines[line] = format!("{key}= {value}");
            }
        }
        lines.join("\n")
    })
}

/// Whatever the text: no panic, and every message has a line within the text and a remedy.
fn check_any(text: &str) -> Result<(), TestCaseError> {
    let problems = match parse("edge.toml", text) {
        Ok((_, warnings)) => warnings,
        Err(errors) => {
            prop_assert!(errors.iter().count() > 0);
            errors.iter().cloned().collect()
        }
    };
    let lines = text.split('\n').count();
    for problem in &problems {
        prop_assert!(problem.line.is_some_and(|line| (1..=lines).contains(&line)), "{problem}");
        prop_assert!(!problem.remedy.is_empty() && !problem.what.is_empty(), "{problem}");
        prop_assert!(!problem.to_string().contains('\n'), "{problem}");
    }
    prop_assert!(problems.is_sorted_by_key(|problem| problem.line));
    Ok(())
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in any::<String>()) {
        check_any(&text)?;
    }

    #[test]
    fn scraps_of_configurations_never_panic(text in scrap()) {
        check_any(&text)?;
    }

    #[test]
    fn a_valid_file_with_other_values_never_panics(text in mutant()) {
        check_any(&text)?;
    }
}
