//! A tree to a list of steps that [`super::run`] takes.
//!
//! ```text
//! a|b      split ⟶2  a  jump ⟶3   2: b   3:
//! a*       1: split ⟶2  a  jump ⟶1   2:
//! a+       1: a  split ⟶2  jump ⟶1   2:
//! (?=a)    open  a  close
//! ```
//!
//! A split goes on with the next step and remembers the other; it knows the bytes that the next step's match can begin
//! with, and where the text has none of them it goes to the other at once. That is what makes long alternations quick:
//! for most alternatives a character of the text costs one look at a table. A repetition of single characters, the
//! most frequent kind, is one step.
//!
//! Counted repetitions of anything longer are written out, so the size of a program is bounded by [`MOST`] alone.

use super::parse::{ENDLESS, How, Node, Place, parse};
use super::set::{First, Set, Sets};

/// The most steps of a program. Published expressions have up to two hundred.
const MOST: usize = 1 << 15;
/// The most bytes of text in a program: a repetition writes its text out, too.
const TEXT: usize = 1 << 20;

/// What a group that is left behind was opened for.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Group {
    Atomic,
    Ahead,
    Behind,
}

/// One step. Numbers are places in the lists of [`Program`].
#[derive(Clone, Copy)]
pub(super) enum Step {
    /// These bytes of [`Program::text`].
    Text(u32, u32),
    One(u16),
    /// From `least` to `most` characters of a set.
    Run {
        set: u16,
        how: How,
        least: u32,
        most: u32,
    },
    Is(Place),
    /// The character here is one of a set, or with `not` is none or another.
    Peek {
        set: u16,
        not: bool,
    },
    /// Goes on at the next step, or at this one.
    Split {
        first: u16,
        other: u32,
    },
    /// Goes on at the next step, and if that fails at this one.
    Later(u32),
    Jump(u32),
    /// Goes on at the next step up to a [`Step::Close`]. `behind`: from how many characters back at least and at most.
    /// With `not` where that fails, at `after`.
    Open {
        behind: Option<(u32, u32)>,
        not: bool,
        after: u32,
    },
    Close(Group, bool),
    /// Remembers the place in the text.
    Mark(u32),
    /// Goes to the second where the place is the remembered one: a round that took nothing is the last.
    Check(u32, u32),
    Done,
}

/// A compiled expression.
pub(super) struct Program {
    pub(super) steps: Vec<Step>,
    pub(super) text: Vec<u8>,
    pub(super) sets: Vec<Set>,
    pub(super) firsts: Vec<First>,
    /// How many places a match remembers.
    pub(super) marks: usize,
    /// What a match can begin with.
    pub(super) first: First,
    /// The set of a run without an upper bound that every match begins with.
    pub(super) run: Option<u16>,
}

impl Program {
    /// The program of an expression.
    ///
    /// # Errors
    /// What about the text is not understood, or what is too large.
    pub(super) fn new(text: &str) -> Result<Program, String> {
        let mut sets = Sets::default();
        let node = parse(text, &mut sets)?;
        let first = First::EMPTY;
        let (steps, text, firsts, sets) = (Vec::new(), Vec::new(), Vec::new(), sets.all);
        let mut program = Program { steps, text, sets, firsts, marks: 0, first, run: leading_run(&node) };
        program.first = program.first_of(&node);
        program.node(&node)?;
        program.add(Step::Done)?;
        Ok(program)
    }

    /// What a match of `node` can begin with.
    fn first_of(&self, node: &Node) -> First {
        match node {
            Node::Empty | Node::Is(_) | Node::Look { .. } => First::EMPTY,
            Node::Text(text) => {
                let mut first = First::default();
                text.bytes().take(1).for_each(|b| first.add(b));
                first
            }
            Node::One(set) => self.sets[usize::from(*set)].first,
            Node::All(nodes) => {
                let mut all = First::default();
                for node in nodes {
                    let first = self.first_of(node);
                    all.join(&first);
                    if !first.empty {
                        return all;
                    }
                }
                First { empty: true, ..all }
            }
            Node::Any(nodes) => {
                nodes.iter().map(|node| self.first_of(node)).fold(First::default(), |mut a, b| {
                    a.join(&b);
                    First { empty: a.empty || b.empty, ..a }
                })
            }
            Node::Repeat(node, least, ..) => {
                let first = self.first_of(node);
                First { empty: first.empty || *least == 0, ..first }
            }
            Node::Atomic(node) => self.first_of(node),
        }
    }

    fn add(&mut self, step: Step) -> Result<usize, String> {
        if self.steps.len() == MOST {
            return Err(format!("written out it takes more than {MOST} steps"));
        }
        self.steps.push(step);
        Ok(self.steps.len() - 1)
    }

    /// Where the next step will be.
    fn here(&self) -> u32 {
        self.steps.len() as u32
    }

    /// Lets the step at `at` lead here.
    fn lead_here(&mut self, at: usize) {
        let here = self.here();
        match &mut self.steps[at] {
            Step::Split { other: to, .. }
            | Step::Jump(to)
            | Step::Open { after: to, .. }
            | Step::Check(_, to) => *to = here,
            _ => {}
        }
    }

    /// A way on to `node`, to be followed by its steps; the way around it is still to be led somewhere.
    fn split(&mut self, node: &Node) -> Result<usize, String> {
        let first = self.first_of(node);
        let known = self.firsts.iter().position(|f| *f == first);
        let at = known.unwrap_or(self.firsts.len());
        if known.is_none() {
            self.firsts.push(first);
        }
        self.add(Step::Split { first: at as u16, other: 0 })
    }

    fn node(&mut self, node: &Node) -> Result<(), String> {
        match node {
            Node::Empty => {}
            Node::Text(text) => {
                let from = self.text.len();
                if from + text.len() > TEXT {
                    return Err(format!("written out its texts take more than {TEXT} bytes"));
                }
                self.text.extend_from_slice(text.as_bytes());
                self.add(Step::Text(from as u32, self.text.len() as u32))?;
            }
            Node::One(set) => drop(self.add(Step::One(*set))?),
            Node::Is(place) => drop(self.add(Step::Is(*place))?),
            Node::All(nodes) => nodes.iter().try_for_each(|node| self.node(node))?,
            Node::Any(nodes) => {
                let mut ends = Vec::new();
                for (i, node) in nodes.iter().enumerate() {
                    if i + 1 == nodes.len() {
                        self.node(node)?;
                        break;
                    }
                    let split = self.split(node)?;
                    self.node(node)?;
                    ends.push(self.add(Step::Jump(0))?);
                    self.lead_here(split);
                }
                ends.into_iter().for_each(|end| self.lead_here(end));
            }
            Node::Repeat(node, least, most, how) => self.repeat(node, *least, *most, *how)?,
            Node::Atomic(node) => {
                self.add(Step::Open { behind: None, not: false, after: 0 })?;
                self.node(node)?;
                self.add(Step::Close(Group::Atomic, false))?;
            }
            Node::Look { node, behind: false, not } if matches!(**node, Node::One(_)) => {
                if let Node::One(set) = **node {
                    self.add(Step::Peek { set, not: *not })?;
                }
            }
            Node::Look { node, behind, not } => {
                let back = behind.then(|| length(node));
                let open = self.add(Step::Open { behind: back, not: *not, after: 0 })?;
                self.node(node)?;
                self.add(Step::Close(if *behind { Group::Behind } else { Group::Ahead }, *not))?;
                self.lead_here(open);
            }
        }
        Ok(())
    }

    fn repeat(&mut self, node: &Node, least: u32, most: u32, how: How) -> Result<(), String> {
        if let Node::One(set) = node {
            self.add(Step::Run { set: *set, how, least, most })?;
            return Ok(());
        }
        if how == How::Possessive {
            self.add(Step::Open { behind: None, not: false, after: 0 })?;
            self.repeat(node, least, most, How::Greedy)?;
            self.add(Step::Close(Group::Atomic, false))?;
            return Ok(());
        }
        let endless = most == ENDLESS;
        // Of an endless repetition the last copy that has to be is the one that is gone through again.
        for _ in 0..if endless { least.saturating_sub(1) } else { least } {
            self.node(node)?;
        }
        let mut ends = Vec::new();
        if endless {
            let start = self.here();
            if least == 0 {
                ends.push(self.way_in(node, how)?);
            }
            let mark = self.first_of(node).empty.then_some(self.marks as u32);
            if let Some(mark) = mark {
                self.marks += 1;
                self.add(Step::Mark(mark))?;
            }
            self.node(node)?;
            if let Some(mark) = mark {
                ends.push(self.add(Step::Check(mark, 0))?);
            }
            if least > 0 {
                ends.push(self.way_in(node, how)?);
            }
            self.add(Step::Jump(start))?;
        } else {
            for _ in least..most {
                ends.push(self.way_in(node, how)?);
                self.node(node)?;
            }
        }
        ends.into_iter().for_each(|end| self.lead_here(end));
        Ok(())
    }

    /// The choice between another round of `node`, whose steps are next, and the end of a repetition.
    fn way_in(&mut self, node: &Node, how: How) -> Result<usize, String> {
        if how == How::Greedy {
            return self.split(node);
        }
        let next = self.here() + 2;
        self.add(Step::Later(next))?;
        self.add(Step::Jump(0))
    }
}

/// The set of the run without an upper bound that `node` begins with, if it is one in every case.
fn leading_run(node: &Node) -> Option<u16> {
    match node {
        Node::Repeat(node, _, ENDLESS, _) => match **node {
            Node::One(set) => Some(set),
            _ => None,
        },
        Node::All(nodes) => nodes.first().and_then(leading_run),
        _ => None,
    }
}

/// How many characters a match of `node` has at least and at most.
fn length(node: &Node) -> (u32, u32) {
    match node {
        Node::Empty | Node::Is(_) | Node::Look { .. } => (0, 0),
        Node::Text(text) => (text.chars().count() as u32, text.chars().count() as u32),
        Node::One(_) => (1, 1),
        Node::All(nodes) => nodes
            .iter()
            .map(length)
            .fold((0, 0), |all, one| (all.0.saturating_add(one.0), all.1.saturating_add(one.1))),
        Node::Any(nodes) => {
            nodes.iter().map(length).fold((u32::MAX, 0), |all, one| (all.0.min(one.0), all.1.max(one.1)))
        }
        Node::Repeat(node, least, most, _) => {
            let one = length(node);
            (one.0.saturating_mul(*least), one.1.saturating_mul(*most))
        }
        Node::Atomic(node) => length(node),
    }
}
