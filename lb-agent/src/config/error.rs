//! What is wrong with a configuration file, said so that an operator can put it right.
//!
//! A problem names the line, the thing, the value and the remedy. Problems are collected: a file
//! with ten mistakes is told about all ten at once.

use std::cell::RefCell;
use std::fmt;

/// One mistake (or, as a [`Warning`], one doubt) about the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file as the caller named it.
    pub file: String,
    /// Line, counted from 1; `None` where the whole file is meant (it cannot be read, say).
    pub line: Option<usize>,
    /// The key and the tables around it: `service "chat": backend "chat-1": address`.
    pub thing: String,
    /// The value as it stands in the file, shortened; empty where there is none.
    pub value: String,
    /// What is wrong with the value: `is not an IP address and port`.
    pub what: String,
    /// What to write instead.
    pub remedy: String,
}

/// Something in a valid configuration that is probably not meant.
pub type Warning = Problem;

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        f.write_str(":")?;
        for part in [&self.thing, &self.value, &self.what] {
            if !part.is_empty() {
                write!(f, " {part}")?;
            }
        }
        write!(f, ": {}", self.remedy)
    }
}

/// Every error of one configuration file, ordered by line; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(Vec<Problem>);

impl ConfigErrors {
    /// The errors, ordered by line.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    /// None if there are none.
    pub(crate) fn of(mut problems: Vec<Problem>) -> Option<Self> {
        problems.sort_by_key(|problem| problem.line);
        (!problems.is_empty()).then_some(Self(problems))
    }

    /// An error about the file as a whole.
    pub(crate) fn of_file(file: &str, what: String, remedy: String) -> Self {
        Self(vec![Problem {
            file: file.to_owned(),
            line: None,
            thing: String::new(),
            value: String::new(),
            what,
            remedy,
        }])
    }

    /// One error on one line, with no table around it.
    pub(super) fn at_line(
        file: &str,
        line: usize,
        value: String,
        what: String,
        remedy: String,
    ) -> Self {
        Self(vec![Problem {
            file: file.to_owned(),
            line: Some(line),
            thing: String::new(),
            value,
            what,
            remedy,
        }])
    }
}

impl<'a> IntoIterator for &'a ConfigErrors {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// One error per line, without a newline at the end.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Where in the file something stands, and what it is called in a message.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Line, counted from 1.
    pub line: usize,
    /// As in [`Problem::thing`].
    pub thing: String,
    /// As in [`Problem::value`].
    pub value: String,
    /// Whether the value is one of [`super::SECRETS`], or within one: then it is in no message.
    pub secret: bool,
}

/// Collects the problems of one file. Readers share it, hence the cells.
pub(super) struct Problems<'a> {
    file: &'a str,
    text: &'a str,
    /// Byte offset at which each line starts.
    lines: Vec<usize>,
    errors: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Warning>>,
}

impl<'a> Problems<'a> {
    pub fn new(file: &'a str, text: &'a str) -> Self {
        let after_newline =
            text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self {
            file,
            text,
            lines: std::iter::once(0).chain(after_newline).collect(),
            errors: RefCell::default(),
            warnings: RefCell::default(),
        }
    }

    /// The line, counted from 1, of a byte offset.
    pub fn line_at(&self, offset: usize) -> usize {
        self.lines.partition_point(|start| *start <= offset).max(1)
    }

    /// The text of a span, on one line and short enough for a message.
    pub fn snippet(&self, span: std::ops::Range<usize>) -> String {
        shorten(self.text.get(span).unwrap_or(""))
    }

    /// The text of a line counted from 1, short enough for a message, without its value: that may be a secret.
    pub fn line_text(&self, line: usize) -> String {
        let text = self.text.lines().nth(line - 1).unwrap_or("").trim();
        match text.find(['=', '"', '\'']) {
            Some(at) => format!("{} …", shorten(&text[..=at])),
            None => shorten(text),
        }
    }

    pub fn error(&self, place: &Place, what: impl Into<String>, remedy: impl Into<String>) {
        let problem = self.problem(place, what.into(), remedy.into());
        self.errors.borrow_mut().push(problem);
    }

    pub fn warn(&self, place: &Place, what: impl Into<String>, remedy: impl Into<String>) {
        let problem = self.problem(place, what.into(), remedy.into());
        self.warnings.borrow_mut().push(problem);
    }

    fn problem(&self, place: &Place, what: String, remedy: String) -> Problem {
        Problem {
            file: self.file.to_owned(),
            line: Some(place.line),
            thing: place.thing.clone(),
            value: place.value.clone(),
            what,
            remedy,
        }
    }

    /// The warnings if there was no error, else the errors; both ordered by line.
    pub fn finish(self) -> Result<Vec<Warning>, ConfigErrors> {
        if let Some(errors) = ConfigErrors::of(self.errors.into_inner()) {
            return Err(errors);
        }
        let mut warnings = self.warnings.into_inner();
        warnings.sort_by_key(|problem| problem.line);
        Ok(warnings)
    }
}

/// The first line of `text`, at most 60 characters of it, free of control characters.
pub(super) fn shorten(text: &str) -> String {
    const MOST: usize = 60;
    let line = text.lines().next().unwrap_or("");
    let mut short: String =
        line.chars().take(MOST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
