//! Loss, gradients and the optimiser of one adapter.

use mneme_engine_api::AdapterLevel;
use tch::{Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::nn::adapter::Adapter;
use crate::nn::backbone::{Additions, Backbone, Window};
use crate::nn::visibility::Visibility;
use crate::train::batch::{Batch, Target};
use crate::train::recompute;

/// AdamW's decay rates (Loshchilov and Hutter 2017); the second is shorter than usual because jobs are short.
const BETA: (f64, f64) = (0.9, 0.99);
/// Added to the root of the second moment.
const EPSILON: f64 = 1e-8;
/// Gradients are scaled down to this length.
const CLIP: f64 = 1.0;
/// From this window on blocks are computed again for their gradients: the activations of thirty blocks would take a gigabyte.
const RECOMPUTE_TOKENS: usize = 1_024;
/// Rows of logits that exist at a time: each costs 200 kB for the logits and as much for their gradient.
const LOGIT_ROWS: usize = 128;

/// The learning rate of low-rank factors, about ten times that of full fine-tuning.
pub const LEARNING_RATE: f64 = 1e-3;
/// The learning rate of full updates.
pub const LEARNING_RATE_FULL: f64 = 1e-4;
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
        let (value, gradients) = if batch.tokens.len() >= RECOMPUTE_TOKENS && self.adapter.mask.is_none() {
            recompute::gradients(backbone, &stack, &self.adapter, batch, |hidden| {
                loss_of(backbone, hidden, batch, objective)
            })?
        } else {
            let loss = loss_of(backbone, &hidden(backbone, &stack, batch)?, batch, objective)?;
            let value = loss.f_double_value(&[])?;
            let factors: Vec<&Tensor> = self.adapter.named().into_iter().map(|(_, tensor)| tensor).collect();
            (value, Tensor::f_run_backward(&[loss], &factors, false, false)?)
        };
        let value = value as f32;
        if !value.is_finite() {
            return Err(ModelError::load("training", format!("loss is {value} at step {}", self.step)));
        }
        let gradient = joined(&gradients)?;
        drop(gradients);
        let top = match self.adapter.level() {
            AdapterLevel::Layers => LEARNING_RATE_FULL,
            _ => LEARNING_RATE,
        };
        self.update(&gradient, rate(self.step, steps_total, top))?;
        Ok(value)
    }

    /// The gradient of all factors in one vector. `[parameters] f32`.
    pub(crate) fn gradient(&self, loss: Tensor) -> Result<Tensor> {
        let factors: Vec<&Tensor> = self.adapter.named().into_iter().map(|(_, tensor)| tensor).collect();
        joined(&Tensor::f_run_backward(&[loss], &factors, false, false)?)
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

/// Gradients in one vector. `[parameters] f32`.
fn joined(gradients: &[Tensor]) -> Result<Tensor> {
    let flat: Vec<Tensor> =
        gradients.iter().map(|gradient| gradient.f_reshape([-1])).collect::<std::result::Result<_, _>>()?;
    Ok(Tensor::f_cat(&flat, 0)?)
}

/// The learning rate of a step: linear warm-up, then half a cosine.
fn rate(step: u32, total: u32, top: f64) -> f64 {
    let progress = f64::from(step) / f64::from(total.max(1));
    if progress < WARM_UP {
        return top * (f64::from(step) + 1.0) / (WARM_UP * f64::from(total)).max(1.0);
    }
    let turn = ((progress - WARM_UP) / (1.0 - WARM_UP)).min(1.0);
    top * (RATE_END + (1.0 - RATE_END) * 0.5 * (1.0 + (std::f64::consts::PI * turn).cos()))
}

/// The weighted loss of a batch (nats a target), with its graph.
fn loss_of(backbone: &Backbone, hidden: &Tensor, batch: &Batch, objective: Objective) -> Result<Tensor> {
    let mut parts = Vec::new();
    // Weights of the bound sum to the number of tokens in expectation, so that both means are over all tokens.
    let count = batch.causal.len().max(1) as f64;
    for (targets, factor) in [(&batch.causal, objective.causal), (&batch.masked, objective.masked)] {
        if factor > 0.0 && !targets.is_empty() {
            for chunk in targets.chunks(LOGIT_ROWS) {
                let losses = losses(&target_logits(backbone, hidden, chunk)?, chunk)?;
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

#[cfg(test)]
mod tests {
    use mneme_diffusion::random::{seeded, uniform};
    use tch::Device;

    use super::*;
    use crate::load::random;
    use crate::nn::backbone::BackboneConfig;
    use crate::runtime::{Precision, Runtime};
    use crate::train::batch::Noise;

    fn backbone() -> Backbone {
        let config = BackboneConfig {
            vocabulary: 50,
            hidden: 32,
            layers: 4,
            heads: 4,
            kv_heads: 2,
            head: 8,
            feed_forward: 48,
            gated: true,
            rope_theta: 1e4,
            norm_epsilon: 1e-5,
            positions: 64,
            shift: true,
            mask_token: 49,
        };
        let runtime = Runtime { device: Device::Cpu, compute: Kind::Float, precision: Precision::Dense, threads: 1 };
        random(config, runtime, 3).unwrap()
    }

    fn batch() -> Batch {
        let texts: Vec<Vec<i64>> = (0..3).map(|t| (0..14).map(|i| (i * 7 + t * 5) % 48).collect()).collect();
        let texts: Vec<&[i64]> = texts.iter().map(Vec::as_slice).collect();
        Batch::pack(&texts, 49, Noise::Blocks(&[2, 4]), &mut seeded(5))
    }

    const LEVELS: [AdapterLevel; 3] = [AdapterLevel::ControlNet, AdapterLevel::Lora, AdapterLevel::Layers];

    #[test]
    fn a_new_adapter_of_any_level_changes_no_bit_and_a_trained_one_lowers_the_loss() {
        let (backbone, batch) = (backbone(), batch());
        let objective = Objective { causal: 1.0, masked: 1.0 };
        let bits = |adapters: &[&Adapter]| -> Vec<u32> {
            let _guard = tch::no_grad_guard();
            let numbers = crate::generator::rows_of(&hidden(&backbone, adapters, &batch).unwrap()).unwrap();
            numbers.into_iter().map(f32::to_bits).collect()
        };
        for level in LEVELS {
            let mut rng = seeded(9);
            let fresh = Adapter::of_level(level, &backbone.config, Device::Cpu, || uniform(&mut rng)).unwrap();
            assert_eq!(fresh.level(), level);
            assert_eq!(bits(&[]), bits(&[&fresh]), "{level:?}");
            let mut learner = Learner::new(fresh).unwrap();
            let losses: Vec<f32> =
                (0..20).map(|_| learner.learn(&backbone, &[], &batch, objective, 20).unwrap()).collect();
            assert!(losses[19] < losses[0] - 1e-3, "{level:?}: {losses:?}");
            assert_ne!(bits(&[]), bits(&[&learner.adapter]), "{level:?}");
            // Its file gives the same adapter back, for its own base only.
            let (folder, base) = (tempfile::tempdir().unwrap(), mneme_base::ContentHash::of(b"base"));
            crate::adapter_file::write(folder.path(), &learner.adapter, base, base, crate::adapter_file::Stored::F32)
                .unwrap();
            let read = crate::adapter_file::read(folder.path(), &backbone.config, base, Device::Cpu).unwrap();
            assert_eq!(read.level(), level);
            assert_eq!(bits(&[&learner.adapter]), bits(&[&read]), "{level:?}");
        }
    }

    #[test]
    fn gradients_of_recomputed_blocks_are_those_of_the_whole_graph() {
        let (backbone, batch) = (backbone(), batch());
        let objective = Objective { causal: 1.0, masked: 0.5 };
        for level in LEVELS {
            let mut rng = seeded(2);
            let adapter = Adapter::of_level(level, &backbone.config, Device::Cpu, || uniform(&mut rng)).unwrap();
            // Away from zero, where gradients of the inner factors vanish.
            let mut learner = Learner::new(adapter).unwrap();
            for _ in 0..3 {
                learner.learn(&backbone, &[], &batch, objective, 3).unwrap();
            }
            let adapter = &learner.adapter;
            let whole = loss_of(&backbone, &hidden(&backbone, &[adapter], &batch).unwrap(), &batch, objective).unwrap();
            let value = whole.double_value(&[]);
            let factors: Vec<&Tensor> = adapter.named().into_iter().map(|(_, tensor)| tensor).collect();
            let right = Tensor::f_run_backward(&[whole], &factors, false, false).unwrap();
            let (made_value, made) = recompute::gradients(&backbone, &[adapter], adapter, &batch, |hidden| {
                loss_of(&backbone, hidden, &batch, objective)
            })
            .unwrap();
            assert!((value - made_value).abs() < 1e-6);
            assert_eq!(made.len(), right.len());
            for ((made, right), (name, _)) in made.iter().zip(&right).zip(adapter.named()) {
                let error = (made - right).abs().max().double_value(&[]);
                let size = right.abs().max().double_value(&[]);
                // The same products, summed in another order.
                assert!(error <= 1e-5 * size.max(1e-3), "{level:?} {name}: {error} of {size}");
            }
        }
    }
}
