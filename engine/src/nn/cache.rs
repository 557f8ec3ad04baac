//! Keys and values of a prefix that does not change any more.

use mneme_quant::floats::KeyValues;
use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, Result};

/// Keys and values of every layer for a fixed number of positions, filled from the left.
///
/// Positions past [`KvCache::len`] are scratch: a window may be written there and overwritten by the next until it is
/// committed. Memory: `2 * layers * kv_heads * capacity * head` elements.
#[derive(Debug)]
pub struct KvCache {
    store: Store,
    len: i64,
    capacity: i64,
}

#[derive(Debug)]
enum Store {
    /// For each layer `[kv_heads, capacity, head]`.
    Tensors(Vec<(Tensor, Tensor)>),
    /// For each layer, as the network on slices reads them.
    Plain(Vec<KeyValues>),
}

impl KvCache {
    /// Makes an empty cache.
    pub fn new(layers: usize, kv_heads: i64, head: i64, capacity: i64, kind: Kind, device: Device) -> Result<Self> {
        let make = || Tensor::f_zeros([kv_heads, capacity, head], (kind, device));
        let layers = (0..layers).map(|_| Ok((make()?, make()?))).collect::<Result<_>>()?;
        Ok(Self { store: Store::Tensors(layers), len: 0, capacity })
    }

    /// Makes an empty cache for a network on slices.
    pub(crate) fn on_slices(layers: usize, kv_heads: usize, head: usize, capacity: usize) -> Self {
        let layers = (0..layers).map(|_| KeyValues::new(kv_heads, head, capacity)).collect();
        Self { store: Store::Plain(layers), len: 0, capacity: capacity as i64 }
    }

    /// A layer of a cache for slices; `None` of another.
    pub(crate) fn plain(&mut self, layer: usize) -> Option<&mut KeyValues> {
        match &mut self.store {
            Store::Plain(layers) => layers.get_mut(layer),
            Store::Tensors(_) => None,
        }
    }

    /// Makes room for a window behind the committed positions, where the network writes it there: tensors keep such a window apart.
    pub(crate) fn reserve(&mut self, window: i64) {
        if let Store::Plain(layers) = &mut self.store {
            self.capacity = self.capacity.max(self.len + window);
            layers.iter_mut().for_each(|layer| layer.reserve(self.capacity as usize));
        }
    }

    /// Makes room for positions that will be committed, in either kind of cache.
    pub(crate) fn grow(&mut self, positions: i64) -> Result<()> {
        let capacity = self.len + positions;
        if let Store::Tensors(layers) = &mut self.store
            && capacity > self.capacity
        {
            for tensor in layers.iter_mut().flat_map(|(keys, values)| [keys, values]) {
                let [heads, _, head] = tensor.size3()?.into();
                let grown = Tensor::f_zeros([heads, capacity, head], (tensor.kind(), tensor.device()))?;
                grown.f_narrow(1, 0, self.len)?.f_copy_(&tensor.f_narrow(1, 0, self.len)?)?;
                *tensor = grown;
            }
            self.capacity = capacity;
        }
        self.reserve(positions);
        Ok(())
    }

    /// Refuses a window that does not fit behind the committed positions.
    pub(crate) fn check_room(&self, window: i64) -> Result<()> {
        let end = self.len + window;
        if end > self.capacity {
            let problem = format!("{end} positions are needed, the cache holds {}", self.capacity);
            return Err(ModelError::load("window", problem));
        }
        Ok(())
    }

    /// Positions that are committed.
    pub fn len(&self) -> i64 {
        self.len
    }

    /// Whether nothing is committed.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions that fit in all.
    pub fn capacity(&self) -> i64 {
        self.capacity
    }

    /// Committed keys and values of a layer. `[kv_heads, len, head]` each, views of the cache.
    pub(crate) fn prefix(&self, layer: usize) -> Result<(Tensor, Tensor)> {
        let (keys, values) = self.tensors(layer)?;
        Ok((keys.f_narrow(1, 0, self.len)?, values.f_narrow(1, 0, self.len)?))
    }

    fn tensors(&self, layer: usize) -> Result<&(Tensor, Tensor)> {
        let layers = match &self.store {
            Store::Tensors(layers) => layers.as_slice(),
            Store::Plain(_) => &[],
        };
        layers.get(layer).ok_or_else(|| ModelError::load("cache", format!("it has no tensors of layer {layer}")))
    }

    /// Commits the first `positions` of the window that was written last.
    pub fn commit(&mut self, positions: i64) {
        self.len = (self.len + positions).min(self.capacity);
    }

    /// Drops committed positions past `len`: their window is decided anew.
    pub fn truncate(&mut self, len: i64) {
        self.len = self.len.min(len.max(0));
    }

    /// Writes a window behind the committed positions and returns all keys and values up to its end.
    ///
    /// # Shapes
    /// `keys`, `values`: `[kv_heads, window, head]` -> `[kv_heads, len + window, head]`, views of the cache.
    pub(crate) fn extend(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let window = keys.size().get(1).copied().unwrap_or(0);
        self.check_room(window)?;
        let end = self.len + window;
        let (all_keys, all_values) = self.tensors(layer)?;
        let (mut key_slot, mut value_slot) =
            (all_keys.f_narrow(1, self.len, window)?, all_values.f_narrow(1, self.len, window)?);
        key_slot.f_copy_(keys)?;
        value_slot.f_copy_(values)?;
        Ok((all_keys.f_narrow(1, 0, end)?, all_values.f_narrow(1, 0, end)?))
    }
}
