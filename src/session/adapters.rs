//! Which adapters a session runs with.
//!
//! They are part of what decides the bits of its keys and values: pages are found again only by sessions with the same
//! adapters at the same scales in the same order, and a snapshot goes on only with those it was made with.

use std::sync::Arc;

use super::{OnProgress, Session};
use crate::adapter::{self, Adapter, Use};
use crate::cancel::Cancel;
use crate::error::{Error, Result, Status};
use crate::kv::Root;

impl Session {
    /// Runs with `adapters` from now on, each with a factor on its change; none: with the model as it is. Their changes
    /// are added in this order. [`Session::reset`] and [`Session::fork`] keep them.
    ///
    /// # Errors
    /// `BAD_STATE` if the session holds tokens, whose keys and values were computed otherwise; `MISMATCH` for an adapter
    /// that was opened for another model; `INVALID_ARG` for a scale that is not finite. Nothing has changed then.
    pub fn set_adapters(&mut self, adapters: &[(Adapter, f32)]) -> Result<()> {
        if !self.is_empty() {
            let message = format!(
                "the session holds {} tokens, computed with other adapters: reset it, or have them computed again",
                self.len()
            );
            return Err(Error::new(Status::BAD_STATE, message));
        }
        let uses = self.checked(adapters)?;
        self.put_adapters(uses);
        Ok(())
    }

    /// As [`Session::set_adapters`], and computes the tokens that the session holds again, as [`Session::prefill`] does.
    ///
    /// # Errors
    /// As [`Session::set_adapters`] but `BAD_STATE`, with nothing changed. As [`Session::prefill`]; the session then has
    /// the adapters it had and is empty.
    pub fn change_adapters(
        &mut self,
        adapters: &[(Adapter, f32)],
        cancel: Option<&Cancel>,
        progress: Option<OnProgress<'_>>,
    ) -> Result<()> {
        let uses = self.checked(adapters)?;
        let (tokens, before, dropped) = (self.tokens.clone(), self.adapters.clone(), self.dropped);
        self.reset();
        self.put_adapters(uses);
        let run = self.prefill(&tokens, cancel, progress);
        if run.is_ok() {
            self.dropped = dropped;
        } else {
            self.reset();
            self.put_adapters(before);
        }
        run
    }

    /// The adapters it runs with, and their scales.
    pub fn adapters(&self) -> Vec<(Adapter, f32)> {
        self.adapters.iter().map(|one| (one.adapter.clone(), one.scale)).collect()
    }

    fn checked(&self, adapters: &[(Adapter, f32)]) -> Result<Arc<[Use]>> {
        for (i, (adapter, scale)) in adapters.iter().enumerate() {
            if !scale.is_finite() {
                let message = format!("adapter {i}: expected a finite scale, got {scale}");
                return Err(Error::new(Status::INVALID_ARG, message));
            }
            if !adapter.is_for(&self.model) {
                let message =
                    format!("adapter {i}: {adapter:?} was opened for another model than the session's");
                return Err(Error::new(Status::MISMATCH, message));
            }
        }
        Ok(adapters.iter().map(|(adapter, scale)| Use { adapter: adapter.clone(), scale: *scale }).collect())
    }

    /// Gives an empty session a table whose pages are found under its adapters.
    fn put_adapters(&mut self, adapters: Arc<[Use]>) {
        self.root = self.root.map(|root| Root { adapters: adapter::key(&adapters), ..root });
        self.adapters = adapters;
        let mut pages = self.pool.lock();
        let table = pages.open(self.root, self.options.priority);
        pages.close(std::mem::replace(&mut self.table, table));
        self.reserved = pages.reserved_again(table, self.reserved);
    }

    /// The largest rank of its adapters.
    pub(super) fn rank(&self) -> usize {
        self.adapters.iter().map(|one| one.adapter.info().rank).max().unwrap_or(0)
    }
}
