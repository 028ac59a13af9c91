//! The tensor table: names, shapes, types, and where the bytes lie.

use std::collections::HashMap;

use super::MAX_DIMS;
use super::cursor::{Cursor, malformed};
use super::types::{Dialect, GgmlType, Sizing};
use crate::error::{Error, Result};

/// One tensor's entry in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Dimensions as stored: the contiguous one first.
    pub dims: Vec<u64>,
    /// Its type, read in the file's dialect.
    pub ty: GgmlType,
    /// Where its bytes begin, counted from the start of the data section.
    pub offset: u64,
    /// Its bytes: exact where the type says so, otherwise everything up to the next tensor or the end of the file.
    pub len: u64,
}

impl TensorInfo {
    /// The length of a row: the contiguous dimension, K of a linear layer.
    #[must_use]
    pub fn cols(&self) -> u64 {
        self.dims.first().copied().unwrap_or(1)
    }

    /// The number of rows: all other dimensions together.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.dims.iter().skip(1).product()
    }
}

/// Reads entry `i` of the table.
pub(super) fn read_tensor_info(
    cursor: &mut Cursor<'_>,
    i: u64,
    dialect: Dialect,
    alignment: u64,
) -> Result<TensorInfo> {
    let name = cursor.string(&|| format!("name of tensor {i}"))?;
    let what = || format!("tensor {name:?}");
    let at = cursor.at();
    let n_dims = cursor.u32(&what)? as usize;
    if !(1..=MAX_DIMS).contains(&n_dims) {
        return Err(malformed(at, &what, format!("{n_dims} dimensions; 1 to {MAX_DIMS} are possible")));
    }
    let at = cursor.at();
    let dims = (0..n_dims).map(|_| cursor.u64(&what)).collect::<Result<Vec<_>>>()?;
    let elements = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
    if dims.contains(&0) || elements.is_none() {
        return Err(malformed(at, &what, format!("impossible dimensions {dims:?}")));
    }
    let ty = GgmlType::from_id(cursor.u32(&what)?, dialect);
    let at = cursor.at();
    let offset = cursor.u64(&what)?;
    if offset % alignment != 0 {
        return Err(malformed(
            at,
            &what,
            format!("data offset {offset} is not a multiple of the alignment {alignment}"),
        ));
    }
    let len = match (ty.sizing(), ty.byte_len(&dims)) {
        (_, Some(len)) => len,
        // Settled by `set_lengths`, when all offsets are known.
        (Sizing::Layout, None) => 0,
        (Sizing::Block { values, .. }, None) => {
            return Err(malformed(
                at,
                &what,
                format!("rows of {} values do not fit {ty}, whose blocks hold {values}", dims[0]),
            ));
        }
        (Sizing::CodesAndTail, None) => {
            return Err(malformed(at, &what, format!("{dims:?} values do not fill whole bytes of {ty}")));
        }
    };
    Ok(TensorInfo { name, dims, ty, offset, len })
}

/// Checks that all tensors lie inside the file and apart from each other, and bounds those whose type does not tell a size.
pub(super) fn set_lengths(tensors: &mut [TensorInfo], data_start: u64, file_size: u64) -> Result<()> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| tensors[i].offset);
    let data_len = file_size - data_start;
    for (n, &i) in order.iter().enumerate() {
        let next = order.get(n + 1).map(|&j| tensors[j].offset);
        let info = &mut tensors[i];
        let room = data_len.checked_sub(info.offset).ok_or_else(|| Error::Truncated {
            at: file_size,
            reading: format!("tensor {:?} at data offset {}", info.name, info.offset),
            needed: info.offset.saturating_add(info.len.max(1)),
            available: data_len,
        })?;
        let limit = next.map_or(room, |next| room.min(next - info.offset));
        if info.ty.sizing() == Sizing::Layout {
            info.len = limit;
        }
        if info.len > room {
            return Err(Error::Truncated {
                at: data_start + info.offset,
                reading: format!("tensor {:?} ({} {:?})", info.name, info.ty, info.dims),
                needed: info.len,
                available: room,
            });
        }
        if info.len > limit {
            return Err(Error::Malformed {
                at: data_start + info.offset,
                item: format!("tensor {:?}", info.name),
                problem: format!("its {} bytes run into the next tensor, which begins {limit} bytes on", info.len),
            });
        }
    }
    Ok(())
}

/// Positions by name; a name that occurs twice is an error.
pub(super) fn index_by_name(tensors: &[TensorInfo]) -> Result<HashMap<String, usize>> {
    let mut index = HashMap::with_capacity(tensors.len());
    for (i, info) in tensors.iter().enumerate() {
        if index.insert(info.name.clone(), i).is_some() {
            return Err(Error::tensor(&info.name, "occurs twice in the tensor table"));
        }
    }
    Ok(index)
}
