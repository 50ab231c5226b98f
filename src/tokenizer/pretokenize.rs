//! Splitting text into the words that the model encodes one by one.
//!
//! A single split by a known pattern, which is what byte-level models do, streams its words. Any other program goes
//! step by step over a list of pieces.

use super::classes::{Classes, PUNCTUATION, SPACE, WORD, classes};
use super::normalize::{GROWTH, ROOM};
use super::pattern::Matcher;
use super::scan;
use crate::error::{Error, Result, Status};
use llm_format::tokens::{Behavior, Pattern, PreTokenizer, Scanner, Scheme};
use std::borrow::Cow;
use std::ops::Range;

/// A splitting program with its compiled patterns.
#[derive(Debug)]
pub(crate) struct PreTokenizers {
    steps: Vec<(PreTokenizer, Option<Matcher>)>,
    only: Option<Scanner>,
}

/// A piece of text and whether it begins where the whole input begins.
type Piece<'t> = (Cow<'t, str>, bool);

impl PreTokenizers {
    pub(crate) fn new(steps: &[PreTokenizer]) -> Result<PreTokenizers> {
        let with_matcher = |step: &PreTokenizer| {
            let matcher = match step {
                PreTokenizer::Split(pattern, ..) => Some(Matcher::new(pattern.clone())?),
                _ => None,
            };
            Ok((step.clone(), matcher))
        };
        let only = match steps {
            [PreTokenizer::Split(Pattern::Known(scanner), Behavior::Isolated, _)] => Some(*scanner),
            _ => None,
        };
        Ok(PreTokenizers { steps: steps.iter().map(with_matcher).collect::<Result<_>>()?, only })
    }

    /// Hands out the words of `text`; `first`: it begins where the whole input begins.
    pub(crate) fn run(&self, text: &str, first: bool, mut give: impl FnMut(&str)) -> Result<()> {
        if let Some(scanner) = self.only {
            scan::each_match(scanner, text, give);
            return Ok(());
        }
        // Steps that put something in front of every piece and split it off again could double the pieces each time.
        let limit = text.len().saturating_mul(GROWTH).saturating_add(ROOM);
        let mut pieces: Vec<Piece> = vec![(Cow::Borrowed(text), first)];
        for (step, matcher) in &self.steps {
            let mut next: Vec<Piece> = Vec::with_capacity(pieces.len());
            let mut bytes = 0usize;
            for piece in pieces {
                let from = next.len();
                one(step, matcher.as_ref(), piece, &mut next)?;
                bytes += next[from..].iter().map(|(piece, _)| piece.len()).sum::<usize>();
                if bytes > limit {
                    let what = format!(
                        "the tokenizer's pre-tokenizer makes more than {limit} bytes of a text: its program is not sound"
                    );
                    return Err(Error::new(Status::UNSUPPORTED, what));
                }
            }
            pieces = next;
        }
        for (piece, _) in &pieces {
            give(piece);
        }
        Ok(())
    }
}

fn one<'t>(
    step: &PreTokenizer,
    matcher: Option<&Matcher>,
    (text, first): Piece<'t>,
    out: &mut Vec<Piece<'t>>,
) -> Result<()> {
    let classes = classes();
    let mut cuts = Cuts::default();
    let (behavior, invert) = match step {
        PreTokenizer::Split(_, behavior, invert) => {
            if let Some(matcher) = matcher {
                cuts.fill(&text, |give| matcher.each(&text, give))?;
            }
            (*behavior, *invert)
        }
        PreTokenizer::PrefixSpace => {
            let text = if text.starts_with(' ') { text } else { Cow::Owned(format!(" {text}")) };
            out.push((text, first));
            return Ok(());
        }
        PreTokenizer::Metaspace(symbol, scheme, split) => {
            let mut utf8 = [0; 4];
            let symbol: &str = symbol.encode_utf8(&mut utf8);
            let prefix = match scheme {
                Scheme::Always => true,
                Scheme::First => first,
                Scheme::Never => false,
            };
            let mut new = text.replace(' ', symbol);
            if prefix && !new.starts_with(symbol) {
                new.insert_str(0, symbol);
            }
            if *split {
                cuts.fill(&new, |give| {
                    new.match_indices(symbol).map(|(at, m)| at..at + m.len()).for_each(give);
                    Ok(())
                })?;
                cuts.pieces(Cow::Owned(new), first, Behavior::MergedWithNext, false, out);
            } else {
                out.push((Cow::Owned(new), first));
            }
            return Ok(());
        }
        PreTokenizer::Digits(each) => {
            cuts.characters(&text, char::is_numeric)?;
            (if *each { Behavior::Isolated } else { Behavior::Contiguous }, false)
        }
        PreTokenizer::Punctuation(behavior) => {
            cuts.characters(&text, |c| c.is_ascii_punctuation() || classes.of(c) & PUNCTUATION != 0)?;
            (*behavior, false)
        }
        PreTokenizer::Whitespace => {
            cuts.fill(&text, |give| {
                words(&text, classes, give);
                Ok(())
            })?;
            (Behavior::Removed, true)
        }
        PreTokenizer::WhitespaceSplit => {
            cuts.characters(&text, char::is_whitespace)?;
            (Behavior::Removed, false)
        }
        PreTokenizer::Delimiter(symbol) => {
            cuts.characters(&text, |c| c == *symbol)?;
            (Behavior::Removed, false)
        }
    };
    cuts.pieces(text, first, behavior, invert, out);
    Ok(())
}

/// `\w+|[^\w\s]+`
fn words(text: &str, classes: &Classes, mut give: impl FnMut(Range<usize>)) {
    let kind = |c: char| match classes.of(c) {
        class if class & WORD != 0 => 1,
        class if class & SPACE != 0 => 0,
        _ => 2,
    };
    let mut from = 0;
    let mut last = 0;
    for (at, c) in text.char_indices() {
        let now = kind(c);
        if now != last {
            if last != 0 {
                give(from..at);
            }
            (from, last) = (at, now);
        }
    }
    if last != 0 {
        give(from..text.len());
    }
}

/// A text cut into matches and what lies between.
#[derive(Default)]
struct Cuts(Vec<(Range<usize>, bool)>);

impl Cuts {
    fn fill(
        &mut self,
        text: &str,
        each: impl FnOnce(&mut dyn FnMut(Range<usize>)) -> Result<()>,
    ) -> Result<()> {
        let mut from = 0;
        each(&mut |m: Range<usize>| {
            if from != m.start {
                self.0.push((from..m.start, false));
            }
            from = m.end;
            self.0.push((m, true));
        })?;
        if from != text.len() {
            self.0.push((from..text.len(), false));
        }
        Ok(())
    }

    fn characters(&mut self, text: &str, is: impl Fn(char) -> bool) -> Result<()> {
        self.fill(text, |give| {
            text.char_indices().filter(|(_, c)| is(*c)).for_each(|(at, c)| give(at..at + c.len_utf8()));
            Ok(())
        })
    }

    /// The pieces that `behavior` makes of the cuts; empty ones are left out.
    fn pieces<'t>(
        self,
        text: Cow<'t, str>,
        first: bool,
        behavior: Behavior,
        invert: bool,
        out: &mut Vec<Piece<'t>>,
    ) {
        let cuts = self.0.into_iter().map(|(range, matched)| (range, matched != invert));
        let mut ranges: Vec<Range<usize>> = Vec::new();
        let mut previous = false;
        match behavior {
            Behavior::Isolated => ranges.extend(cuts.map(|c| c.0)),
            Behavior::Removed => ranges.extend(cuts.filter(|c| !c.1).map(|c| c.0)),
            Behavior::Contiguous | Behavior::MergedWithPrevious => {
                for (range, matched) in cuts {
                    let join = match behavior {
                        Behavior::Contiguous => matched == previous,
                        _ => matched && !previous,
                    };
                    match ranges.last_mut() {
                        Some(last) if join => last.end = range.end,
                        _ => ranges.push(range),
                    }
                    previous = matched;
                }
            }
            Behavior::MergedWithNext => {
                for (range, matched) in cuts.rev() {
                    match ranges.last_mut() {
                        Some(last) if matched && !previous => last.start = range.start,
                        _ => ranges.push(range),
                    }
                    previous = matched;
                }
                ranges.reverse();
            }
        }
        for range in ranges.into_iter().filter(|r| !r.is_empty()) {
            let first = first && range.start == 0;
            let piece = match &text {
                Cow::Borrowed(text) => Cow::Borrowed(&text[range]),
                Cow::Owned(text) => Cow::Owned(text[range].to_owned()),
            };
            out.push((piece, first));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(steps: &[PreTokenizer], text: &str) -> Vec<String> {
        let mut out = Vec::new();
        PreTokenizers::new(steps).unwrap().run(text, true, |w| out.push(w.to_owned())).unwrap();
        out
    }

    #[test]
    fn behaviours_treat_separators_as_their_names_say() {
        let by = |behavior| {
            split(
                &[PreTokenizer::Split(Pattern::Literal("-".into()), behavior, false)],
                "The-final--countdown",
            )
        };
        assert_eq!(by(Behavior::Removed), ["The", "final", "countdown"]);
        assert_eq!(by(Behavior::Isolated), ["The", "-", "final", "-", "-", "countdown"]);
        assert_eq!(by(Behavior::MergedWithPrevious), ["The-", "final-", "-", "countdown"]);
        assert_eq!(by(Behavior::MergedWithNext), ["The", "-final", "-", "-countdown"]);
        assert_eq!(by(Behavior::Contiguous), ["The", "-", "final", "--", "countdown"]);
    }

    #[test]
    fn metaspace_puts_its_symbol_first_by_scheme() {
        let by = |scheme| split(&[PreTokenizer::Metaspace('_', scheme, true)], "a b  c");
        assert_eq!(by(Scheme::Always), ["_a", "_b", "_", "_c"]);
        assert_eq!(by(Scheme::Never), ["a", "_b", "_", "_c"]);
        assert_eq!(split(&[PreTokenizer::Whitespace], " ab, c!? "), ["ab", ",", "c", "!?"]);
        assert_eq!(split(&[PreTokenizer::Digits(true)], "a12b"), ["a", "1", "2", "b"]);
    }

    #[test]
    fn a_program_that_doubles_its_pieces_is_an_error() {
        let doubling = |symbol: char| {
            let split = Pattern::Literal(symbol.to_string());
            [
                PreTokenizer::Metaspace(symbol, Scheme::Always, false),
                PreTokenizer::Split(split, Behavior::Isolated, false),
            ]
        };
        let steps: Vec<_> = ['a', 'b'].into_iter().cycle().take(32).flat_map(doubling).collect();
        assert_eq!(split(&steps[..6], "x").len(), 7);
        let error = PreTokenizers::new(&steps).unwrap().run("x", true, |_| {}).unwrap_err();
        assert!(error.message().contains("not sound"), "{error}");
    }

    #[test]
    fn a_pattern_that_runs_away_is_an_error() {
        let nested = Pattern::Regex("(a+)+$".into());
        let steps = [PreTokenizer::Split(nested, Behavior::Isolated, false)];
        let steps = PreTokenizers::new(&steps).unwrap();
        assert!(steps.run(&"a".repeat(4000), true, |_| {}).is_ok());
        let error = steps.run(&("a".repeat(4000) + "!"), true, |_| {}).unwrap_err();
        assert!(error.message().contains("gave up"), "{error}");
    }
}
