//! The walk through one tag: what is read goes to the output at once, rewritten as the table in [`super::source`] says.
//!
//! ```text
//! {%- set x = a + f([b, c], d)[e] -%}
//!         ↑   ↑   ↑└ a bracket: the product before it waits, another begins
//!         │   └───┴─ operands were due here, operators are behind them
//!         └ a target: it is given a value, not read
//! ```
//!
//! It knows strings, brackets, whether an operand or an operator is due, and where a product begins ([`Product`]);
//! nothing more of the grammar.

use super::budget::OWN;
use super::product::{Count, Product, append};

/// Words that are operators, unless an operand is due.
const WORDS: [&str; 6] = ["if", "else", "in", "is", "and", "or"];

/// The most words, texts and signs in a tag between two commas, with those before the brackets that they stand in.
/// Published templates have up to 62 in a whole tag.
pub(super) const LONGEST: usize = 1000;

/// What was read last within a tag.
#[derive(PartialEq)]
enum Last {
    Operand,
    Text,
    Operator,
    /// `.`, `|` or `is`: a name follows that is not a variable.
    BeforeName,
}

/// An open bracket.
struct Level {
    /// Parts before it.
    parts: usize,
    /// Where it stands in the output.
    start: usize,
    /// A list, a dictionary or a group, rather than a call or a subscript.
    literal: bool,
    comma: bool,
    colon: bool,
    /// Holds more than constants.
    names: bool,
    /// A subscript with a key that is to be counted, or a slice.
    subscript: bool,
    /// The product it is a part of.
    product: Product,
}

/// Rewrites one tag up to `end`; the number of bytes taken. `None` where an expression has more than [`LONGEST`] parts.
pub(super) fn tag(out: &mut String, text: &str, end: &str) -> Option<usize> {
    let rest = Tag::new(out, text, end).walk()?;
    Some(text.len() - rest.len())
}

/// A tag, read up to somewhere.
struct Tag<'a> {
    out: &'a mut String,
    /// What is not read yet.
    rest: &'a str,
    /// What ends the tag.
    end: &'a str,
    /// Words, texts and signs since the last comma.
    parts: usize,
    /// The brackets that are open, the innermost last.
    open: Vec<Level>,
    product: Product,
    last: Last,
    /// After a sign that stands before an operand.
    signed: bool,
    /// The name of a statement is still to come.
    statement: bool,
    /// The statement whose names come, which are given a value, not read: `for`, `set` or `call`.
    target: &'a str,
    /// The names of `set` have a dot: they are those of a namespace.
    dotted: bool,
    /// Where the value starts that a namespace is given.
    kept: Option<usize>,
}

impl<'a> Tag<'a> {
    fn new(out: &'a mut String, text: &'a str, end: &'a str) -> Self {
        let statement = end == "%}";
        Self {
            out,
            rest: text,
            end,
            parts: 0,
            open: Vec::new(),
            product: Product::default(),
            // A statement begins with its name.
            last: if statement { Last::BeforeName } else { Last::Operator },
            signed: false,
            statement,
            target: "",
            dotted: false,
            kept: None,
        }
    }

    /// Reads all of it; what follows. `None` where it is too long.
    fn walk(mut self) -> Option<&'a str> {
        self.copy(2);
        if self.rest.starts_with(['-', '+']) {
            self.copy(1);
        }
        while let Some(c) = self.rest.chars().next() {
            if let Some(length) = self.end_length() {
                self.finish(length);
                break;
            }
            // As it is before `c`: whether that is a sign of an operand.
            let operand = self.after_operand();
            match c {
                c if c.is_whitespace() => self.copy(c.len_utf8()),
                '"' | '\'' => self.text(c),
                c if is_word(c) => self.word(),
                '(' | '[' | '{' => self.opening(c),
                ')' | ']' | '}' => self.closing(c),
                '+' | '-' if !operand => self.sign(c),
                '.' | '|' => self.dot_or_bar(c),
                _ => self.operator(c),
            }
            self.parts += usize::from(!c.is_whitespace() && c != ',');
            if self.parts > LONGEST {
                return None;
            }
            self.signed = matches!(c, '-' | '+') && !operand || self.signed && c.is_whitespace();
        }
        Some(self.rest)
    }

    /// Goes on behind the next bytes.
    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }

    /// Takes the next bytes as they are.
    fn copy(&mut self, length: usize) {
        let taken = self.take(length);
        self.out.push_str(taken);
    }

    /// Whether an operator is due.
    fn after_operand(&self) -> bool {
        matches!(self.last, Last::Operand | Last::Text)
    }

    /// The length of the end with its whitespace control, if it comes now; within brackets it does not.
    fn end_length(&self) -> Option<usize> {
        let control = usize::from(self.rest.starts_with(['-', '+']));
        let here = self.open.is_empty() && self.rest[control..].starts_with(self.end);
        here.then_some(control + self.end.len())
    }

    fn finish(&mut self, length: usize) {
        self.product.end(self.out, Count::Not);
        if let Some(start) = self.kept {
            self.out.insert(start, '(');
            append(self.out, ")|llm_kept");
        }
        self.copy(length);
    }

    fn text(&mut self, quote: char) {
        match self.last {
            Last::Text => {
                self.product.end(self.out, Count::Text);
                self.out.push('~');
            }
            Last::Operand if !self.product.tested => self.product.end(self.out, Count::Not),
            _ => {}
        }
        self.last = Last::Text;
        let length = string_length(self.rest, quote);
        self.product.constant = self.product.operand.is_none().then_some(length);
        self.product.begin(self.out.len());
        self.product.primary = Some(self.out.len());
        let quoted = self.take(length);
        copy_string(self.out, quoted);
    }

    fn word(&mut self) {
        let word = self.take(word_length(self.rest));
        if std::mem::take(&mut self.statement) {
            self.statement_name(word);
        } else if self.last == Last::BeforeName {
            self.name(word);
            // `is not NAME`: the name is still to come.
            if word != "not" {
                self.last = Last::Operand;
            }
        } else if self.after_operand() {
            self.word_for_operator(word);
        } else {
            self.word_for_operand(word);
        }
    }

    fn statement_name(&mut self, word: &'a str) {
        self.out.push_str(match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            word => word,
        });
        if ["for", "set", "call"].contains(&word) {
            self.target = word;
        }
        self.last = Last::Operator;
    }

    /// A word where an operator is due.
    fn word_for_operator(&mut self, word: &str) {
        self.last = match word {
            "is" => Last::BeforeName,
            // `not in` is one operator, which its second word completes.
            word if WORDS.contains(&word) => Last::Operator,
            _ => Last::Operand,
        };
        match word {
            "is" => (self.product.tested, self.product.primary) = (true, None),
            "in" if self.target == "for" && self.open.is_empty() => {
                self.product.end(self.out, Count::Not);
                // The engine may copy what it goes through.
                self.product.count = Count::Look;
                self.target = "";
            }
            "in" | "not" => self.product.end(self.out, Count::Look),
            word if WORDS.contains(&word) => self.product.end(self.out, Count::Not),
            // The argument of a test; or a word of a statement.
            _ if self.product.tested => self.product.primary = Some(self.out.len()),
            _ => self.product.end(self.out, Count::Not),
        }
        self.name(word);
    }

    /// A word where an operand is due.
    fn word_for_operand(&mut self, word: &str) {
        match word {
            "true" | "True" if self.signed => {
                self.out.push('1');
                self.last = Last::Operand;
            }
            "false" | "False" if self.signed => {
                self.out.push('0');
                self.last = Last::Operand;
            }
            "not" => self.out.push_str(word),
            _ => self.name_or_number(word),
        }
    }

    fn name_or_number(&mut self, word: &str) {
        let number = starts_with_digit(word);
        if self.target == "call" {
            self.target = "";
        }
        self.product.constant = (self.product.operand.is_none() && number).then_some(word.len());
        self.product.begin(self.out.len());
        self.product.primary = Some(self.out.len());
        if let Some(level) = self.open.last_mut() {
            level.names |= !number;
        }
        // A named argument keeps its name.
        let named = !self.open.is_empty() && {
            let after = self.rest.trim_start();
            after.starts_with('=') && !after.starts_with("==")
        };
        if WORDS.contains(&word) && !named {
            self.out.push_str("variable_");
        }
        self.name(word);
        self.last = Last::Operand;
    }

    /// A word as it is, but ours is another's here.
    fn name(&mut self, word: &str) {
        if OWN.contains(&word) && !self.out.trim_end().ends_with('.') {
            self.out.push_str("variable_");
        }
        self.out.push_str(word);
    }

    fn opening(&mut self, bracket: char) {
        let operand = self.after_operand();
        if !operand {
            self.product.begin(self.out.len());
        }
        self.product.constant = None;
        if !operand || self.product.tested {
            // Brackets of their own, also as the argument of a test.
            self.product.primary.get_or_insert(self.out.len());
        }
        let base = self.product.primary.filter(|at| operand && bracket == '[' && *at < self.out.len());
        let base = base.filter(|_| !is_small_key(&self.rest[1..]));
        if let Some(start) = base {
            counted_base(self.out, start);
        }
        self.open.push(Level {
            parts: self.parts,
            start: self.out.len(),
            literal: !operand && self.target.is_empty(),
            comma: false,
            colon: false,
            names: false,
            subscript: base.is_some(),
            product: std::mem::take(&mut self.product),
        });
        self.copy(1);
        self.last = Last::Operator;
    }

    fn closing(&mut self, bracket: char) {
        self.product.end(self.out, Count::Not);
        if let Some(level) = self.open.last().filter(|level| level.subscript && level.names)
            && !level.colon
            && !level.comma
        {
            self.out.insert(level.start + 1, '(');
            append(self.out, ")|llm_look");
        }
        self.copy(1);
        self.last = Last::Operand;
        let Some(level) = self.open.pop() else { return };
        self.parts = level.parts;
        self.product = level.product;
        if let Some(outer) = self.open.last_mut() {
            outer.names |= level.names;
        }
        if level.literal && level.names && (bracket != ')' || level.comma) {
            self.out.insert(level.start, '(');
            self.out.push_str("|llm_list)");
        } else if !level.literal && bracket == ']' && level.colon {
            self.out.insert(self.product.operand.unwrap_or(level.start), '(');
            self.out.push_str("|llm_slice)");
        }
        // What is called follows the names that `call` gives.
        if self.open.is_empty() && self.target == "call" {
            self.target = "";
            self.last = Last::Operator;
            self.product = Product::default();
        }
    }

    /// A sign before an operand.
    fn sign(&mut self, sign: char) {
        self.product.begin(self.out.len());
        self.out.push_str(if sign == '+' { "--" } else { "-" });
        // A plus may become two signs.
        self.parts += usize::from(sign == '+');
        self.last = Last::Operator;
        self.take(1);
    }

    fn dot_or_bar(&mut self, c: char) {
        self.product.constant = None;
        self.dotted |= c == '.' && self.target == "set";
        if c == '|' {
            self.product.primary = None;
        } else if let Some(start) = self.product.primary
            && starts_with_digit(self.rest[1..].trim_start())
            && !starts_with_digit(&self.out[start..])
        {
            counted_base(self.out, start);
        }
        self.copy(1);
        self.last = Last::BeforeName;
    }

    /// Any other sign: between operands, or one of a list or of a statement.
    fn operator(&mut self, c: char) {
        let rest = self.rest;
        let two = ["==", "!=", "<=", ">=", "//", "**"].into_iter().find(|op| rest.starts_with(op));
        let op = two.unwrap_or(&rest[..c.len_utf8()]);
        self.parts += op.len() - c.len_utf8();
        self.product_before(op);
        self.copy(op.len());
        match (op, self.open.last_mut()) {
            (",", level) => {
                self.parts = level.as_ref().map_or(0, |level| level.parts);
                if let Some(level) = level {
                    level.comma = true;
                }
            }
            (":", Some(level)) => level.colon = true,
            ("=", None) if self.target == "set" => {
                self.target = "";
                self.kept = self.dotted.then_some(self.out.len());
            }
            _ => {}
        }
        self.last = Last::Operator;
    }

    /// What an operator means for the product on its left: it goes on, or ends and is counted.
    fn product_before(&mut self, op: &str) {
        let product = &mut self.product;
        match op {
            "**" => {
                product.operand = None;
                product.constant = None;
                product.compound = true;
            }
            "*" | "/" | "//" | "%" => {
                product.end_operand(self.out);
                product.compound = true;
                if let Some(start) = product.start.filter(|_| op == "*") {
                    self.out.insert(start, '(');
                    append(self.out, ")|llm_times");
                    product.by = true;
                }
            }
            "==" | "!=" | "<=" | ">=" | "<" | ">" => product.end(self.out, Count::Look),
            "~" => product.end(self.out, Count::Text),
            "+" => product.end(self.out, Count::Part),
            _ => product.end(self.out, Count::Not),
        }
    }
}

/// Counts what begins at `start` as the base of a subscript.
fn counted_base(out: &mut String, start: usize) {
    out.insert_str(start, "llm_of(");
    append(out, ")");
}

/// Whether a subscript holds nothing but a name or a small number: no text is gone through for these.
fn is_small_key(rest: &str) -> bool {
    let rest = rest.trim_start();
    let length = match rest.chars().next() {
        Some(quote @ ('"' | '\'')) => string_length(rest, quote),
        _ => rest.bytes().take_while(u8::is_ascii_digit).count().min(3),
    };
    length > 0 && rest[length..].trim_start().starts_with(']')
}

/// Whether a name or a number may hold it.
fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn starts_with_digit(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
}

/// Length of the name or the number that `text` begins with.
fn word_length(text: &str) -> usize {
    let length = text.find(|c: char| !is_word(c)).unwrap_or(text.len());
    // The sign of an exponent.
    if starts_with_digit(text)
        && text[..length].ends_with(['e', 'E'])
        && text[length..].starts_with(['-', '+'])
    {
        let digits = text[length + 1..].find(|c: char| !c.is_ascii_digit() && c != '_');
        return digits.map_or(text.len(), |digits| length + 1 + digits);
    }
    length
}

/// Copies a quoted text. Python keeps the backslash of `\/`, the engine drops it.
fn copy_string(out: &mut String, quoted: &str) {
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        out.push(c);
        if c == '\\'
            && let Some(next) = chars.next()
        {
            if next == '/' {
                out.push('\\');
            }
            out.push(next);
        }
    }
}

/// Length of a quoted text with its quotes.
fn string_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if c == quote && !escaped {
            return at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    text.len()
}
