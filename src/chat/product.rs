//! A product within a tag, and how it is counted for the operators beside it.
//!
//! ```text
//! x ~ a / b * -c.d[e]
//!     │       ││
//!     │       │└ primary: what the subscript applies to
//!     │       └ operand, and factor, being the right one of *
//!     └ start
//! ```
//!
//! What is read is in the output already. What an operator needs around its operands is put in when they end, so it is
//! remembered where they began. It does not know what ends them: that is for [`super::tag`].

/// How an operand is counted ([`super::budget`]); the later ones include what the earlier ones do.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Count {
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
pub(super) const SHORT: usize = 64;

/// The product being read: operands and what stands between them with `**`, `*`, `/`, `//` and `%`. Places are those of
/// the output.
#[derive(Default)]
pub(super) struct Product {
    pub(super) start: Option<usize>,
    /// Where its last operand starts.
    pub(super) operand: Option<usize>,
    /// Where what a subscript would apply to starts, behind the signs of that operand; behind a filter or a test there is
    /// nothing to apply to.
    pub(super) primary: Option<usize>,
    /// Whether the last operand is the right one of `*`, and where that starts.
    pub(super) by: bool,
    factor: Option<usize>,
    /// More than one operand.
    pub(super) compound: bool,
    /// The length of the constant that it is.
    pub(super) constant: Option<usize>,
    /// A test was seen: a truth value.
    pub(super) tested: bool,
    /// How it is counted for the operator on its left.
    pub(super) count: Count,
}

impl Product {
    /// An operand starts here, unless it has.
    pub(super) fn begin(&mut self, at: usize) {
        self.start.get_or_insert(at);
        self.operand.get_or_insert(at);
        if self.by {
            self.factor.get_or_insert(at);
        }
    }

    /// An operand ends here; another of the same product follows or nothing does.
    pub(super) fn end_operand(&mut self, out: &mut String) {
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
    pub(super) fn end(&mut self, out: &mut String, count: Count) {
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

/// Appends before the white space at the end, which may be what keeps words apart.
pub(super) fn append(out: &mut String, text: &str) {
    out.insert_str(out.trim_end().len(), text);
}
