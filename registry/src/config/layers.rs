//! How the layers lie over each other: flags over the environment, over the file given, over the user's file, over the
//! system's, over the defaults. Each key is decided by itself, and whoever decided it is remembered.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::Config;
use super::diagnostics::{ConfigError, Origin};
use super::env::Environment;
use super::file;
use super::key::Key;
use super::nearest::{nearest, nearest_key};
use super::schema::KEYS;
use super::setting::{Problem, ProblemKind, Raw};

/// Where the system's file is.
pub const SYSTEM_FILE: &str = "/etc/tersor/tersor.toml";

/// What to load the configuration from. The default is nothing at all, so that a test or an embedder gets exactly the
/// layers it names; [`from_process`](Self::from_process) is what a program wants.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// The file given; it must exist. Without one, `TERSOR_CONFIG` in [`env`](Self::env) may name it.
    pub file: Option<PathBuf>,
    /// What the command line says, later ones over earlier ones.
    pub flags: Vec<Flag>,
    /// The environment.
    pub env: Vec<(OsString, OsString)>,
    /// The system's file, read where it exists.
    pub system_file: Option<PathBuf>,
}

/// A key set by a command-line flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// What the user wrote, for messages: `--threads`.
    pub name: String,
    /// The key: `threads.count`.
    pub key: String,
    /// The value, in the form that an environment variable has.
    pub value: String,
}

impl LoadOptions {
    /// The environment of the process and the system's file.
    pub fn from_process() -> Self {
        LoadOptions {
            env: std::env::vars_os().collect(),
            system_file: Some(SYSTEM_FILE.into()),
            ..LoadOptions::default()
        }
    }

    /// With this file given.
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// With a key set by a flag.
    pub fn flag(mut self, name: impl Into<String>, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.flags.push(Flag { name: name.into(), key: key.into(), value: value.into() });
        self
    }
}

/// Loads all layers, weakest first.
pub(super) fn load(options: &LoadOptions) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    let env = Environment(&options.env);
    let user_file = env.user_config_dir().map(|dir| dir.join("tersor").join("tersor.toml"));
    for path in [options.system_file.clone(), user_file].into_iter().flatten() {
        match fs::read_to_string(&path) {
            Ok(text) => file::apply(&mut config, &path, &text)?,
            // NotADirectory: "$HOME/.config" may be a file; then there is no configuration in it either.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(source) => return Err(ConfigError::Read { path, source }),
        }
    }
    if let Some(path) = options.file.clone().or_else(|| env.path("TERSOR_CONFIG")) {
        read_given(&mut config, &path)?;
    }
    env.apply(&mut config)?;
    for flag in &options.flags {
        let origin = Origin::Flag(flag.name.clone());
        let Some(key) = Key::find(&flag.key) else {
            let valid = KEYS.iter().map(|key| key.path.to_owned()).collect();
            let (key, nearest) = (flag.key.clone(), nearest_key(&flag.key));
            return Err(ConfigError::UnknownKey { origin, key, nearest, valid });
        };
        set(&mut config, key, Raw::Text(&flag.value), origin)?;
    }
    config.finish()
}

fn read_given(config: &mut Config, path: &Path) -> Result<(), ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    file::apply(config, path, &text)
}

/// Sets a key, and remembers who did.
pub(super) fn set(config: &mut Config, key: &'static Key, raw: Raw<'_>, origin: Origin) -> Result<(), ConfigError> {
    match (key.set)(config, raw) {
        Ok(()) => {
            config.origins.insert(key.path, origin);
            Ok(())
        }
        Err(problem) => Err(refuse(key.path, problem, origin)),
    }
}

/// The error of a value that was not accepted.
pub(super) fn refuse(key: &str, problem: Problem, origin: Origin) -> ConfigError {
    match problem.kind {
        ProblemKind::Invalid { found, expected } => ConfigError::Invalid { origin, key: key.into(), found, expected },
        ProblemKind::UnknownField { field, valid } => ConfigError::UnknownKey {
            origin,
            nearest: nearest(&field, valid).map(|name| format!("{key}.{name}")),
            valid: valid.iter().map(|name| format!("{key}.{name}")).collect(),
            key: format!("{key}.{field}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A home with a user's file, a system's file and a file given that set different keys to their own name.
    fn layered() -> (tempfile::TempDir, LoadOptions) {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        };
        write("home/.config/tersor/tersor.toml", "[threads]\ncount = 2\n[gpu]\nstreams = 2\n[log]\nfilter = 'user'");
        let options = LoadOptions {
            system_file: Some(write("system.toml", "[run]\nseed = 1\n[threads]\ncount = 1\n[gpu]\nstreams = 1")),
            file: Some(write("given.toml", "\n[threads]\ncount = 3")),
            env: vec![("HOME".into(), dir.path().join("home").into())],
            ..LoadOptions::default()
        };
        (dir, options)
    }

    fn count(config: &Config) -> Option<u16> {
        config.threads.count.map(std::num::NonZero::get)
    }

    #[test]
    fn each_key_is_decided_by_its_strongest_layer() {
        let (dir, mut options) = layered();
        let config = Config::load(&options).unwrap();
        assert_eq!((count(&config), config.gpu.streams.get(), config.run.seed), (Some(3), 2, Some(1)));
        assert_eq!(config.log.filter, "user");
        let given = Origin::File { path: dir.path().join("given.toml"), line: 3, column: 1 };
        assert_eq!(config.origin("threads.count"), Some(&given));
        assert_eq!(config.origin("run.batch"), Some(&Origin::Default));

        options.env.push(("TERSOR_THREADS".into(), "4".into()));
        let config = Config::load(&options).unwrap();
        assert_eq!(count(&config), Some(4));
        assert_eq!(config.origin("threads.count"), Some(&Origin::Env("TERSOR_THREADS".into())));

        let config = Config::load(&options.flag("--threads", "threads.count", "5")).unwrap();
        assert_eq!(count(&config), Some(5));
        assert_eq!(config.origin("threads.count"), Some(&Origin::Flag("--threads".into())));
    }

    #[test]
    fn auto_takes_back_what_a_weaker_layer_set() {
        let (_dir, options) = layered();
        let config = Config::load(&options.flag("--threads", "threads.count", "auto")).unwrap();
        assert_eq!(count(&config), None);
    }

    #[test]
    fn xdg_config_home_replaces_dot_config_and_counts_only_when_absolute() {
        let (dir, mut options) = layered();
        options.env.push(("XDG_CONFIG_HOME".into(), "relative".into()));
        assert_eq!(Config::load(&options).unwrap().log.filter, "user");
        options.env.pop();
        options.env.push(("XDG_CONFIG_HOME".into(), dir.path().join("elsewhere").into()));
        assert_eq!(Config::load(&options).unwrap().log.filter, "warn");
    }

    #[test]
    fn a_file_that_was_asked_for_must_exist() {
        let (dir, mut options) = layered();
        let missing = dir.path().join("missing.toml");
        let shown = missing.display().to_string();
        options.file = None;
        options.env.push(("TERSOR_CONFIG".into(), missing.clone().into()));
        assert!(Config::load(&options).unwrap_err().to_string().starts_with(&shown));
        options.env.pop();
        assert!(matches!(Config::load(&options.file(missing)), Err(ConfigError::Read { .. })));
    }

    #[test]
    fn files_that_nobody_asked_for_may_be_absent_but_not_faulty() {
        let dir = tempfile::tempdir().unwrap();
        let system_file = dir.path().join("tersor.toml");
        let options = LoadOptions { system_file: Some(system_file.clone()), ..LoadOptions::default() };
        assert_eq!(Config::load(&options).unwrap(), Config::default());
        // A directory where a file should be.
        fs::create_dir(system_file).unwrap();
        assert!(matches!(Config::load(&options), Err(ConfigError::Read { .. })));
    }

    #[test]
    fn a_faulty_value_is_refused_even_where_a_stronger_layer_sets_the_key() {
        let (dir, options) = layered();
        fs::write(dir.path().join("system.toml"), "threads.count = 0").unwrap();
        let message = Config::load(&options).unwrap_err().to_string();
        assert!(message.contains("system.toml:1:17: `threads.count` is the integer 0"), "{message}");
    }

    #[test]
    fn a_faulty_flag_is_named_as_the_user_wrote_it() {
        let options = LoadOptions::default().flag("--threads", "threads.count", "many");
        assert_eq!(
            Config::load(&options).unwrap_err().to_string(),
            "--threads: `threads.count` is \"many\"; expected an integer from 1 to 65535, or \"auto\""
        );
        let options = LoadOptions::default().flag("--set", "thread.count", "1");
        assert_eq!(
            Config::load(&options).unwrap_err().to_string(),
            "--set: unknown key `thread.count`; did you mean `threads.count`?"
        );
    }
}
