//! The command line's reference page, made from the grammar itself: `docs/reference/cli.md`.

use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory as _};

use crate::args::Arguments;

/// The page as Markdown: every command with its arguments, in the order of the help.
pub fn reference() -> String {
    let mut page = String::from(
        "# Command line\n\n<!-- Made by MNEME_BLESS=1 cargo test -p mneme-cli; do not edit. -->\n\n\
         Options of every command: `--json` prints one line of JSON instead of text, `--socket PATH` names another daemon, \
         `--timeout SECONDS` is how long a command waits. Exit status 0 is success, 64 a command that cannot be read.\n",
    );
    let mut root = Arguments::command();
    root.build();
    for command in root.get_subcommands().filter(|command| !command.is_hide_set()) {
        describe(&mut page, "mneme", command);
    }
    page
}

fn describe(page: &mut String, parent: &str, command: &Command) {
    if command.get_name() == "help" {
        return;
    }
    let name = format!("{parent} {}", command.get_name());
    let mut positional = String::new();
    for argument in command.get_positionals() {
        let _ = write!(positional, " {}", value_of(argument));
    }
    let mut children =
        command.get_subcommands().filter(|child| child.get_name() != "help" && !child.is_hide_set()).peekable();
    let _ =
        write!(page, "\n## `{name}{positional}`\n\n{}\n", text_of(command.get_long_about().or(command.get_about())));
    let arguments: Vec<&Arg> =
        command.get_arguments().filter(|argument| !argument.is_hide_set() && !argument.is_global_set()).collect();
    let shown: Vec<&&Arg> =
        arguments.iter().filter(|argument| !matches!(argument.get_id().as_str(), "help" | "version")).collect();
    if !shown.is_empty() {
        page.push_str("\n| argument | what it is |\n|---|---|\n");
    }
    for argument in shown {
        let mut help = text_of(argument.get_long_help().or(argument.get_help()));
        let values: Vec<String> = argument
            .get_possible_values()
            .iter()
            .filter(|value| !value.is_hide_set())
            .map(|value| format!("`{}`", value.get_name()))
            .collect();
        if !values.is_empty() && argument.get_action().takes_values() {
            let _ = write!(help, " One of {}.", values.join(", "));
        }
        let defaults: Vec<String> =
            argument.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
        if !defaults.is_empty() && argument.get_action().takes_values() {
            let _ = write!(help, " Default {}.", defaults.join(", "));
        }
        let _ = writeln!(page, "| `{}` | {} |", spelt(argument), help.replace('|', "\\|"));
    }
    if children.peek().is_some() {
        children.for_each(|child| describe(page, &name, child));
    }
}

/// A help text as one paragraph that ends like a sentence.
fn text_of(text: Option<&clap::builder::StyledStr>) -> String {
    let text = text.map(ToString::to_string).unwrap_or_default();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // Angle brackets in prose are no HTML.
    let text = text.replace('<', "&lt;").replace('>', "&gt;");
    if text.is_empty() || text.ends_with(['.', '?', '!', ']']) { text } else { format!("{text}.") }
}

fn spelt(argument: &Arg) -> String {
    let mut text = String::new();
    if let Some(short) = argument.get_short() {
        let _ = write!(text, "-{short}, ");
    }
    match argument.get_long() {
        Some(long) => {
            let _ = write!(text, "--{long}");
            if argument.get_action().takes_values() {
                let _ = write!(text, " {}", value_of(argument).trim_matches(['[', ']']));
            }
        }
        None => text.push_str(&value_of(argument)),
    }
    text
}

fn value_of(argument: &Arg) -> String {
    let names = argument.get_value_names().unwrap_or_default();
    let name = names.first().map_or_else(|| argument.get_id().as_str().to_uppercase(), ToString::to_string);
    let many = argument.get_num_args().is_some_and(|count| count.max_values() > 1);
    let name = if many { format!("{name}...") } else { name };
    if argument.is_required_set() || argument.get_long().is_some() { name } else { format!("[{name}]") }
}
