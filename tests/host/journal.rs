//! What a program has said in the machine's journal.

use std::fmt;

/// The messages of one program or unit, oldest first.
pub struct Journal {
    pub(crate) of: String,
    pub(crate) text: String,
}

impl Journal {
    /// Fails unless a message contains this text.
    #[track_caller]
    pub fn says(&self, text: &str) -> &Self {
        assert!(self.contains(text), "{} did not say {text:?}; it said:\n{self}", self.of);
        self
    }

    /// Fails if a message contains this text.
    #[track_caller]
    pub fn does_not_say(&self, text: &str) -> &Self {
        assert!(!self.contains(text), "{} said {text:?}; it said:\n{self}", self.of);
        self
    }

    /// Whether a message contains this text.
    pub fn contains(&self, text: &str) -> bool {
        self.text.contains(text)
    }

    /// How often the text is said.
    pub fn count(&self, text: &str) -> usize {
        self.text.matches(text).count()
    }

    /// All messages, one a line.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.text.is_empty() { "(nothing)" } else { &self.text })
    }
}
