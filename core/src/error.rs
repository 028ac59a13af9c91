//! What can go wrong, said so that a program can act on the fields and a person on the message.

use crate::{DType, Format, Shape};

/// The result type of this crate and of every backend.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the core vocabulary or of a backend. Each says what is wrong, where, and what would be right.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A NaN or an infinity where a finite number is needed.
    #[error("{what}: element {index} is {value}; every element must be finite")]
    NotFinite {
        /// The operand.
        what: &'static str,
        /// Flat (row-major) index of the first such element.
        index: usize,
        /// The element.
        value: f32,
    },
    /// A slice or buffer of the wrong length.
    #[error("{what}: {got} elements given, {need} needed ({why})")]
    Length {
        /// The operand.
        what: &'static str,
        /// Elements needed.
        need: usize,
        /// Elements given.
        got: usize,
        /// Where the needed length comes from.
        why: String,
    },
    /// A shape that cannot be.
    #[error("shape {rows} x {cols}: {reason}")]
    Shape {
        /// Rows given.
        rows: usize,
        /// Columns given.
        cols: usize,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// A row length that a format cannot hold.
    #[error("{format} holds rows of a multiple of {unit} values, not {cols}; formats that fit {cols}: {fits}")]
    Unit {
        /// The format.
        format: Format,
        /// Its unit, in values.
        unit: usize,
        /// The row length given.
        cols: usize,
        /// Ids of the formats that could hold it.
        fits: String,
    },
    /// A code that the format does not define.
    #[error("{format}: invalid code {code} at byte {byte} (row {row}, column {col}); valid codes are {valid}")]
    InvalidCode {
        /// The format.
        format: Format,
        /// The code found.
        code: u8,
        /// Offset of the byte from the start of the codes.
        byte: usize,
        /// Row of the value.
        row: usize,
        /// Column of the first value that the code stands for.
        col: usize,
        /// What the format allows.
        valid: &'static str,
    },
    /// An integer that is no ternary value.
    #[error("element {index} is {value}; ternary values are -1, 0 and +1")]
    NotTernary {
        /// Flat (row-major) index.
        index: usize,
        /// The value found.
        value: i8,
    },
    /// A scale that the format cannot store.
    #[error("{format} cannot store scale {scale}: {reason}")]
    Scale {
        /// The format.
        format: Format,
        /// The scale.
        scale: f32,
        /// Why not, and what would be right.
        reason: &'static str,
    },
    /// Several different scales for a format that stores one.
    #[error(
        "{format} stores one scale a tensor, but the weight has {distinct} different ones (the first two: {first} and {other}); use a format with block scales"
    )]
    ManyScales {
        /// The format.
        format: Format,
        /// Number of different scales.
        distinct: usize,
        /// The first scale.
        first: f32,
        /// The first scale that differs from it.
        other: f32,
    },
    /// An index outside its range.
    #[error("{what}: entry {at} is {value}, but must be below {limit}")]
    OutOfRange {
        /// The operand.
        what: &'static str,
        /// Position of the entry.
        at: usize,
        /// Its value.
        value: usize,
        /// The first value that is too large.
        limit: usize,
    },
    /// An operand of a type that the operation does not take here.
    #[error("{what} is {got:?}, but must be {need}")]
    Type {
        /// The operand.
        what: &'static str,
        /// Its type.
        got: DType,
        /// What would be right.
        need: &'static str,
    },
    /// A parameter outside its domain.
    #[error("{what} is {value}, but must be {need}")]
    Parameter {
        /// The parameter.
        what: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        need: &'static str,
    },
    /// A backend does not do this.
    #[error("backend {backend} does not do {op}: {reason}")]
    Unsupported {
        /// Backend id.
        backend: String,
        /// The op asked for.
        op: String,
        /// Why not.
        reason: String,
    },
    /// A packed weight handed to a backend that did not make it.
    #[error("this weight was packed by {made_by} and cannot be used by {given_to}; call pack of {given_to}")]
    ForeignPack {
        /// Who packed it.
        made_by: String,
        /// Who was given it.
        given_to: String,
    },
    /// An operand in the wrong memory.
    #[error("{what} is in {found} memory, but {backend} works on {need} memory; {remedy}")]
    Memory {
        /// The operand.
        what: &'static str,
        /// Where it is.
        found: &'static str,
        /// The backend.
        backend: String,
        /// Where it has to be.
        need: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// No memory, or a budget used up.
    #[error("{backend}: {need} bytes are needed, {available} are available ({budget})")]
    OutOfMemory {
        /// The backend.
        backend: String,
        /// Bytes asked for.
        need: usize,
        /// Bytes that could be had.
        available: usize,
        /// What sets the limit.
        budget: &'static str,
    },
    /// The backend cannot be opened on this machine.
    #[error("backend {backend} cannot be used here: {reason}")]
    Unusable {
        /// Backend id.
        backend: String,
        /// The probe's reason.
        reason: String,
    },
    /// A device or driver reported a failure.
    #[error("{backend}: {message}")]
    Device {
        /// Backend id.
        backend: String,
        /// What it reported.
        message: String,
    },
    /// A name that is none of the known ones.
    #[error("unknown {kind} {given:?}; valid: {valid}")]
    UnknownName {
        /// What was being named.
        kind: &'static str,
        /// The name given.
        given: String,
        /// The valid names.
        valid: String,
    },
    /// The host asked for the work to stop.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    pub(crate) fn shape(shape: Shape, reason: impl Into<String>) -> Self {
        Error::Shape { rows: shape.rows(), cols: shape.cols(), reason: reason.into() }
    }

    /// `Ok` when `got == need`, otherwise [`Error::Length`]. `why` says where the needed length comes from.
    pub fn expect_len(what: &'static str, got: usize, need: usize, why: impl FnOnce() -> String) -> Result<()> {
        if got == need { Ok(()) } else { Err(Error::Length { what, need, got, why: why() }) }
    }
}
