//! Adapters on disk: `adapter.safetensors` in the adapter's folder, bound to the hash of its base model.

use std::io::Write as _;
use std::path::Path;

use mneme_base::ContentHash;
use mneme_engine_api::AdapterLevel;
use mneme_weights::{SafetensorsFile, TensorSource};
use serde_json::{Map, Value, json};
use tch::{Device, Tensor};

use crate::error::{ModelError, Result};
use crate::nn::adapter::{Adapter, Delta, LowRank, RANK_MAX, Reach, Slot};
use crate::nn::backbone::BackboneConfig;
use crate::nn::control::{Control, ControlNet, WIDTH_MAX};

/// The file inside an adapter's folder.
pub const NAME: &str = "adapter.safetensors";
/// What the metadata must say, so that another program's adapter is not misread.
const FORMAT: &str = "mneme-adapter/2";
/// What adapters of low rank said before there were others; they are still read.
const FORMAT_LORA: &str = "mneme-lora/1";

/// How numbers are kept in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// As they are.
    F32,
    /// In half the bytes; enough for factors that are not trained on.
    F16,
}

/// Writes an adapter so that a crash leaves the old file or the new one.
///
/// `job`: what it was trained by, so that the same job is not done twice. `kind`: how its numbers are kept.
pub fn write(folder: &Path, adapter: &Adapter, base_hash: ContentHash, job: ContentHash, kind: Stored) -> Result<()> {
    let tensors = adapter.named().into_iter().map(|(name, tensor)| (name, tensor.shallow_clone())).collect();
    let metadata = [
        ("format", FORMAT.to_owned()),
        ("base_hash", base_hash.to_string()),
        ("job", job.to_string()),
        ("strength", adapter.strength.to_string()),
        ("level", level_name(adapter.level()).to_owned()),
        ("blocks", adapter.deltas.iter().map(|delta| delta.block.to_string()).collect::<Vec<_>>().join(",")),
        ("reach", adapter.reach.name().to_owned()),
    ];
    let bytes = encode(&metadata, tensors, kind)?;
    fs_err::create_dir_all(folder)?;
    replace(&folder.join(NAME), &bytes)
}

fn level_name(level: AdapterLevel) -> &'static str {
    match level {
        AdapterLevel::Composition => "composition",
        AdapterLevel::ControlNet => "control_net",
        AdapterLevel::Lora => "lora",
        AdapterLevel::Layers => "layers",
    }
}

/// Whether a folder holds the adapter that this job makes.
pub fn is_of_job(folder: &Path, job: ContentHash) -> bool {
    let said = SafetensorsFile::open(&folder.join(NAME)).ok().and_then(|file| file.metadata().get("job").cloned());
    said == Some(job.to_string())
}

/// Reads an adapter, refusing one of another base model or another shape.
pub fn read(folder: &Path, config: &BackboneConfig, base_hash: ContentHash, device: Device) -> Result<Adapter> {
    let path = folder.join(NAME);
    let what = || path.display().to_string();
    let file = SafetensorsFile::open(&path)?;
    let said = |key: &str| file.metadata().get(key).map(String::as_str);
    let level = match (said("format"), said("level")) {
        (Some(FORMAT_LORA), _) | (Some(FORMAT), Some("lora")) => AdapterLevel::Lora,
        (Some(FORMAT), Some("control_net")) => AdapterLevel::ControlNet,
        (Some(FORMAT), Some("layers")) => AdapterLevel::Layers,
        (Some(FORMAT), other) => return Err(ModelError::load(what(), format!("its level is {other:?}"))),
        _ => AdapterLevel::Composition,
    };
    if level == AdapterLevel::Composition {
        return Err(ModelError::load(what(), format!("its format is {:?}, expected {FORMAT}", said("format"))));
    }
    if said("base_hash") != Some(base_hash.to_string().as_str()) {
        let theirs = said("base_hash").unwrap_or("that it does not name");
        let problem =
            format!("it belongs to base {theirs}, this one is {base_hash}; `cargo xtask setup` links what fits");
        return Err(ModelError::load(what(), problem));
    }
    let strength = said("strength").and_then(|text| text.parse::<f64>().ok()).filter(|s| (0.0..=8.0).contains(s));
    let strength = strength.ok_or_else(|| ModelError::load(what(), "its strength is not within 0..=8"))?;
    let tensor = |name: &str, shape: [usize; 2]| -> Result<Tensor> {
        let values = file.to_f32_shaped(name, &shape)?;
        let shape = shape.map(|extent| extent as i64);
        Ok(Tensor::f_from_slice(&values)?.f_view(shape)?.f_to_device(device)?)
    };
    if level == AdapterLevel::ControlNet {
        let width = file.info("control.0.mix")?.shape.first().copied().unwrap_or(0);
        if width == 0 || width > WIDTH_MAX as usize {
            return Err(ModelError::load(what(), format!("its width is {width}, allowed are 1 to {WIDTH_MAX}")));
        }
        let hidden = config.hidden as usize;
        let block = |index: usize| -> Result<Control> {
            let name = |part: &str| format!("control.{index}.{part}");
            Ok(Control {
                read: tensor(&name("read"), [width, hidden])?,
                mix: tensor(&name("mix"), [width, width])?,
                write: tensor(&name("write"), [hidden, width])?,
            })
        };
        let blocks = (0..config.layers).map(block).collect::<Result<_>>()?;
        return Ok(Adapter { control: Some(ControlNet { blocks }), strength, ..Adapter::default() });
    }
    if level == AdapterLevel::Layers {
        let mut deltas = Vec::new();
        for block in said("blocks").unwrap_or_default().split(',') {
            let block =
                block.parse::<usize>().ok().filter(|block| *block < config.layers && deltas.len() < config.layers);
            let block = block.ok_or_else(|| ModelError::load(what(), "its blocks are not those of the base"))?;
            let slot = |slot: Slot| -> Result<Tensor> {
                let (input, outputs) = slot.widths(config);
                let name = format!("layers.{block}.{}.delta", slot.name());
                tensor(&name, [outputs.iter().sum::<i64>() as usize, input as usize])
            };
            let [qkv, output, gate_up, down] = Slot::ALL.map(slot);
            deltas.push(Delta::new(block, [qkv?, output?, gate_up?, down?]));
        }
        return Ok(Adapter { deltas, strength, ..Adapter::default() });
    }
    let mut layers = Vec::with_capacity(config.layers);
    for layer in 0..config.layers {
        let slot = |slot: Slot| -> Result<LowRank> {
            let (input, outputs) = slot.widths(config);
            let name = |part: &str| format!("layers.{layer}.{}.{part}", slot.name());
            let rank = file.info(&name("b0"))?.shape.get(1).copied().unwrap_or(0);
            if rank == 0 || rank > RANK_MAX as usize {
                return Err(ModelError::load(name("b0"), format!("its rank is {rank}, allowed are 1 to {RANK_MAX}")));
            }
            let a = tensor(&name("a"), [rank * outputs.len(), input as usize])?;
            let b = outputs.iter().enumerate().map(|(i, out)| tensor(&name(&format!("b{i}")), [*out as usize, rank]));
            LowRank::new(a, b.collect::<Result<_>>()?)
        };
        layers.push([slot(Slot::Qkv)?, slot(Slot::Output)?, slot(Slot::GateUp)?, slot(Slot::Down)?]);
    }
    let reach = match said("reach") {
        None => Reach::Everywhere,
        Some(name) => Reach::ALL.into_iter().find(|reach| reach.name() == name).ok_or_else(|| {
            let known = Reach::ALL.map(Reach::name).join(", ");
            ModelError::load(what(), format!("its reach is {name:?}, known are {known}"))
        })?,
    };
    let mask = match file.find("mask") {
        None => None,
        Some(_) => {
            Some(Tensor::f_from_slice(&file.to_f32_shaped("mask", &[config.hidden as usize])?)?.f_to_device(device)?)
        }
    };
    Ok(Adapter { layers, strength, reach, mask, ..Adapter::default() })
}

/// The hash of an adapter's file; `None` when there is none.
pub fn hash(folder: &Path) -> Result<Option<ContentHash>> {
    let path = folder.join(NAME);
    if path.is_file() { Ok(Some(ContentHash::of(&fs_err::read(path)?))) } else { Ok(None) }
}

/// Encodes f32 tensors as safetensors: the length of the header, the header, the bytes in order.
pub(crate) fn encode(metadata: &[(&str, String)], tensors: Vec<(String, Tensor)>, kind: Stored) -> Result<Vec<u8>> {
    let mut header = Map::new();
    let metadata: Map<String, Value> = metadata.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    header.insert("__metadata__".into(), Value::Object(metadata));
    let mut data = Vec::new();
    for (name, tensor) in tensors {
        let values = crate::generator::rows_of(&tensor.f_detach()?.f_to_device(Device::Cpu)?)?;
        let start = data.len();
        let dtype = match kind {
            Stored::F32 => {
                data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                "F32"
            }
            Stored::F16 => {
                data.extend(values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()));
                "F16"
            }
        };
        header.insert(name, json!({"dtype": dtype, "shape": tensor.size(), "data_offsets": [start, data.len()]}));
    }
    let mut text = serde_json::to_vec(&header).map_err(std::io::Error::other)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes.extend(data);
    Ok(bytes)
}

/// Replaces a file: write beside it, sync, rename, sync the folder.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = fs_err::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs_err::rename(&temporary, path)?;
    if let Some(folder) = path.parent() {
        fs_err::File::open(folder)?.sync_all()?;
    }
    Ok(())
}
