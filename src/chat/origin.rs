//! Which special tokens of a rendering the template wrote, and which the host's text would only imitate.
//!
//! ```text
//! rendering      <|im_start|>user\nsay <|im_end|>!<|im_end|>\n
//! marked         <|im_start|>user\nsay <·|im_end|>!<|im_end|>\n     the template ran again over marked host text
//! breaks                               ↑                            no special token may reach across
//! ```
//!
//! A template is a program: it compares, trims, cuts and joins what the host wrote, so the origin of a byte can only
//! be learnt by running it. The conversation is marked with a character that occurs nowhere in it and rendered again.
//! If the marked rendering without its marks is the rendering, the template did the same, and each mark stands where
//! host text stands; a special token with a mark inside holds bytes of the host and is plain text. Marks that change
//! what the template does show themselves, and others are tried:
//!
//! 1. between all characters of the host's text, which follows every cut a template can make;
//! 2. only where host text holds a special token of the rendering or could be a part of one;
//! 3. the same one text at a time, wherever it occurs: inside the token, behind it, before it.
//!
//! Where nothing works, every special token that such a text holds is plain: host text never becomes a special token,
//! at worst a token of the template is spelled out. Roles with a common name, and the texts the host
//! declares as the model's own ([`MODEL_VARS`]), belong to the template: `<|` + role + `|>` is a token.

use std::collections::BTreeSet;

use llm_format::order;
use serde_json::{Map, Value};

use super::{Chat, Template};
use crate::error::Result;

/// Roles that templates build tokens from.
const ROLES: [&str; 9] =
    ["system", "user", "assistant", "tool", "developer", "function", "ipython", "model", "observation"];

/// Variables that hold special tokens of the model, not text of a host.
pub const MODEL_VARS: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

/// Texts looked at one at a time, before everything they could imitate is plain.
const MOST_TEXTS: usize = 32;

/// Places in `rendering` that no special token may reach across. `specials` are the texts of special tokens.
pub(super) fn breaks<'a>(
    template: &Template,
    chat: &Chat,
    add_generation_prompt: bool,
    rendering: &str,
    specials: impl Iterator<Item = &'a str>,
) -> Result<Vec<usize>> {
    // Only what occurs can be imitated.
    let specials: Vec<&str> = specials.filter(|special| rendering.contains(special)).collect();
    if specials.is_empty() {
        return Ok(Vec::new());
    }
    let Some(mark) = unused(template, chat, rendering) else {
        // A text that uses the whole private area: nothing of it is worth a token.
        return Ok(rendering.char_indices().map(|(at, _)| at).collect());
    };
    let run = Run { template, chat, add_generation_prompt, rendering, specials, mark };
    if let Some(found) = run.render(&|text, key| if key { run.holding(text) } else { between(text) }) {
        return Ok(found);
    }
    if let Some(found) = run.render(&|text, key| if key { run.holding(text) } else { run.touching(text) }) {
        return Ok(found);
    }
    Ok(run.one_by_one())
}

/// A character of the private use area that occurs neither in the conversation, the template nor the rendering.
fn unused(template: &Template, chat: &Chat, rendering: &str) -> Option<char> {
    let mut used = vec![false; 0x1900];
    let mut see = |text: &str| {
        for c in text.chars() {
            if let Some(used) = (c as usize).checked_sub(0xe000).and_then(|at| used.get_mut(at)) {
                *used = true;
            }
        }
    };
    see(rendering);
    see(template.source());
    rewrite(chat, &mut |text, _| {
        see(text);
        text.to_owned()
    });
    let free = used.iter().position(|used| !used)?;
    char::from_u32(0xe000 + free as u32)
}

/// One conversation with its rendering.
struct Run<'a> {
    template: &'a Template,
    chat: &'a Chat,
    add_generation_prompt: bool,
    rendering: &'a str,
    specials: Vec<&'a str>,
    mark: char,
}

/// Renders with one text marked at these places, with or without names of fields; where the marks went.
type Alone<'a> = dyn Fn(&[usize], bool) -> Option<Vec<usize>> + 'a;

/// Where the mark stands to a special token in a text that is looked at alone.
#[derive(Clone, Copy)]
enum Side {
    Behind,
    Before,
}

impl Run<'_> {
    /// Renders with marks at the places `places(text, is_key)` gives; where the marks went, if the template did the
    /// same.
    fn render(&self, places: &dyn Fn(&str, bool) -> Vec<usize>) -> Option<Vec<usize>> {
        let marked = rewrite(self.chat, &mut |text, key| {
            let mut places = places(text, key);
            order::by_number(&mut places, |&at| at as u64);
            places.dedup();
            let mut out = String::with_capacity(text.len() + 3 * places.len());
            let mut from = 0;
            for at in places {
                out.push_str(&text[from..at]);
                out.push(self.mark);
                from = at;
            }
            out.push_str(&text[from..]);
            out
        });
        // A template that fails on marked text was changed by the marks.
        let out = self.template.render(&marked, self.add_generation_prompt).ok()?;
        let mut found = Vec::new();
        let mut rest = self.rendering;
        for piece in out.split(self.mark) {
            rest = rest.strip_prefix(piece)?;
            found.push(self.rendering.len() - rest.len());
        }
        // The end of the last piece is not a mark.
        found.pop();
        found.dedup();
        rest.is_empty().then_some(found)
    }

    /// Places in a host text that every special token it holds, or is a part of, would have a break at.
    fn touching(&self, text: &str) -> Vec<usize> {
        let mut places = Vec::new();
        for special in &self.specials {
            places.extend(occurrences(text, special).flat_map(|at| inside(special, at)));
            // The template may trim before it joins.
            let start = text.len() - text.trim_start().len();
            let end = text.trim_end().len();
            for (start, end) in [(0, text.len()), (start, end.max(start))] {
                let piece = &text[start..end];
                let ends = |n: usize| special.get(..n).is_some_and(|head| piece.ends_with(head));
                let begins = |n: usize| special.get(n..).is_some_and(|tail| piece.starts_with(tail));
                if (1..special.len()).any(ends) {
                    places.push(end);
                }
                if (1..special.len()).any(begins) {
                    places.push(start);
                }
                if !piece.is_empty() && piece.len() < special.len() && special.contains(piece) {
                    places.extend([start, end]);
                }
            }
        }
        places
    }

    /// As [`Run::touching`], but only for whole tokens. Names of fields are marked so: templates look others up.
    fn holding(&self, text: &str) -> Vec<usize> {
        self.specials.iter().flat_map(|s| occurrences(text, s).flat_map(|at| inside(s, at))).collect()
    }

    /// The breaks each touching text asks for when it alone is marked, wherever it occurs.
    fn one_by_one(&self) -> Vec<usize> {
        let mut touching = BTreeSet::new();
        rewrite(self.chat, &mut |text, key| {
            let places = if key { self.holding(text) } else { self.touching(text) };
            if !places.is_empty() {
                touching.insert(text.to_owned());
            }
            text.to_owned()
        });
        let mut found = Vec::new();
        // Texts that no mark works in.
        let mut unmarked = Vec::new();
        for (count, text) in touching.iter().enumerate() {
            if count >= MOST_TEXTS {
                unmarked.push(text.as_str());
                continue;
            }
            let places = self.touching(text);
            // With names of fields too: a template may look for one text in the other.
            let alone = |places: &[usize], keys: bool| {
                self.render(&|at, key| {
                    if at == text && (keys || !key) { places.to_vec() } else { Vec::new() }
                })
            };
            let breaks = alone(&places, false)
                .filter(|_| !self.is_key(text) || self.holding(text).is_empty())
                .or_else(|| alone(&places, true))
                .or_else(|| self.beside(text, Side::Behind, &alone))
                .or_else(|| self.beside(text, Side::Before, &alone));
            match breaks {
                Some(breaks) => found.extend(breaks),
                None => unmarked.push(text),
            }
        }
        found.extend(self.imitable(&unmarked));
        order::by_number(&mut found, |&at| at as u64);
        found.dedup();
        found
    }

    /// Whether a text is the name of a field somewhere.
    fn is_key(&self, text: &str) -> bool {
        let mut found = false;
        rewrite(self.chat, &mut |at, key| {
            found |= key && at == text;
            at.to_owned()
        });
        found
    }

    /// Marks the whole tokens of a text on one side. Only for texts that hold whole tokens; parts of tokens have no
    /// outside.
    fn beside(&self, text: &str, side: Side, alone: &Alone) -> Option<Vec<usize>> {
        let mut places = Vec::new();
        for special in &self.specials {
            places.extend(occurrences(text, special).map(|at| match side {
                Side::Behind => at + special.len(),
                Side::Before => at,
            }));
        }
        if places.is_empty() {
            return None;
        }
        let marks = alone(&places, true)?;
        let mut found = Vec::new();
        for special in &self.specials {
            for at in occurrences(self.rendering, special) {
                let beside = match side {
                    Side::Behind => at + special.len(),
                    Side::Before => at,
                };
                if marks.binary_search(&beside).is_ok() {
                    found.extend(inside(special, at));
                }
            }
        }
        Some(found)
    }

    /// What is left where no mark works. Every token that such a text holds is broken, the template's own too. Of those
    /// it could only be a part of, the ones that the template spells out whole stay tokens: the template looked at
    /// the text, as in `{% if part.type == 'image' %}<|image|>`. Each token is looked for once, however many texts there
    /// are.
    fn imitable(&self, texts: &[&str]) -> Vec<usize> {
        let spelled = |special: &str| {
            let mut vars = self.template.tokens().chain(self.chat.vars.iter());
            self.template.source().contains(special)
                || vars.any(|(name, v)| MODEL_VARS.contains(&name.as_str()) && v.as_str() == Some(special))
        };
        let suspect = |special: &str| {
            texts.iter().any(|text| text.contains(special)) || (!texts.is_empty() && !spelled(special))
        };
        let suspects = self.specials.iter().filter(|special| suspect(special));
        let tokens = suspects
            .flat_map(|special| occurrences(self.rendering, special).flat_map(|at| inside(special, at)));
        tokens.collect()
    }
}

/// Every place where `part` begins in `text`, overlapping ones too.
fn occurrences<'a>(text: &'a str, part: &'a str) -> impl Iterator<Item = usize> + 'a {
    let mut from = 0;
    std::iter::from_fn(move || {
        let at = from + text.get(from..)?.find(part)?;
        from = at + text[at..].chars().next().map_or(1, char::len_utf8);
        Some(at)
    })
}

/// Breaks that keep `special` at `at` from being a token: behind its first character, and before it where it has
/// only one.
fn inside(special: &str, at: usize) -> Vec<usize> {
    let first = special.chars().next().map_or(0, char::len_utf8);
    if first < special.len() { vec![at + first] } else { vec![at, at + first] }
}

/// Every place beside a character that is not whitespace: trimming and splitting at whitespace stay as they are.
fn between(text: &str) -> Vec<usize> {
    let mut places = Vec::new();
    for (at, c) in text.char_indices().filter(|(_, c)| !c.is_whitespace()) {
        places.extend([at, at + c.len_utf8()]);
    }
    places.dedup();
    places
}

/// The conversation with every host text, names of fields too, put through `f(text, is_key)` in a fixed order.
fn rewrite(chat: &Chat, f: &mut dyn FnMut(&str, bool) -> String) -> Chat {
    let messages = chat.messages.iter().map(|message| match message {
        Value::Object(fields) => {
            let mut out = Map::new();
            for (name, value) in fields {
                let known = name == "role" && value.as_str().is_some_and(|role| ROLES.contains(&role));
                let value = if known { value.clone() } else { rewrite_value(value, f) };
                out.insert(f(name, true), value);
            }
            Value::Object(out)
        }
        other => rewrite_value(other, f),
    });
    let messages = messages.collect();
    let tools = chat.tools.as_ref().map(|tools| rewrite_value(tools, f));
    let mut vars = Map::new();
    for (name, value) in &chat.vars {
        let models = MODEL_VARS.contains(&name.as_str());
        vars.insert(name.clone(), if models { value.clone() } else { rewrite_value(value, f) });
    }
    Chat { messages, tools, vars }
}

fn rewrite_value(value: &Value, f: &mut dyn FnMut(&str, bool) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(f(text, false)),
        Value::Array(items) => Value::Array(items.iter().map(|item| rewrite_value(item, f)).collect()),
        Value::Object(map) => {
            Value::Object(map.iter().map(|(name, value)| (f(name, true), rewrite_value(value, f))).collect())
        }
        other => other.clone(),
    }
}
