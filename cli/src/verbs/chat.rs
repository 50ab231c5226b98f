//! `libllm chat`: a conversation in the terminal.
//!
//! The conversation is a list of messages. For every answer it is rendered to tokens anew, and the session keeps
//! the part of them that it holds already; so undoing, forking and loading are changes to the list alone.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use llm::Cancel;
use llm::chat::{Chat, Template};
use llm::model::Model;
use llm::sampler::{Sampler, SamplingParams};
use llm::session::Session;
use llm::session::generate::{Generation, GenerationOptions, Kind};
use serde_json::{Value, json};

use crate::common::{self, ModelArgs, SamplingArgs};

/// Chat in the terminal
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A message of the role `system` to begin with
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tokens of an answer at most
    #[arg(short = 'n', long, default_value_t = 2048)]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
}

const HELP: &str = "\
/reset        forget the conversation
/undo         take back the last question and its answer
/fork         begin a new branch here; /fork N goes to branch N
/save FILE    write the conversation as JSON
/load FILE    read one
/stats        tokens and speed of the last answer
/help /quit   a line that ends in \\ goes on in the next one; Ctrl-C stops an answer, Ctrl-D ends";

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let model = args.model.open()?;
    let mut talk = Talk::new(args, &model)?;
    note!("{} · /help lists the commands", args.model.model.display());
    let mut editor = rustyline::DefaultEditor::new().context("the terminal")?;
    while let Some(input) = read_input(&mut editor)? {
        let _ = editor.add_history_entry(&input);
        match input.trim() {
            "" => {}
            "/quit" | "/exit" => break,
            command if command.starts_with('/') => match talk.command(command) {
                Ok(said) => note!("{said}"),
                Err(error) => note!("{error:#}"),
            },
            question => {
                if let Err(error) = talk.ask(question) {
                    if common::is_broken_pipe(&error) {
                        return Err(error);
                    }
                    note!("{error:#}");
                }
            }
        }
    }
    Ok(())
}

/// One input, which may be several lines; `None` at the end.
fn read_input(editor: &mut rustyline::DefaultEditor) -> Result<Option<String>> {
    let mut text = String::new();
    loop {
        match editor.readline(if text.is_empty() { "> " } else { ". " }) {
            Ok(line) => match line.strip_suffix('\\') {
                Some(begun) => {
                    text.push_str(begun);
                    text.push('\n');
                }
                None => {
                    text.push_str(&line);
                    return Ok(Some(text));
                }
            },
            Err(rustyline::error::ReadlineError::Interrupted) => text.clear(),
            Err(rustyline::error::ReadlineError::Eof) => return Ok(None),
            Err(error) => return Err(error).context("the terminal"),
        }
    }
}

/// A conversation and the session that runs it.
struct Talk {
    model: Model,
    template: Template,
    session: Session,
    sampling: SamplingParams,
    max_tokens: usize,
    system: Vec<Value>,
    branches: Vec<Vec<Value>>,
    current: usize,
    cancel: Cancel,
    stats: String,
}

impl Talk {
    fn new(args: &Args, model: &Model) -> Result<Self> {
        let template = model
            .template(None)
            .with_context(|| format!("{} (`libllm generate` needs none)", args.model.model.display()))?;
        let system: Vec<Value> =
            args.system.iter().map(|text| json!({"role": "system", "content": text})).collect();
        let sampling = args.sampling.params();
        args.sampling.tell_seed(&sampling);
        Ok(Self {
            model: model.clone(),
            template,
            session: args.model.session(model, model.spec().context as usize)?,
            sampling,
            max_tokens: args.max_tokens,
            branches: vec![system.clone()],
            system,
            current: 0,
            cancel: crate::stop::on_ctrl_c(),
            stats: "no answer yet".to_owned(),
        })
    }

    fn messages(&mut self) -> &mut Vec<Value> {
        &mut self.branches[self.current]
    }

    fn command(&mut self, command: &str) -> Result<String> {
        let (verb, argument) = command.split_once(' ').unwrap_or((command, ""));
        match (verb, argument.trim()) {
            ("/reset", _) => {
                *self.messages() = self.system.clone();
                Ok("forgotten".to_owned())
            }
            ("/undo", _) => {
                let asked = self.messages().iter().rposition(|message| message["role"] == "user");
                let Some(at) = asked else { bail!("nothing to undo") };
                self.messages().truncate(at);
                Ok("taken back".to_owned())
            }
            ("/fork", "") => {
                let copy = self.messages().clone();
                self.branches.push(copy);
                self.current = self.branches.len() - 1;
                Ok(format!("branch {} of {}", self.current, self.branches.len()))
            }
            ("/fork", number) => {
                let count = self.branches.len();
                let chosen = number.parse().ok().filter(|&n: &usize| n < count);
                let Some(n) = chosen else {
                    bail!("/fork {number}: expected a branch from 0 to {}", count - 1)
                };
                self.current = n;
                Ok(format!("branch {n} of {count}"))
            }
            ("/save" | "/load", "") => bail!("{verb}: expected a file's name behind it"),
            ("/save", file) => {
                let text = serde_json::to_string_pretty(self.messages())?;
                common::write_whole(Path::new(file), |out| Ok(writeln!(out, "{text}")?))?;
                Ok(format!("{file} written"))
            }
            ("/load", file) => {
                let text = common::read_text(Path::new(file))?;
                let messages: Vec<Value> = serde_json::from_str(&text)
                    .with_context(|| format!("{file}: expected a JSON array of messages"))?;
                let count = messages.len();
                *self.messages() = messages;
                Ok(format!("{count} messages read"))
            }
            ("/stats", _) => Ok(self.stats.clone()),
            ("/help", _) => Ok(HELP.to_owned()),
            _ => bail!("{verb}: no such command; /help lists them"),
        }
    }

    /// Asks, shows the answer as it comes, and keeps both; a failed question is taken back.
    fn ask(&mut self, question: &str) -> Result<()> {
        self.messages().push(json!({"role": "user", "content": question}));
        match self.answer() {
            Ok(text) => {
                self.messages().push(json!({"role": "assistant", "content": text}));
                Ok(())
            }
            Err(error) => {
                self.messages().pop();
                Err(error)
            }
        }
    }

    fn answer(&mut self) -> Result<String> {
        let chat = Chat { messages: self.messages().clone(), ..Chat::default() };
        let tokenizer = self.model.tokenizer()?.clone();
        let ids = self.template.render_tokens(&chat, true, &tokenizer)?;
        common::not_empty(&ids)?;
        let held = self.session.tokens().iter().zip(&ids).take_while(|(a, b)| a == b).count();
        // One token at least is run, so that its logits are at hand.
        let keep = held.min(ids.len() - 1);
        self.session.truncate(keep)?;
        self.cancel.reset();
        let started = Instant::now();
        self.session.prefill(&ids[keep..], Some(&self.cancel), None)?;
        let prefill = started.elapsed();

        let mut sampler = Sampler::new(&self.sampling)?;
        sampler.accept_prompt(&ids)?;
        let options = GenerationOptions { max_tokens: self.max_tokens, ..GenerationOptions::default() };
        let mut generation = Generation::new(Some(tokenizer), options)?;
        let (mut out, mut text, mut count) = (std::io::stdout().lock(), String::new(), 0);
        let started = Instant::now();
        loop {
            let event = generation.next(&mut self.session, &mut sampler, Some(&self.cancel))?;
            count += event.ids.len();
            text.push_str(&event.text);
            write!(out, "{}", event.text)?;
            out.flush()?;
            if event.kind == Kind::Done {
                break;
            }
        }
        writeln!(out)?;
        let decode = started.elapsed();
        self.cancel.reset();
        self.stats = format!(
            "{} tokens read ({keep} held) in {:.0} ms, {count} written at {:.1} tokens/s, {} of {} positions used",
            ids.len() - keep,
            prefill.as_secs_f64() * 1e3,
            count as f64 / decode.as_secs_f64().max(1e-9),
            self.session.len(),
            self.session.capacity()
        );
        Ok(text)
    }
}
