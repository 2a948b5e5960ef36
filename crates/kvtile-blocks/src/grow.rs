//! Tables that grow with the largest index in use, so that a large pool with few blocks costs
//! little. They grow by an eighth: doubling would waste up to half of the memory.

/// The fewest entries by which a table grows.
const STEP_MIN: usize = 512;

/// Extends `table` to at least `len` entries, each new one `value`. No table needs more than `most`.
#[inline]
pub(crate) fn grow<T: Clone>(table: &mut Vec<T>, (len, most): (usize, usize), value: T) {
    if len > table.len() {
        reserve(table, (len, most));
        table.resize(len.max(table.capacity()), value);
    }
}

/// Makes room for `len` entries.
#[cold]
pub(crate) fn reserve<T>(table: &mut Vec<T>, (len, most): (usize, usize)) {
    if len > table.capacity() {
        let step = (table.len() / 8).max(STEP_MIN);
        let room = (table.len() + step).min(most).max(len);
        table.reserve_exact(room - table.len());
    }
}
