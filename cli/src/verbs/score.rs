//! `libllm score`: how likely texts are as continuations of a prompt.

use anyhow::{Result, bail};
use llm::sampler::Alternative;
use llm::tokenizer::EncodeOptions;
use serde_json::{Value, json};

use crate::common::{self, ModelArgs};

/// Tell how likely texts are after a prompt
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What comes before
    #[arg(short, long, value_name = "TEXT")]
    prompt: String,
    /// A text to score, in tokens of its own: those of SentencePiece begin with a space (may be given several times)
    #[arg(long, value_name = "TEXT", required = true)]
    text: Vec<String>,
    /// Tell the K likeliest tokens at each place (with --json)
    #[arg(long, value_name = "K", default_value_t = 0, requires = "json")]
    top: usize,
    /// One JSON object per text: ids, pieces, log-probabilities
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let model = args.model.open()?;
    let tokenizer = model.tokenizer()?;
    let prompt = tokenizer.encode(&args.prompt, EncodeOptions { add_special: true, parse_special: true })?;
    common::not_empty(&prompt)?;
    let plain = EncodeOptions { add_special: false, parse_special: false };
    let texts =
        args.text.iter().map(|text| tokenizer.encode(text, plain)).collect::<llm::Result<Vec<_>>>()?;
    if texts.iter().any(Vec::is_empty) {
        bail!("--text: expected at least one token, got an empty text");
    }
    let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
    let mut session = args.model.session(&model, prompt.len() + longest)?;
    let cancel = crate::stop::on_ctrl_c();
    let piece = |id: i32| tokenizer.decode_text(&[id], false);
    session.prefill(&prompt, Some(&cancel), None)?;
    for (text, ids) in args.text.iter().zip(&texts) {
        if session.len() > prompt.len() {
            // Only a token that is computed has logits, so the prompt's last one is computed again.
            session.truncate(prompt.len() - 1)?;
            session.decode(prompt[prompt.len() - 1], Some(&cancel))?;
        }
        let scores = session.score(ids, args.top, Some(&cancel), None)?;
        let (nats, count) = scores.nats();
        if !args.json {
            say!("{:.4}  {:.4} per token  {count} tokens  {text:?}", -nats, -nats / count as f64)?;
            continue;
        }
        let alternative = |a: &Alternative| -> Result<Value> {
            Ok(json!({ "id": a.id, "text": piece(a.id)?, "log_probability": a.log_probability }))
        };
        let tops = scores.top.iter().map(|top| top.iter().map(alternative).collect::<Result<Vec<_>>>());
        let mut report = json!({
            "text": text,
            "log_probability": -nats,
            "ids": ids,
            "pieces": ids.iter().map(|&id| piece(id)).collect::<llm::Result<Vec<_>>>()?,
            "log_probabilities": scores.log_probabilities,
        });
        if args.top > 0 {
            report["top"] = Value::from(tops.map(|top| top.map(Value::from)).collect::<Result<Vec<_>>>()?);
        }
        say!("{report}")?;
    }
    Ok(())
}
