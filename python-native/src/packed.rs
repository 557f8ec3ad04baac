//! `PackedWeights`: a matrix in kernel order, ready for integer products.

use std::sync::Arc;

use mneme_quant::gemm::gemm_quantized;
use mneme_quant::{ActivationScaling, PackedWeights as Packed, QuantizedActivations};
use numpy::{PyArray2, PyArrayDyn};
use pyo3::prelude::*;

use crate::arrays::{Rows, borrow, fill, matrix, threads_or_all};
use crate::error::{refused, refused_because};
use crate::memory::view_of;

/// How activations are scaled, as Python says it.
#[derive(FromPyObject)]
pub(crate) enum Scaling {
    /// One scale that calibration found.
    Static(f32),
    /// `token` or `token_group`.
    Name(String),
}

fn scaling(scaling: Option<Scaling>) -> PyResult<ActivationScaling> {
    match scaling {
        None => Ok(ActivationScaling::PerToken),
        Some(Scaling::Static(scale)) => Ok(ActivationScaling::Static(scale)),
        Some(Scaling::Name(name)) => match name.as_str() {
            "token" => Ok(ActivationScaling::PerToken),
            "token_group" => Ok(ActivationScaling::PerTokenGroup),
            other => Err(refused_because(format!("activations is {other:?}, must be token, token_group or a scale"))),
        },
    }
}

/// A packed matrix `[outputs, inputs]`; never changes.
#[pyclass(frozen, module = "mneme_native")]
pub(crate) struct PackedWeights(pub(crate) Arc<Packed>);

#[pymethods]
impl PackedWeights {
    #[staticmethod]
    fn from_bytes(data: &Bound<'_, PyArrayDyn<u8>>) -> PyResult<Self> {
        Ok(Self(Arc::new(
            Packed::from_slice(borrow(data, "packed bytes")?.as_slice().unwrap_or_default()).map_err(refused)?,
        )))
    }

    #[getter]
    fn shape(&self) -> (usize, usize) {
        (self.0.outputs(), self.0.inputs())
    }

    #[getter]
    fn bits_per_weight(&self) -> f64 {
        self.0.bits_per_weight()
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.0.as_bytes().len()
    }

    #[getter]
    fn data<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let bytes = self.0.as_bytes();
        view_of(py, Arc::clone(&self.0), bytes, vec![bytes.len()])
    }

    #[pyo3(signature = (x, *, out = None, activations = None, threads = None))]
    fn matmul<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        out: Option<Bound<'py, PyAny>>,
        activations: Option<Scaling>,
        threads: Option<usize>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (input, weights, threads) = (Rows::take(x, "activations", false)?, &self.0, threads_or_all(threads));
        let scaling = scaling(activations)?;
        let ((rows, columns), values) = (input.shape(), input.values());
        if columns != weights.inputs() {
            return Err(refused_because(format!(
                "activations have {columns} columns, the weights {} inputs",
                weights.inputs()
            )));
        }
        fill(py, out, (rows, weights.outputs()), |product| {
            py.detach(|| {
                let codes = QuantizedActivations::quantize(values, rows, weights, scaling, threads)?;
                gemm_quantized(weights, &codes, product, threads)
            })
            .map_err(refused)
        })
    }

    #[pyo3(signature = (x, *, activations = None))]
    fn round_activations<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        activations: Option<Scaling>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let (input, weights) = (Rows::take(x, "activations", false)?, &self.0);
        let scaling = scaling(activations)?;
        let ((rows, columns), values) = (input.shape(), input.values());
        let rounded = py
            .detach(|| {
                QuantizedActivations::quantize(values, rows, weights, scaling, 1).map(|codes| codes.dequantize())
            })
            .map_err(refused)?;
        matrix(py, rounded, rows, columns)
    }

    fn dequantize<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let weights = &self.0;
        let values = py.detach(|| weights.dequantize()).map_err(refused)?;
        matrix(py, values, weights.outputs(), weights.inputs())
    }

    fn __repr__(&self) -> String {
        let (outputs, inputs) = self.shape();
        format!("PackedWeights({outputs} x {inputs}, {:.3} bits per weight)", self.bits_per_weight())
    }
}
