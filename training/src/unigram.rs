//! Training of a unigram language model over pieces (Kudo, arXiv:1804.10959).
//!
//! ```text
//!   seeds      characters, and the substrings of words with the greatest count × length
//!   twice:     expected counts of pieces over all ways to cut all words (forward, backward) → new scores
//!   prune      drop pieces whose loss is cheapest to bear: how much worse is the next best way to write them?
//!   …until a tenth more are left than wanted; then the best of them by score. Characters always stay.
//! ```
//! Sums run over words in their order, so the same words give the same scores to the last bit.

use std::cmp::Reverse;
use std::collections::HashMap;

/// Seeds at most.
const SEEDS: usize = 1_000_000;
/// Characters of a piece at most.
const LONGEST: usize = 16;
/// Of the pieces that a round of pruning leaves.
const KEPT: f64 = 0.75;
/// Expected count below which a piece is forgotten.
const FORGOTTEN: f64 = 0.5;

/// A word and how often it occurs.
type Word = (Vec<char>, u64);

/// A model: pieces in any order, each with its score, the logarithm of its probability.
struct Model {
    pieces: Vec<(Vec<char>, f64)>,
    trie: Trie,
}

/// Trains a model of at most `size` pieces, of which all of `alphabet` are some; the greatest scores first.
pub(crate) fn train(words: &[Word], alphabet: &[char], size: usize) -> Vec<(String, f64)> {
    let mut pieces = seeds(words, alphabet);
    let enough = (size * 11 / 10).max(alphabet.len());
    loop {
        for _ in 0..2 {
            let model = Model::new(pieces);
            let counts = model.expected(words);
            pieces = rescored(model.pieces, &counts);
        }
        if pieces.len() <= enough {
            break;
        }
        let (before, model) = (pieces.len(), Model::new(pieces));
        pieces = model.pruned(words, enough);
        if pieces.len() == before {
            break;
        }
    }
    let lowest = pieces.iter().map(|(_, s)| *s).fold(0.0, f64::min);
    let (mut single, mut longer): (Vec<_>, Vec<_>) = pieces.into_iter().partition(|(p, _)| p.len() == 1);
    // characters that the longer pieces have made rare, in the order of their numbers
    let known: HashMap<char, f64> = single.drain(..).map(|(p, score)| (p[0], score)).collect();
    let mut rare = 0.0;
    for c in alphabet {
        rare -= 1e-4;
        single.push((vec![*c], known.get(c).copied().unwrap_or(lowest + rare)));
    }
    longer.sort_by(|(a, s), (b, t)| t.total_cmp(s).then(a.cmp(b)));
    longer.truncate(size.saturating_sub(alphabet.len()));
    single.extend(longer);
    single.sort_by(|(a, s), (b, t)| t.total_cmp(s).then(a.cmp(b)));
    single.into_iter().map(|(p, score)| (p.into_iter().collect(), score)).collect()
}

/// Characters and frequent substrings, scored by their share. A substring counts only if some occurrences go on
/// differently: one that always goes on alike stands for nothing that the longer does not.
fn seeds(words: &[Word], alphabet: &[char]) -> Vec<(Vec<char>, f64)> {
    let mut text: Vec<char> = Vec::new();
    // of every place in `text`: the end of its word, the word's count
    let (mut ends, mut counts): (Vec<u32>, Vec<u64>) = (Vec::new(), Vec::new());
    let mut single: HashMap<char, u64> = HashMap::new();
    for (word, n) in words {
        let end = (text.len() + word.len()) as u32;
        text.extend(word);
        ends.resize(text.len(), end);
        counts.resize(text.len(), *n);
        word.iter().for_each(|c| *single.entry(*c).or_default() += n);
    }
    let suffix = |at: u32| {
        let at = at as usize;
        &text[at..(ends[at] as usize).min(at + LONGEST)]
    };
    let mut order: Vec<u32> = (0..text.len() as u32).collect();
    order.sort_unstable_by(|a, b| suffix(*a).cmp(suffix(*b)));
    let mut found: Vec<(u64, &[char])> = Vec::new();
    for length in 2..=LONGEST {
        let mut i = 0;
        while i < order.len() {
            let first = suffix(order[i]);
            if first.len() < length {
                i += 1;
                continue;
            }
            let (head, mut count, mut last) = (&first[..length], 0, i);
            while let Some(next) = order.get(last).map(|at| suffix(*at)).filter(|s| s.starts_with(head)) {
                count += counts[order[last] as usize];
                debug_assert!(next.len() >= length);
                last += 1;
            }
            let goes_on = |at: u32| suffix(at).get(length).copied();
            let alike = goes_on(order[i]).is_some() && goes_on(order[i]) == goes_on(order[last - 1]);
            if count >= 2 && !alike {
                found.push((count * length as u64, head));
            }
            i = last;
        }
    }
    found.sort_unstable_by_key(|(score, piece)| (Reverse(*score), *piece));
    found.truncate(SEEDS.saturating_sub(alphabet.len()));
    let characters = alphabet.iter().map(|c| (vec![*c], single.get(c).copied().unwrap_or(1).max(1)));
    let all: Vec<(Vec<char>, u64)> =
        characters.chain(found.into_iter().map(|(score, piece)| (piece.to_vec(), score))).collect();
    let total = (all.iter().map(|(_, n)| *n).sum::<u64>() as f64).ln();
    all.into_iter().map(|(piece, n)| (piece, (n as f64).ln() - total)).collect()
}

/// New scores from expected counts, as the variational treatment of a sparse prior gives them; pieces that are hardly
/// expected are dropped, characters excepted.
fn rescored(pieces: Vec<(Vec<char>, f64)>, counts: &[f64]) -> Vec<(Vec<char>, f64)> {
    let kept = pieces.into_iter().zip(counts).filter(|((p, _), n)| p.len() == 1 || **n >= FORGOTTEN);
    let kept: Vec<(Vec<char>, f64)> = kept.map(|((p, _), n)| (p, n.max(FORGOTTEN))).collect();
    let total = digamma(kept.iter().map(|(_, n)| *n).sum());
    kept.into_iter().map(|(p, n)| (p, digamma(n) - total)).collect()
}

/// The logarithmic derivative of the gamma function, for x > 0: recurrence up to 7, then its asymptotic series.
fn digamma(mut x: f64) -> f64 {
    let mut below = 0.0;
    while x < 7.0 {
        below -= 1.0 / x;
        x += 1.0;
    }
    let y = 1.0 / (x * x);
    below + x.ln() - 0.5 / x - y * (1.0 / 12.0 - y * (1.0 / 120.0 - y / 252.0))
}

impl Model {
    fn new(mut pieces: Vec<(Vec<char>, f64)>) -> Model {
        pieces.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let trie = Trie::new(&pieces);
        Model { pieces, trie }
    }

    /// Calls `f(from, to, piece)` for every piece that lies somewhere in `word`, by its beginning.
    fn arcs(&self, word: &[char], mut f: impl FnMut(usize, usize, usize)) {
        for from in 0..word.len() {
            let mut node = 0;
            for (i, c) in word[from..].iter().enumerate().take(LONGEST) {
                let Some(next) = self.trie.child(node, *c) else { break };
                node = next;
                if let Some(piece) = self.trie.piece(node) {
                    f(from, from + i + 1, piece);
                }
            }
        }
    }

    /// How often each piece is expected in all words, over all ways to cut them.
    fn expected(&self, words: &[Word]) -> Vec<f64> {
        let mut out = vec![0.0; self.pieces.len()];
        let (mut forward, mut backward, mut arcs) = (Vec::new(), Vec::new(), Vec::new());
        for (word, n) in words {
            arcs.clear();
            self.arcs(word, |from, to, piece| arcs.push((from, to, piece)));
            // logarithms of the summed probability of all ways to a place, and from there to the end
            for v in [&mut forward, &mut backward] {
                v.clear();
                v.resize(word.len() + 1, f64::NEG_INFINITY);
            }
            (forward[0], backward[word.len()]) = (0.0, 0.0);
            for (from, to, piece) in &arcs {
                forward[*to] = log_add(forward[*to], forward[*from] + self.pieces[*piece].1);
            }
            for (from, to, piece) in arcs.iter().rev() {
                backward[*from] = log_add(backward[*from], backward[*to] + self.pieces[*piece].1);
            }
            let all = forward[word.len()];
            for (from, to, piece) in &arcs {
                let path = forward[*from] + self.pieces[*piece].1 + backward[*to] - all;
                out[*piece] += path.exp() * *n as f64;
            }
        }
        out
    }

    /// The best way to write `word`, as pieces; `without`: not as this one piece.
    fn best(&self, word: &[char], without: Option<usize>, out: &mut Vec<usize>) {
        let mut ways = vec![(f64::NEG_INFINITY, 0, 0); word.len() + 1];
        ways[0].0 = 0.0;
        self.arcs(word, |from, to, piece| {
            let score = ways[from].0 + self.pieces[piece].1;
            if Some(piece) != without && score > ways[to].0 {
                ways[to] = (score, from, piece);
            }
        });
        out.clear();
        let mut at = word.len();
        while at > 0 {
            let (_, from, piece) = ways[at];
            out.push(piece);
            at = from;
        }
        out.reverse();
    }

    /// The pieces that are left after a round of pruning, at least `enough`.
    fn pruned(self, words: &[Word], enough: usize) -> Vec<(Vec<char>, f64)> {
        let (mut counts, mut total) = (vec![0.0; self.pieces.len()], 0.0);
        let mut path = Vec::new();
        for (word, n) in words {
            self.best(word, None, &mut path);
            path.iter().for_each(|piece| counts[*piece] += *n as f64);
            total += *n as f64;
        }
        let sum: f64 = counts.iter().sum();
        let mut candidates: Vec<(f64, usize)> = Vec::new();
        let mut kept = 0;
        for (id, (piece, _)) in self.pieces.iter().enumerate() {
            if piece.len() == 1 {
                kept += 1;
            } else if counts[id] > 0.0 {
                self.best(piece, Some(id), &mut path);
                let instead = (sum + counts[id] * (path.len() as f64 - 1.0)).ln();
                let written: f64 = path.iter().map(|p| (counts[*p] + counts[id]).ln() - instead).sum();
                candidates.push((counts[id] / total * (counts[id].ln() - sum.ln() - written), id));
            }
        }
        let left = enough.max((self.pieces.len() as f64 * KEPT) as usize);
        candidates.sort_by(|(a, i), (b, j)| b.total_cmp(a).then(i.cmp(j)));
        candidates.truncate(left.saturating_sub(kept));
        let mut stays: Vec<bool> = self.pieces.iter().map(|(p, _)| p.len() == 1).collect();
        candidates.iter().for_each(|(_, id)| stays[*id] = true);
        self.pieces.into_iter().zip(stays).filter(|(_, s)| *s).map(|(p, _)| p).collect()
    }
}

fn log_add(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}

/// Pieces by their characters: node i has the children `first[i]..first[i + 1]`, in the order of their characters.
struct Trie {
    labels: Vec<char>,
    first: Vec<u32>,
    /// The piece that ends here, or `u32::MAX`.
    ends: Vec<u32>,
}

impl Trie {
    /// Of sorted pieces, none twice.
    fn new(pieces: &[(Vec<char>, f64)]) -> Trie {
        let mut trie = Trie { labels: vec!['\0'], first: Vec::new(), ends: vec![u32::MAX] };
        // nodes whose children are not made yet: the pieces that begin so, and how many characters that is
        let mut open = std::collections::VecDeque::from([(0, pieces.len(), 0)]);
        while let Some((mut from, to, depth)) = open.pop_front() {
            trie.first.push(trie.labels.len() as u32);
            if from < to && pieces[from].0.len() == depth {
                from += 1;
            }
            while from < to {
                let label = pieces[from].0[depth];
                let end = from + pieces[from..to].partition_point(|(p, _)| p[depth] == label);
                trie.labels.push(label);
                let whole = pieces[from].0.len() == depth + 1;
                trie.ends.push(if whole { from as u32 } else { u32::MAX });
                open.push_back((from, end, depth + 1));
                from = end;
            }
        }
        trie.first.push(trie.labels.len() as u32);
        trie
    }

    fn child(&self, node: usize, c: char) -> Option<usize> {
        let (from, to) = (self.first[node] as usize, self.first[node + 1] as usize);
        self.labels[from..to].binary_search(&c).ok().map(|i| from + i)
    }

    fn piece(&self, node: usize) -> Option<usize> {
        Some(self.ends[node]).filter(|p| *p != u32::MAX).map(|p| p as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::models::unigram::{Unigram, UnigramTrainer};

    fn words(text: &str) -> (Vec<Word>, Vec<char>) {
        let mut counts: HashMap<&str, u64> = HashMap::new();
        text.split_whitespace().for_each(|w| *counts.entry(w).or_default() += 1);
        let mut words: Vec<Word> = counts.into_iter().map(|(w, n)| (w.chars().collect(), n)).collect();
        words.sort_unstable();
        let mut alphabet: Vec<char> = words.iter().flat_map(|(w, _)| w.iter().copied()).collect();
        alphabet.sort_unstable();
        alphabet.dedup();
        (words, alphabet)
    }

    #[test]
    fn expected_counts_are_those_of_all_ways_written_out() {
        let piece = |p: &str, share: f64| (p.chars().collect::<Vec<_>>(), share.ln());
        let pieces = [("a", 0.1), ("b", 0.2), ("ab", 0.3), ("ba", 0.25), ("aba", 0.15)];
        let model = Model::new(pieces.iter().map(|(p, s)| piece(p, *s)).collect());
        let got = model.expected(&[("abab".chars().collect(), 3)]);
        // every way to write abab, by all choices of borders
        let mut expected: HashMap<String, f64> = HashMap::new();
        let (mut total, share) = (0.0, HashMap::from(pieces));
        for borders in 0..8u32 {
            let mut way = vec![String::new()];
            for (i, c) in "abab".chars().enumerate() {
                if i > 0 && borders >> (i - 1) & 1 == 1 {
                    way.push(String::new());
                }
                way.last_mut().unwrap().push(c);
            }
            let p: f64 = way.iter().map(|w| share.get(w.as_str()).copied().unwrap_or(0.0)).product();
            total += p;
            way.into_iter().for_each(|w| *expected.entry(w).or_default() += p * 3.0);
        }
        for ((piece, _), got) in model.pieces.iter().zip(got) {
            let piece: String = piece.iter().collect();
            let expected = expected.get(&piece).copied().unwrap_or(0.0) / total;
            assert!((got - expected).abs() < 1e-12, "{piece}: {got}, expected {expected}");
        }
    }

    #[test]
    fn digamma_of_whole_numbers_is_a_harmonic_sum() {
        for n in 1..40u32 {
            let harmonic: f64 = (1..n).map(|k| 1.0 / f64::from(k)).sum();
            assert!((digamma(f64::from(n)) - (harmonic - 0.577_215_664_901_532_9)).abs() < 1e-9, "{n}");
        }
    }

    #[test]
    fn text_is_as_likely_as_under_the_model_of_the_published_trainer() {
        let (words, alphabet) = words(&crate::quickstart::TEXT[..200_000]);
        let size = 1000;
        let own = train(&words, &alphabet, size);
        assert_eq!(own.len(), size);
        let mut trainer = UnigramTrainer::builder();
        let trainer = trainer.vocab_size(1001).show_progress(false).unk_token(Some("<unk>".into()));
        let trainer = trainer.build().unwrap();
        let sentences = words.iter().map(|(w, n)| (w.iter().collect(), *n as u32)).collect();
        let mut theirs = Unigram::default();
        trainer.do_train(sentences, &mut theirs).unwrap();
        let theirs: Vec<(String, f64)> = theirs.iter().skip(1).cloned().collect();
        // nats per character of the best way to write each word, both scored as distributions
        let nats = |pieces: &[(String, f64)]| {
            let total: f64 = pieces.iter().map(|(_, s)| s.exp()).sum();
            let model =
                Model::new(pieces.iter().map(|(p, s)| (p.chars().collect(), s - total.ln())).collect());
            let (mut sum, mut characters, mut path) = (0.0, 0.0, Vec::new());
            for (word, n) in &words {
                model.best(word, None, &mut path);
                sum -= *n as f64 * path.iter().map(|p| model.pieces[*p].1).sum::<f64>();
                characters += (*n * word.len() as u64) as f64;
            }
            sum / characters
        };
        let (own, theirs) = (nats(&own), nats(&theirs));
        assert!(own < theirs * 1.005, "{own} nats per character, theirs {theirs}");
    }
}
