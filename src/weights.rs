//! A model's weights, found in its file by the architecture's list and proven against it.
//!
//! The file is not trusted: a tensor that is missing, or whose shape is not the one that follows from the spec, is
//! refused here, so that the forward pass multiplies without asking. Nothing is copied or read: matrices stay where
//! the file is mapped, vectors are used in place.

use std::collections::HashMap;

use llm_format::Index;
use llm_format::quant::Type;
use llm_kernels::{Experts as StackView, Matrix as MatrixView};

use crate::backend::Norm;
use crate::error::{Error, Result, Status};
use crate::mmap::Bytes;
use crate::model::arch::{self, LayerSlot as L, Slot, Want};
use crate::model::draft::{self, Draft};
use crate::model::spec::{self, Attention, Ffn, Spec};
use crate::tensor::{Matrix, Stack, Vector};

/// All weights of a model.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) embedding: Matrix,
    pub(crate) positions: Option<Matrix>,
    pub(crate) embedding_norm: Option<Norm>,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) final_norm: Norm,
    /// The embedding again where the model is tied.
    pub(crate) head: Matrix,
    pub(crate) head_bias: Option<Vector>,
    /// Of a self-drafting head.
    pub(crate) join: Option<JoinWeights>,
}

/// Where a head takes in a token and the hidden vector before it.
#[derive(Debug)]
pub(crate) struct JoinWeights {
    pub(crate) token_norm: Norm,
    pub(crate) hidden_norm: Norm,
    /// `[width, 2 width]`
    pub(crate) matrix: Matrix,
}

/// Weights of a layer; fields as in [`spec::Layer`].
#[derive(Debug)]
pub(crate) struct LayerWeights {
    pub(crate) attention_norm: Option<Norm>,
    pub(crate) attention: AttentionWeights,
    pub(crate) attention_post_norm: Option<Norm>,
    pub(crate) ffn_norm: Option<Norm>,
    pub(crate) ffn: FfnWeights,
    pub(crate) ffn_post_norm: Option<Norm>,
}

#[derive(Debug)]
pub(crate) enum AttentionWeights {
    Heads(Box<HeadsWeights>),
    Latent(Box<LatentWeights>),
}

/// A matrix with its bias.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Matrix,
    pub(crate) bias: Option<Vector>,
}

#[derive(Debug)]
pub(crate) struct HeadsWeights {
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) out: Linear,
    /// Of queries and of keys.
    pub(crate) qk_norm: Option<(Norm, Norm)>,
    pub(crate) sinks: Option<Vector>,
}

#[derive(Debug)]
pub(crate) struct LatentWeights {
    /// Down, norm and up, or one matrix.
    pub(crate) q: LatentQuery,
    pub(crate) kv_down: Linear,
    pub(crate) kv_norm: Norm,
    /// `[heads, kv_rank, nope]`
    pub(crate) k_absorb: Stack,
    /// `[heads, value, kv_rank]`
    pub(crate) v_absorb: Stack,
    pub(crate) out: Linear,
}

#[derive(Debug)]
pub(crate) enum LatentQuery {
    Whole(Matrix),
    Compressed { down: Linear, norm: Norm, up: Matrix },
}

#[derive(Debug)]
pub(crate) enum FfnWeights {
    Plain { up: Linear, down: Linear },
    Gated { gate: Linear, up: Linear, down: Linear },
    Experts(Box<ExpertsWeights>),
}

#[derive(Debug)]
pub(crate) struct ExpertsWeights {
    pub(crate) router: Linear,
    pub(crate) choice_bias: Option<Vector>,
    pub(crate) gate: (Stack, Option<Vector>),
    pub(crate) up: (Stack, Option<Vector>),
    pub(crate) down: (Stack, Option<Vector>),
    pub(crate) shared: Option<SharedWeights>,
}

#[derive(Debug)]
pub(crate) struct SharedWeights {
    pub(crate) gate: Matrix,
    pub(crate) up: Matrix,
    pub(crate) down: Matrix,
    pub(crate) switch: Option<Matrix>,
}

impl LayerWeights {
    /// Bytes of matrices that one token reads.
    pub(crate) fn bytes_per_token(&self, layer: &spec::Layer) -> u64 {
        self.per_token(layer, |matrix| matrix.bytes.len() as u64, |stack| stack.bytes.len() as u64)
    }

    /// Multiplications of one token with matrices.
    pub(crate) fn multiplications_per_token(&self, layer: &spec::Layer) -> u64 {
        let of_stack = |stack: &Stack| (stack.count * stack.rows * stack.columns) as u64;
        self.per_token(layer, |matrix| (matrix.rows * matrix.columns) as u64, of_stack)
    }

    /// The sum of what is said of each matrix that one token is multiplied with; of experts, of those that are chosen.
    fn per_token(
        &self,
        layer: &spec::Layer,
        of_one: impl Fn(&Matrix) -> u64,
        of_stack: impl Fn(&Stack) -> u64,
    ) -> u64 {
        let of = |matrices: &[&Matrix]| matrices.iter().map(|m| of_one(m)).sum::<u64>();
        let attention = match &self.attention {
            AttentionWeights::Heads(h) => of(&[&h.q.weight, &h.k.weight, &h.v.weight, &h.out.weight]),
            AttentionWeights::Latent(a) => {
                let query = match &a.q {
                    LatentQuery::Whole(q) => of(&[q]),
                    LatentQuery::Compressed { down, up, .. } => of(&[&down.weight, up]),
                };
                let absorbed = of_stack(&a.k_absorb) + of_stack(&a.v_absorb);
                query + absorbed + of(&[&a.kv_down.weight, &a.out.weight])
            }
        };
        let ffn = match (&self.ffn, &layer.ffn) {
            (FfnWeights::Plain { up, down }, _) => of(&[&up.weight, &down.weight]),
            (FfnWeights::Gated { gate, up, down }, _) => of(&[&gate.weight, &up.weight, &down.weight]),
            (FfnWeights::Experts(w), Ffn::Experts(x)) => {
                let all = of_stack(&w.gate.0) + of_stack(&w.up.0) + of_stack(&w.down.0);
                let shared = w.shared.as_ref().map_or(0, |s| of(&[&s.gate, &s.up, &s.down]));
                all / u64::from(x.count) * u64::from(x.active) + shared + of(&[&w.router.weight])
            }
            (FfnWeights::Experts(_), _) => 0, // weights follow from the spec
        };
        attention + ffn
    }
}

/// A tensor of the file that the list asks for.
struct Found {
    name: String,
    ty: Type,
    shape: Vec<usize>,
    bytes: Bytes,
}

/// The tensors of a file, by their place in the model.
struct Tensors(HashMap<Slot, Found>);

impl Weights {
    /// Finds all tensors of `spec` in a file and checks them.
    ///
    /// # Errors
    /// `UNSUPPORTED` for an architecture that is not known; `BAD_FORMAT` for a tensor that is missing, has another
    /// shape, or a type that its place does not allow.
    pub(crate) fn find(spec: &Spec, index: &Index, file: &Bytes) -> Result<Self> {
        Self::find_all((arch::find(&spec.architecture)?.tensors)(spec), spec, None, index, file)
    }

    /// The same of a file's second model.
    ///
    /// # Errors
    /// As [`Weights::find`].
    pub(crate) fn find_draft(draft: &Draft, index: &Index, file: &Bytes) -> Result<Self> {
        let mut wants = draft.tensors(0)?;
        if draft.join.is_some() {
            let first = (arch::find(&draft.model.architecture)?.tensors)(&draft.model);
            wants.extend(first.into_iter().filter(|want| draft::shared(want.slot)));
        }
        Self::find_all(wants, &draft.model, draft.join, index, file)
    }

    fn find_all(
        wants: Vec<Want>,
        spec: &Spec,
        join: Option<spec::Norm>,
        index: &Index,
        file: &Bytes,
    ) -> Result<Self> {
        let mut found = HashMap::new();
        for want in wants {
            let wrong = |message: String| {
                Error::new(Status::BAD_FORMAT, format!("tensor `{}`: {message}", want.name))
            };
            let tensor = index.tensor(&want.name).ok_or_else(|| wrong("is not in the file".into()))?;
            if tensor.shape != want.shape {
                return Err(wrong(format!("shape should be {:?}, got {:?}", want.shape, tensor.shape)));
            }
            // The reader proved that the range lies in the file, so it fits usize.
            let start = tensor.offset as usize;
            let bytes = file.slice(start..start + tensor.len as usize);
            let shape = tensor.shape.iter().map(|&n| n as usize).collect();
            found.insert(want.slot, Found { name: want.name, ty: tensor.ty, shape, bytes });
        }
        Tensors(found).weights(spec, join)
    }
}

impl Tensors {
    fn weights(&mut self, spec: &Spec, join: Option<spec::Norm>) -> Result<Weights> {
        let embedding = self.matrix(Slot::Embedding)?;
        let head = if spec.tied { embedding.clone() } else { self.matrix(Slot::Head)? };
        let embedding_norm = spec.embedding_norm;
        let layers =
            (0u32..).zip(&spec.layers).map(|(i, layer)| self.layer(i, layer)).collect::<Result<_>>()?;
        Ok(Weights {
            embedding,
            positions: spec.learned_positions.map(|_| self.matrix(Slot::Positions)).transpose()?,
            embedding_norm: self.norm(embedding_norm, Slot::EmbeddingNorm, Slot::EmbeddingNormBias)?,
            layers,
            final_norm: self.norm_of(spec.final_norm, Slot::FinalNorm, Slot::FinalNormBias)?,
            head,
            head_bias: self.vector_if(spec.head_bias, Slot::HeadBias)?,
            join: join.map(|norm| self.join(norm)).transpose()?,
        })
    }

    fn join(&mut self, norm: spec::Norm) -> Result<JoinWeights> {
        Ok(JoinWeights {
            token_norm: self.norm_of(norm, Slot::JoinToken, Slot::JoinToken)?,
            hidden_norm: self.norm_of(norm, Slot::JoinHidden, Slot::JoinHidden)?,
            matrix: self.matrix(Slot::Join)?,
        })
    }

    fn layer(&mut self, i: u32, layer: &spec::Layer) -> Result<LayerWeights> {
        let slot = |l| Slot::Layer(i, l);
        Ok(LayerWeights {
            attention_norm: self.norm(
                layer.attention_norm,
                slot(L::AttentionNorm),
                slot(L::AttentionNormBias),
            )?,
            attention: match &layer.attention {
                Attention::Heads(h) => AttentionWeights::Heads(Box::new(self.heads(i, h)?)),
                Attention::Latent(a) => AttentionWeights::Latent(Box::new(self.latent(i, a)?)),
            },
            attention_post_norm: self.norm(
                layer.attention_post_norm,
                slot(L::AttentionPostNorm),
                slot(L::AttentionPostNormBias),
            )?,
            ffn_norm: self.norm(layer.ffn_norm, slot(L::FfnNorm), slot(L::FfnNormBias))?,
            ffn: self.ffn(i, &layer.ffn)?,
            ffn_post_norm: self.norm(layer.ffn_post_norm, slot(L::FfnPostNorm), slot(L::FfnPostNormBias))?,
        })
    }

    fn heads(&mut self, i: u32, h: &spec::Heads) -> Result<HeadsWeights> {
        let slot = |l| Slot::Layer(i, l);
        let qk_norm = match h.qk_norm {
            None => None,
            Some(qk) => {
                let norm = spec::Norm { bias: false, ..qk.norm };
                let q = self.norm_of(norm, slot(L::QNorm), slot(L::QNorm))?;
                Some((q, self.norm_of(norm, slot(L::KNorm), slot(L::KNorm))?))
            }
        };
        Ok(HeadsWeights {
            q: self.linear(h.qkv_bias, slot(L::Q), slot(L::QBias))?,
            k: self.linear(h.qkv_bias, slot(L::K), slot(L::KBias))?,
            v: self.linear(h.qkv_bias, slot(L::V), slot(L::VBias))?,
            out: self.linear(h.out_bias, slot(L::Out), slot(L::OutBias))?,
            qk_norm,
            sinks: self.vector_if(h.sinks, slot(L::Sinks))?,
        })
    }

    fn latent(&mut self, i: u32, a: &spec::Latent) -> Result<LatentWeights> {
        let slot = |l| Slot::Layer(i, l);
        let norm = spec::Norm { bias: false, ..a.norm };
        let q = match a.q_rank {
            None => LatentQuery::Whole(self.matrix(slot(L::Q))?),
            Some(_) => LatentQuery::Compressed {
                down: self.linear(a.bias, slot(L::QDown), slot(L::QDownBias))?,
                norm: self.norm_of(norm, slot(L::QDownNorm), slot(L::QDownNorm))?,
                up: self.matrix(slot(L::QUp))?,
            },
        };
        Ok(LatentWeights {
            q,
            kv_down: self.linear(a.bias, slot(L::KvDown), slot(L::KvDownBias))?,
            kv_norm: self.norm_of(norm, slot(L::KvDownNorm), slot(L::KvDownNorm))?,
            k_absorb: self.stack(slot(L::KAbsorb))?,
            v_absorb: self.stack(slot(L::VAbsorb))?,
            out: self.linear(a.bias, slot(L::Out), slot(L::OutBias))?,
        })
    }

    fn ffn(&mut self, i: u32, ffn: &Ffn) -> Result<FfnWeights> {
        let slot = |l| Slot::Layer(i, l);
        Ok(match ffn {
            Ffn::Plain(d) => FfnWeights::Plain {
                up: self.linear(d.bias, slot(L::Up), slot(L::UpBias))?,
                down: self.linear(d.bias, slot(L::Down), slot(L::DownBias))?,
            },
            Ffn::Gated(d) => FfnWeights::Gated {
                gate: self.linear(d.bias, slot(L::Gate), slot(L::GateBias))?,
                up: self.linear(d.bias, slot(L::Up), slot(L::UpBias))?,
                down: self.linear(d.bias, slot(L::Down), slot(L::DownBias))?,
            },
            Ffn::Experts(x) => {
                let bias = x.expert.bias;
                let shared = match x.shared {
                    None => None,
                    Some(shared) => Some(SharedWeights {
                        gate: self.matrix(slot(L::SharedGate))?,
                        up: self.matrix(slot(L::SharedUp))?,
                        down: self.matrix(slot(L::SharedDown))?,
                        switch: shared.gate.then(|| self.matrix(slot(L::SharedSwitch))).transpose()?,
                    }),
                };
                FfnWeights::Experts(Box::new(ExpertsWeights {
                    router: self.linear(x.router_bias, slot(L::Router), slot(L::RouterBias))?,
                    choice_bias: self.vector_if(x.choice_bias, slot(L::ChoiceBias))?,
                    gate: (self.stack(slot(L::ExpertGate))?, self.vector_if(bias, slot(L::ExpertGateBias))?),
                    up: (self.stack(slot(L::ExpertUp))?, self.vector_if(bias, slot(L::ExpertUpBias))?),
                    down: (self.stack(slot(L::ExpertDown))?, self.vector_if(bias, slot(L::ExpertDownBias))?),
                    shared,
                }))
            }
        })
    }

    fn linear(&mut self, has_bias: bool, weight: Slot, bias: Slot) -> Result<Linear> {
        Ok(Linear { weight: self.matrix(weight)?, bias: self.vector_if(has_bias, bias)? })
    }

    fn norm(&mut self, norm: Option<spec::Norm>, weight: Slot, bias: Slot) -> Result<Option<Norm>> {
        norm.map(|norm| self.norm_of(norm, weight, bias)).transpose()
    }

    fn norm_of(&mut self, norm: spec::Norm, weight: Slot, bias: Slot) -> Result<Norm> {
        let weight = self.vector(weight)?;
        Ok(Norm { kind: norm.kind, eps: norm.eps, weight, bias: self.vector_if(norm.bias, bias)? })
    }

    fn vector_if(&mut self, wanted: bool, slot: Slot) -> Result<Option<Vector>> {
        wanted.then(|| self.vector(slot)).transpose()
    }

    fn vector(&mut self, slot: Slot) -> Result<Vector> {
        let found = self.take(slot)?;
        match (found.ty, &found.shape[..]) {
            (Type::F32, &[n]) => {
                Vector::new(found.bytes.clone(), n).ok_or_else(|| found.wrong("is misaligned"))
            }
            _ => Err(found.wrong("should be a vector of f32")),
        }
    }

    fn matrix(&mut self, slot: Slot) -> Result<Matrix> {
        let found = self.take(slot)?;
        match found.shape[..] {
            [rows, columns] if MatrixView::new(found.ty, rows, columns, &found.bytes).is_some() => {
                Ok(Matrix { ty: found.ty, rows, columns, bytes: found.bytes })
            }
            _ => Err(found.wrong("is not a whole matrix")),
        }
    }

    fn stack(&mut self, slot: Slot) -> Result<Stack> {
        let found = self.take(slot)?;
        match found.shape[..] {
            [count, rows, columns]
                if StackView::new(found.ty, count, rows, columns, &found.bytes).is_some() =>
            {
                Ok(Stack { ty: found.ty, count, rows, columns, bytes: found.bytes })
            }
            _ => Err(found.wrong("is not a whole stack of matrices")),
        }
    }

    fn take(&mut self, slot: Slot) -> Result<Found> {
        // The list follows from the same spec, so a place it does not name is our fault.
        self.0.remove(&slot).ok_or_else(|| {
            Error::new(Status::INTERNAL, format!("the architecture's list does not name {slot:?}"))
        })
    }
}

impl Found {
    fn wrong(&self, what: &str) -> Error {
        Error::new(Status::BAD_FORMAT, format!("tensor `{}` of type {}: {what}", self.name, self.ty.name()))
    }
}
