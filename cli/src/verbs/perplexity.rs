//! `libllm perplexity`: how well a model predicts a text.

use std::path::PathBuf;

use anyhow::{Result, bail};
use llm::tokenizer::EncodeOptions;

use crate::common::{self, ModelArgs};
use crate::progress::Progress;

/// Measure how well a model predicts a text
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// UTF-8 text (`-`: standard input)
    #[arg(long, value_name = "TEXT")]
    file: PathBuf,
    /// Positions from one window to the next; each token is scored once, in the first window that holds it
    /// (0: the window's length)
    #[arg(long, default_value_t = 0)]
    stride: usize,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let model = args.model.open()?;
    let text = common::read_text(&args.file)?;
    let options = EncodeOptions { add_special: true, parse_special: false };
    let ids = model.tokenizer()?.encode(&text, options)?;
    if ids.len() < 2 {
        bail!("{}: expected a text of at least 2 tokens, got {}", args.file.display(), ids.len());
    }
    let trained = model.spec().context as usize;
    let window = if args.model.run.context == 0 { trained } else { args.model.run.context }.min(ids.len());
    let stride = if args.stride == 0 { window } else { args.stride };
    if window < 2 || stride > window {
        bail!(
            "--stride {stride} over windows of {window}: expected a window of at least 2 and a stride within it"
        );
    }

    let mut session = args.model.session(&model, window)?;
    let cancel = crate::stop::on_ctrl_c();
    let progress = Progress::new("perplexity", false);
    let (mut nats, mut count, mut begin) = (0.0, 0usize, 0);
    // A window scores from its second token on: the first follows nothing.
    let mut scored = 1;
    loop {
        let end = (begin + window).min(ids.len());
        session.reset();
        let scores = session.score(&ids[begin..end], 0, Some(&cancel), None)?;
        for probability in &scores.log_probabilities[scored - begin..] {
            nats -= f64::from(*probability);
            count += 1;
        }
        scored = end;
        progress.at(end as u64, ids.len() as u64, &format!("{:.4} nats", nats / count as f64));
        if end == ids.len() {
            break;
        }
        // The next window overlaps by one token at least, or its first token would go unscored.
        begin = (begin + stride).min(end - 1);
    }
    progress.end();
    let (per_token, per_byte) = (nats / count as f64, nats / text.len() as f64);
    if args.json {
        let report = serde_json::json!({
            "nats_per_token": per_token,
            "perplexity": per_token.exp(),
            "nats_per_byte": per_byte,
            "tokens": count,
            "window": window,
            "stride": stride,
        });
        say!("{report}")?;
    } else {
        say!("{per_token:.5} nats per token  perplexity {:.4}  {count} tokens", per_token.exp())?;
        say!("{per_byte:.5} nats per byte  windows of {window}, stride {stride}")?;
    }
    Ok(())
}
