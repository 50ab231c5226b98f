//! Expressions of `tokenizer.json` to the dialect of `.llm` files (format/SPEC.md), for all who read such files.
//!
//! `tokenizers` hands its expressions to Oniguruma, which looks like Perl and reads some things otherwise:
//!
//! | text | means there | becomes |
//! |---|---|---|
//! | `^` `$` | begin and end of a line, `^` never behind the last line feed | `(?:\A\|(?m:^)(?!\z))` `(?m:$)` |
//! | `x{2,3}+` `x{2}?` | a repetition of the repetition | `(?:x{2,3})+` `(?:x{2})?` |
//! | `a(?i)b\|c` | the flag holds to the end of the group, across `\|` | `a(?i:b\|c)` |
//! | `(?m)` | `.` takes line feeds | `(?s:` |
//! | `\Z` | the end, or before one last line feed | `(?=\n?\z)` |
//! | `\w` `\b` `[[:alpha:]]` | classes of its own | classes.rs lists them |
//!
//! What means the same is copied as it is, so a published expression keeps its scanner. What the dialect cannot say is
//! refused by its name. Not known here: sets of characters, and whether the result is too large; its matcher says so.

mod classes;

use super::cursor::Cursor;
use super::pattern::LONGEST;
use crate::error::{Error, Result, Status};

/// The most groups within each other; the matcher takes no more.
const DEEPEST: usize = 64;
/// The largest count of a repetition, Oniguruma's.
const MOST: u32 = 100_000;

/// `text` in the dialect, with Oniguruma's meaning.
///
/// # Errors
/// `UNSUPPORTED` with what the dialect cannot say, or what Oniguruma takes for a mistake, and where it stands.
pub fn translate(text: &str) -> Result<String> {
    if text.len() > LONGEST {
        let what =
            format!("tokenizer.json: an expression of {} bytes, expected at most {LONGEST}", text.len());
        return Err(Error::new(Status::UNSUPPORTED, what));
    }
    let mut parser = Translator {
        text: Cursor::new(text),
        out: String::new(),
        any_case: false,
        depth: 0,
        row: String::new(),
    };
    let done = parser.group().and_then(|()| match parser.text.peek() {
        None => Ok(()),
        Some(_) => Err(parser.wrong("a `)` without a `(`")),
    });
    done.map_err(|what| {
        let what = format!("tokenizer.json: the expression {text:?}: {what}");
        Error::new(Status::UNSUPPORTED, what)
    })?;
    Ok(parser.out)
}

/// What went wrong and where.
type Wrong = String;

struct Translator<'a> {
    text: Cursor<'a>,
    out: String,
    any_case: bool,
    depth: usize,
    /// What characters in a row fold to, where case does not count.
    row: String,
}

/// What an escape of one character stands for.
struct Literal {
    c: char,
    /// How the dialect writes it.
    text: String,
}

impl Translator<'_> {
    fn wrong(&self, what: &str) -> Wrong {
        self.text.wrong(what)
    }

    /// Alternatives up to the end of the group, which stays.
    fn group(&mut self) -> Result<(), Wrong> {
        if self.depth > DEEPEST {
            return Err(self.wrong(&format!("more than {DEEPEST} groups within each other")));
        }
        self.depth += 1;
        let outside = self.any_case;
        while let Some(c) = self.text.peek().filter(|c| *c != ')') {
            if c == '|' {
                self.text.at += 1;
                self.out.push('|');
                self.row.clear();
                continue;
            }
            let (begin, repeats) = (self.out.len(), self.atom()?);
            self.repetitions(begin, repeats)?;
        }
        (self.any_case, self.depth) = (outside, self.depth - 1);
        Ok(())
    }

    /// One thing that could be repeated; false where Oniguruma lets it not be.
    fn atom(&mut self) -> Result<bool, Wrong> {
        let begin = self.text.at;
        let Some(c) = self.text.next() else { return Ok(false) };
        if let Some(literal) = self.literal(c)? {
            self.out.push_str(&literal.text);
            match self.any_case {
                true => self.one_by_one(literal.c)?,
                false => self.row.clear(),
            }
            return Ok(true);
        }
        // A group of its own may go on with a row; nothing else does.
        if c != '(' {
            self.row.clear();
        }
        match c {
            '.' => self.out.push('.'),
            '^' => self.out.push_str(r"(?:\A|(?m:^)(?!\z))"),
            '$' => self.out.push_str("(?m:$)"),
            '[' => self.class()?,
            '(' => return self.parenthesis(),
            '\\' => return self.escape(),
            _ => {
                self.text.at = begin;
                return Err(self.wrong(&format!("nothing that `{c}` could repeat")));
            }
        }
        Ok(!matches!(c, '^' | '$'))
    }

    /// The character that `c`, just read, stands for outside a class, if it is one.
    fn literal(&mut self, c: char) -> Result<Option<Literal>, Wrong> {
        Ok(match c {
            '.' | '^' | '$' | '[' | '(' | '*' | '+' | '?' => None,
            '{' if self.counts_at(self.text.at - 1)?.is_some() => None,
            '{' => Some(Literal { c, text: r"\{".into() }),
            '\\' => self.escaped_literal()?,
            c => Some(Literal { c, text: c.into() }),
        })
    }

    /// The character behind a backslash, if it is one in a class and outside. Nothing is read where it is none.
    fn escaped_literal(&mut self) -> Result<Option<Literal>, Wrong> {
        let Some(c) = self.text.peek() else { return Err(self.wrong("nothing behind a backslash")) };
        let plain = |c: char, code: char| Some(Literal { c: code, text: format!("\\{c}") });
        let found = match c {
            'a' => plain(c, '\x07'),
            'e' => plain(c, '\x1b'),
            'f' => plain(c, '\x0c'),
            'n' => plain(c, '\n'),
            'r' => plain(c, '\r'),
            't' => plain(c, '\t'),
            'v' => plain(c, '\x0b'),
            'x' | 'u' => return self.by_number(c).map(Some),
            c if c.is_ascii_alphanumeric() => None,
            // The dialect keeps `\<` and `\>` for nothing.
            c if !c.is_ascii() || matches!(c, '<' | '>') => Some(Literal { c, text: c.into() }),
            c => plain(c, c),
        };
        self.text.at += found.as_ref().map_or(0, |_| c.len_utf8());
        Ok(found)
    }

    /// `x` with one or two digits or any in braces, `u` with four.
    fn by_number(&mut self, kind: char) -> Result<Literal, Wrong> {
        let rest = self.text.rest().get(1..).unwrap_or("");
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_hexdigit).count();
        let (skip, length, end) = match rest.strip_prefix('{') {
            Some(inner) if kind == 'x' => (1, digits(inner), "}"),
            _ if kind == 'x' => (0, digits(rest).min(2), ""),
            _ => (0, digits(rest).min(4), ""),
        };
        let number = rest.get(skip..skip + length).unwrap_or("");
        let closed = rest.get(skip + length..).is_some_and(|r| r.starts_with(end));
        let c = u32::from_str_radix(number, 16).ok().and_then(char::from_u32).filter(|c| {
            // Two digits are a byte of UTF-8, not a character, beyond ASCII.
            closed && (kind == 'x' || length == 4) && (skip == 1 || kind == 'u' || c.is_ascii())
        });
        let Some(c) = c else {
            return Err(self.wrong(&format!("`\\{kind}` and not the number of a character behind it")));
        };
        self.text.at += 1 + skip + length + end.len();
        Ok(Literal { c, text: format!("\\x{{{:x}}}", u32::from(c)) })
    }

    /// Without case, Oniguruma takes one character for several (`ß` for `ss`); the dialect does not.
    fn one_by_one(&mut self, c: char) -> Result<(), Wrong> {
        let (folds, whole) = (classes::several(), classes::folded(c));
        if let Some((one, _)) = folds.iter().find(|f| f.0 == c) {
            return Err(self.wrong(&format!("`{one}` in any case, which is several characters in another")));
        }
        // A repeated character stands alone.
        if matches!(self.text.peek(), Some('?' | '*' | '+')) || self.counts_at(self.text.at)?.is_some() {
            self.row.clear();
            return Ok(());
        }
        self.row.push(whole);
        match folds.iter().find(|f| self.row.ends_with(&f.1)) {
            Some((one, text)) => {
                Err(self.wrong(&format!("`{text}` in any case, which `{one}` is, too, for Oniguruma")))
            }
            None => Ok(()),
        }
    }

    /// An escape that is no single character.
    fn escape(&mut self) -> Result<bool, Wrong> {
        let Some(c) = self.text.next() else { return Err(self.wrong("nothing behind a backslash")) };
        let word = classes::WORD;
        match c {
            'd' | 'D' | 's' | 'S' | 'h' | 'H' | 'O' => self.out.extend(['\\', c]),
            'A' | 'z' => {
                self.out.extend(['\\', c]);
                return Ok(false);
            }
            'Z' => {
                self.out.push_str(r"(?=\n?\z)");
                return Ok(false);
            }
            'b' | 'B' => {
                let (one, other) = if c == 'b' { ("?!", "?=") } else { ("?=", "?!") };
                let text = format!("(?:(?<=[{word}])({one}[{word}])|(?<![{word}])({other}[{word}]))");
                self.out.push_str(&text);
                return Ok(false);
            }
            'w' => self.out.push_str(&format!("[{word}]")),
            'W' => self.out.push_str(&format!("[^{word}]")),
            'p' | 'P' => {
                let class = self.property(c == 'P')?;
                let text = class.outside();
                // Case never counts for a property outside a class.
                self.out.push_str(&if self.any_case { format!("(?-i:{text})") } else { text });
            }
            c => {
                self.text.at -= c.len_utf8();
                return Err(self.wrong(&format!("`\\{c}`, which files have no way to say")));
            }
        }
        Ok(true)
    }

    /// What follows a `(`.
    fn parenthesis(&mut self) -> Result<bool, Wrong> {
        const PLAIN: [(&str, bool); 6] =
            [("?:", true), ("?>", true), ("?=", false), ("?!", false), ("?<=", false), ("?<!", false)];
        let mut repeats = true;
        self.out.push('(');
        if let Some((text, may)) = PLAIN.into_iter().find(|p| self.text.eat(p.0)) {
            self.out.push_str(text);
            repeats = may;
        } else if self.text.rest().starts_with("?<") {
            let end = self.text.rest().find('>').map_or(self.text.whole.len(), |end| self.text.at + end + 1);
            let name = self.text.whole.get(self.text.at..end).unwrap_or("");
            self.out.push_str(name);
            self.text.at = end;
        } else if self.text.eat("?") {
            let outside = self.any_case;
            let to_the_end = self.set_flags()?;
            if to_the_end {
                // The rest of the group, whose end stays.
                self.group()?;
                self.any_case = outside;
                self.out.push(')');
                return Ok(false);
            }
            self.rest_of_group()?;
            self.any_case = outside;
            return Ok(true);
        }
        self.rest_of_group()?;
        Ok(repeats)
    }

    fn rest_of_group(&mut self) -> Result<(), Wrong> {
        self.group()?;
        if !self.text.eat(")") {
            return Err(self.wrong("a `(` without a `)`"));
        }
        self.out.push(')');
        Ok(())
    }

    /// Flags behind `(?` up to `:` or, true, up to `)`.
    fn set_flags(&mut self) -> Result<bool, Wrong> {
        self.out.push('?');
        let mut to = true;
        loop {
            match self.text.next() {
                Some('i') => {
                    self.any_case = to;
                    self.out.push('i');
                }
                Some('m') => self.out.push('s'),
                Some('x') if !to => {}
                Some('-') if to => {
                    to = false;
                    self.out.push('-');
                }
                Some(end @ (':' | ')')) => {
                    self.out.push(':');
                    return Ok(end == ')');
                }
                Some(c) => {
                    let what = format!("a group with `?` and `{c}`, which files have no way to say");
                    return Err(self.wrong(&what));
                }
                None => return Err(self.wrong("a `(` without a `)`")),
            }
        }
    }

    /// The repetitions behind what was written from `begin` on.
    fn repetitions(&mut self, begin: usize, repeats: bool) -> Result<(), Wrong> {
        // There is a repetition already; it is one that Oniguruma might take together with the next.
        let (mut wrapped, mut simple) = (false, false);
        loop {
            let counts = self.counts_at(self.text.at)?;
            let sign = self.text.peek().filter(|c| matches!(c, '?' | '*' | '+'));
            if counts.is_none() && sign.is_none() {
                return Ok(());
            }
            if !repeats {
                return Err(self.wrong("a repetition of what takes no characters"));
            }
            // Oniguruma makes one of two, and sometimes another than both say.
            if simple || (wrapped && counts.is_some()) {
                return Err(self.wrong("a repetition of a repetition"));
            }
            if wrapped {
                self.out.insert_str(begin, "(?:");
                self.out.push(')');
            }
            wrapped = true;
            if let Some((least, most, length)) = counts {
                self.text.at += length;
                match most {
                    Some(most) if most == least => self.out.push_str(&format!("{{{least}}}")),
                    Some(most) => self.out.push_str(&format!("{{{least},{most}}}")),
                    None => self.out.push_str(&format!("{{{least},}}")),
                }
                // Of a range a question mark makes a lazy one; of a number, and any plus, repeats it.
                if most != Some(least) && self.text.eat("?") {
                    self.out.push('?');
                }
                simple = least < 2 && (most.is_none() || most == Some(1));
            } else {
                self.text.next();
                self.out.extend(sign);
                if let Some(how) = self.text.peek().filter(|c| matches!(c, '?' | '+')) {
                    self.text.next();
                    self.out.push(how);
                }
                simple = true;
            }
        }
    }

    /// The least and the most of a repetition by numbers at `at`, and its length; none where braces are characters.
    fn counts_at(&self, at: usize) -> Result<Option<(u32, Option<u32>, usize)>, Wrong> {
        let rest = self.text.whole.get(at..).unwrap_or("");
        let Some((inner, _)) = rest.strip_prefix('{').and_then(|r| r.split_once('}')) else {
            return Ok(None);
        };
        let (least, most) = inner.split_once(',').map_or((inner, None), |(l, m)| (l, Some(m)));
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if !digits(least) || !most.is_none_or(digits) || (least.is_empty() && most.is_none_or(str::is_empty))
        {
            return Ok(None);
        }
        let number = |text: &str| match text.parse() {
            _ if text.is_empty() => Ok(0),
            Ok(n) if n <= MOST => Ok(n),
            _ => Err(self.wrong(&format!("a repetition of more than {MOST} times"))),
        };
        let low = number(least)?;
        let high = match most {
            None => Some(low),
            Some("") => None,
            Some(text) => Some(number(text)?),
        };
        if high.is_some_and(|high| high < low) {
            return Err(self.wrong(&format!("`{{{inner}}}` asks for more than it allows")));
        }
        Ok(Some((low, high, inner.len() + 2)))
    }
}
