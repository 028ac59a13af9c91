//! Where the rows of a pass stand: positions for the rotation, rows of the cache, and what each row sees of it.

use tersor_core::{Buffer, In, Span, Stream};

use crate::error::Result;

use super::buffers::Allocator;

/// Where the rows of a pass stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    /// `rows` positions of the one sequence of the cache, from `first` on.
    Run { first: usize, rows: usize },
    /// As the entries of the tables say, `rows` of them from `from` on.
    Table { from: usize, rows: usize },
}

impl At {
    pub(crate) fn rows(self) -> usize {
        match self {
            At::Run { rows, .. } | At::Table { rows, .. } => rows,
        }
    }
}

/// Several sequences in one cache: sequence s has the cache rows from s x capacity on.
#[derive(Debug)]
struct Tables {
    /// Position of a row in its sequence.
    positions: Buffer<u32>,
    /// Its row of the cache.
    places: Buffer<u32>,
    /// The first cache row of its sequence. One for each row of a pass: rows of the next pass follow the same sequences.
    first: Buffer<u32>,
    /// Cache rows of a sequence.
    capacity: usize,
}

/// Positions in the backend's memory, so that a pass names them without a transfer.
#[derive(Debug)]
pub(crate) struct Places {
    /// 0, 1, 2, .. capacity: the positions of any run of tokens are a range of it.
    count: Buffer<u32>,
    tables: Option<Tables>,
}

/// What the host writes into the tables.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    pub(crate) positions: Vec<u32>,
    pub(crate) places: Vec<u32>,
    pub(crate) first: Vec<u32>,
}

impl Entries {
    pub(crate) fn clear(&mut self) {
        self.positions.clear();
        self.places.clear();
        self.first.clear();
    }
}

impl Places {
    /// For one sequence; with `tables` for several: room for so many entries, and for passes of so many rows.
    pub(crate) fn new(
        a: &mut Allocator<'_>,
        stream: &mut dyn Stream,
        capacity: usize,
        tables: Option<(usize, usize)>,
    ) -> Result<Self> {
        let mut count = a.get(capacity + 1, 1)?;
        count.write(stream, &(0..=capacity as u32).collect::<Vec<_>>())?;
        let tables = match tables {
            None => None,
            Some((entries, rows)) => Some(Tables {
                positions: a.get(entries, 1)?,
                places: a.get(entries, 1)?,
                first: a.get(rows, 1)?,
                capacity,
            }),
        };
        Ok(Places { count, tables })
    }

    /// Writes the tables from their beginning, those that there is something for.
    pub(crate) fn write(&mut self, stream: &mut dyn Stream, entries: &Entries) -> Result<()> {
        if let Some(t) = &mut self.tables {
            for (table, column) in [
                (&mut t.positions, &entries.positions),
                (&mut t.places, &entries.places),
                (&mut t.first, &entries.first),
            ] {
                if !column.is_empty() {
                    table.write(stream, column)?;
                }
            }
        }
        Ok(())
    }

    /// The tables, for passes that stand in them. Where there are none, no pass does.
    fn range(&self, at: At, column: impl Fn(&Tables) -> &Buffer<u32>) -> In<'_, u32> {
        match (at, &self.tables) {
            (At::Table { from, rows }, Some(t)) => column(t).input_range(from..from + rows),
            (At::Run { first, rows } | At::Table { from: first, rows }, _) => {
                self.count.input_range(first..first + rows)
            }
        }
    }

    /// Position of each row in its sequence: for the rotation, and as the step that a token is drawn at.
    pub(crate) fn positions(&self, at: At) -> In<'_, u32> {
        self.range(at, |t| &t.positions)
    }

    /// Cache row of each row.
    pub(crate) fn rows(&self, at: At) -> In<'_, u32> {
        self.range(at, |t| &t.places)
    }

    /// What each row sees of the cache.
    pub(crate) fn span(&self, at: At) -> Option<Span<'_>> {
        match (at, &self.tables) {
            (At::Table { rows, .. }, Some(t)) => {
                Some(Span { first: t.first.input_range(0..rows), longest: t.capacity })
            }
            _ => None,
        }
    }
}
