//! `Quantized`: a matrix as codes, scales and minimums.

use std::sync::Arc;

use half::f16;
use mneme_quant::codec::Quantized as Matrix;
use numpy::{PyArray2, PyArrayDyn};
use pyo3::prelude::*;

use crate::arrays::{copied, fill, matrix, threads_or_all};
use crate::error::refused;
use crate::format::{ArrowQuant, GroupName, format_name, group_name, scheme_name};
use crate::memory::view_of;
use crate::packed::PackedWeights;

/// A quantised matrix; never changes.
#[pyclass(frozen, module = "mneme_native")]
pub(crate) struct Quantized(pub(crate) Arc<Matrix>);

#[pymethods]
impl Quantized {
    #[staticmethod]
    #[pyo3(signature = (quant, rows, columns, codes, scales, minimums = None))]
    fn from_parts(
        quant: &ArrowQuant,
        rows: usize,
        columns: usize,
        codes: &Bound<'_, PyArrayDyn<u8>>,
        scales: &Bound<'_, PyArrayDyn<f16>>,
        minimums: Option<&Bound<'_, PyArrayDyn<f16>>>,
    ) -> PyResult<Self> {
        let minimums = minimums.map_or_else(|| Ok(Vec::new()), |minimums| copied(minimums, "minimums"))?;
        let (codes, scales) = (copied(codes, "codes")?, copied(scales, "scales")?);
        let matrix = Matrix::from_parts(quant.spec, rows, columns, codes, scales, minimums).map_err(refused)?;
        Ok(Self(Arc::new(matrix)))
    }

    #[getter]
    fn shape(&self) -> (usize, usize) {
        (self.0.rows(), self.0.columns())
    }

    #[getter]
    fn format(&self) -> &'static str {
        format_name(self.0.spec().width)
    }

    #[getter]
    fn group(&self) -> GroupName {
        group_name(self.0.spec().granularity)
    }

    #[getter]
    fn scheme(&self) -> &'static str {
        scheme_name(self.0.spec().scheme)
    }

    #[getter]
    fn bits_per_weight(&self) -> f64 {
        self.0.bits_per_weight()
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.0.codes().len() + 2 * (self.0.scales().len() + self.0.minimums().len())
    }

    #[getter]
    fn codes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let codes = self.0.codes();
        let shape = match codes.len().checked_div(self.0.rows()) {
            Some(row_bytes) => vec![self.0.rows(), row_bytes],
            None => vec![0, 0],
        };
        view_of(py, Arc::clone(&self.0), codes, shape)
    }

    #[getter]
    fn scales<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        view_of(py, Arc::clone(&self.0), self.0.scales(), vec![self.0.scales().len()])
    }

    #[getter]
    fn minimums<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        view_of(py, Arc::clone(&self.0), self.0.minimums(), vec![self.0.minimums().len()])
    }

    #[pyo3(signature = (*, out = None, threads = None))]
    fn dequantize<'py>(
        &self,
        py: Python<'py>,
        out: Option<Bound<'py, PyAny>>,
        threads: Option<usize>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (matrix, threads) = (&self.0, threads_or_all(threads));
        fill(py, out, self.shape(), |values| py.detach(|| matrix.dequantize_into(values, threads)).map_err(refused))
    }

    #[pyo3(signature = (first, end, *, out = None))]
    fn dequantize_rows<'py>(
        &self,
        py: Python<'py>,
        first: usize,
        end: usize,
        out: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let matrix = &self.0;
        if first > end || end > matrix.rows() {
            // Refused before a buffer of this length is made.
            return Err(refused(
                matrix.dequantize_rows(first, end, &mut []).err().unwrap_or(mneme_quant::codec::CodecError::Rows {
                    first,
                    end,
                    rows: matrix.rows(),
                }),
            ));
        }
        fill(py, out, (end - first, matrix.columns()), |values| {
            py.detach(|| matrix.dequantize_rows(first, end, values)).map_err(refused)
        })
    }

    fn unpacked_codes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<u8>>> {
        let (rows, columns) = self.shape();
        let mut codes = vec![0_u8; rows * columns];
        for (row, out) in codes.chunks_mut(columns.max(1)).enumerate() {
            self.0.row_codes(row, out).map_err(refused)?;
        }
        matrix(py, codes, rows, columns)
    }

    pub(crate) fn pack(&self, py: Python<'_>) -> PyResult<PackedWeights> {
        let matrix = &self.0;
        let packed = py.detach(|| mneme_quant::PackedWeights::from_quantized(matrix)).map_err(refused)?;
        Ok(PackedWeights(Arc::new(packed)))
    }

    fn __repr__(&self) -> String {
        let (rows, columns) = self.shape();
        format!("Quantized({} {rows} x {columns}, {:.3} bits per weight)", self.format(), self.bits_per_weight())
    }
}
