//! Weights in the order in which the kernels read them: the container that a file stores and a mapping aliases.
//!
//! Sixteen outputs are a tile. Within a tile, a vector of 64 bytes holds for each of the sixteen outputs the codes of four
//! neighbouring inputs (a quad): one quad in 8 bits; two in 4 bits, the second in the high halves; four in 2 bits. Inputs are
//! padded with zero codes to a multiple of 64. Scales and minimums are 16-bit floats, `[tile, group, 16]`.
//!
//! ```text
//! bytes  0..4   "MQT1"            12..16  group length
//!        4      bits              16..24  outputs
//!        5      1 with minimums   24..32  inputs
//!        6      offset of codes   32..64  zero
//!        7..12  zero              64..    codes, then scales, then minimums, each at a multiple of 64
//! ```

use std::sync::Arc;

use half::f16;

use super::GemmError;
use super::lines::Lines;
use crate::codec::{Granularity, Quantized, Scheme, Spec, Width};

/// Outputs in a tile.
pub(crate) const TILE: usize = 16;
/// Inputs are padded to a multiple of this.
pub(crate) const INPUTS_PAD: usize = 64;
/// A layer has at most this many inputs: the sum of that many products of codes fits an `i32`.
pub const INPUTS_MAX: usize = 1 << 16;
/// A layer has at most this many outputs; the largest vocabularies are a tenth of it.
pub const OUTPUTS_MAX: usize = 1 << 22;
/// Where a whole row (or matrix) shares a scale, it is repeated for groups of this many inputs: a few hundredths of a bit for
/// kernels that know nothing but groups, whose parts fit the first-level cache.
const WHOLE_ROW_GROUP: usize = 512;
const HEADER_BYTES: usize = 64;
const MAGIC: [u8; 4] = *b"MQT1";

/// What identifies the layout of a packed matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) bits: usize,
    pub(crate) has_minimums: bool,
    /// Subtracted from each code; 0 with minimums.
    pub(crate) offset: i32,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    /// Inputs that share a scale.
    pub(crate) group: usize,
}

impl Layout {
    pub(crate) fn padded_inputs(self) -> usize {
        self.inputs.next_multiple_of(INPUTS_PAD)
    }

    pub(crate) fn tiles(self) -> usize {
        self.outputs.div_ceil(TILE)
    }

    pub(crate) fn groups(self) -> usize {
        self.inputs.div_ceil(self.group)
    }

    pub(crate) fn tile_code_bytes(self) -> usize {
        self.padded_inputs() * TILE * self.bits / 8
    }

    /// Bytes of the scales (or minimums) of one tile.
    pub(crate) fn tile_scale_bytes(self) -> usize {
        self.groups() * TILE * 2
    }

    /// Start of codes, scales, minimums, and the end.
    fn offsets(self) -> [usize; 4] {
        let scales = HEADER_BYTES + (self.tiles() * self.tile_code_bytes()).next_multiple_of(64);
        let scale_bytes = (self.tiles() * self.tile_scale_bytes()).next_multiple_of(64);
        let minimums = scales + scale_bytes;
        [HEADER_BYTES, scales, minimums, if self.has_minimums { minimums + scale_bytes } else { minimums }]
    }

    fn validate(self) -> Result<(), GemmError> {
        let Self { outputs, inputs, group, .. } = self;
        if inputs > INPUTS_MAX || outputs > OUTPUTS_MAX {
            return Err(GemmError::Dimensions { outputs, inputs });
        }
        if !matches!(group, 32 | 64 | 128 | 256 | WHOLE_ROW_GROUP) {
            return Err(GemmError::Header { problem: "group length is not 32, 64, 128, 256 or 512" });
        }
        Ok(())
    }
}

/// A matrix `[outputs, inputs]` of a linear layer in kernel order. Cheap to clone; safe to share between threads.
#[derive(Clone)]
pub struct PackedWeights {
    layout: Layout,
    storage: Storage,
}

#[derive(Clone)]
enum Storage {
    Owned(Arc<Lines>),
    Shared(Arc<dyn AsRef<[u8]> + Send + Sync>),
}

impl std::fmt::Debug for PackedWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedWeights").field("layout", &self.layout).finish_non_exhaustive()
    }
}

impl PackedWeights {
    /// Quantises weights `[outputs, inputs]` and packs them.
    pub fn from_f32(
        values: &[f32],
        outputs: usize,
        inputs: usize,
        spec: Spec,
        threads: usize,
    ) -> Result<Self, GemmError> {
        Self::from_quantized(&Quantized::quantize(values, outputs, inputs, spec, threads)?)
    }

    /// Packs a quantised matrix, its rows as outputs. Scales for each input do not factor out of an integer dot product and
    /// are refused.
    pub fn from_quantized(quantized: &Quantized) -> Result<Self, GemmError> {
        let spec = quantized.spec();
        let inputs = quantized.columns();
        let group = match spec.granularity {
            Granularity::Group(size) => size as usize,
            Granularity::OutChannel | Granularity::Tensor => WHOLE_ROW_GROUP,
            Granularity::InChannel => return Err(GemmError::InputScales),
        };
        let has_minimums = spec.scheme == Scheme::ScaleMin;
        let offset = if has_minimums { 0 } else { i32::from(spec.width.offset()) };
        let layout = Layout { bits: spec.width.bits(), has_minimums, offset, outputs: quantized.rows(), inputs, group };
        layout.validate()?;
        let mut lines = Lines::zeroed(layout.offsets()[3]);
        let bytes = lines.bytes_mut();
        write_header(layout, bytes);
        fill(quantized, layout, bytes)?;
        Ok(Self { layout, storage: Storage::Owned(Arc::new(lines)) })
    }

    /// Aliases a packed matrix in other memory, such as a mapped file: nothing is copied, and only the header is read. The
    /// bytes are as [`Self::as_bytes`] gives them; best at a multiple of 64, correct at any address.
    pub fn from_shared(bytes: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Result<Self, GemmError> {
        let layout = read_header((*bytes).as_ref())?;
        Ok(Self { layout, storage: Storage::Shared(bytes) })
    }

    /// Copies a packed matrix out of a slice.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, GemmError> {
        let layout = read_header(bytes)?;
        let mut lines = Lines::zeroed(bytes.len());
        lines.bytes_mut().copy_from_slice(bytes);
        Ok(Self { layout, storage: Storage::Owned(Arc::new(lines)) })
    }

    /// The packed matrix as bytes, to be stored.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.storage {
            Storage::Owned(lines) => lines.bytes(),
            Storage::Shared(bytes) => (**bytes).as_ref(),
        }
    }

    /// Outputs of the layer.
    pub fn outputs(&self) -> usize {
        self.layout.outputs
    }

    /// Inputs of the layer.
    pub fn inputs(&self) -> usize {
        self.layout.inputs
    }

    /// Bits of a code.
    pub fn bits(&self) -> usize {
        self.layout.bits
    }

    /// Inputs that share a stored scale; 512 where a whole row does.
    pub fn group(&self) -> usize {
        self.layout.group
    }

    /// Bits for each weight, with scales, padding and header.
    pub fn bits_per_weight(&self) -> f64 {
        let weights = self.layout.outputs as f64 * self.layout.inputs as f64;
        if weights == 0.0 { 0.0 } else { self.layout.offsets()[3] as f64 * 8.0 / weights }
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// Codes, scales and minimums, of exactly the lengths that the layout says. Foreign memory is measured anew each time,
    /// because nothing forces its owner to give the same slice twice.
    pub(crate) fn regions(&self) -> Result<Regions<'_>, GemmError> {
        let bytes = self.as_bytes();
        let [codes, scales, minimums, end] = self.layout.offsets();
        if bytes.len() != end {
            return Err(GemmError::Length { found: bytes.len(), expected: end });
        }
        let tiles = self.layout.tiles();
        let scale_bytes = tiles * self.layout.tile_scale_bytes();
        Ok(Regions {
            codes: &bytes[codes..codes + tiles * self.layout.tile_code_bytes()],
            scales: &bytes[scales..scales + scale_bytes],
            minimums: if self.layout.has_minimums { &bytes[minimums..minimums + scale_bytes] } else { &[] },
        })
    }

    /// The weights as floats `[outputs, inputs]`; for checks and for layers that are not multiplied in integers.
    pub fn dequantize(&self) -> Result<Vec<f32>, GemmError> {
        let layout = self.layout;
        let regions = self.regions()?;
        let mut out = Vec::with_capacity(layout.outputs * layout.inputs);
        for output in 0..layout.outputs {
            for input in 0..layout.inputs {
                let (tile, lane, group) = (output / TILE, output % TILE, input / layout.group);
                let code = i32::from(regions.code(layout, tile, lane, input)) - layout.offset;
                let (scale, minimum) = regions.params(layout, tile, lane, group);
                out.push(if layout.has_minimums { code as f32 * scale + minimum } else { code as f32 * scale });
            }
        }
        Ok(out)
    }
}

/// The three parts of a packed matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Regions<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) scales: &'a [u8],
    pub(crate) minimums: &'a [u8],
}

impl Regions<'_> {
    /// The code of one weight, before its offset.
    pub(crate) fn code(&self, layout: Layout, tile: usize, lane: usize, input: usize) -> u8 {
        let per_byte = 8 / layout.bits;
        let quad = input / 4;
        let byte = tile * layout.tile_code_bytes() + quad / per_byte * 64 + lane * 4 + input % 4;
        let mask = ((1_u16 << layout.bits) - 1) as u8;
        self.codes[byte] >> (quad % per_byte * layout.bits) & mask
    }

    /// Scale and minimum of one group of one output; the minimum is 0 where there are none.
    pub(crate) fn params(&self, layout: Layout, tile: usize, lane: usize, group: usize) -> (f32, f32) {
        let at = tile * layout.tile_scale_bytes() + (group * TILE + lane) * 2;
        let read =
            |bytes: &[u8]| bytes.get(at..at + 2).map_or(0.0, |two| f16::from_le_bytes([two[0], two[1]]).to_f32());
        (read(self.scales), read(self.minimums))
    }
}

fn write_header(layout: Layout, bytes: &mut [u8]) {
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4] = layout.bits as u8;
    bytes[5] = u8::from(layout.has_minimums);
    bytes[6] = layout.offset as u8;
    bytes[12..16].copy_from_slice(&(layout.group as u32).to_le_bytes());
    bytes[16..24].copy_from_slice(&(layout.outputs as u64).to_le_bytes());
    bytes[24..32].copy_from_slice(&(layout.inputs as u64).to_le_bytes());
}

fn read_header(bytes: &[u8]) -> Result<Layout, GemmError> {
    let Some((header, _)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(GemmError::Length { found: bytes.len(), expected: HEADER_BYTES });
    };
    let problem = |problem| Err(GemmError::Header { problem });
    if header[..4] != MAGIC {
        return problem("magic is not MQT1");
    }
    if !matches!(header[4], 2 | 4 | 8) || header[5] > 1 {
        return problem("bits are not 2, 4 or 8, or the minimum flag is neither 0 nor 1");
    }
    let long = |at: usize| {
        let value = u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        usize::try_from(value).unwrap_or(usize::MAX)
    };
    let (outputs, inputs) = (long(16), long(24));
    if inputs > INPUTS_MAX || outputs > OUTPUTS_MAX {
        return Err(GemmError::Dimensions { outputs, inputs });
    }
    let group = u32::from_le_bytes(header[12..16].try_into().expect("four bytes")) as usize;
    let (bits, has_minimums, offset) = (usize::from(header[4]), header[5] == 1, i32::from(header[6]));
    let offset_allowed = match (has_minimums, bits) {
        (true, _) => offset == 0,
        (false, 2) => matches!(offset, 1 | 2),
        (false, bits) => offset == 1 << (bits - 1),
    };
    if !offset_allowed {
        return problem("offset of the codes does not match their bits");
    }
    if header[7..12].iter().chain(&header[32..]).any(|byte| *byte != 0) {
        return problem("reserved bytes are not zero");
    }
    let layout = Layout { bits, has_minimums, offset, outputs, inputs, group };
    layout.validate()?;
    let expected = layout.offsets()[3];
    if bytes.len() != expected {
        return Err(GemmError::Length { found: bytes.len(), expected });
    }
    Ok(layout)
}

fn fill(quantized: &Quantized, layout: Layout, bytes: &mut [u8]) -> Result<(), GemmError> {
    let [codes_at, scales_at, minimums_at, _] = layout.offsets();
    let per_byte = 8 / layout.bits;
    let mut row_codes = vec![0_u8; layout.inputs];
    for output in 0..layout.outputs {
        let (tile, lane) = (output / TILE, output % TILE);
        quantized.row_codes(output, &mut row_codes)?;
        let codes = &mut bytes[codes_at + tile * layout.tile_code_bytes()..][..layout.tile_code_bytes()];
        for (quad, four) in row_codes.chunks(4).enumerate() {
            let shift = quad % per_byte * layout.bits;
            for (byte, code) in codes[quad / per_byte * 64 + lane * 4..].iter_mut().zip(four) {
                // A ternary matrix from outside may hold the code 3, which no fit gives.
                let code = if quantized.spec().width == Width::Ternary { (*code).min(2) } else { *code };
                *byte |= code << shift;
            }
        }
        for group in 0..layout.groups() {
            let at = tile * layout.tile_scale_bytes() + (group * TILE + lane) * 2;
            let index = quantized.scale_index(output, group * layout.group);
            bytes[scales_at + at..][..2].copy_from_slice(&quantized.scales()[index].to_le_bytes());
            if let Some(minimum) = quantized.minimums().get(index) {
                bytes[minimums_at + at..][..2].copy_from_slice(&minimum.to_le_bytes());
            }
        }
    }
    Ok(())
}
