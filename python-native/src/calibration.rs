//! What chooses codes well: the Hessian of a layer's inputs for GPTQ, and the search for group lengths.

use std::sync::{Arc, Mutex, PoisonError};

use mneme_quant::calibrate::Hessian as Curvature;
use mneme_quant::search::{Search, SearchSettings};
use numpy::PyArray2;
use pyo3::prelude::*;

use crate::arrays::{Rows, matrix};
use crate::error::refused;

/// The mean of `2 x x^T` over the tokens seen.
#[pyclass(frozen, module = "mneme_native")]
pub(crate) struct Hessian(Mutex<Arc<Curvature>>);

impl Hessian {
    /// The state of now; later additions do not change it.
    pub(crate) fn shared(&self) -> Arc<Curvature> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[pymethods]
impl Hessian {
    #[new]
    fn new(inputs: usize) -> PyResult<Self> {
        Ok(Self(Mutex::new(Arc::new(Curvature::new(inputs).map_err(refused)?))))
    }

    #[pyo3(signature = (activations, *, weight = 1.0))]
    fn add(&self, py: Python<'_>, activations: &Bound<'_, PyAny>, weight: f64) -> PyResult<()> {
        let rows = Rows::take(activations, "activations", false)?;
        let values = rows.values();
        // The lock is taken with the interpreter released, and given back before it is taken again.
        py.detach(|| {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::make_mut(&mut state).add(values, weight)
        })
        .map_err(refused)
    }

    #[getter]
    fn inputs(&self) -> usize {
        self.shared().inputs()
    }

    #[getter]
    fn tokens(&self) -> u64 {
        self.shared().tokens()
    }

    fn output_error(&self, py: Python<'_>, difference: &Bound<'_, PyAny>) -> PyResult<f64> {
        let rows = Rows::take(difference, "differences", false)?;
        let (values, state) = (rows.values(), self.shared());
        py.detach(|| state.output_error(values)).map_err(refused)
    }

    fn to_numpy<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<f64>>> {
        let state = self.shared();
        let size = state.inputs();
        let values = py.detach(|| (0..size * size).map(|index| state.get(index / size, index % size)).collect());
        matrix(py, values, size, size)
    }
}

/// Searches a choice for each place by evolution; an exception of the fitness ends the search and is raised.
#[pyfunction]
#[pyo3(signature = (fitness, places, *, choices = vec![32, 64, 128, 256], start = 64, mean_min = 64.0, population = 50,
    kept = 10, generations = 10, crossovers = 25, mutation = 0.1, seed = 0, progress = None))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of one Python call")]
pub(crate) fn search_groups(
    fitness: &Bound<'_, PyAny>,
    places: usize,
    choices: Vec<u32>,
    start: u32,
    mean_min: f64,
    population: usize,
    kept: usize,
    generations: u32,
    crossovers: usize,
    mutation: f64,
    seed: u64,
    progress: Option<Bound<'_, PyAny>>,
) -> PyResult<(Vec<u32>, f64)> {
    let settings =
        SearchSettings { choices, start, mean_min, population, kept, generations, crossovers, mutation, seed };
    let mut search = Search::new(settings, places).map_err(refused)?;
    let failure = Mutex::new(None);
    let keep = |error: PyErr| {
        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    };
    let mut loss = |genes: &[u32]| -> Option<f64> {
        let found = fitness.call1((genes.to_vec(),)).and_then(|loss| loss.extract::<Option<f64>>());
        found.map_err(&keep).ok().flatten()
    };
    let mut seen = |search: &Search| -> bool {
        let now = search.progress();
        let best = now.best.map(|best| best.loss);
        let told = match &progress {
            Some(call) => call.call1((now.generation, now.evaluations, best)).map(|_| ()),
            None => Ok(()),
        };
        let told = told.and_then(|()| fitness.py().check_signals());
        told.map_err(&keep).is_ok() && failure.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    };
    let found = search.run(&mut loss, &mut seen);
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let best = found.map_err(refused)?;
    Ok((best.genes, best.loss))
}
