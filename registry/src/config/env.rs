//! The layer of environment variables.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use super::Config;
use super::diagnostics::{ConfigError, Origin, Warning};
use super::key::{Effect, Key};
use super::layers;
use super::nearest::{nearest_variable, variables};
use super::schema::KEYS;
use super::setting::Raw;

/// A variable that starts like ours and is no configuration key.
#[derive(Debug)]
pub struct OtherVariable {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub doc: &'static str,
    /// Whether setting it changes anything yet.
    pub effect: Effect,
}

/// The variables of ours that have no key.
pub static OTHER_VARIABLES: &[OtherVariable] = &[
    OtherVariable {
        name: "TERSOR_CONFIG",
        doc: "The configuration file to read, where the caller names none. It must exist.",
        effect: Effect::Now,
    },
    OtherVariable {
        name: "TERSOR_PLUGIN_PATH",
        doc: "Further places to look for plugins, parted as in `PATH`; only absolute ones count.",
        effect: Effect::Now,
    },
    OtherVariable {
        name: "TERSOR_REQUIRE",
        doc: "Test suites: the instruction sets whose tests must run rather than skip.",
        effect: Effect::Now,
    },
    OtherVariable {
        name: "TERSOR_REGENERATE",
        doc: "Test suites: `1` writes generated documentation instead of checking it.",
        effect: Effect::Now,
    },
];

/// A snapshot of the environment. Handed in rather than read, so that tests need not change that of the process.
pub(super) struct Environment<'a>(pub(super) &'a [(OsString, OsString)]);

impl<'a> Environment<'a> {
    fn raw(&self, name: &str) -> Option<&'a OsStr> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_os_str())
    }

    /// A variable that, by convention, counts as unset when it is empty.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.raw(name).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    /// A variable of ours.
    fn text(&self, name: &str) -> Result<Option<&'a str>, ConfigError> {
        let unreadable = || ConfigError::NotUnicode { variable: name.to_owned() };
        self.raw(name).map(|value| value.to_str().ok_or_else(unreadable)).transpose()
    }

    /// The directory of the user's configuration: the XDG base directory rules, by which a relative path is ignored.
    pub(super) fn user_config_dir(&self) -> Option<PathBuf> {
        let absolute = |path: &PathBuf| path.is_absolute();
        let home = || self.path("HOME").filter(absolute).map(|home| home.join(".config"));
        self.path("XDG_CONFIG_HOME").filter(absolute).or_else(home)
    }

    /// Lays the variables over what the configuration holds.
    pub(super) fn apply(&self, config: &mut Config) -> Result<(), ConfigError> {
        self.apply_rayon(config);
        for key in KEYS {
            let variable = key.variable();
            let short = key.alias.map(|alias| Ok((alias, self.text(alias)?))).transpose()?;
            let (name, text) = match (self.text(&variable)?, short) {
                (Some(long), Some((alias, Some(short)))) if long != short => {
                    return Err(ConfigError::Ambiguous { key: key.path, variable, alias });
                }
                (Some(long), _) => (variable, long),
                (None, Some((alias, Some(short)))) => (alias.to_owned(), short),
                (None, _) => continue,
            };
            layers::set(config, key, Raw::Text(text), Origin::Env(name))?;
        }
        self.warn_of_variables(config);
        Ok(())
    }

    /// Rayon's own variable is honoured for those who set it for all their programs. As in Rayon, 0 stands for "auto"; what
    /// Rayon would ignore is ignored, but not in silence.
    fn apply_rayon(&self, config: &mut Config) {
        const NAME: &str = "RAYON_NUM_THREADS";
        let Some(value) = self.raw(NAME).filter(|value| !value.is_empty() && *value != "0") else { return };
        let set = match (value.to_str(), Key::find("threads.count")) {
            (Some(text), Some(key)) => layers::set(config, key, Raw::Text(text), Origin::Env(NAME.into())).is_ok(),
            _ => false,
        };
        if !set {
            config.warnings.push(Warning::RayonIgnored { value: value.to_string_lossy().into_owned() });
        }
    }

    /// Warns of variables that start like ours and change nothing, in the order of their names.
    fn warn_of_variables(&self, config: &mut Config) {
        let known: Vec<String> = variables().collect();
        let mut names: Vec<&str> = self.0.iter().filter_map(|(name, _)| name.to_str()).collect();
        names.retain(|name| name.starts_with("TERSOR_"));
        names.sort_unstable();
        config.warnings.extend(names.into_iter().filter_map(|name| {
            if let Some(other) = OTHER_VARIABLES.iter().find(|other| other.name == name) {
                let origin = Origin::Env(name.to_owned());
                return (other.effect == Effect::Later).then_some(Warning::NotYetEffective { key: other.name, origin });
            }
            let variable = name.to_owned();
            let unknown = !known.contains(&variable);
            unknown.then(|| Warning::UnknownVariable { nearest: nearest_variable(name), variable })
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::super::LoadOptions;
    use super::*;

    fn load(variables: &[(&str, &str)]) -> Result<Config, String> {
        let env = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Config::load(&LoadOptions { env, ..LoadOptions::default() }).map_err(|error| error.to_string())
    }

    fn warnings(variables: &[(&str, &str)]) -> Vec<String> {
        load(variables).unwrap().warnings().iter().map(Warning::to_string).collect()
    }

    #[test]
    fn every_key_has_a_variable_of_the_same_meaning() {
        for key in KEYS {
            let default = (key.get)(&Config::default());
            let text = match key.default_value() {
                super::super::Value::Text(text) => text,
                super::super::Value::List(_) => String::new(),
                other => other.to_string(),
            };
            for name in [Some(key.variable()), key.alias.map(str::to_owned)].into_iter().flatten() {
                let config = load(&[(&name, &text)]).unwrap();
                assert_eq!((key.get)(&config), default, "{name}");
                assert_eq!(config.origin(key.path), Some(&Origin::Env(name)));
            }
        }
    }

    #[test]
    fn no_two_keys_share_a_variable() {
        let mut names: Vec<String> = variables().collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn zero_and_false_are_off_one_and_true_are_on_and_nothing_else_is_a_boolean() {
        for (text, on) in [("0", false), ("false", false), ("1", true), ("true", true)] {
            assert_eq!(load(&[("TERSOR_RUN_DETERMINISTIC", text)]).unwrap().run.deterministic, on, "{text}");
        }
        for text in ["", "yes", "TRUE", "2"] {
            let message = load(&[("TERSOR_RUN_DETERMINISTIC", text)]).unwrap_err();
            let start = format!("TERSOR_RUN_DETERMINISTIC: `run.deterministic` is {text:?}; expected true or false");
            assert!(message.starts_with(&start), "{message}");
        }
    }

    #[test]
    fn lists_are_parted_by_commas_paths_as_in_path_and_empty_is_empty() {
        let config = load(&[
            ("TERSOR_SELECT_ORDER", "cuda, cpu-avx2"),
            ("TERSOR_SELECT_DENY", ""),
            ("TERSOR_THREADS_AFFINITY", "0,2,4"),
            ("TERSOR_PLUGINS_PATHS", "/a,b:/c"),
            ("TERSOR_PLUGINS_ALLOW", &format!("acme,other@{}", "0f".repeat(32))),
        ])
        .unwrap();
        assert_eq!(config.get("select.order").unwrap().to_string(), r#"["cuda", "cpu-avx2"]"#);
        assert!(config.select.deny.is_empty());
        assert_eq!(config.threads.affinity, [0, 2, 4]);
        assert_eq!(config.plugins.paths, [PathBuf::from("/a,b"), PathBuf::from("/c")]);
        assert_eq!(config.plugins.allow[1].sha256, Some("0f".repeat(32)));
    }

    #[test]
    fn an_unknown_variable_of_ours_is_warned_of_with_the_nearest_name() {
        assert_eq!(
            warnings(&[
                ("TERSOR_THREAD", "4"),
                ("TERSOR_FLAVOUR", "sweet"),
                ("OTHER", "x"),
                ("TERSOR_REQUIRE", "avx2")
            ]),
            [
                "TERSOR_FLAVOUR: nothing reads this environment variable",
                "TERSOR_THREAD: nothing reads this environment variable; did you mean TERSOR_THREADS?",
            ]
        );
    }

    #[test]
    fn a_variable_without_effect_is_warned_of() {
        for other in OTHER_VARIABLES.iter().filter(|other| other.name != "TERSOR_CONFIG") {
            assert_eq!(
                warnings(&[(other.name, "/x")]).len(),
                usize::from(other.effect == Effect::Later),
                "{}",
                other.name
            );
        }
    }

    #[test]
    fn a_variable_and_its_alias_may_agree_but_not_differ() {
        assert!(load(&[("TERSOR_THREADS", "4"), ("TERSOR_THREADS_COUNT", "4")]).is_ok());
        let message = load(&[("TERSOR_THREADS", "4"), ("TERSOR_THREADS_COUNT", "5")]).unwrap_err();
        assert!(message.starts_with("TERSOR_THREADS_COUNT and TERSOR_THREADS both set `threads.count`"), "{message}");
    }

    #[test]
    fn rayon_s_variable_is_weaker_than_ours_and_stronger_than_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tersor.toml");
        std::fs::write(&file, "threads.count = 2").unwrap();
        let count = |env: &[(&str, &str)]| {
            let env = env.iter().map(|(name, value)| (name.into(), value.into())).collect();
            let config = Config::load(&LoadOptions { env, ..LoadOptions::default() }.file(&file)).unwrap();
            let ignored = config.warnings().iter().filter(|it| matches!(it, Warning::RayonIgnored { .. })).count();
            (config.threads.count.map(|n| n.get()), ignored)
        };
        assert_eq!(count(&[("RAYON_NUM_THREADS", "3")]), (Some(3), 0));
        assert_eq!(count(&[("RAYON_NUM_THREADS", "3"), ("TERSOR_THREADS", "4")]), (Some(4), 0));
        assert_eq!(count(&[("RAYON_NUM_THREADS", "0")]), (Some(2), 0));
        assert_eq!(count(&[("RAYON_NUM_THREADS", "many")]), (Some(2), 1));
    }

    #[cfg(unix)]
    #[test]
    fn a_value_that_is_not_utf_8_is_refused_by_name() {
        use std::os::unix::ffi::OsStringExt;
        let env = vec![("TERSOR_LOG".into(), OsString::from_vec(vec![0xff]))];
        let error = Config::load(&LoadOptions { env, ..LoadOptions::default() }).unwrap_err();
        assert_eq!(error.to_string(), "TERSOR_LOG: the value is not UTF-8");
    }
}
