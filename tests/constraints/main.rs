//! Constraints against published schemas: what compiles accepts every valid instance, token by token, and no invalid
//! one; what is generated is valid; hostile texts meet a limit.
#![cfg(feature = "constraints")]

mod corpora;
mod generated;
mod hostile;
mod validator;
mod writing;

use std::sync::Arc;

use llm::constraint::{Constraint, Limits, State};
use llm::mmap::Bytes;
use llm::tokenizer::Tokenizer;

/// The tokenizer of a directory or file of the shared material.
fn tokenizer(path: &str) -> Option<Arc<Tokenizer>> {
    let path = llm_testdata::shared(path)?;
    let built = if path.is_dir() {
        llm_convert::tokenizer::load_dir(&path, None).unwrap().unwrap()
    } else {
        llm_convert::tokenizer::load_file(&path, None).unwrap()
    };
    Some(Arc::new(Tokenizer::from_tables(Bytes::from(built.tables)).unwrap()))
}

/// 600 tokens with one for every byte.
fn small() -> Option<Arc<Tokenizer>> {
    tokenizer("reference/tokenizers/qwen2_bpe")
}

/// The bytes of every token that stands for text.
struct Spelling(Vec<(Vec<u8>, i32)>);

impl Spelling {
    fn new(tokenizer: &Tokenizer) -> Self {
        let all = (0..tokenizer.size() as i32).filter(|&id| {
            let flags = tokenizer.flags(id);
            !flags.is_special() && !flags.is_control() && !flags.is_unknown() && !tokenizer.is_end(id)
        });
        let mut all: Vec<_> = all
            .filter_map(|id| Some((tokenizer.token_bytes(id)?.into_owned(), id)))
            .filter(|(bytes, _)| !bytes.is_empty())
            .collect();
        all.sort_by_key(|(bytes, id)| (std::cmp::Reverse(bytes.len()), *id));
        Self(all)
    }

    /// Always the longest token.
    fn ids(&self, text: &str) -> Vec<i32> {
        let mut rest = text.as_bytes();
        let mut ids = Vec::new();
        while !rest.is_empty() {
            let (bytes, id) = self.0.iter().find(|(bytes, _)| rest.starts_with(bytes)).unwrap();
            ids.push(*id);
            rest = &rest[bytes.len()..];
        }
        ids
    }
}

/// What a constraint says of a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Taken,
    Refused,
    /// A limit was met on the way: an error, no answer.
    Limit,
}

/// Whether the constraint takes `ids` and lets the text end there. Every token taken has its bit in the mask.
fn accepts(constraint: &Constraint, ids: &[i32], look_at_masks: bool) -> Verdict {
    let mut state = State::new(constraint);
    for &id in ids {
        if state.is_complete() {
            return Verdict::Refused;
        }
        let offered = look_at_masks.then(|| bit(state.mask().unwrap(), id));
        let forced = if look_at_masks { state.forced().unwrap() } else { Vec::new() };
        let answer = state.advance(id);
        if answer.as_ref().is_err_and(|e| e.status() == llm::Status::BUDGET) {
            return Verdict::Limit;
        }
        let taken = answer.is_ok();
        // Where tokens are forced the mask offers the first of them only; other spellings of the same bytes are taken
        // all the same.
        if forced.is_empty() {
            assert!(offered.is_none_or(|offered| offered == taken), "token {id}: mask and advance differ");
        }
        if !taken {
            return Verdict::Refused;
        }
    }
    if state.may_end().unwrap() { Verdict::Taken } else { Verdict::Refused }
}

fn bit(mask: &[u32], id: i32) -> bool {
    mask.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
}

fn schema(tokenizer: &Arc<Tokenizer>, text: &str) -> llm::Result<Constraint> {
    Constraint::json_schema(tokenizer, text, &Limits::default(), None)
}
