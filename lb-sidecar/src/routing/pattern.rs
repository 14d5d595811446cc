//! Regular expressions of routes. They take linear time, whatever a request says, and a bounded memory each.

use regex::bytes::{Regex, RegexBuilder};
use regex_syntax::ParserBuilder;

/// Most bytes of a pattern, as it is written.
pub const MOST_BYTES: usize = 1_024;

/// Most memory of one, compiled.
const MOST_MEMORY: usize = 1 << 20;

/// What is wrong with a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bad {
    /// In characters, counted from 1, where it is known.
    pub column: Option<usize>,
    pub what: String,
}

/// A pattern, ready for use.
pub fn compile(pattern: &str) -> Result<Regex, Bad> {
    let of_whole = |what: &str| Bad { column: None, what: what.to_owned() };
    if pattern.len() > MOST_BYTES {
        return Err(of_whole(&format!("is longer than {MOST_BYTES} bytes")));
    }
    if let Err(error) = ParserBuilder::new().utf8(false).build().parse(pattern) {
        let (column, what) = match &error {
            regex_syntax::Error::Parse(error) => {
                (error.span().start.column, error.kind().to_string())
            }
            regex_syntax::Error::Translate(error) => {
                (error.span().start.column, error.kind().to_string())
            }
            other => return Err(of_whole(&other.to_string())),
        };
        return Err(Bad { column: Some(column), what });
    }
    let regex =
        RegexBuilder::new(pattern).size_limit(MOST_MEMORY).dfa_size_limit(MOST_MEMORY).build();
    regex.map_err(|_| of_whole("takes more memory than a pattern may"))
}
