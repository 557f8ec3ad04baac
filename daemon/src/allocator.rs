//! Keeps what the C library's allocator holds near what is in use.
//!
//! Nothing in the daemon grows under steady writing and forgetting, and yet its resident memory did: glibc gives each thread an arena
//! of its own, and a purge, which reads every row through a second cache, leaves free pages in all of them that are not given back.
//! With few arenas, a top that is cut as soon as it is free, and mappings of their own for large pieces, little more than half as much is
//! kept (`docs/benchmarks/soak.md`). Other C libraries read none of it.

/// What glibc reads before `main`. Each setting that is there already stays as it is.
const ENVIRONMENT: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "2"), ("MALLOC_TRIM_THRESHOLD_", "131072"), ("MALLOC_MMAP_THRESHOLD_", "65536")];

/// Starts this program again, in the same process, with the settings that are missing; returns when none is, or when it cannot.
pub fn restart_with_environment() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use std::os::unix::process::CommandExt as _;
        let missing = missing(|name| std::env::var_os(name).is_some());
        let Ok(program) = std::env::current_exe() else { return };
        if !missing.is_empty() {
            // What comes back is why it was not possible: the daemon only takes more memory then.
            let _ = std::process::Command::new(program).args(std::env::args_os().skip(1)).envs(missing).exec();
        }
    }
}

fn missing(is_set: impl Fn(&str) -> bool) -> Vec<(&'static str, &'static str)> {
    ENVIRONMENT.into_iter().filter(|(name, _)| !is_set(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_already_stays_and_a_second_start_is_the_last() {
        assert_eq!(missing(|name| name == "MALLOC_ARENA_MAX").len(), ENVIRONMENT.len() - 1);
        assert!(missing(|_| true).is_empty());
    }
}
