//! What a user says about a run beside its spec: whose turn comes first, labels, a note.

use crate::SpecError;
use std::collections::BTreeMap;

/// Most labels of a run.
const MOST_LABELS: usize = 64;

/// Most characters of a note.
const LONGEST_NOTE: usize = 4096;

/// Most characters of a label's value.
const LONGEST_VALUE: usize = 255;

/// A run's priority, labels and note.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    /// Runs of a higher one take all turns before those of a lower one.
    pub priority: i32,
    /// Names and values.
    pub labels: BTreeMap<String, String>,
    /// Free text.
    pub note: String,
}

impl Tags {
    /// Checks every limit; the error names the field of the request first.
    ///
    /// # Errors
    /// The field, and one clause that says what is wrong with it.
    pub fn validate(&self) -> Result<(), (&'static str, SpecError)> {
        let wrong = |field, why: String| Err((field, SpecError(why)));
        if !(-1000..=1000).contains(&self.priority) {
            return wrong("priority", format!("{} does not lie between -1000 and 1000", self.priority));
        }
        if self.labels.len() > MOST_LABELS {
            return wrong("labels", format!("{} are too many, {MOST_LABELS} are the most", self.labels.len()));
        }
        for (key, value) in &self.labels {
            if !is_name(key, 63, "._/-") {
                return wrong("labels", format!("key '{}' is not 1 to 63 of A-Z a-z 0-9 . _ / -", shortened(key)));
            }
            if value.chars().count() > LONGEST_VALUE || value.chars().any(char::is_control) {
                return wrong(
                    "labels",
                    format!("the value of '{key}' is longer than {LONGEST_VALUE} characters, or not plain text"),
                );
            }
        }
        match self.note.chars().count() {
            0..=LONGEST_NOTE => Ok(()),
            n => wrong("note", format!("{n} characters are too many, {LONGEST_NOTE} are the most")),
        }
    }
}

/// Checks the id that a caller gives a request; empty is none.
///
/// # Errors
/// One clause that says what is wrong.
pub fn check_request_id(id: &str) -> Result<(), SpecError> {
    if id.is_empty() || is_name(id, 64, "._-") {
        return Ok(());
    }
    Err(SpecError(format!("'{}' is not 1 to 64 of A-Z a-z 0-9 . _ -", shortened(id))))
}

fn is_name(text: &str, longest: usize, others: &str) -> bool {
    (1..=longest).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

fn shortened(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_checked_and_named() {
        let tags = |key: &str, value: &str| Tags { labels: [(key.to_owned(), value.to_owned())].into(), ..Tags::default() };
        assert_eq!(tags("team/owner", "Ada, of course").validate(), Ok(()));
        let many = Tags { labels: (0..65).map(|n| (n.to_string(), String::new())).collect(), ..Tags::default() };
        let table = [
            (Tags { priority: 1001, ..Tags::default() }, "priority"),
            (Tags { note: "x".repeat(4097), ..Tags::default() }, "note"),
            (tags("", "x"), "labels"),
            (tags("a b", "x"), "labels"),
            (tags("a", "two\nlines"), "labels"),
            (tags("a", &"x".repeat(256)), "labels"),
            (many, "labels"),
        ];
        for (tags, field) in table {
            assert_eq!(tags.validate().unwrap_err().0, field, "{tags:?}");
        }
        assert!(check_request_id("").is_ok() && check_request_id("2026-11-25_a.b").is_ok());
        assert!(check_request_id(&"x".repeat(65)).is_err());
        assert!(check_request_id("a\0b").unwrap_err().to_string().contains("'a\\0b'"));
    }
}
