//! The configuration as the daemon and a person meet it: layers, errors, paths, documentation, hot reload.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use mneme_config::{
    ByteSize, Config, ConfigError, EngineProgram, Origin, Reload, Reloader, SOCKET_PATH_BYTES_MAX, Sources,
    StateEngine, Update, reference, settings,
};
use proptest::prelude::*;

/// Longer than any reload takes on a loaded machine; reaching it is the failure, not the measure.
const HANG: Duration = Duration::from_mins(1);

fn bare() -> Sources {
    Sources::bare("/home/ada")
}

fn refusal(sources: &Sources) -> String {
    Config::load(sources).expect_err("the configuration is faulty").to_string()
}

fn write(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("config.toml");
    fs_err::write(&path, text).unwrap();
    path
}

#[test]
fn default_toml_is_the_rendered_documentation_of_the_compiled_settings() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("default.toml");
    if std::env::var_os("MNEME_BLESS").is_some() {
        fs_err::write(&path, reference()).unwrap();
    }
    assert!(
        fs_err::read_to_string(&path).unwrap() == reference(),
        "config/default.toml is out of date: MNEME_BLESS=1 cargo test -p mneme-config"
    );
}

#[test]
fn default_toml_read_as_a_file_gives_the_compiled_defaults_and_names_every_setting() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), &reference());
    let read = Config::load(&bare().file(file)).unwrap();
    assert_eq!(read.diff(&Config::load(&bare()).unwrap()), []);
    for info in settings() {
        let name = info.key.split_once('.').unwrap().1;
        assert!(reference().contains(&format!("\n{name} = {}\n", info.default)), "{}", info.key);
    }
}

#[test]
fn every_default_is_within_its_own_bound() {
    for info in settings() {
        let text = info.default.trim_matches('"');
        if let Err(error) = Config::load(&bare().flag(format!("{}={text}", info.key))) {
            panic!("{}: {error}", info.key);
        }
    }
}

#[test]
fn later_layers_win_in_the_order_file_environment_flag() {
    let folder = tempfile::tempdir().unwrap();
    let file =
        write(folder.path(), "[server]\nconnections_max = 10\nidle_timeout = \"1m\"\nrequest_timeout = \"1s\"\n");
    let sources = bare()
        .file(file)
        .variable("MNEME_SERVER__IDLE_TIMEOUT", "2m")
        .variable("MNEME_SERVER__REQUEST_TIMEOUT", "2s")
        .flag("server.request_timeout=3s");
    let server = Config::load(&sources).unwrap().server;
    assert_eq!(server.connections_max, 10);
    assert_eq!(server.idle_timeout, Duration::from_mins(2));
    assert_eq!(server.request_timeout, Duration::from_secs(3));
}

#[test]
fn the_environment_writes_every_kind_of_value_without_toml_quotes() {
    let config = Config::load(
        &bare()
            .variable("MNEME_MEMORY__ENGINE", "sled")
            .variable("MNEME_SERVER__FRAME_BYTES_MAX", "8MiB")
            .variable("MNEME_SERVER__ALLOWED_UIDS", "1000,1001")
            .variable("MNEME_WATCH__EXTENSIONS", "md, txt")
            .variable("MNEME_EVOLUTION__ENABLED", "false")
            .variable("MNEME_EVOLUTION__ALPHA", "0.01")
            .variable("MNEME_ENGINE__PROGRAM", "/opt/mneme-engine")
            .variable("MNEME_TOKEN", "not a setting: no double underscore"),
    )
    .unwrap();
    assert_eq!(config.memory.engine, StateEngine::Sled);
    assert_eq!(config.server.frame_bytes_max, ByteSize::mib(8));
    assert_eq!(config.server.allowed_uids, [1000, 1001]);
    assert_eq!(config.watch.extensions, ["md", "txt"]);
    assert!(!config.evolution.enabled);
    assert!((config.evolution.alpha - 0.01).abs() < f64::EPSILON);
    assert_eq!(config.engine.program, EngineProgram::Path("/opt/mneme-engine".into()));
}

#[test]
fn an_error_names_file_line_key_value_and_bound_and_all_faults_come_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(
        folder.path(),
        "# mine\n[server]\nframe_bytes_max = \"1GiB\"\nconnections_max = \"many\"\n\n[memory]\nengine = \"lmdb\"\n",
    );
    let shown = file.display();
    assert_eq!(
        refusal(&bare().file(&file)),
        format!(
            "{shown}:4: server.connections_max is \"many\", invalid type: string \"many\", expected u32; allowed: 1 to 65536\n\
             {shown}:3: server.frame_bytes_max is \"1GiB\", allowed: \"4KiB\" to \"64MiB\"\n\
             {shown}:7: memory.engine is \"lmdb\", allowed: \"redb\", \"sled\", \"memory\""
        )
    );
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "[server]\nconnection_max = 3\n[sever]\nidle_timeout = \"1s\"\n");
    let text = refusal(&bare().file(&file));
    assert!(
        text.contains(":2: server.connection_max is not a setting; did you mean server.connections_max?"),
        "{text}"
    );
    assert!(text.contains(":3: sever is not a setting; did you mean server?"), "{text}");
    let text = refusal(&bare().variable("MNEME_SERVER__COLOUR", "red"));
    assert_eq!(
        text,
        "environment variable MNEME_SERVER__COLOUR: server.colour is not a setting; default.toml lists them all"
    );
    let text = refusal(&bare().flag("nonsense"));
    assert_eq!(text, "flag --set nonsense: expected section.key=value");
}

#[test]
fn broken_toml_names_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "[server]\nidle_timeout = \n");
    let text = refusal(&bare().file(&file));
    assert!(text.starts_with(&format!("{}:2: not valid TOML: ", file.display())), "{text}");
}

#[test]
fn values_that_are_each_allowed_but_not_together_are_refused() {
    for (flags, key) in [
        (vec!["engine.backoff_min=1m", "engine.backoff_max=1s"], "engine.backoff_min"),
        (vec!["watch.chunk_tokens=64", "watch.chunk_overlap_tokens=64"], "watch.chunk_overlap_tokens"),
        (vec!["generation.tokens_max=2", "generation.block_tokens=4"], "generation.block_tokens"),
        (vec!["memory.pending_bytes_max=1MiB"], "memory.pending_bytes_max"),
    ] {
        let sources = flags.iter().fold(bare(), |sources, flag| sources.flag(*flag));
        assert!(refusal(&sources).contains(key), "{flags:?}");
    }
}

#[test]
fn not_a_number_is_within_no_bound() {
    assert!(refusal(&bare().flag("evolution.alpha=nan")).contains("evolution.alpha is nan"));
}

#[test]
fn a_named_file_has_to_exist_and_an_unnamed_one_need_not() {
    let missing = bare().file("/nonexistent/mneme.toml");
    assert!(matches!(Config::load(&missing), Err(ConfigError::Read { .. })));
    let environment = BTreeMap::from([("HOME".to_owned(), "/nonexistent".to_owned())]);
    Config::load(&Sources::from_environment(None, environment, Vec::new())).unwrap();
}

#[test]
fn a_file_too_large_for_a_configuration_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), &"#".repeat(2 << 20));
    assert!(matches!(Config::load(&bare().file(file)), Err(ConfigError::TooLarge { .. })));
}

#[test]
fn paths_follow_the_xdg_base_directories_and_a_relative_one_is_ignored() {
    let paths = Config::load(&bare()).unwrap().paths;
    assert_eq!(paths.state_dir, Path::new("/home/ada/.local/state/mneme"));
    assert_eq!(paths.socket(), Path::new("/home/ada/.local/state/mneme/run/mneme.sock"));
    assert_eq!(paths.assets_dir, Path::new("/home/ada/.cache/mneme/assets"));

    let paths = Config::load(
        &bare()
            .variable("XDG_STATE_HOME", "relative")
            .variable("XDG_RUNTIME_DIR", "/run/user/1000")
            .variable("XDG_CACHE_HOME", "/var/cache/ada")
            .flag("paths.assets_dir=~/models"),
    )
    .unwrap()
    .paths;
    assert_eq!(paths.state_dir, Path::new("/home/ada/.local/state/mneme"));
    assert_eq!(paths.socket(), Path::new("/run/user/1000/mneme/mneme.sock"));
    assert_eq!(paths.assets_dir, Path::new("/home/ada/models"));
}

#[test]
fn without_a_home_the_empty_paths_are_faults_and_given_ones_are_not() {
    let empty = Sources::default();
    assert!(refusal(&empty).contains("the environment names no home folder"));
    Config::load(&empty.flag("paths.state_dir=/s").flag("paths.assets_dir=/a")).unwrap();
}

#[test]
fn a_socket_path_longer_than_the_system_allows_is_refused_at_the_start() {
    let longest = SOCKET_PATH_BYTES_MAX - "/mneme.sock".len();
    let folder = format!("/{}", "r".repeat(longest - 1));
    let config = Config::load(&bare().flag(format!("paths.runtime_dir={folder}"))).unwrap();
    assert_eq!(config.paths.socket().as_os_str().len(), SOCKET_PATH_BYTES_MAX);
    let text = refusal(&bare().flag(format!("paths.runtime_dir={folder}r")));
    assert!(text.ends_with("the path of the socket would have 108 bytes, allowed: at most 107"), "{text}");
}

#[test]
fn a_difference_tells_which_settings_are_live_and_only_those_are_taken_over() {
    let old = Config::load(&bare()).unwrap();
    let new = Config::load(&bare().flag("server.idle_timeout=1m").flag("memory.engine=sled")).unwrap();
    let changes = old.diff(&new);
    let seen: Vec<_> = changes.iter().map(|change| (change.key, change.to.as_str(), change.reload)).collect();
    assert_eq!(seen, [("server.idle_timeout", "\"1m\"", Reload::Live), ("memory.engine", "\"sled\"", Reload::Restart)]);
    let in_force = old.with_live(&new);
    assert_eq!(in_force.server.idle_timeout, Duration::from_mins(1));
    assert_eq!(in_force.memory.engine, StateEngine::Redb);
}

struct Watched {
    reloader: Reloader,
    updates: Receiver<Update>,
    file: PathBuf,
    folder: tempfile::TempDir,
}

fn watched(poll: Duration) -> Watched {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "[server]\nconnections_max = 10\n");
    let sources = bare().file(&file);
    let initial = Arc::new(Config::load(&sources).unwrap());
    let (sender, updates) = sync_channel(64);
    let reloader = Reloader::start_with_poll(sources, initial, poll, move |update| {
        sender.try_send(update).expect("the test takes every update");
    })
    .unwrap();
    Watched { reloader, updates, file, folder }
}

#[test]
fn a_file_replaced_by_a_rename_is_noticed_again_and_again() {
    let watched = watched(HANG * 2);
    for connections in [20, 30, 40] {
        let aside = watched.folder.path().join("aside");
        fs_err::write(&aside, format!("[server]\nconnections_max = {connections}\n")).unwrap();
        fs_err::rename(&aside, &watched.file).unwrap();
        match watched.updates.recv_timeout(HANG).unwrap() {
            Update::Changed { config, changes, .. } => {
                assert_eq!(config.server.connections_max, connections);
                assert_eq!(changes.len(), 1);
            }
            Update::Refused { error, .. } => panic!("{error}"),
        }
        assert_eq!(watched.reloader.current().server.connections_max, connections);
    }
}

#[test]
fn an_invalid_file_keeps_the_last_good_configuration_and_says_why() {
    let watched = watched(HANG * 2);
    fs_err::write(&watched.file, "[server]\nconnections_max = 0\n").unwrap();
    let refused = loop {
        // A write in place may be seen while the file is empty, which is valid.
        if let Update::Refused { error, .. } = watched.updates.recv_timeout(HANG).unwrap() {
            break error;
        }
        watched.reloader.reload();
    };
    let ConfigError::Faults(faults) = refused else { panic!("{refused}") };
    assert_eq!(faults[0].origin, Origin::File { path: watched.file.clone(), line: 2 });
    assert_ne!(watched.reloader.current().server.connections_max, 0);
    fs_err::remove_file(&watched.file).unwrap();
    loop {
        if let Update::Refused { error: ConfigError::Read { .. }, .. } = watched.updates.recv_timeout(HANG).unwrap() {
            break;
        }
    }
}

#[test]
fn a_change_that_nobody_reports_is_found_by_the_poll() {
    // The folder does not exist when the watch begins, so that no report can come.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("later/config.toml");
    let mut sources = bare();
    sources.files.push(mneme_config::SourceFile { path: file.clone(), required: false });
    let initial = Arc::new(Config::load(&sources).unwrap());
    let (sender, updates) = sync_channel(64);
    let reloader = Reloader::start_with_poll(sources, initial, Duration::from_millis(20), move |update| {
        sender.try_send(update).expect("the test takes every update");
    })
    .unwrap();
    fs_err::create_dir(file.parent().unwrap()).unwrap();
    fs_err::write(&file, "[server]\nconnections_max = 77\n").unwrap();
    assert!(matches!(updates.recv_timeout(HANG).unwrap(), Update::Changed { .. }));
    assert_eq!(reloader.current().server.connections_max, 77);
}

#[test]
fn a_reload_on_request_reports_even_when_nothing_changed() {
    let watched = watched(HANG * 2);
    watched.reloader.reload();
    match watched.updates.recv_timeout(HANG).unwrap() {
        Update::Changed { changes, .. } => assert_eq!(changes, []),
        Update::Refused { error, .. } => panic!("{error}"),
    }
}

proptest! {
    #[test]
    fn no_text_of_a_file_makes_the_loader_panic(text in "[\\[\\]a-z_.=\"0-9\n# {}]{0,200}") {
        let folder = tempfile::tempdir().unwrap();
        let _ = Config::load(&bare().file(write(folder.path(), &text)));
    }

    #[test]
    fn what_a_configuration_prints_reads_back_the_same(
        connections in 1_u32..65_536, wait in 0_u64..1_000, share in 0.2..0.5, frame in 512_u64..65_536,
    ) {
        let config = Config::load(
            &bare()
                .flag(format!("server.connections_max={connections}"))
                .flag(format!("memory.group_commit_wait={wait}ms"))
                .flag(format!("evolution.replay_share={share:?}"))
                .flag(format!("server.frame_bytes_max={frame}KiB")),
        )
        .unwrap();
        let lines: Vec<_> = config.print().into_iter().map(|(key, value)| format!("{key} = {value}")).collect();
        let text = lines.join("\n");
        let folder = tempfile::tempdir().unwrap();
        let again = Config::load(&bare().file(write(folder.path(), &text))).unwrap();
        prop_assert_eq!(config, again);
    }
}
