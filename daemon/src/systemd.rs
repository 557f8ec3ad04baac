//! What systemd is told: ready, reloading, stopping, and that the actors still answer. Elsewhere all of it does nothing.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::service::Service;

/// Everything is up.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// The configuration is being read again.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "no clock for systemd"),
    }
}

/// The end has begun.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd could not be told");
    }
}

/// Feeds the watchdog for as long as a ping goes through the memory and its store. Returns at once when there is none.
pub async fn feed_watchdog(service: Arc<Service>) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    // Half of the limit is systemd's own advice; the ping gets the other half.
    let pause = limit / 2;
    loop {
        tokio::time::sleep(pause.max(Duration::from_millis(10))).await;
        if service.answers(pause).await {
            notify(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("actors do not answer; the watchdog is left hungry");
        }
    }
}
