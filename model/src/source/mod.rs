//! A model's files as one thing, whatever their container: configuration, tokenizer, tensors by role.
//!
//! [`ModelFile`] opens a GGUF file or a Hugging Face checkpoint, checks that every tensor of the model is there with the
//! right shape, and hands out
//!
//! - each linear layer as [`Linear`]: master weights, or ternary codes with the scale as a *multiplier*;
//! - everything else as [`Dense`]: embedding, norms, head, in the type the file has.
//!
//! Bytes stay in the file's memory map until somebody asks for numbers.

mod dense;
mod gguf;
mod hf;
mod layout;
mod linear;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tersor_core::Format;

use crate::checkpoint::Checkpoint;
use crate::config::{ModelConfig, TOKENIZER_KEY};
use crate::error::{Error, Result};
use crate::gguf::{Gguf, MAGIC};
use crate::mmap::map_file;
use crate::names::Role;

pub use dense::Dense;
pub use layout::{I2sLayout, KernelConfig, Tile};
pub use linear::Linear;

/// How to read what files do not say about themselves.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// A `tokenizer.json` to use instead of the one in or beside the model.
    pub tokenizer: Option<PathBuf>,
    /// The layout of `i2_s` tensors.
    pub i2_s_layout: I2sLayout,
    /// The tile sizes of bitnet.cpp's `tl1` and `tl2` tensors. Without them such tensors are refused.
    pub kernels: Option<KernelConfig>,
}

/// One tensor of the model, for listings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// What it is for.
    pub role: Role,
    /// Its name in the file.
    pub name: String,
    /// Rows and columns; norms have one row.
    pub shape: (usize, usize),
    /// How it is stored: a ggml type name, a safetensors type, or `packed` for two bits a weight in a uint8 tensor.
    pub stored: String,
    /// Bytes it takes.
    pub bytes: u64,
}

#[derive(Debug, Clone)]
enum Container {
    Gguf(Gguf),
    Checkpoint(Checkpoint),
}

/// An opened model.
#[derive(Debug, Clone)]
pub struct ModelFile {
    container: Container,
    config: ModelConfig,
    tokenizer: Option<String>,
    tokenizer_path: Option<PathBuf>,
    entries: BTreeMap<Role, TensorEntry>,
    ignored: Vec<String>,
    options: OpenOptions,
}

impl ModelFile {
    /// Opens a GGUF file, or a checkpoint as [`Checkpoint::open`] finds it with the `config.json` beside it.
    ///
    /// # Errors
    /// What is wrong with the files, inside [`Error::InFile`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, &OpenOptions::default())
    }

    /// [`ModelFile::open`] with options.
    ///
    /// # Errors
    /// As [`ModelFile::open`].
    pub fn open_with(path: &Path, options: &OpenOptions) -> Result<Self> {
        let mut model = if path.is_dir() || path.extension().is_some_and(|e| e == "safetensors" || e == "json") {
            let checkpoint = Checkpoint::open(path)?;
            let text = read_config(path, &checkpoint)?;
            Self::from_checkpoint(checkpoint, &text, options).map_err(|e| e.in_file(path))?
        } else {
            let data = map_file(path)?;
            if !data.starts_with(&MAGIC) {
                let problem = "it does not begin with \"GGUF\" and is no .safetensors or .json file".to_owned();
                return Err(Error::UnknownKind { path: path.to_path_buf(), problem });
            }
            Gguf::from_bytes(data).and_then(|g| Self::from_gguf(g, options)).map_err(|e| e.in_file(path))?
        };
        model.find_tokenizer(path)?;
        Ok(model)
    }

    /// A model from an opened GGUF file.
    ///
    /// # Errors
    /// When the configuration is impossible, or a tensor is missing or has the wrong shape.
    pub fn from_gguf(file: Gguf, options: &OpenOptions) -> Result<Self> {
        let config = ModelConfig::from_gguf(&file)?;
        let (entries, ignored) = gguf::entries(&file, &config)?;
        let tokenizer = file.metadata().str(TOKENIZER_KEY)?.map(str::to_owned);
        Self::new(Container::Gguf(file), config, tokenizer, entries, ignored, options)
    }

    /// A model from an opened checkpoint and the text of its `config.json`.
    ///
    /// # Errors
    /// When the configuration is impossible, or a tensor is missing or has the wrong shape.
    pub fn from_checkpoint(checkpoint: Checkpoint, config_json: &str, options: &OpenOptions) -> Result<Self> {
        let has_head = checkpoint.tensor(&Role::Output.hf_name()).is_some();
        let config = ModelConfig::from_hf_json(config_json, has_head)?;
        let (entries, ignored) = hf::entries(&checkpoint, &config)?;
        Self::new(Container::Checkpoint(checkpoint), config, None, entries, ignored, options)
    }

    fn new(
        container: Container,
        config: ModelConfig,
        tokenizer: Option<String>,
        entries: BTreeMap<Role, TensorEntry>,
        ignored: Vec<String>,
        options: &OpenOptions,
    ) -> Result<Self> {
        for role in Role::all(&config) {
            if !entries.contains_key(&role) {
                let name = match container {
                    Container::Gguf(_) => role.gguf_name(),
                    Container::Checkpoint(_) => role.hf_name(),
                };
                return Err(Error::MissingTensor {
                    name,
                    why: format!("the configuration has {} layers", config.layers),
                });
            }
        }
        let options = options.clone();
        Ok(Self { container, config, tokenizer, tokenizer_path: None, entries, ignored, options })
    }

    /// Attaches the text of a `tokenizer.json`, for models whose files are in memory.
    #[must_use]
    pub fn with_tokenizer(mut self, json: impl Into<String>) -> Self {
        self.tokenizer = Some(json.into());
        self
    }

    /// Looks where people put it: named by the caller, inside the GGUF, beside the model; for a checkpoint's directory also
    /// one above, where several forms of one model share it.
    fn find_tokenizer(&mut self, path: &Path) -> Result<()> {
        let near = if path.is_dir() { Some(path) } else { path.parent() };
        let candidates = match &self.options.tokenizer {
            Some(given) => vec![given.clone()],
            None if self.tokenizer.is_some() => Vec::new(),
            None => {
                let above = matches!(self.container, Container::Checkpoint(_)).then_some("../tokenizer.json");
                let names = ["tokenizer.json"].into_iter().chain(above);
                names.filter_map(|name| near.map(|d| d.join(name))).collect()
            }
        };
        let given = self.options.tokenizer.is_some();
        if let Some(file) = candidates.into_iter().find(|f| given || f.is_file()) {
            self.tokenizer = Some(std::fs::read_to_string(&file).map_err(|e| Error::io("read", &file, e))?);
            self.tokenizer_path = Some(file);
        }
        Ok(())
    }

    /// The hyper-parameters.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The text of `tokenizer.json`, where there is one.
    #[must_use]
    pub fn tokenizer_json(&self) -> Option<&str> {
        self.tokenizer.as_deref()
    }

    /// The file the tokenizer came from; `None` when it was inside the model or attached.
    #[must_use]
    pub fn tokenizer_path(&self) -> Option<&Path> {
        self.tokenizer_path.as_deref()
    }

    /// The model's tensors in role order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorEntry> {
        self.entries.values()
    }

    /// One tensor's entry.
    #[must_use]
    pub fn entry(&self, role: Role) -> Option<&TensorEntry> {
        self.entries.get(&role)
    }

    /// Names in the file that are no tensor of the model and were not needed to read one.
    #[must_use]
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// The GGUF file behind the model, if it is one.
    #[must_use]
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.container {
            Container::Gguf(file) => Some(file),
            Container::Checkpoint(_) => None,
        }
    }

    /// A linear layer. Ternary ones come with the multiplier as scale, however the file states it.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a role that is no linear layer, a type that holds no linear layer or a layout that needs more
    /// information; [`Error::Core`] for invalid codes or scales.
    pub fn linear(&self, role: Role) -> Result<Linear> {
        let entry = self.required(role)?;
        if !role.is_linear() {
            return Err(Error::tensor(&entry.name, "not a linear layer"));
        }
        let linear = match &self.container {
            Container::Gguf(file) => gguf::linear(file, entry, &self.options),
            Container::Checkpoint(checkpoint) => hf::linear(checkpoint, entry, self.config.quantization),
        };
        linear.and_then(linear::settle).map_err(|e| e.in_tensor(&entry.name))
    }

    /// The embedding, a norm or the head, in the file's own type.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a linear layer or a role that the model does not have.
    pub fn dense(&self, role: Role) -> Result<Dense> {
        let entry = self.required(role)?;
        if role.is_linear() {
            return Err(Error::tensor(&entry.name, "a linear layer; ask for it as such"));
        }
        match &self.container {
            Container::Gguf(file) => gguf::dense(file, entry),
            Container::Checkpoint(checkpoint) => hf::dense(checkpoint, entry),
        }
    }

    fn required(&self, role: Role) -> Result<&TensorEntry> {
        self.entries.get(&role).ok_or_else(|| Error::MissingTensor {
            name: role.gguf_name(),
            why: "the model does not have it (a tied head is the embedding)".to_owned(),
        })
    }
}

fn read_config(path: &Path, checkpoint: &Checkpoint) -> Result<String> {
    let directory = checkpoint.directory().unwrap_or(Path::new("."));
    let file = directory.join("config.json");
    std::fs::read_to_string(&file).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::UnknownKind {
            path: path.to_path_buf(),
            problem: format!("no config.json in {}", directory.display()),
        },
        _ => Error::io("read", &file, e),
    })
}

/// Compares what a file has with what the role has in this model.
fn check_shape(name: &str, found: (usize, usize), role: Role, config: &ModelConfig) -> Result<()> {
    let expected = role.shape(config);
    if found == expected {
        return Ok(());
    }
    let ((r, c), (er, ec)) = (found, expected);
    Err(Error::tensor(name, format!("is {r} x {c}, but the configuration makes it {er} x {ec} (rows x columns)")))
}

/// The core format of a ggml type that embeddings and heads can have.
fn table_format(ty: crate::gguf::GgmlType) -> Option<Format> {
    use crate::gguf::GgmlType as T;
    match ty {
        T::Q8_0 => Some(Format::Q8_0),
        T::Q6_K => Some(Format::Q6K),
        float => dense_format(float),
    }
}

/// The core format of a ggml type of floats.
fn dense_format(ty: crate::gguf::GgmlType) -> Option<Format> {
    use crate::gguf::GgmlType as T;
    match ty {
        T::F32 => Some(Format::F32),
        T::F16 => Some(Format::F16),
        T::BF16 => Some(Format::BF16),
        _ => None,
    }
}
