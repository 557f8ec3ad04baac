//! The embeddings file: a JSON line `{"dimensions": D, "rows": N}`, then N rows of D little-endian f32, in the order of the
//! texts that `--write-texts` wrote.

use std::path::Path;

use mneme_base::Embedding;
use serde::Deserialize;

#[derive(Deserialize)]
struct Header {
    dimensions: usize,
    rows: usize,
}

/// Reads all rows.
pub(crate) fn read_embeddings(path: &Path) -> Result<Vec<Embedding>, Box<dyn std::error::Error>> {
    let bytes = fs_err::read(path)?;
    let line = bytes.iter().position(|byte| *byte == b'\n').ok_or("embeddings file has no header line")?;
    let header: Header = serde_json::from_slice(&bytes[..line])?;
    let body = &bytes[line + 1..];
    let expected = header.dimensions.checked_mul(header.rows).and_then(|values| values.checked_mul(4));
    if header.dimensions == 0 || expected != Some(body.len()) {
        return Err(format!("embeddings file has {} bytes of vectors, its header says {expected:?}", body.len()).into());
    }
    body.chunks_exact(4 * header.dimensions)
        .map(|row| {
            let values = row.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect();
            Ok(Embedding::normalized(values)?)
        })
        .collect()
}
