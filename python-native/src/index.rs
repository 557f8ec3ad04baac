//! `VectorIndex`: exact search by int8 dot products over vectors in memory: the scan that ArrowStorage ranks by. Codes, scales and
//! half-precision copies are Arrow buffers, shared with whoever reads or made them.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayData, ArrayRef, AsArray, FixedSizeListArray, Float16Array, Float32Array, Int8Array, make_array,
};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::{DataType, Field, Float16Type, Float32Type, Int8Type, Schema};
use arrow::record_batch::RecordBatch;
use arrow_pyarrow::{FromPyArrow, PyArrowType};
use half::f16;
use mneme_quant::scan::{Query, RowsI8, ScoredRow, quantize_row_i8, quantize_row_i8_into, scan_batch_top_k};
use numpy::{PyArray1, PyArray2, PyArrayDyn, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::arrays::{Rows, borrow, matrix, threads_or_all};
use crate::error::{refused, refused_because};
use crate::memory::view_of;

/// How many more rows than asked for are taken from the int8 scan to be ranked again by the half-precision copies.
const OVERSAMPLE: usize = 32;
/// Row number that fills the places of a batch where fewer rows were found than asked for.
const NONE: u32 = u32::MAX;

/// Vectors that can be searched; never changes.
#[pyclass(frozen, module = "mneme_native")]
pub(crate) struct VectorIndex {
    dimensions: usize,
    codes: ScalarBuffer<i8>,
    scales: ScalarBuffer<f32>,
    /// The vectors in half precision; None when only the codes rank.
    halves: Option<ScalarBuffer<f16>>,
}

#[pymethods]
impl VectorIndex {
    #[staticmethod]
    #[pyo3(signature = (vectors, *, normalize = true, exact = true))]
    fn build(py: Python<'_>, vectors: &Bound<'_, PyAny>, normalize: bool, exact: bool) -> PyResult<Self> {
        let rows = Rows::take(vectors, "vectors", false)?;
        let ((count, dimensions), values) = (rows.shape(), rows.values());
        RowsI8::new(&[], &[], dimensions).map_err(refused)?;
        let (codes, scales, halves) = py.detach(|| -> PyResult<_> {
            let mut codes = vec![0_i8; count * dimensions];
            let mut scales = Vec::with_capacity(count);
            let mut halves = Vec::with_capacity(if exact { count * dimensions } else { 0 });
            let mut vector = vec![0.0; dimensions];
            for (row, (values, codes)) in values.chunks(dimensions).zip(codes.chunks_mut(dimensions)).enumerate() {
                vector.copy_from_slice(values);
                if normalize {
                    normalise(&mut vector);
                }
                let scale = quantize_row_i8_into(&vector, codes);
                scales.push(scale.map_err(|error| refused_because(format!("vector {row}: {error}")))?);
                if exact {
                    halves.extend(vector.iter().map(|value| f16::from_f32(*value)));
                }
            }
            Ok((codes, scales, halves))
        })?;
        let halves = exact.then(|| ScalarBuffer::from(halves));
        Ok(Self { dimensions, codes: codes.into(), scales: scales.into(), halves })
    }

    #[staticmethod]
    fn from_arrow(batch: PyArrowType<RecordBatch>) -> PyResult<Self> {
        let batch = batch.0;
        let wrong = |name: &str, needed: &str| refused_because(format!("column {name} is missing or not {needed}"));
        let list = |name: &str| batch.column_by_name(name).and_then(|column| column.as_fixed_size_list_opt());
        let codes = list("codes").ok_or_else(|| wrong("codes", "fixed_size_list<int8>"))?;
        let dimensions = codes.value_length() as usize;
        let codes = flat(codes)?;
        let codes = codes.as_primitive_opt::<Int8Type>().ok_or_else(|| wrong("codes", "fixed_size_list<int8>"))?;
        let scales = batch.column_by_name("scale").and_then(|column| column.as_primitive_opt::<Float32Type>());
        let scales = scales.filter(|scales| scales.null_count() == 0).ok_or_else(|| wrong("scale", "float"))?;
        let halves = if batch.column_by_name("halves").is_none() {
            None
        } else {
            let needed = || wrong("halves", "fixed_size_list<halffloat> of the codes' length");
            let halves = list("halves").filter(|list| list.value_length() as usize == dimensions).ok_or_else(needed)?;
            Some(flat(halves)?.as_primitive_opt::<Float16Type>().ok_or_else(needed)?.values().clone())
        };
        let index = Self { dimensions, codes: codes.values().clone(), scales: scales.values().clone(), halves };
        index.rows()?;
        Ok(index)
    }

    fn to_arrow(&self) -> PyResult<PyArrowType<RecordBatch>> {
        let length = i32::try_from(self.dimensions).map_err(refused)?;
        let lists = |kind: DataType, values: ArrayRef| {
            let item = Arc::new(Field::new_list_field(kind, false));
            FixedSizeListArray::try_new(item, length, values, None).map(|lists| Arc::new(lists) as ArrayRef)
        };
        let codes = lists(DataType::Int8, Arc::new(Int8Array::new(self.codes.clone(), None))).map_err(refused)?;
        let scales: ArrayRef = Arc::new(Float32Array::new(self.scales.clone(), None));
        let mut columns = vec![("codes", codes), ("scale", scales)];
        if let Some(halves) = &self.halves {
            let values = Arc::new(Float16Array::new(halves.clone(), None));
            columns.push(("halves", lists(DataType::Float16, values).map_err(refused)?));
        }
        let fields: Vec<Field> =
            columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), false)).collect();
        let columns = columns.into_iter().map(|(_, column)| column).collect();
        Ok(PyArrowType(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(refused)?))
    }

    fn __len__(&self) -> usize {
        self.scales.len()
    }

    #[getter]
    fn dimensions(&self) -> usize {
        self.dimensions
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.codes.len() + 4 * self.scales.len() + self.halves.as_ref().map_or(0, |halves| 2 * halves.len())
    }

    #[getter]
    fn codes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        view_of(py, self.codes.clone(), &self.codes, vec![self.scales.len(), self.dimensions])
    }

    #[getter]
    fn scales<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        view_of(py, self.scales.clone(), &self.scales, vec![self.scales.len()])
    }

    #[getter]
    fn halves<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let shape = vec![self.scales.len(), self.dimensions];
        self.halves.as_ref().map(|halves| view_of(py, halves.clone(), halves, shape)).transpose()
    }

    #[pyo3(signature = (query, k = 10, *, filter = None, normalize = true, threads = None))]
    fn search<'py>(
        &self,
        py: Python<'py>,
        query: &Bound<'py, PyAny>,
        k: usize,
        filter: Option<&Bound<'py, PyAny>>,
        normalize: bool,
        threads: Option<usize>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let queries = Rows::take(query, "queries", true)?;
        let single = query.cast::<PyArrayDyn<f32>>().is_ok_and(|array| array.ndim() == 1);
        let ((count, dimensions), values) = (queries.shape(), queries.values());
        if dimensions != self.dimensions {
            return Err(refused_because(format!(
                "queries have {dimensions} dimensions, the index {}",
                self.dimensions
            )));
        }
        let allowed = filter.map(|filter| bitmap(filter, self.scales.len())).transpose()?;
        let threads = threads_or_all(threads);
        let found = py.detach(|| self.find(values, k, allowed.as_deref(), normalize, threads))?;
        if single {
            let best = found.into_iter().next().unwrap_or_default();
            let (rows, scores): (Vec<u32>, Vec<f32>) = best.into_iter().map(|found| (found.row, found.score)).unzip();
            return Ok((PyArray1::from_vec(py, rows).into_any(), PyArray1::from_vec(py, scores).into_any()));
        }
        let width = found.iter().map(Vec::len).max().unwrap_or(0);
        let mut rows = Vec::with_capacity(count * width);
        let mut scores = Vec::with_capacity(count * width);
        for best in &found {
            rows.extend(best.iter().map(|found| found.row).chain(std::iter::repeat_n(NONE, width - best.len())));
            let worst = std::iter::repeat_n(f32::NEG_INFINITY, width - best.len());
            scores.extend(best.iter().map(|found| found.score).chain(worst));
        }
        let rows: Bound<'py, PyArray2<u32>> = matrix(py, rows, count, width)?;
        Ok((rows.into_any(), matrix(py, scores, count, width)?.into_any()))
    }

    fn __repr__(&self) -> String {
        format!("VectorIndex({} x {})", self.scales.len(), self.dimensions)
    }
}

impl VectorIndex {
    fn rows(&self) -> PyResult<RowsI8<'_>> {
        RowsI8::new(&self.codes, &self.scales, self.dimensions).map_err(refused)
    }

    fn find(
        &self,
        queries: &[f32],
        k: usize,
        allowed: Option<&[u64]>,
        normalize: bool,
        threads: usize,
    ) -> PyResult<Vec<Vec<ScoredRow>>> {
        let mut exact = queries.to_vec();
        if normalize {
            exact.chunks_mut(self.dimensions).for_each(normalise);
        }
        let coded: Vec<(Vec<i8>, f32)> = exact
            .chunks(self.dimensions)
            .enumerate()
            .map(|(row, query)| {
                quantize_row_i8(query).map_err(|error| refused_because(format!("query {row}: {error}")))
            })
            .collect::<PyResult<_>>()?;
        let coded: Vec<Query<'_>> = coded.iter().map(|(codes, scale)| Query::new(codes, *scale)).collect();
        let wide = if self.halves.is_some() { k.saturating_add(OVERSAMPLE) } else { k };
        let wide = if k == 0 { 0 } else { wide };
        let mut found = scan_batch_top_k(self.rows()?, &coded, wide, allowed, threads).map_err(refused)?;
        if let Some(halves) = &self.halves {
            for (best, query) in found.iter_mut().zip(exact.chunks(self.dimensions)) {
                for entry in best.iter_mut() {
                    let row = &halves[entry.row as usize * self.dimensions..][..self.dimensions];
                    entry.score = row.iter().zip(query).map(|(half, value)| half.to_f32() * value).sum();
                }
                best.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.row.cmp(&b.row)));
                best.truncate(k);
            }
        }
        Ok(found)
    }
}

/// Scales to length one; a zero vector stays, and what is not finite is found by the quantiser.
fn normalise(vector: &mut [f32]) {
    let square: f64 = vector.iter().map(|value| f64::from(*value).powi(2)).sum();
    if square > 0.0 && square.is_finite() {
        let inverse = 1.0 / square.sqrt();
        vector.iter_mut().for_each(|value| *value = (f64::from(*value) * inverse) as f32);
    }
}

/// The values of lists without nulls, those of this array only.
fn flat(lists: &FixedSizeListArray) -> PyResult<ArrayRef> {
    let length = lists.value_length() as usize;
    if lists.null_count() > 0 || lists.values().null_count() > 0 {
        return Err(refused_because("a column of lists holds nulls"));
    }
    Ok(lists.values().slice(lists.value_offset(0) as usize, lists.len() * length))
}

/// Allowed rows as a bitmap, from booleans for each row (numpy or Arrow) or from row numbers (numpy).
fn bitmap(filter: &Bound<'_, PyAny>, rows: usize) -> PyResult<Vec<u64>> {
    let mut words = vec![0_u64; rows.div_ceil(64)];
    let mut allow = |row: usize| words[row / 64] |= 1 << (row % 64);
    let wrong_length =
        |length: usize| refused_because(format!("the filter has {length} entries, the index {rows} rows"));
    if filter.hasattr("__arrow_c_array__")? {
        let array = make_array(ArrayData::from_pyarrow_bound(filter)?);
        let flags = array.as_boolean_opt().ok_or_else(|| {
            refused_because(format!("the filter is Arrow {}, booleans are needed", array.data_type()))
        })?;
        if flags.len() != rows {
            return Err(wrong_length(flags.len()));
        }
        // Null is not allowed, as in a WHERE clause.
        flags.iter().enumerate().filter(|(_, flag)| *flag == Some(true)).for_each(|(row, _)| allow(row));
    } else if let Ok(flags) = filter.cast::<PyArrayDyn<bool>>() {
        let flags = borrow(flags, "filters")?;
        let flags = flags.as_slice().unwrap_or_default();
        if flags.len() != rows {
            return Err(wrong_length(flags.len()));
        }
        flags.iter().enumerate().filter(|(_, flag)| **flag).for_each(|(row, _)| allow(row));
    } else {
        let numbers: Vec<i64> = match filter.cast::<PyArrayDyn<u32>>() {
            Ok(numbers) => numbers
                .to_vec()
                .map_err(|_| refused_because("the filter is not contiguous"))?
                .into_iter()
                .map(i64::from)
                .collect(),
            Err(_) => match filter.cast::<PyArrayDyn<i64>>() {
                Ok(numbers) => numbers.to_vec().map_err(|_| refused_because("the filter is not contiguous"))?,
                Err(_) => {
                    return Err(refused_because("the filter is neither booleans nor row numbers (uint32, int64)"));
                }
            },
        };
        for number in numbers {
            let row = usize::try_from(number).ok().filter(|row| *row < rows);
            allow(row.ok_or_else(|| refused_because(format!("the filter allows row {number} of {rows}")))?);
        }
    }
    Ok(words)
}
