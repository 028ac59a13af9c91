//! What can go wrong, how it is told, and with which code the process ends.

use std::error::Error as _;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use tersor::core::Error as CoreError;
use tersor::model::Error as ModelError;
use tersor::registry::config::ConfigError;

/// How a command ended. `tersor --help` lists these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done; where files are compared, nothing differs.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// Command line, environment or configuration are wrong.
    Usage = 2,
    /// Ternary values differ.
    ValuesDiffer = 3,
    /// Scales differ, only because f16 cannot hold them.
    ScalesRounded = 4,
    /// Scales differ otherwise, or something beside the ternary layers does.
    RestDiffers = 5,
    /// No backend can do here what was asked.
    NoBackend = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Why a command did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Configuration, discovery, selection.
    #[error(transparent)]
    Registry(#[from] tersor::Error),
    /// Files and models.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// What the user asked for does not make sense, beyond what clap can see.
    #[error("{0}")]
    Usage(String),
    /// A benchmark.
    #[error(transparent)]
    Bench(tersor_bench::Error),
    /// A file of the command's own.
    #[error("cannot {action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    /// Standard output.
    #[error("cannot write to standard output: {0}")]
    Stdout(#[from] io::Error),
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::Registry(error.into())
    }
}

impl From<CoreError> for Failure {
    fn from(error: CoreError) -> Self {
        Failure::Registry(error.into())
    }
}

impl From<tersor_bench::Error> for Failure {
    fn from(error: tersor_bench::Error) -> Self {
        match error {
            tersor_bench::Error::Registry(e) => e.into(),
            tersor_bench::Error::Core(e) => e.into(),
            tersor_bench::Error::Model(e) => e.into(),
            other => Failure::Bench(other),
        }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Failure::Stdout(error.into())
    }
}

impl Failure {
    /// A file operation that failed.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Failure::File { action, path, source }
    }

    /// Tells it on standard error, with causes that the message does not contain already, and what to do where that is known.
    pub(crate) fn report(&self) -> Exit {
        if matches!(self, Failure::Stdout(e) if e.kind() == io::ErrorKind::BrokenPipe) {
            // The reader has seen enough: nothing is wrong.
            return Exit::Done;
        }
        let mut told = self.to_string();
        let mut lines = format!("error: {told}\n");
        let mut cause = self.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !told.contains(&text) {
                lines += &format!("  cause: {text}\n");
                told += &text;
            }
            cause = error.source();
        }
        if let Some(hint) = self.hint() {
            lines += &format!("  hint: {hint}\n");
        }
        // Without standard error there is nobody to tell.
        let _ = io::stderr().lock().write_all(lines.as_bytes());
        self.exit()
    }

    fn exit(&self) -> Exit {
        use tersor::Error as Registry;
        match self {
            Failure::Usage(_) => Exit::Usage,
            Failure::Registry(Registry::Config(_) | Registry::UnknownBackend { .. }) => Exit::Usage,
            Failure::Registry(Registry::NoCandidate { .. } | Registry::Empty) => Exit::NoBackend,
            Failure::Registry(Registry::Core(CoreError::Unusable { .. })) => Exit::NoBackend,
            Failure::Model(ModelError::Backend { .. }) => Exit::NoBackend,
            Failure::Bench(tersor_bench::Error::NoBackend { .. }) => Exit::NoBackend,
            Failure::Bench(tersor_bench::Error::Axes { .. } | tersor_bench::Error::NotAReport { .. }) => Exit::Usage,
            _ => Exit::Failed,
        }
    }

    /// What to do about it, where the message itself does not say.
    fn hint(&self) -> Option<&'static str> {
        match self {
            Failure::Registry(tersor::Error::UnknownBackend { .. } | tersor::Error::NoCandidate { .. }) => {
                Some("`tersor backends --why` lists every backend, what it can do here and why not")
            }
            Failure::Model(error) => model_hint(error),
            _ => None,
        }
    }
}

fn model_hint(error: &ModelError) -> Option<&'static str> {
    match error {
        ModelError::InFile { source, .. } | ModelError::InTensor { source, .. } => model_hint(source),
        ModelError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            Some("check the path; the model that comes along is called fable-26m and needs no file")
        }
        ModelError::Truncated { .. } | ModelError::BadMagic { .. } => {
            Some("the file is incomplete or no GGUF: compare its size with the publisher's and fetch it again")
        }
        ModelError::Core(CoreError::NotFinite { .. }) => {
            Some("such weights cannot be quantized: the file is damaged, or training diverged; get them anew")
        }
        ModelError::AllZero { .. } => Some("--allow-zero converts it all the same"),
        ModelError::Layout { .. } => Some("--kernel-config takes bitnet.cpp's kernel_config.ini"),
        ModelError::Tokenizer { .. } => Some("--tokenizer FILE names the tokenizer.json of this model"),
        ModelError::Backend { .. } => Some("`tersor backends` lists what each backend can do"),
        _ => None,
    }
}
