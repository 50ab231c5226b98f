//! Matching by trying: a place in the program, a place in the text, and a stack of ways not taken yet.
//!
//! The stack is a list, not calls, so the depth of a text costs no stack of the thread. Everything that takes time
//! is charged to a budget in proportion to the text: an expression can be slow, but it always ends. Ways to remember
//! and characters of runs are charged whole; steps that do neither are [`CHEAP`].

use super::super::classes::{WORD, classes};
use super::compile::{Group, Program, Step};
use super::parse::{How, Place};
use std::ops::Range;

/// Steps for one text, and more for each of its bytes. Published expressions take two to ten a byte.
const STEPS: u64 = 20_000_000;
const STEPS_PER_BYTE: u64 = 256;
/// So many steps that remember nothing count as one, and so many times [`CHEAP`] bytes of a text that is compared.
const CHEAP: usize = 16;
/// The most ways to remember.
const WAYS: usize = 1 << 20;

/// Something to go back to.
#[derive(Clone, Copy)]
enum Way {
    /// This step at this place.
    Go { step: u32, at: usize },
    /// A run that may give back its last character, but none before `least`.
    Less { step: u32, least: usize, at: usize },
    /// A run that may take another character.
    More { step: u32, left: u32, at: usize },
    /// A look behind that may begin a character earlier.
    Earlier { step: u32, left: u32, at: usize },
    /// The border of a group opened at `at`. One that must not match goes on at `after` when it has not.
    Border { not: bool, after: u32, at: usize },
    /// What a mark was.
    Mark { mark: u32, was: usize },
}

/// Why matching ended without an answer.
type Stop = String;

/// What matching one text needs.
pub(super) struct Search<'a> {
    program: &'a Program,
    text: &'a [u8],
    ways: Vec<Way>,
    /// Where among the ways the borders of open groups are.
    borders: Vec<usize>,
    marks: Vec<usize>,
    left: u64,
    /// Where nothing but line feeds follow.
    last_line: usize,
}

/// The character at `at` and where the next begins.
#[inline]
fn next(text: &[u8], at: usize) -> Option<(u32, usize)> {
    let first = u32::from(*text.get(at)?);
    if first < 0x80 {
        return Some((first, at + 1));
    }
    let more = |i: usize| text.get(at + i).map_or(0, |b| u32::from(b & 0x3F));
    Some(match first {
        0..0xE0 => ((first & 0x1F) << 6 | more(1), at + 2),
        0xE0..0xF0 => ((first & 0x0F) << 12 | more(1) << 6 | more(2), at + 3),
        _ => ((first & 7) << 18 | more(1) << 12 | more(2) << 6 | more(3), at + 4),
    })
}

/// Where the character before `at` begins.
fn before(text: &[u8], at: usize) -> Option<usize> {
    let back = text.get(..at)?.iter().rev().position(|b| b & 0xC0 != 0x80)?;
    Some(at - 1 - back)
}

impl<'a> Search<'a> {
    pub(super) fn new(program: &'a Program, text: &'a str) -> Search<'a> {
        let left = STEPS.saturating_add(STEPS_PER_BYTE.saturating_mul(text.len() as u64));
        let last_line = text.trim_end_matches('\n').len();
        let marks = vec![0; program.marks];
        let (ways, borders) = (Vec::new(), Vec::new());
        Search { program, text: text.as_bytes(), ways, borders, marks, left, last_line }
    }

    /// The same with so many steps for all of the text.
    pub(super) fn within(self, left: u64) -> Search<'a> {
        Search { left, ..self }
    }

    /// The first match that begins at `from` or behind.
    ///
    /// # Errors
    /// The text takes more steps or more ways to remember than there are.
    pub(super) fn find(&mut self, from: usize) -> Result<Option<Range<usize>>, Stop> {
        let (program, text) = (self.program, self.text);
        let first = &program.first;
        let mut start = from;
        loop {
            if !first.empty {
                // No match begins within a character, so bytes will do.
                let rest = text.get(start..).unwrap_or(&[]);
                let Some(skip) = rest.iter().position(|b| first.allows(Some(b))) else { return Ok(None) };
                start += skip;
            }
            self.charge(1)?;
            if let Some(end) = self.match_at(start)? {
                return Ok(Some(start..end));
            }
            // Where the run at the beginning of an expression leads to nothing, neither does a part of it: what
            // follows it has been tried behind each of its characters.
            let behind = self.behind_run(start)?;
            if behind > start {
                start = behind;
                continue;
            }
            match next(text, start) {
                Some((_, behind)) => start = behind,
                None => return Ok(None),
            }
        }
    }

    /// Behind the run of characters from `at` on that every match begins with; `at` where matches begin otherwise.
    fn behind_run(&mut self, mut at: usize) -> Result<usize, Stop> {
        let (program, begin) = (self.program, at);
        let Some(set) = program.run.map(|set| &program.sets[usize::from(set)]) else { return Ok(at) };
        while let Some((c, behind)) = next(self.text, at)
            && set.has(c)
        {
            at = behind;
        }
        self.charge((at - begin) as u64)?;
        Ok(at)
    }

    fn charge(&mut self, steps: u64) -> Result<(), Stop> {
        match self.left.checked_sub(steps) {
            Some(left) => self.left = left,
            None => return Err("it takes too many steps".to_owned()),
        }
        Ok(())
    }

    #[inline]
    fn remember(&mut self, way: Way) -> Result<(), Stop> {
        if self.ways.len() >= WAYS {
            return Err(format!("there are more than {WAYS} ways to try"));
        }
        self.charge(1)?;
        self.ways.push(way);
        Ok(())
    }

    /// The end of the match that begins at `start`.
    fn match_at(&mut self, start: usize) -> Result<Option<usize>, Stop> {
        let (program, text) = (self.program, self.text);
        self.ways.clear();
        self.borders.clear();
        let (mut step, mut at, mut cheap) = (0u32, start, 0);
        loop {
            cheap += 1;
            if cheap >= CHEAP {
                self.charge((cheap / CHEAP) as u64)?;
                cheap %= CHEAP;
            }
            // A step that holds goes on by itself; one that fails leaves the match.
            let failed = match program.steps.get(step as usize) {
                None => return Ok(None),
                Some(Step::Done) => return Ok(Some(at)),
                Some(Step::Text(from, to)) => {
                    let want = program.text.get(*from as usize..*to as usize).unwrap_or(&[]);
                    let found = text.get(at..).is_some_and(|rest| rest.starts_with(want));
                    at += want.len();
                    cheap += want.len() / (CHEAP * CHEAP);
                    !found
                }
                Some(Step::One(set)) => match next(text, at) {
                    Some((c, behind)) if program.sets[usize::from(*set)].has(c) => {
                        at = behind;
                        false
                    }
                    _ => true,
                },
                Some(Step::Run { set, how, least, most }) => {
                    let set = &program.sets[usize::from(*set)];
                    let most = if *how == How::Lazy { *least } else { *most };
                    let (begin, mut floor, mut count) = (at, at, 0);
                    while count < most
                        && let Some((c, behind)) = next(text, at)
                        && set.has(c)
                    {
                        at = behind;
                        count += 1;
                        if count == *least {
                            floor = at;
                        }
                    }
                    self.charge((at - begin) as u64)?;
                    match how {
                        How::Greedy if count > *least => {
                            self.remember(Way::Less { step: step + 1, least: floor, at })?;
                        }
                        How::Lazy => self.remember(Way::More { step, left: self.more(step), at })?,
                        _ => {}
                    }
                    count < *least
                }
                Some(Step::Is(place)) => !self.is(*place, at),
                Some(Step::Peek { set, not }) => {
                    let found = next(text, at).is_some_and(|(c, _)| program.sets[usize::from(*set)].has(c));
                    found == *not
                }
                Some(Step::Split { first, other }) => {
                    if program.firsts[usize::from(*first)].allows(text.get(at)) {
                        self.remember(Way::Go { step: *other, at })?;
                    } else {
                        step = other.wrapping_sub(1);
                    }
                    false
                }
                Some(Step::Later(other)) => {
                    self.remember(Way::Go { step: *other, at })?;
                    false
                }
                Some(Step::Jump(to)) => {
                    step = to.wrapping_sub(1);
                    false
                }
                Some(Step::Open { behind, not, after }) => {
                    self.borders.push(self.ways.len());
                    self.remember(Way::Border { not: *not, after: *after, at })?;
                    match behind.map(|(least, most)| (self.back(at, least), most - least)) {
                        None => false,
                        Some((Err(stop), _)) => return Err(stop),
                        Some((Ok(None), _)) => true,
                        Some((Ok(Some(begin)), left)) => {
                            self.remember(Way::Earlier { step: step + 1, left, at: begin })?;
                            at = begin;
                            false
                        }
                    }
                }
                Some(Step::Close(group, not)) => {
                    // Groups within this one have been closed or gone back from: the last border is its own.
                    let border = self.borders.last().copied();
                    let opened = border.and_then(|i| self.ways.get(i)).copied();
                    match (border, opened) {
                        (Some(border), Some(Way::Border { at: opened, .. })) => {
                            let fits = *group != Group::Behind || at == opened;
                            if fits {
                                self.ways.truncate(border);
                                self.borders.pop();
                                at = if *group == Group::Atomic { at } else { opened };
                            }
                            !fits || *not
                        }
                        _ => true,
                    }
                }
                Some(Step::Mark(mark)) => {
                    if let Some(slot) = self.marks.get_mut(*mark as usize) {
                        let was = std::mem::replace(slot, at);
                        self.remember(Way::Mark { mark: *mark, was })?;
                    }
                    false
                }
                Some(Step::Check(mark, out)) => {
                    if self.marks.get(*mark as usize) == Some(&at) {
                        step = out.wrapping_sub(1);
                    }
                    false
                }
            };
            if !failed {
                step = step.wrapping_add(1);
                continue;
            }
            match self.go_back()? {
                Some(other) => (step, at) = other,
                None => return Ok(None),
            }
        }
    }

    /// The last way not taken yet.
    fn go_back(&mut self) -> Result<Option<(u32, usize)>, Stop> {
        while let Some(way) = self.ways.pop() {
            match way {
                Way::Go { step, at } => return Ok(Some((step, at))),
                Way::Less { step, least, at } => {
                    let at = before(self.text, at).unwrap_or(0);
                    if at > least {
                        self.remember(Way::Less { step, least, at })?;
                    }
                    return Ok(Some((step, at)));
                }
                Way::More { step, left, at } => {
                    let Some(Step::Run { set, .. }) = self.program.steps.get(step as usize) else { continue };
                    if left > 0
                        && let Some((c, at)) = next(self.text, at)
                        && self.program.sets[usize::from(*set)].has(c)
                    {
                        self.remember(Way::More { step, left: left - 1, at })?;
                        return Ok(Some((step + 1, at)));
                    }
                }
                Way::Earlier { step, left, at } => {
                    if left > 0
                        && let Some(at) = before(self.text, at)
                    {
                        self.remember(Way::Earlier { step, left: left - 1, at })?;
                        return Ok(Some((step, at)));
                    }
                }
                Way::Border { not, after, at } => {
                    self.borders.pop();
                    if not {
                        return Ok(Some((after, at)));
                    }
                }
                Way::Mark { mark, was } => {
                    if let Some(slot) = self.marks.get_mut(mark as usize) {
                        *slot = was;
                    }
                }
            }
        }
        Ok(None)
    }

    /// How many characters the lazy run at `step` may take besides those it has to.
    fn more(&self, step: u32) -> u32 {
        match self.program.steps.get(step as usize) {
            Some(Step::Run { least, most, .. }) => most - least,
            _ => 0,
        }
    }

    /// The place `count` characters before `at`.
    fn back(&mut self, mut at: usize, count: u32) -> Result<Option<usize>, Stop> {
        for _ in 0..count {
            self.charge(1)?;
            match before(self.text, at) {
                Some(before) => at = before,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    fn is(&self, place: Place, at: usize) -> bool {
        let word = |place: Option<usize>| {
            let c = place.and_then(|place| next(self.text, place)).and_then(|c| char::from_u32(c.0));
            c.is_some_and(|c| classes().of(c) & WORD != 0)
        };
        match place {
            Place::Start => at == 0,
            Place::End => at == self.text.len(),
            Place::LastLine => at >= self.last_line,
            Place::LineStart => at == 0 || self.text.get(at - 1) == Some(&b'\n'),
            Place::LineEnd => self.text.get(at).is_none_or(|b| *b == b'\n'),
            Place::Boundary(want) => (word(before(self.text, at)) != word(Some(at))) == want,
        }
    }
}
