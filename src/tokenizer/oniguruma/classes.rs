//! Classes of characters: brackets, names of sets, and what case does to them.
//!
//! Oniguruma's sets over Unicode, as the published package has them, in the words of the dialect. Three are not what
//! their names suggest: `\w` has no joiners, and outside brackets it has six characters of Latin-1 that it lacks within;
//! `[[:punct:]]` has symbols and `\p{Punct}` has none.

use super::{Translator, Wrong};
use std::sync::LazyLock;

/// `\w` outside brackets.
pub(super) const WORD: &str = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}²³¹¼-¾";
/// `\w` within.
const WORD_WITHIN: &str = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}";

/// Names of POSIX, what a class in brackets says for them, and whether their characters have no case.
const POSIX: [(&str, &str, bool); 14] = [
    ("alnum", r"\p{Alphabetic}\p{Nd}", false),
    ("alpha", r"\p{Alphabetic}", false),
    ("ascii", r"\x{0}-\x{7f}", false),
    ("blank", r"\t\p{Zs}", true),
    ("cntrl", r"\p{Cc}", true),
    ("digit", r"\p{Nd}", true),
    ("graph", r"[^\s\p{Cc}\p{Cn}]", false),
    ("lower", r"\p{Lowercase}", false),
    ("print", r"[^\p{Cc}\p{Cn}\p{Zl}\p{Zp}]", false),
    ("punct", r"\p{P}\p{S}", false),
    ("space", r"\s", true),
    ("upper", r"\p{Uppercase}", false),
    ("xdigit", "0-9A-Fa-f", false),
    ("word", WORD_WITHIN, false),
];

/// A named set, perhaps everything but it.
pub(super) struct Named {
    /// What a class says for it.
    text: String,
    /// The same where it stands outside one.
    alone: Option<&'static str>,
    not: bool,
    /// Case makes no difference to it.
    caseless: bool,
}

impl Named {
    /// As a class of its own.
    pub(super) fn outside(&self) -> String {
        let text = self.alone.unwrap_or(&self.text);
        match (self.not, text.starts_with(r"\p") && text.matches('\\').count() == 1) {
            (false, true) => text.to_owned(),
            (true, true) => text.replacen(r"\p", r"\P", 1),
            (not, false) => format!("[{}{text}]", if not { "^" } else { "" }),
        }
    }
}

/// `c` in the case that cases are compared in, of those of one character.
pub(super) fn folded(c: char) -> char {
    let one = |mut of: Box<dyn Iterator<Item = char>>, c| match (of.next(), of.next()) {
        (Some(one), None) => one,
        _ => c,
    };
    let upper = one(Box::new(c.to_uppercase()), c);
    one(Box::new(upper.to_lowercase()), upper)
}

/// The characters that are several in another case, with those.
pub(super) fn several() -> &'static [(char, String)] {
    static SEVERAL: LazyLock<Vec<(char, String)>> = LazyLock::new(|| {
        let mut all = vec![('ẞ', "ss".to_owned())];
        for c in ('\u{80}'..=char::MAX).filter(|c| !c.is_ascii()) {
            if c.to_uppercase().count() > 1 {
                all.push((c, c.to_uppercase().map(folded).collect()));
            } else if c.to_lowercase().count() > 1 {
                all.push((c, c.to_lowercase().collect()));
            }
        }
        all
    });
    &SEVERAL
}

/// What the last thing in a class was.
enum Last {
    /// A character, which could begin a range.
    One(char),
    /// The end of a range.
    Range,
    /// A set.
    Set,
    /// Nothing yet.
    None,
}

impl Translator<'_> {
    /// The name behind `\p`, or with `not` behind `\P`.
    pub(super) fn property(&mut self, not: bool) -> Result<Named, Wrong> {
        let end = self.text.rest().find('}');
        let name = end.and_then(|end| self.text.rest().get(..end)?.strip_prefix('{')).map(str::to_owned);
        let Some(name) = name else { return Err(self.wrong(r"`\p` without a name in braces")) };
        self.text.at += name.len() + 2;
        let (not, name) = name.strip_prefix('^').map_or((not, name.as_str()), |name| (!not, name));
        let plain: String = name.chars().filter(|c| !matches!(c, ' ' | '-' | '_')).collect();
        let plain = plain.to_ascii_lowercase();
        let posix = POSIX.iter().find(|p| p.0 == plain);
        Ok(match (plain.as_str(), posix) {
            ("word", _) => Named { text: WORD_WITHIN.into(), alone: Some(WORD), not, caseless: false },
            ("posixpunct", _) => Named { text: r"\p{P}\p{S}".into(), alone: None, not, caseless: false },
            ("punct", _) => Named { text: r"\p{P}".into(), alone: None, not, caseless: true },
            (_, Some((_, text, caseless))) => {
                Named { text: (*text).into(), alone: None, not, caseless: *caseless }
            }
            (_, None) => {
                // Other names hold the same characters in both, where both have them.
                let caseless = matches!(name, "N" | "Nd" | "No" | "P" | "Z" | "Zs" | "C" | "Cc" | "Cf");
                Named { text: format!("\\p{{{name}}}"), alone: None, not, caseless }
            }
        })
    }

    /// What follows a `[`.
    pub(super) fn class(&mut self) -> Result<(), Wrong> {
        self.depth += 1;
        if self.depth > super::DEEPEST {
            return Err(self.wrong("too many groups and classes within each other"));
        }
        self.out.push('[');
        let not = self.text.eat("^");
        if not {
            self.out.push('^');
        }
        let any_case = self.any_case;
        let mut last = Last::None;
        // A bracket that comes first is a character.
        if self.text.eat("]") {
            self.out.push_str(r"\]");
            last = Last::One(']');
        }
        loop {
            let here = self.text.at;
            let Some(c) = self.text.next() else { return Err(self.wrong("a `[` without a `]`")) };
            if c == ']' {
                if matches!(last, Last::None) {
                    return Err(self.wrong("a class with nothing on one side of `&&`"));
                }
                self.out.push(']');
                self.depth -= 1;
                return Ok(());
            }
            if c == '[' {
                match self.posix()? {
                    Some(named) => self.within(&named, not)?,
                    None if any_case => return Err(self.wrong("a class in a class in any case")),
                    None => self.class()?,
                }
                last = Last::Set;
            } else if c == '&' && self.text.eat("&") {
                if any_case || matches!(last, Last::None) {
                    return Err(self.wrong("`&&` in any case or behind nothing"));
                }
                self.out.push_str("&&");
                last = Last::None;
            } else if c == '-'
                && !self.text.rest().starts_with(']')
                && matches!(last, Last::One(_) | Last::Set)
            {
                let Last::One(from) = last else {
                    self.text.at = here;
                    return Err(self.wrong("a `-` behind a set"));
                };
                let to = match self.text.next() {
                    Some('[') | None => None,
                    Some('\\') => self.escaped_within()?,
                    Some(c) => Some(super::Literal { c, text: in_class(c) }),
                };
                let Some(to) = to.filter(|to| from <= to.c) else {
                    self.text.at = here;
                    return Err(self.wrong("a range without an end, or with one before its beginning"));
                };
                if any_case && !not && several().iter().any(|s| (from..=to.c).contains(&s.0)) {
                    return Err(self.wrong("a range in any case, with what is several characters in another"));
                }
                self.out.push('-');
                self.out.push_str(&to.text);
                last = Last::Range;
            } else if c == '\\' {
                match self.escaped_within()? {
                    Some(one) => {
                        self.alone(one.c, not)?;
                        self.out.push_str(&one.text);
                        last = Last::One(one.c);
                    }
                    None => {
                        let named = self.named_within()?;
                        self.within(&named, not)?;
                        last = Last::Set;
                    }
                }
            } else {
                self.alone(c, not)?;
                self.out.push_str(&in_class(c));
                last = Last::One(c);
            }
        }
    }

    /// A character behind a backslash in a class.
    fn escaped_within(&mut self) -> Result<Option<super::Literal>, Wrong> {
        if self.text.eat("b") {
            return Ok(Some(super::Literal { c: '\x08', text: r"\x{8}".into() }));
        }
        self.escaped_literal()
    }

    /// A set behind a backslash in a class.
    fn named_within(&mut self) -> Result<Named, Wrong> {
        let Some(c) = self.text.next() else { return Err(self.wrong("nothing behind a backslash")) };
        let (text, caseless) = match c.to_ascii_lowercase() {
            'd' => (r"\d", true),
            's' => (r"\s", true),
            'h' => (r"\h", false),
            'w' => (WORD_WITHIN, false),
            'p' => return self.property(c == 'P'),
            _ => return Err(self.wrong(&format!("`\\{c}` in a class, which files have no way to say"))),
        };
        Ok(Named { text: text.into(), alone: None, not: c.is_ascii_uppercase(), caseless })
    }

    /// `[:name:]` behind its first bracket.
    fn posix(&mut self) -> Result<Option<Named>, Wrong> {
        let Some(inner) = self.text.rest().strip_prefix(':') else { return Ok(None) };
        let Some((inner, _)) = inner.split_once(":]") else { return Ok(None) };
        let (not, name) = inner.strip_prefix('^').map_or((false, inner), |name| (true, name));
        if name.len() > 20 || name.contains([':', ']']) {
            return Ok(None);
        }
        let Some((_, text, caseless)) = POSIX.iter().find(|p| p.0 == name) else {
            return Err(self.wrong(&format!("`[:{name}:]`, which is no class")));
        };
        self.text.at += inner.len() + 3;
        Ok(Some(Named { text: (*text).into(), alone: None, not, caseless: *caseless }))
    }

    /// Writes a named set as a part of a class, which with `negated` is everything but its parts.
    fn within(&mut self, named: &Named, negated: bool) -> Result<(), Wrong> {
        // Everything but a set holds characters that are several in another case.
        let wrong = if negated { named.not && !named.caseless } else { named.not || !named.caseless };
        if self.any_case && wrong {
            return Err(self.wrong(&format!("`{}` in a class in any case", named.text)));
        }
        let single = named.text.starts_with('\\') && named.text.matches('\\').count() == 1;
        match named.not {
            false if single => self.out.push_str(&named.text),
            false => self.out.push_str(&format!("[{}]", named.text)),
            true => self.out.push_str(&format!("[^{}]", named.text)),
        }
        Ok(())
    }

    /// One character of a class: without case it must not be several in another.
    fn alone(&self, c: char, negated: bool) -> Result<(), Wrong> {
        if self.any_case && !negated && several().iter().any(|s| s.0 == c) {
            return Err(self.wrong(&format!("`{c}` in any case, which is several characters in another")));
        }
        Ok(())
    }
}

/// A character of a class as the dialect writes it: some that are nothing special in Oniguruma are there.
fn in_class(c: char) -> String {
    match c {
        '-' | '~' | '&' | '^' | '[' | ']' => format!("\\{c}"),
        c => c.into(),
    }
}
