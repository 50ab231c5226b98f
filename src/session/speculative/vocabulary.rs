//! Whether two models speak of the same tokens.

use crate::error::{Error, Result, Status};
use crate::model::Model;
use crate::tokenizer::{Special, Tokenizer};

/// Refuses a draft whose ids do not mean what the target's mean. Ids behind those of the tokenizers, with which some
/// models fill up their last matrix, mean nothing. Without a tokenizer on either side the numbers of ids have to agree.
///
/// # Errors
/// `MISMATCH` with the first difference: number of ids, special token, text or kind of a token; errors of the files'
/// tokenizers.
pub fn check_vocabulary(target: &Model, draft: &Model) -> Result<()> {
    let of = |model: &Model| match model.tokenizer() {
        Ok(tokenizer) => Ok(Some(tokenizer.clone())),
        Err(e) if e.status() == Status::NOT_FOUND => Ok(None),
        Err(e) => Err(e),
    };
    match (of(target)?, of(draft)?) {
        (Some(target), Some(draft)) => compare(&target, &draft),
        _ => same("number of ids", target.spec().vocab, draft.spec().vocab),
    }
}

fn compare(target: &Tokenizer, draft: &Tokenizer) -> Result<()> {
    if target.same_tables(draft) {
        return Ok(());
    }
    same("number of ids", target.size(), draft.size())?;
    for (name, special) in [
        ("begin token", Special::Bos),
        ("end token", Special::Eos),
        ("unknown token", Special::Unknown),
        ("padding token", Special::Pad),
    ] {
        same(name, target.special(special), draft.special(special))?;
    }
    for id in 0..i32::try_from(target.size()).unwrap_or(i32::MAX) {
        let text = |tokenizer: &Tokenizer| {
            tokenizer.token_bytes(id).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        };
        if target.token_bytes(id) != draft.token_bytes(id) {
            same(&format!("text of token {id}"), text(target), text(draft))?;
            return Err(differ(&format!("bytes of token {id}"), text(target), text(draft)));
        }
        same(&format!("end at token {id}"), target.is_end(id), draft.is_end(id))?;
    }
    Ok(())
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, target: T, draft: T) -> Result<()> {
    if target == draft { Ok(()) } else { Err(differ(what, target, draft)) }
}

fn differ(what: &str, target: impl std::fmt::Debug, draft: impl std::fmt::Debug) -> Error {
    Error::new(
        Status::MISMATCH,
        format!(
            "this draft cannot guess for the model: {what}: expected {target:?}, got {draft:?}; take a draft with the \
             model's own tokenizer"
        ),
    )
}
