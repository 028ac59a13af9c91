//! Several prompts at once: each text is the one that its prompt gives alone, and the weights are read once for all.

use std::ops::ControlFlow;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::generate::{Options, Pace, Stop};
use crate::graph::{Batch, Drawn, Profile};

/// What became of one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// The tokens that were generated.
    pub ids: Vec<u32>,
    /// Why they ended.
    pub stop: Stop,
}

/// What became of all, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Many {
    /// In the order of the prompts.
    pub texts: Vec<Text>,
    /// All prompts, with the drawing of the first token of each.
    pub prefill: Pace,
    /// All generated tokens that were fed to get the next, in sum.
    pub decode: Pace,
    /// Steps that these took.
    pub steps: usize,
    /// Kernels that ran, in the order of their first use.
    pub kernels: Vec<&'static str>,
    /// Time per operation in prefill and in decode, where it was measured.
    pub profiles: Option<(Profile, Profile)>,
}

/// The texts on their way.
struct Running<'a, F> {
    options: &'a Options,
    eos: &'a [u32],
    on_id: F,
    texts: Vec<Text>,
    /// The prompt of each slot.
    owner: Vec<Option<usize>>,
    running: usize,
}

impl<F: FnMut(usize, u32) -> ControlFlow<()>> Running<'_, F> {
    /// Takes drawn tokens in, and the sequences that have ended out of the batch.
    fn take(&mut self, drawn: &[Drawn], batch: &mut Batch) {
        for Drawn { slot, id } in drawn.iter().copied() {
            let Some(prompt) = self.owner.get(slot).copied().flatten() else { continue };
            if let Some(stop) = self.ends(prompt, id, batch.room(slot).unwrap_or(0)) {
                self.texts[prompt].stop = stop;
                self.owner[slot] = None;
                self.running -= 1;
                batch.remove(slot);
            }
        }
    }

    fn ends(&mut self, prompt: usize, id: u32, room: usize) -> Option<Stop> {
        if self.eos.contains(&id) {
            return Some(Stop::EndOfText);
        }
        let text = &mut self.texts[prompt];
        text.ids.push(id);
        let enough = text.ids.len() == self.options.tokens;
        match (self.on_id)(prompt, id) {
            ControlFlow::Break(()) => Some(Stop::Caller),
            ControlFlow::Continue(()) if enough => Some(Stop::Tokens),
            ControlFlow::Continue(()) if room == 0 => Some(Stop::Context),
            ControlFlow::Continue(()) => None,
        }
    }
}

/// Continues every prompt, as many at a time as the batch has slots; when a text ends, the next prompt takes its place.
/// `on_id` sees each token with the number of its prompt, and may stop that text.
///
/// `options.batch` and `options.profile` are the batch's own matter and mean nothing here.
///
/// # Errors
/// [`Error::ContextFull`] for a prompt that is longer than a sequence of the batch can be, before anything is computed;
/// [`Error::Argument`] for a batch that is not empty; errors of the backend.
pub fn continue_many(
    batch: &mut Batch,
    prompts: &[Vec<u32>],
    options: &Options,
    on_id: impl FnMut(usize, u32) -> ControlFlow<()>,
) -> Result<Many> {
    let argument =
        |what, value: usize, need: &str| Err(Error::Argument { what, value: value.to_string(), need: need.to_owned() });
    if options.tokens == 0 {
        return argument("number of tokens to generate", 0, "at least 1");
    }
    if batch.free() < batch.slots() {
        return argument("free slots", batch.free(), "all of the batch");
    }
    if let Some(long) = prompts.iter().find(|p| p.len() > batch.capacity()) {
        let (capacity, wanted) = (batch.capacity(), long.len());
        return Err(Error::ContextFull { capacity, used: 0, wanted, limit: String::new() });
    }
    let eos = if options.stop_at_eos { batch.model().config().eos_ids.clone() } else { Vec::new() };
    let mut all = Running {
        options,
        eos: &eos,
        on_id,
        texts: vec![
            Text { ids: Vec::with_capacity(options.tokens.min(batch.capacity())), stop: Stop::Tokens };
            prompts.len()
        ],
        owner: vec![None; batch.slots()],
        running: 0,
    };
    let (mut prefill, mut decode, mut steps) = (Pace::default(), Pace::default(), 0);
    let (mut waiting, mut drawn, mut spent) = (0, Vec::with_capacity(batch.slots()), None);
    batch.take_profile();
    loop {
        let count = batch.free().min(prompts.len() - waiting);
        if count > 0 {
            let start = Instant::now();
            let next: Vec<&[u32]> = prompts[waiting..waiting + count].iter().map(Vec::as_slice).collect();
            drawn.clear();
            drawn.extend_from_slice(batch.add(&next, options.sampling)?);
            prefill.time += start.elapsed();
            prefill.tokens += next.iter().map(|p| p.len()).sum::<usize>();
            for (prompt, first) in (waiting..).zip(&drawn) {
                all.owner[first.slot] = Some(prompt);
            }
            waiting += count;
            all.running += count;
            join(&mut spent, batch.take_profile(), true);
            all.take(&drawn, batch);
            continue;
        }
        if all.running == 0 {
            break;
        }
        let start = Instant::now();
        drawn.clear();
        drawn.extend_from_slice(batch.step()?);
        decode.time += start.elapsed();
        decode.tokens += drawn.len();
        steps += 1;
        join(&mut spent, batch.take_profile(), false);
        all.take(&drawn, batch);
    }
    let kernels = batch.kernels().to_vec();
    Ok(Many { texts: all.texts, prefill, decode, steps, kernels, profiles: spent })
}

/// Adds what was measured to the prefill's part or to that of decoding.
fn join(spent: &mut Option<(Profile, Profile)>, more: Option<Profile>, prefill: bool) {
    let Some(more) = more else { return };
    let (first, second) = spent.get_or_insert_with(|| (more.emptied(), more.emptied()));
    if prefill { first } else { second }.add(&more);
}
