//! Where a value came from, and what can be wrong with it.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// Where a value came from. [`Display`](fmt::Display) writes `tersor.toml:3:9`, `TERSOR_THREADS`, `--threads` or
/// `default`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Nobody set it.
    #[default]
    Default,
    /// A configuration file. Line and column count from 1, columns in characters.
    File {
        /// The file, as it was named.
        path: PathBuf,
        /// The line of the key.
        line: u32,
        /// The column of the key.
        column: u32,
    },
    /// This environment variable.
    Env(String),
    /// This command-line flag, or what else the caller of [`LoadOptions::flag`](super::LoadOptions::flag) named.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.pad("default"),
            Origin::File { path, line, column } => f.pad(&format!("{}:{line}:{column}", path.display())),
            Origin::Env(name) | Origin::Flag(name) => f.pad(name),
        }
    }
}

/// Why a configuration was refused. Every variant says where the fault is and what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file that was asked for, or that exists where Tersor looks, cannot be read.
    #[error("{}: the configuration file cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not TOML.
    #[error("{origin}: not TOML: {message}")]
    Syntax {
        /// Where.
        origin: Origin,
        /// What the TOML parser said.
        message: String,
    },
    /// A key or section that does not exist.
    #[error("{origin}: unknown key `{key}`; {}", suggestion(nearest.as_deref(), valid))]
    UnknownKey {
        /// Where.
        origin: Origin,
        /// The key with its section, such as `threads.cuont`.
        key: String,
        /// The valid key that resembles it most, where one does.
        nearest: Option<String>,
        /// The valid keys of that section.
        valid: Vec<String>,
    },
    /// A value of the wrong type, out of range or malformed.
    #[error("{origin}: `{key}` is {found}; expected {expected}")]
    Invalid {
        /// Where.
        origin: Origin,
        /// The key with its section.
        key: String,
        /// What was found.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// Two values that are each fine cannot both hold.
    #[error("`{key}` ({key_origin}) contradicts `{other}` ({other_origin}): {reason}")]
    Conflict {
        /// The one key.
        key: &'static str,
        /// Who set it.
        key_origin: Origin,
        /// The other key.
        other: &'static str,
        /// Who set that.
        other_origin: Origin,
        /// Why they cannot both hold.
        reason: &'static str,
    },
    /// A variable and its short alias are both set, to different values.
    #[error("{variable} and {alias} both set `{key}`, to different values; unset one of them")]
    Ambiguous {
        /// The key that both set.
        key: &'static str,
        /// The variable's full name.
        variable: String,
        /// Its short name.
        alias: &'static str,
    },
    /// A variable of ours holds something that is not UTF-8.
    #[error("{variable}: the value is not UTF-8")]
    NotUnicode {
        /// The variable.
        variable: String,
    },
}

/// The value was accepted; somebody should still know. [`Display`](fmt::Display) is a line for people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// A key or variable was set that this version understands but does not act on yet.
    NotYetEffective {
        /// The key, or the variable where it has no key.
        key: &'static str,
        /// Who set it.
        origin: Origin,
    },
    /// A variable starts like ours, and nothing here reads it.
    UnknownVariable {
        /// The variable.
        variable: String,
        /// The variable of ours that resembles it most, where one does.
        nearest: Option<String>,
    },
    /// `RAYON_NUM_THREADS` holds no usable number. It is not our variable, so that this is not an error.
    RayonIgnored {
        /// What it holds.
        value: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::NotYetEffective { key, origin } => {
                write!(f, "{origin}: `{key}` is valid but has no effect yet in this version")
            }
            Warning::UnknownVariable { variable, nearest: Some(nearest) } => {
                write!(f, "{variable}: nothing reads this environment variable; did you mean {nearest}?")
            }
            Warning::UnknownVariable { variable, nearest: None } => {
                write!(f, "{variable}: nothing reads this environment variable")
            }
            Warning::RayonIgnored { value } => {
                write!(f, "RAYON_NUM_THREADS: {value:?} is not a number from 1 to 65535; ignored")
            }
        }
    }
}

/// The end of the message on an unknown key.
fn suggestion(nearest: Option<&str>, valid: &[String]) -> String {
    match nearest {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None => format!("valid here: {}", valid.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_reads_like_a_compiler_s_position() {
        let origin = Origin::File { path: "a/tersor.toml".into(), line: 3, column: 9 };
        assert_eq!(origin.to_string(), "a/tersor.toml:3:9");
    }
}
