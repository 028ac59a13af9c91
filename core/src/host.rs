//! What a backend gets from its host: threads, memory, a log, and the wish to stop.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{HostMemory, Isa};

/// Runs independent tasks, on one thread or many. The registry implements it over its one pool; a plugin gets the same
/// through the C ABI.
pub trait Executor: Send + Sync {
    /// How many tasks can run at the same moment.
    fn threads(&self) -> usize;
    /// Calls `task(i)` once for each `i` in `0..tasks`, in any order and from any thread, and returns when all are done.
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync));
}

/// The executor of the calling thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct Inline;

impl Executor for Inline {
    fn threads(&self) -> usize {
        1
    }
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(task);
    }
}

/// Severity of a message to the host's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something is not as it should be; work goes on.
    Warn,
    /// A decision or a fact worth knowing.
    Info,
    /// For those who look for a cause.
    Debug,
}

type LogFn = dyn Fn(LogLevel, &str) + Send + Sync;

/// The host's side of [`crate::BackendEntry::open`].
#[derive(Clone)]
pub struct HostContext {
    executor: Arc<dyn Executor>,
    log: Arc<LogFn>,
    cancelled: Arc<AtomicBool>,
    memory: Arc<HostMemory>,
    /// Whether a packing may use a weight's own bytes in place, which are often those of a mapped file. Where not, backends
    /// copy them.
    pub zero_copy: bool,
    /// Use kernels of this tier, and fail where the backend or the machine lacks it; `None`: the best there is.
    pub isa: Option<Isa>,
    /// Use the device with this number, and fail where there is none; `None`: the backend's first.
    pub device: Option<usize>,
    /// Only kernels that follow the order of `docs/numerics.md`. Where not, a backend may use faster ones, whose results are
    /// near those and still the same from run to run; [`crate::QuantBackend::follows_order`] says for which operations.
    pub reproducible: bool,
}

impl HostContext {
    /// A context that runs work on `executor`, logs nowhere, forces no ISA and wants reproducible results.
    pub fn new(executor: Arc<dyn Executor>) -> Self {
        HostContext {
            executor,
            log: Arc::new(|_, _| {}),
            cancelled: Arc::default(),
            memory: Arc::default(),
            zero_copy: true,
            isa: None,
            device: None,
            reproducible: true,
        }
    }

    /// A context for the calling thread alone.
    pub fn inline() -> Self {
        Self::new(Arc::new(Inline))
    }

    /// The same with a log.
    pub fn with_log(mut self, log: impl Fn(LogLevel, &str) + Send + Sync + 'static) -> Self {
        self.log = Arc::new(log);
        self
    }

    /// The same with an ISA tier that must be used.
    pub fn with_isa(mut self, isa: Option<Isa>) -> Self {
        self.isa = isa;
        self
    }

    /// The same with a device that must be used.
    pub fn with_device(mut self, device: Option<usize>) -> Self {
        self.device = device;
        self
    }

    /// The same with kernels that all follow the order of `docs/numerics.md`, or may be faster.
    pub fn with_reproducible(mut self, reproducible: bool) -> Self {
        self.reproducible = reproducible;
        self
    }

    /// The same with packings that may use a weight's own bytes, or not.
    pub fn with_zero_copy(mut self, zero_copy: bool) -> Self {
        self.zero_copy = zero_copy;
        self
    }

    /// The same with work on another executor.
    pub fn with_executor(mut self, executor: Arc<dyn Executor>) -> Self {
        self.executor = executor;
        self
    }

    /// The same with buffers from `memory`.
    pub fn with_memory(mut self, memory: Arc<HostMemory>) -> Self {
        self.memory = memory;
        self
    }

    /// Where host buffers come from.
    pub fn memory(&self) -> &Arc<HostMemory> {
        &self.memory
    }

    /// Where work runs.
    pub fn executor(&self) -> &dyn Executor {
        &*self.executor
    }

    /// The executor, to keep or to hand on.
    pub fn shared_executor(&self) -> Arc<dyn Executor> {
        self.executor.clone()
    }

    /// Hands a message to the host.
    pub fn log(&self, level: LogLevel, message: &str) {
        (self.log)(level, message);
    }

    /// Asks all work on this context to stop with [`crate::Error::Cancelled`].
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Lets work go on after [`HostContext::cancel`].
    pub fn resume(&self) {
        self.cancelled.store(false, Ordering::Relaxed);
    }

    /// Whether the host wants the work to stop.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for HostContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostContext")
            .field("threads", &self.executor.threads())
            .field("isa", &self.isa)
            .field("device", &self.device)
            .field("reproducible", &self.reproducible)
            .field("cancelled", &self.is_cancelled())
            .finish_non_exhaustive()
    }
}
