//! Added tokens: found in the text before the model sees it, leftmost first and there the longest.
//!
//! The rules are those of Hugging Face `tokenizers` (`added_vocabulary.rs`): a match that does not count (a special
//! token where none may be, a part of a word where whole words are asked for) is passed over but still used up.

use super::classes::{SPACE, WORD, classes};
use llm_format::tokens::{AddedList, AddedToken, added};
use std::ops::Range;

/// A stretch of text or a token.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    Text(Range<usize>),
    Token(u32),
}

/// Cuts `text` at the tokens of `list`; behind the first `special` bytes special tokens stay text. No special token is
/// found across one of the `breaks` (ascending places in `text`), and none of a single character between two of them.
pub(crate) fn split(
    list: &AddedList,
    text: &str,
    special: usize,
    breaks: &[usize],
    mut give: impl FnMut(Cut),
) {
    let bytes = text.as_bytes();
    let classes = classes();
    let mut from = 0; // the end of the last token
    let mut at = 0;
    while !list.is_empty() && at < bytes.len() {
        if !list.may_start(bytes[at]) {
            at += 1;
            continue;
        }
        let Some(token) = list.longest_prefix(&bytes[at..]).and_then(|token| {
            let broken =
                |t: &AddedToken| t.flags & added::SPECIAL != 0 && broken(text, breaks, at, t.pattern);
            if !broken(&token) {
                return Some(token);
            }
            // A shorter one may end before the break.
            let next = breaks.get(breaks.partition_point(|&b| b <= at)).copied().unwrap_or(bytes.len());
            list.longest_prefix(bytes.get(at..next)?).filter(|token| !broken(token))
        }) else {
            at += 1;
            continue;
        };
        let (mut start, mut end) = (at, at + token.pattern.len());
        at = end.max(at + 1);
        // A damaged table may hold a pattern that is not whole characters.
        let (Some(before), Some(after)) = (text.get(..start), text.get(end..)) else { continue };
        if token.flags & added::PROTECT != 0 || token.flags & added::SPECIAL != 0 && end > special {
            continue;
        }
        if token.flags & added::SINGLE_WORD != 0 {
            let word = |c: Option<char>| c.is_some_and(|c| classes.of(c) & WORD != 0);
            if word(before.chars().next_back()) || word(after.chars().next()) {
                continue;
            }
        }
        let space = |c: char| classes.of(c) & SPACE != 0;
        if token.flags & added::LSTRIP != 0 {
            start = before.trim_end_matches(space).len().max(from);
        }
        if token.flags & added::RSTRIP != 0 {
            end += after.len() - after.trim_start_matches(space).len();
        }
        if from < start {
            give(Cut::Text(from..start));
        }
        give(Cut::Token(token.id));
        from = end;
    }
    if from < bytes.len() {
        give(Cut::Text(from..bytes.len()));
    }
}

/// Whether a break forbids the special token `pattern` at `at`.
fn broken(text: &str, breaks: &[usize], at: usize, pattern: &[u8]) -> bool {
    let end = at + pattern.len();
    let inside = breaks.get(breaks.partition_point(|&b| b <= at)).is_some_and(|&b| b < end);
    let single = || text.get(at..end).is_some_and(|token| token.chars().nth(1).is_none());
    inside || (single() && breaks.binary_search(&at).is_ok() && breaks.binary_search(&end).is_ok())
}
