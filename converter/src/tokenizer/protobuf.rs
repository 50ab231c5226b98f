//! As much of the protobuf wire format as a SentencePiece model needs: fields one after another, unknown ones passed
//! over. Nothing is copied and no length is believed before the bytes are there.

use llm::{Error, Result, Status};

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    /// A varint.
    Number(u64),
    /// Four or eight bytes of fixed width, as a float of the smaller kind.
    Float(f32),
    /// A string, bytes or a message.
    Bytes(&'a [u8]),
    /// Eight bytes nobody asks for.
    Other,
}

impl<'a> Value<'a> {
    pub(crate) fn number(self) -> Option<u64> {
        if let Value::Number(n) = self { Some(n) } else { None }
    }

    pub(crate) fn flag(self) -> Option<bool> {
        self.number().map(|n| n != 0)
    }

    pub(crate) fn float(self) -> Option<f32> {
        if let Value::Float(f) = self { Some(f) } else { None }
    }

    pub(crate) fn bytes(self) -> Option<&'a [u8]> {
        if let Value::Bytes(b) = self { Some(b) } else { None }
    }
}

/// Calls `give` with the number and value of every field of a message.
pub(crate) fn fields<'a>(
    message: &'a [u8],
    mut give: impl FnMut(u64, Value<'a>) -> Result<()>,
) -> Result<()> {
    let mut rest = message;
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut rest)?),
            1 => {
                take(&mut rest, 8)?;
                Value::Other
            }
            2 => {
                let len = varint(&mut rest)?;
                Value::Bytes(take(&mut rest, len)?)
            }
            5 => {
                let b = take(&mut rest, 4)?;
                Value::Float(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            }
            kind => return Err(bad(&format!("wire type {kind} of field {}", key >> 3))),
        };
        give(key >> 3, value)?;
    }
    Ok(())
}

fn bad(what: &str) -> Error {
    Error::new(Status::BAD_FORMAT, format!("not a SentencePiece model: {what}"))
}

fn varint(rest: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first().ok_or_else(|| bad("a number that ends early"))?;
        *rest = tail;
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Ok(value);
        }
    }
    Err(bad("a number of more than ten bytes"))
}

fn take<'a>(rest: &mut &'a [u8], len: u64) -> Result<&'a [u8]> {
    let found = usize::try_from(len).ok().and_then(|len| rest.split_at_checked(len));
    let (head, tail) =
        found.ok_or_else(|| bad(&format!("a field of {len} bytes where {} are left", rest.len())))?;
    *rest = tail;
    Ok(head)
}
