//! Everything that can go wrong between a file name and a model.

use std::io;
use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong while reading, writing, converting or comparing model files.
///
/// Messages say what was found, where, and what would have been right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The verb: open, map, write, rename.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The path names something that cannot be mapped.
    #[error("{} is not a regular file; a model must be a file, or a directory with model.safetensors or an index", path.display())]
    NotAFile {
        /// The path given.
        path: PathBuf,
    },
    /// An error inside one particular file.
    #[error("{}: {source}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        source: Box<Error>,
    },
    /// An error inside one particular tensor.
    #[error("tensor {name}: {source}")]
    InTensor {
        /// The tensor.
        name: String,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// The path is neither a GGUF file nor a safetensors checkpoint.
    #[error("{}: not a model this program knows ({problem}); expected a GGUF file, a .safetensors file, a model.safetensors.index.json or a directory with one of these", path.display())]
    UnknownKind {
        /// The path given.
        path: PathBuf,
        /// What was looked for and not found.
        problem: String,
    },
    /// The first four bytes are not `GGUF`.
    #[error("not a GGUF file: it begins with {found:02x?} instead of 47 47 55 46 (\"GGUF\")")]
    BadMagic {
        /// The bytes found (fewer than four in a shorter file).
        found: Vec<u8>,
    },
    /// A GGUF version other than 2 and 3.
    #[error("GGUF version {found} is not supported; versions 2 and 3, little endian, are{hint}")]
    GgufVersion {
        /// The version field.
        found: u32,
        /// A further explanation, or nothing.
        hint: &'static str,
    },
    /// The file ends before something that its header announces.
    #[error("truncated at byte {at}: {reading} needs {needed} bytes, {available} are left in the file")]
    Truncated {
        /// The offset at which reading stopped.
        at: u64,
        /// What was being read.
        reading: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes left.
        available: u64,
    },
    /// A field of a GGUF file has an impossible value.
    #[error("malformed GGUF at byte {at}: {item}: {problem}")]
    Malformed {
        /// The offset of the field.
        at: u64,
        /// The key, tensor or header field.
        item: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A GGUF metadata key has another type than its meaning requires.
    #[error("metadata key {key}: expected {expected}, found {found}")]
    KeyType {
        /// The key.
        key: String,
        /// The type that would be right.
        expected: &'static str,
        /// The type found.
        found: &'static str,
    },
    /// A required key is absent from the metadata or the configuration.
    #[error("missing key {key}: {why}")]
    MissingKey {
        /// The key.
        key: String,
        /// What it is needed for, or which alternatives were tried.
        why: String,
    },
    /// A hyper-parameter or option has a value no model can have, or that this program cannot honour.
    #[error("model configuration: {key} = {value}: {problem}")]
    Config {
        /// The parameter.
        key: String,
        /// Its value as text.
        value: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A JSON file does not parse.
    #[error("invalid JSON in {what}: {source}")]
    Json {
        /// Which document.
        what: String,
        /// The parser's message with line and column.
        source: serde_json::Error,
    },
    /// A safetensors file is damaged.
    #[error("invalid safetensors file: {problem}")]
    Safetensors {
        /// The parser's message.
        problem: String,
    },
    /// A checkpoint index and its shards disagree.
    #[error("checkpoint index: {problem}")]
    Index {
        /// What disagrees.
        problem: String,
    },
    /// A tensor that the model needs is absent.
    #[error("missing tensor {name}: {why}")]
    MissingTensor {
        /// The name in the file's own convention.
        name: String,
        /// What it is needed for.
        why: String,
    },
    /// A tensor's name, shape or type does not fit its role.
    #[error("tensor {name}: {problem}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A backend lacks operations that the model needs.
    #[error("backend {backend} cannot run this model: {missing}")]
    Backend {
        /// Backend id.
        backend: String,
        /// Each operation that it lacks, with its reason.
        missing: String,
    },
    /// More tokens than the session has room for.
    #[error(
        "the context holds {capacity} tokens: {used} are in it and {wanted} more were given; shorten the prompt or open a session with more room{limit}"
    )]
    ContextFull {
        /// Tokens that fit.
        capacity: usize,
        /// Tokens that are there already.
        used: usize,
        /// Tokens given.
        wanted: usize,
        /// What bounds the capacity, where the model does.
        limit: String,
    },
    /// A call that needs the result of another one first.
    #[error("{call} needs {need}")]
    Order {
        /// The call.
        call: &'static str,
        /// What has to come before.
        need: &'static str,
    },
    /// An argument outside its domain.
    #[error("{what} is {value}, but must be {need}")]
    Argument {
        /// The argument.
        what: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        need: String,
    },
    /// A tokenizer does not load, encode or decode, or is not the model's.
    #[error("tokenizer: {problem}")]
    Tokenizer {
        /// What it said.
        problem: String,
    },
    /// A layout that needs information which the file does not carry, or does not fit what it was given.
    #[error("{format}: {problem}")]
    Layout {
        /// The format.
        format: tersor_core::Format,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A format, an operation or a backend said no.
    #[error(transparent)]
    Core(#[from] tersor_core::Error),
    /// A linear layer without a single weight that is not zero.
    #[error(
        "tensor {name}: all weights are zero; such uploads exist and are broken. To convert it all the same, allow it"
    )]
    AllZero {
        /// The tensor.
        name: String,
    },
    /// What a writer was given does not match what it announced.
    #[error("writing GGUF: {problem}")]
    Writer {
        /// The mismatch.
        problem: String,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_path_buf(), source }
    }

    pub(crate) fn tensor(name: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Tensor { name: name.into(), problem: problem.into() }
    }

    /// Says in which tensor the error lies, unless the error says so already.
    pub(crate) fn in_tensor(self, name: &str) -> Self {
        match self {
            inner @ (Self::Core(_) | Self::Layout { .. }) => {
                Self::InTensor { name: name.to_owned(), source: Box::new(inner) }
            }
            already => already,
        }
    }

    /// Says in which file the error lies, unless the error says so already.
    pub(crate) fn in_file(self, path: &Path) -> Self {
        match self {
            already @ (Self::Io { .. } | Self::NotAFile { .. } | Self::InFile { .. } | Self::UnknownKind { .. }) => {
                already
            }
            other => Self::InFile { path: path.to_path_buf(), source: Box::new(other) },
        }
    }
}
