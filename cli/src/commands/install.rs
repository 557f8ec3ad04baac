//! `mneme install`: adds `mneme mcp` to the configuration of a program that speaks MCP. Shows what changes, keeps the
//! former file, and leaves everything else in it as it stands, spaces and order included.

mod json;

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::Session;
use crate::args::{InstallArgs, McpClient};
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
    /// JSON with the servers under this key; and whether each names its transport.
    Json { key: &'static str, typed: bool },
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
            Self::ClaudeCode => Form::Json { key: "mcpServers", typed: true },
            Self::ClaudeDesktop | Self::Cursor => Form::Json { key: "mcpServers", typed: false },
            Self::Vscode => Form::Json { key: "servers", typed: true },
            Self::Codex => Form::Toml,
        }
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
            Self::ClaudeCode => home.join(".claude.json"),
            Self::ClaudeDesktop => settings.join("Claude/claude_desktop_config.json"),
            Self::Cursor => home.join(".cursor/mcp.json"),
            Self::Vscode => settings.join("Code/User/mcp.json"),
            Self::Codex => folder_of("CODEX_HOME").unwrap_or_else(|| home.join(".codex")).join("config.toml"),
        })
    }
}

fn folder_of(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

pub(super) fn run(session: &Session, args: InstallArgs) -> Result<(), CommandError> {
    let mut arguments = vec![String::from("mcp")];
    if session.socket() != mneme_client_sdk::default_socket() || std::env::var_os("MNEME_SOCKET").is_some() {
        arguments.extend([String::from("--socket"), super::absolute(session.socket())?]);
    }
    let start = Start { command: super::absolute(&std::env::current_exe()?)?, arguments };
    let form = args.client.form();
    if args.print {
        write!(std::io::stdout(), "{}", changed(form, "", &start)?.text().unwrap_or_default())?;
        return Ok(());
    }
    let home = folder_of("HOME").ok_or_else(|| CommandError::usage("HOME names no folder"))?;
    let file = args.client.file(&home, args.project)?;
    // A link to a file that is kept elsewhere stays a link.
    let file = file.canonicalize().unwrap_or(file);
    let former = read(&file)?;
    let Change::Write(text) = changed(form, former.as_deref().unwrap_or_default(), &start)
        .map_err(|error| CommandError::usage(format!("{}: {error}", file.display())))?
    else {
        session.out.remark(format!("{} has it already", file.display()));
        return session.out.result(&json!({"file": file, "changed": false}), |_| {});
    };
    note(&format!("{}:", file.display()));
    for row in difference(former.as_deref().unwrap_or_default(), &text) {
        note(&safe(&row));
    }
    if !args.yes {
        confirm()?;
    }
    let backup = store(&file, former.is_some(), &text)?;
    let told = json!({"file": file, "changed": true, "backup": backup});
    session.out.result(&told, |_| {
        line(format!("{} {}", good("written"), file.display()));
        if let Some(backup) = &backup {
            line(dim(format!("the former file is {}", backup.display())));
        }
        line(dim("start the client again to use it"));
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
        Form::Json { key, typed } => {
            let mut entry = serde_json::Map::new();
            if typed {
                entry.insert("type".into(), json!("stdio"));
            }
            entry.insert("command".into(), json!(start.command));
            entry.insert("args".into(), json!(start.arguments));
            let text =
                json::with_entry(former, key, NAME, &Value::Object(entry)).map_err(|problem| CommandError::Usage {
                    problem,
                    hint: Some("mend the file, or add by hand what 'mneme install ... --print' shows".into()),
                })?;
            Ok(text.map_or(Change::None, Change::Write))
        }
        Form::Toml => with_table(former, start),
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
    fn a_file_that_cannot_be_read_is_left_alone() {
        for former in ["{", "[]", "{\"mcpServers\": 1}", "{\"mcpServers\": {},}", "// comment\n{}", "{} {}"] {
            assert!(changed(McpClient::Cursor.form(), former, &start()).is_err(), "{former}");
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
    fn the_difference_shows_what_goes_and_comes() {
        assert_eq!(difference("a\nb\nc\nd\ne", "a\nb\nX\nd\ne"), ["  a", "  b", "- c", "+ X", "  d", "  e"]);
        assert_eq!(difference("", "a"), ["+ a"]);
        assert_eq!(difference("a", "a\na"), ["  a", "+ a"]);
    }
}
