//! Continues a text: hello MODEL.llm "Once upon a time"

use std::io::Write;

use llm::model::{Model, OpenOptions};
use llm::runtime::{Runtime, RuntimeOptions};
use llm::sampler::{Sampler, SamplingParams};
use llm::session::generate::{Generation, GenerationOptions, Kind};
use llm::session::{Session, SessionOptions};
use llm::tokenizer::EncodeOptions;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, text] = &arguments[..] else { return Err("usage: hello MODEL.llm TEXT".into()) };
    let runtime = Runtime::new(RuntimeOptions::default())?;
    let model = Model::open_path(&runtime, file.as_ref(), &OpenOptions::default(), None)?;
    let ids = model.tokenizer()?.encode(text, EncodeOptions { add_special: true, parse_special: false })?;
    let mut session = Session::new(&model, SessionOptions::default())?;
    session.prefill(&ids, None, None)?;
    let mut sampler = Sampler::new(&SamplingParams::default())?;
    let mut generation = Generation::new(model.tokenizer().ok().cloned(), GenerationOptions::default())?;
    loop {
        let event = generation.next(&mut session, &mut sampler, None)?;
        print!("{}", event.text);
        std::io::stdout().flush()?;
        if event.kind == Kind::Done {
            println!();
            return Ok(());
        }
    }
}
