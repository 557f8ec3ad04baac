//! How unsure a generation is, and whether that is more than was to be expected.
//!
//! *Ambiguity* ([`Signals::entropy`]) follows what people find hard to predict; *surprise* ([`ResidualTable::surprise`]) is about the fit of
//! the model: 1 on text like the calibration text. From there to a decision: [`OnlineConformal`] turns scores into p-values,
//! [`ClusterAlarms`] bets on them and bounds the chance that a false alarm is ever raised; [`conformal_rank`] gives single thresholds with
//! a stated confidence. [`Trajectory`] and [`chain_disagreement`] look at several predictions of the same place.

mod calibration;
mod conformal;
mod martingale;
mod residual;
mod signals;
mod trajectory;

pub use calibration::{CalibrationError, CalibrationStore, SCORES_MAX};
pub use conformal::{OnlineConformal, conformal_events_needed, conformal_p_value, conformal_rank, conformal_threshold};
pub use martingale::{Alarm, ClusterAlarms, TestMartingale};
pub use residual::{RATE_BINS_MAX, ResidualTable, ResidualTableBuilder, ResidualTableError};
pub use signals::{Signals, gini};
pub use trajectory::{TopTokens, Trajectory, chain_disagreement, vote_entropy};
