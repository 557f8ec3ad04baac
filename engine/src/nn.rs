//! Networks: one definition for serving and for training.
//!
//! Activations have no batch axis: a batch is one packed sequence, and the mask says who sees whom. That wastes no padding,
//! and a shared prefix is computed once.
//!
//! Reading order: [`linear`], [`norm`], [`rope`], [`cache`], [`visibility`], [`adapter`], [`control`],
//! [`conditioner`],
//! [`backbone`], and `plain`, the same without libtorch.

pub mod adapter;
pub mod backbone;
pub mod cache;
pub mod conditioner;
pub mod control;
pub mod linear;
pub mod norm;
pub(crate) mod plain;
pub mod rope;
pub mod visibility;
