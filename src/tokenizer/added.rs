//! Added tokens: found in the text before the model sees it, leftmost first and there the longest.
//!
//! The rules are those of Hugging Face `tokenizers` (`added_vocabulary.rs`): a match that does not count (a special
//! token where none may be, a part of a word where whole words are asked for) is passed over but still used up.

use super::classes::{SPACE, WORD, classes};
use crate::error::Result;
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

/// Those of `breaks` (ascending places in a text) that stand in special tokens of what normalising made of it,
/// `normal`, or at their ends, as places there: no others matter to [`split`]. `place` says where a break is now, which
/// costs a look at everything before it, so few are asked for.
pub(crate) fn beside_specials(
    list: &AddedList,
    normal: &str,
    breaks: &[usize],
    place: impl Fn(usize) -> Result<usize>,
) -> Result<Vec<usize>> {
    let mut known: Vec<Option<usize>> = vec![None; breaks.len()];
    let mut find = |at: usize| match known[at] {
        Some(found) => Ok(found),
        None => place(breaks[at]).inspect(|found| known[at] = Some(*found)),
    };
    let mut places: Vec<usize> = Vec::new();
    let mut first = 0; // breaks before this one are before everything that is left
    for (start, _) in normal.char_indices() {
        let token = list.longest_prefix(&normal.as_bytes()[start..]);
        let Some(token) = token.filter(|token| token.flags & added::SPECIAL != 0) else { continue };
        let mut high = breaks.len();
        while first < high {
            let middle = first + (high - first) / 2;
            if find(middle)? < start { first = middle + 1 } else { high = middle }
        }
        for at in first..breaks.len() {
            let found = find(at)?;
            if found > start + token.pattern.len() {
                break;
            }
            if places.last().is_none_or(|last| *last < found) {
                places.push(found);
            }
        }
    }
    Ok(places)
}

/// Whether a break forbids the special token `pattern` at `at`.
fn broken(text: &str, breaks: &[usize], at: usize, pattern: &[u8]) -> bool {
    let end = at + pattern.len();
    let inside = breaks.get(breaks.partition_point(|&b| b <= at)).is_some_and(|&b| b < end);
    let single = || text.get(at..end).is_some_and(|token| token.chars().nth(1).is_none());
    inside || (single() && breaks.binary_search(&at).is_ok() && breaks.binary_search(&end).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use llm_format::tokens::{Added, Layout, Tables};
    use std::cell::Cell;

    #[test]
    fn the_breaks_beside_special_tokens_are_all_that_matter() {
        let added = |id, content: &str, flags| Added {
            id,
            content: content.into(),
            pattern: content.into(),
            normalized: true,
            flags,
        };
        let special = added::SPECIAL;
        let added = vec![added(0, "<s>", special), added(1, "<s><s>", special), added(2, "~", special)];
        let bytes = Tables { added, ..Tables::default() }.encode().unwrap();
        let layout = Layout::parse(&bytes).unwrap();
        let list = layout.view(&bytes).normal;
        let cuts = |text: &str, breaks: &[usize]| {
            let mut cuts = Vec::new();
            split(&list, text, usize::MAX, breaks, |cut| cuts.push(cut));
            cuts
        };
        let text = format!("a<s>b~~c<s><s><s>{}<s> ~", "x".repeat(1000));
        let normal = format!("▁{text}");
        for (step, from) in [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2), (5, 2), (7, 5)] {
            let breaks: Vec<usize> = (from..=text.len()).step_by(step).collect();
            let asked = Cell::new(0);
            let place = |at: usize| {
                asked.set(asked.get() + 1);
                Ok(at + "▁".len())
            };
            let all: Vec<usize> = breaks.iter().map(|at| at + "▁".len()).collect();
            let some = beside_specials(&list, &normal, &breaks, place).unwrap();
            assert_eq!(cuts(&normal, &some), cuts(&normal, &all), "every {step} from {from}");
            assert!(asked.get() < 200, "{} places were looked for", asked.get());
        }
    }
}
