//! The model that comes with the program: fable-26m, 10 MB of trained ternary weights.
//!
//! Its texts, their licences and credits are in [`SOURCES`], which has to stay with the model wherever it goes.

use bytes::Bytes;

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::source::{ModelFile, OpenOptions};

/// The name of the embedded model.
pub const NAME: &str = "fable-26m";

/// What the model was trained on: every text with its origin, licence and credits.
pub static SOURCES: &str = include_str!("../assets/fable-26m/SOURCES.md");

/// What the model is.
pub static README: &str = include_str!("../assets/fable-26m/README.md");

/// Bytes at the beginning of a cache line. `include_bytes!` alone may put them anywhere, and tensors that are not aligned to
/// their elements cannot be used in place.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

// Statics, not constants: a constant may be copied to each place that names it.
static WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("../assets/fable-26m/packed/model.safetensors"));
static CONFIG: &str = include_str!("../assets/fable-26m/packed/config.json");
static TOKENIZER: &str = include_str!("../assets/fable-26m/tokenizer.json");

/// Opens the embedded model. Nothing is copied: tensors are slices of the program's own image.
///
/// # Errors
/// None that a test would not have found; the bytes are checked like those of any file.
pub fn fable_26m() -> Result<ModelFile> {
    let checkpoint = Checkpoint::from_bytes(Bytes::from_static(&WEIGHTS.0))?;
    let file = ModelFile::from_checkpoint(checkpoint, CONFIG, &OpenOptions::default())?;
    Ok(file.with_tokenizer(TOKENIZER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Role;

    #[test]
    fn the_model_has_the_size_that_its_readme_states() {
        let file = fable_26m().unwrap();
        assert_eq!(file.config().linear_elements(), 24_117_248);
        let all: usize = Role::all(file.config()).map(|r| r.shape(file.config())).map(|(r, c)| r * c).sum();
        assert_eq!(all, 26_239_488);
        assert!(README.contains("26,239,488 parameters, 24,117,248 of them ternary"));
    }

    #[test]
    fn the_embedding_is_not_copied() {
        let dense = fable_26m().unwrap().dense(Role::TokenEmbedding).unwrap();
        assert!(WEIGHTS.0.as_ptr_range().contains(&dense.data.as_ptr()));
        assert_eq!(dense.data.as_ptr().align_offset(2), 0, "bf16 values can be read in place");
    }
}
