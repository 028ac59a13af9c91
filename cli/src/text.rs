//! Numbers and tables for people.

use std::io::{self, Write};

use tersor::core::BackendInfo;

/// Columns that line up. The first is flush left, the others as asked.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    left: &'static [usize],
}

impl Table {
    /// A table with these headings; `left` lists the columns besides the first that are flush left.
    pub(crate) fn new(headings: &[&str], left: &'static [usize]) -> Self {
        Table { rows: vec![headings.iter().map(|h| (*h).to_owned()).collect()], left }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Writes it.
    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |c: usize| self.rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (c, cell) in row.iter().enumerate() {
                let gap = if c == 0 { "" } else { "  " };
                let w = widths[c];
                if c == 0 || self.left.contains(&c) {
                    line += &format!("{gap}{cell:<w$}");
                } else {
                    line += &format!("{gap}{cell:>w$}");
                }
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// `1.5 MiB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `31.4 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// A float as JSON, with the fewest digits that read back as the same f32; `json!` would widen it to f64 and show 0.00001 as
/// 9.999999747378752e-6. What JSON has no number for is null.
pub(crate) fn json_f32(value: f32) -> serde_json::Value {
    serde_json::from_str(&serde_json::to_string(&value).unwrap_or_default()).unwrap_or_default()
}

/// `2560 x 6912`.
pub(crate) fn shape((rows, cols): (usize, usize)) -> String {
    format!("{rows} x {cols}")
}

/// `1 layer`, `2 layers`.
pub(crate) fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Text from a file, safe to print: control characters are escaped, and it is cut after `most` characters.
pub(crate) fn shown(text: &str, most: usize) -> String {
    let mut out: String = text
        .chars()
        .take(most)
        .flat_map(|c| {
            let escaped: Vec<char> = if c.is_control() { c.escape_default().collect() } else { vec![c] };
            escaped
        })
        .collect();
    if text.chars().nth(most).is_some() {
        out.push('…');
    }
    out
}

/// What the kernels of an open backend are for: an instruction set tier, or a device that is no CPU.
pub(crate) fn runs_on(info: &BackendInfo) -> String {
    match info.isa {
        Some(isa) => isa.id().to_owned(),
        None if info.is_host() => "portable code".to_owned(),
        None => info.device.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_without_trailing_blanks() {
        let mut table = Table::new(&["name", "n", "note"], &[2]);
        table.row(["a".to_owned(), "10".to_owned(), "x".to_owned()]);
        table.row(["long".to_owned(), "2".to_owned(), String::new()]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "name   n  note\na     10  x\nlong   2\n");
    }

    #[test]
    fn sizes_have_a_unit() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
    }

    #[test]
    fn floats_keep_their_short_form() {
        assert_eq!(json_f32(1e-5).to_string(), "0.00001");
        assert_eq!(json_f32(0.1).to_string(), "0.1");
        assert!(json_f32(f32::NAN).is_null());
    }

    #[test]
    fn a_file_cannot_write_escape_sequences_to_the_terminal() {
        assert_eq!(shown("a\u{1b}[31mb", 20), "a\\u{1b}[31mb");
        assert_eq!(shown("abcdef", 3), "abc…");
    }
}
