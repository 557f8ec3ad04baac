//! Fills canvases: left to right, by diffusion, or by diffusion drafts that the causal mode verifies.
//!
//! Reading order: [`plan`] (what is to be filled), [`stream`] (one network with its prefix), [`ensemble`] (several as one),
//! [`session`] (what modes share), [`ar`], [`diffuse`], [`auto`], [`report`] (what comes back).

pub mod ar;
pub mod auto;
pub mod constrain;
pub mod diffuse;
pub mod ensemble;
pub mod plan;
pub mod report;
pub mod session;
pub mod stream;
