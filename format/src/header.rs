//! The header: who the file is, how long, and where its sections lie.
//!
//! ```text
//!  0  magic  89 4C 4C 4D 0D 0A 1A 0A      32  identity: BLAKE3 of everything behind the header
//!  8  u16 major, u16 minor                64  sections, 32 bytes each, by ascending offset:
//! 12  u32 header length                       u32 kind, u32 flags, u64 offset, u64 length,
//! 16  u64 file length                         u32 CRC-32C, u32 zero
//! 24  u32 sections
//! 28  u32 CRC-32C of the header, this field taken as zero
//! ```
//! Here is only the layout; [`crate::reader`] decides what is acceptable.

use crate::bytes::{crc32c, u16_at, u32_at, u64_at};

/// The first eight bytes. The first is no text, the line ends show a transfer that translated them.
pub const MAGIC: [u8; 8] = *b"\x89LLM\r\n\x1a\n";
/// Major version; another one is refused.
pub const MAJOR: u16 = 1;
/// Minor version that the writer writes. Every minor version is read: what a newer one adds is in sections of its own,
/// which say whether they may be skipped, and in types, which are refused by name where they are not known.
pub const MINOR: u16 = 0;
/// Minor version of a file with a second model: 1.1 added the metadata's key `draft`.
pub const MINOR_DRAFT: u16 = 1;
/// Bytes of the header without its sections.
pub const FIXED: usize = 64;
/// Bytes of one section's entry.
pub const ENTRY: usize = 32;
/// The most sections a file may have.
pub const MAX_SECTIONS: u32 = 256;
/// Sections lie at multiples of this.
pub const SECTION_ALIGN: u64 = 64;
/// Flag: a reader that does not know the section's kind must refuse the file.
pub const REQUIRED: u32 = 1;

/// Section kinds.
pub mod kind {
    /// UTF-8 JSON object; exactly one.
    pub const METADATA: u32 = 1;
    /// The tensor table; exactly one.
    pub const TENSORS: u32 = 2;
    /// The tokenizer's tables; at most one.
    pub const TOKENIZER: u32 = 3;
}

/// A section as the header lists it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Section {
    /// What it holds, see [`kind`].
    pub kind: u32,
    /// [`REQUIRED`] or 0.
    pub flags: u32,
    /// Where it begins, in bytes from the start of the file.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
    /// CRC-32C of its bytes.
    pub crc: u32,
}

/// The fixed part of the header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Major version.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
    /// Bytes of the header, its sections included.
    pub header_len: u32,
    /// Bytes of the file.
    pub file_len: u64,
    /// How many sections follow.
    pub sections: u32,
    /// CRC-32C of the header.
    pub crc: u32,
    /// BLAKE3 of everything behind the header.
    pub identity: [u8; 32],
}

impl Header {
    /// Reads the fixed part; `None` if there are not 64 bytes. The magic is not looked at.
    pub(crate) fn read(bytes: &[u8]) -> Option<Header> {
        Some(Header {
            major: u16_at(bytes, 8)?,
            minor: u16_at(bytes, 10)?,
            header_len: u32_at(bytes, 12)?,
            file_len: u64_at(bytes, 16)?,
            sections: u32_at(bytes, 24)?,
            crc: u32_at(bytes, 28)?,
            identity: *bytes.get(32..64)?.first_chunk()?,
        })
    }
}

impl Section {
    /// Reads the entry at `at` and its reserved word.
    pub(crate) fn read(bytes: &[u8], at: usize) -> Option<(Section, u32)> {
        let section = Section {
            kind: u32_at(bytes, at)?,
            flags: u32_at(bytes, at + 4)?,
            offset: u64_at(bytes, at + 8)?,
            len: u64_at(bytes, at + 16)?,
            crc: u32_at(bytes, at + 24)?,
        };
        Some((section, u32_at(bytes, at + 28)?))
    }
}

/// The header of a file of `file_len` bytes with these sections.
pub(crate) fn encode(minor: u16, file_len: u64, identity: [u8; 32], sections: &[Section]) -> Vec<u8> {
    let header_len = FIXED + ENTRY * sections.len();
    let mut out = Vec::with_capacity(header_len);
    out.extend(MAGIC);
    out.extend(MAJOR.to_le_bytes());
    out.extend(minor.to_le_bytes());
    out.extend((header_len as u32).to_le_bytes());
    out.extend(file_len.to_le_bytes());
    out.extend((sections.len() as u32).to_le_bytes());
    out.extend([0; 4]);
    out.extend(identity);
    for section in sections {
        out.extend(section.kind.to_le_bytes());
        out.extend(section.flags.to_le_bytes());
        out.extend(section.offset.to_le_bytes());
        out.extend(section.len.to_le_bytes());
        out.extend(section.crc.to_le_bytes());
        out.extend([0; 4]);
    }
    seal(&mut out);
    out
}

/// The CRC-32C of a header, its own field taken as zero.
pub(crate) fn checksum(header: &[u8]) -> u32 {
    let mut copy = header.to_vec();
    if let Some(field) = copy.get_mut(28..32) {
        field.fill(0);
    }
    crc32c(&copy)
}

/// Puts the right CRC-32C into the header at the start of `bytes`, whatever else it says. For tools and tests that
/// change a header; nothing happens where there is no room for one.
pub fn seal(bytes: &mut [u8]) {
    let Some(len) = u32_at(bytes, 12) else { return };
    let Some(header) = bytes.get_mut(..len as usize) else { return };
    if header.len() >= FIXED {
        let crc = checksum(header);
        header[28..32].copy_from_slice(&crc.to_le_bytes());
    }
}
