//! `mneme install`: adds `mneme mcp` to the configuration of a program that speaks MCP, and session hooks where it has them;
//! `mneme uninstall` takes both away. Shows what changes, keeps the former file, and leaves everything else in it as it stands,
//! spaces and order included.

mod hooks;
mod json;

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use self::json::Dialect;
use super::Session;
use crate::args::{InstallArgs, McpClient, UninstallArgs};
use crate::error::CommandError;
use crate::output::{dim, good, line, note, safe};

/// The name of the server in every configuration.
const NAME: &str = "mneme";
/// A configuration file is at most this long (bytes): some clients keep their state beside it.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// What a file is to become.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    None,
    Write(String),
}

/// How a client writes its servers down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// JSON, as this client reads it, with the servers under this key; and whether each names its transport.
    Json { key: &'static str, typed: bool, dialect: Dialect },
    /// TOML tables `[mcp_servers.name]`.
    Toml,
}

/// How the server is started.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Start {
    command: String,
    arguments: Vec<String>,
}

impl McpClient {
    const fn form(self) -> Form {
        match self {
            Self::ClaudeCode => Form::Json { key: "mcpServers", typed: true, dialect: Dialect::Strict },
            Self::ClaudeDesktop | Self::Cursor => {
                Form::Json { key: "mcpServers", typed: false, dialect: Dialect::Strict }
            }
            Self::Vscode => Form::Json { key: "servers", typed: true, dialect: Dialect::Comments },
            Self::Codex => Form::Toml,
        }
    }

    /// Whether it has session hooks that can hand text to the model.
    fn check_hooks(self) -> Result<(), CommandError> {
        if self == Self::ClaudeCode {
            return Ok(());
        }
        Err(CommandError::Usage {
            problem: "--hooks is for claude-code: no other client hands a hook's words to the model".into(),
            hint: Some("without hooks the prompt 'recall-first' of the server asks the model to recall".into()),
        })
    }

    /// Where Claude Code keeps its hooks.
    fn settings(home: &Path, project: bool) -> Result<PathBuf, CommandError> {
        if project {
            return Ok(".claude/settings.json".into());
        }
        Ok(named_folder("CLAUDE_CONFIG_DIR")?.unwrap_or_else(|| home.join(".claude")).join("settings.json"))
    }

    /// The file below the home folder, or below a project.
    fn file(self, home: &Path, project: bool) -> Result<PathBuf, CommandError> {
        if project {
            return match self {
                Self::ClaudeCode => Ok(".mcp.json".into()),
                Self::Cursor => Ok(".cursor/mcp.json".into()),
                Self::Vscode => Ok(".vscode/mcp.json".into()),
                Self::Codex => Ok(".codex/config.toml".into()),
                Self::ClaudeDesktop => Err(CommandError::usage("claude-desktop has no configuration for projects")),
            };
        }
        let settings = if cfg!(target_os = "macos") {
            home.join("Library/Application Support")
        } else {
            folder_of("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"))
        };
        Ok(match self {
            Self::ClaudeCode => {
                named_folder("CLAUDE_CONFIG_DIR")?.unwrap_or_else(|| home.to_owned()).join(".claude.json")
            }
            Self::ClaudeDesktop => settings.join("Claude/claude_desktop_config.json"),
            Self::Cursor => home.join(".cursor/mcp.json"),
            Self::Vscode => settings.join("Code/User/mcp.json"),
            Self::Codex => named_folder("CODEX_HOME")?.unwrap_or_else(|| home.join(".codex")).join("config.toml"),
        })
    }
}

fn folder_of(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// The folder that a client's own variable names. A relative one means another folder wherever the client is started.
fn named_folder(variable: &str) -> Result<Option<PathBuf>, CommandError> {
    match std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from) {
        Some(folder) if !folder.is_absolute() => {
            Err(CommandError::usage(format!("{variable} is {}, which is not an absolute path", folder.display())))
        }
        folder => Ok(folder),
    }
}

/// Adds the server, and the hooks when they are asked for.
pub(super) fn run(session: &Session, args: InstallArgs) -> Result<(), CommandError> {
    let program = super::absolute(&std::env::current_exe()?)?;
    let mut arguments = vec![String::from("mcp")];
    let mut hook = hooks::quoted(&program);
    if session.socket() != mneme_client_sdk::default_socket() || std::env::var_os("MNEME_SOCKET").is_some() {
        let socket = super::absolute(session.socket())?;
        hook = format!("{hook} --socket {}", hooks::quoted(&socket));
        arguments.extend([String::from("--socket"), socket]);
    }
    let start = Start { command: program, arguments };
    let form = args.client.form();
    if args.hooks {
        args.client.check_hooks()?;
    }
    if args.print {
        let text = if args.hooks { hooks::changed("", Some(&hook))? } else { changed(form, "", &start)? };
        write!(std::io::stdout(), "{}", text.text().unwrap_or_default())?;
        return Ok(());
    }
    let home = folder_of("HOME").ok_or_else(|| CommandError::usage("HOME names no folder"))?;
    let mut files = vec![apply(session, &args.client.file(&home, args.project)?, args.yes, |former| {
        changed(form, former, &start)
    })?];
    if args.hooks {
        let settings = McpClient::settings(&home, args.project)?;
        files.push(apply(session, &settings, args.yes, |former| hooks::changed(former, Some(&hook)))?);
    }
    tell(session, &files, "start the client again to use it")
}

/// Takes the server and the hooks away. Memories stay.
pub(super) fn uninstall(session: &Session, args: &UninstallArgs) -> Result<(), CommandError> {
    let home = folder_of("HOME").ok_or_else(|| CommandError::usage("HOME names no folder"))?;
    let form = args.client.form();
    let mut files =
        vec![apply(session, &args.client.file(&home, args.project)?, args.yes, |former| without(form, former))?];
    if args.client.check_hooks().is_ok() {
        let settings = McpClient::settings(&home, args.project)?;
        files.push(apply(session, &settings, args.yes, |former| hooks::changed(former, None))?);
    }
    tell(session, &files, "memories stay; 'mneme forget' is for them")
}

/// Shows a change, asks, and makes it. Returns what became of the file.
fn apply(
    session: &Session,
    file: &Path,
    yes: bool,
    change: impl FnOnce(&str) -> Result<Change, CommandError>,
) -> Result<Value, CommandError> {
    let file = target(file)?;
    let former = read(&file)?;
    let changed = change(former.as_deref().unwrap_or_default()).map_err(|error| {
        let hint = error.hint();
        CommandError::Usage { problem: format!("{}: {error}", file.display()), hint }
    })?;
    let Change::Write(text) = changed else {
        session.out.remark(format!("{} needs no change", file.display()));
        return Ok(json!({"file": file, "changed": false}));
    };
    note(&format!("{}:", file.display()));
    for row in difference(former.as_deref().unwrap_or_default(), &text) {
        note(&safe(&row));
    }
    if !yes {
        confirm()?;
    }
    // The client itself may have written it while the question stood there.
    if read(&file)? != former {
        return Err(CommandError::Usage {
            problem: format!("{} was changed meanwhile; nothing was written", file.display()),
            hint: Some("run it again; with --yes it does not wait".into()),
        });
    }
    let backup = store(&file, former.is_some(), &text)?;
    Ok(json!({"file": file, "changed": true, "backup": backup}))
}

/// The file that is written: a link to one that is kept elsewhere stays a link.
fn target(file: &Path) -> Result<PathBuf, CommandError> {
    match file.canonicalize() {
        Ok(found) => Ok(found),
        // What it names may be on a disk that is not mounted: a plain file in its place would hide it.
        Err(_) if file.is_symlink() => Err(CommandError::Usage {
            problem: format!("{} is a link to a file that is not there; nothing was written", file.display()),
            hint: Some("mend the link, or remove it".into()),
        }),
        Err(_) => Ok(file.to_owned()),
    }
}

fn tell(session: &Session, files: &[Value], next: &str) -> Result<(), CommandError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let changed = files.iter().any(|file| file["changed"] == true);
    // One file is told as one object, as it always was.
    let told = if let [file] = files { file.clone() } else { json!({"changed": changed, "files": files}) };
    session.out.result(&told, |_| {
        for file in files.iter().filter(|file| file["changed"] == true) {
            line(format!("{} {}", good("written"), text(&file["file"])));
            if file["backup"].is_string() {
                line(dim(format!("the former file is {}", text(&file["backup"]))));
            }
        }
        if changed {
            line(dim(next));
        }
    })
}

impl Change {
    fn text(self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Write(text) => Some(text),
        }
    }
}

/// The text of a configuration with the server in it.
fn changed(form: Form, former: &str, start: &Start) -> Result<Change, CommandError> {
    match form {
        Form::Json { key, typed, dialect } => {
            let mut entry = serde_json::Map::new();
            if typed {
                entry.insert("type".into(), json!("stdio"));
            }
            entry.insert("command".into(), json!(start.command));
            entry.insert("args".into(), json!(start.arguments));
            let text = json::with_entry(former, key, NAME, &Value::Object(entry), dialect).map_err(|problem| {
                let hint = "mend the file, or add by hand what 'mneme install ... --print' shows";
                CommandError::Usage { problem, hint: Some(hint.into()) }
            })?;
            Ok(text.map_or(Change::None, Change::Write))
        }
        Form::Toml => with_table(former, start),
    }
}

/// The text of a configuration without the server.
fn without(form: Form, former: &str) -> Result<Change, CommandError> {
    match form {
        Form::Json { key, dialect, .. } => {
            let text = json::without_entry(former, key, NAME, dialect).map_err(CommandError::usage)?;
            Ok(text.map_or(Change::None, Change::Write))
        }
        Form::Toml => {
            let broken = |problem: String| CommandError::usage(format!("file cannot be changed: {problem}"));
            let mut document: toml_edit::DocumentMut = former.parse().map_err(|error| broken(format!("{error}")))?;
            let servers = document.get_mut("mcp_servers").and_then(toml_edit::Item::as_table_like_mut);
            Ok(match servers.and_then(|servers| servers.remove(NAME)) {
                Some(_) => Change::Write(document.to_string()),
                None => Change::None,
            })
        }
    }
}

fn with_table(former: &str, start: &Start) -> Result<Change, CommandError> {
    use toml_edit::{Array, DocumentMut, Item, Table, value};
    let broken = |problem: String| CommandError::usage(format!("file cannot be changed: {problem}"));
    let mut document: DocumentMut = former.parse().map_err(|error| broken(format!("{error}")))?;
    let servers = document.entry("mcp_servers").or_insert_with(|| {
        let mut table = Table::new();
        table.set_implicit(true);
        Item::Table(table)
    });
    let servers = servers.as_table_like_mut().ok_or_else(|| broken("mcp_servers is not a table".into()))?;
    let entry = servers.entry(NAME).or_insert_with(|| Item::Table(Table::new()));
    let entry = entry.as_table_like_mut().ok_or_else(|| broken(format!("mcp_servers.{NAME} is not a table")))?;
    let same = entry.get("command").and_then(Item::as_str) == Some(&start.command)
        && entry.get("args").and_then(Item::as_array).is_some_and(|given| {
            given.iter().map(|value| value.as_str()).eq(start.arguments.iter().map(|argument| Some(argument.as_str())))
        });
    if same {
        return Ok(Change::None);
    }
    entry.insert("command", value(start.command.as_str()));
    entry.insert("args", value(start.arguments.iter().map(String::as_str).collect::<Array>()));
    Ok(Change::Write(document.to_string()))
}

fn read(file: &Path) -> Result<Option<String>, CommandError> {
    match fs_err::metadata(file) {
        Ok(found) if found.len() > FILE_BYTES_MAX => {
            Err(CommandError::usage(format!("{} has more than {FILE_BYTES_MAX} bytes", file.display())))
        }
        Ok(_) => Ok(Some(fs_err::read_to_string(file)?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes the file in one step, keeping the former one beside it; returns where that is.
fn store(file: &Path, exists: bool, text: &str) -> Result<Option<PathBuf>, CommandError> {
    let beside = |ending: String| {
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(ending);
        file.with_file_name(name)
    };
    if let Some(folder) = file.parent() {
        fs_err::create_dir_all(folder)?;
    }
    let fresh = beside(format!(".mneme-{}.tmp", std::process::id()));
    let written = (|| -> Result<Option<PathBuf>, CommandError> {
        let mut options = fs_err::OpenOptions::new();
        options.write(true).create_new(true);
        let mut opened = options.open(&fresh)?;
        let mut backup = None;
        if exists {
            fs_err::set_permissions(&fresh, fs_err::metadata(file)?.permissions())?;
            let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let path = beside(format!(".{seconds}.bak"));
            fs_err::copy(file, &path)?;
            backup = Some(path);
        }
        opened.write_all(text.as_bytes())?;
        opened.sync_all()?;
        fs_err::rename(&fresh, file)?;
        Ok(backup)
    })();
    if written.is_err() {
        let _ = fs_err::remove_file(&fresh);
    }
    written
}

/// The lines that go and come, with up to two that stay around them. The change is in one place.
fn difference(former: &str, text: &str) -> Vec<String> {
    let (old, new): (Vec<&str>, Vec<&str>) = (former.lines().collect(), text.lines().collect());
    let head = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let rest = old.len().min(new.len()) - head;
    let tail = old.iter().rev().zip(new.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
    let stays = |line: &&str| format!("  {line}");
    let mut rows: Vec<String> = old[head.saturating_sub(2)..head].iter().map(stays).collect();
    rows.extend(old[head..old.len() - tail].iter().map(|line| format!("- {line}")));
    rows.extend(new[head..new.len() - tail].iter().map(|line| format!("+ {line}")));
    rows.extend(old[old.len() - tail..].iter().take(2).map(stays));
    rows
}

fn confirm() -> Result<(), CommandError> {
    if !std::io::stdin().is_terminal() {
        let hint = Some(String::from("add --yes"));
        return Err(CommandError::Usage { problem: "the change has to be confirmed".into(), hint });
    }
    note("Write this? [y/N]");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(CommandError::usage("nothing was written")) }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn start() -> Start {
        Start { command: "/usr/bin/mneme".into(), arguments: vec!["mcp".into()] }
    }

    fn check(client: McpClient, former: &str, expected: &Expect) {
        let text = changed(client.form(), former, &start()).unwrap().text().unwrap();
        expected.assert_eq(&text);
        assert_eq!(changed(client.form(), &text, &start()).unwrap(), Change::None, "a second time changes nothing");
    }

    #[test]
    fn an_empty_configuration_becomes_the_snippet_of_the_client() {
        let json = expect![[r#"
            {
              "mcpServers": {
                "mneme": {"command": "/usr/bin/mneme", "args": ["mcp"]}
              }
            }
        "#]];
        check(McpClient::ClaudeDesktop, "", &json);
        check(McpClient::Cursor, " \n", &json);
        check(
            McpClient::ClaudeCode,
            "",
            &expect![[r#"
                {
                  "mcpServers": {
                    "mneme": {"type": "stdio", "command": "/usr/bin/mneme", "args": ["mcp"]}
                  }
                }
            "#]],
        );
        check(
            McpClient::Vscode,
            "{}",
            &expect![[r#"
                {
                  "servers": {
                    "mneme": {"type": "stdio", "command": "/usr/bin/mneme", "args": ["mcp"]}
                  }
                }"#]],
        );
        check(
            McpClient::Codex,
            "",
            &expect![[r#"
                [mcp_servers.mneme]
                command = "/usr/bin/mneme"
                args = ["mcp"]
            "#]],
        );
    }

    #[test]
    fn what_stands_there_is_kept_with_its_spaces_and_order() {
        check(
            McpClient::Cursor,
            "{\n    \"z\": [1,2 , 3],\n    \"mcpServers\": {\n        \"other\": {\"command\": \"x}\\\"{\"}\n    },\n    \"a\": null\n}\n",
            &expect![[r#"
                {
                    "z": [1,2 , 3],
                    "mcpServers": {
                        "mneme": {"command": "/usr/bin/mneme", "args": ["mcp"]},
                        "other": {"command": "x}\"{"}
                    },
                    "a": null
                }
            "#]],
        );
        check(
            McpClient::Codex,
            "# mine\nmodel = \"m\"\n\n[mcp_servers.other]\ncommand = \"x\" # keep\n",
            &expect![[r#"
                # mine
                model = "m"

                [mcp_servers.other]
                command = "x" # keep

                [mcp_servers.mneme]
                command = "/usr/bin/mneme"
                args = ["mcp"]
            "#]],
        );
    }

    #[test]
    fn an_older_entry_is_replaced() {
        check(
            McpClient::Cursor,
            r#"{"mcpServers": {"mneme": {"command": "/old"}, "b": 1}}"#,
            &expect![[r#"{"mcpServers": {"mneme": {"command": "/usr/bin/mneme", "args": ["mcp"]}, "b": 1}}"#]],
        );
        check(
            McpClient::Codex,
            "[mcp_servers.mneme]\ncommand = \"/old\"\nenabled = true\n",
            &expect![[r#"
                [mcp_servers.mneme]
                command = "/usr/bin/mneme"
                enabled = true
                args = ["mcp"]
            "#]],
        );
    }

    #[test]
    fn what_was_installed_is_taken_out_again() {
        for (client, former) in [
            (McpClient::Cursor, "{\"mcpServers\": {\"b\": 1}}"),
            (McpClient::Vscode, "{\"servers\": {}, \"inputs\": []}"),
            (McpClient::Codex, "model = \"m\"\n\n[mcp_servers.other]\ncommand = \"x\" # keep\n"),
        ] {
            let with = changed(client.form(), former, &start()).unwrap().text().unwrap();
            let back = without(client.form(), &with).unwrap().text().unwrap();
            assert_eq!(back.split_whitespace().collect::<String>(), former.split_whitespace().collect::<String>());
            assert_eq!(without(client.form(), &back).unwrap(), Change::None);
        }
        assert_eq!(without(McpClient::Codex.form(), "").unwrap(), Change::None);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_left_alone() {
        for former in ["{", "[]", "{\"mcpServers\": 1}", "{\"mcpServers\": {},}", "// comment\n{}", "{} {}"] {
            assert!(changed(McpClient::ClaudeDesktop.form(), former, &start()).is_err(), "{former}");
        }
        for former in ["{", "[]", "{\"servers\": 1}", "{} {}", "/* {}"] {
            assert!(changed(McpClient::Vscode.form(), former, &start()).is_err(), "{former}");
        }
        for former in ["a = ", "mcp_servers = 1", "[mcp_servers]\nmneme = 1"] {
            assert!(changed(McpClient::Codex.form(), former, &start()).is_err(), "{former}");
        }
    }

    #[test]
    fn the_former_file_is_kept_beside_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep/mcp.json");
        assert_eq!(store(&file, false, "first").unwrap(), None);
        let backup = store(&file, true, "second").unwrap().unwrap();
        assert_eq!(fs_err::read_to_string(&file).unwrap(), "second");
        assert_eq!(fs_err::read_to_string(backup).unwrap(), "first");
        assert_eq!(fs_err::read_dir(folder.path().join("deep")).unwrap().count(), 2);
    }

    #[test]
    fn a_link_is_followed_and_one_that_leads_nowhere_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let (link, file) = (folder.join("link.json"), folder.join("dotfiles.json"));
        assert_eq!(target(&file).unwrap(), file, "what is not there yet is written");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(target(&link).unwrap_err().to_string().contains("is a link to a file that is not there"));
        fs_err::write(&file, "{}").unwrap();
        assert_eq!(target(&link).unwrap(), file);
    }

    #[test]
    fn a_file_that_changed_while_the_question_stood_there_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mcp.json");
        let session = Session {
            out: crate::output::Output::new(true),
            options: mneme_client_sdk::ClientOptions::new("test"),
            timeout: std::time::Duration::from_secs(1),
        };
        for (former, meanwhile) in [(Some("{}"), Some("{\"a\": 1}")), (None, Some("{}")), (Some("{}"), None)] {
            let _ = fs_err::remove_file(&file);
            if let Some(former) = former {
                fs_err::write(&file, former).unwrap();
            }
            let told = apply(&session, &file, true, |_| {
                match meanwhile {
                    Some(text) => fs_err::write(&file, text).unwrap(),
                    None => fs_err::remove_file(&file).unwrap(),
                }
                Ok(Change::Write("ours".into()))
            });
            assert!(told.unwrap_err().to_string().contains("was changed meanwhile"));
            assert_eq!(fs_err::read_to_string(&file).ok().as_deref(), meanwhile);
        }
        assert!(fs_err::read_dir(folder.path()).unwrap().count() <= 1, "neither draft nor copy is left");
    }

    #[test]
    fn the_difference_shows_what_goes_and_comes() {
        assert_eq!(difference("a\nb\nc\nd\ne", "a\nb\nX\nd\ne"), ["  a", "  b", "- c", "+ X", "  d", "  e"]);
        assert_eq!(difference("", "a"), ["+ a"]);
        assert_eq!(difference("a", "a\na"), ["  a", "+ a"]);
    }
}
