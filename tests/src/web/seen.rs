//! What clients say that they saw, as JSON.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::edge::L7Config;

/// # Panics
/// If it is no list, as the next ones if they are not what they should be.
#[must_use]
pub fn items(list: &Value) -> &[Value] {
    list.as_array().unwrap_or_else(|| panic!("not a list: {list}"))
}

/// The words without repetitions.
#[must_use]
pub fn distinct<'a>(words: impl IntoIterator<Item = &'a Value>) -> BTreeSet<&'a str> {
    words.into_iter().map(|word| word.as_str().expect("a word")).collect()
}

/// Checks what a client saw that kept its cookies in several sessions: one backend.
pub fn stayed(sessions: &Value, number: usize) {
    let sessions = items(sessions);
    assert_eq!(sessions.len(), number);
    assert_eq!(distinct(sessions.iter().map(|it| &it["backend"])).len(), 1, "{sessions:?}");
    let cookies = distinct(items(&sessions[0]["cookies"]));
    let ours = cookies.iter().filter(|it| it.starts_with(L7Config::COOKIE));
    assert_eq!(ours.count(), 1, "the first answer sets it: {sessions:?}");
}
