//! Writes the golden files again: `cargo run -p llm-format --example golden`. The test `golden` compares.

#[path = "../tests/golden/make.rs"]
mod make;

fn main() -> std::io::Result<()> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    for folder in ["ok", "bad"] {
        let folder = root.join(folder);
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir_all(&folder)?;
    }
    let files = make::all();
    for (name, bytes) in &files {
        std::fs::write(root.join(name), bytes)?;
    }
    let total: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    println!("{} files, {total} bytes", files.len());
    Ok(())
}
