//! What a self-drafting head adds to a forward pass: hidden vectors in.

use super::forward::Forward;
use super::scratch::{Scratch, room};
use super::spec::Spec;
use crate::backend::Runs;
use crate::error::Result;
use crate::runtime::Charge;
use crate::weights::JoinWeights;

impl Scratch {
    /// Makes room for `m` hidden vectors that are joined with tokens.
    pub(crate) fn room_for_join(&mut self, spec: &Spec, m: usize, charge: &mut Charge) -> Result<()> {
        let width = spec.width as usize;
        room([&mut self.hidden, &mut self.joined], [width, 2 * width], m, charge)
    }
}

impl Forward<'_> {
    /// Replaces the embeddings in `s.x` by what the head makes of them and of `s.hidden`: `[m, width]` each.
    pub(crate) fn join(&self, w: &JoinWeights, m: usize, s: &mut Scratch) {
        let (device, width) = (self.device, self.spec.width as usize);
        let from = Runs { start: 0, outer: width, inner: 0 };
        let to = |start| Runs { start, outer: 2 * width, inner: 0 };
        device.norm(&w.token_norm, m, &s.x, &mut s.h);
        device.copy([m, 1], width, (&s.h, from), (&mut s.joined, to(0)));
        device.norm(&w.hidden_norm, m, &s.hidden, &mut s.h);
        device.copy([m, 1], width, (&s.h, from), (&mut s.joined, to(width)));
        device.load(&mut s.input, &s.joined, m, 2 * width);
        self.linear(&w.matrix, None, &mut s.input, &mut s.x);
    }
}
