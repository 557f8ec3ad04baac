//! Memory that Rust owns, as read-only numpy arrays, without copies and without `unsafe`: numpy reads the address from the
//! array interface (`__array_interface__`, version 3) and holds on to the object that has it.

use std::any::Any;

use half::f16;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

/// Element types, as numpy spells them.
pub(crate) trait Element {
    /// The type string.
    const CODE: &'static str;
}

impl Element for u8 {
    const CODE: &'static str = "|u1";
}

impl Element for i8 {
    const CODE: &'static str = "|i1";
}

impl Element for f16 {
    const CODE: &'static str = "<f2";
}

impl Element for f32 {
    const CODE: &'static str = "<f4";
}

/// A piece of memory and its owner.
#[pyclass(frozen, module = "mneme_native")]
pub(crate) struct Memory {
    /// Never read: it only keeps the memory where it is.
    _owner: Box<dyn Any + Send + Sync>,
    address: usize,
    shape: Vec<usize>,
    code: &'static str,
}

#[pymethods]
impl Memory {
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("typestr", self.code)?;
        interface.set_item("shape", PyTuple::new(py, &self.shape)?)?;
        // True: nobody may write.
        interface.set_item("data", (self.address, true))?;
        Ok(interface)
    }
}

/// A read-only array over bytes that `owner` holds still: an `Arc`, or `Bytes`. `address` is theirs, and the shape and the type
/// cover no more than they are long.
pub(crate) fn view<'py>(
    py: Python<'py>,
    owner: impl Any + Send + Sync,
    address: usize,
    shape: Vec<usize>,
    code: &'static str,
) -> PyResult<Bound<'py, PyAny>> {
    let memory = Memory { _owner: Box::new(owner), address, shape, code };
    py.import("numpy")?.call_method1("asarray", (memory,))
}

/// As [`view`], of a slice that `owner` holds still.
pub(crate) fn view_of<'py, T: Element>(
    py: Python<'py>,
    owner: impl Any + Send + Sync,
    slice: &[T],
    shape: Vec<usize>,
) -> PyResult<Bound<'py, PyAny>> {
    debug_assert_eq!(shape.iter().product::<usize>(), slice.len());
    let address = slice.as_ptr() as usize;
    view(py, owner, address, shape, T::CODE)
}
