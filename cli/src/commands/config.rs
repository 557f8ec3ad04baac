//! config check, reload, show, defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;

use mneme_config::{Config, Sources};
use mneme_ipc::methods;
use mneme_ipc::types as wire;

use super::Session;
use crate::args::ConfigCommand;
use crate::error::CommandError;
use crate::output::{Output, good, line, warn};

pub(super) fn run(session: &Session, command: ConfigCommand) -> Result<(), CommandError> {
    let out = session.out;
    match command {
        ConfigCommand::Check { file } => check(out, file),
        ConfigCommand::Show => {
            let config = Config::load(&Sources::from_process(None, Vec::new()))?;
            let keys: BTreeMap<&str, String> = config.print().into_iter().collect();
            out.result(&keys, |_| config.print().iter().for_each(|(key, value)| line(format!("{key} = {value}"))))
        }
        ConfigCommand::Reload => reload(session),
        ConfigCommand::Defaults => {
            line(mneme_config::schema::reference().trim_end());
            Ok(())
        }
    }
}

fn reload(session: &Session) -> Result<(), CommandError> {
    let result = session.client()?.call_with::<methods::Reload>(wire::ReloadParams {}, session.call())?;
    session.out.result(&result, |result| {
        line(good("configuration read again"));
        if result.applied.is_empty() && result.restart_needed.is_empty() {
            line("nothing differs from the start");
        }
        result.applied.iter().for_each(|setting| line(format!("  in force: {setting}")));
        result.restart_needed.iter().for_each(|key| line(format!("  {} {key}", warn("waits for a restart:"))));
    })
}

fn check(out: Output, file: Option<PathBuf>) -> Result<(), CommandError> {
    let sources = Sources::from_process(file, Vec::new());
    Config::load(&sources)?;
    let files: Vec<String> =
        sources.files.iter().filter(|file| file.path.exists()).map(|file| file.path.display().to_string()).collect();
    out.result(&serde_json::json!({"valid": true, "files": files}), |_| {
        line(good("configuration is valid"));
        if files.is_empty() {
            line("no files: every key has its default");
        }
        files.iter().for_each(|file| line(format!("  {file}")));
    })
}
