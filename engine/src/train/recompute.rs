//! Gradients that recompute each block instead of keeping its activations (gradient checkpointing, Chen et al. 2016,
//! arXiv 1604.06174): memory for one block at a time, for a third more arithmetic.
//!
//! Blocks below the first that has something to learn are run forward only: nothing flows back through them.

use tch::{Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::nn::adapter::Adapter;
use crate::nn::backbone::{Additions, Backbone, Window};
use crate::nn::visibility::Visibility;
use crate::train::batch::Batch;

/// The loss and the gradient of every tensor of `trained`, in the order of [`Adapter::named`].
///
/// `loss` makes a scalar of the normed hidden states.
pub(crate) fn gradients(
    backbone: &Backbone,
    stack: &[&Adapter],
    trained: &Adapter,
    batch: &Batch,
    loss: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<(f64, Vec<Tensor>)> {
    let visibility = Visibility::Training(&batch.roles);
    let window = Window { tokens: &batch.tokens, positions: &batch.positions, visibility };
    let additions = Additions::adapters(stack);
    let named = trained.named();
    let block_of = |name: &str| name.split('.').nth(1).and_then(|part| part.parse::<usize>().ok());
    let lowest = named.iter().filter_map(|(name, _)| block_of(name)).min().unwrap_or(0);
    let context = backbone.context(&window)?;
    let mut kept: Vec<(Tensor, Vec<Option<Tensor>>)> = Vec::new();
    let mut x = backbone.embed(&window, additions)?;
    let mut sides = additions.sides();
    {
        let _guard = tch::no_grad_guard();
        for index in 0..backbone.config.layers {
            kept.push((x.shallow_clone(), sides.iter().map(|s| s.as_ref().map(Tensor::shallow_clone)).collect()));
            x = backbone.block(index, x, &mut sides, &context, None, additions)?;
        }
    }
    let top = leaf(&x)?;
    let value = loss(&backbone.finish(&top)?)?;
    let spent = value.f_double_value(&[])?;
    let mut flowing = single(Tensor::f_run_backward(&[value], &[&top], false, false)?)?;
    let mut flowing_sides: Vec<Option<Tensor>> = sides.iter().map(|_| None).collect();
    let mut gradients: Vec<Option<Tensor>> = named.iter().map(|_| None).collect();
    for index in (lowest..backbone.config.layers).rev() {
        let (x, own_sides) = kept.pop().ok_or_else(|| ModelError::load("training", "a block was not kept"))?;
        let x = leaf(&x)?;
        let mut sides = own_sides.iter().map(|s| s.as_ref().map(leaf).transpose()).collect::<Result<Vec<_>>>()?;
        let before: Vec<Option<Tensor>> = sides.iter().map(|s| s.as_ref().map(Tensor::shallow_clone)).collect();
        let out = backbone.block(index, x.shallow_clone(), &mut sides, &context, None, additions)?;
        let mut product = out.f_mul(&flowing)?.f_sum(Kind::Float)?;
        for (side, gradient) in sides.iter().zip(&flowing_sides) {
            if let (Some(side), Some(gradient)) = (side, gradient) {
                product = product.f_add(&side.f_mul(gradient)?.f_sum(Kind::Float)?)?;
            }
        }
        let own: Vec<usize> =
            named.iter().enumerate().filter(|(_, (name, _))| block_of(name) == Some(index)).map(|(i, _)| i).collect();
        let mut inputs: Vec<&Tensor> = vec![&x];
        inputs.extend(before.iter().flatten());
        inputs.extend(own.iter().map(|i| named[*i].1));
        let mut made = Tensor::f_run_backward(&[product], &inputs, false, false)?.into_iter();
        flowing = made.next().ok_or_else(|| ModelError::load("training", "no gradient came back"))?;
        flowing_sides = before.iter().map(|side| side.as_ref().and_then(|_| made.next())).collect();
        for i in own {
            gradients[i] = made.next();
        }
    }
    let all = gradients.into_iter().collect::<Option<Vec<_>>>();
    Ok((spent, all.ok_or_else(|| ModelError::load("training", "a tensor belongs to no block"))?))
}

/// A tensor of the same numbers that gradients start from.
fn leaf(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.f_detach()?.f_set_requires_grad(true)?)
}

fn single(gradients: Vec<Tensor>) -> Result<Tensor> {
    gradients.into_iter().next().ok_or_else(|| ModelError::load("training", "no gradient came back"))
}
