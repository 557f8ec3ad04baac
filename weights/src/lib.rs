//! WeightLoader: Parquet V2, Arrow IPC, safetensors and GGUF, zero-copy.
