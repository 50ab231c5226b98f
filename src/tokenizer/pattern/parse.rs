//! The text of an expression to a tree.
//!
//! The dialect is the part of Oniguruma's and Perl's that tokenizers use; format/SPEC.md lists it. Anything else is
//! an error that names it, never something similar.

use super::set::Sets;
use crate::tokenizer::cursor::Cursor;

/// No upper bound of a repetition.
pub(super) const ENDLESS: u32 = u32::MAX;
/// The most groups within each other.
const DEEPEST: usize = 64;

/// An expression.
pub(super) enum Node {
    Empty,
    /// These characters.
    Text(String),
    /// One character of a set.
    One(u16),
    Is(Place),
    /// One behind the other.
    All(Vec<Node>),
    /// The first that leads to a match.
    Any(Vec<Node>),
    Repeat(Box<Node>, u32, u32, How),
    /// Once it has matched it does not match otherwise.
    Atomic(Box<Node>),
    /// What follows, or with `behind` what comes before, without taking it.
    Look {
        node: Box<Node>,
        behind: bool,
        not: bool,
    },
}

/// What a place in the text must be.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Place {
    Start,
    End,
    /// Nothing but line feeds follow.
    LastLine,
    LineStart,
    LineEnd,
    /// Between a character of a word and one of none, or not.
    Boundary(bool),
}

/// How much a repetition takes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum How {
    /// As much as possible.
    Greedy,
    /// As little as possible.
    Lazy,
    /// As much as possible, and never less.
    Possessive,
}

#[derive(Clone, Copy, Default)]
struct Flags {
    any_case: bool,
    dot_all: bool,
    lines: bool,
}

/// What a backslash begins.
enum Escape {
    Char(char),
    Class(String),
    Is(Place),
}

struct Parser<'a> {
    text: Cursor<'a>,
    flags: Flags,
    depth: usize,
    sets: &'a mut Sets,
}

/// The tree of `text`; its classes go to `sets`.
pub(super) fn parse(text: &str, sets: &mut Sets) -> Result<Node, String> {
    let mut parser = Parser { text: Cursor::new(text), flags: Flags::default(), depth: 0, sets };
    let node = parser.alternatives()?;
    match parser.text.peek() {
        None => Ok(node),
        Some(_) => Err(parser.wrong("a `)` without a `(`")),
    }
}

impl Parser<'_> {
    fn wrong(&self, what: &str) -> String {
        self.text.wrong(what)
    }

    fn alternatives(&mut self) -> Result<Node, String> {
        let mut all = vec![self.sequence()?];
        while self.text.eat("|") {
            all.push(self.sequence()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Node::Any(all) })
    }

    fn sequence(&mut self) -> Result<Node, String> {
        let mut all: Vec<Node> = Vec::new();
        while self.text.peek().is_some_and(|c| c != '|' && c != ')') {
            let atom = self.atom()?;
            match (self.repeated(atom)?, all.last_mut()) {
                (Node::Empty, _) => {}
                (Node::Text(more), Some(Node::Text(text))) => text.push_str(&more),
                (node, _) => all.push(node),
            }
        }
        Ok(match all.len() {
            0 => Node::Empty,
            1 => all.remove(0),
            _ => Node::All(all),
        })
    }

    fn atom(&mut self) -> Result<Node, String> {
        let lines = self.flags.lines;
        let start = self.text.at;
        Ok(match self.text.next() {
            None => Node::Empty,
            Some('.') if self.flags.dot_all => self.class(r"[\s\S]".to_owned())?,
            Some('.') => self.class(r"[^\n]".to_owned())?,
            Some('^') => Node::Is(if lines { Place::LineStart } else { Place::Start }),
            Some('$') => Node::Is(if lines { Place::LineEnd } else { Place::End }),
            Some('(') => self.group()?,
            Some('[') => {
                let text = self.brackets()?;
                self.class(text)?
            }
            Some('\\') => match self.escape(false)? {
                Escape::Char(c) => self.literal(c)?,
                Escape::Class(text) => self.class(text)?,
                Escape::Is(place) => Node::Is(place),
            },
            Some(c @ ('*' | '+' | '?')) => {
                self.text.at = start;
                return Err(self.wrong(&format!("nothing that `{c}` could repeat")));
            }
            Some(c) => self.literal(c)?,
        })
    }

    fn class(&mut self, text: String) -> Result<Node, String> {
        self.sets.class(text, self.flags.any_case).map(Node::One).map_err(|e| self.wrong(&e))
    }

    fn literal(&mut self, c: char) -> Result<Node, String> {
        let set = if self.flags.any_case { self.sets.cases(c)? } else { None };
        Ok(set.map_or_else(|| Node::Text(String::from(c)), Node::One))
    }

    /// `node` with the repetition that follows it.
    fn repeated(&mut self, node: Node) -> Result<Node, String> {
        let Some((least, most)) = self.counts()? else { return Ok(node) };
        let how = match self.text.peek() {
            Some('?') => How::Lazy,
            Some('+') => How::Possessive,
            _ => How::Greedy,
        };
        self.text.at += usize::from(how != How::Greedy);
        if self.counts()?.is_some() {
            return Err(self.wrong("a repetition of a repetition"));
        }
        let node = match node {
            Node::Empty => return Ok(Node::Empty),
            _ if most == 0 => return Ok(Node::Empty),
            Node::Look { .. } => return Err(self.wrong("a repetition of a look-around")),
            Node::Text(text) => match (text.chars().next(), text.chars().nth(1)) {
                (Some(c), None) => Node::One(self.sets.one(c)?),
                _ => Node::Text(text),
            },
            node => node,
        };
        Ok(Node::Repeat(Box::new(node), least, most, how))
    }

    /// The counts of a repetition that begins here. Braces that hold no counts are characters.
    fn counts(&mut self) -> Result<Option<(u32, u32)>, String> {
        let counts = match self.text.peek() {
            Some('?') => (0, 1),
            Some('*') => (0, ENDLESS),
            Some('+') => (1, ENDLESS),
            Some('{') => {
                let end = self.text.rest().bytes().take(32).position(|b| b == b'}');
                let Some(inner) = end.and_then(|end| self.text.rest().get(1..end)) else { return Ok(None) };
                let (least, most) = inner.split_once(',').unwrap_or((inner, inner));
                let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
                let number = |text: &str, none| match text {
                    "" => Some(none),
                    text if digits(text) => Some(text.parse().unwrap_or(ENDLESS - 1).min(ENDLESS - 1)),
                    _ => None,
                };
                let none = if inner.is_empty() { None } else { number(least, 0).zip(number(most, ENDLESS)) };
                let Some((least, most)) = none else { return Ok(None) };
                if least > most {
                    return Err(self.wrong(&format!("`{{{inner}}}` asks for more than it allows")));
                }
                self.text.at += end.unwrap_or(0);
                (least, most)
            }
            _ => return Ok(None),
        };
        self.text.at += 1;
        Ok(Some(counts))
    }

    /// What follows a `(`.
    fn group(&mut self) -> Result<Node, String> {
        if self.depth >= DEEPEST {
            return Err(self.wrong(&format!("more than {DEEPEST} groups within each other")));
        }
        let outside = self.flags;
        let looks = [("?=", false, false), ("?!", false, true), ("?<=", true, false), ("?<!", true, true)];
        let look = looks.into_iter().find(|l| self.text.eat(l.0));
        let atomic = look.is_none() && self.text.eat("?>");
        if look.is_none() && !atomic {
            if self.text.eat("?<") || self.text.eat("?P<") {
                self.name()?;
            } else if self.text.eat("?") && !self.set_flags()? {
                return Ok(Node::Empty);
            }
        }
        self.depth += 1;
        let node = self.alternatives()?;
        self.depth -= 1;
        self.flags = outside;
        if !self.text.eat(")") {
            return Err(self.wrong("a `(` without a `)`"));
        }
        Ok(match look {
            Some((_, behind, not)) => Node::Look { node: Box::new(node), behind, not },
            None if atomic => Node::Atomic(Box::new(node)),
            None => node,
        })
    }

    /// The name of a group, which nothing here refers to.
    fn name(&mut self) -> Result<(), String> {
        let length = self.text.rest().find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(0);
        self.text.at += length;
        match length > 0 && self.text.eat(">") {
            true => Ok(()),
            false => Err(self.wrong("a group's name that does not end in `>`")),
        }
    }

    /// Flags behind `(?`; false where they hold from here on and no group begins.
    fn set_flags(&mut self) -> Result<bool, String> {
        let mut to = true;
        loop {
            match self.text.next() {
                Some('i') => self.flags.any_case = to,
                Some('s') => self.flags.dot_all = to,
                Some('m') => self.flags.lines = to,
                Some('-') if to => to = false,
                Some('u') if to => {}
                Some(':') => return Ok(true),
                Some(')') => return Ok(false),
                Some(c) => return Err(self.wrong(&format!("a group with `?` and `{c}`, which is not known"))),
                None => return Err(self.wrong("a `(` without a `)`")),
            }
        }
    }

    /// What follows a backslash.
    fn escape(&mut self, in_class: bool) -> Result<Escape, String> {
        let Some(c) = self.text.next() else { return Err(self.wrong("nothing behind a backslash")) };
        let counts = |rest: &str| {
            rest.strip_prefix('{').is_some_and(|r| !r.starts_with(|c: char| c.is_ascii_digit() || c == ','))
        };
        Ok(match c {
            'd' | 'D' | 's' | 'S' | 'w' | 'W' => Escape::Class(format!("\\{c}")),
            'h' => Escape::Class("[0-9A-Fa-f]".to_owned()),
            'H' => Escape::Class("[^0-9A-Fa-f]".to_owned()),
            'p' | 'P' => {
                let length = match self.text.rest().strip_prefix('{') {
                    Some(name) => name.find('}').map(|end| end + 2),
                    None => self.text.peek().map(char::len_utf8),
                };
                let Some(name) = length.and_then(|length| self.text.rest().get(..length)) else {
                    return Err(self.wrong(&format!("`\\{c}` without a name")));
                };
                let text = format!("\\{c}{name}");
                self.text.at += name.len();
                Escape::Class(text)
            }
            'x' => Escape::Char(self.hexadecimal(2)?),
            'u' => Escape::Char(self.hexadecimal(4)?),
            'U' => Escape::Char(self.hexadecimal(8)?),
            'a' => Escape::Char('\x07'),
            'e' => Escape::Char('\x1b'),
            'f' => Escape::Char('\x0c'),
            'n' => Escape::Char('\n'),
            'r' => Escape::Char('\r'),
            't' => Escape::Char('\t'),
            'v' => Escape::Char('\x0b'),
            'b' if in_class => Escape::Char('\x08'),
            'O' if !in_class => Escape::Class(r"[\s\S]".to_owned()),
            'A' if !in_class => Escape::Is(Place::Start),
            'z' if !in_class => Escape::Is(Place::End),
            'Z' if !in_class => Escape::Is(Place::LastLine),
            'b' | 'B' if !in_class && !counts(self.text.rest()) => Escape::Is(Place::Boundary(c == 'b')),
            '0'..='9' | 'k' => {
                return Err(self.wrong(&format!("the back reference `\\{c}`, which is not known")));
            }
            '<' | '>' if !in_class => return Err(self.wrong(&format!("`\\{c}`, which is not known"))),
            c if c.is_ascii_alphabetic() => return Err(self.wrong(&format!("`\\{c}`, which is not known"))),
            c => Escape::Char(c),
        })
    }

    /// A character by its number, in exactly `digits` digits or any in braces.
    fn hexadecimal(&mut self, digits: usize) -> Result<char, String> {
        let rest = self.text.rest();
        let end = rest.bytes().take(16).position(|b| b == b'}').filter(|_| rest.starts_with('{'));
        let (from, to, length) = end.map_or((0, digits, digits), |end| (1, end, end + 1));
        let number = rest.get(from..to).unwrap_or("");
        let valid = number.bytes().all(|b| b.is_ascii_hexdigit());
        let c = u32::from_str_radix(number, 16).ok().filter(|_| valid).and_then(char::from_u32);
        let Some(c) = c else { return Err(self.wrong("a character by a number that it does not have")) };
        self.text.at += length;
        Ok(c)
    }

    /// The text of a class behind its `[`, for `regex-syntax`, which knows fewer escapes.
    fn brackets(&mut self) -> Result<String, String> {
        let mut out = String::from("[");
        let mut depth = 1;
        if self.text.eat("^") {
            out.push('^');
        }
        if self.text.eat("]") {
            out.push(']');
        }
        loop {
            match self.text.next() {
                None => return Err(self.wrong("a `[` without a `]`")),
                Some('\\') => match self.escape(true)? {
                    Escape::Char(c) => regex_syntax::escape_into(c.encode_utf8(&mut [0; 4]), &mut out),
                    Escape::Class(text) => out.push_str(&text),
                    Escape::Is(_) => return Err(self.wrong("a place within a class")),
                },
                Some(c) => {
                    out.push(c);
                    depth += i32::from(c == '[') - i32::from(c == ']');
                    if depth == 0 {
                        return Ok(out);
                    }
                }
            }
        }
    }
}
