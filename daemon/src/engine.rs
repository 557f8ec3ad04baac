//! Which engine the daemon uses, by its configuration.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mneme_config::{Config, EngineProgram};
use mneme_engine_api::{AbsentEngine, Engine, EngineProcess, FakeEngine, ProcessOptions};
use tokio::sync::watch;

/// The chosen engine, and its process where it is one.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// The process, for restarts and figures.
    pub process: Option<Arc<EngineProcess>>,
}

/// Chooses the engine. Nothing is started yet.
pub fn choose(config: &Config) -> Chosen {
    match &config.engine.program {
        EngineProgram::None => absent("the configuration says engine.program = \"none\""),
        EngineProgram::Fake => Chosen { engine: Arc::new(FakeEngine::default()), process: None },
        EngineProgram::Path(program) => process(config, program.clone()),
        EngineProgram::Auto => match find() {
            Some(program) => process(config, program),
            None => absent("mneme-engine is not installed beside mnemed or on the path; 'mneme doctor' says more"),
        },
    }
}

fn absent(reason: &str) -> Chosen {
    tracing::warn!(reason, "no engine: recall is by text, nothing is generated");
    Chosen { engine: Arc::new(AbsentEngine { reason: reason.to_owned() }), process: None }
}

fn process(config: &Config, program: PathBuf) -> Chosen {
    let process = Arc::new(EngineProcess::new(process_options(config, program)));
    Chosen { engine: Arc::clone(&process) as Arc<dyn Engine>, process: Some(process) }
}

/// How the engine's process is started and watched.
pub fn process_options(config: &Config, program: PathBuf) -> ProcessOptions {
    let settings = &config.engine;
    let assets = config.paths.assets_dir.clone().into_os_string();
    ProcessOptions {
        arguments: Vec::new(),
        environment: vec![
            ("MNEME_ASSETS".into(), assets),
            ("MNEME_ENGINE_THREADS".into(), settings.threads.to_string().into()),
        ],
        start_timeout: settings.start_timeout,
        // Here every start counts, the first one too.
        restarts_max: settings.restarts_max.saturating_add(1),
        restart_window: settings.restart_window,
        backoff_min: settings.backoff_min,
        backoff_max: settings.backoff_max,
        call_timeout: settings.generate_timeout,
        ..ProcessOptions::new(program)
    }
}

/// How often an engine process is looked after.
const LOOK: Duration = Duration::from_secs(10);

/// Stops an engine that nobody has used for long, or that has grown too large, between calls. Never returns.
pub async fn look_after(process: Arc<EngineProcess>, config: watch::Receiver<Arc<Config>>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let (Some(pid), Some(idle)) = (process.pid(), process.idle_for()) else {
            continue;
        };
        let (idle_stop, resident_max) = {
            let settings = &config.borrow().engine;
            (settings.idle_stop, settings.rss_max.bytes())
        };
        let resident = resident_of(pid);
        let too_large = resident_max > 0 && resident > resident_max;
        if too_large {
            tracing::warn!(pid, resident, resident_max, "engine has grown too large and is replaced");
        } else if idle_stop.is_zero() || idle < idle_stop {
            continue;
        } else {
            tracing::info!(pid, idle_s = idle.as_secs(), "idle engine is stopped; the next call starts it again");
        }
        let process = Arc::clone(&process);
        let _ = tokio::task::spawn_blocking(move || process.stop()).await;
    }
}

/// Resident memory of another process (bytes); 0 where the system does not say.
fn resident_of(pid: u32) -> u64 {
    crate::metrics::resident_bytes_of(&format!("/proc/{pid}/statm"))
}

/// Finds `mneme-engine` beside this program, else on the path.
pub fn find() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("mneme-engine")));
    let on_path = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).map(|folder| folder.join("mneme-engine")).collect::<Vec<_>>())
        .unwrap_or_default();
    beside.into_iter().chain(on_path).find(|candidate| candidate.is_file())
}
