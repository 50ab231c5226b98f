//! The formats models answer in: which marks stand in their text, and what each mark does.

use super::call::Body;

/// A format of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text, with `<think>` around reasoning where there is any.
    Plain,
    /// Hermes, Qwen and others: `<tool_call>` around an object, or around `<function=…>` in Qwen's coders.
    Hermes,
    /// Llama 3: an object alone, or what follows `<|python_tag|>`.
    Llama3,
    /// Mistral: `[TOOL_CALLS]` before a list, or before `name[ARGS]{…}`.
    Mistral,
    /// DeepSeek: `<｜tool▁call▁begin｜>` … `<｜tool▁sep｜>` … `<｜tool▁call▁end｜>`.
    DeepSeek,
    /// gpt-oss, "harmony": messages in channels.
    Harmony,
}

/// Where in an answer the parser is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Text,
    Reasoning,
    /// Inside a call; what its body looks like.
    Call(Body),
    /// Between messages of harmony, and in their headers.
    Header,
}

/// What a mark does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Ends what came before and begins this.
    Enter(Mode),
    /// Ends what came before; text follows, or in harmony a header.
    Leave,
    /// As `Leave`; if no reasoning was begun, all text before was reasoning: the prompt had begun it.
    LeaveReasoning,
    /// The header is over; it says what follows.
    Message,
    /// Means nothing.
    Skip,
}

type Marks = &'static [(&'static str, Action)];

/// Ends of a turn that may be left in the text.
const ENDS: [&str; 7] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<｜end▁of▁sentence｜>",
];

const THINK: Marks = &[("<think>", Action::Enter(Mode::Reasoning)), ("</think>", Action::LeaveReasoning)];
const BRACKET_THINK: Marks =
    &[("[THINK]", Action::Enter(Mode::Reasoning)), ("[/THINK]", Action::LeaveReasoning)];
const HERMES: Marks = &[("<tool_call>", Action::Enter(Mode::Call(Body::Object)))];
const HERMES_END: Marks = &[("</tool_call>", Action::Leave)];
const LLAMA: Marks = &[("<|python_tag|>", Action::Enter(Mode::Call(Body::Python)))];
const MISTRAL: Marks = &[("[TOOL_CALLS]", Action::Enter(Mode::Call(Body::Mistral)))];
const DEEPSEEK: Marks = &[
    ("<｜tool▁calls▁begin｜>", Action::Skip),
    ("<｜tool▁call▁begin｜>", Action::Enter(Mode::Call(Body::DeepSeek))),
    ("<｜tool▁calls▁end｜>", Action::Skip),
];
const DEEPSEEK_END: Marks = &[("<｜tool▁call▁end｜>", Action::Leave)];
const HARMONY_HEADER: Marks = &[("<|message|>", Action::Message)];
const HARMONY: Marks = &[
    ("<|end|>", Action::Leave),
    ("<|return|>", Action::Leave),
    ("<|call|>", Action::Leave),
    ("<|start|>", Action::Leave),
];

impl Format {
    /// The format that goes with a chat template, by the marks in its text.
    pub fn of_template(source: &str) -> Self {
        let has = |mark: &str| source.contains(mark);
        if has("<|channel|>") && has("<|message|>") {
            Self::Harmony
        } else if has("<｜tool▁call") || has("<｜Assistant｜>") {
            Self::DeepSeek
        } else if has("[TOOL_CALLS]") {
            Self::Mistral
        } else if has("<tool_call>") {
            Self::Hermes
        } else if has("<|start_header_id|>") || has("<|python_tag|>") {
            Self::Llama3
        } else {
            Self::Plain
        }
    }

    /// The name in the C interface's JSON and in flags.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Hermes => "hermes",
            Self::Llama3 => "llama3",
            Self::Mistral => "mistral",
            Self::DeepSeek => "deepseek",
            Self::Harmony => "harmony",
        }
    }

    /// Where an answer begins.
    pub(super) fn first(self) -> Mode {
        if self == Self::Harmony { Mode::Header } else { Mode::Text }
    }

    /// The marks that mean something in a mode.
    pub(super) fn marks(self, mode: Mode) -> impl Iterator<Item = (&'static str, Action)> + Clone {
        let (own, think): (Marks, Marks) = match (self, mode) {
            (Self::Harmony, Mode::Header) => (HARMONY_HEADER, &[]),
            (Self::Harmony, _) => (HARMONY, &[]),
            (Self::Hermes, Mode::Text | Mode::Reasoning) => (HERMES, THINK),
            (Self::Hermes, _) => (HERMES_END, &[]),
            (Self::Llama3, Mode::Text | Mode::Reasoning) => (LLAMA, THINK),
            (Self::Mistral, Mode::Text | Mode::Reasoning) => (MISTRAL, BRACKET_THINK),
            (Self::Mistral, _) => (MISTRAL, &[]),
            (Self::DeepSeek, Mode::Text | Mode::Reasoning) => (DEEPSEEK, THINK),
            (Self::DeepSeek, _) => (DEEPSEEK_END, &[]),
            (_, Mode::Text | Mode::Reasoning) => (&[], THINK),
            _ => (&[], &[]),
        };
        let ends = if self == Self::Harmony { &[][..] } else { &ENDS[..] };
        own.iter().chain(think).copied().chain(ends.iter().map(|end| (*end, Action::Leave)))
    }
}
