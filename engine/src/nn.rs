//! Networks: one definition for serving and for training.
//!
//! Activations have no batch axis: a batch is one packed sequence, and the mask says who sees whom. That wastes no padding,
//! and a shared prefix is computed once.
//!
//! Reading order: [`linear`], [`norm`], [`rope`], [`cache`], [`visibility`], [`adapter`], [`conditioner`],
//! [`backbone`].

pub mod adapter;
pub mod backbone;
pub mod cache;
pub mod conditioner;
pub mod linear;
pub mod norm;
pub mod rope;
pub mod visibility;
