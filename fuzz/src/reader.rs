//! What is done to a file from anyone: open it, verify it, look at everything. Nothing may panic, and the work is
//! bounded by the bytes there are. Shared by the fuzz target and by a test that replays the golden files.

use llm_format::{File, header, kind, quant, tokens};
use std::ops::ControlFlow;

/// Does everything to `data`: as it is, with its header's checksum made right, and with its length made right too,
/// so that a changed byte is not stopped at the first check.
pub fn check(data: &[u8]) {
    open(data);
    let mut sealed = data.to_vec();
    header::seal(&mut sealed);
    open(&sealed);
    if let Some(field) = sealed.get_mut(16..24) {
        field.copy_from_slice(&(data.len() as u64).to_le_bytes());
        header::seal(&mut sealed);
        open(&sealed);
    }
}

fn open(data: &[u8]) {
    let Ok(file) = File::parse(data) else { return };
    let mut last = 0;
    let verified = file.verify(&mut |done, total| {
        assert!(last <= done && done <= total, "progress goes forward");
        last = done;
        ControlFlow::Continue(())
    });
    if verified.is_ok() {
        assert!(file.index().verify_sections(data).is_ok(), "a verified file has verified sections");
    }
    for tensor in file.tensors() {
        assert_eq!(file.tensor(&tensor.name), Some(tensor), "found under its name");
        assert_eq!(file.data(tensor).len() as u64, tensor.len, "all its bytes are there");
        decode(&file, tensor);
    }
    for section in file.index().sections() {
        assert!(file.section(section.kind).is_some(), "a listed section is there");
    }
    if let Some(bytes) = file.section(kind::TOKENIZER) {
        tables(bytes);
    }
}

fn decode(file: &File<'_>, tensor: &llm_format::Tensor) {
    let [.., rows, cols] = tensor.shape[..] else { return };
    let Some(bytes) = quant::matrix_bytes(tensor.ty, rows, cols) else { return };
    let (rows, cols) = (rows as usize, cols as usize);
    let mut row = vec![0.0; cols];
    let mut ints = [0; quant::INPUTS];
    for matrix in file.data(tensor).chunks_exact(bytes as usize) {
        for r in 0..rows {
            quant::decode_row(tensor.ty, matrix, rows, cols, r, &mut row);
            if tensor.ty.is_integer() {
                for block in 0..cols.div_ceil(quant::INPUTS) {
                    quant::decode_int8(tensor.ty, matrix, rows, cols, r, block, &mut ints);
                }
            }
        }
    }
}

fn tables(bytes: &[u8]) {
    let Ok(layout) = tokens::Layout::parse(bytes) else { return };
    let view = layout.view(bytes);
    // The size is a number of the file; the work is bounded by its bytes.
    for id in 0..layout.size.min(bytes.len() as u32) {
        if let Some(text) = view.token(id) {
            let text = &text[..text.len().min(64)];
            view.find(text);
            view.raw.longest_prefix(text);
            view.normal.by_content(text);
        }
        view.flags(id);
        view.score(id);
        view.pair(id, id / 2);
    }
    (0..=255).for_each(|byte| {
        view.byte_id(byte);
    });
}
