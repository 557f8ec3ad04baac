//! Pure maths of masked diffusion: schedules, samplers, constraints, composition, uncertainty.
