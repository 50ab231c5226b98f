//! What Jinja2 reads and the engine does not, rewritten before compiling.
//!
//! | in the source | becomes | why |
//! |---|---|---|
//! | `{% generation %}` … `{% endgeneration %}` | a condition that holds | marks training text, prints its body; the tags keep their effect on whitespace |
//! | `+x` where an operand is due | `--x` | unary plus |
//! | `-true` | `-1` | booleans are numbers |
//! | `"a" "b"` | `"a"~"b"` | neighbouring texts are one text |
//! | `"\/"` | `"\\/"` | Python knows no such escape |
//! | `if`, `in`, … where an operand is due | another name | Jinja2 takes them as variables |
//! | `a + b`, `a ~ b`, `a == b`, `a in b` | `a|llm_part + b|llm_part`, … | what they cost is counted ([`super::budget`]) |
//! | `a * b` | `(a)|llm_times*(b)|llm_by` | the same; the product must be known before it is made |
//! | `[a]`, `a[1:]`, `set n.x = a` | `([a]|llm_list)`, `(llm_of(a)[1:]|llm_slice)`, `set n.x =(a)|llm_kept` | the same; and nesting is bounded |
//! | `a[b]`, `a.100` | `llm_of(a)[(b)|llm_look]`, `llm_of(a).100` | the same: the engine goes through a text up to its `b`th character |
//! | `llm_of` and the like | another name | these are ours |
//! | long text outside of tags | `te{{llm_raw(1000)}}xt` | the same |
//!
//! Filters bind closer than operators, so that counting changes no precedence; a whole product is put into brackets.
//! The walk knows strings, brackets, whether an operand or an operator is due, and where a product begins; nothing more
//! of the grammar.

use std::ops::Range;

/// Words that are operators, unless an operand is due.
const WORDS: [&str; 6] = ["if", "else", "in", "is", "and", "or"];

/// What counts: a template that gave the functions another value, or called the filters itself, would not be counted.
pub(super) const OWN: [&str; 10] = [
    "llm_by",
    "llm_kept",
    "llm_list",
    "llm_look",
    "llm_of",
    "llm_part",
    "llm_raw",
    "llm_slice",
    "llm_text",
    "llm_times",
];

/// The most words, texts and signs in a tag between two commas, with those before the brackets that they stand in.
/// Published templates have up to 62 in a whole tag.
const LONGEST: usize = 1000;
/// The most `elif` in a template. Published ones have up to 22.
const MOST_ELIF: usize = 500;
/// What is wrong with text that [`raw`] has no place in.
const BLANK: &str = "more than 1000 bytes of white space and single characters";

/// The template as the engine reads it.
///
/// # Errors
/// The line and what about it is too long: the engine recurses over chains of operators and of conditions without a
/// bound of its own.
pub(super) fn prepare(source: &str) -> Result<String, (usize, String)> {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut elifs = 0;
    while let Some(at) = rest.find('{') {
        let line = |rest: &str| 1 + source[..source.len() - rest.len()].matches('\n').count();
        raw(&mut out, &rest[..at], ["", ""]).ok_or_else(|| (line(rest), BLANK.to_owned()))?;
        rest = &rest[at..];
        let too_much = |what: String| (line(rest), what);
        let long = || too_much(format!("an expression of more than {LONGEST} words and signs"));
        let taken = match rest.as_bytes().get(1) {
            Some(b'#') => copy(&mut out, rest, "#}"),
            Some(b'%') => match raw_block(rest) {
                Some((inner, end)) => {
                    out.push_str(&rest[..inner.start]);
                    raw(&mut out, &rest[inner.clone()], ["{% endraw %}", "{% raw %}"])
                        .ok_or_else(|| too_much(BLANK.to_owned()))?;
                    out.push_str(&rest[inner.end..end]);
                    end
                }
                None => {
                    elifs += usize::from(tag_word(rest).is_some_and(|(words, _)| words.starts_with("elif")));
                    if elifs > MOST_ELIF {
                        return Err(too_much(format!("more than {MOST_ELIF} `elif`")));
                    }
                    tag(&mut out, rest, "%}").ok_or_else(long)?
                }
            },
            Some(b'{') => tag(&mut out, rest, "}}").ok_or_else(long)?,
            _ => {
                out.push('{');
                1
            }
        };
        rest = &rest[taken..];
    }
    let line = 1 + source[..source.len() - rest.len()].matches('\n').count();
    raw(&mut out, rest, ["", ""]).ok_or_else(|| (line, BLANK.to_owned()))?;
    Ok(out)
}

/// Copies through `end`; the number of bytes taken.
fn copy(out: &mut String, text: &str, end: &str) -> usize {
    let length = text.find(end).map_or(text.len(), |at| at + end.len());
    out.push_str(&text[..length]);
    length
}

/// What stands between `{%` and the end of a tag, without whitespace control.
fn tag_word(text: &str) -> Option<(&str, usize)> {
    let end = 2 + text.get(2..)?.find("%}")?;
    Some((text[2..end].trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim(), end + 2))
}

/// A raw block's text and its length with its tags, if one begins here. One without an end, which is an error, is all
/// there is.
fn raw_block(text: &str) -> Option<(Range<usize>, usize)> {
    let (word, mut at) = tag_word(text)?;
    if word != "raw" {
        return None;
    }
    let start = at;
    while let Some(next) = text[at..].find("{%") {
        at += next;
        let Some((word, length)) = tag_word(&text[at..]) else { break };
        if word == "endraw" {
            return Some((start..at, at + length));
        }
        at += length;
    }
    Some((text.len()..text.len(), text.len()))
}

/// What was read last within a tag.
#[derive(PartialEq)]
enum Last {
    Operand,
    Text,
    Operator,
    /// `.`, `|` or `is`: a name follows that is not a variable.
    BeforeName,
}

/// How an operand is counted ([`super::budget`]); the later ones include what the earlier ones do.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Count {
    #[default]
    Not,
    /// Of a comparison.
    Look,
    /// Of `+`.
    Part,
    /// Of `~`.
    Text,
}

/// Constant texts up to this long need no counting: instructions are counted.
const SHORT: usize = 64;

/// The product being read: operands and what stands between them with `**`, `*`, `/`, `//` and `%`. Places are those of
/// the output.
#[derive(Default)]
struct Product {
    start: Option<usize>,
    /// Where its last operand starts.
    operand: Option<usize>,
    /// Where what a subscript would apply to starts, behind the signs of that operand; behind a filter or a test there is
    /// nothing to apply to.
    primary: Option<usize>,
    /// Whether the last operand is the right one of `*`, and where that starts.
    by: bool,
    factor: Option<usize>,
    /// More than one operand.
    compound: bool,
    /// The length of the constant that it is.
    constant: Option<usize>,
    /// A test was seen: a truth value.
    tested: bool,
    /// How it is counted for the operator on its left.
    count: Count,
}

impl Product {
    /// An operand starts here, unless it has.
    fn begin(&mut self, at: usize) {
        self.start.get_or_insert(at);
        self.operand.get_or_insert(at);
        if self.by {
            self.factor.get_or_insert(at);
        }
    }

    /// An operand ends here; another of the same product follows or nothing does.
    fn end_operand(&mut self, out: &mut String) {
        if let Some(at) = self.factor.take() {
            out.insert(at, '(');
            append(out, ")|llm_by");
        }
        self.by = false;
        self.operand = None;
        self.primary = None;
        self.constant = None;
    }

    /// The product ends here, and is counted so for the operator on its right; that one counts what follows so, too.
    fn end(&mut self, out: &mut String, count: Count) {
        let short =
            self.constant.is_some_and(|length| length <= SHORT || self.count.max(count) == Count::Look);
        self.end_operand(out);
        let filter = match self.count.max(count) {
            Count::Not => "",
            Count::Look => "|llm_look",
            Count::Part => "|llm_part",
            Count::Text => "|llm_text",
        };
        if let Some(start) = self.start.filter(|_| !filter.is_empty()) {
            if self.compound {
                out.insert(start, '(');
                append(out, ")");
                append(out, filter);
            } else if !short && !self.tested {
                append(out, filter);
            }
        }
        *self = Self { count, ..Self::default() };
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

/// Appends before the white space at the end, which may be what keeps words apart.
fn append(out: &mut String, text: &str) {
    out.insert_str(out.trim_end().len(), text);
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
fn tag(out: &mut String, text: &str, end: &str) -> Option<usize> {
    let mut at = 2;
    // Since the last comma.
    let mut parts = 0;
    let mut open: Vec<Level> = Vec::new();
    let mut product = Product::default();
    out.push_str(&text[..2]);
    if let Some(sign) = text[at..].chars().next().filter(|c| matches!(c, '-' | '+')) {
        out.push(sign);
        at += 1;
    }
    // A statement begins with its name.
    let mut last = if end == "%}" { Last::BeforeName } else { Last::Operator };
    let mut statement = end == "%}";
    // Names that are given a value, not read; with a dot, of a namespace, and where that value starts.
    let (mut target, mut dotted, mut kept) = ("", false, None);
    // After a sign that stands before an operand.
    let mut signed = false;
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        let control = matches!(c, '-' | '+') && rest[1..].starts_with(end);
        if open.is_empty() && (control || rest.starts_with(end)) {
            product.end(out, Count::Not);
            if let Some(start) = kept {
                out.insert(start, '(');
                append(out, ")|llm_kept");
            }
            let length = usize::from(control) + end.len();
            out.push_str(&rest[..length]);
            return Some(at + length);
        }
        let operand = matches!(last, Last::Operand | Last::Text);
        let mut length = c.len_utf8();
        match c {
            c if c.is_whitespace() => out.push(c),
            '"' | '\'' => {
                if last == Last::Text {
                    product.end(out, Count::Text);
                    out.push('~');
                } else if operand && !product.tested {
                    product.end(out, Count::Not);
                }
                last = Last::Text;
                length = string_length(rest, c);
                product.constant = product.operand.is_none().then_some(length);
                product.begin(out.len());
                product.primary = Some(out.len());
                copy_string(out, &rest[..length]);
            }
            c if c.is_alphanumeric() || c == '_' => {
                length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                // The sign of an exponent.
                if c.is_ascii_digit()
                    && rest[..length].ends_with(['e', 'E'])
                    && rest[length..].starts_with(['-', '+'])
                {
                    let digits = rest[length + 1..].find(|c: char| !c.is_ascii_digit() && c != '_');
                    length = digits.map_or(rest.len(), |digits| length + 1 + digits);
                }
                let word = &rest[..length];
                if OWN.contains(&word) && !out.trim_end().ends_with('.') {
                    out.push_str("variable_");
                }
                if std::mem::take(&mut statement) {
                    out.push_str(match word {
                        "generation" => "if true",
                        "endgeneration" => "endif",
                        word => word,
                    });
                    if ["for", "set", "call"].contains(&word) {
                        target = word;
                    }
                    last = Last::Operator;
                } else if last == Last::BeforeName {
                    out.push_str(word);
                    // `is not NAME`: the name is still to come.
                    if word != "not" {
                        last = Last::Operand;
                    }
                } else if operand {
                    last = match word {
                        "is" => Last::BeforeName,
                        // `not in` is one operator, which its second word completes.
                        word if WORDS.contains(&word) => Last::Operator,
                        _ => Last::Operand,
                    };
                    match word {
                        "is" => (product.tested, product.primary) = (true, None),
                        "in" if target == "for" && open.is_empty() => {
                            product.end(out, Count::Not);
                            // The engine may copy what it goes through.
                            product.count = Count::Look;
                            target = "";
                        }
                        "in" | "not" => product.end(out, Count::Look),
                        word if WORDS.contains(&word) => product.end(out, Count::Not),
                        // The argument of a test; or a word of a statement.
                        _ if product.tested => product.primary = Some(out.len()),
                        _ => product.end(out, Count::Not),
                    }
                    out.push_str(word);
                } else if signed && matches!(word, "true" | "True" | "false" | "False") {
                    out.push(if matches!(word, "true" | "True") { '1' } else { '0' });
                    last = Last::Operand;
                } else if word == "not" {
                    out.push_str(word);
                } else {
                    if target == "call" {
                        target = "";
                    }
                    product.constant = (product.operand.is_none() && c.is_ascii_digit()).then_some(length);
                    product.begin(out.len());
                    product.primary = Some(out.len());
                    if let Some(level) = open.last_mut() {
                        level.names |= !c.is_ascii_digit();
                    }
                    // A named argument keeps its name.
                    let named = !open.is_empty() && {
                        let after = rest[length..].trim_start();
                        after.starts_with('=') && !after.starts_with("==")
                    };
                    if WORDS.contains(&word) && !named {
                        out.push_str("variable_");
                    }
                    out.push_str(word);
                    last = Last::Operand;
                }
            }
            '(' | '[' | '{' => {
                if !operand {
                    product.begin(out.len());
                }
                product.constant = None;
                let mut subscript = false;
                if !operand || product.tested {
                    // Brackets of their own, also as the argument of a test.
                    product.primary.get_or_insert(out.len());
                }
                if let Some(start) = product.primary.filter(|at| operand && c == '[' && *at < out.len()) {
                    subscript = !is_small_key(&rest[1..]);
                    if subscript {
                        counted_base(out, start);
                    }
                }
                let product = std::mem::take(&mut product);
                let (start, literal) = (out.len(), !operand && target.is_empty());
                let (comma, colon, names) = (false, false, false);
                open.push(Level { parts, start, literal, comma, colon, names, subscript, product });
                out.push(c);
                last = Last::Operator;
            }
            ')' | ']' | '}' => {
                product.end(out, Count::Not);
                if let Some(level) = open.last().filter(|level| level.subscript && level.names)
                    && !level.colon
                    && !level.comma
                {
                    out.insert(level.start + 1, '(');
                    append(out, ")|llm_look");
                }
                out.push(c);
                last = Last::Operand;
                if let Some(level) = open.pop() {
                    parts = level.parts;
                    product = level.product;
                    if let Some(outer) = open.last_mut() {
                        outer.names |= level.names;
                    }
                    if level.literal && level.names && (c != ')' || level.comma) {
                        out.insert(level.start, '(');
                        out.push_str("|llm_list)");
                    } else if !level.literal && c == ']' && level.colon {
                        out.insert(product.operand.unwrap_or(level.start), '(');
                        out.push_str("|llm_slice)");
                    }
                    if open.is_empty() && target == "call" {
                        target = "";
                        last = Last::Operator;
                        product = Product::default();
                    }
                }
            }
            '+' | '-' if !operand => {
                product.begin(out.len());
                out.push_str(if c == '+' { "--" } else { "-" });
                // A plus may become two signs.
                parts += usize::from(c == '+');
                last = Last::Operator;
            }
            '.' | '|' => {
                product.constant = None;
                dotted |= c == '.' && target == "set";
                if c == '|' {
                    product.primary = None;
                } else if let Some(start) = product.primary
                    && rest[1..].trim_start().starts_with(|c: char| c.is_ascii_digit())
                    && !out[start..].starts_with(|c: char| c.is_ascii_digit())
                {
                    counted_base(out, start);
                }
                out.push(c);
                last = Last::BeforeName;
            }
            _ => {
                let two = ["==", "!=", "<=", ">=", "//", "**"].into_iter().find(|op| rest.starts_with(op));
                let op = two.unwrap_or(&rest[..length]);
                length = op.len();
                parts += length - c.len_utf8();
                match op {
                    "**" => {
                        product.operand = None;
                        product.constant = None;
                        product.compound = true;
                    }
                    "*" | "/" | "//" | "%" => {
                        product.end_operand(out);
                        product.compound = true;
                        if let Some(start) = product.start.filter(|_| op == "*") {
                            out.insert(start, '(');
                            append(out, ")|llm_times");
                            product.by = true;
                        }
                    }
                    "==" | "!=" | "<=" | ">=" | "<" | ">" => product.end(out, Count::Look),
                    "~" => product.end(out, Count::Text),
                    "+" => product.end(out, Count::Part),
                    _ => product.end(out, Count::Not),
                }
                out.push_str(op);
                match (op, open.last_mut()) {
                    (",", level) => {
                        parts = level.as_ref().map_or(0, |level| level.parts);
                        if let Some(level) = level {
                            level.comma = true;
                        }
                    }
                    (":", Some(level)) => level.colon = true,
                    ("=", None) if target == "set" => {
                        target = "";
                        kept = dotted.then_some(out.len());
                    }
                    _ => {}
                }
                last = Last::Operator;
            }
        }
        parts += usize::from(!c.is_whitespace() && c != ',');
        if parts > LONGEST {
            return None;
        }
        signed = matches!(c, '-' | '+') && !operand || signed && c.is_whitespace();
        at += length;
    }
    Some(at)
}

/// Copies text outside of tags. What goes into a variable or comes from a macro does not pass the printing of values,
/// so longer text is counted by a call within it: between two characters that are no white space, where no rule
/// about the white space beside tags applies. `around` closes and opens a raw block.
fn raw(out: &mut String, text: &str, around: [&str; 2]) -> Option<()> {
    if text.len() <= SHORT / 2 {
        out.push_str(text);
        return Some(());
    }
    let mut before = ' ';
    let split = text
        .char_indices()
        .find(|&(_, c)| !std::mem::replace(&mut before, c).is_whitespace() && !c.is_whitespace());
    match split {
        Some((at, _)) => {
            out.push_str(&text[..at]);
            let [close, open] = around;
            out.push_str(&format!("{close}{{{{llm_raw({})}}}}{open}", text.len()));
            out.push_str(&text[at..]);
        }
        None if text.len() > LONGEST => return None,
        None => out.push_str(text),
    }
    Some(())
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

#[cfg(test)]
mod tests {
    fn prepare(source: &str) -> String {
        super::prepare(source).unwrap()
    }

    #[test]
    fn only_what_the_engine_does_not_read_changes() {
        for same in [
            "plain { text } }} %}",
            "{{ a - b - 1 if c else d }}",
            "{%- if x is not none and a.b -%}{% endif +%}",
            "{{ x and not z is not defined }}{% for i, (j, k) in 2 recursive %}{% set (a, b) = c, 1e-5 %}",
            "{# +x 'a' 'b' {% generation %} #}",
            "{% raw %}{{ +x }}{% generation %}{% endraw %}",
            "{{ {'a': {'b': 1}} }}{{ f(x, y=1)[1] | join('+') }}{{ 'a' ~ 1 + 2 }}{% call(a, b) f([1]) %}",
            "{{ 'it\\'s {{ +x }}' }}",
            "{{ unclosed - 'text",
            "{% raw %}{% raw %}{{ +x }}",
            "{%} x {%",
        ] {
            assert_eq!(prepare(same), same);
        }
    }

    #[test]
    fn generation_tags_keep_their_whitespace_control() {
        let source = "a {%- generation -%} b {% endgeneration %}{% if x %}";
        assert_eq!(prepare(source), "a {%- if true -%} b {% endif %}{% if x %}");
    }

    #[test]
    fn signed_booleans_are_numbers() {
        assert_eq!(prepare("{{ -true + +False - x }}"), "{{ -1|llm_part + --0|llm_part - x }}");
    }

    #[test]
    fn operands_that_look_like_operators_are_rewritten() {
        assert_eq!(prepare("{{ +x - (+y) }}"), "{{ --x - (--y) }}");
        assert_eq!(prepare("{{ 'a' \"b\" }}"), "{{ 'a' ~\"b\" }}");
        assert_eq!(prepare("{% if if in in %}"), "{% if variable_if|llm_look in variable_in|llm_look %}");
    }

    #[test]
    fn chains_too_long_for_the_engine_are_refused_with_their_line() {
        for tag in ["-", "+", "not ", "1 + ", "a.", "a | trim | ", "1 if 1 else ", "a(0, 1)[2, 3]", "a(0)("] {
            let e = super::prepare(&format!("a\n\n{{{{ {}1 }}}}", tag.repeat(20_000))).unwrap_err();
            assert_eq!(e, (3, "an expression of more than 1000 words and signs".to_owned()), "{tag}");
        }
        let conditions = |n: usize| format!("{{% if a %}}{}{{% endif %}}", "\n{%- elif a %}".repeat(n));
        assert_eq!(super::prepare(&conditions(500)).unwrap(), conditions(500));
        let e = super::prepare(&conditions(501)).unwrap_err();
        assert_eq!(e, (502, "more than 500 `elif`".to_owned()));
        // Lists may be long, text outside of tags, comments and raw blocks may be of any length.
        let text = "one ".repeat(2000);
        let list = "{'a': [1, 2, 3, 4]}, ".repeat(2000);
        assert_eq!(super::prepare(&format!("{{{{ [{list}] }}}}")).unwrap(), format!("{{{{ [{list}] }}}}"));
        let whole = format!("{text}{{# {text} #}}{{% raw %}}{{{{ {text} {{% endraw %}}{{{{ '{text}' }}}}");
        assert!(super::prepare(&whole).unwrap().starts_with("o{{llm_raw(8000)}}ne one "));
        assert!(super::prepare(&" a".repeat(600)).is_err());
    }

    #[test]
    fn operands_are_counted_without_a_change_of_precedence() {
        for (from, to) in [
            ("a ~ b + 1", "a |llm_text~ b |llm_text+ 1"),
            ("a + b|trim if x in y", "a |llm_part+ b|trim |llm_partif x |llm_lookin y|llm_look"),
            ("a * b ** 2 - 1", "(a )|llm_times*( b ** 2 )|llm_by- 1"),
            ("x ~ a / b * c", "x |llm_text~( (a / b )|llm_times*( c)|llm_by)|llm_text"),
            ("-a[1:].b", "(-llm_of(a)[1:]|llm_slice).b"),
            (
                "a[b].c['d'][e + 1] * -f[-1]",
                "(llm_of(llm_of(a)[(b)|llm_look].c['d'])[(e|llm_part + 1)|llm_look])|llm_times*( -llm_of(f)[-1])|llm_by",
            ),
            ("f(a)[0][1000].99", "llm_of(llm_of(f(a)[0])[1000]).99"),
            (
                "1.5 + (a)[b:c] - 'd'[e]",
                "1.5|llm_part + (llm_of((a))[b:c]|llm_slice)|llm_part - llm_of('d')[(e)|llm_look]",
            ),
            (
                "a is in b[c] or d is in [e][f] or g is h([i])",
                "a is in llm_of(b)[(c)|llm_look] or d is in llm_of([e])[(f)|llm_look] or g is h(([i]|llm_list))",
            ),
            ("a|b[c] ~ d", "a|b[c]|llm_text ~ d|llm_text"),
            ("llm_of(a.llm_of)|llm_raw", "variable_llm_of(a.llm_of)|variable_llm_raw"),
            ("[a, ['b']][0]", "([a, ['b']]|llm_list)[0]"),
            ("f((a, 1), (b))", "f(((a, 1)|llm_list), (b))"),
        ] {
            let squeeze = |text: &str| text.replace(' ', "");
            assert_eq!(squeeze(&prepare(&format!("{{{{ {from}}}}}"))), squeeze(&format!("{{{{{to}}}}}")));
        }
        assert_eq!(prepare("{% set n.x = a, b -%}"), "{% set n.x =( a, b)|llm_kept -%}");
    }
}
