//! Runs one case: the session under test goes its way through its prompt and its generation, alone or in steps with
//! neighbours that come, run a while and go. Whatever has logits is compared with the plain run.

use std::cell::Cell;
use std::rc::Rc;

use llm::kv::{Eviction, KvOptions, KvPool};
use llm::sampler::Sampler;
use llm::session::batch::{Batch, Slot, Want};
use llm::session::generate::{Event, Generation, GenerationOptions, Plan};
use llm::session::{Session, SessionOptions};

use super::bits;
use super::case::{Case, Dice, Guesses, KV, Way};
use super::subject::{CAPACITY, Expected, Subject};

thread_local! {
    /// Tokens that were guessed and those of them that came true, in all cases of this thread.
    pub static GUESSED: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

/// A session and the plain run it must equal.
struct Member {
    session: Session,
    expected: Rc<Expected>,
    /// Made where the generation begins, and again after a step back.
    sampler: Option<Sampler>,
    /// Where it leaves.
    end: usize,
    guesses: Guesses,
    talk: Option<Talk>,
    /// Whether its generation has told all.
    spent: bool,
}

/// A generation that guesses.
struct Talk {
    generation: Generation,
    sampler: Sampler,
    /// Tokens of the sequence that are told.
    told: usize,
}

impl Member {
    fn new(session: Session, expected: Rc<Expected>, end: usize) -> Self {
        Self { session, expected, sampler: None, end, guesses: Guesses::Off, talk: None, spent: false }
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
        self.forget();
    }

    /// The tokens are no longer those that sampler and generation know.
    fn forget(&mut self) {
        (self.sampler, self.talk, self.spent) = (None, None, false);
    }

    /// Begins to guess, where it can.
    fn begin(&mut self, place: &Place<'_>, dice: &mut Dice) {
        let held = self.session.len();
        let ready = held >= self.expected.prompt && held < self.end && self.session.logits().is_ok();
        if !ready || self.talk.is_some() || self.spent {
            return;
        }
        let most = 1 + dice.below(6);
        let Some(speculation) = place.subject.speculation(self.guesses, most, &self.expected) else { return };
        let options = GenerationOptions { max_tokens: self.end - held, ..Default::default() };
        let mut generation = Generation::new(None, &options).unwrap();
        generation.speculate(speculation);
        self.talk = Some(Talk { generation, sampler: self.expected.sampler(held), told: held });
        self.sampler = None;
    }

    /// Compares an event. The last one ends the talk; what it told and the session does not hold runs plainly.
    fn told(&mut self, event: Event) {
        let Some(talk) = &mut self.talk else { return };
        let to = talk.told + event.ids.len();
        assert_eq!(event.ids, self.expected.tokens[talk.told..to], "told from {}", talk.told);
        talk.told = to;
        if event.reason.is_some() {
            let stats = talk.generation.spec_stats().unwrap();
            GUESSED.set((GUESSED.get().0 + stats.drafted, GUESSED.get().1 + stats.accepted));
            self.forget();
            self.spent = true;
        }
    }

    /// What a step runs of it, the same as [`Member::next`] where nothing is guessed.
    fn plan(&mut self, chunk: usize, wants: &[Want], dice: &mut Dice) -> (Vec<i32>, Want) {
        while let Some(talk) = &mut self.talk {
            let event = match talk.generation.plan(&self.session, &talk.sampler, None).unwrap() {
                Plan::Tell(event) => event,
                Plan::Run { rows } if !talk.generation.planned().is_empty() => {
                    let want = if rows == 1 { Want::Last } else { Want::Verify(rows) };
                    return (talk.generation.planned().to_vec(), want);
                }
                Plan::Run { .. } => {
                    talk.generation.take(&mut self.session, &mut talk.sampler, Ok(()), None, None).unwrap()
                }
            };
            self.told(event);
        }
        let ids = self.next(chunk);
        let last = self.session.len() + ids.len() >= self.expected.prompt;
        (ids, if last { dice.of(&wants[1..]) } else { dice.of(wants) })
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
    /// With a set of adapters.
    fn session(&self, adapters: usize) -> Session {
        let mut session = Session::in_pool(&self.pool, self.options.clone()).unwrap();
        session.set_adapters(self.subject.adapters(self.case.threads, adapters)).unwrap();
        session
    }

    fn member(&self, dice: &mut Dice) -> Member {
        let plan = dice.below(self.subject.totals().len());
        let expected = self.subject.expected(plan, self.case.kv, dice.below(2));
        let end = 1 + dice.below(expected.tokens.len());
        let guesses = dice.of(&self.subject.guesses());
        Member { guesses, ..Member::new(self.session(expected.adapters), expected, end) }
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
    let expected = subject.expected(case.plan, case.kv, case.adapters);
    let end = expected.tokens.len();
    let mut target = Member::new(place.session(case.adapters), expected, end);
    target.guesses = case.guesses;
    if dice.below(2) == 0 {
        target.session.keep_hidden(); // else a head knows nothing of the prompt
    }
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
        target.begin(&place, dice);
        for neighbour in &mut neighbours {
            if dice.below(4) == 0 {
                neighbour.begin(&place, dice);
            }
        }
        if let Some(talk) = target.talk.as_mut().filter(|_| batch == 1 && case.at.is_multiple_of(2)) {
            let event = talk.generation.next(&mut target.session, &mut talk.sampler, None).unwrap();
            target.told(event);
            target.check();
        } else if target.talk.is_none() && batch == 1 && dice.below(3) > 0 {
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
            let (ids, want) = member.plan(*chunk, &[Want::None, Want::Last, Want::All], dice);
            (ids, want, member.session.len())
        })
        .collect();
    let mut slots: Vec<_> = members
        .iter_mut()
        .zip(&plans)
        .map(|((member, _), (ids, want, _))| Slot { session: &mut member.session, ids, want: *want })
        .collect();
    step.run(&mut slots, None).unwrap();
    for (i, ((member, _), (ids, want, before))) in members.iter_mut().zip(&plans).enumerate() {
        step.status(i).unwrap();
        if let Some(talk) = &mut member.talk {
            let rows = step.logits(i).ok().filter(|_| matches!(want, Want::Verify(_)));
            let event =
                talk.generation.take(&mut member.session, &mut talk.sampler, Ok(()), rows, None).unwrap();
            member.told(event);
            member.check();
            continue;
        }
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
    let mut before = Member::new(place.session(place.case.adapters), target.expected.clone(), at);
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
                    let mut session = Session::new(model, options).unwrap();
                    let adapters = place.subject.adapters(3 - place.case.threads, place.case.adapters);
                    session.set_adapters(adapters).unwrap();
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
                target.session = place.session(place.case.adapters);
            }
            assert_eq!(target.session.restore(&snapshot).unwrap(), b"beside");
            assert_eq!(target.session.len(), held);
        }
        Way::Evicted => {
            target.session = place.session(place.case.adapters);
            let stats = place.pool.stats();
            match dice.below(3) {
                0 => place.pool.clear_cache(),
                1 => drop(place.pool.evict(stats.page_bytes)),
                _ => drop(place.pool.evict(stats.page_bytes * stats.cached.div_ceil(2))),
            }
            let again = place.case.at.min(target.expected.tokens.len()).min(held);
            target.session.prefill(&target.expected.tokens[..again], None, None).unwrap();
            target.forget();
        }
        Way::Swapped => {
            target.session.swap_out().unwrap();
            assert!(target.session.is_swapped_out());
            match dice.below(4) {
                0 => place.pool.clear_cache(),
                1 => drop(place.pool.defragment()),
                _ => {
                    let mut other = place.session(dice.below(2));
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
