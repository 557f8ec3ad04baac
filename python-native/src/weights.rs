//! `WeightFile`: tensors of a mapped file, and conversion to Parquet V2.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryViewArray, Int64Array, ListArray, StringArray, make_view};
use arrow::buffer::{Buffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use arrow::record_batch::RecordBatch;
use arrow_pyarrow::PyArrowType;
use bytes::Bytes;
use mneme_quant::Spec;
use mneme_weights::convert::{ConvertOptions, Extras, Names, convert, gguf_extras};
use mneme_weights::v2::QuantizedParts;
use mneme_weights::{DType, GgufFile, OpenError, SafetensorsFile, TensorError, TensorInfo, TensorSource, V2File};
use pyo3::exceptions::{PyKeyError, PyOSError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arrays::{fill, threads_or_all};
use crate::error::{chain, refused, refused_because};
use crate::format::ArrowQuant;
use crate::memory::view;
use crate::quant::Quantized;

/// A file of any format that is read.
enum Source {
    V2(V2File),
    Gguf(GgufFile),
    Safetensors(SafetensorsFile),
}

impl Source {
    fn open(path: &std::path::Path) -> Result<Self, OpenError> {
        let storage = mneme_weights::Storage::open(path)?;
        let bytes = storage.bytes();
        if bytes.starts_with(b"GGUF") {
            Ok(Self::Gguf(GgufFile::parse(storage)?))
        } else if bytes.starts_with(b"PAR1") {
            Ok(Self::V2(V2File::parse(storage)?))
        } else if bytes.get(8) == Some(&b'{') {
            Ok(Self::Safetensors(SafetensorsFile::parse(storage)?))
        } else {
            Err(OpenError::UnknownFormat)
        }
    }

    fn tensors(&self) -> &dyn TensorSource {
        match self {
            Self::V2(file) => file,
            Self::Gguf(file) => file,
            Self::Safetensors(file) => file,
        }
    }

    fn extras(&self) -> Result<Extras, OpenError> {
        match self {
            Self::V2(file) => {
                let attachments = file.attachments().filter_map(|name| Some((name.to_owned(), file.attachment(name)?)));
                Ok((file.metadata().clone(), attachments.collect()))
            }
            Self::Gguf(file) => gguf_extras(file),
            Self::Safetensors(file) => Ok((file.metadata().clone(), Extras::default().1)),
        }
    }
}

fn open_failed(error: OpenError) -> PyErr {
    match error {
        OpenError::Io(_) => PyOSError::new_err(chain(&error)),
        other => refused(other),
    }
}

fn read_failed(error: TensorError) -> PyErr {
    match error {
        TensorError::Missing(name) => PyKeyError::new_err(name),
        other => refused(other),
    }
}

/// An open file of weights.
#[pyclass(frozen, module = "mneme_native")]
pub(crate) struct WeightFile(Arc<Source>);

impl WeightFile {
    fn info(&self, name: &str) -> PyResult<&TensorInfo> {
        self.0.tensors().info(name).map_err(read_failed)
    }

    fn parts(&self, name: &str) -> PyResult<QuantizedParts> {
        self.info(name)?;
        let parts = match &*self.0 {
            Source::V2(file) => file.quantized(name).map_err(read_failed)?,
            _ => None,
        };
        parts.ok_or_else(|| refused_because(format!("tensor {name:?} is not quantised in Parquet V2")))
    }
}

#[pymethods]
impl WeightFile {
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        Ok(Self(Arc::new(py.detach(|| Source::open(&path)).map_err(open_failed)?)))
    }

    #[getter]
    fn format(&self) -> &'static str {
        match &*self.0 {
            Source::V2(_) => "parquet_v2",
            Source::Gguf(_) => "gguf",
            Source::Safetensors(_) => "safetensors",
        }
    }

    #[getter]
    fn names(&self) -> Vec<String> {
        self.0.tensors().tensors().iter().map(|tensor| tensor.name.clone()).collect()
    }

    fn __len__(&self) -> usize {
        self.0.tensors().tensors().len()
    }

    fn __contains__(&self, name: &str) -> bool {
        self.0.tensors().find(name).is_some()
    }

    #[getter]
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let metadata = PyDict::new(py);
        for (key, value) in self.0.extras().map_err(open_failed)?.0 {
            metadata.set_item(key, value)?;
        }
        Ok(metadata)
    }

    #[getter]
    fn attachments<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let attachments = PyDict::new(py);
        for (name, bytes) in self.0.extras().map_err(open_failed)?.1 {
            attachments.set_item(name, bytes_view(py, bytes)?)?;
        }
        Ok(attachments)
    }

    fn shape(&self, name: &str) -> PyResult<Vec<usize>> {
        Ok(self.info(name)?.shape.clone())
    }

    fn dtype(&self, name: &str) -> PyResult<&'static str> {
        Ok(self.info(name)?.dtype.name())
    }

    fn raw<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        bytes_view(py, self.0.tensors().raw(name).map_err(read_failed)?)
    }

    fn array<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        let info = self.info(name)?;
        let code = numpy_code(info.dtype).ok_or_else(|| {
            refused_because(format!("numpy has no type for {} of tensor {name:?}; decode gives float32", info.dtype))
        })?;
        let bytes = self.0.tensors().raw(name).map_err(read_failed)?;
        let address = bytes.as_ptr() as usize;
        view(py, bytes, address, info.shape.clone(), code)
    }

    #[pyo3(signature = (name, *, out = None))]
    fn decode<'py>(&self, py: Python<'py>, name: &str, out: Option<Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>> {
        let info = self.info(name)?;
        let columns = info.shape.last().copied().unwrap_or(1);
        let rows = info.elements().checked_div(columns).unwrap_or(0);
        let source = &self.0;
        let filled = fill(py, out, (rows, columns), |values| {
            py.detach(|| source.tensors().decode_into(name, values)).map_err(read_failed)
        })?;
        filled.call_method1("reshape", (info.shape.clone(),))
    }

    fn quantized(&self, py: Python<'_>, name: &str) -> PyResult<Quantized> {
        let parts = self.parts(name)?;
        let matrix = py.detach(|| parts.rows(0, parts.rows)).ok_or_else(|| {
            refused_because(format!("tensor {name:?} has scales for each column and is read by codes and scales only"))
        })?;
        Ok(Quantized(Arc::new(matrix.map_err(refused)?)))
    }

    fn codes<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        bytes_view(py, self.parts(name)?.codes)
    }

    fn scales<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        halves_view(py, self.parts(name)?.scales)
    }

    fn minimums<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        halves_view(py, self.parts(name)?.minimums)
    }

    fn verify(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        let Source::V2(file) = &*self.0 else {
            return Err(refused_because("only Parquet V2 stores hashes"));
        };
        py.detach(|| file.verify(name)).map_err(read_failed)
    }

    fn to_arrow(&self) -> PyResult<PyArrowType<RecordBatch>> {
        let source = self.0.tensors();
        let mut names = Vec::new();
        let mut dtypes = Vec::new();
        let mut shapes = Vec::new();
        let mut data: [Vec<Bytes>; 3] = Default::default();
        for tensor in source.tensors() {
            names.push(tensor.name.as_str());
            dtypes.push(tensor.dtype.name());
            shapes.push(Some(tensor.shape.iter().map(|side| Some(*side as i64)).collect::<Vec<_>>()));
            let parts = match &*self.0 {
                Source::V2(file) => file.quantized(&tensor.name).map_err(read_failed)?,
                _ => None,
            };
            let [codes, scales, minimums] = match parts {
                Some(parts) => [parts.codes, parts.scales, parts.minimums],
                None => [source.raw(&tensor.name).map_err(read_failed)?, Bytes::new(), Bytes::new()],
            };
            data[0].push(codes);
            data[1].push(scales);
            data[2].push(minimums);
        }
        let elements: Vec<i64> = source.tensors().iter().map(|tensor| tensor.elements() as i64).collect();
        let item = Arc::new(Field::new_list_field(DataType::Int64, true));
        let [codes, scales, minimums] = data;
        let columns: Vec<(&str, DataType, ArrayRef)> = vec![
            ("name", DataType::Utf8, Arc::new(StringArray::from(names))),
            ("dtype", DataType::Utf8, Arc::new(StringArray::from(dtypes))),
            ("shape", DataType::List(item), Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(shapes))),
            ("elements", DataType::Int64, Arc::new(Int64Array::from(elements))),
            ("codes", DataType::BinaryView, shared(codes)?),
            ("scales", DataType::BinaryView, shared(scales)?),
            ("minimums", DataType::BinaryView, shared(minimums)?),
        ];
        let fields: Vec<Field> = columns.iter().map(|(name, kind, _)| Field::new(*name, kind.clone(), false)).collect();
        let columns = columns.into_iter().map(|(_, _, column)| column).collect();
        Ok(PyArrowType(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(refused)?))
    }

    fn __repr__(&self) -> String {
        format!("WeightFile({}, {} tensors)", self.format(), self.__len__())
    }
}

impl WeightFile {
    /// The vocabulary of a GGUF file.
    pub(crate) fn gguf(path: &std::path::Path) -> PyResult<GgufFile> {
        GgufFile::open(path).map_err(open_failed)
    }
}

/// A column whose values are the bytes themselves.
fn shared(values: Vec<Bytes>) -> PyResult<ArrayRef> {
    let mut buffers = Vec::with_capacity(values.len());
    let mut views = Vec::with_capacity(values.len());
    for bytes in values {
        // Arrow's views have 32-bit lengths.
        if i32::try_from(bytes.len()).is_err() {
            return Err(refused_because(format!("a tensor of {} bytes, an Arrow view holds 2 GiB", bytes.len())));
        }
        views.push(make_view(&bytes, buffers.len() as u32, 0));
        buffers.push(Buffer::from(bytes));
    }
    Ok(Arc::new(BinaryViewArray::try_new(ScalarBuffer::from(views), buffers, None).map_err(refused)?))
}

fn bytes_view(py: Python<'_>, bytes: Bytes) -> PyResult<Bound<'_, PyAny>> {
    let (address, length) = (bytes.as_ptr() as usize, bytes.len());
    view(py, bytes, address, vec![length], "|u1")
}

fn halves_view(py: Python<'_>, bytes: Bytes) -> PyResult<Bound<'_, PyAny>> {
    let (address, length) = (bytes.as_ptr() as usize, bytes.len() / 2);
    view(py, bytes, address, vec![length], "<f2")
}

/// Numpy's name of a type; None for blocks and for bfloat16, which it lacks.
fn numpy_code(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::F64 => "<f8",
        DType::F32 => "<f4",
        DType::F16 => "<f2",
        DType::I64 => "<i8",
        DType::U64 => "<u8",
        DType::I32 => "<i4",
        DType::U32 => "<u4",
        DType::I16 => "<i2",
        DType::U16 => "<u2",
        DType::I8 => "|i1",
        DType::U8 => "|u1",
        DType::Bool => "|b1",
        _ => return None,
    })
}

/// Writes a file of any known format as Parquet V2; gives what it did.
#[pyfunction]
#[pyo3(signature = (source, destination, *, quantize = None, embedding = None, huggingface = false, threads = None))]
pub(crate) fn convert_weights(
    py: Python<'_>,
    source: PathBuf,
    destination: PathBuf,
    quantize: Option<ArrowQuant>,
    embedding: Option<ArrowQuant>,
    huggingface: bool,
    threads: Option<usize>,
) -> PyResult<Bound<'_, PyDict>> {
    let options = ConvertOptions {
        quantize: quantize.map(|quant| quant.spec),
        quantize_embedding: quantize.map(|_| embedding.map_or_else(Spec::int8, |quant| quant.spec)),
        names: if huggingface { Names::HuggingFace } else { Names::Keep },
        threads: threads_or_all(threads),
    };
    let file = py.detach(|| Source::open(&source)).map_err(open_failed)?;
    let (mut metadata, attachments) = file.extras().map_err(open_failed)?;
    if let Some(spec) = options.quantize {
        metadata.insert("quantize".to_owned(), serde_json::to_string(&spec).map_err(refused)?);
    }
    let report = py
        .detach(|| convert(file.tensors(), &destination, &metadata, &attachments, &options, |_, _| {}))
        .map_err(refused)?;
    let told = PyDict::new(py);
    told.set_item("tensors", report.tensors)?;
    told.set_item("quantized", report.quantized)?;
    told.set_item("elements", report.elements)?;
    told.set_item("bytes_before", report.bytes_before)?;
    told.set_item("bytes_after", report.bytes_after)?;
    told.set_item("file_bytes", report.file_bytes)?;
    told.set_item("bits_per_element", report.bits_per_element)?;
    Ok(told)
}
