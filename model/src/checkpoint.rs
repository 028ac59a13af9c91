//! Hugging Face checkpoints: safetensors files, memory-mapped, with their JSON companions.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use safetensors::SafeTensors;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::mmap::map_file;

pub use safetensors::Dtype;

/// The index that names each tensor's shard.
const INDEX: &str = "model.safetensors.index.json";
/// The file of a checkpoint that has only one.
const SINGLE: &str = "model.safetensors";

/// A tensor as a safetensors file stores it: little-endian, row-major, not copied.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, the contiguous one last.
    pub shape: Vec<usize>,
    /// The bytes.
    pub data: Bytes,
}

/// An opened checkpoint: all tensors of all shards, and the directory for the files beside them.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    directory: Option<PathBuf>,
    tensors: BTreeMap<String, StoredTensor>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens a directory, a `*.safetensors` file or a `*.safetensors.index.json`.
    ///
    /// In a directory the index is preferred, then `model.safetensors`, then the only `*.safetensors` file there is.
    ///
    /// # Errors
    /// [`Error::UnknownKind`] where nothing of the kind is found; [`Error::Safetensors`], [`Error::Index`] or
    /// [`Error::Json`] for damaged files, inside [`Error::InFile`]; [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { main_file(path)? } else { path.to_path_buf() };
        let directory =
            file.parent().map(|p| if p.as_os_str().is_empty() { PathBuf::from(".") } else { p.to_path_buf() });
        let tensors = if file.extension().is_some_and(|e| e == "json") {
            open_index(&file).map_err(|e| e.in_file(&file))?
        } else {
            read_tensors(map_file(&file)?).map_err(|e| e.in_file(&file))?
        };
        Ok(Self { directory, tensors })
    }

    /// Reads one safetensors file that is in memory already. It has no directory: configuration and tokenizer come from
    /// elsewhere.
    ///
    /// # Errors
    /// [`Error::Safetensors`] for a damaged file.
    pub fn from_bytes(data: Bytes) -> Result<Self> {
        Ok(Self { directory: None, tensors: read_tensors(data)? })
    }

    /// A tensor by name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.get(name)
    }

    /// All tensors, ordered by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &StoredTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The directory of the checkpoint's files; `None` for one in memory.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }
}

/// The file to begin with in a checkpoint's directory.
fn main_file(directory: &Path) -> Result<PathBuf> {
    for name in [INDEX, SINGLE] {
        let file = directory.join(name);
        if file.is_file() {
            return Ok(file);
        }
    }
    let unknown = |problem: String| Error::UnknownKind { path: directory.to_path_buf(), problem };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(|e| Error::io("list", directory, e))? {
        let path = entry.map_err(|e| Error::io("list", directory, e))?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            found.push(path);
        }
    }
    match (found.pop(), found.len()) {
        (Some(only), 0) => Ok(only),
        (Some(_), more) => Err(unknown(format!("the directory has {} .safetensors files and no {INDEX}", more + 1))),
        (None, _) => Err(unknown("the directory has no .safetensors file".to_owned())),
    }
}

fn open_index(file: &Path) -> Result<BTreeMap<String, StoredTensor>> {
    let text = std::fs::read_to_string(file).map_err(|e| Error::io("read", file, e))?;
    let index: Index = serde_json::from_str(&text)
        .map_err(|source| Error::Json { what: "the checkpoint index".to_owned(), source })?;
    let mut shards: BTreeMap<&str, BTreeMap<String, StoredTensor>> = BTreeMap::new();
    let mut tensors = BTreeMap::new();
    for (name, shard) in &index.weight_map {
        if !shards.contains_key(shard.as_str()) {
            let path = shard_path(file, shard)?;
            shards.insert(shard, read_tensors(map_file(&path)?).map_err(|e| e.in_file(&path))?);
        }
        let tensor = shards.get_mut(shard.as_str()).and_then(|s| s.remove(name));
        let tensor = tensor.ok_or_else(|| Error::Index { problem: format!("{shard} holds no tensor {name}") })?;
        tensors.insert(name.clone(), tensor);
    }
    Ok(tensors)
}

/// An index may name files beside itself only; anything else could read files the user never pointed at.
fn shard_path(index: &Path, shard: &str) -> Result<PathBuf> {
    let mut parts = Path::new(shard).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) => Ok(index.with_file_name(name)),
        _ => Err(Error::Index { problem: format!("{shard:?} is not the plain name of a file beside the index") }),
    }
}

fn read_tensors(data: Bytes) -> Result<BTreeMap<String, StoredTensor>> {
    let damaged = |e: safetensors::SafeTensorError| Error::Safetensors { problem: e.to_string() };
    let parsed = SafeTensors::deserialize(&data).map_err(damaged)?;
    let tensor = |view: &safetensors::tensor::TensorView<'_>| StoredTensor {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        data: data.slice_ref(view.data()),
    };
    Ok(parsed.iter().map(|(name, view)| (name.to_owned(), tensor(&view))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One tensor `name` of `values` f32.
    fn file(name: &str, values: &[f32]) -> Vec<u8> {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(Dtype::F32, vec![values.len()], &data).unwrap();
        safetensors::serialize([(name, view)], None).unwrap()
    }

    #[test]
    fn shards_are_found_through_the_index() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("one.safetensors"), file("a", &[1.0])).unwrap();
        std::fs::write(dir.path().join("two.safetensors"), file("b", &[2.0, 3.0])).unwrap();
        let index = dir.path().join(INDEX);
        std::fs::write(&index, r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#).unwrap();
        for path in [dir.path(), &index] {
            let checkpoint = Checkpoint::open(path).unwrap();
            assert_eq!(checkpoint.tensors().len(), 2);
            assert_eq!(checkpoint.tensor("b").unwrap().shape, [2]);
            assert_eq!(checkpoint.directory(), Some(dir.path()));
        }
        std::fs::write(&index, r#"{"weight_map": {"c": "one.safetensors"}}"#).unwrap();
        assert!(Checkpoint::open(&index).unwrap_err().to_string().contains("no tensor c"));
    }

    #[test]
    fn an_index_cannot_name_files_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let index = dir.path().join(INDEX);
        for shard in ["../secret", "/etc/passwd", "a/b", ""] {
            std::fs::write(&index, format!(r#"{{"weight_map": {{"a": "{shard}"}}}}"#)).unwrap();
            let error = Checkpoint::open(&index).unwrap_err().to_string();
            assert!(error.contains("plain name"), "{error}");
        }
    }

    #[test]
    fn a_directory_without_a_clear_choice_says_so() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Checkpoint::open(dir.path()).unwrap_err().to_string().contains("no .safetensors file"));
        std::fs::write(dir.path().join("x.safetensors"), file("a", &[1.0])).unwrap();
        assert!(Checkpoint::open(dir.path()).is_ok());
        std::fs::write(dir.path().join("y.safetensors"), file("a", &[1.0])).unwrap();
        assert!(Checkpoint::open(dir.path()).unwrap_err().to_string().contains("2 .safetensors files"));
    }

    #[test]
    fn damaged_files_are_errors() {
        let good = file("a", &[1.0; 16]);
        for len in 0..good.len() {
            assert!(Checkpoint::from_bytes(Bytes::copy_from_slice(&good[..len])).is_err(), "prefix of {len}");
        }
        let mut huge = good;
        huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(Checkpoint::from_bytes(Bytes::from(huge)).is_err());
    }
}
