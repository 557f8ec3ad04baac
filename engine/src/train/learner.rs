//! Loss, gradients and the optimiser of one adapter.

use tch::{Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::nn::adapter::Adapter;
use crate::nn::backbone::{Additions, Backbone, Window};
use crate::nn::visibility::Visibility;
use crate::train::batch::{Batch, Target};

/// AdamW's decay rates (Loshchilov and Hutter 2017); the second is shorter than usual because jobs are short.
const BETA: (f64, f64) = (0.9, 0.99);
/// Added to the root of the second moment.
const EPSILON: f64 = 1e-8;
/// Gradients are scaled down to this length.
const CLIP: f64 = 1.0;
/// Rows of logits that exist at a time: each costs 200 kB for the logits and as much for their gradient.
const LOGIT_ROWS: usize = 128;

/// The learning rate of low-rank factors, about ten times that of full fine-tuning.
pub const LEARNING_RATE: f64 = 1e-3;
/// Share of the steps in which the rate rises from 0.
const WARM_UP: f64 = 0.05;
/// The rate falls along a half cosine to this share of its top.
const RATE_END: f64 = 0.1;

/// Weights of the two losses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// Of the next-token loss.
    pub causal: f64,
    /// Of the masked-diffusion bound.
    pub masked: f64,
}

/// An adapter while it learns: its factors, and the optimiser's state as flat vectors.
#[derive(Debug)]
pub struct Learner {
    /// The adapter; its factors track gradients.
    pub adapter: Adapter,
    /// All factors in one vector. `[parameters] f32`.
    pub weights: Tensor,
    /// First moments.
    pub first: Tensor,
    /// Second moments.
    pub second: Tensor,
    /// Steps done.
    pub step: u32,
}

impl Learner {
    /// Starts from an adapter.
    pub fn new(adapter: Adapter) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let parts: Vec<Tensor> =
            adapter.named().iter().map(|(_, tensor)| tensor.f_reshape([-1])).collect::<std::result::Result<_, _>>()?;
        let weights = Tensor::f_cat(&parts, 0)?;
        let (first, second) = (weights.f_zeros_like()?, weights.f_zeros_like()?);
        for (_, tensor) in adapter.named() {
            let _ = tensor.f_set_requires_grad(true)?;
        }
        Ok(Self { adapter, weights, first, second, step: 0 })
    }

    /// Starts from the factors of another adapter of the same shape.
    pub(crate) fn start_as(&mut self, other: &Adapter) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let parts: Vec<Tensor> =
            other.named().iter().map(|(_, tensor)| tensor.f_reshape([-1])).collect::<std::result::Result<_, _>>()?;
        let weights = Tensor::f_cat(&parts, 0)?;
        if weights.size() != self.weights.size() {
            return Err(ModelError::load("teacher", format!("it has {:?} numbers", weights.size())));
        }
        self.weights = weights;
        self.publish()
    }

    /// Replaces weights and moments, as read from a checkpoint.
    pub fn restore(&mut self, weights: Tensor, first: Tensor, second: Tensor, step: u32) -> Result<()> {
        for tensor in [&weights, &first, &second] {
            if tensor.size() != self.weights.size() {
                return Err(ModelError::load("checkpoint", format!("it has {:?} numbers", tensor.size())));
            }
        }
        (self.weights, self.first, self.second, self.step) = (weights, first, second, step);
        self.publish()
    }

    /// Takes one step on one batch and returns its loss (nats a target).
    pub fn learn(
        &mut self,
        backbone: &Backbone,
        frozen: &[&Adapter],
        batch: &Batch,
        objective: Objective,
        steps_total: u32,
    ) -> Result<f32> {
        let mut stack = frozen.to_vec();
        stack.push(&self.adapter);
        let loss = loss(backbone, &stack, batch, objective)?;
        let value = loss.f_double_value(&[])? as f32;
        if !value.is_finite() {
            return Err(ModelError::load("training", format!("loss is {value} at step {}", self.step)));
        }
        let gradient = self.gradient(loss)?;
        self.update(&gradient, rate(self.step, steps_total))?;
        Ok(value)
    }

    /// The gradient of all factors in one vector. `[parameters] f32`.
    pub(crate) fn gradient(&self, loss: Tensor) -> Result<Tensor> {
        let factors: Vec<&Tensor> = self.adapter.named().into_iter().map(|(_, tensor)| tensor).collect();
        let gradients = Tensor::f_run_backward(&[loss], &factors, false, false)?;
        let flat: Vec<Tensor> =
            gradients.iter().map(|gradient| gradient.f_reshape([-1])).collect::<std::result::Result<_, _>>()?;
        Ok(Tensor::f_cat(&flat, 0)?)
    }

    /// AdamW without decay: low-rank factors are few and start at zero.
    pub(crate) fn update(&mut self, gradient: &Tensor, rate: f64) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let length = gradient.f_norm()?.f_double_value(&[])?;
        if !length.is_finite() {
            return Err(ModelError::load("training", format!("gradient is not finite at step {}", self.step)));
        }
        let gradient = gradient.f_mul_scalar((CLIP / length.max(1e-12)).min(1.0))?;
        self.step += 1;
        let _ = self.first.f_lerp_(&gradient, 1.0 - BETA.0)?;
        let _ = self.second.f_lerp_(&gradient.f_square()?, 1.0 - BETA.1)?;
        let correction = |beta: f64| 1.0 - beta.powi(self.step as i32);
        let root = self.second.f_div_scalar(correction(BETA.1))?.f_sqrt()?.f_add_scalar(EPSILON)?;
        let change = self.first.f_div(&root)?.f_mul_scalar(rate / correction(BETA.0))?;
        self.weights = self.weights.f_sub(&change)?;
        self.publish()
    }

    /// Writes the flat weights into the adapter's factors.
    pub(crate) fn publish(&mut self) -> Result<()> {
        self.show(&self.weights)
    }

    /// Writes other weights of the same length into the adapter's factors, until the next step or [`Learner::publish`].
    pub(crate) fn show(&self, weights: &Tensor) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let mut start = 0;
        for (_, tensor) in self.adapter.named() {
            let count = tensor.numel() as i64;
            let part = weights.f_narrow(0, start, count)?.f_view_as(tensor)?;
            tensor.shallow_clone().f_copy_(&part)?;
            start += count;
        }
        Ok(())
    }
}

/// The learning rate of a step: linear warm-up, then half a cosine.
fn rate(step: u32, total: u32) -> f64 {
    let progress = f64::from(step) / f64::from(total.max(1));
    if progress < WARM_UP {
        return LEARNING_RATE * (f64::from(step) + 1.0) / (WARM_UP * f64::from(total)).max(1.0);
    }
    let turn = ((progress - WARM_UP) / (1.0 - WARM_UP)).min(1.0);
    LEARNING_RATE * (RATE_END + (1.0 - RATE_END) * 0.5 * (1.0 + (std::f64::consts::PI * turn).cos()))
}

/// The weighted loss of a batch (nats a target), with its graph.
fn loss(backbone: &Backbone, adapters: &[&Adapter], batch: &Batch, objective: Objective) -> Result<Tensor> {
    let hidden = hidden(backbone, adapters, batch)?;
    let mut parts = Vec::new();
    // Weights of the bound sum to the number of tokens in expectation, so that both means are over all tokens.
    let count = batch.causal.len().max(1) as f64;
    for (targets, factor) in [(&batch.causal, objective.causal), (&batch.masked, objective.masked)] {
        if factor > 0.0 && !targets.is_empty() {
            for chunk in targets.chunks(LOGIT_ROWS) {
                let losses = losses(&target_logits(backbone, &hidden, chunk)?, chunk)?;
                let weights: Vec<f32> = chunk.iter().map(|target| target.weight).collect();
                let weights = Tensor::f_from_slice(&weights)?.f_to_device(losses.device())?;
                parts.push(losses.f_mul(&weights)?.f_sum(Kind::Float)?.f_mul_scalar(factor / count)?);
            }
        }
    }
    let sum = Tensor::f_stack(&parts, 0)?.f_sum(Kind::Float)?;
    Ok(sum.f_div_scalar(objective.causal + if batch.masked.is_empty() { 0.0 } else { objective.masked })?)
}

/// Hidden states of a whole batch.
pub(crate) fn hidden(backbone: &Backbone, adapters: &[&Adapter], batch: &Batch) -> Result<Tensor> {
    let visibility = Visibility::Training(&batch.roles);
    let window = Window { tokens: &batch.tokens, positions: &batch.positions, visibility };
    backbone.hidden(&window, None, Additions::adapters(adapters))
}

/// Logits of the rows that predict targets. `[targets, vocabulary] f32`.
pub(crate) fn target_logits(backbone: &Backbone, hidden: &Tensor, targets: &[Target]) -> Result<Tensor> {
    let rows: Vec<i64> = targets.iter().map(|target| target.row as i64).collect();
    let rows = Tensor::f_from_slice(&rows)?.f_to_device(hidden.device())?;
    backbone.logits(&hidden.f_index_select(0, &rows)?)
}

/// Cross entropy of targets. `[targets] f32`.
pub(crate) fn losses(logits: &Tensor, targets: &[Target]) -> Result<Tensor> {
    let device = logits.device();
    let tokens: Vec<i64> = targets.iter().map(|target| target.token).collect();
    let tokens = Tensor::f_from_slice(&tokens)?.f_to_device(device)?.f_unsqueeze(1)?;
    let chosen = logits.f_gather(1, &tokens, false)?.f_squeeze_dim(1)?;
    Ok(logits.f_logsumexp([-1], false)?.f_sub(&chosen)?)
}
