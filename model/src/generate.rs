//! Generation: a prompt goes in, tokens come out one by one.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use tersor_core::SampleParams;

use crate::error::{Error, Result};
use crate::graph::{Model, Profile, Session, SessionOptions};
use crate::tokenizer::Tokenizer;

/// How to generate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// The most tokens to generate.
    pub tokens: usize,
    /// How a token is drawn. Temperature 0 takes the likeliest.
    pub sampling: SampleParams,
    /// Whether an end-of-text token ends the generation. It is not part of the result.
    pub stop_at_eos: bool,
    /// Rows of the prompt that go through the model together.
    pub batch: usize,
    /// Whether to measure each operation.
    pub profile: bool,
}

impl Default for Options {
    /// 128 tokens, the likeliest each time.
    fn default() -> Self {
        let sampling = SampleParams { temperature: 0.0, top_k: None, seed: 0 };
        let batch = SessionOptions::default().batch;
        Options { tokens: 128, sampling, stop_at_eos: true, batch, profile: false }
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stop {
    /// The model ended the text.
    EndOfText,
    /// As many tokens as were asked for.
    Tokens,
    /// The context is full.
    Context,
    /// The callback said so.
    Caller,
}

impl Stop {
    /// A word for reports.
    #[must_use]
    pub fn id(self) -> &'static str {
        match self {
            Stop::EndOfText => "eos",
            Stop::Tokens => "tokens",
            Stop::Context => "context",
            Stop::Caller => "caller",
        }
    }
}

/// Tokens and the time they took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Time from the first to the last of them, sampling included. What the caller does with a token counts only where the
    /// next step runs meanwhile.
    pub time: Duration,
}

impl Pace {
    /// Tokens a second; `None` where none went through.
    #[must_use]
    pub fn tokens_per_second(&self) -> Option<f64> {
        (self.tokens > 0 && !self.time.is_zero()).then(|| self.tokens as f64 / self.time.as_secs_f64())
    }
}

/// Tokens that were generated, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Continuation {
    /// The tokens.
    pub ids: Vec<u32>,
    /// Why they ended.
    pub stop: Stop,
    /// The prompt, with the drawing of the first token.
    pub prefill: Pace,
    /// Each generated token that was fed to get the next.
    pub decode: Pace,
    /// Kernels that ran, in the order of their first use.
    pub kernels: Vec<&'static str>,
    /// Time per operation in prefill and in decode, where [`Options::profile`] was set.
    pub profiles: Option<(Profile, Profile)>,
}

/// A text that was generated, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// The text of the generated tokens, without the prompt.
    pub text: String,
    /// The prompt's tokens.
    pub prompt_ids: Vec<u32>,
    /// The generated tokens and their measurements.
    pub run: Continuation,
    /// Bytes of packed weights.
    pub weight_bytes: usize,
    /// Bytes of the key/value cache and activations.
    pub session_bytes: usize,
}

/// Continues `prompt`. `on_token` sees each token as it is drawn, with the text that it completes (which may be empty),
/// and may stop the generation; text that only the end of the generation completes comes with the last call.
///
/// The same options give the same text on every backend and with any number of threads.
///
/// ```
/// use std::ops::ControlFlow;
/// use tersor_backend_scalar as _; // an entry is linked only where its crate is named
/// use tersor_core::HostContext;
/// use tersor_model::generate::{Options, generate};
/// use tersor_model::{Model, Tokenizer, embedded};
///
/// let entry = tersor_core::entries().next().expect("the scalar backend");
/// let backend = (entry.open)(&HostContext::inline())?;
/// let file = embedded::fable_26m()?;
/// let model = Model::load(backend, &file, |_| {})?;
/// let options = Options { tokens: 4, ..Options::default() };
/// let story = generate(&model, &Tokenizer::of(&file)?, "Once upon a time there was a little girl", &options, |token| {
///     print!("{}", token.text);
///     ControlFlow::Continue(())
/// })?;
/// assert_eq!(story.text, " who was called Jack");
/// # Ok::<(), tersor_model::Error>(())
/// ```
///
/// # Errors
/// [`Error::ContextFull`] for a prompt that does not fit; errors of the tokenizer and of the backend.
pub fn generate(
    model: &Model,
    tokenizer: &Tokenizer,
    prompt: &str,
    options: &Options,
    mut on_token: impl FnMut(Token<'_>) -> ControlFlow<()>,
) -> Result<Generation> {
    let prompt_ids = tokenizer.encode(prompt)?;
    let context = model.config().context_length;
    let capacity = context.min(prompt_ids.len().saturating_add(options.tokens));
    let session =
        SessionOptions { capacity: Some(capacity), batch: options.batch, profile: options.profile, logit_rows: 1 };
    let mut session = Session::new(model, session)?;
    let (mut text, mut stream, mut failure) = (String::new(), tokenizer.stream(), None);
    let run = continue_ids(&mut session, &prompt_ids, options, |id| match stream.push(id) {
        Ok(piece) => {
            text.push_str(&piece);
            on_token(Token { id: Some(id), text: &piece })
        }
        Err(e) => {
            failure = Some(e);
            ControlFlow::Break(())
        }
    })?;
    if let Some(e) = failure {
        return Err(e);
    }
    let rest = stream.finish()?;
    if !rest.is_empty() {
        text.push_str(&rest);
        // The generation is over: there is nothing left to stop.
        let _ = on_token(Token { id: None, text: &rest });
    }
    let (weight_bytes, session_bytes) = (model.weight_bytes(), session.bytes());
    Ok(Generation { text, prompt_ids, run, weight_bytes, session_bytes })
}

/// What [`generate`] tells its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token<'a> {
    /// The token; `None` for the rest of the text after the last one.
    pub id: Option<u32>,
    /// The text that it completes.
    pub text: &'a str,
}

/// Feeds `prompt` to a session and draws up to `options.tokens` tokens. `on_id` sees each and may stop.
///
/// Where the session [runs ahead](Session::runs_ahead), a step is begun before the token that it feeds is known here. One that
/// turns out to be too many is taken back: tokens, session and a following prefill are those of a session that does not.
///
/// # Errors
/// [`Error::ContextFull`] for a prompt that does not fit into what is left of the session; errors of the backend.
pub fn continue_ids(
    session: &mut Session,
    prompt: &[u32],
    options: &Options,
    mut on_id: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Continuation> {
    if options.tokens == 0 {
        let need = "at least 1".to_owned();
        return Err(Error::Argument { what: "number of tokens to generate", value: "0".to_owned(), need });
    }
    let eos = if options.stop_at_eos { session.model().config().eos_ids.clone() } else { Vec::new() };
    let mut ids = Vec::with_capacity(options.tokens.min(session.room()));
    session.take_profile();
    let start = Instant::now();
    session.prefill(prompt)?;
    let mut id = session.sample(options.sampling)?;
    let prefill = Pace { tokens: prompt.len(), time: start.elapsed() };
    let prefill_profile = session.take_profile();
    let mut decode = Pace::default();
    let ahead = session.runs_ahead();
    // Where the next step runs already: since when.
    let mut running: Option<Instant> = None;
    let stop = loop {
        if eos.contains(&id) {
            break Stop::EndOfText;
        }
        ids.push(id);
        if on_id(id).is_break() {
            break Stop::Caller;
        }
        if ids.len() == options.tokens {
            break Stop::Tokens;
        }
        if running.is_none() && session.room() == 0 {
            break Stop::Context;
        }
        let start = running.take().unwrap_or_else(Instant::now);
        if ahead {
            id = next_ahead(session, options, ids.len())?;
        } else {
            id = session.step(options.sampling)?;
        }
        let now = Instant::now();
        running = (session.steps_begun() > 0).then_some(now);
        decode.tokens += 1;
        decode.time += now.duration_since(start);
    };
    if running.is_some() {
        session.take_back()?;
    }
    let profiles = prefill_profile.zip(session.take_profile());
    Ok(Continuation { ids, stop, prefill, decode, kernels: session.kernels().to_vec(), profiles })
}

/// The next token where `known` are known, with the step after it begun, if there may be one.
fn next_ahead(session: &mut Session, options: &Options, known: usize) -> Result<u32> {
    if session.steps_begun() == 0 {
        session.begin_step(options.sampling)?;
    }
    if known + 1 < options.tokens && session.room() > 0 {
        // What keeps it from being begun is an error only if it is needed: it is tried again then.
        let _ = session.begin_step(options.sampling);
    }
    session.finish_step()
}

/// Logits at every position of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Logits {
    /// `positions x vocab`, row-major.
    pub values: Vec<f32>,
    /// Number of positions.
    pub positions: usize,
    /// Logits of a position.
    pub vocab: usize,
}

/// Computes the logits at every position of `ids`.
///
/// # Errors
/// [`Error::ContextFull`] where the tokens do not fit; errors of the backend.
pub fn prompt_logits(model: &Model, ids: &[u32]) -> Result<Logits> {
    let vocab = model.config().vocab_size;
    let capacity = ids.len().clamp(1, model.config().context_length);
    // Sixteen rows read the head once for sixteen positions; 8 MB of logits for a vocabulary of 128,256.
    let options = SessionOptions { capacity: Some(capacity), logit_rows: 16, ..SessionOptions::default() };
    let mut values = Vec::with_capacity(ids.len() * vocab);
    Session::new(model, options)?.prefill_logits(ids, |_, row| values.extend_from_slice(row))?;
    Ok(Logits { values, positions: ids.len(), vocab })
}
