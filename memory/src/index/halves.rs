//! Half-precision copies of vectors, by which the best of the int8 scan are ranked again.
//!
//! The scan's own order gets 3 in 100 of the first ten wrong; half precision gets none wrong that f32 gets right. The copies are
//! read for a few dozen rows a question, so they may lie in a file: an anonymous one, gone with the process, which the page cache keeps
//! warm and which a crash cannot leave behind. The store's records are the truth; the file is never read by a later process.

use std::fs::File;
use std::path::PathBuf;

use half::f16;
use half::slice::HalfFloatSliceExt;

/// Where half-precision copies are kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum HalfVectors {
    /// Nowhere: the order of the codes stands, or exact vectors are read from the store's rows.
    None,
    /// In memory: 2 bytes a component.
    #[default]
    Memory,
    /// In an anonymous file in this folder.
    File(PathBuf),
}

#[derive(Debug)]
enum Place {
    None,
    Memory(Vec<f16>),
    File(File),
}

/// The copies of one view.
#[derive(Debug)]
pub struct Halves {
    place: Place,
}

impl Default for Halves {
    fn default() -> Self {
        Self { place: Place::None }
    }
}

impl Halves {
    /// An empty set. Where no file can be made there is a warning and no copies: recall goes on by the codes.
    pub fn new(kind: &HalfVectors) -> Self {
        let place = match kind {
            HalfVectors::None => Place::None,
            HalfVectors::Memory => Place::Memory(Vec::new()),
            HalfVectors::File(folder) => match tempfile::tempfile_in(folder) {
                Ok(file) => Place::File(file),
                Err(error) => {
                    tracing::warn!(%error, "no file for half-precision vectors, recall ranks by int8 codes");
                    Place::None
                }
            },
        };
        Self { place }
    }

    /// Whether there are copies.
    pub fn is_some(&self) -> bool {
        !matches!(self.place, Place::None)
    }

    /// Writes the copy of a row.
    pub fn set(&mut self, row: usize, values: &[f32]) {
        match &mut self.place {
            Place::None => {}
            Place::Memory(halves) => {
                let (start, end) = (row * values.len(), (row + 1) * values.len());
                if halves.len() < end {
                    halves.resize(end, f16::ZERO);
                }
                for (half, value) in halves[start..end].iter_mut().zip(values) {
                    *half = f16::from_f32(*value);
                }
            }
            Place::File(_) => {
                let bytes: Vec<u8> = values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
                self.write(row, &bytes);
            }
        }
    }

    /// Overwrites the copy of a row with zeros.
    pub fn wipe(&mut self, row: usize, dimensions: usize) {
        match &mut self.place {
            Place::None => {}
            Place::Memory(halves) => halves[row * dimensions..(row + 1) * dimensions].fill(f16::ZERO),
            Place::File(_) => self.write(row, &vec![0; 2 * dimensions]),
        }
    }

    /// The scalar product of a row's copy and a query; `None` where there is no copy or it cannot be read.
    pub fn dot(&self, row: usize, query: &[f32]) -> Option<f32> {
        match &self.place {
            Place::None => None,
            Place::Memory(halves) => {
                let row = halves.get(row * query.len()..(row + 1) * query.len())?;
                Some(dot(row, query))
            }
            Place::File(file) => {
                let mut bytes = vec![0; 2 * query.len()];
                read_at(file, &mut bytes, (row * 2 * query.len()) as u64).ok()?;
                let halves: Vec<f16> =
                    bytes.chunks_exact(2).map(|pair| f16::from_le_bytes([pair[0], pair[1]])).collect();
                Some(dot(&halves, query))
            }
        }
    }

    /// Keeps only these rows, given in ascending order, under new numbers from 0.
    pub fn keep(&mut self, live: &[u32], dimensions: usize) {
        match &mut self.place {
            Place::None => {}
            Place::Memory(halves) => {
                for (new, old) in live.iter().enumerate() {
                    let old = *old as usize;
                    halves.copy_within(old * dimensions..(old + 1) * dimensions, new * dimensions);
                }
                halves.truncate(live.len() * dimensions);
                halves.shrink_to_fit();
            }
            Place::File(_) => self.keep_in_file(live, 2 * dimensions),
        }
    }

    fn keep_in_file(&mut self, live: &[u32], row_bytes: usize) {
        let mut bytes = vec![0; row_bytes];
        for (new, old) in live.iter().enumerate().filter(|(new, old)| *new != **old as usize) {
            let Place::File(file) = &self.place else { return };
            match read_at(file, &mut bytes, *old as u64 * row_bytes as u64) {
                Ok(()) => self.write(new, &bytes),
                Err(error) => return self.give_up(&error),
            }
        }
        if let Place::File(file) = &self.place
            && let Err(error) = file.set_len((live.len() * row_bytes) as u64)
        {
            self.give_up(&error);
        }
    }

    fn write(&mut self, row: usize, bytes: &[u8]) {
        if let Place::File(file) = &self.place
            && let Err(error) = write_at(file, bytes, (row * bytes.len()) as u64)
        {
            self.give_up(&error);
        }
    }

    /// A copy that may be wrong is worse than none.
    fn give_up(&mut self, error: &std::io::Error) {
        tracing::warn!(%error, "half-precision vectors given up, recall ranks by int8 codes");
        self.place = Place::None;
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> u64 {
        match &self.place {
            Place::Memory(halves) => halves.capacity() as u64 * 2,
            _ => 0,
        }
    }
}

/// Eight sums side by side, which the processor adds at once.
fn dot(halves: &[f16], query: &[f32]) -> f32 {
    let mut floats = vec![0.0; halves.len()];
    halves.convert_to_f32_slice(&mut floats);
    let (eights, rest) = floats.as_chunks::<8>();
    let (query_eights, query_rest) = query.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (eight, of_query) in eights.iter().zip(query_eights) {
        sums.iter_mut().zip(eight.iter().zip(of_query)).for_each(|(sum, (half, x))| *sum += half * x);
    }
    sums.iter().sum::<f32>() + rest.iter().zip(query_rest).map(|(half, x)| half * x).sum::<f32>()
}

#[cfg(unix)]
pub(super) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
pub(super) fn read_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => {
                bytes = &mut bytes[count..];
                offset += count as u64;
            }
        }
    }
    Ok(())
}

#[cfg(windows)]
fn write_at(file: &File, mut bytes: &[u8], mut offset: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, bytes, offset)? {
            0 => return Err(std::io::ErrorKind::WriteZero.into()),
            count => {
                bytes = &bytes[count..];
                offset += count as u64;
            }
        }
    }
    Ok(())
}
