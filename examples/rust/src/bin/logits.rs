//! Logits as they are: logits MODEL.llm COUNT ID [ID..]
//!
//! Writes the logits behind every given token, then those behind COUNT tokens that continue them greedily, as
//! little-endian f32 to standard output, in the setting in which every machine gives the same bits.

use std::io::Write;

use llm::model::{Model, OpenOptions};
use llm::runtime::{Runtime, RuntimeOptions};
use llm::session::{Level, Session, SessionOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, count, ids @ ..] = &arguments[..] else {
        return Err("usage: logits MODEL.llm COUNT ID [ID..]".into());
    };
    let ids = ids.iter().map(|id| id.parse()).collect::<Result<Vec<i32>, _>>()?;
    let runtime = Runtime::new(RuntimeOptions::default())?;
    let model = Model::open_path(&runtime, file.as_ref(), &OpenOptions::default(), None)?;
    let options = SessionOptions { determinism: Level::Portable, ..SessionOptions::default() };
    let mut session = Session::new(&model, options)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    session.prefill_each(&ids, None, &mut |_, row| {
        row.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))?;
        Ok(())
    })?;
    for _ in 0..count.parse()? {
        let row = session.logits()?;
        // the greatest, of equal ones the lowest id
        let best =
            row.iter().enumerate().fold(0, |best, (i, value)| if *value > row[best] { i } else { best });
        session.decode(best as i32, None)?;
        for value in session.logits()? {
            out.write_all(&value.to_le_bytes())?;
        }
    }
    Ok(out.flush()?)
}
