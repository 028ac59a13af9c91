//! Why a plugin's tables are refused.

/// Why [`super::Plugin::connect`] refuses a plugin.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The exported symbol answered with another status than success.
    #[error("tersor_plugin_v1 answered status {status} ({name})")]
    Refused {
        /// The status.
        status: i32,
        /// Its name.
        name: &'static str,
    },
    /// A pointer to a table is null or misaligned.
    #[error("the plugin's {what} is null or misaligned")]
    Null {
        /// The struct.
        what: &'static str,
    },
    /// A table is shorter than version 1.0 knows it.
    #[error("the plugin's {what} says that it has {size} bytes; version 1.0 of the ABI has {need}")]
    Short {
        /// The struct.
        what: &'static str,
        /// Its `struct_size`.
        size: u32,
        /// The least that is accepted.
        need: u32,
    },
    /// No backends, or absurdly many.
    #[error("the plugin lists {count} backends; from 1 to {most} are possible")]
    Backends {
        /// The count given.
        count: u64,
        /// The most that are accepted.
        most: u64,
    },
    /// A name that is no text.
    #[error("{what} is no UTF-8 text of 1 to {most} bytes (it says {len} bytes)")]
    Text {
        /// Which.
        what: &'static str,
        /// The length given.
        len: u64,
        /// The most that are accepted.
        most: u64,
    },
    /// A backend id of other characters.
    #[error("backend id {id:?} is none: lower case letters, digits, \"-\", \"_\" and \".\", a letter first")]
    Id {
        /// The id given.
        id: &'static str,
    },
    /// A mandatory function is missing.
    #[error("backend {backend}: the function {function} is null")]
    NullFunction {
        /// Backend id.
        backend: &'static str,
        /// The function.
        function: &'static str,
    },
}
