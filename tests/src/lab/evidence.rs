//! The table at the end: what was claimed, what was seen, and whether the one bears the other out.

use std::fmt;

use anyhow::{Result, bail};

#[derive(Debug, Default)]
pub(super) struct Evidence(Vec<Row>);

#[derive(Debug)]
struct Row {
    what: String,
    seen: String,
    holds: bool,
}

impl Evidence {
    pub(super) fn check(&mut self, what: &str, holds: bool, seen: impl fmt::Display) {
        self.0.push(Row { what: what.to_owned(), seen: seen.to_string(), holds });
    }

    /// An error that names every check which failed.
    pub(super) fn verdict(&self) -> Result<()> {
        let failed: Vec<_> = self
            .0
            .iter()
            .filter(|row| !row.holds)
            .map(|row| format!("{}: {}", row.what, row.seen))
            .collect();
        match failed.as_slice() {
            [] => Ok(()),
            failed => {
                bail!("{} of {} checks failed: {}", failed.len(), self.0.len(), failed.join("; "))
            }
        }
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |text: fn(&Row) -> &str| {
            self.0.iter().map(|row| text(row).chars().count()).max().unwrap_or(0)
        };
        let (what, seen) = (width(|row| &row.what), width(|row| &row.seen));
        for (n, row) in self.0.iter().enumerate() {
            let end = if n + 1 < self.0.len() { "\n" } else { "" };
            let holds = if row.holds { "ok" } else { "FAILED" };
            write!(f, "{:what$}  {:seen$}  {holds}{end}", row.what, row.seen)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_check_fails_the_lab_and_is_named() {
        let mut evidence = Evidence::default();
        evidence.check("chats open", true, 300);
        assert!(evidence.verdict().is_ok());
        evidence.check("wrong", false, "3 bytes");
        let error = evidence.verdict().unwrap_err().to_string();
        assert!(error.contains("1 of 2") && error.contains("wrong: 3 bytes"), "{error}");
        let lines = evidence.to_string();
        assert_eq!(lines, "chats open  300      ok\nwrong       3 bytes  FAILED");
    }
}
