//! A layer that is a TOML file.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Config;
use super::diagnostics::{ConfigError, Origin};
use super::key::Key;
use super::layers;
use super::nearest::{names_in, nearest_key};
use super::schema::SECTIONS;
use super::setting::Raw;

/// A document with what is needed to say where something in it is.
struct Document<'a> {
    path: &'a Path,
    text: &'a str,
}

/// Lays the values of a document over what the configuration holds.
pub(super) fn apply(config: &mut Config, path: &Path, text: &str) -> Result<(), ConfigError> {
    let document = Document { path, text };
    let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        origin: document.origin(error.span().unwrap_or_default()),
        message: error.message().to_owned(),
    })?;
    document.section(config, "", table.get_ref())
}

impl Document<'_> {
    /// Walks in the order of the text, so that the first fault from the top is the one reported.
    fn section(&self, config: &mut Config, parent: &str, table: &DeTable<'_>) -> Result<(), ConfigError> {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        for (name, node) in entries {
            let name_shown = shown(name.get_ref());
            let path = if parent.is_empty() { name_shown } else { format!("{parent}.{name_shown}") };
            if let Some(key) = Key::find(&path) {
                self.value(config, key, name.span(), node)?;
            } else if SECTIONS.iter().any(|section| section.path == path) {
                let inner = node.get_ref().as_table().ok_or_else(|| {
                    let problem = Raw::Toml(node).problem(format!("a section [{path}]"));
                    layers::refuse(&path, problem, self.origin(node.span()))
                })?;
                self.section(config, &path, inner)?;
            } else {
                let (nearest, valid) = (nearest_key(&path), names_in(parent));
                return Err(ConfigError::UnknownKey { origin: self.origin(name.span()), key: path, nearest, valid });
            }
        }
        Ok(())
    }

    fn value(
        &self,
        config: &mut Config,
        key: &'static Key,
        at: Range<usize>,
        node: &Spanned<DeValue<'_>>,
    ) -> Result<(), ConfigError> {
        match (key.set)(config, Raw::Toml(node)) {
            Ok(()) => {
                config.origins.insert(key.path, self.origin(at));
                Ok(())
            }
            Err(problem) => {
                let at = problem.span.clone().unwrap_or(at);
                Err(layers::refuse(key.path, problem, self.origin(at)))
            }
        }
    }

    fn origin(&self, span: Range<usize>) -> Origin {
        let (line, column) = position(self.text, span.start);
        Origin::File { path: self.path.to_owned(), line, column }
    }
}

/// A name as it has to be written in TOML: one that holds a dot or a line break stays in quotes, and so is never mistaken
/// for a path.
fn shown(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !name.is_empty() && name.chars().all(bare) { name.to_owned() } else { format!("{name:?}") }
}

/// Line and column of a byte offset, from 1; columns count characters, as editors do.
fn position(text: &str, offset: usize) -> (u32, u32) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = 1 + before.matches('\n').count();
    let column = 1 + before[line_start..].chars().count();
    (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Config::from_toml_str(text).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place_and_the_nearest_one() {
        assert_eq!(
            error("[threads]\n  cuont = 4\n"),
            "<text>:2:3: unknown key `threads.cuont`; did you mean `threads.count`?"
        );
        assert_eq!(error("[thread]\ncount = 4"), "<text>:1:2: unknown key `thread`; did you mean `threads`?");
        assert_eq!(error("seed = 4"), "<text>:1:1: unknown key `seed`; did you mean `run.seed`?");
        assert_eq!(
            error("[threads]\nflavour = 4"),
            "<text>:2:1: unknown key `threads.flavour`; valid here: threads.count, threads.affinity"
        );
        assert!(error("[select.formats]\ntq1 = 'cuda'").ends_with("did you mean `select.formats.tq1_0`?"));
    }

    #[test]
    fn a_quoted_name_with_a_dot_is_not_a_path() {
        assert_eq!(
            error("\"threads.count\" = 4"),
            "<text>:1:1: unknown key `\"threads.count\"`; did you mean `threads.count`?"
        );
        assert!(error("[\"select.formats\"]\ntl1 = 'cuda'").ends_with("did you mean `select.formats`?"));
        assert!(error("[threads]\n\"co\\nunt\" = 4").starts_with("<text>:2:1: unknown key `threads.\"co\\nunt\"`;"));
    }

    #[test]
    fn a_wrong_type_is_refused_with_what_was_found_and_what_would_be_right() {
        assert_eq!(
            error("[threads]\ncount = \"four\""),
            "<text>:2:9: `threads.count` is the string \"four\"; expected an integer from 1 to 65535, or \"auto\""
        );
        assert!(
            error("run.deterministic = 1")
                .starts_with("<text>:1:21: `run.deterministic` is the integer 1; expected true")
        );
        assert!(error("gpu.streams = 1.5").contains("is the float 1.5; expected an integer from 1"));
        assert!(error("select.order = 'cuda'").contains("is the string \"cuda\"; expected an array"));
        assert!(error("log.filter = 2020-01-01").contains("is the date or time 2020-01-01; expected a string"));
        assert_eq!(error("threads = 4"), "<text>:1:11: `threads` is the integer 4; expected a section [threads]");
        assert_eq!(error("[[threads]]\ncount = 4"), "<text>:1:1: `threads` is an array; expected a section [threads]");
    }

    #[test]
    fn a_value_out_of_range_is_refused() {
        for text in [
            "threads.count = 0",
            "threads.count = 65536",
            "threads.count = -1",
            "run.batch = 0",
            "run.seed = 18446744073709551616",
            "memory.pool = 0",
            "memory.pool = '1G'",
            "select.isa = 'sse2'",
            "select.device = 'cuda:'",
            "select.device = 'cuda:-1'",
            "select.backend = 'CUDA'",
            "tune.shapes = ['1x2']",
            "tune.shapes = ['1x0x2']",
            "tune.cache = 'relative'",
            "plugins.paths = ['']",
            "log.filter = ''",
        ] {
            let message = error(text);
            assert!(message.starts_with("<text>:1:") && message.contains("; expected "), "{text}: {message}");
        }
    }

    #[test]
    fn an_element_is_reported_at_its_own_place() {
        let message = error("[select]\norder = [\n  'cuda',\n  'No Such',\n]");
        assert!(
            message.starts_with("<text>:4:3: `select.order` is the string \"No Such\"; expected a backend id"),
            "{message}"
        );
    }

    #[test]
    fn the_first_fault_from_the_top_is_reported() {
        assert!(error("[threads]\ncount = 0\n[gpu]\nstreams = 0").starts_with("<text>:2:"));
    }

    #[test]
    fn text_that_is_not_toml_is_refused_with_its_place() {
        assert!(error("[threads]\ncount = = 4").starts_with("<text>:2:9: not TOML: "));
        assert!(error("[threads]\ncount = 4\ncount = 5").starts_with("<text>:3:1: not TOML: duplicate key"));
        assert!(error("[threads").starts_with("<text>:1:9: not TOML: "));
    }

    #[test]
    fn columns_count_characters_and_windows_line_ends_count_once() {
        let message = error("# \u{fc}\u{fc}\r\nlog = { filter = '\u{fc}\u{fc}', x = 1 }\r\n");
        assert!(message.starts_with("<text>:2:24: unknown key `log.x`"), "{message}");
    }

    #[test]
    fn all_spellings_of_an_integer_are_read() {
        for text in ["16", "+16", "1_6", "0x10", "0o20", "0b1_0000"] {
            let config = Config::from_toml_str(&format!("threads.count = {text}")).unwrap();
            assert_eq!(config.threads.count.map(|n| n.get()), Some(16), "{text}");
        }
    }
}
