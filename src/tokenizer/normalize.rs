//! The steps text goes through before it is split.

use super::charsmap::Charsmap;
use super::classes::{MARK, classes};
use super::pattern::Matcher;
use crate::error::{Error, Result, Status};
use llm_format::tokens::{Normalizer, Pattern, View};
use std::borrow::Cow;
use std::str::Chars;
use unicode_normalization::{Decompositions, IsNormalized, Recompositions, UnicodeNormalization};
use unicode_segmentation::UnicodeSegmentation;

/// SentencePiece's character for a space.
const SPACE_SYMBOL: &str = "\u{2581}";

/// A normalisation program with its compiled patterns.
#[derive(Debug)]
pub(crate) struct Normalizers {
    steps: Vec<(Normalizer, Option<Matcher>)>,
}

impl Normalizers {
    pub(crate) fn new(steps: &[Normalizer]) -> Result<Normalizers> {
        let with_matcher = |step: &Normalizer| {
            let matcher = match step {
                Normalizer::Replace(pattern, _) => Some(Matcher::new(pattern.clone())?),
                _ => None,
            };
            Ok((step.clone(), matcher))
        };
        Ok(Normalizers { steps: steps.iter().map(with_matcher).collect::<Result<_>>()? })
    }

    /// `text` after all steps.
    pub(crate) fn run<'t>(&self, view: &View, text: &'t str) -> Result<Cow<'t, str>> {
        let limit = text.len().saturating_mul(GROWTH).saturating_add(ROOM);
        let mut text = Cow::Borrowed(text);
        for (step, matcher) in &self.steps {
            if let Some(new) = one(step, matcher.as_ref(), view, &text, limit)? {
                if new.len() > limit {
                    return Err(grown(limit));
                }
                text = Cow::Owned(new);
            }
        }
        Ok(text)
    }
}

/// Text may become this many times longer and this much besides; no published normaliser comes near (NFKC makes
/// eleven bytes of one at most). It keeps a small file from filling the memory.
pub(super) const GROWTH: usize = 64;
pub(super) const ROOM: usize = 1 << 16;

fn grown(limit: usize) -> Error {
    let what = format!(
        "the tokenizer's normaliser makes more than {limit} bytes of a text: its tables are not sound"
    );
    Error::new(Status::UNSUPPORTED, what)
}

/// What `step` makes of `text`; `None` where it changes nothing. A step that could exceed `limit` by more than it
/// was given stops there.
fn one(
    step: &Normalizer,
    matcher: Option<&Matcher>,
    view: &View,
    text: &str,
    limit: usize,
) -> Result<Option<String>> {
    let quick = |answer| text.is_ascii() || answer == IsNormalized::Yes;
    Ok(match step {
        Normalizer::Nfc if quick(unicode_normalization::is_nfc_quick(text.chars())) => None,
        Normalizer::Nfc => Some(composed(text.nfc())),
        Normalizer::Nfd if text.is_ascii() => None,
        Normalizer::Nfd => Some(decomposed(text.nfd())),
        Normalizer::Nfkc if quick(unicode_normalization::is_nfkc_quick(text.chars())) => None,
        Normalizer::Nfkc => Some(composed(text.nfkc())),
        Normalizer::Nfkd if text.is_ascii() => None,
        Normalizer::Nfkd => Some(decomposed(text.nfkd())),
        Normalizer::Lowercase => Some(text.chars().flat_map(char::to_lowercase).collect()),
        Normalizer::Strip(left, right) => {
            let text = if *left { text.trim_start() } else { text };
            Some(if *right { text.trim_end() } else { text }.to_owned())
        }
        Normalizer::StripAccents => {
            let classes = classes();
            Some(text.chars().filter(|c| classes.of(*c) & MARK == 0).collect())
        }
        Normalizer::Prepend(_) if text.is_empty() => None,
        Normalizer::Prepend(prefix) => Some([prefix, text].concat()),
        Normalizer::Replace(Pattern::Literal(from), to) if !from.is_empty() => {
            let count = text.matches(from.as_str()).count();
            if count.saturating_mul(to.len()) > limit {
                return Err(grown(limit));
            }
            (count > 0).then(|| text.replace(from.as_str(), to))
        }
        Normalizer::Replace(_, to) => match matcher {
            Some(matcher) => matcher.replace(text, to, limit)?,
            None => None,
        },
        Normalizer::Charsmap => by_graphemes(Charsmap::new(view.charsmap), text, limit),
        Normalizer::SentencePiece(dummy, extra, escape, suffix) => {
            Some(sentencepiece(view, text, [*dummy, *extra, *escape, *suffix], limit))
        }
        Normalizer::Nmt => Some(nmt(text)),
    })
}

/// One copy of a long iterator for both forms that end in it.
#[inline(never)]
fn composed(text: Recompositions<Chars>) -> String {
    text.collect()
}

/// The same for the forms that only take apart.
#[inline(never)]
fn decomposed(text: Decompositions<Chars>) -> String {
    text.collect()
}

/// The charsmap as Hugging Face applies it: a grapheme cluster of fewer than six bytes becomes the replacement of its
/// shortest prefix that has one, anything else goes character by character.
fn by_graphemes(map: Charsmap, text: &str, limit: usize) -> Option<String> {
    if map.is_empty() {
        return None;
    }
    let mut out = String::with_capacity(text.len());
    for cluster in text.graphemes(true) {
        if out.len() > limit {
            break; // refused by the caller
        }
        if cluster.len() < 6
            && let Some(new) = map.shortest(cluster.as_bytes())
        {
            out.push_str(new);
            continue;
        }
        for c in cluster.chars() {
            // A cluster can be the whole text.
            if out.len() > limit {
                break;
            }
            match map.shortest(c.encode_utf8(&mut [0; 4]).as_bytes()) {
                Some(new) => out.push_str(new),
                None => out.push(c),
            }
        }
    }
    Some(out)
}

/// The clean-up of the NMT recipes of SentencePiece.
fn nmt(text: &str) -> String {
    let kept =
        text.chars().filter(|c| !matches!(u32::from(*c), 0x1..=0x8 | 0xB | 0xE..=0x1F | 0x7F | 0x8F | 0x9F));
    let mapped = kept.map(|c| match u32::from(c) {
        0x9 | 0xA | 0xC | 0xD | 0x1680 | 0x200B..=0x200F | 0x2028 | 0x2029 | 0x2581 | 0xFEFF | 0xFFFD => ' ',
        _ => c,
    });
    mapped.collect()
}

/// SentencePiece's normaliser (`normalizer.cc`): longest replacements, protected user-defined tokens, and the
/// handling of white space that the model was trained with.
fn sentencepiece(view: &View, text: &str, [dummy, extra, escape, suffix]: [bool; 4], limit: usize) -> String {
    let map = Charsmap::new(view.charsmap);
    let space = if escape { SPACE_SYMBOL } else { " " };
    // One step: (what it becomes, bytes consumed).
    let prefix = |at: usize| -> (&str, usize) {
        let rest = &text[at..];
        if let Some(token) = view.normal.longest_prefix(rest.as_bytes())
            && let Some(kept) = rest.get(..token.pattern.len())
        {
            return (kept, kept.len());
        }
        let found = if map.is_empty() { None } else { map.longest(rest.as_bytes()) };
        if let Some((len, new)) = found.filter(|(len, _)| rest.is_char_boundary(*len)) {
            return (new, len);
        }
        let len = rest.chars().next().map_or(rest.len(), char::len_utf8);
        (&rest[..len], len)
    };
    let mut at = 0;
    while extra && at < text.len() {
        let (new, len) = prefix(at);
        if new != " " {
            break;
        }
        at += len;
    }
    let mut out = String::with_capacity(text.len() + text.len() / 4 + 3);
    if at >= text.len() {
        return out;
    }
    if dummy && !suffix {
        out.push_str(space);
    }
    let mut after_space = extra;
    // Beyond the limit the caller refuses the text.
    while at < text.len() && out.len() <= limit {
        let (mut new, len) = prefix(at);
        if after_space {
            new = new.trim_start_matches(' ');
        }
        if !new.is_empty() {
            for (i, part) in new.split(' ').enumerate() {
                if i > 0 {
                    out.push_str(space);
                }
                out.push_str(part);
            }
            after_space = extra && new.ends_with(' ');
        }
        at += len;
    }
    while extra && out.ends_with(space) {
        out.truncate(out.len() - space.len());
    }
    if dummy && suffix {
        out.push_str(space);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A charsmap that makes `replacement` of U+0301 (CC 81).
    fn accents_to(replacement: &str) -> Vec<u8> {
        let mut units = vec![0u32; 846];
        units[0xCC] = 0xCC | 256 << 10; // from the root, offset 0
        units[0xCC ^ 256 ^ 0x81] = 0x81 | 1 << 8 | 512 << 10;
        units[0xCC ^ 256 ^ 0x81 ^ 512] = 1 << 31;
        let trie: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let size = (trie.len() as u32).to_le_bytes();
        [&size[..], &trie[..], replacement.as_bytes(), b"\0"].concat()
    }

    #[test]
    fn a_charsmap_cannot_fill_the_memory_within_one_cluster() {
        let table = accents_to(&"x".repeat(1000));
        let text = "a".to_owned() + &"\u{301}".repeat(1000);
        let made = |limit| by_graphemes(Charsmap::new(&table), &text, limit).unwrap();
        assert_eq!(made(usize::MAX).len(), 1 + 1_000_000);
        assert_eq!(made(5000).len(), 1 + 5000);
    }
}
