//! Sparse maps.

use super::header::{BLOCK, number};
use super::{Limits, Problem};

/// Appends the entries of an old GNU map; a field that begins with NUL ends it.
pub(super) fn gnu_entries(fields: &[u8], map: &mut Vec<(u64, u64)>, limits: &Limits) -> Result<(), Problem> {
    for field in fields.chunks_exact(24) {
        if field[0] == 0 {
            break;
        }
        if map.len() >= limits.extents {
            return Err(Problem::Limit("runs of data in a sparse file"));
        }
        let value = |field: &[u8]| {
            u64::try_from(number(field, "sparse map")?).map_err(|_| Problem::Field("sparse map"))
        };
        map.push((value(&field[..12])?, value(&field[12..])?));
    }
    Ok(())
}

/// Takes in the decimal lines of a 1.0 map block by block.
#[derive(Default)]
pub(super) struct LineMap {
    numbers: Vec<u64>,
    digits: Option<u64>,
    expected: Option<usize>,
}

impl LineMap {
    /// True when the map is complete; the rest of the block is padding.
    pub(super) fn block(&mut self, block: &[u8; BLOCK], limits: &Limits) -> Result<bool, Problem> {
        for c in block {
            match c {
                b'0'..=b'9' => {
                    let value = self.digits.unwrap_or(0);
                    let next = value.checked_mul(10).and_then(|v| v.checked_add(u64::from(c - b'0')));
                    self.digits = Some(next.ok_or(Problem::Field("sparse map"))?);
                }
                b'\n' => {
                    let value = self.digits.take().ok_or(Problem::Field("sparse map"))?;
                    match self.expected {
                        None => {
                            let count = usize::try_from(value).ok().filter(|count| *count <= limits.extents);
                            let count = count.ok_or(Problem::Limit("runs of data in a sparse file"))?;
                            self.expected = Some(count * 2);
                        }
                        Some(_) => self.numbers.push(value),
                    }
                    if self.expected == Some(self.numbers.len()) {
                        return Ok(true);
                    }
                }
                _ => return Err(Problem::Field("sparse map")),
            }
        }
        Ok(false)
    }

    pub(super) fn map(self) -> Vec<(u64, u64)> {
        self.numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
    }
}

/// Checks a map against the file's size and the bytes in the archive, and drops empty runs.
pub(super) fn checked(
    map: Vec<(u64, u64)>,
    size: u64,
    stored: u64,
    limits: &Limits,
) -> Result<Vec<(u64, u64)>, Problem> {
    if size > limits.sparse {
        return Err(Problem::Limit("bytes in a sparse file"));
    }
    let (mut end, mut total) = (0_u64, 0_u64);
    for (offset, length) in &map {
        if *offset < end {
            return Err(Problem::Sparse("runs overlap or are out of order"));
        }
        end = offset.checked_add(*length).ok_or(Problem::Sparse("a run is too long"))?;
        total = total.checked_add(*length).ok_or(Problem::Sparse("a run is too long"))?;
    }
    if end > size {
        return Err(Problem::Sparse("a run lies beyond the end of the file"));
    }
    if total != stored {
        return Err(Problem::Sparse("the runs are not as long as the data"));
    }
    Ok(map.into_iter().filter(|(_, length)| *length > 0).collect())
}
