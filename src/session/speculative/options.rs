//! What a host can ask of speculation.

use super::{
    Corpus, DraftHead, DraftModel, MOST_DRAFT, Ngram, Proposer, Speculation, check_vocabulary, refuse,
};
use crate::error::{Error, Result, Status};
use crate::kv::KvPool;
use crate::model::Model;

/// How many tokens to guess.
#[derive(Clone, Debug, PartialEq)]
pub struct Lengths {
    /// At least so many, 1 or more, where any are guessed.
    pub least: usize,
    /// At most so many, up to [`MOST_DRAFT`].
    pub most: usize,
    /// Find the best number by what guesses cost and how often they come true, and stop for a while where they do not
    /// pay; else guess `most` at every step.
    pub adaptive: bool,
    /// What guessing has to reach to go on, in tokens by time over those without it.
    pub min_gain: f64,
}

impl Default for Lengths {
    fn default() -> Self {
        Self { least: 1, most: 8, adaptive: true, min_gain: 1.03 }
    }
}

impl Lengths {
    /// Whether they make sense.
    ///
    /// # Errors
    /// `INVALID_ARG`.
    pub fn check(&self) -> Result<()> {
        if self.least == 0 || self.least > self.most || self.most > MOST_DRAFT {
            let expected = format!("1 ≤ least ≤ most ≤ {MOST_DRAFT}");
            return Err(refuse("draft length", &expected, format!("{} to {}", self.least, self.most)));
        }
        if !(self.min_gain.is_finite() && (0.0..=100.0).contains(&self.min_gain)) {
            return Err(refuse("min_gain", "0 to 100", self.min_gain));
        }
        Ok(())
    }
}

/// Lookup of what followed the last tokens before.
#[derive(Clone, Debug)]
pub struct NgramOptions {
    /// At least so many tokens have to match, 1 or more.
    pub least_match: usize,
    /// The longest match that is looked for.
    pub most_match: usize,
    /// Tokens beside those of the session to look in.
    pub corpus: Option<Corpus>,
}

impl Default for NgramOptions {
    fn default() -> Self {
        Self { least_match: 3, most_match: 16, corpus: None }
    }
}

impl NgramOptions {
    /// Whether they make sense.
    ///
    /// # Errors
    /// `INVALID_ARG` for match lengths out of range or a corpus indexed for another one.
    pub fn check(&self) -> Result<()> {
        let (least, most) = (self.least_match, self.most_match);
        if least == 0 || least > most || most > 1024 {
            return Err(refuse("match length", "1 ≤ least ≤ most ≤ 1024", format!("{least} to {most}")));
        }
        if let Some(corpus) = self.corpus.as_ref().filter(|corpus| corpus.least_match() != least) {
            return Err(refuse("corpus", &format!("an index of {least} tokens"), corpus.least_match()));
        }
        Ok(())
    }
}

/// A second model that guesses.
#[derive(Clone, Debug)]
pub struct DraftOptions {
    /// The model; its vocabulary is that of the target.
    pub model: Model,
    /// Where its keys and values go; none: pages of its own.
    pub pool: Option<KvPool>,
}

/// Who guesses.
#[derive(Clone, Debug)]
pub enum Source {
    /// [`DraftModel`].
    Draft(DraftOptions),
    /// The second model of the target's own file ([`Model::draft`]): a self-drafting head, or a small model.
    Own,
    /// [`Ngram`].
    Ngram(NgramOptions),
}

/// The second model of the target's file.
fn own(target: &Model) -> Result<&Model> {
    target.draft()?.ok_or_else(|| {
        let message = "speculation: the model's file has no second model: take a draft or lookup";
        Error::new(Status::UNSUPPORTED, message)
    })
}

impl DraftOptions {
    fn check(&self, target: &Model) -> Result<()> {
        if let Some(pool) = self.pool.as_ref().filter(|pool| !pool.model().is(&self.model)) {
            return Err(refuse("draft", "a pool of the draft model", format!("one of {:?}", pool.model())));
        }
        check_vocabulary(target, &self.model)
    }
}

/// A way to speculate, for any number of generations.
#[derive(Clone, Debug)]
pub struct SpecOptions {
    /// Who guesses.
    pub source: Source,
    /// How many tokens.
    pub lengths: Lengths,
}

impl SpecOptions {
    /// Lookup with defaults.
    pub fn ngram() -> Self {
        Self { source: Source::Ngram(NgramOptions::default()), lengths: Lengths::default() }
    }

    /// The second model of the target's own file, with defaults.
    pub fn own() -> Self {
        Self { source: Source::Own, lengths: Lengths::default() }
    }

    /// A draft model with defaults.
    pub fn draft(model: &Model) -> Self {
        let options = DraftOptions { model: model.clone(), pool: None };
        Self { source: Source::Draft(options), lengths: Lengths::default() }
    }

    /// Whether this can guess for `target`.
    ///
    /// # Errors
    /// `INVALID_ARG` for options out of range and a pool that is not the draft's; `UNSUPPORTED` where the target's file
    /// has no second model; as [`check_vocabulary`].
    pub fn check(&self, target: &Model) -> Result<()> {
        self.lengths.check()?;
        match &self.source {
            Source::Draft(draft) => draft.check(target),
            Source::Own => own(target).map(drop),
            Source::Ngram(options) => options.check(),
        }
    }

    /// Begins to speculate for a generation of `target`.
    ///
    /// # Errors
    /// As [`SpecOptions::check`]; those of the draft's session.
    pub fn start(&self, target: &Model) -> Result<Speculation> {
        let proposer: Box<dyn Proposer> = match &self.source {
            Source::Draft(draft) => {
                draft.check(target)?;
                Box::new(DraftModel::new(&draft.model, draft.pool.as_ref())?)
            }
            Source::Own => match own(target)? {
                head if head.is_head() => Box::new(DraftHead::new(head)?),
                draft => Box::new(DraftModel::new(draft, None)?),
            },
            Source::Ngram(options) => Box::new(Ngram::new(options)?),
        };
        Speculation::new(proposer, &self.lengths)
    }
}
