//! Perplexity: how well a model predicts a text it has not seen.

use crate::error::{Error, Result};
use crate::graph::{Model, Session, SessionOptions};

/// The negative log-likelihood of windows of text.
#[derive(Debug, Clone, PartialEq)]
pub struct Perplexity {
    /// Mean negative log-likelihood per predicted token of each window, in nats.
    pub windows: Vec<f64>,
    /// Tokens that were predicted.
    pub tokens: usize,
    /// Mean over all predicted tokens, in nats.
    pub mean: f64,
}

impl Perplexity {
    /// `exp` of the mean.
    #[must_use]
    pub fn value(&self) -> f64 {
        libm::exp(self.mean)
    }
}

/// Evaluates windows one by one, each from an empty cache; within a window, position p predicts p + 1. `done` is told the
/// number of windows finished and the mean of the last.
///
/// The logarithm of the softmax is taken in f64, in ascending order, with the `libm` crate: the figure is the same on every
/// platform that computes the same logits.
///
/// # Errors
/// [`Error::Argument`] for no windows, or one without a token to predict; [`Error::ContextFull`] for one longer than the
/// context; errors of the backend.
pub fn perplexity(model: &Model, windows: &[&[u32]], mut done: impl FnMut(usize, f64)) -> Result<Perplexity> {
    if let Some(short) = windows.iter().map(|w| w.len()).chain(windows.is_empty().then_some(0)).find(|n| *n < 2) {
        let need = "at least 2: one to see, one to predict".to_owned();
        return Err(Error::Argument { what: "tokens of a window", value: short.to_string(), need });
    }
    let vocab = model.config().vocab_size;
    for (i, window) in windows.iter().enumerate() {
        // The last token of a window is never fed, so the session would not notice.
        if let Some(id) = window.iter().find(|id| **id as usize >= vocab) {
            let need = format!("below the vocabulary size {vocab}");
            return Err(Error::Argument { what: "token of a window", value: format!("{id} (window {i})"), need });
        }
    }
    let longest = windows.iter().map(|w| w.len() - 1).max().unwrap_or(1);
    let capacity = longest.min(model.config().context_length);
    let options = SessionOptions { capacity: Some(capacity), logit_rows: 32, ..SessionOptions::default() };
    let mut session = Session::new(model, options)?;
    let (mut means, mut total, mut tokens) = (Vec::with_capacity(windows.len()), 0.0, 0);
    for (i, window) in windows.iter().enumerate() {
        let mut sum = 0.0;
        session.reset();
        session.prefill_logits(&window[..window.len() - 1], |position, logits| {
            sum += negative_log_likelihood(logits, window[position + 1]);
        })?;
        let predicted = window.len() - 1;
        means.push(sum / predicted as f64);
        (total, tokens) = (total + sum, tokens + predicted);
        done(i + 1, sum / predicted as f64);
    }
    Ok(Perplexity { windows: means, tokens, mean: total / tokens as f64 })
}

/// `ln(sum exp(logits)) - logits[target]`; NaN for a target that is not there, which the caller's ids rule out.
#[must_use]
pub fn negative_log_likelihood(logits: &[f32], target: u32) -> f64 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
    let sum: f64 = logits.iter().map(|v| libm::exp(f64::from(*v) - f64::from(max))).sum();
    let target = logits.get(target as usize).copied().unwrap_or(f32::NAN);
    libm::log(sum) + f64::from(max) - f64::from(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_cost_the_logarithm_of_their_number() {
        assert!((negative_log_likelihood(&[3.0; 8], 5) - 8f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn a_sure_prediction_costs_nothing_and_large_logits_do_not_overflow() {
        assert!(negative_log_likelihood(&[1000.0, 0.0, -1000.0], 0).abs() < 1e-12);
        assert!((negative_log_likelihood(&[1000.0, 0.0], 1) - 1000.0).abs() < 1e-9);
    }
}
