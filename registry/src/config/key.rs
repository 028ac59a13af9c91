//! What is known about a key, and how the one table of them is declared.

use serde_json::Value as Json;

use super::Config;
use super::setting::{Problem, Raw, Value};

/// Whether setting a key changes anything yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It does.
    Now,
    /// Not in this version: the key is checked and kept, and setting it is answered with a warning.
    Later,
}

/// One key of the configuration. All there is to know about it, so that files, the environment, messages, the reference
/// and the JSON schema cannot disagree.
#[derive(Debug)]
pub struct Key {
    /// The section, such as `threads` or `select.formats`.
    pub section: &'static str,
    /// The key with its section, such as `threads.count`.
    pub path: &'static str,
    /// What it does; the first line stands alone.
    pub doc: &'static str,
    /// A short name of [`variable`](Self::variable), where there is one.
    pub alias: Option<&'static str>,
    /// Whether setting it changes anything yet.
    pub effect: Effect,
    pub(super) expected: fn() -> String,
    pub(super) schema: fn() -> Json,
    pub(super) get: fn(&Config) -> Value,
    pub(super) set: fn(&mut Config, Raw<'_>) -> Result<(), Problem>,
}

impl Key {
    /// The environment variable of the same meaning: `threads.count` is `TERSOR_THREADS_COUNT`.
    pub fn variable(&self) -> String {
        format!("TERSOR_{}", self.path.to_uppercase().replace('.', "_"))
    }

    /// What a value must be, in words.
    pub fn expected(&self) -> String {
        (self.expected)()
    }

    /// The value when nobody sets it.
    pub fn default_value(&self) -> Value {
        (self.get)(&Config::default())
    }

    /// The first line of [`doc`](Self::doc).
    pub fn summary(&self) -> &'static str {
        self.doc.lines().next().unwrap_or_default().trim()
    }

    /// The key of this path.
    pub fn find(path: &str) -> Option<&'static Key> {
        super::schema::KEYS.iter().find(|key| key.path == path)
    }
}

/// A section of the file.
#[derive(Debug)]
pub struct Section {
    /// Its name in brackets, such as `select.formats`.
    pub path: &'static str,
    /// What it is about.
    pub doc: &'static str,
}

/// Declares sections: for each its struct, its defaults and its rows in `KEYS`, from one text. The documentation of a
/// field, the reference and the schema are thus the same words. `sub` names a section nested in this one.
macro_rules! sections {
    ($(
        $(#[doc = $section_doc:literal])+
        $section:ident $at:tt {
            $(
                $(#[doc = $doc:literal])+
                $effect:ident $field:ident: $ty:ty = $default:expr $(, alias $alias:literal)?;
            )+
            $(sub $sub:ident: $sub_ty:ident;)*
        }
    )+) => {
        $(
            $(#[doc = $section_doc])+
            #[derive(Clone, Debug, PartialEq, Eq)]
            pub struct $section {
                $(
                    $(#[doc = $doc])+
                    pub $field: $ty,
                )+
                $(
                    #[doc = concat!("The nested section [`", stringify!($sub_ty), "`].")]
                    pub $sub: $sub_ty,
                )*
            }

            impl Default for $section {
                fn default() -> Self {
                    $section { $($field: $default,)+ $($sub: Default::default(),)* }
                }
            }
        )+

        /// Every section, in the order of the reference.
        pub static SECTIONS: &[Section] = &[$(
            Section { path: dotted!($at), doc: concat!($($section_doc, "\n"),+) },
        )+];

        /// Every key, in the order of the reference.
        pub static KEYS: &[Key] = &[$($(
            Key {
                section: dotted!($at),
                path: concat!(dotted!($at), ".", stringify!($field)),
                doc: concat!($($doc, "\n"),+),
                alias: sections!(@alias $($alias)?),
                effect: Effect::$effect,
                expected: <$ty as Setting>::expected,
                schema: <$ty as Setting>::schema,
                get: |config| place!(config $at).$field.value(),
                set: |config, raw| {
                    place!(config $at).$field = Setting::read(raw)?;
                    Ok(())
                },
            },
        )+)+];
    };
    (@alias) => { None };
    (@alias $alias:literal) => { Some($alias) };
}

/// `[a.b]` becomes `"a.b"`.
macro_rules! dotted {
    ([$first:ident $(. $rest:ident)*]) => { concat!(stringify!($first) $(, ".", stringify!($rest))*) };
}

/// `config [a.b]` becomes `config.a.b`.
macro_rules! place {
    ($config:ident [$($at:ident).+]) => { $config.$($at).+ };
}

pub(super) use {dotted, place, sections};
