//! The messages of a conversation.

use std::ffi::c_char;

use super::handle;
use super::ptr;
use super::types::llm_status;
use crate::chat::Chat;
use crate::error::Status;

/// A conversation to render with a template: messages, tools, variables. Class X.
pub struct llm_chat {
    _opaque: [u8; 0],
}

classes! { exclusive llm_chat(b"chat"): Chat; }

/// Makes an empty conversation. NULL_ARG, NO_MEMORY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_chat_new(out_chat: *mut *mut llm_chat) -> llm_status {
    entry!([out_chat], |host| ptr::out_handle(host, out_chat, "out_chat")?.put(Chat::new()))
}

/// Appends a message of text. The role is mostly "system", "user" or "assistant". NULL_ARG, BAD_UTF8. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_chat_add(
    chat: *mut llm_chat,
    role: *const c_char,
    role_length: usize,
    content: *const c_char,
    content_length: usize,
) -> llm_status {
    entry!(|host| {
        let mut chat = handle::lock(host, chat, "chat")?;
        let role = ptr::text(host, role, role_length, "role")?;
        chat.add(role, ptr::text(host, content, content_length, "content")?);
        Ok(Status::OK)
    })
}

/// Appends a message given as a JSON object with at least "role". NULL_ARG, BAD_UTF8, INVALID_ARG. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_chat_add_json(
    chat: *mut llm_chat,
    json: *const c_char,
    json_length: usize,
) -> llm_status {
    entry!(|host| {
        let mut chat = handle::lock(host, chat, "chat")?;
        chat.add_json(ptr::text(host, json, json_length, "json")?)?;
        Ok(Status::OK)
    })
}

/// Sets the tools the model may call: a JSON list, or null for none. NULL_ARG, BAD_UTF8, INVALID_ARG. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_chat_set_tools_json(
    chat: *mut llm_chat,
    json: *const c_char,
    json_length: usize,
) -> llm_status {
    entry!(|host| {
        let mut chat = handle::lock(host, chat, "chat")?;
        chat.set_tools_json(ptr::text(host, json, json_length, "json")?)?;
        Ok(Status::OK)
    })
}

/// Sets a variable the template can read, such as "enable_thinking", to a JSON value. NULL_ARG, BAD_UTF8,
/// INVALID_ARG. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_chat_set_var_json(
    chat: *mut llm_chat,
    name: *const c_char,
    name_length: usize,
    json: *const c_char,
    json_length: usize,
) -> llm_status {
    entry!(|host| {
        let mut chat = handle::lock(host, chat, "chat")?;
        let name = ptr::text(host, name, name_length, "name")?;
        chat.set_var_json(name, ptr::text(host, json, json_length, "json")?)?;
        Ok(Status::OK)
    })
}

/// Frees a conversation; NULL is allowed. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_chat_free(chat: *mut llm_chat) {
    entry!(else (), |host| handle::free(host, chat))
}
