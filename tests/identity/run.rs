//! Runs one case: the session under test goes its way through its prompt and its generation, alone or in steps with
//! neighbours that come, run a while and go. Whatever has logits is compared with the plain run.

use std::rc::Rc;

use llm::kv::{Eviction, KvOptions, KvPool};
use llm::sampler::Sampler;
use llm::session::batch::{Batch, Slot, Want};
use llm::session::{Session, SessionOptions};

use super::bits;
use super::case::{Case, Dice, KV, Way};
use super::subject::{CAPACITY, Expected, Subject};

/// A session and the plain run it must equal.
struct Member {
    session: Session,
    expected: Rc<Expected>,
    /// Made where the generation begins, and again after a step back.
    sampler: Option<Sampler>,
    /// Where it leaves.
    end: usize,
}

impl Member {
    fn new(session: Session, expected: Rc<Expected>, end: usize) -> Self {
        Self { session, expected, sampler: None, end }
    }

    fn done(&self) -> bool {
        self.session.len() >= self.end
    }

    /// What it runs next: `chunk` tokens of the prompt, or the token that its sampler chooses.
    fn next(&mut self, chunk: usize) -> Vec<i32> {
        let (held, expected) = (self.session.len(), &self.expected);
        if held < expected.prompt {
            return expected.tokens[held..expected.prompt.min(held + chunk).min(self.end)].to_vec();
        }
        let Ok(logits) = self.session.logits() else {
            // Pages came without logits: the last token runs again.
            self.back(held - 1);
            return vec![self.expected.tokens[held - 1]];
        };
        let sampler = self.sampler.get_or_insert_with(|| expected.sampler(held));
        let choice = sampler.sample(logits, held as u64).unwrap();
        assert_eq!(choice.id, expected.tokens[held], "token {held}");
        sampler.accept(choice.id).unwrap();
        vec![choice.id]
    }

    fn back(&mut self, held: usize) {
        self.session.truncate(held).unwrap();
        self.sampler = None;
    }

    fn check(&self) {
        let held = self.session.len();
        assert!(self.session.tokens() == &self.expected.tokens[..held], "other tokens at {held}");
        if let Ok(logits) = self.session.logits() {
            assert!(bits(logits).eq(self.expected.row(held).iter().copied()), "logits behind {held} tokens");
        }
    }

    /// Runs alone until `held` tokens are there.
    fn run_to(&mut self, held: usize, chunk: usize) {
        while self.session.len() < held {
            let mut ids = self.next(chunk);
            ids.truncate(held - self.session.len());
            self.session.prefill(&ids, None, None).unwrap();
            self.check();
        }
    }
}

/// What the cases of a test run on.
struct Place<'a> {
    subject: &'a Subject,
    case: Case,
    options: SessionOptions,
    pool: KvPool,
}

impl Place<'_> {
    fn session(&self) -> Session {
        Session::in_pool(&self.pool, self.options.clone()).unwrap()
    }

    fn member(&self, dice: &mut Dice) -> Member {
        let plan = dice.below(self.subject.totals().len());
        let expected = self.subject.expected(plan, self.case.kv);
        let end = 1 + dice.below(expected.tokens.len());
        Member::new(self.session(), expected, end)
    }

    /// Appends tokens that the plain run does not have.
    fn stray(&self, session: &mut Session, dice: &mut Dice) {
        let n = (1 + dice.below(40)).min(session.capacity() - session.len());
        session.prefill(&dice.ids(n, self.subject.vocab()), None, None).unwrap();
    }
}

pub fn run(subject: &Subject, case: Case, dice: &mut Dice) {
    let Case { threads, batch, page, .. } = case;
    let model = subject.model(threads);
    let kv = KvOptions {
        page,
        kv: KV[case.kv],
        eviction: dice.of(&[Eviction::LeastRecent, Eviction::Priority]),
        prefix_cache: case.way == Way::PrefixHit || dice.below(4) > 0,
        swap_bytes: 1 << 30,
        ..KvOptions::default()
    };
    let pool = KvPool::new(model, &kv).unwrap();
    let pages = (batch + 3) * CAPACITY.div_ceil(page);
    pool.resize(pool.stats().page_bytes * pool.stats().groups * pages as u64).unwrap();
    let options = SessionOptions { max_tokens: CAPACITY, chunk: case.chunk, ..Default::default() };
    let place = Place { subject, case, options, pool };
    let expected = subject.expected(case.plan, case.kv);
    let end = expected.tokens.len();
    let mut target = Member::new(place.session(), expected, end);
    if case.way == Way::PrefixHit {
        begin_with_what_is_there(&place, &mut target, dice);
    }
    let mut neighbours: Vec<_> = (1..batch).map(|_| place.member(dice)).collect();
    let mut step = Batch::new(&place.pool).unwrap();
    let mut kept = Vec::new();
    let mut happened = matches!(case.way, Way::Fresh | Way::PrefixHit);
    while !target.done() {
        if !happened && target.session.len() >= case.at {
            happened = true;
            happen(&place, &mut target, &mut kept, dice);
            target.check();
        }
        if batch == 1 && dice.below(3) > 0 {
            let ids = target.next(case.chunk);
            target.session.prefill(&ids, None, None).unwrap();
            target.check();
        } else {
            together(&mut step, &mut target, &mut neighbours, case.chunk, dice);
        }
        for neighbour in neighbours.iter_mut().filter(|neighbour| neighbour.done()) {
            *neighbour = place.member(dice);
        }
        match dice.below(40) {
            0 => drop(place.pool.defragment()),
            1 => drop(place.pool.evict(1)),
            _ => {}
        }
    }
    drop((target, neighbours, kept));
    place.pool.clear_cache();
    let stats = place.pool.stats();
    assert_eq!((stats.used, stats.cached, stats.swapped_bytes), (0, 0, 0), "pages of nobody");
}

/// One step of the session under test and of most neighbours, in any order.
fn together(step: &mut Batch, target: &mut Member, neighbours: &mut [Member], chunk: usize, dice: &mut Dice) {
    let mut members = vec![(target, chunk)];
    for neighbour in neighbours {
        if dice.below(8) > 0 {
            members.push((neighbour, dice.of(&[1, 1, 1, 4, 16])));
        }
    }
    for i in (1..members.len()).rev() {
        members.swap(i, dice.below(i + 1));
    }
    let plans: Vec<_> = members
        .iter_mut()
        .map(|(member, chunk)| {
            let ids = member.next(*chunk);
            let last = member.session.len() + ids.len() >= member.expected.prompt;
            let wants =
                if last { [Want::Last, Want::Last, Want::All] } else { [Want::None, Want::Last, Want::All] };
            (ids, dice.of(&wants), member.session.len())
        })
        .collect();
    let mut slots: Vec<_> = members
        .iter_mut()
        .zip(&plans)
        .map(|((member, _), (ids, want, _))| Slot { session: &mut member.session, ids, want: *want })
        .collect();
    step.run(&mut slots, None).unwrap();
    for (i, ((member, _), (ids, want, before))) in members.iter().zip(&plans).enumerate() {
        step.status(i).unwrap();
        assert_eq!(member.session.len(), before + ids.len());
        assert_eq!(member.session.logits().is_ok(), *want != Want::None);
        member.check();
        if *want == Want::All {
            let rows = step.logits(i).unwrap();
            let vocab = rows.len() / ids.len();
            for (j, row) in rows.chunks_exact(vocab).enumerate() {
                let row_is = bits(row).eq(member.expected.row(before + j + 1).iter().copied());
                assert!(row_is, "logits behind {} tokens, of a whole chunk", before + j + 1);
            }
        }
    }
}

/// Another session runs the beginning and goes; what it leaves is found.
fn begin_with_what_is_there(place: &Place<'_>, target: &mut Member, dice: &mut Dice) {
    let (at, page, prompt) = (place.case.at, place.case.page, target.expected.prompt);
    let mut before = Member::new(place.session(), target.expected.clone(), at);
    before.run_to(at, place.case.chunk);
    drop(before);
    let whole = at / page * page;
    let tokens = &target.expected.tokens;
    assert_eq!(target.session.match_prefix(tokens), whole);
    let first = prompt.min(at).max(1);
    if dice.below(2) == 0 {
        let reused = target.session.reuse(&tokens[..first]).unwrap();
        assert_eq!(reused, first / page * page);
    } else {
        let hits = place.pool.stats().hit_tokens;
        target.session.prefill(&tokens[..first], None, None).unwrap();
        assert_eq!(place.pool.stats().hit_tokens - hits, ((first - 1) / page * page) as u64);
    }
    target.check();
}

/// What the case is about.
fn happen(place: &Place<'_>, target: &mut Member, kept: &mut Vec<Session>, dice: &mut Dice) {
    let held = target.session.len();
    match place.case.way {
        Way::Fresh | Way::PrefixHit => {}
        Way::Forked => {
            let fork = target.session.fork().unwrap();
            let mut other = match dice.below(2) {
                0 => std::mem::replace(&mut target.session, fork),
                _ => fork,
            };
            // The other one goes its own way, or ends.
            if dice.below(3) > 0 {
                place.stray(&mut other, dice);
                kept.push(other);
            }
        }
        Way::Truncated => {
            place.stray(&mut target.session, dice);
            target.back(dice.below(held + 1));
        }
        Way::Restored => {
            let mut from = match dice.below(2) {
                0 => None,
                // Computed elsewhere: in a pool of its own, with the other number of threads.
                _ => {
                    let options = SessionOptions {
                        page: place.case.page,
                        kv: KV[place.case.kv],
                        chunk: dice.of(&[1, 16, 512]),
                        ..place.options.clone()
                    };
                    let model = place.subject.model(3 - place.case.threads);
                    let session = Session::new(model, options).unwrap();
                    let mut member = Member::new(session, target.expected.clone(), held);
                    member.run_to(held, 512);
                    Some(member.session)
                }
            };
            let snapshot = from.as_mut().unwrap_or(&mut target.session).snapshot(b"beside").unwrap();
            target.session.reset();
            if dice.below(2) == 0 {
                place.pool.clear_cache();
            }
            if dice.below(2) == 0 {
                target.session = place.session();
            }
            assert_eq!(target.session.restore(&snapshot).unwrap(), b"beside");
            assert_eq!(target.session.len(), held);
        }
        Way::Evicted => {
            target.session = place.session();
            let stats = place.pool.stats();
            match dice.below(3) {
                0 => place.pool.clear_cache(),
                1 => drop(place.pool.evict(stats.page_bytes)),
                _ => drop(place.pool.evict(stats.page_bytes * stats.cached.div_ceil(2))),
            }
            let again = place.case.at.min(target.expected.tokens.len()).min(held);
            target.session.prefill(&target.expected.tokens[..again], None, None).unwrap();
            target.sampler = None;
        }
        Way::Swapped => {
            target.session.swap_out().unwrap();
            assert!(target.session.is_swapped_out());
            match dice.below(4) {
                0 => place.pool.clear_cache(),
                1 => drop(place.pool.defragment()),
                _ => {
                    let mut other = place.session();
                    place.stray(&mut other, dice);
                    kept.push(other);
                }
            }
            if dice.below(2) == 0 {
                target.session.swap_in().unwrap();
            }
        }
    }
}
