//! What the system lets one process have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files beside those of the connections: the store while it is rewritten, the index, the engine, watched folders.
const OWN_FILES: u64 = 512;

/// Sees to it that every connection can have its file. Systems give a program 1,024 unless it asks for more; a daemon that runs out
/// can neither take a connection nor open a file of its own.
pub fn raise_file_limit(connections_max: u64) {
    let needed = connections_max.saturating_add(OWN_FILES);
    let now = getrlimit(Resource::Nofile);
    let Some(wanted) = wanted(&now, needed) else { return };
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: now.maximum }) {
        tracing::warn!(%error, wanted, "file limit cannot be raised");
    } else if wanted < needed {
        tracing::warn!(limit = wanted, needed, "fewer files may be open than server.connections_max needs");
    }
}

/// The limit to ask for, where the present one is too low and can be raised. `None` in a limit is no limit.
fn wanted(now: &Rlimit, needed: u64) -> Option<u64> {
    let current = now.current.filter(|current| *current < needed)?;
    let wanted = now.maximum.map_or(needed, |maximum| maximum.min(needed));
    (wanted > current).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_as_far_as_is_needed_and_allowed() {
        let limit = |current, maximum| Rlimit { current, maximum };
        assert_eq!(wanted(&limit(Some(1_024), Some(4_096)), 1_612), Some(1_612));
        assert_eq!(wanted(&limit(Some(1_024), None), 1_612), Some(1_612));
        assert_eq!(wanted(&limit(Some(1_024), Some(1_100)), 1_612), Some(1_100));
        assert_eq!(wanted(&limit(Some(1_024), Some(1_024)), 1_612), None);
        assert_eq!(wanted(&limit(Some(4_096), Some(4_096)), 1_612), None);
        assert_eq!(wanted(&limit(None, None), 1_612), None);
    }
}
