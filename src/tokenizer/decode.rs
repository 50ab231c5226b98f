//! Ids to text: a chain of steps that tokens pass one by one.
//!
//! Hugging Face defines a decoder over the whole list of tokens. Here every step is a machine that takes one token
//! and hands on what is certain, so that a stream and a whole list give the same bytes by construction. Steps behind
//! a [`Decoder::Fuse`] see the text as one token arriving in fragments; the few that cannot work on fragments wait
//! for the end.

use super::pattern::Matcher;
use crate::error::Result;
use llm_format::tokens::{Decoder, Pattern, Scheme, View, byte_to_char, char_to_byte, flag};
use std::borrow::Cow;

/// SentencePiece's character for a space.
const SPACE_SYMBOL: &str = "\u{2581}";
const REPLACEMENT: &[u8] = "\u{FFFD}".as_bytes();

/// A decoding program with its compiled patterns.
#[derive(Debug)]
pub(crate) struct Decoders {
    steps: Vec<(Decoder, Option<Matcher>)>,
    /// Steps from here on see one token in fragments.
    fused: usize,
}

/// Where a chain stands.
#[derive(Clone, Default, Debug)]
pub(crate) struct State {
    steps: Vec<StepState>,
}

#[derive(Clone, Default, Debug)]
struct StepState {
    /// Bytes held back.
    held: Vec<u8>,
    /// Tokens seen, or for a strip of the whole text the characters still to drop.
    count: u64,
    /// Something has been seen or given out.
    started: bool,
}

/// One token on its way.
#[derive(Clone, Copy)]
struct Token<'a> {
    bytes: &'a [u8],
    flags: u16,
}

impl Decoders {
    pub(crate) fn new(steps: &[Decoder]) -> Result<Decoders> {
        let steps = if steps.is_empty() { &[Decoder::Join] } else { steps };
        let with_matcher = |step: &Decoder| {
            let matcher = match step {
                Decoder::Replace(pattern, _) => Some(Matcher::new(pattern.clone())?),
                _ => None,
            };
            Ok((step.clone(), matcher))
        };
        let fuses = |s: &Decoder| matches!(s, Decoder::Fuse | Decoder::ByteLevel);
        let fused = steps.iter().position(fuses).map_or(steps.len(), |at| at + 1);
        Ok(Decoders { steps: steps.iter().map(with_matcher).collect::<Result<_>>()?, fused })
    }

    pub(crate) fn state(&self) -> State {
        State { steps: vec![StepState::default(); self.steps.len()] }
    }

    /// Passes one token through; what is certain is appended to `out`.
    pub(crate) fn push(
        &self,
        view: &View,
        id: u32,
        skip_special: bool,
        state: &mut State,
        out: &mut Vec<u8>,
    ) {
        let flags = view.flags(id);
        if flags & flag::PRESENT == 0 || skip_special && flags & flag::SPECIAL != 0 {
            return;
        }
        let bytes = view.token(id).unwrap_or(&[]);
        let level = matches!(self.steps.first(), Some((Decoder::ByteLevel, _)));
        if flags & flag::MAPPED != 0 && !level {
            // No byte-level decoder: the token is shown by the characters that stand for its bytes.
            let shown: String = bytes.iter().map(|b| byte_to_char(*b)).collect();
            return self.feed(0, Token { bytes: shown.as_bytes(), flags: flags & !flag::MAPPED }, state, out);
        }
        self.feed(0, Token { bytes, flags }, state, out);
    }

    /// The end: what was held back.
    pub(crate) fn finish(&self, state: &mut State, out: &mut Vec<u8>) {
        for at in 0..self.steps.len() {
            let held = std::mem::take(&mut state.steps[at].held);
            let started = state.steps[at].started;
            let text = |bytes| Token { bytes, flags: 0 };
            match &self.steps[at].0 {
                Decoder::ByteFallback => self.give_run(at, &held, state, out),
                Decoder::Suffix(suffix) if started => {
                    let last = replace(&held, suffix.as_bytes(), b"");
                    self.feed(at + 1, text(&last), state, out);
                }
                Decoder::SentencePiece(..) => {
                    for _ in 0..held.len() {
                        self.feed(at + 1, text(REPLACEMENT), state, out);
                    }
                }
                // Characters that the strip at the end takes were held for it.
                Decoder::Strip(..) => {}
                _ if at >= self.fused && started && !self.flows(at) => {
                    let whole = self.whole(at, &held);
                    self.feed(at + 1, text(&whole), state, out);
                }
                _ => {}
            }
        }
        *state = self.state();
    }

    /// Whether the step can work on fragments of one token.
    fn flows(&self, at: usize) -> bool {
        match &self.steps[at].0 {
            Decoder::Fuse | Decoder::Metaspace(..) => true,
            Decoder::Strip(symbol, ..) => symbol.is_ascii(),
            Decoder::Replace(Pattern::Literal(from), _) => from.len() == 1,
            _ => false,
        }
    }

    /// What a step that waited for the end makes of the whole text.
    fn whole(&self, at: usize, text: &[u8]) -> Vec<u8> {
        let single = Decoders { steps: vec![(self.steps[at].0.clone(), None)], fused: usize::MAX };
        let mut state = single.state();
        let mut out = Vec::new();
        if let (Decoder::Replace(_, to), Some(matcher)) = &self.steps[at] {
            return replace_by(matcher, text, to).into_owned();
        }
        single.feed(0, Token { bytes: text, flags: 0 }, &mut state, &mut out);
        single.finish(&mut state, &mut out);
        out
    }

    fn feed(&self, at: usize, token: Token, state: &mut State, out: &mut Vec<u8>) {
        let Some((step, matcher)) = self.steps.get(at) else {
            out.extend_from_slice(token.bytes);
            return;
        };
        let fused = at >= self.fused;
        let own = &mut state.steps[at];
        if fused && !self.flows(at) {
            own.started = true;
            own.held.extend_from_slice(token.bytes);
            return;
        }
        let next = |bytes: &[u8], state: &mut State, out: &mut Vec<u8>| {
            self.feed(at + 1, Token { bytes, flags: token.flags }, state, out);
        };
        match step {
            Decoder::Fuse => next(token.bytes, state, out),
            Decoder::ByteLevel if token.flags & flag::MAPPED != 0 => next(token.bytes, state, out),
            Decoder::ByteLevel => match unmap(token.bytes) {
                Some(bytes) => next(&bytes, state, out),
                None => next(token.bytes, state, out),
            },
            Decoder::ByteFallback => match spelled_byte(token.bytes) {
                Some(byte) => own.held.push(byte),
                None => {
                    let held = std::mem::take(&mut own.held);
                    self.give_run(at, &held, state, out);
                    next(token.bytes, state, out);
                }
            },
            Decoder::Replace(Pattern::Literal(from), to) => {
                next(&replace(token.bytes, from.as_bytes(), to.as_bytes()), state, out);
            }
            Decoder::Replace(_, to) => match matcher {
                Some(matcher) => next(&replace_by(matcher, token.bytes, to), state, out),
                None => next(token.bytes, state, out),
            },
            Decoder::Strip(symbol, start, stop) if fused => {
                let text = strip_fragment(own, *symbol as u8, u64::from(*start), *stop as usize, token.bytes);
                next(&text, state, out);
            }
            Decoder::Strip(symbol, start, stop) => {
                let mut utf8 = [0; 4];
                let symbol = symbol.encode_utf8(&mut utf8).as_bytes();
                let mut text = token.bytes;
                for _ in 0..*start {
                    let Some(rest) = text.strip_prefix(symbol) else { break };
                    text = rest;
                }
                for _ in 0..*stop {
                    let Some(rest) = text.strip_suffix(symbol) else { break };
                    text = rest;
                }
                next(text, state, out);
            }
            Decoder::Metaspace(symbol, scheme) => {
                let first = fused || !own.started;
                own.started = true;
                let space: &[u8] = if first && *scheme != Scheme::Never { b"" } else { b" " };
                let mut utf8 = [0; 4];
                let symbol = symbol.encode_utf8(&mut utf8).as_bytes();
                next(&replace(token.bytes, symbol, space), state, out);
            }
            Decoder::Suffix(suffix) => {
                let before = std::mem::replace(&mut own.held, token.bytes.to_vec());
                if std::mem::replace(&mut own.started, true) {
                    next(&replace(&before, suffix.as_bytes(), b" "), state, out);
                }
            }
            Decoder::WordPiece(prefix, tidy) => {
                let first = !std::mem::replace(&mut own.started, true);
                let text = match token.bytes.strip_prefix(prefix.as_bytes()) {
                    _ if first => token.bytes.to_vec(),
                    Some(rest) => rest.to_vec(),
                    None => [b" ", token.bytes].concat(),
                };
                let text = if *tidy { tidied(text) } else { text };
                next(&text, state, out);
            }
            Decoder::Join => {
                if std::mem::replace(&mut own.started, true) {
                    next(b" ", state, out);
                }
                next(token.bytes, state, out);
            }
            Decoder::SentencePiece(dummy, extra, unknown) => {
                self.piece(at, token, [*dummy, *extra], unknown, state, out);
            }
        }
    }

    /// A run of byte tokens: the text it spells, or one U+FFFD for each byte.
    fn give_run(&self, at: usize, run: &[u8], state: &mut State, out: &mut Vec<u8>) {
        if run.is_empty() {
            return;
        }
        if std::str::from_utf8(run).is_ok() {
            self.feed(at + 1, Token { bytes: run, flags: 0 }, state, out);
        } else {
            run.iter().for_each(|_| {
                self.feed(at + 1, Token { bytes: REPLACEMENT, flags: 0 }, state, out);
            });
        }
    }

    /// SentencePiece's rules (`sentencepiece_processor.cc`, `Decode`): the space in front of the text away, all of
    /// them where extra white space was removed; bytes character by character.
    fn piece(
        &self,
        at: usize,
        token: Token,
        [dummy, extra]: [bool; 2],
        unknown: &str,
        state: &mut State,
        out: &mut Vec<u8>,
    ) {
        let own = &mut state.steps[at];
        let mut text = Vec::new();
        if token.flags & flag::BYTE != 0 {
            own.held.extend(spelled_byte(token.bytes));
            // Whole characters go on at once; a byte that cannot begin one is U+FFFD.
            loop {
                let error = match std::str::from_utf8(&own.held) {
                    Ok(_) => {
                        text.append(&mut own.held);
                        break;
                    }
                    Err(error) => error,
                };
                text.extend(own.held.drain(..error.valid_up_to()));
                if error.error_len().is_none() {
                    break;
                }
                own.held.drain(..1);
                text.extend_from_slice(REPLACEMENT);
            }
        } else {
            for _ in own.held.drain(..) {
                text.extend_from_slice(REPLACEMENT);
            }
            // `count` 1: the one space has been dropped.
            own.started |= !text.is_empty() || own.count == 1;
            let mut piece = token.bytes;
            if token.flags & flag::UNKNOWN != 0 {
                piece = unknown.as_bytes();
            } else if !own.started
                && (dummy || extra)
                && let Some(rest) = piece.strip_prefix(SPACE_SYMBOL.as_bytes())
            {
                piece = rest;
                own.count = u64::from(!extra);
            }
            text.extend_from_slice(&replace(piece, SPACE_SYMBOL.as_bytes(), b" "));
        }
        own.started |= !text.is_empty();
        if !text.is_empty() {
            self.feed(at + 1, Token { bytes: &text, flags: token.flags }, state, out);
        }
    }

    /// What a token adds in the middle of a text, as far as that does not depend on its neighbours.
    pub(crate) fn alone<'a>(&self, bytes: &'a [u8], flags: u16) -> Cow<'a, [u8]> {
        if flags & flag::BYTE != 0
            && let Some(byte) = spelled_byte(bytes)
        {
            return Cow::Owned(vec![byte]);
        }
        let mut text = Cow::Borrowed(bytes);
        for (step, matcher) in &self.steps {
            let new = match step {
                Decoder::ByteLevel if flags & flag::MAPPED == 0 => unmap(&text),
                Decoder::Replace(_, to) => matcher.as_ref().map(|m| replace_by(m, &text, to).into_owned()),
                Decoder::Metaspace(symbol, _) => {
                    Some(replace(&text, symbol.encode_utf8(&mut [0; 4]).as_bytes(), b" ").into_owned())
                }
                Decoder::SentencePiece(..) => {
                    Some(replace(&text, SPACE_SYMBOL.as_bytes(), b" ").into_owned())
                }
                _ => None,
            };
            if let Some(new) = new {
                text = Cow::Owned(new);
            }
        }
        text
    }
}

/// Fragments of one text with up to `start` symbols off its front and `stop` off its end. `count`: dropped so far.
fn strip_fragment(own: &mut StepState, symbol: u8, start: u64, stop: usize, fragment: &[u8]) -> Vec<u8> {
    let mut text = std::mem::take(&mut own.held);
    text.extend_from_slice(fragment);
    let front = if own.started { 0 } else { text.iter().take_while(|b| **b == symbol).count() };
    let drop = (front as u64).min(start - own.count.min(start)) as usize;
    own.count += drop as u64;
    own.started |= text.len() > drop || own.count >= start && start > 0;
    let back = text[drop..].iter().rev().take(stop).take_while(|b| **b == symbol).count();
    own.held = text.split_off(text.len() - back);
    text.drain(..drop);
    text
}

/// A replacement that makes a token longer than this is left undone: none published does, and a program of many
/// could fill the memory.
const GROWTH: usize = 1024;

fn replace<'a>(text: &'a [u8], from: &[u8], to: &[u8]) -> Cow<'a, [u8]> {
    let Some(&first) = from.first() else { return Cow::Borrowed(text) };
    let find = |text: &[u8], mut at: usize| loop {
        at += text.get(at..)?.iter().position(|b| *b == first)?;
        if text[at..].starts_with(from) {
            return Some(at);
        }
        at += 1;
    };
    let Some(mut at) = find(text, 0) else { return Cow::Borrowed(text) };
    let (mut out, mut start) = (Vec::with_capacity(text.len()), 0);
    loop {
        if out.len() > text.len() + GROWTH {
            return Cow::Borrowed(text);
        }
        out.extend_from_slice(&text[start..at]);
        out.extend_from_slice(to);
        start = at + from.len();
        match find(text, start) {
            Some(next) => at = next,
            None => break,
        }
    }
    out.extend_from_slice(&text[start..]);
    Cow::Owned(out)
}

/// A replacement by pattern; text that is not UTF-8, or on which the pattern gives up, stays as it is.
fn replace_by<'a>(matcher: &Matcher, text: &'a [u8], to: &str) -> Cow<'a, [u8]> {
    if let Pattern::Literal(from) = matcher.pattern() {
        return replace(text, from.as_bytes(), to.as_bytes());
    }
    let limit = text.len() + GROWTH;
    let new = std::str::from_utf8(text).ok().and_then(|t| matcher.replace(t, to, limit).ok().flatten());
    let new = new.filter(|t| t.len() <= limit);
    new.map_or(Cow::Borrowed(text), |t| Cow::Owned(t.into_bytes()))
}

/// The byte that `<0x..>` spells.
pub(crate) fn spelled_byte(token: &[u8]) -> Option<u8> {
    let digits = token.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    let text = std::str::from_utf8(digits).ok().filter(|d| d.len() == 2)?;
    u8::from_str_radix(text, 16).ok()
}

/// The bytes behind a token of byte-level characters; `None` where one is something else.
fn unmap(token: &[u8]) -> Option<Vec<u8>> {
    std::str::from_utf8(token).ok()?.chars().map(char_to_byte).collect()
}

/// The clean-up of English punctuation that comes with word pieces.
fn tidied(text: Vec<u8>) -> Vec<u8> {
    const RULES: [(&str, &str); 11] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" do not", " don't"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    RULES.iter().fold(text, |t, (from, to)| replace(&t, from.as_bytes(), to.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripping_fragments_equals_stripping_the_whole() {
        for text in ["", " ", "   a  ", "a", "  ", " a b ", "     "] {
            for (start, stop) in [(1, 0), (2, 1), (0, 2), (9, 9)] {
                for cut in 0..=text.len() {
                    let mut own = StepState::default();
                    let mut got = strip_fragment(&mut own, b' ', start, stop, &text.as_bytes()[..cut]);
                    got.extend(strip_fragment(&mut own, b' ', start, stop, &text.as_bytes()[cut..]));
                    let mut want = text;
                    for _ in 0..start {
                        want = want.strip_prefix(' ').unwrap_or(want);
                    }
                    for _ in 0..stop {
                        want = want.strip_suffix(' ').unwrap_or(want);
                    }
                    assert_eq!(String::from_utf8(got).unwrap(), want, "{text:?} {start} {stop} {cut}");
                }
            }
        }
    }
}
