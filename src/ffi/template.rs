//! Chat templates.

use std::ffi::c_char;
use std::sync::Arc;

use super::buffer::llm_buffer;
use super::chat::llm_chat;
use super::error::llm_error;
use super::handle;
use super::model::llm_model;
use super::ptr::{self, Text};
use super::tokenizer::llm_tokenizer;
use super::types::{llm_status, llm_token};
use crate::chat::{Answer, Format, Template};
use crate::error::{Error, Result, Status};

/// A compiled chat template. Class S.
pub struct llm_template {
    _opaque: [u8; 0],
}

classes! { shared llm_template(b"tmpl"): Compiled; }

/// A template, and its source as it is lent.
pub(super) struct Compiled {
    template: Arc<Template>,
    source: Text,
}

impl Compiled {
    fn new(template: Arc<Template>) -> Self {
        Self { source: Text::new(template.source().as_bytes()), template }
    }
}

/// Rendering ends with the beginning of an answer, for the model to continue.
pub const LLM_RENDER_GENERATION_PROMPT: u32 = 1;

/// Compiles a template from its Jinja source. `bos` and `eos` are the texts of the model's own tokens, which the
/// template reads as bos_token and eos_token; they may be NULL. The template runs in a sandbox with limits on
/// steps, depth and output. NULL_ARG, BAD_UTF8, BAD_FORMAT (detail LINE). S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_template_compile(
    source: *const c_char,
    source_length: usize,
    bos: *const c_char,
    bos_length: usize,
    eos: *const c_char,
    eos_length: usize,
    out_template: *mut *mut llm_template,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!([out_template], out_err, |host| {
        let out = ptr::out_handle(host, out_template, "out_template")?;
        let source = ptr::text_required(host, source, source_length, "source")?;
        let mut tokens = Vec::new();
        if let Some(bos) = ptr::text_optional(host, bos, bos_length, "bos")? {
            tokens.push(("bos_token", bos));
        }
        if let Some(eos) = ptr::text_optional(host, eos, eos_length, "eos")? {
            tokens.push(("eos_token", eos));
        }
        out.put(Compiled::new(Arc::new(Template::compile(source, &tokens)?)))
    })
}

/// The template a model's file brings: the default one for NULL, or the one of that name. NOT_FOUND if there is
/// none, NULL_ARG, BAD_UTF8, BAD_FORMAT. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_model_template(
    model: *const llm_model,
    name: *const c_char,
    name_length: usize,
    out_template: *mut *mut llm_template,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!([out_template], out_err, |host| {
        let out = ptr::out_handle(host, out_template, "out_template")?;
        let model = handle::get(host, model, "model")?;
        let name = ptr::text_optional(host, name, name_length, "name")?;
        out.put(Compiled::new(Arc::new(model.model.template(name)?)))
    })
}

/// The source, borrowed until the template is freed; "" for NULL. `out_length` may be NULL. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_template_source(
    template: *const llm_template,
    out_length: *mut usize,
) -> *const c_char {
    entry!(else c"".as_ptr(), |host| {
        ptr::put_optional(host, out_length, 0);
        let template = handle::get(host, template, "template")?;
        ptr::put_optional(host, out_length, template.source.len());
        Ok(template.source.as_ptr())
    })
}

fn generation_prompt(flags: u32) -> Result<bool> {
    if flags & !LLM_RENDER_GENERATION_PROMPT != 0 {
        return Err(Error::new(Status::INVALID_ARG, format!("unknown LLM_RENDER flags in {flags:#x}")));
    }
    Ok(flags & LLM_RENDER_GENERATION_PROMPT != 0)
}

/// Renders a conversation to text, which the host frees. `flags` are of LLM_RENDER. INVALID_ARG with the template's
/// words where it refuses the conversation, BUDGET beyond a limit, NULL_ARG, BUSY. S on the template, X on the chat.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_chat_render_text(
    chat: *mut llm_chat,
    template: *const llm_template,
    flags: u32,
    out_text: *mut *mut llm_buffer,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!([out_text], out_err, |host| {
        let out = ptr::out_handle(host, out_text, "out_text")?;
        let chat = handle::lock(host, chat, "chat")?;
        let template = handle::get(host, template, "template")?;
        let text = template.template.render(&chat, generation_prompt(flags)?)?;
        out.put(Text::new(text.as_bytes()))
    })
}

/// Renders a conversation to ids, ask or fill. What the host put into the conversation is encoded as plain text:
/// it never becomes a special token, whatever it spells. `flags` are of LLM_RENDER. As llm_chat_render_text, and
/// BUFFER_SMALL. S on template and tokenizer, X on the chat.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_chat_render_tokens(
    chat: *mut llm_chat,
    template: *const llm_template,
    tokenizer: *const llm_tokenizer,
    flags: u32,
    ids: *mut llm_token,
    cap: usize,
    out_needed: *mut usize,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let chat = handle::lock(host, chat, "chat")?;
        let template = handle::get(host, template, "template")?;
        let tokenizer = handle::get(host, tokenizer, "tokenizer")?;
        let rendered =
            template.template.render_tokens(&chat, generation_prompt(flags)?, &tokenizer.tokenizer)?;
        ptr::fill(host, &rendered, ids, cap, out_needed)
    })
}

/// Nothing follows the text.
pub const LLM_PARSE_FINAL: u32 = 1;
/// The prompt ended inside reasoning, which the answer goes on with.
pub const LLM_PARSE_IN_REASONING: u32 = 2;

/// Takes a model's answer, or what there is of it, apart: a JSON object with `format` (plain, hermes, llama3, mistral,
/// deepseek or harmony, by the template's text) and `segments`, a list of objects with `type` (text, reasoning or
/// tool_call), `complete`, and `text` or `name`, `arguments` (JSON as text) and `id`. The text must hold the format's
/// marks: decode without LLM_DECODE_SKIP_SPECIAL. `flags` are of LLM_PARSE. The host frees the buffer. NULL_ARG,
/// BAD_UTF8, INVALID_ARG. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_chat_parse(
    template: *const llm_template,
    text: *const c_char,
    text_length: usize,
    flags: u32,
    out_json: *mut *mut llm_buffer,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!([out_json], out_err, |host| {
        let out = ptr::out_handle(host, out_json, "out_json")?;
        let template = handle::get(host, template, "template")?;
        let text = ptr::text_required(host, text, text_length, "text")?;
        if flags & !(LLM_PARSE_FINAL | LLM_PARSE_IN_REASONING) != 0 {
            return Err(Error::new(Status::INVALID_ARG, format!("unknown LLM_PARSE flags in {flags:#x}")));
        }
        let format = Format::of_template(template.template.source());
        let mut answer = Answer::new(format, flags & LLM_PARSE_IN_REASONING != 0);
        answer.push(text);
        if flags & LLM_PARSE_FINAL != 0 {
            answer.finish();
        }
        let segments: Vec<_> = answer.segments().iter().map(|segment| segment.to_json()).collect();
        let json = serde_json::json!({ "format": format.name(), "segments": segments });
        out.put(Text::new(json.to_string().as_bytes()))
    })
}

/// Frees a template; NULL is allowed. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_template_free(template: *mut llm_template) {
    entry!(else (), |host| handle::free(host, template))
}
