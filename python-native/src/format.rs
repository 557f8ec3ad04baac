//! `ArrowQuant`: a format for few-bit weights, and what makes matrices of it.

use std::sync::Arc;

use mneme_quant::codec::Quantized as Matrix;
use mneme_quant::{Fit, Granularity, Scheme, Spec, Width, gptq};
use pyo3::prelude::*;

use crate::arrays::{Rows, threads_or_all};
use crate::calibration::Hessian;
use crate::error::{refused, refused_because};
use crate::packed::PackedWeights;
use crate::quant::Quantized;

/// Most iterations of the HQQ fit here.
const HQQ_ITERATIONS: u32 = 20;

/// Weights that share a scale, as Python says it.
#[derive(FromPyObject)]
pub(crate) enum Group {
    /// Runs of this many along a row.
    Size(u32),
    /// `tensor`, `row` or `column`.
    Name(String),
}

/// A format: bits, groups, arithmetic and the way scales are found.
#[pyclass(frozen, eq, from_py_object, module = "mneme_native")]
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct ArrowQuant {
    pub(crate) spec: Spec,
}

#[pymethods]
impl ArrowQuant {
    #[new]
    #[pyo3(signature = (format = "int4", *, group = None, scheme = None, fit = None))]
    fn new(format: &str, group: Option<Group>, scheme: Option<&str>, fit: Option<&str>) -> PyResult<Self> {
        let one_of = |what: &str, value: &str, known: &str| {
            refused_because(format!("{what} is {value:?}, must be one of {known}"))
        };
        let width = match format {
            "int8" => Width::Eight,
            "int4" => Width::Four,
            "int2" => Width::Two,
            "ternary" => Width::Ternary,
            other => return Err(one_of("format", other, "int8, int4, int2, ternary")),
        };
        let granularity = match group {
            None if width == Width::Eight => Granularity::OutChannel,
            None => Granularity::Group(64),
            Some(Group::Size(size)) => Granularity::Group(size),
            Some(Group::Name(name)) => match name.as_str() {
                "tensor" => Granularity::Tensor,
                "row" => Granularity::OutChannel,
                "column" => Granularity::InChannel,
                other => return Err(one_of("group", other, "tensor, row, column, 32, 64, 128, 256")),
            },
        };
        let scheme = match scheme {
            None if matches!(width, Width::Eight | Width::Ternary) => Scheme::Symmetric,
            None | Some("scale_min") => Scheme::ScaleMin,
            Some("symmetric") => Scheme::Symmetric,
            Some(other) => return Err(one_of("scheme", other, "symmetric, scale_min")),
        };
        let fit = match fit {
            None if width == Width::Eight => Fit::Range,
            None | Some("least_squares") => Fit::LeastSquares,
            Some("range") => Fit::Range,
            Some("hqq") => Fit::Hqq { iterations: HQQ_ITERATIONS },
            Some(other) => return Err(one_of("fit", other, "range, least_squares, hqq")),
        };
        let spec = Spec { width, granularity, scheme, fit };
        spec.validate().map_err(refused)?;
        Ok(Self { spec })
    }

    #[getter]
    fn format(&self) -> &'static str {
        format_name(self.spec.width)
    }

    #[getter]
    fn group(&self) -> GroupName {
        group_name(self.spec.granularity)
    }

    #[getter]
    fn scheme(&self) -> &'static str {
        scheme_name(self.spec.scheme)
    }

    #[getter]
    fn fit(&self) -> &'static str {
        match self.spec.fit {
            Fit::Range => "range",
            Fit::LeastSquares => "least_squares",
            Fit::Hqq { .. } => "hqq",
        }
    }

    fn bits_per_weight(&self, rows: usize, columns: usize) -> f64 {
        self.spec.bits_per_weight(rows, columns)
    }

    #[pyo3(signature = (weights, *, threads = None))]
    fn quantize(&self, py: Python<'_>, weights: &Bound<'_, PyAny>, threads: Option<usize>) -> PyResult<Quantized> {
        let rows = Rows::take(weights, "weights", false)?;
        let ((count, columns), values, spec) = (rows.shape(), rows.values(), self.spec);
        let threads = threads_or_all(threads);
        let matrix = py.detach(|| Matrix::quantize(values, count, columns, spec, threads)).map_err(refused)?;
        Ok(Quantized(Arc::new(matrix)))
    }

    #[pyo3(signature = (weights, hessian, *, damping = gptq::DAMPING))]
    fn gptq(
        &self,
        py: Python<'_>,
        weights: &Bound<'_, PyAny>,
        hessian: &Bound<'_, Hessian>,
        damping: f64,
    ) -> PyResult<Quantized> {
        let rows = Rows::take(weights, "weights", false)?;
        let ((outputs, inputs), values, spec) = (rows.shape(), rows.values(), self.spec);
        if !(damping.is_finite() && damping >= 0.0) {
            return Err(refused_because(format!("damping is {damping}, must be finite and not negative")));
        }
        let curvature = hessian.borrow().shared();
        let matrix = py.detach(|| gptq::gptq(values, outputs, inputs, spec, &curvature, damping)).map_err(refused)?;
        Ok(Quantized(Arc::new(matrix)))
    }

    #[pyo3(signature = (weights, *, threads = None))]
    fn pack(&self, py: Python<'_>, weights: &Bound<'_, PyAny>, threads: Option<usize>) -> PyResult<PackedWeights> {
        self.quantize(py, weights, threads)?.pack(py)
    }

    fn __repr__(&self) -> String {
        let group = match self.group() {
            GroupName::Size(size) => size.to_string(),
            GroupName::Name(name) => format!("'{name}'"),
        };
        format!("ArrowQuant('{}', group={group}, scheme='{}', fit='{}')", self.format(), self.scheme(), self.fit())
    }
}

/// Weights that share a scale, as Python sees it.
#[derive(IntoPyObject)]
pub(crate) enum GroupName {
    Size(u32),
    Name(&'static str),
}

pub(crate) fn group_name(granularity: Granularity) -> GroupName {
    match granularity {
        Granularity::Tensor => GroupName::Name("tensor"),
        Granularity::OutChannel => GroupName::Name("row"),
        Granularity::InChannel => GroupName::Name("column"),
        Granularity::Group(size) => GroupName::Size(size),
    }
}

pub(crate) fn format_name(width: Width) -> &'static str {
    match width {
        Width::Ternary => "ternary",
        Width::Two => "int2",
        Width::Four => "int4",
        Width::Eight => "int8",
    }
}

pub(crate) fn scheme_name(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::Symmetric => "symmetric",
        Scheme::ScaleMin => "scale_min",
    }
}
