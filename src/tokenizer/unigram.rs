//! Unigram: the cheapest path through all ways to cut a word into tokens (Viterbi), forward over the trie.
//!
//! The rules and their order are those of SentencePiece's `EncodeOptimized` (`unigram_model.cc`), which Hugging Face
//! follows: a character without a token of its own may be unknown, ties keep the path found first, unknown
//! characters in a row are one token. SentencePiece adds scores in f32, Hugging Face in f64: a setting tells.

use super::bpe::width;
use llm_format::tokens::{NONE, View, flag, setting};

/// The model.
#[derive(Clone, Copy)]
pub(crate) struct Unigram<'a> {
    pub view: View<'a>,
    pub settings: u32,
    pub unknown: Option<u32>,
    pub unknown_score: f64,
    pub max_score: f64,
    pub longest: u32,
}

/// The best way to reach a place: its score, where its last token began, and that token.
#[derive(Clone, Copy)]
pub(crate) struct Node {
    score: f64,
    start: u32,
    id: u32,
}

const UNREACHED: Node = Node { score: 0.0, start: NONE, id: NONE };

impl Unigram<'_> {
    /// Appends the ids of `text`. False where a character is unknown and the model has no token for that.
    pub(crate) fn encode(&self, text: &str, best: &mut Vec<Node>, out: &mut Vec<u32>) -> bool {
        let bytes = text.as_bytes();
        best.clear();
        best.resize(bytes.len() + 1, UNREACHED);
        best[0].start = 0;
        let single = self.settings & setting::SINGLE != 0;
        let mut at = 0;
        while at < bytes.len() {
            let here = best[at].score;
            let mut offer = |end: usize, score: f64, id: u32| {
                let sum = here + score;
                let sum = if single { f64::from(sum as f32) } else { sum };
                let node = &mut best[end];
                if node.start == NONE || sum > node.score {
                    *node = Node { score: sum, start: at as u32, id };
                }
            };
            let wide = width(bytes[at]);
            let mut alone = false; // some token is exactly this character
            let mut node = 0;
            for (i, &byte) in bytes[at..].iter().enumerate().take(self.longest as usize) {
                let Some((id, child)) = self.view.pair(node, u32::from(byte)) else { break };
                node = child;
                // A damaged table may end a token inside a character.
                if id == NONE || !text.is_char_boundary(at + i + 1) {
                    continue;
                }
                let user = self.view.flags(id) & flag::USER != 0;
                // The product is one of f32 where this rule comes from.
                let bonus = || f64::from((i + 1) as f32 * self.max_score as f32) - 0.1;
                let score = if user { bonus() } else { self.view.score(id) };
                offer(at + i + 1, score, id);
                alone |= i + 1 == wide;
            }
            if !alone {
                let Some(unknown) = self.unknown else { return false };
                offer((at + wide).min(bytes.len()), self.unknown_score, unknown);
            }
            at += wide;
        }
        self.back(text, best, out);
        true
    }

    /// Follows the best path from its end and appends it in order.
    fn back(&self, text: &str, best: &[Node], out: &mut Vec<u32>) {
        let from = out.len();
        let mut end = text.len();
        while end > 0 {
            let mut start = best[end].start as usize;
            let mut id = best[end].id;
            if Some(id) == self.unknown {
                while start > 0 && Some(best[start].id) == self.unknown {
                    start = best[start].start as usize;
                }
                let run = &text.as_bytes()[start..end];
                if let Some(known) = self.view.find(run) {
                    id = known; // unknown characters whose run is a token too dear for the path
                } else if self.settings & setting::BYTE_FALLBACK != 0
                    && run.iter().all(|b| self.view.byte_id(*b).is_some())
                {
                    out.extend(run.iter().rev().filter_map(|b| self.view.byte_id(*b)));
                    end = start;
                    continue;
                }
            }
            out.push(id);
            end = start;
        }
        out[from..].reverse();
    }
}
