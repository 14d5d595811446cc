//! What the agent's log looks like to machines. Needs no root: a file with errors is refused before anything is done.

use std::{env, fs, process::Command};

use serde_json::Value;

#[test]
fn a_json_log_is_one_object_per_line_and_nothing_else() {
    let directory = env::temp_dir().join(format!("sluice-log-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let file = directory.join("edge.toml");
    let example = include_str!("../../edge.example.toml");
    let wrong = example.replace("10.2.0.2:9000", "10.2.0.300:9000").replace("xdp =", "xpd =");
    fs::write(&file, wrong).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_lb-agent"))
        .args(["run", "--log-format", "json", "--config"])
        .arg(&file)
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    fs::remove_dir_all(&directory).unwrap();

    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty(), "the log goes to standard error");
    let log = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    for line in &lines {
        assert!(line["timestamp"].is_string(), "{line}");
        assert_eq!(line["level"], "ERROR", "{line}");
    }
    for part in ["10.2.0.300:9000", "xpd"] {
        let naming = |line: &&Value| line["message"].as_str().is_some_and(|it| it.contains(part));
        assert_eq!(lines.iter().filter(naming).count(), 1, "one line about {part} in\n{log}");
    }
}
