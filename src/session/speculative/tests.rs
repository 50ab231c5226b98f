//! Lookup against a scan, the pace against invented costs, options.

use proptest::prelude::*;

use super::*;
use crate::sampler::SamplingParams;

fn sampler() -> Sampler {
    Sampler::new(&SamplingParams::default()).unwrap()
}

fn ask(proposer: &mut dyn Proposer, tokens: &[i32], most: usize) -> Vec<i32> {
    let sampler = sampler();
    let (held, pending) = tokens.split_at(tokens.len().saturating_sub(1));
    let mut out = Vec::new();
    let at = Place { held, pending, dropped: 0, sampler: &sampler, hidden: None, cancel: None };
    proposer.propose(&at, most, &mut out).unwrap();
    out
}

/// The slow twin: compares every place with the end.
fn scan(tokens: &[i32], least: usize, most: usize, length: usize) -> Vec<i32> {
    let n = tokens.len();
    let matched =
        |at: usize| (0..most.min(at)).take_while(|i| tokens[at - 1 - i] == tokens[n - 1 - i]).count();
    let best = (1..n).filter(|&at| matched(at) >= least).max_by_key(|&at| (matched(at), at));
    let Some(at) = best else { return Vec::new() };
    (0..length).map(|i| tokens[at + i % (n - at)]).collect()
}

proptest! {
    #[test]
    fn lookup_finds_what_a_scan_finds_while_the_text_grows_and_is_cut(
        steps in prop::collection::vec((prop::collection::vec(0i32..4, 0..12), 0usize..8), 1..8),
        least in 1usize..4,
    ) {
        let options = NgramOptions { least_match: least, most_match: 6, corpus: None };
        let mut ngram = Ngram::new(&options).unwrap();
        let mut tokens = Vec::new();
        for (more, cut) in steps {
            tokens.extend(more);
            prop_assert_eq!(ask(&mut ngram, &tokens, 5), scan(&tokens, least, 6, 5));
            let keep = tokens.len().saturating_sub(cut);
            tokens.truncate(keep);
        }
    }
}

#[test]
fn a_corpus_is_asked_where_it_agrees_longer() {
    let corpus = Corpus::new(&[1, 2, 3, 4, 5, 6], 2).unwrap();
    let options = NgramOptions { least_match: 2, most_match: 8, corpus: Some(corpus) };
    let mut ngram = Ngram::new(&options).unwrap();
    assert_eq!(ask(&mut ngram, &[2, 3, 9, 9, 2, 3], 2), [9, 9], "equally long: the session's own");
    assert_eq!(ask(&mut ngram, &[2, 3, 9, 9, 1, 2, 3], 3), [4, 5, 6]);
    assert!(ask(&mut ngram, &[7, 8, 7], 3).is_empty());
}

#[test]
fn a_proposer_that_does_as_it_likes_touches_nothing_that_was_told() {
    struct Rude;
    impl Proposer for Rude {
        fn name(&self) -> &'static str {
            "rude"
        }

        fn propose(&mut self, at: &Place<'_>, _: usize, out: &mut Vec<i32>) -> Result<()> {
            out.clear();
            out.extend([5; 100]);
            match at.pending {
                [] => Err(Error::new(Status::INTERNAL, "no idea")),
                _ => Ok(()),
            }
        }
    }
    let lengths = Lengths { least: 1, most: 2, adaptive: false, min_gain: 0.0 };
    let mut speculation = Speculation::new(Box::new(Rude), &lengths).unwrap();
    let sampler = sampler();
    for (pending, told) in [(&[7, 8][..], &[7, 8, 5, 5][..]), (&[][..], &[][..])] {
        let at = Place { held: &[1], pending, dropped: 0, sampler: &sampler, hidden: None, cancel: None };
        let mut out = pending.to_vec();
        speculation.propose(&at, 9, &mut out);
        assert_eq!(out, told);
    }
    assert_eq!(speculation.stats().failed, 1);
}

#[test]
fn a_replay_spoils_the_share_it_was_told_to() {
    let tokens: Vec<i32> = (0..1000).map(|i| 2 * i).collect();
    let mut replay = Replay::new(10, tokens.clone(), 0.8, Duration::ZERO, 7);
    let guesses = ask(&mut replay, &[0; 10], 1000);
    let right = guesses.iter().zip(&tokens).filter(|(a, b)| a == b).count();
    assert!((750..850).contains(&right), "{right}");
    assert_eq!(ask(&mut replay, &[0; 510], 3), guesses[500..503], "by position alone");
    assert!(ask(&mut replay, &[0; 2000], 3).is_empty());
}

/// Runs `tokens` tokens with invented costs; tokens by time over those of plain steps.
fn pay(lengths: &Lengths, tokens: usize, chance: f64, guess: f64, row: f64) -> (f64, u64) {
    let mut pace = Pace::new(lengths);
    let (mut told, mut time, mut random) = (0, 0.0, 1u64);
    while told < tokens {
        let drafted = pace.length();
        let took = 0.01 * (1.0 + row * drafted as f64);
        if drafted == 0 {
            pace.plain(Duration::from_secs_f64(took));
            told += 1;
            time += took;
            continue;
        }
        let mut accepted = 0;
        while accepted < drafted {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            if (random >> 33) as f64 / f64::from(1u32 << 31) >= chance {
                break;
            }
            accepted += 1;
        }
        let draft = 0.01 * guess * drafted as f64;
        let ran = (drafted + 1, Duration::from_secs_f64(took));
        pace.verified(drafted, accepted, true, Duration::from_secs_f64(draft), ran);
        told += accepted + 1;
        time += draft + took;
    }
    (told as f64 * 0.01 / time, pace.switched_off())
}

#[test]
fn the_length_follows_what_pays() {
    let lengths = Lengths::default();
    let (gain, _) = pay(&lengths, 2000, 0.8, 0.1, 0.05);
    assert!(gain > 1.9, "{gain}");
    let (gain, _) = pay(&lengths, 2000, 0.98, 0.0, 0.05);
    assert!(gain > 4.0, "{gain}");
}

#[test]
fn guesses_that_do_not_pay_are_given_up_and_cost_next_to_nothing() {
    for (chance, guess, row) in [(0.0, 0.1, 0.05), (0.0, 0.5, 1.0), (0.3, 0.4, 0.3), (0.05, 0.0, 0.5)] {
        for tokens in [128, 2000] {
            let (gain, off) = pay(&Lengths::default(), tokens, chance, guess, row);
            assert!(
                gain > 0.97 && off > 0,
                "chance {chance} guess {guess} row {row}: {gain} of plain, off {off}"
            );
        }
    }
}

#[test]
fn lengths_out_of_range_are_refused() {
    for (least, most, min_gain) in [(0, 4, 1.0), (5, 4, 1.0), (1, MOST_DRAFT + 1, 1.0), (1, 4, f64::NAN)] {
        let lengths = Lengths { least, most, min_gain, ..Lengths::default() };
        let replay = Replay::new(0, Vec::new(), 1.0, Duration::ZERO, 0);
        let e = Speculation::new(Box::new(replay), &lengths).unwrap_err();
        assert_eq!(e.status(), Status::INVALID_ARG);
    }
    let corpus = Corpus::new(&[1, 2, 3], 2).unwrap();
    for (least_match, most_match, corpus) in [(0, 4, None), (3, 2, None), (3, 8, Some(corpus))] {
        assert!(Ngram::new(&NgramOptions { least_match, most_match, corpus }).is_err());
    }
    assert!(Corpus::new(&[1, -1], 1).is_err());
}
