//! Text to tokens and back, with the `tokenizers` crate and the model's own `tokenizer.json`.

use std::fmt;

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::source::ModelFile;

/// A tokenizer together with what the model's configuration says about special tokens.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos_id: Option<u32>,
}

impl Tokenizer {
    /// Reads the text of a `tokenizer.json` for a model of this configuration.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the text is none, or knows more tokens than the model has embeddings.
    pub fn new(json: &str, config: &ModelConfig) -> Result<Self> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(|e| failed("tokenizer.json", &*e))?;
        // Both would change the number of tokens behind the caller's back; the session's own limit is an error instead.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| failed("tokenizer.json", &*e))?;
        let (known, rows) = (inner.get_vocab_size(true), config.vocab_size);
        if known > rows {
            let problem =
                format!("knows {known} tokens but the model has {rows} embeddings: it belongs to another model");
            return Err(Error::Tokenizer { problem });
        }
        Ok(Tokenizer { inner, bos_id: config.bos_id })
    }

    /// The tokenizer that was found in or beside a model's file.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where there is none; otherwise as [`Tokenizer::new`].
    pub fn of(file: &ModelFile) -> Result<Self> {
        let missing = || Error::Tokenizer {
            problem: "there is none in the model or beside it; name a tokenizer.json".to_owned(),
        };
        Self::new(file.tokenizer_json().ok_or_else(missing)?, file.config())
    }

    /// The tokens of a prompt, with the model's begin-of-text token first exactly once: most tokenizers put it there
    /// themselves, some leave it to the caller, and a prompt may begin with its text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] with what the tokenizer said.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, true).map_err(|e| failed("encoding", &*e))?;
        let mut ids = encoding.get_ids().to_vec();
        if let Some(bos) = self.bos_id {
            let there = ids.iter().take_while(|id| **id == bos).count();
            match there {
                0 => ids.insert(0, bos),
                n => drop(ids.drain(1..n)),
            }
        }
        Ok(ids)
    }

    /// The text of tokens, special ones left out. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] with what the tokenizer said.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|e| failed("decoding", &*e))
    }

    /// Starts to turn tokens into text one by one.
    #[must_use]
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, window: Vec::new(), told: 0 }
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("tokens", &self.inner.get_vocab_size(true))
            .field("bos_id", &self.bos_id)
            .finish_non_exhaustive()
    }
}

fn failed(what: &str, e: &(dyn std::error::Error + Send + Sync)) -> Error {
    Error::Tokenizer { problem: format!("{what}: {e}") }
}

/// Text that grows token by token. The pieces together are what [`Tokenizer::decode`] makes of all tokens, and no piece
/// contains half a character.
///
/// A token may end within a character, and some decoders look at a token's neighbour (to know whether a space goes
/// between them). So a window of recent tokens is decoded again each time, and what is new and certain is handed out.
#[derive(Debug, Clone)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Recent tokens: those not fully told, and at least one before them.
    window: Vec<u32>,
    /// Bytes of the window's text that were handed out.
    told: usize,
}

impl TextStream<'_> {
    /// Takes the next token and returns the text that it completes, which may be empty.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] with what the tokenizer said.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window)?;
        // An unfinished character decodes to one U+FFFD at the end; those before it are final.
        let certain = text.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or(&text);
        let piece = certain.get(self.told..).unwrap_or_default().to_owned();
        self.told = self.told.max(certain.len());
        // At the end of a character, one token is context enough for the next.
        if certain.len() == text.len() && !text.is_empty() {
            self.window.drain(..self.window.len() - 1);
            self.told = self.tokenizer.decode(&self.window)?.len();
        }
        Ok(piece)
    }

    /// The rest: a character that was never finished, as U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] with what the tokenizer said.
    pub fn finish(self) -> Result<String> {
        let text = self.tokenizer.decode(&self.window)?;
        Ok(text.get(self.told..).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded;

    fn tokenizer() -> Tokenizer {
        Tokenizer::of(&embedded::fable_26m().unwrap()).unwrap()
    }

    fn streamed(t: &Tokenizer, ids: &[u32]) -> (String, Vec<String>) {
        let mut stream = t.stream();
        let mut pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        (pieces.concat(), pieces)
    }

    #[test]
    fn the_bos_token_is_there_exactly_once() {
        let t = tokenizer();
        let ids = t.encode("Once upon a time there was a little girl").unwrap();
        assert_eq!(ids, [0, 3773, 648, 260, 549, 461, 311, 260, 484, 801]);
        assert_eq!(t.encode("<|bos|>Once upon a time there was a little girl").unwrap(), ids);
        assert_eq!(t.encode("").unwrap(), [0]);
        assert_eq!(t.decode(&ids).unwrap(), "Once upon a time there was a little girl");
    }

    #[test]
    fn a_tokenizer_that_leaves_bos_to_the_caller_gets_it_too() {
        let mut json: serde_json::Value =
            serde_json::from_str(embedded::fable_26m().unwrap().tokenizer_json().unwrap()).unwrap();
        json["post_processor"] = serde_json::Value::Null;
        let config = embedded::fable_26m().unwrap().config().clone();
        let t = Tokenizer::new(&json.to_string(), &config).unwrap();
        assert_eq!(t.encode("Once").unwrap(), tokenizer().encode("Once").unwrap());
    }

    #[test]
    fn pieces_add_up_to_the_text_and_hold_whole_characters() {
        let t = tokenizer();
        // Three- and four-byte characters, a joined emoji, combining marks, right-to-left text: none has a token of its own.
        for text in [
            "Grüße, señor — “naïve”",
            "日本語のテキスト",
            "🦊🐺 👩‍👩‍👧‍👦!",
            "e\u{301}\u{323} שלום",
            "\u{fffd} a \u{fffd}",
            " \n\n  x  ",
        ] {
            let ids = t.encode(text).unwrap();
            let (all, pieces) = streamed(&t, &ids);
            assert_eq!(all, t.decode(&ids).unwrap());
            assert_eq!(all, text);
            let halves = pieces.iter().filter(|p| p.contains('\u{fffd}')).count();
            assert_eq!(halves, text.matches('\u{fffd}').count(), "{pieces:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_come_out_as_in_the_one_shot_decoding() {
        let t = tokenizer();
        let fox = t.encode("🦊").unwrap()[1..].to_vec();
        assert_eq!(fox.len(), 4, "the fox should be four tokens of one byte");
        let a = t.encode("a").unwrap()[1];
        for ids in [
            vec![fox[0], fox[1], a],
            vec![fox[0], fox[0], fox[0], fox[1], fox[2], fox[3]],
            vec![fox[3], fox[3], a, fox[2]],
            vec![a, fox[0], 1, fox[1], fox[2], fox[3]],
        ] {
            assert_eq!(streamed(&t, &ids).0, t.decode(&ids).unwrap(), "{ids:?}");
        }
    }

    #[test]
    fn a_tokenizer_of_another_model_is_refused() {
        let file = embedded::fable_26m().unwrap();
        let mut config = file.config().clone();
        config.vocab_size = 4000;
        let e = Tokenizer::new(file.tokenizer_json().unwrap(), &config).unwrap_err().to_string();
        assert!(e.contains("4096 tokens") && e.contains("4000 embeddings"), "{e}");
        assert!(Tokenizer::new("{}", file.config()).is_err());
    }
}
