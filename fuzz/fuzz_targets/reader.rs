//! The reader on any bytes. Seeds are the golden files; what is found goes to the first directory, which must be there:
//! `mkdir -p fuzz/corpus/reader && cargo fuzz run reader fuzz/corpus/reader format/golden/ok format/golden/bad`
#![no_main]

#[path = "../src/reader.rs"]
mod reader;

libfuzzer_sys::fuzz_target!(|data: &[u8]| reader::check(data));
