//! Launches that go to the GPU together.
//!
//! The host needs two to four microseconds for a launch, the GPU often less for the kernel. So launches are collected, and a
//! sequence of them that was seen before is replayed as a CUDA graph: one call, and one more for each kernel whose arguments
//! have changed (in a decode step those that name a position). The first batch after a wait is small, so that the GPU
//! begins; each further one is larger, up to a limit. Where the host runs ahead of the GPU, all of a step is one.

use std::ops::Range;

use tersor_core::Result;

use crate::driver::{Address, Args, Driver, Graph, Grid, Kernel};

/// Launches of the first batch after a wait, and of the largest.
const FIRST: usize = 16;
const LARGEST: usize = 128;
/// Launches of a batch that is made while the GPU is busy: all of a decode step.
const AHEAD_LARGEST: usize = 256;
/// Sequences that are remembered. A decode step has a handful.
const REMEMBERED: usize = 64;

/// Kernels with attention, their parameters that say what to bring nearer (see `kernels/decode_attention.cu`), and of what they
/// could bring, one part in how many they do: all of it would be in the way of keys and values.
const BRINGING: [(Kernel, Range<usize>, u64); 2] =
    [(Kernel::AttentionCluster, 12..15, 4), (Kernel::NormQkvAttention, 34..37, 10)];

/// Bytes from an address on.
pub(crate) type Span = (Address, u64);

/// Whether no byte is in both.
pub(crate) fn apart(a: &Span, b: &Span) -> bool {
    a.0 + a.1 <= b.0 || b.0 + b.1 <= a.0
}

/// The parameters of `sample` that say where its ids and the fault word are, and what to publish where; see `kernels/sample.cu`.
const IDS: usize = 7;
const FAULT_WORD: usize = 8;
const PUBLISHED: std::ops::Range<usize> = 11..13;

/// Bytes that go to host memory, and with them the key of the first fault; see `kernels/publish.cu`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Publication {
    pub(crate) from: Address,
    pub(crate) bytes: usize,
    /// Where the bytes and the key go.
    pub(crate) to: Address,
    pub(crate) key: Address,
    pub(crate) fault_word: Address,
}

impl Publication {
    /// The launch that does nothing else.
    pub(crate) fn alone(&self) -> (Kernel, Grid, Args) {
        let Publication { from, bytes, to, key, fault_word } = *self;
        let args = Args::new().u64(from).u32(bytes as u32).u64(to).u64(key).u64(fault_word);
        (Kernel::Publish, Grid::new(1, 32), args)
    }
}

/// A launch to come.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Launch {
    pub(crate) kernel: Kernel,
    pub(crate) grid: Grid,
    pub(crate) args: Args,
}

/// A sequence that was seen, with the arguments of its last replay; as a graph from the second time on.
#[derive(Debug)]
struct Sequence {
    launches: Vec<Launch>,
    graph: Option<Graph>,
    /// When it was used last.
    used: u64,
}

impl Sequence {
    /// Whether these are the same kernels with the same grids.
    fn fits(&self, launches: &[Launch]) -> bool {
        let same = |(a, b): (&Launch, &Launch)| a.kernel == b.kernel && a.grid == b.grid;
        self.launches.len() == launches.len() && self.launches.iter().zip(launches).all(same)
    }
}

/// What is collected, and what was seen.
#[derive(Debug)]
pub(crate) struct Batch {
    held: Vec<Launch>,
    limit: usize,
    /// Where the launch before the next wrote the last position, and nothing else: the positions and both caches.
    newest: Option<[Address; 3]>,
    /// All that it read and wrote, if the launch before it wrote to neither cache.
    joins: Option<[Span; 12]>,
    /// All that the launch before the next wrote, and the one before it; see `wrote_only`.
    wrote: Option<[Span; 3]>,
    wrote_before: Option<[Span; 3]>,
    seen: Vec<Sequence>,
    /// Sequences so far.
    count: u64,
    /// Whether recurring sequences become graphs.
    pub(crate) graphs: bool,
}

impl Default for Batch {
    fn default() -> Self {
        Batch {
            held: Vec::with_capacity(AHEAD_LARGEST),
            limit: FIRST,
            newest: None,
            joins: None,
            wrote: None,
            wrote_before: None,
            seen: Vec::new(),
            count: 0,
            graphs: true,
        }
    }
}

impl Batch {
    /// Adds a launch, and sends the batch off if it is large enough.
    ///
    /// # Safety
    /// As for [`Driver::launch`], from now until the work is done.
    pub(crate) unsafe fn push(&mut self, driver: &Driver, launch: Launch) -> Result<()> {
        self.newest = None;
        self.wrote_before = self.wrote.take();
        self.held.push(launch);
        if self.held.len() < self.limit {
            return Ok(());
        }
        self.limit = (2 * self.limit).min(LARGEST);
        self.send(driver)
    }

    /// Says that the launch that was just pushed wrote only the last position of caches, of those that attention of one row
    /// reads; and all that it read and wrote, the caches last.
    pub(crate) fn wrote_newest(&mut self, at: [Address; 3], touched: [Span; 12]) {
        self.newest = Some(at);
        let kept = |wrote: &[Span; 3]| wrote.iter().all(|w| touched[10..].iter().all(|cache| apart(w, cache)));
        self.joins = self.wrote_before.as_ref().is_some_and(kept).then_some(touched);
    }

    /// Says all that the launch that was just pushed wrote, where its kernel starts the next one after its own wait, so that what the
    /// next reads early was written by this one or is there.
    pub(crate) fn wrote_only(&mut self, spans: [Span; 3]) {
        self.wrote = Some(spans);
    }

    /// Lets the launch before the next, a `norm_qkv` that wrote the last position, do attention too: with a grid and arguments
    /// beside its own. False, and nothing changed, where it cannot: it is on its way, may not read the caches early, has other
    /// arguments than these from these indices on, or touches what attention writes.
    ///
    /// # Safety
    /// As for [`Driver::launch`]; no op ever wrote the positions.
    pub(crate) unsafe fn join(&mut self, grid: Grid, more: Args, given: &[(usize, Args)], y: Span) -> bool {
        let fits = |l: &&mut Launch| l.kernel == Kernel::NormQkv && given.iter().all(|(i, a)| l.args.have(*i, a));
        let free = self.joins.filter(|touched| self.newest.is_some() && touched.iter().all(|t| apart(t, &y)));
        let (Some(last), Some(_)) = (self.held.last_mut().filter(fits), free) else { return false };
        last.kernel = Kernel::NormQkvAttention;
        last.grid = grid;
        last.args.extend(more);
        self.newest = None;
        true
    }

    /// Whether the launch before the next did.
    pub(crate) fn is_newest(&self, at: [Address; 3]) -> bool {
        self.newest == Some(at)
    }

    /// Lets an attention just before what comes bring memory nearer that this reads: a part of `bytes` from each place.
    pub(crate) fn bring_nearer(&mut self, places: [Address; 2], bytes: u64) {
        for launch in self.held.iter_mut().rev().take(2) {
            let Some((_, parameters, share)) = BRINGING.iter().find(|(k, ..)| *k == launch.kernel) else { continue };
            // Whole lines.
            let part = (bytes / share).min(1 << 30) / 128 * 128;
            for (index, v) in parameters.clone().zip([places[0], places[1], part]) {
                launch.args.set(index, v);
            }
        }
    }

    /// Lets the launch before what comes publish its result, where that is one id, what is to be published, and of the same
    /// stream: a kernel less. Whether it does.
    pub(crate) fn publish_with_last(&mut self, what: &Publication) -> bool {
        let one = |l: &&mut Launch| l.kernel == Kernel::Sample && l.grid.y == 1 && what.bytes == size_of::<u32>();
        let same =
            |l: &&mut Launch| (l.args.get(IDS), l.args.get(FAULT_WORD)) == (Some(what.from), Some(what.fault_word));
        let Some(sample) = self.held.last_mut().filter(one).filter(same) else { return false };
        for (index, v) in PUBLISHED.zip([what.to, what.key]) {
            sample.args.set(index, v);
        }
        true
    }

    /// Sends off what is held, however little; the next batch is a first one.
    pub(crate) fn flush(&mut self, driver: &Driver) -> Result<()> {
        self.limit = FIRST;
        if self.held.is_empty() { Ok(()) } else { self.send(driver) }
    }

    /// Sends off what is held where the host does not wait for it. The GPU is busy then while the host makes the next batch,
    /// which may be a large one: a graph costs the GPU nothing to begin but the gap before it.
    pub(crate) fn send_on(&mut self, driver: &Driver) -> Result<()> {
        self.limit = AHEAD_LARGEST;
        if self.held.is_empty() { Ok(()) } else { self.send(driver) }
    }

    /// Says that the GPU waits for the host: the next batch is a first one.
    pub(crate) fn waits(&mut self) {
        self.limit = FIRST;
    }

    fn send(&mut self, driver: &Driver) -> Result<()> {
        let done = self.replay(driver);
        self.held.clear();
        done
    }

    fn replay(&mut self, driver: &Driver) -> Result<()> {
        let held = &mut self.held[..];
        // SAFETY: who pushed a launch vouches for it.
        let plain = |held: &mut [Launch]| held.iter_mut().try_for_each(|l| unsafe { driver.launch(l) });
        // Few launches are not worth a graph.
        if !self.graphs || held.len() < FIRST / 2 {
            return plain(held);
        }
        self.count += 1;
        let Some(sequence) = self.seen.iter_mut().find(|s| s.fits(held)) else {
            // The one that was not used for longest makes room.
            let oldest = self.seen.iter().enumerate().min_by_key(|(_, s)| s.used).map(|(i, _)| i);
            if let Some(graph) =
                oldest.filter(|_| self.seen.len() >= REMEMBERED).and_then(|oldest| self.seen.swap_remove(oldest).graph)
            {
                driver.destroy_graph(graph);
            }
            self.seen.push(Sequence { launches: held.to_vec(), graph: None, used: self.count });
            return plain(held);
        };
        sequence.used = self.count;
        let changed = sequence.launches.iter().zip(held.iter()).filter(|(a, b)| a.args != b.args).count();
        // Changing a kernel's arguments costs about as much as launching it.
        if 4 * changed > 3 * held.len() {
            return plain(held);
        }
        match &mut sequence.graph {
            Some(graph) => {
                for (i, (old, new)) in sequence.launches.iter_mut().zip(held.iter_mut()).enumerate() {
                    if old.args != new.args {
                        // SAFETY: who pushed a launch vouches for it.
                        unsafe { driver.set_arguments(graph, i, new) }?;
                        std::mem::swap(old, new);
                    }
                }
            }
            none => {
                // SAFETY: who pushed a launch vouches for it.
                *none = Some(unsafe { driver.record(held) }?);
                sequence.launches.clone_from_slice(held);
            }
        }
        match &sequence.graph {
            // SAFETY: every launch of it was just pushed, or is equal to one that was.
            Some(graph) => unsafe { driver.launch_graph(graph) },
            None => Ok(()),
        }
    }

    /// Gives all graphs back. No work is left.
    pub(crate) fn clear(&mut self, driver: &Driver) {
        for graph in self.seen.drain(..).filter_map(|s| s.graph) {
            driver.destroy_graph(graph);
        }
    }
}
