//! Pure policy of the self-evolution loop: triggers, levels, gates, registry, state machine.
