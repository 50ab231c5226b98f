//! Runs the quickstart's training in a directory: `cargo run --release -p llm-train --example quickstart -- DIR [STEPS]`.

use std::ops::ControlFlow;
use std::path::Path;

use llm_train::{Event, quickstart};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let dir = args.first().ok_or("a directory for the result")?;
    let steps = args.get(1).map_or(Ok(quickstart::STEPS), |s| s.parse())?;
    let report = quickstart::quickstart(quickstart::TEXT, Path::new(dir), steps, &mut |event| {
        match event {
            Event::Step(r) if !r.step.is_multiple_of(50) => {}
            Event::Evaluating(_) => {}
            event => println!("{event:?}"),
        }
        ControlFlow::Continue(())
    })?;
    println!("{report:#?}");
    Ok(())
}
