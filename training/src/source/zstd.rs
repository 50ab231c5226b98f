//! Zstandard undone: frames one behind the other, skippable ones between them, each with its checksum.
//!
//! The decoder is a crate in Rust, so that nothing here needs a C compiler; it knows one frame at a time. It does not
//! know dictionaries.

use std::io::{self, BufRead, Read};

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// An empty frame. A decoder that has seen one refuses a frame whose window is above 100 MB; a new one does not.
const EMPTY: [u8; 9] = [0x28, 0xb5, 0x2f, 0xfd, 0x20, 0x00, 0x01, 0x00, 0x00];

/// Undoes the frames of a reader.
pub(super) struct Frames<R> {
    from: R,
    decoder: FrameDecoder,
    /// A frame has begun and its end was not seen.
    inside: bool,
}

impl<R: BufRead> Frames<R> {
    pub(super) fn new(from: R) -> io::Result<Frames<R>> {
        let mut decoder = FrameDecoder::new();
        decoder.reset(&EMPTY[..]).map_err(io::Error::other)?;
        Ok(Frames { from, decoder, inside: false })
    }

    /// Begins the next frame; false at the end of the input.
    fn next(&mut self) -> io::Result<bool> {
        while !self.from.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.from) {
                Ok(()) => {
                    self.inside = true;
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let skipped = io::copy(&mut (&mut self.from).take(u64::from(length)), &mut io::sink())?;
                    if skipped < u64::from(length) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(e) => return Err(io::Error::new(io::ErrorKind::InvalidData, e)),
            }
        }
        Ok(false)
    }

    /// Compares the checksum of the frame that ended, where it has one.
    fn end(&mut self) -> io::Result<()> {
        self.inside = false;
        match (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum()) {
            (Some(said), Some(is)) if said != is => {
                let what = format!("a frame's checksum is {is:08x}, it says {said:08x}: the file is damaged");
                Err(io::Error::new(io::ErrorKind::InvalidData, what))
            }
            _ => Ok(()),
        }
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.inside && !self.next()? {
                return Ok(0);
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.from, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            }
            let n = self.decoder.read(out)?;
            if n > 0 {
                return Ok(n);
            }
            self.end()?;
        }
    }
}
