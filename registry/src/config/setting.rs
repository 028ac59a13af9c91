//! How one value is read from TOML or from plain text, shown, and described.

use std::collections::BTreeMap;
use std::num::{NonZeroU16, NonZeroU32};
use std::ops::Range;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Value as Json, json};
use toml::Spanned;
use toml::de::DeValue;

/// A configuration value without its Rust type, for listing. [`Display`](std::fmt::Display) writes TOML.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number. Unlike TOML's own integers it reaches the end of `u64`, which a seed may need.
    Int(u64),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Value>),
    /// An inline table.
    Table(BTreeMap<&'static str, Value>),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Bool(value) => write!(f, "{value}"),
            Value::Int(value) => write!(f, "{value}"),
            // toml's writer knows which of the string forms needs no escapes.
            Value::Text(text) => write!(f, "{}", toml::Value::from(text.as_str())),
            Value::List(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            Value::Table(fields) => {
                f.write_str("{")?;
                for (i, (name, value)) in fields.iter().enumerate() {
                    write!(f, "{} {name} = {value}", if i == 0 { "" } else { "," })?;
                }
                f.write_str(" }")
            }
        }
    }
}

/// A value as its source wrote it: files are typed, flags and the environment are text.
#[derive(Clone, Copy)]
pub(crate) enum Raw<'a> {
    Toml(&'a Spanned<DeValue<'a>>),
    Text(&'a str),
}

/// Why a value was not accepted; the reader of the layer adds whose it was.
#[derive(Debug)]
pub(crate) struct Problem {
    /// Where in the file, when the value came from one.
    pub(crate) span: Option<Range<usize>>,
    pub(crate) kind: ProblemKind,
}

#[derive(Debug)]
pub(crate) enum ProblemKind {
    Invalid { found: String, expected: String },
    UnknownField { field: String, valid: &'static [&'static str] },
}

impl<'a> Raw<'a> {
    pub(crate) fn span(self) -> Option<Range<usize>> {
        match self {
            Raw::Toml(node) => Some(node.span()),
            Raw::Text(_) => None,
        }
    }

    pub(crate) fn text(self) -> Option<&'a str> {
        match self {
            Raw::Toml(node) => node.get_ref().as_str(),
            Raw::Text(text) => Some(text),
        }
    }

    pub(crate) fn integer(self) -> Option<u64> {
        match self {
            Raw::Toml(node) => {
                let digits = node.get_ref().as_integer()?;
                u64::from_str_radix(digits.as_str(), digits.radix()).ok()
            }
            Raw::Text(text) => text.parse().ok(),
        }
    }

    fn boolean(self) -> Option<bool> {
        match self {
            Raw::Toml(node) => node.get_ref().as_bool(),
            Raw::Text("1" | "true") => Some(true),
            Raw::Text("0" | "false") => Some(false),
            Raw::Text(_) => None,
        }
    }

    /// What a message says was found.
    fn found(self) -> String {
        match self {
            Raw::Text(text) => format!("{text:?}"),
            Raw::Toml(node) => match node.get_ref() {
                DeValue::String(text) => format!("the string {text:?}"),
                DeValue::Integer(digits) => format!("the integer {digits}"),
                DeValue::Float(digits) => format!("the float {digits}"),
                DeValue::Boolean(value) => format!("the boolean {value}"),
                DeValue::Datetime(value) => format!("the date or time {value}"),
                DeValue::Array(_) => "an array".into(),
                DeValue::Table(_) => "a table".into(),
            },
        }
    }

    pub(crate) fn problem(self, expected: String) -> Problem {
        self.invalid(&self.found(), expected)
    }

    pub(crate) fn invalid(self, found: &str, expected: String) -> Problem {
        let kind = ProblemKind::Invalid { found: found.to_owned(), expected };
        Problem { span: self.span(), kind }
    }
}

/// A type that a configuration key can have.
pub(crate) trait Setting: Sized {
    /// Parts the elements of a list of these in an environment variable or a flag.
    const SEPARATOR: char = ',';

    /// What would be right, to follow "expected": "an integer from 1 to 65535".
    fn expected() -> String;
    fn read(raw: Raw<'_>) -> Result<Self, Problem>;
    fn value(&self) -> Value;
    /// The JSON schema of the TOML form.
    fn schema() -> Json;
}

impl Setting for bool {
    fn expected() -> String {
        "true or false (in an environment variable or a flag also 1 or 0)".into()
    }
    fn read(raw: Raw<'_>) -> Result<Self, Problem> {
        raw.boolean().ok_or_else(|| raw.problem(Self::expected()))
    }
    fn value(&self) -> Value {
        Value::Bool(*self)
    }
    fn schema() -> Json {
        json!({ "type": "boolean" })
    }
}

/// The range is the type's own, so that a field's type already says what is legal.
macro_rules! integer_setting {
    ($($ty:ty: $low:expr, $high:expr;)+) => { $(
        impl Setting for $ty {
            fn expected() -> String {
                format!("an integer from {} to {}", $low, $high)
            }
            fn read(raw: Raw<'_>) -> Result<Self, Problem> {
                raw.integer().and_then(|n| <$ty>::try_from(n).ok()).ok_or_else(|| raw.problem(Self::expected()))
            }
            fn value(&self) -> Value {
                Value::Int((*self).into())
            }
            fn schema() -> Json {
                json!({ "type": "integer", "minimum": $low, "maximum": $high })
            }
        }
    )+ };
}

/// `NonZero` has no conversion from and to `u64` in one step.
macro_rules! positive_setting {
    ($($ty:ty, $inner:ty;)+) => { $(
        impl Setting for $ty {
            fn expected() -> String {
                format!("an integer from 1 to {}", <$inner>::MAX)
            }
            fn read(raw: Raw<'_>) -> Result<Self, Problem> {
                let number = raw.integer().and_then(|n| <$inner>::try_from(n).ok()).and_then(<$ty>::new);
                number.ok_or_else(|| raw.problem(Self::expected()))
            }
            fn value(&self) -> Value {
                Value::Int(self.get().into())
            }
            fn schema() -> Json {
                json!({ "type": "integer", "minimum": 1, "maximum": <$inner>::MAX })
            }
        }
    )+ };
}

integer_setting! { u16: 0, u16::MAX; u64: 0, u64::MAX; }
positive_setting! { NonZeroU16, u16; NonZeroU32, u32; }

impl Setting for String {
    fn expected() -> String {
        "a string that is not empty".into()
    }
    fn read(raw: Raw<'_>) -> Result<Self, Problem> {
        let text = raw.text().filter(|text| !text.is_empty());
        text.map(str::to_owned).ok_or_else(|| raw.problem(Self::expected()))
    }
    fn value(&self) -> Value {
        Value::Text(self.clone())
    }
    fn schema() -> Json {
        json!({ "type": "string", "minLength": 1 })
    }
}

impl Setting for PathBuf {
    /// That of `PATH`.
    const SEPARATOR: char = if cfg!(windows) { ';' } else { ':' };

    fn expected() -> String {
        "an absolute path".into()
    }
    /// Absolute, because a relative path would mean something else in every working directory, and a plugin must never
    /// come from the current one.
    fn read(raw: Raw<'_>) -> Result<Self, Problem> {
        let path = raw.text().map(PathBuf::from).filter(|path| path.is_absolute());
        path.ok_or_else(|| raw.problem(Self::expected()))
    }
    fn value(&self) -> Value {
        Value::Text(self.display().to_string())
    }
    fn schema() -> Json {
        json!({ "type": "string", "description": "An absolute path." })
    }
}

/// An optional value: `"auto"` is how a higher layer takes back what a lower one set, TOML having no null.
impl<T: Setting> Setting for Option<T> {
    fn expected() -> String {
        format!("{}, or \"auto\"", T::expected())
    }
    fn read(raw: Raw<'_>) -> Result<Self, Problem> {
        if raw.text() == Some("auto") {
            return Ok(None);
        }
        T::read(raw).map(Some).map_err(|problem| match problem.kind {
            ProblemKind::Invalid { .. } => raw.problem(Self::expected()),
            ProblemKind::UnknownField { .. } => problem,
        })
    }
    fn value(&self) -> Value {
        self.as_ref().map_or_else(|| Value::Text("auto".into()), T::value)
    }
    fn schema() -> Json {
        json!({ "anyOf": [T::schema(), { "const": "auto" }] })
    }
}

/// A list replaces the list of a lower layer. An element that is wrong is reported at its own place.
impl<T: Setting> Setting for Vec<T> {
    fn expected() -> String {
        format!("an array, each element {}", T::expected())
    }
    fn read(raw: Raw<'_>) -> Result<Self, Problem> {
        match raw {
            Raw::Toml(node) => match node.get_ref().as_array() {
                Some(items) => items.iter().map(|item| T::read(Raw::Toml(item))).collect(),
                None => Err(raw.problem(Self::expected())),
            },
            // `TERSOR_X=` empties a list.
            Raw::Text("") => Ok(Vec::new()),
            Raw::Text(text) => text.split(T::SEPARATOR).map(|item| T::read(Raw::Text(item.trim()))).collect(),
        }
    }
    fn value(&self) -> Value {
        Value::List(self.iter().map(T::value).collect())
    }
    fn schema() -> Json {
        json!({ "type": "array", "items": T::schema() })
    }
}
