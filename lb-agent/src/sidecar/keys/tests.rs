use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use nix::{sys::stat::Mode, unistd::mkfifo};
use proptest::prelude::*;

use super::*;

fn secret(byte: u8, length: usize) -> String {
    STANDARD.encode(vec![byte; length])
}

fn errors(text: &str) -> String {
    match parse("keys", text) {
        Ok(keys) => panic!("accepted: {keys:?}"),
        Err(errors) => errors.to_string(),
    }
}

/// A file of this test's own, gone afterwards.
struct TestFile(PathBuf);

impl TestFile {
    fn path(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("sluice-keys-{}-{name}", std::process::id())))
    }

    fn new(name: &str, bytes: &[u8], mode: u32) -> Self {
        let file = Self::path(name);
        fs::write(&file.0, bytes).unwrap();
        fs::set_permissions(&file.0, fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    fn refused(&self) -> String {
        let errors = load(&self.0, "can sign cookies").unwrap_err().to_string();
        errors.strip_prefix(&format!("{}: ", self.0.display())).unwrap().to_owned()
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn keys_in_their_order_between_comments() {
    let (new, old) = (secret(1, 32), secret(2, 1_024));
    let text = format!("# keys\n\nk-2 {new}\r\n  # the old one\n\t_1\t {old}  ");
    let keys = parse("keys", &text).unwrap();
    let read: Vec<_> = keys.iter().map(|it| (it.id.as_str(), it.secret.as_str())).collect();
    assert_eq!(read, [("k-2", new.as_str()), ("_1", old.as_str())]);
}

#[test]
fn sixteen_keys_and_no_more() {
    let line = |n: usize| format!("k{n} {}\n", secret(1, 32));
    let full: String = (1..=16).map(line).collect();
    assert_eq!(parse("keys", &full).unwrap().len(), 16);
    assert_eq!(
        errors(&format!("{full}{}", line(17))),
        "keys:17: key is one more than the 16 keys that a file may hold: remove the oldest"
    );
}

#[test]
fn each_mistake_with_its_line_and_never_with_the_secret() {
    let good = secret(1, 32);
    let long = secret(b'x', 30);
    for (line, message) in [
        (good.clone(), format!("key is not an id and a secret: {LINE}")),
        (format!("k1 {good} {good}"), format!("key is not an id and a secret: {LINE}")),
        (
            format!("{good} k1"),
            "key has no id: write 1 to 16 letters, digits, _ and - before the secret".to_owned(),
        ),
        (
            format!("k:1 {good}"),
            "key has no id: write 1 to 16 letters, digits, _ and - before the secret".to_owned(),
        ),
        (
            format!("seventeen-letters {good}"),
            "key has no id: write 1 to 16 letters, digits, _ and - before the secret".to_owned(),
        ),
        (format!("k1 {long}!"), format!("key \"k1\" has a secret that is not base64: {LINE}")),
        (
            format!("k1 {}", secret(1, 31)),
            format!("key \"k1\" has a secret of fewer than 32 bytes: {LINE}"),
        ),
        (
            format!("k1 {}", secret(1, 1_025)),
            format!("key \"k1\" has a secret of more than 1024 bytes: {LINE}"),
        ),
        (
            format!("k0 {good}"),
            "key \"k0\" is already on line 2: give each key an id of its own".to_owned(),
        ),
    ] {
        let text = format!("# keys\nk0 {good}\n{line}\n");
        assert_eq!(errors(&text), format!("keys:3: {message}"));
    }
}

#[test]
fn all_mistakes_at_once() {
    assert_eq!(
        errors("a\nb b"),
        format!(
            "keys:1: key is not an id and a secret: {LINE}\n\
             keys:2: key \"b\" has a secret that is not base64: {LINE}"
        )
    );
    assert_eq!(errors("# nothing\n"), format!("keys: has no key: {LINE}"));
}

#[test]
fn a_file_is_loaded_and_its_mode_judged() {
    let line = format!("k1 {}", secret(1, 32));
    for (mode, warning) in
        [(0o600, None), (0o400, None), (0o644, Some("0644")), (0o620, Some("0620"))]
    {
        let file = TestFile::new(&format!("{mode:o}"), line.as_bytes(), mode);
        let (keys, warnings) = load(&file.0, "can sign cookies").unwrap();
        assert_eq!(keys.len(), 1);
        let warnings: Vec<_> = warnings.iter().map(Warning::to_string).collect();
        let path = file.0.display();
        let expected = warning.map(|mode| {
            format!(
                "{path}: mode {mode} lets others at the keys, and whoever has them can sign cookies: \
                 chmod 600 {path}"
            )
        });
        assert_eq!(warnings, Vec::from_iter(expected));
    }
}

#[test]
fn what_is_no_key_file() {
    assert!(TestFile::path("missing").refused().starts_with("cannot be read: No such file"));
    let latin1 = TestFile::new("latin1", b"k1 \xe9", 0o600);
    assert!(latin1.refused().starts_with("is not UTF-8: "));
    let large = TestFile::new("large", &vec![b'#'; 65_537], 0o600);
    assert!(large.refused().starts_with("is larger than 64 KiB: "));
    let fifo = TestFile::path("fifo");
    mkfifo(&fifo.0, Mode::from_bits_truncate(0o600)).unwrap();
    assert!(fifo.refused().starts_with("is not a file: "));
    for path in ["/", "/dev/zero"] {
        let errors = load(Path::new(path), "can sign cookies").unwrap_err().to_string();
        assert!(errors.starts_with(&format!("{path}: is not a file: ")), "{errors}");
    }
}

proptest! {
    /// No panic, and no word longer than an id comes back in a message.
    #[test]
    fn whatever_stands_there(text in "([a-zA-Z0-9+/=#_-]{0,50}[ \n]{0,2}){0,20}") {
        if let Err(errors) = parse("keys", &text) {
            let words = text.split_whitespace().filter(|word| word.len() > 16);
            let errors = errors.to_string();
            for word in words {
                prop_assert!(!errors.contains(word), "{word}: {errors}");
            }
        }
    }
}
