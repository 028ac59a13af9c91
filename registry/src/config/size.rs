//! Numbers of bytes with units.

use std::fmt;
use std::str::FromStr;

use serde_json::{Value as Json, json};

use super::setting::{Problem, Raw, Setting, Value};
use super::types::NotAValue;

/// A number of bytes, at least one: a TOML integer, or text with a unit (`"1GB"` is 10^9 bytes, `"1GiB"` is 2^30).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

/// The units a size may have.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

impl ByteSize {
    /// The number of bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = NotAValue;

    /// Digits, then a unit or nothing, with or without a space between. `K`, `M` and `G` alone are refused: half of the
    /// world reads them as powers of two, the other half as powers of ten.
    fn from_str(text: &str) -> Result<Self, NotAValue> {
        let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(unit_at);
        let unit = unit.trim_start();
        let factor = match UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) {
            Some((_, factor)) => *factor,
            None if unit.is_empty() => 1,
            None => return Err(NotAValue),
        };
        let count: u64 = digits.parse().map_err(|_| NotAValue)?;
        count.checked_mul(factor).filter(|bytes| *bytes > 0).map(ByteSize).ok_or(NotAValue)
    }
}

impl fmt::Display for ByteSize {
    /// In the largest unit that keeps the number whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS.into_iter().filter(|(_, factor)| self.0.is_multiple_of(*factor));
        let (unit, factor) = whole.max_by_key(|(_, factor)| *factor).unwrap_or(("B", 1));
        f.pad(&format!("{}{unit}", self.0 / factor))
    }
}

impl Setting for ByteSize {
    fn expected() -> String {
        "a size of at least one byte: a whole number of bytes, or one with a unit (B, kB, MB, GB, TB, KiB, MiB, GiB, TiB) \
         such as \"512MiB\""
            .into()
    }

    fn read(raw: Raw<'_>) -> Result<Self, Problem> {
        let size = match raw.integer() {
            Some(bytes) => Some(ByteSize(bytes)).filter(|size| size.0 > 0),
            None => raw.text().and_then(|text| text.parse().ok()),
        };
        size.ok_or_else(|| raw.problem(Self::expected()))
    }

    fn value(&self) -> Value {
        Value::Text(self.to_string())
    }

    fn schema() -> Json {
        json!({ "anyOf": [
            { "type": "integer", "minimum": 1 },
            { "type": "string", "pattern": "^[0-9]+ *([kKmMgGtT]?[bB]|[kKmMgGtT][iI][bB])?$" },
        ] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Option<u64> {
        text.parse::<ByteSize>().ok().map(ByteSize::bytes)
    }

    #[test]
    fn decimal_and_binary_units_differ() {
        assert_eq!(bytes("1GB"), Some(1_000_000_000));
        assert_eq!(bytes("1GiB"), Some(1 << 30));
        assert_eq!(bytes("512 mib"), Some(512 << 20));
        assert_eq!(bytes("4096"), Some(4096));
        assert_eq!(bytes("7B"), Some(7));
    }

    #[test]
    fn ambiguous_empty_and_overflowing_sizes_are_refused() {
        for text in ["", "GB", "1G", "1.5GB", "-1", "+1", "0", "0GB", "99999999TiB", "1GB2", "1 G B"] {
            assert_eq!(bytes(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_size_is_shown_so_that_it_reads_back() {
        for size in [1, 1000, 1024, 1_000_000_000, 3 << 30, 1_073_741_825, u64::MAX] {
            let shown = ByteSize(size).to_string();
            assert_eq!(bytes(&shown), Some(size), "{shown}");
        }
        assert_eq!(ByteSize(2_000_000_000).to_string(), "2GB");
    }
}
