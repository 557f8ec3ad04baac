//! `FastTokenizer`: text to ids and back, one by one or in batches over all cores.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, ArrayData, AsArray, LargeListArray, UInt32Array, make_array};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, UInt32Type};
use arrow_pyarrow::{FromPyArrow, ToPyArrow};
use mneme_text::{ControlText, ControlTokens, EncodeOptions, FastTokenizer as Inner, Vocabulary};
use numpy::{PyArray1, PyArray2, PyArrayDyn};
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;

use crate::arrays::{copied, matrix};
use crate::error::{refused, refused_because};
use crate::weights::WeightFile;

/// A tokenizer; never changes, and may be used from many threads at once.
#[pyclass(frozen, module = "mneme_native")]
pub(crate) struct FastTokenizer(Arc<Inner>);

fn options(control: &str, template: bool, tokens_max: Option<usize>) -> PyResult<EncodeOptions> {
    let control = match control {
        "text" => ControlTokens::AsText,
        "recognize" => ControlTokens::Recognize,
        other => return Err(refused_because(format!("control is {other:?}, must be text or recognize"))),
    };
    Ok(EncodeOptions { control, template, tokens_max })
}

fn shown(control: bool) -> ControlText {
    if control { ControlText::Show } else { ControlText::Hide }
}

/// Texts of a Python sequence or of an Arrow array of strings, borrowed from either.
enum Texts {
    Python(Vec<PyBackedStr>),
    Arrow(Arc<dyn Array>),
}

impl Texts {
    fn take(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        if !value.hasattr("__arrow_c_array__")? {
            return Ok(Self::Python(value.extract()?));
        }
        let array = make_array(ArrayData::from_pyarrow_bound(value)?);
        if !matches!(array.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) {
            return Err(refused_because(format!("texts are Arrow {}, strings are needed", array.data_type())));
        }
        if array.null_count() > 0 {
            return Err(refused_because("texts hold nulls"));
        }
        Ok(Self::Arrow(array))
    }

    fn all(&self) -> Vec<&str> {
        match self {
            Self::Python(texts) => texts.iter().map(|text| &**text).collect(),
            Self::Arrow(array) => match array.data_type() {
                DataType::Utf8 => array.as_string::<i32>().iter().map(Option::unwrap_or_default).collect(),
                DataType::LargeUtf8 => array.as_string::<i64>().iter().map(Option::unwrap_or_default).collect(),
                _ => array.as_string_view().iter().map(Option::unwrap_or_default).collect(),
            },
        }
    }
}

#[pymethods]
impl FastTokenizer {
    #[staticmethod]
    fn from_json(py: Python<'_>, json: &[u8]) -> PyResult<Self> {
        Ok(Self(Arc::new(py.detach(|| Inner::from_json(json)).map_err(refused)?)))
    }

    #[staticmethod]
    fn from_file(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let read = || -> std::io::Result<Vec<u8>> {
            use std::io::Read as _;
            let mut start = Vec::new();
            fs_err::File::open(&path)?.take(4).read_to_end(&mut start)?;
            if start == b"GGUF" { Ok(Vec::new()) } else { fs_err::read(&path) }
        };
        let json = py.detach(read).map_err(|error| PyOSError::new_err(error.to_string()))?;
        if !json.is_empty() {
            return Self::from_json(py, &json);
        }
        let file = py.detach(|| WeightFile::gguf(&path))?;
        let parts = file.vocabulary().map_err(refused)?;
        let parts = parts.ok_or_else(|| refused_because(format!("{} has no vocabulary", path.display())))?;
        let vocabulary = Vocabulary {
            model: &parts.model,
            pre_tokenizer: parts.pre_tokenizer.as_deref(),
            tokens: &parts.tokens,
            merges: &parts.merges,
            token_types: &parts.token_types,
            scores: &parts.scores,
            bos_id: parts.bos_id,
            eos_id: parts.eos_id,
            add_bos: parts.add_bos,
            add_eos: parts.add_eos,
            add_space_prefix: parts.add_space_prefix,
        };
        Ok(Self(Arc::new(py.detach(|| Inner::from_vocabulary(&vocabulary)).map_err(refused)?)))
    }

    #[pyo3(signature = (text, *, control = "text", template = false, tokens_max = None))]
    fn encode<'py>(
        &self,
        py: Python<'py>,
        text: &str,
        control: &str,
        template: bool,
        tokens_max: Option<usize>,
    ) -> PyResult<Bound<'py, PyArray1<u32>>> {
        let options = options(control, template, tokens_max)?;
        let mut ids = py.detach(|| self.0.encode_batch_ids(&[text], options)).map_err(refused)?;
        Ok(PyArray1::from_vec(py, ids.pop().unwrap_or_default()))
    }

    #[pyo3(signature = (text, *, control = "text", template = false, tokens_max = None))]
    #[expect(clippy::type_complexity, reason = "the types of a Python tuple")]
    fn encode_with_offsets<'py>(
        &self,
        py: Python<'py>,
        text: &str,
        control: &str,
        template: bool,
        tokens_max: Option<usize>,
    ) -> PyResult<(Bound<'py, PyArray1<u32>>, Bound<'py, PyArray2<u64>>)> {
        let options = options(control, template, tokens_max)?;
        let encoding = py.detach(|| self.0.encode_with(text, options)).map_err(refused)?;
        let offsets: Vec<u64> = encoding.offsets.iter().flat_map(|(start, end)| [*start as u64, *end as u64]).collect();
        let count = encoding.offsets.len();
        Ok((PyArray1::from_vec(py, encoding.ids), matrix(py, offsets, count, 2)?))
    }

    #[pyo3(signature = (texts, *, control = "text", template = false, tokens_max = None))]
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        control: &str,
        template: bool,
        tokens_max: Option<usize>,
    ) -> PyResult<Vec<Bound<'py, PyArray1<u32>>>> {
        let encoded = self.batch(py, texts, options(control, template, tokens_max)?)?;
        Ok(encoded.into_iter().map(|ids| PyArray1::from_vec(py, ids)).collect())
    }

    #[pyo3(signature = (texts, *, control = "text", template = false, tokens_max = None))]
    fn encode_batch_arrow<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        control: &str,
        template: bool,
        tokens_max: Option<usize>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let encoded = self.batch(py, texts, options(control, template, tokens_max)?)?;
        let lists = py.detach(|| {
            let offsets = OffsetBuffer::from_lengths(encoded.iter().map(Vec::len));
            // Offsets of 64 bits, as LargeList has them.
            let offsets: Vec<i64> = offsets.iter().map(|offset: &i32| i64::from(*offset)).collect();
            let ids = UInt32Array::new(ScalarBuffer::from(encoded.concat()), None);
            let field = Arc::new(Field::new_list_field(DataType::UInt32, false));
            LargeListArray::try_new(field, OffsetBuffer::new(ScalarBuffer::from(offsets)), Arc::new(ids), None)
        });
        lists.map_err(refused)?.into_data().to_pyarrow(py)
    }

    #[pyo3(signature = (ids, *, show_control = false))]
    fn decode(&self, py: Python<'_>, ids: &Bound<'_, PyAny>, show_control: bool) -> PyResult<String> {
        let ids = ids_of(ids)?;
        py.detach(|| self.0.decode(&ids, shown(show_control))).map_err(refused)
    }

    #[pyo3(signature = (batch, *, show_control = false))]
    fn decode_batch(&self, py: Python<'_>, batch: &Bound<'_, PyAny>, show_control: bool) -> PyResult<Vec<String>> {
        let all: Vec<Vec<u32>> = if batch.hasattr("__arrow_c_array__")? {
            let array = make_array(ArrayData::from_pyarrow_bound(batch)?);
            let wrong =
                || refused_because(format!("ids are Arrow {}, large_list<uint32> is needed", array.data_type()));
            let lists = array.as_list_opt::<i64>().ok_or_else(wrong)?;
            let texts = lists.iter().map(|list| {
                let list = list.ok_or_else(|| refused_because("ids hold nulls"))?;
                Ok(list.as_primitive_opt::<UInt32Type>().ok_or_else(wrong)?.values().to_vec())
            });
            texts.collect::<PyResult<_>>()?
        } else {
            batch.try_iter()?.map(|ids| ids_of(&ids?)).collect::<PyResult<_>>()?
        };
        let control = shown(show_control);
        py.detach(|| all.iter().map(|ids| self.0.decode(ids, control)).collect::<Result<_, _>>()).map_err(refused)
    }

    fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.0.token_bytes(id)
    }

    fn token_id(&self, text: &str) -> Option<u32> {
        self.0.token_id(text)
    }

    fn token_text(&self, id: u32) -> Option<String> {
        self.0.token_text(id)
    }

    fn is_control(&self, id: u32) -> bool {
        self.0.is_control(id)
    }

    #[getter]
    fn control_ids(&self) -> Vec<u32> {
        self.0.control_ids()
    }

    #[getter]
    fn vocabulary_size(&self) -> usize {
        self.0.vocabulary_size()
    }

    fn __repr__(&self) -> String {
        format!("FastTokenizer({} tokens)", self.0.vocabulary_size())
    }
}

impl FastTokenizer {
    fn batch(&self, py: Python<'_>, texts: &Bound<'_, PyAny>, options: EncodeOptions) -> PyResult<Vec<Vec<u32>>> {
        let texts = Texts::take(texts)?;
        let all = texts.all();
        py.detach(|| self.0.encode_batch_ids(&all, options)).map_err(refused)
    }
}

/// Ids of a numpy array of uint32 or of a sequence of numbers.
fn ids_of(ids: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    match ids.cast::<PyArrayDyn<u32>>() {
        Ok(array) => copied(array, "ids"),
        Err(_) => ids.extract(),
    }
}
