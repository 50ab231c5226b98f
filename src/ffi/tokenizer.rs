//! Tokenizers: text to ids and back.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_char;
use std::sync::{Arc, Mutex, PoisonError};

use super::handle;
use super::model::llm_model;
use super::ptr::{self, Text};
use super::types::{llm_status, llm_token};
use crate::error::{Error, Result, Status};
use crate::tokenizer::{EncodeOptions, Special, Tokenizer};

/// Text to ids and back. Class S.
pub struct llm_tokenizer {
    _opaque: [u8; 0],
}

classes! { shared llm_tokenizer(b"toke"): Shared; }

/// A tokenizer, and the bytes of single tokens that were lent.
pub(super) struct Shared {
    pub(super) tokenizer: Arc<Tokenizer>,
    /// Boxed, so that what was lent stays where it is while the map grows; never removed from.
    lent: Mutex<HashMap<llm_token, Box<Text>>>,
}

/// Put the tokens of the model's own frame, such as a beginning of text, around the text.
pub const LLM_ENCODE_ADD_SPECIAL: u32 = 1;
/// Recognise the text of special tokens as those tokens; not for text that comes from users.
pub const LLM_ENCODE_PARSE_SPECIAL: u32 = 2;

/// Leave special tokens out of the text.
pub const LLM_DECODE_SKIP_SPECIAL: u32 = 1;

/// Begins a text.
pub const LLM_SPECIAL_BOS: i32 = 0;
/// Ends a text.
pub const LLM_SPECIAL_EOS: i32 = 1;
/// Stands for what the vocabulary cannot say.
pub const LLM_SPECIAL_UNKNOWN: i32 = 2;
/// Fills up.
pub const LLM_SPECIAL_PAD: i32 = 3;

/// The id is in use.
pub const LLM_TOKEN_PRESENT: u32 = 1;
/// Special: can be left out of decoded text.
pub const LLM_TOKEN_SPECIAL: u32 = 2;
/// Added to the vocabulary of the model.
pub const LLM_TOKEN_ADDED: u32 = 4;
/// Stands for one byte.
pub const LLM_TOKEN_BYTE: u32 = 8;
/// The unknown token.
pub const LLM_TOKEN_UNKNOWN: u32 = 16;
/// A control token without text of its own.
pub const LLM_TOKEN_CONTROL: u32 = 32;
/// Ends a turn.
pub const LLM_TOKEN_END: u32 = 64;

fn check_flags(flags: u32, known: u32, family: &str) -> Result<()> {
    if flags & !known != 0 {
        return Err(Error::new(Status::INVALID_ARG, format!("unknown {family} flags in {flags:#x}")));
    }
    Ok(())
}

fn encode_options(flags: u32) -> Result<EncodeOptions> {
    check_flags(flags, LLM_ENCODE_ADD_SPECIAL | LLM_ENCODE_PARSE_SPECIAL, "LLM_ENCODE")?;
    Ok(EncodeOptions {
        add_special: flags & LLM_ENCODE_ADD_SPECIAL != 0,
        parse_special: flags & LLM_ENCODE_PARSE_SPECIAL != 0,
    })
}

/// A model's tokenizer. The host frees it; it keeps what it needs of the model alive. NOT_FOUND if the file has
/// none, NULL_ARG. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_model_tokenizer(
    model: *const llm_model,
    out_tokenizer: *mut *mut llm_tokenizer,
) -> llm_status {
    entry!([out_tokenizer], |host| {
        let out = ptr::out_handle(host, out_tokenizer, "out_tokenizer")?;
        let tokenizer = handle::get(host, model, "model")?.model.tokenizer()?.clone();
        out.put(Shared { tokenizer, lent: Mutex::default() })
    })
}

/// Text to ids, ask or fill. `flags` are of LLM_ENCODE. NULL_ARG, BAD_UTF8, INVALID_ARG, BUFFER_SMALL. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_tokenizer_encode(
    tokenizer: *const llm_tokenizer,
    text: *const c_char,
    text_length: usize,
    flags: u32,
    ids: *mut llm_token,
    cap: usize,
    out_needed: *mut usize,
) -> llm_status {
    entry!(|host| {
        let tokenizer = handle::get(host, tokenizer, "tokenizer")?;
        let text = ptr::text(host, text, text_length, "text")?;
        ptr::fill(host, &tokenizer.tokenizer.encode(text, encode_options(flags)?)?, ids, cap, out_needed)
    })
}

/// A context and the text behind it, encoded as the one text that they are: ids of both, ask or fill, of which the first
/// `out_context` belong to the context; all behind those hold something of the text. No special token comes out of the
/// text, whatever `flags` say, and none that would stand behind it. For llm_session_score of the text after a prefill of
/// the context. NULL_ARG, BAD_UTF8, INVALID_ARG, BUFFER_SMALL. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_tokenizer_encode_pair(
    tokenizer: *const llm_tokenizer,
    context: *const c_char,
    context_length: usize,
    text: *const c_char,
    text_length: usize,
    flags: u32,
    ids: *mut llm_token,
    cap: usize,
    out_needed: *mut usize,
    out_context: *mut usize,
) -> llm_status {
    entry!(|host| {
        let out = ptr::out(host, out_context, "out_context")?;
        let tokenizer = handle::get(host, tokenizer, "tokenizer")?;
        let context = ptr::text(host, context, context_length, "context")?;
        let text = ptr::text(host, text, text_length, "text")?;
        let (mut all, rest) = tokenizer.tokenizer.encode_pair(context, text, encode_options(flags)?)?;
        let of_context = all.len();
        all.extend(rest);
        let status = ptr::fill(host, &all, ids, cap, out_needed)?;
        out.put(of_context);
        Ok(status)
    })
}

/// Ids to bytes, ask or fill, without a NUL; not always UTF-8 (a text stream gives whole characters). `flags` are of
/// LLM_DECODE. NULL_ARG, INVALID_ARG for an id that is not in the vocabulary, BUFFER_SMALL. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_tokenizer_decode(
    tokenizer: *const llm_tokenizer,
    ids: *const llm_token,
    count: usize,
    flags: u32,
    buf: *mut c_char,
    cap: usize,
    out_needed: *mut usize,
) -> llm_status {
    entry!(|host| {
        let tokenizer = handle::get(host, tokenizer, "tokenizer")?;
        let ids = ptr::slice(host, ids, count, "ids")?;
        check_flags(flags, LLM_DECODE_SKIP_SPECIAL, "LLM_DECODE")?;
        let bytes = tokenizer.tokenizer.decode(ids, flags & LLM_DECODE_SKIP_SPECIAL != 0)?;
        ptr::fill(host, &bytes, buf.cast::<u8>(), cap, out_needed)
    })
}

/// The bytes one id adds in the middle of a text, borrowed until the tokenizer is freed; a NUL follows. `out_length`
/// may be NULL. NOT_FOUND for an id that is not in use, NULL_ARG. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_tokenizer_token_bytes(
    tokenizer: *const llm_tokenizer,
    id: llm_token,
    out_bytes: *mut *const c_char,
    out_length: *mut usize,
) -> llm_status {
    entry!([out_bytes], |host| {
        let out = ptr::out_borrowed(host, out_bytes, out_length, "out_bytes")?;
        let tokenizer = handle::get(host, tokenizer, "tokenizer")?;
        let mut lent = tokenizer.lent.lock().unwrap_or_else(PoisonError::into_inner);
        let text = match lent.entry(id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let unused = || Error::new(Status::NOT_FOUND, format!("token {id} is not in use"));
                let bytes = tokenizer.tokenizer.token_bytes(id).ok_or_else(unused)?;
                entry.insert(Box::new(Text::new(&bytes)))
            }
        };
        out.put_text(text);
        Ok(Status::OK)
    })
}

/// Ids are below this; 0 for NULL. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_tokenizer_size(tokenizer: *const llm_tokenizer) -> usize {
    entry!(else 0, |host| Ok(handle::get(host, tokenizer, "tokenizer")?.tokenizer.size()))
}

/// The id of a token by LLM_SPECIAL name. NOT_FOUND if there is none, INVALID_ARG for an unknown name, NULL_ARG. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_tokenizer_special(
    tokenizer: *const llm_tokenizer,
    name: i32,
    out_id: *mut llm_token,
) -> llm_status {
    entry!(|host| {
        let out = ptr::out(host, out_id, "out_id")?;
        let tokenizer = handle::get(host, tokenizer, "tokenizer")?;
        let name = match name {
            LLM_SPECIAL_BOS => Special::Bos,
            LLM_SPECIAL_EOS => Special::Eos,
            LLM_SPECIAL_UNKNOWN => Special::Unknown,
            LLM_SPECIAL_PAD => Special::Pad,
            _ => return Err(Error::new(Status::INVALID_ARG, format!("unknown LLM_SPECIAL name {name}"))),
        };
        let none = || Error::new(Status::NOT_FOUND, format!("the tokenizer names no token {name:?}"));
        out.put(tokenizer.tokenizer.special(name).ok_or_else(none)?);
        Ok(Status::OK)
    })
}

/// What a token is: flags of LLM_TOKEN, 0 for an id outside the vocabulary or NULL. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_tokenizer_flags(tokenizer: *const llm_tokenizer, id: llm_token) -> u32 {
    entry!(else 0, |host| {
        let flags = handle::get(host, tokenizer, "tokenizer")?.tokenizer.flags(id);
        let all = [
            (flags.is_present(), LLM_TOKEN_PRESENT),
            (flags.is_special(), LLM_TOKEN_SPECIAL),
            (flags.is_added(), LLM_TOKEN_ADDED),
            (flags.is_byte(), LLM_TOKEN_BYTE),
            (flags.is_unknown(), LLM_TOKEN_UNKNOWN),
            (flags.is_control(), LLM_TOKEN_CONTROL),
            (flags.is_end(), LLM_TOKEN_END),
        ];
        Ok(all.iter().filter(|(set, _)| *set).fold(0, |flags, (_, flag)| flags | flag))
    })
}

/// 1 if the token ends a turn, else 0; 0 for NULL. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_tokenizer_is_end(tokenizer: *const llm_tokenizer, id: llm_token) -> i32 {
    entry!(else 0, |host| Ok(i32::from(handle::get(host, tokenizer, "tokenizer")?.tokenizer.is_end(id))))
}

/// Frees a tokenizer; NULL is allowed. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_tokenizer_free(tokenizer: *mut llm_tokenizer) {
    entry!(else (), |host| handle::free(host, tokenizer))
}
