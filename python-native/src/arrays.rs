//! What comes in: numpy arrays and Arrow arrays as slices, without copies. What would need a copy is refused with the call
//! that makes one, so that a copy is never a surprise.

use arrow::array::AsArray;
use arrow::array::{Array, ArrayData, FixedSizeListArray, Float32Array, make_array};
use arrow::datatypes::Float32Type;
use arrow_pyarrow::FromPyArrow;
use numpy::{Element, PyArray1, PyArray2, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::error::refused_because;

/// Borrows a C-contiguous array; one that is being written by another call is refused.
pub(crate) fn borrow<'py, T: Element>(
    array: &Bound<'py, PyArrayDyn<T>>,
    what: &str,
) -> PyResult<PyReadonlyArrayDyn<'py, T>> {
    if !array.is_c_contiguous() {
        return Err(refused_because(format!("{what} do not lie row by row; numpy.ascontiguousarray makes them so")));
    }
    let borrowed =
        array.try_readonly().map_err(|_| refused_because(format!("{what} are being written by another call")))?;
    borrowed.as_slice().map_err(|_| refused_because(format!("{what} are not aligned; numpy.array copies them")))?;
    Ok(borrowed)
}

/// A copy of the elements.
pub(crate) fn copied<T: Element + Copy>(array: &Bound<'_, PyArrayDyn<T>>, what: &str) -> PyResult<Vec<T>> {
    Ok(borrow(array, what)?.as_slice().unwrap_or_default().to_vec())
}

/// Rows of floats from numpy (two dimensions) or Arrow (`fixed_size_list<float>`).
pub(crate) enum Rows<'py> {
    Numpy(PyReadonlyArrayDyn<'py, f32>, usize, usize),
    Arrow(Float32Array, usize, usize),
}

impl<'py> Rows<'py> {
    /// Takes either kind; a numpy vector counts as one row when `one_row` allows it.
    pub(crate) fn take(value: &Bound<'py, PyAny>, what: &str, one_row: bool) -> PyResult<Self> {
        if value.hasattr("__arrow_c_array__")? {
            return Self::of_arrow(value, what);
        }
        let Ok(array) = value.cast::<PyArrayDyn<f32>>() else {
            return Err(refused_because(format!(
                "{what} are neither a numpy array of float32 nor an Arrow fixed_size_list<float>"
            )));
        };
        let (rows, columns) = match *array.shape() {
            [columns] if one_row => (1, columns),
            [rows, columns] => (rows, columns),
            ref shape => return Err(refused_because(format!("{what} have the shape {shape:?}, two axes are needed"))),
        };
        Ok(Self::Numpy(borrow(array, what)?, rows, columns))
    }

    fn of_arrow(value: &Bound<'py, PyAny>, what: &str) -> PyResult<Self> {
        let array = make_array(ArrayData::from_pyarrow_bound(value)?);
        let wrong =
            || refused_because(format!("{what} are Arrow {}, fixed_size_list<float> is needed", array.data_type()));
        let lists: &FixedSizeListArray = array.as_fixed_size_list_opt().ok_or_else(wrong)?;
        if lists.null_count() > 0 || lists.values().null_count() > 0 {
            return Err(refused_because(format!("{what} hold nulls")));
        }
        let columns = lists.value_length() as usize;
        let first = lists.value_offset(0) as usize;
        let values = lists.values().slice(first, lists.len() * columns);
        let floats = values.as_primitive_opt::<Float32Type>().ok_or_else(wrong)?.clone();
        Ok(Self::Arrow(floats, lists.len(), columns))
    }

    /// Rows and columns.
    pub(crate) fn shape(&self) -> (usize, usize) {
        match self {
            Self::Numpy(_, rows, columns) | Self::Arrow(_, rows, columns) => (*rows, *columns),
        }
    }

    /// All values, row by row.
    pub(crate) fn values(&self) -> &[f32] {
        match self {
            Self::Numpy(array, ..) => array.as_slice().unwrap_or_default(),
            Self::Arrow(array, ..) => array.values(),
        }
    }
}

/// A new matrix that takes the values over.
pub(crate) fn matrix<T: Element>(
    py: Python<'_>,
    values: Vec<T>,
    rows: usize,
    columns: usize,
) -> PyResult<Bound<'_, PyArray2<T>>> {
    PyArray1::from_vec(py, values).reshape([rows, columns])
}

/// Runs `work` on the caller's array of `rows * columns`, or on a new one, and gives it back.
pub(crate) fn fill<'py>(
    py: Python<'py>,
    out: Option<Bound<'py, PyAny>>,
    (rows, columns): (usize, usize),
    work: impl FnOnce(&mut [f32]) -> PyResult<()>,
) -> PyResult<Bound<'py, PyAny>> {
    let Some(out) = out else {
        let mut values = vec![0.0; rows * columns];
        work(&mut values)?;
        return Ok(matrix(py, values, rows, columns)?.into_any());
    };
    let wrong =
        || refused_because(format!("out is not a writeable numpy array of float32 of {rows} x {columns}, row by row"));
    {
        let array = out.cast::<PyArrayDyn<f32>>().map_err(|_| wrong())?;
        if array.shape() != [rows, columns] || !array.is_c_contiguous() {
            return Err(wrong());
        }
        let borrowed = array.try_readwrite();
        let mut borrowed = borrowed.map_err(|_| refused_because("out is read-only, or an input of this call"))?;
        work(borrowed.as_slice_mut().map_err(|_| wrong())?)?;
    }
    Ok(out)
}

/// Threads for a call: as asked, else those of the machine.
pub(crate) fn threads_or_all(threads: Option<usize>) -> usize {
    threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get)).max(1)
}
