//! What `$ref` names: resources by `$id`, anchors, and pointers into either.
//!
//! Only this document is looked at. Base URIs follow RFC 3986 as far as schemas use them: absolute references,
//! absolute paths and names relative to the base's last slash.

use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

use serde_json::{Map, Value};

use crate::error::Result;

/// The most bytes of an address: each resource and each anchor is kept with the whole of its own.
const LONGEST: usize = 1024;

/// A node of the document with the URI its references are relative to.
#[derive(Clone)]
pub(super) struct Place<'a> {
    pub(super) node: &'a Value,
    pub(super) base: Rc<str>,
    pub(super) path: Pointer,
}

/// A JSON pointer in the document. Those that begin alike share their beginning: a name may be long, and have many nodes
/// below it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pointer(Option<Rc<Step>>);

#[derive(Debug)]
struct Step {
    before: Pointer,
    name: String,
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = std::iter::successors(self.0.as_deref(), |step| step.before.0.as_deref());
        let names: Vec<&str> = steps.map(|step| step.name.as_str()).collect();
        names.iter().rev().try_for_each(|name| write!(f, "/{name}"))
    }
}

/// Where everything with a name is.
pub(super) struct References<'a> {
    /// By URI, without fragment for a resource, with one for an anchor.
    named: HashMap<String, Place<'a>>,
    /// Up to draft 7 an `$id` beside a `$ref` does not count.
    reference_alone: bool,
}

/// Keywords whose value is a schema, an array of schemas or an object of schemas; a list or object under any other
/// keyword (`enum`, `const`, `default`) holds no schemas.
const HOLDING: [&str; 22] = [
    "$defs",
    "definitions",
    "properties",
    "patternProperties",
    "dependentSchemas",
    "dependencies",
    "additionalProperties",
    "propertyNames",
    "items",
    "prefixItems",
    "additionalItems",
    "contains",
    "not",
    "if",
    "then",
    "else",
    "allOf",
    "anyOf",
    "oneOf",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
];

impl<'a> References<'a> {
    /// Looks through the whole document, without recursion.
    ///
    /// # Errors
    /// `SCHEMA` for an address that is too long.
    pub(super) fn new(document: &'a Value, reference_alone: bool) -> Result<Self> {
        let mut named = HashMap::new();
        let root = Place::root(document);
        named.insert(String::new(), root.clone());
        let mut waiting = vec![root];
        while let Some(mut place) = waiting.pop() {
            let Value::Object(keywords) = place.node else { continue };
            if let Some(id) = own_id(keywords, reference_alone) {
                let uri = join(&place.base, id);
                if uri.len() > LONGEST {
                    let what = format!("expected an address of at most {LONGEST} bytes, got {}", uri.len());
                    return Err(super::refuse(&place.path, what));
                }
                match uri.split_once('#') {
                    // Up to draft 7 an `$id` of "#name" is an anchor.
                    Some((_, name)) if !name.is_empty() => {
                        named.entry(uri).or_insert_with(|| place.clone());
                    }
                    _ => {
                        place.base = uri.trim_end_matches('#').into();
                        named.entry(place.base.to_string()).or_insert_with(|| place.clone());
                    }
                }
            }
            for key in ["$anchor", "$dynamicAnchor"] {
                if let Some(name) = keywords.get(key).and_then(Value::as_str) {
                    named.entry(format!("{}#{name}", place.base)).or_insert_with(|| place.clone());
                }
            }
            for (key, value) in keywords.iter().filter(|(key, _)| HOLDING.contains(&key.as_str())) {
                match value {
                    Value::Array(items) => {
                        let child = |(index, item)| place.child(&[key, &usize::to_string(&index)], item);
                        waiting.extend(items.iter().enumerate().map(child));
                    }
                    Value::Object(fields) if holds_names(key) => {
                        waiting.extend(fields.iter().map(|(name, item)| place.child(&[key, name], item)));
                    }
                    _ => waiting.push(place.child(&[key], value)),
                }
            }
        }
        Ok(Self { named, reference_alone })
    }

    /// What `reference`, written at `place`, names.
    pub(super) fn find(&self, reference: &str, place: &Place<'a>) -> Option<Place<'a>> {
        let uri = join(&place.base, reference);
        let (resource, fragment) = uri.split_once('#').unwrap_or((&uri, ""));
        let fragment = percent_decoded(fragment)?;
        if !fragment.is_empty() && !fragment.starts_with('/') {
            return self.named.get(&format!("{resource}#{fragment}")).cloned();
        }
        let mut at = self.named.get(resource)?.clone();
        for segment in fragment.split('/').skip(1) {
            let name = segment.replace("~1", "/").replace("~0", "~");
            let next = match at.node {
                Value::Object(fields) => fields.get(&name)?,
                Value::Array(items) => items.get(name.parse::<usize>().ok()?)?,
                _ => return None,
            };
            at = at.child(&[&name], next).entered(self);
        }
        Some(at)
    }
}

impl<'a> Place<'a> {
    /// The whole document.
    pub(super) fn root(document: &'a Value) -> Self {
        Self { node: document, base: "".into(), path: Pointer::default() }
    }

    /// A node below, reached by `names`.
    pub(super) fn child(&self, names: &[&str], node: &'a Value) -> Self {
        let below = |before, name: &&str| Pointer(Some(Rc::new(Step { before, name: super::escape(name) })));
        Self { node, base: self.base.clone(), path: names.iter().fold(self.path.clone(), below) }
    }

    /// The same node with the base it gives itself.
    pub(super) fn entered(&self, references: &References<'a>) -> Self {
        let mut place = self.clone();
        if let Value::Object(keywords) = place.node
            && let Some(id) = own_id(keywords, references.reference_alone)
        {
            let uri = join(&place.base, id);
            let uri = uri.trim_end_matches('#');
            // Only where it stands as a schema, not in a constant that happens to have such a field.
            if references.named.get(uri).is_some_and(|known| std::ptr::eq(known.node, place.node)) {
                place.base = uri.into();
            }
        }
        place
    }
}

/// The `$id` of a schema (`id` in draft 4).
fn own_id(keywords: &Map<String, Value>, reference_alone: bool) -> Option<&str> {
    if reference_alone && keywords.contains_key("$ref") {
        return None;
    }
    keywords.get("$id").or_else(|| keywords.get("id")).and_then(Value::as_str)
}

fn holds_names(key: &str) -> bool {
    ["$defs", "definitions", "properties", "patternProperties", "dependentSchemas", "dependencies"]
        .contains(&key)
}

/// `reference` relative to `base`.
fn join(base: &str, reference: &str) -> String {
    let scheme = |text: &str| {
        let end = text.find(':')?;
        let word = &text[..end];
        let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        (plain && word.starts_with(|c: char| c.is_ascii_alphabetic())).then_some(end)
    };
    if scheme(reference).is_some() {
        return reference.to_owned();
    }
    let base = base.split('#').next().unwrap_or_default();
    if reference.is_empty() || reference.starts_with('#') {
        return format!("{base}{reference}");
    }
    let authority =
        base.find("//").map_or(0, |at| base[at + 2..].find('/').map_or(base.len(), |end| at + 2 + end));
    if reference.starts_with('/') {
        return format!("{}{reference}", &base[..authority]);
    }
    match base.rfind('/').filter(|&at| at >= authority) {
        Some(at) => format!("{}{reference}", &base[..=at]),
        None if authority > 0 => format!("{base}/{reference}"),
        None => reference.to_owned(),
    }
}

/// `None` where `%` is not followed by two digits, or the bytes are no UTF-8.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}
