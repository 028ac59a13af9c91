//! The configuration, `tersor.toml`.
//!
//! A value is looked for in six places, the first that has it wins, each key by itself: command-line flags, the
//! environment, the file given, the user's file (`$XDG_CONFIG_HOME/tersor/tersor.toml`, else
//! `~/.config/tersor/tersor.toml`), the system's file (`/etc/tersor/tersor.toml`), the default. The current directory is
//! not searched: what a program does should not depend on where it was started.
//!
//! Three promises:
//! - Nothing is ignored. An unknown key or a value that makes no sense is an error with its file, line and column; a key
//!   that is understood but has no effect yet is a [`Warning`].
//! - Every value can say who set it: [`Config::origin`].
//! - One table ([`KEYS`]) declares the keys. The structs here, `docs/configuration.md` and `docs/tersor.schema.json` are
//!   made from it.
//!
//! ```
//! use tersor_registry::config::{Config, Origin};
//!
//! let config = Config::from_toml_str("[threads]\ncount = 4\n")?;
//! assert_eq!(config.threads.count.map(|n| n.get()), Some(4));
//! assert_eq!(config.origin("threads.count").map(Origin::to_string).as_deref(), Some("<text>:2:1"));
//! # Ok::<(), tersor_registry::config::ConfigError>(())
//! ```

mod allow;
mod diagnostics;
mod env;
mod file;
mod key;
mod layers;
mod nearest;
mod reference;
mod schema;
mod setting;
mod size;
mod types;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

pub use allow::AllowedPlugin;
pub use diagnostics::{ConfigError, Origin, Warning};
pub use env::{OTHER_VARIABLES, OtherVariable};
pub use key::{Effect, Key, Section};
pub use layers::{Flag, LoadOptions, SYSTEM_FILE};
pub use reference::{json_schema, markdown};
pub use schema::{Formats, Gpu, KEYS, Log, Memory, Plugins, Run, SECTIONS, Select, Threads, Tune};
pub use setting::Value;
pub use size::ByteSize;
pub use types::{BackendId, Device, ISA_IDS, IsaId, MatMulShape, NotAValue, TuneMode};

/// Whether a plugin may be called so.
pub(crate) fn is_plugin_name(name: &str) -> bool {
    types::is_id(name)
}

/// The configuration, every value checked and present. Who set a value is known for values that were loaded; a program
/// that changes a field afterwards changes the value only. To set keys so that they are accounted for, use
/// [`LoadOptions::flag`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Which backend runs.
    pub select: Select,
    /// The thread pool.
    pub threads: Threads,
    /// Memory budgets.
    pub memory: Memory,
    /// How inference runs.
    pub run: Run,
    /// Measuring which kernel is fastest.
    pub tune: Tune,
    /// GPU backends.
    pub gpu: Gpu,
    /// Backends from shared libraries.
    pub plugins: Plugins,
    /// Diagnostics.
    pub log: Log,
    origins: BTreeMap<&'static str, Origin>,
    warnings: Vec<Warning>,
}

/// One row of a listing of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The key: `threads.count`.
    pub key: &'static str,
    /// Its value; [`Display`](std::fmt::Display) writes TOML.
    pub value: Value,
    /// Who set it.
    pub origin: Origin,
    /// What it does, in a line.
    pub doc: &'static str,
    /// Whether setting it changes anything yet.
    pub effective: bool,
}

impl Config {
    /// Reads one document and nothing else. Messages call it `<text>`.
    pub fn from_toml_str(text: &str) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        file::apply(&mut config, Path::new("<text>"), text)?;
        config.finish()
    }

    /// Reads every layer that the options name.
    pub fn load(options: &LoadOptions) -> Result<Config, ConfigError> {
        layers::load(options)
    }

    /// Who set the key; `None` where there is no such key.
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        let key = Key::find(key)?;
        Some(self.origin_of(key.path))
    }

    /// The value of a key; `None` where there is no such key.
    pub fn get(&self, key: &str) -> Option<Value> {
        Key::find(key).map(|key| (key.get)(self))
    }

    /// Every key with its value and who set it, in the order of the reference.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        KEYS.iter().map(|key| Entry {
            key: key.path,
            value: (key.get)(self),
            origin: self.origin_of(key.path).clone(),
            doc: key.summary(),
            effective: key.effect == Effect::Now,
        })
    }

    /// What was accepted and should still be told to the user.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    fn origin_of(&self, path: &str) -> &Origin {
        self.origins.get(path).unwrap_or(&Origin::Default)
    }

    /// What can only be judged when all layers are in.
    fn finish(mut self) -> Result<Config, ConfigError> {
        let set_in_vain = KEYS.iter().filter(|key| key.effect == Effect::Later).filter_map(|key| {
            let origin = self.origins.get(key.path)?.clone();
            Some(Warning::NotYetEffective { key: key.path, origin })
        });
        self.warnings = set_in_vain.chain(self.warnings.iter().cloned()).collect();
        self.check_forced_backends()?;
        self.imply_deterministic()?;
        Ok(self)
    }

    /// A backend that is both forced and denied could only end in "nothing can run", far from the cause.
    fn check_forced_backends(&self) -> Result<(), ConfigError> {
        let forcing = KEYS.iter().filter(|key| key.path == "select.backend" || key.section == "select.formats");
        for key in forcing {
            let Value::Text(id) = (key.get)(self) else { continue };
            if self.select.deny.iter().any(|denied| denied.as_str() == id) {
                return Err(self.conflict(key.path, "select.deny", "a denied backend cannot be asked for"));
            }
        }
        Ok(())
    }

    /// `reproducible` implies `deterministic`: set it where nobody did, refuse where somebody said the opposite.
    fn imply_deterministic(&mut self) -> Result<(), ConfigError> {
        if !self.run.reproducible || self.run.deterministic {
            return Ok(());
        }
        if self.origins.contains_key("run.deterministic") {
            return Err(self.conflict("run.reproducible", "run.deterministic", "reproducible implies deterministic"));
        }
        self.run.deterministic = true;
        let implied_by = self.origin_of("run.reproducible").clone();
        self.origins.insert("run.deterministic", implied_by);
        Ok(())
    }

    fn conflict(&self, key: &'static str, other: &'static str, reason: &'static str) -> ConfigError {
        let (key_origin, other_origin) = (self.origin_of(key).clone(), self.origin_of(other).clone());
        ConfigError::Conflict { key, key_origin, other, other_origin, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Config::from_toml_str(text).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_document_is_the_default() {
        assert_eq!(Config::from_toml_str("").unwrap(), Config::default());
    }

    #[test]
    fn every_default_reads_back_as_itself() {
        let text: String = Config::default().entries().map(|it| format!("{} = {}\n", it.key, it.value)).collect();
        let read = Config::from_toml_str(&text).unwrap();
        for (default, read) in Config::default().entries().zip(read.entries()) {
            assert_eq!(default.value, read.value, "{}", default.key);
            assert_ne!(read.origin, Origin::Default, "{}", read.key);
        }
    }

    #[test]
    fn a_full_file_reads_into_the_fields() {
        let hash = "ab".repeat(32);
        let config = Config::from_toml_str(&format!(
            r#"
            [select]
            backend = "acme-amx"
            device = "cuda:1"
            order = ["cuda", "cpu-avx512"]
            deny = ["scalar"]
            isa = "avx512-vnni"
            formats = {{ tl1 = "cpu-avx2" }}
            [threads]
            count = 8
            affinity = [0, 2]
            [memory]
            pool = "1GB"
            zero_copy = false
            [run]
            deterministic = true
            reproducible = true
            seed = 18446744073709551615
            batch = 64
            [tune]
            mode = "on-miss"
            budget_ms = 0
            cache = "/var/cache/tersor"
            shapes = ["1x2560x6912"]
            [gpu]
            streams = 2
            [plugins]
            enabled = true
            paths = ["/opt/tersor"]
            probe_helper = "/usr/bin/tersor"
            allow = [{{ name = "acme-amx", sha256 = "{hash}" }}]
            [log]
            filter = "info,tersor=debug"
            "#
        ))
        .unwrap();
        assert_eq!(config.select.backend.as_ref().map(BackendId::as_str), Some("acme-amx"));
        assert_eq!(config.select.device, Device::Cuda { index: Some(1) });
        assert_eq!(config.select.order.len(), 2);
        assert_eq!(config.select.isa.map(IsaId::as_str), Some("avx512-vnni"));
        assert_eq!(config.select.formats.get("tl1").map(BackendId::as_str), Some("cpu-avx2"));
        assert_eq!(config.select.formats.get("tl2"), None);
        assert_eq!(config.threads.affinity, [0, 2]);
        assert_eq!(config.memory.pool.map(ByteSize::bytes), Some(1_000_000_000));
        assert_eq!(config.run.seed, Some(u64::MAX));
        assert_eq!(config.tune.shapes, [MatMulShape { m: 1, n: 2560, k: 6912 }]);
        assert_eq!(config.plugins.allow[0].sha256.as_deref(), Some(hash.as_str()));
        assert_eq!(config.log.filter, "info,tersor=debug");
        // Every key but the seven other formats was set.
        assert_eq!(config.entries().filter(|entry| entry.origin == Origin::Default).count(), 7);
    }

    #[test]
    fn each_format_key_is_found_by_the_id_of_its_format() {
        let keys: Vec<_> = KEYS.iter().filter(|key| key.section == "select.formats").collect();
        for key in keys {
            let config = Config::from_toml_str(&format!("{} = 'scalar'", key.path)).unwrap();
            let format = key.path.rsplit('.').next().unwrap();
            assert_eq!(config.select.formats.get(format).map(BackendId::as_str), Some("scalar"), "{format}");
        }
    }

    #[test]
    fn a_key_without_effect_is_answered_with_a_warning_and_no_other() {
        for key in KEYS {
            let config = Config::from_toml_str(&format!("{} = {}", key.path, key.default_value())).unwrap();
            let warnings: Vec<_> = config.warnings().iter().map(Warning::to_string).collect();
            let warning = format!("<text>:1:{}: `{}` is valid but has no effect yet", key.section.len() + 2, key.path);
            match key.effect {
                Effect::Now => assert!(warnings.is_empty(), "{warnings:?}"),
                Effect::Later => assert!(matches!(&warnings[..], [it] if it.starts_with(&warning)), "{warnings:?}"),
            }
        }
        assert!(Config::default().warnings().is_empty());
    }

    #[test]
    fn a_backend_cannot_be_forced_and_denied() {
        assert_eq!(
            error("[select]\nbackend = 'cuda'\ndeny = ['cuda']"),
            "`select.backend` (<text>:2:1) contradicts `select.deny` (<text>:3:1): a denied backend cannot be asked for"
        );
        assert!(error("[select]\nformats.tl1 = 'cuda'\ndeny = ['cuda']").contains("`select.formats.tl1` (<text>:2:"));
    }

    #[test]
    fn reproducible_implies_deterministic_and_says_so() {
        let config = Config::from_toml_str("run.reproducible = true").unwrap();
        assert!(config.run.deterministic);
        assert_eq!(config.origin("run.deterministic"), config.origin("run.reproducible"));
        let of_implied = |it: &&Warning| it.to_string().contains("`run.deterministic`");
        assert_eq!(config.warnings().iter().find(of_implied), None, "the user did not set the implied key");
        assert!(
            error("run.reproducible = true\nrun.deterministic = false").contains("reproducible implies deterministic")
        );
    }

    #[test]
    fn a_key_that_does_not_exist_has_neither_value_nor_origin() {
        assert_eq!(Config::default().origin("threads.cuont"), None);
        assert_eq!(Config::default().get("threads"), None);
    }
}
