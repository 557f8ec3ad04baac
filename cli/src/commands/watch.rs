//! watch add, list, remove.

use mneme_ipc::methods;
use mneme_ipc::types as wire;

use super::{Session, absolute};
use crate::args::WatchCommand;
use crate::error::CommandError;
use crate::output::{dim, good, line, safe, warn};

pub(super) fn run(session: &Session, command: WatchCommand) -> Result<(), CommandError> {
    let client = session.client()?;
    match command {
        WatchCommand::Add { folder, namespace } => {
            let params = wire::WatchAddParams { folder: absolute(&folder)?, namespace };
            let result = client.call_with::<methods::WatchAdd>(params, session.call())?;
            session.out.result(&result, |result| {
                line(format!("{} {}: {} files", good("watching"), safe(&result.folder), result.files));
                if let Some(problem) = &result.problem {
                    line(warn(safe(problem)));
                }
            })
        }
        WatchCommand::List => {
            let result = client.call_with::<methods::WatchList>(wire::WatchListParams {}, session.call())?;
            session.out.result(&result, show)
        }
        WatchCommand::Remove { folder, forget } => {
            let params = wire::WatchRemoveParams { folder: absolute(&folder)?, forget };
            let result = client.call_with::<methods::WatchRemove>(params, session.call())?;
            session.out.result(&result, show)
        }
    }
}

fn show(list: &wire::WatchListResult) {
    if list.folders.is_empty() {
        line(dim("no folders are watched"));
    }
    for folder in &list.folders {
        line(format!("{}  {} files into {}", safe(&folder.folder), folder.files, folder.namespace));
        if let Some(problem) = &folder.problem {
            line(format!("  {}", warn(safe(problem))));
        }
    }
}
