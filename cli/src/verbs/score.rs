//! `libllm score`: how likely texts are as continuations of a prompt.

use anyhow::{Result, bail};
use llm::sampler::Alternative;
use llm::tokenizer::EncodeOptions;
use serde_json::{Value, json};

use crate::common::ModelArgs;

/// Tell how likely texts are after a prompt
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What comes before
    #[arg(short, long, value_name = "TEXT")]
    prompt: String,
    /// A text to score, encoded together with the prompt before it; it begins with a space where a word does (may be
    /// given several times)
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
    let options = EncodeOptions { add_special: true, parse_special: true };
    let pairs = args.text.iter().map(|text| tokenizer.encode_pair(&args.prompt, text, options));
    let pairs = pairs.collect::<llm::Result<Vec<_>>>()?;
    for (text, (prompt, ids)) in args.text.iter().zip(&pairs) {
        if ids.is_empty() {
            bail!("--text {text:?}: expected at least one token, got none");
        }
        if prompt.is_empty() {
            bail!("--prompt {:?}: expected at least one token before {text:?}, got none", args.prompt);
        }
    }
    let longest = pairs.iter().map(|(prompt, ids)| prompt.len() + ids.len()).max().unwrap_or(0);
    let mut session = args.model.session(&model, longest)?;
    let cancel = crate::stop::on_ctrl_c();
    let piece = |id: i32| tokenizer.decode_text(&[id], false);
    for (text, (prompt, ids)) in args.text.iter().zip(&pairs) {
        // What the session holds of the prompt stays; only a token that is computed has logits, so the last one runs.
        let held = session.match_prefix(prompt).min(prompt.len() - 1).min(session.len());
        session.truncate(held)?;
        session.prefill(&prompt[held..], Some(&cancel), None)?;
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
