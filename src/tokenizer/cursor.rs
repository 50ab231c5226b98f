//! A place in the text of an expression, which is read from left to right.

/// What is read, and how far.
pub(super) struct Cursor<'a> {
    pub(super) whole: &'a str,
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    /// At the beginning of `whole`.
    pub(super) fn new(whole: &'a str) -> Self {
        Self { whole, at: 0 }
    }

    pub(super) fn rest(&self) -> &'a str {
        self.whole.get(self.at..).unwrap_or("")
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    pub(super) fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    /// Goes behind `text` if it comes next.
    pub(super) fn eat(&mut self, text: &str) -> bool {
        let found = self.rest().starts_with(text);
        self.at += if found { text.len() } else { 0 };
        found
    }

    /// What is wrong, with the place.
    pub(super) fn wrong(&self, what: &str) -> String {
        format!("{what}, at byte {}", self.at)
    }
}
