//! The record of a mixture of experts.

use llm::model::spec::Scoring;
use llm_kernels::GroupRank;
use llm_kernels::dense::Curve;

use super::{Buffer, Id};

/// A mixture: a router scores experts, each row goes through the best, gated and weighted, rows grouped by expert.
///
/// ```text
/// scores [rows, count] → choice → gathered [rows·active, width] → up_out (gate, up) → act → out → y [rows, width]
/// ```
#[derive(Clone, Debug)]
pub(crate) struct Moe {
    pub x: Buffer,
    pub dx: Buffer,
    /// `dx` holds the gradient of later uses.
    pub add: bool,
    pub router: Id,
    pub router_bias: Option<Id>,
    /// Added to scores for the choice alone.
    pub choice_bias: Option<Id>,
    pub gate: Id,
    pub up: Id,
    pub down: Id,
    /// Of gate, up and down: one vector each for all experts.
    pub biases: Option<[Id; 3]>,
    pub curve: Curve,
    pub count: usize,
    pub active: usize,
    pub inner: usize,
    pub scoring: Scoring,
    pub normalize: bool,
    pub scale: f32,
    /// Experts fall into so many equal groups.
    pub groups: usize,
    /// Groups that a row chooses from.
    pub active_groups: usize,
    pub group_rank: GroupRank,
    pub scores: Buffer,
    pub gathered: Buffer,
    pub up_out: Buffer,
    pub act: Buffer,
    pub out: Buffer,
    pub dup: Buffer,
    pub dact: Buffer,
    pub y: Buffer,
    pub dy: Buffer,
    /// Names its choice from the way there to the way back.
    pub layer: usize,
}

impl Moe {
    pub fn forward(&self) -> Vec<Buffer> {
        vec![self.x, self.scores, self.gathered, self.up_out, self.act, self.out, self.y]
    }

    pub fn backward(&self) -> Vec<Buffer> {
        vec![
            self.x,
            self.dx,
            self.scores,
            self.gathered,
            self.up_out,
            self.act,
            self.out,
            self.dup,
            self.dact,
            self.dy,
        ]
    }
}
