//! Regular expressions as automata, and the translation of the dialect that JSON Schema writes them in.

use regex_automata::dfa::Automaton;
use regex_automata::dfa::dense;
use regex_automata::util::syntax;
use regex_automata::{Anchored, MatchKind};

use super::{ByteDfa, ConstraintError, Limits};

/// Memory for determinising one expression at most (bytes).
const DETERMINIZE_BYTES_MAX: usize = 32 << 20;
/// Memory for the Thompson automaton of one expression at most (bytes): what bounds nested repetitions.
const NFA_BYTES_MAX: usize = 4 << 20;
/// Nesting of one expression at most.
const NEST_MAX: u32 = 64;

/// The texts that match as a whole.
pub(super) fn whole(pattern: &str, limits: Limits) -> Result<ByteDfa, ConstraintError> {
    check_size(pattern, limits)?;
    // Checked alone first, so that a stray parenthesis cannot escape the group that it is put into.
    parse(pattern)?;
    compile(&format!(r"\A(?:{pattern})\z"), limits)
}

/// The texts that contain a match of a schema's `pattern` (ECMA-262), as JSON Schema 2020-12 section 6.3.3 has it.
pub(super) fn contains(pattern: &str, limits: Limits) -> Result<ByteDfa, ConstraintError> {
    check_size(pattern, limits)?;
    let pattern = from_ecma(pattern)?;
    parse(&pattern)?;
    compile(&format!(r"\A(?s:.)*(?:{pattern})(?s:.)*\z"), limits)
}

/// Texts of so many characters.
pub(super) fn characters(min: usize, max: Option<usize>, limits: Limits) -> Result<ByteDfa, ConstraintError> {
    let max = max.map(|max| max.to_string()).unwrap_or_default();
    compile(&format!(r"\A(?s:.){{{min},{max}}}\z"), limits)
}

fn check_size(pattern: &str, limits: Limits) -> Result<(), ConstraintError> {
    if pattern.len() > limits.source_bytes {
        return Err(ConstraintError::TooLarge { what: "bytes of expression", limit: limits.source_bytes });
    }
    Ok(())
}

fn parse(pattern: &str) -> Result<(), ConstraintError> {
    let parsed = regex_syntax::ParserBuilder::new().nest_limit(NEST_MAX).build().parse(pattern);
    parsed.map(|_| ()).map_err(|error| ConstraintError::Regex { reason: error.to_string() })
}

fn compile(pattern: &str, limits: Limits) -> Result<ByteDfa, ConstraintError> {
    let dfa = dense::Builder::new()
        .configure(
            dense::Config::new()
                .start_kind(regex_automata::dfa::StartKind::Anchored)
                .match_kind(MatchKind::All)
                .dfa_size_limit(Some(DETERMINIZE_BYTES_MAX))
                .determinize_size_limit(Some(DETERMINIZE_BYTES_MAX)),
        )
        .thompson(regex_automata::nfa::thompson::Config::new().nfa_size_limit(Some(NFA_BYTES_MAX)))
        .syntax(syntax::Config::new().nest_limit(NEST_MAX + 8))
        .build(pattern)
        .map_err(|error| {
            if error.is_size_limit_exceeded() {
                ConstraintError::TooLarge { what: "bytes of expression automaton", limit: DETERMINIZE_BYTES_MAX }
            } else {
                ConstraintError::Regex { reason: error.to_string() }
            }
        })?;
    let input = regex_automata::Input::new("").anchored(Anchored::Yes);
    let start =
        dfa.start_state_forward(&input).map_err(|error| ConstraintError::Regex { reason: error.to_string() })?;
    let mut ids = std::collections::HashMap::from([(start, 0_u32)]);
    let mut order = vec![start];
    let (mut table, mut accepting) = (Vec::new(), Vec::new());
    let mut index = 0;
    while index < order.len() {
        let state = order[index];
        // Matches are reported one transition late, so acceptance is asked of the end of input.
        accepting.push(dfa.is_match_state(dfa.next_eoi_state(state)));
        for byte in 0..=255_u8 {
            let target = dfa.next_state(state, byte);
            if dfa.is_quit_state(target) {
                let reason = "Unicode word boundaries cannot be followed byte by byte; write (?-u:\\b)".into();
                return Err(ConstraintError::Regex { reason });
            }
            table.push(if dfa.is_dead_state(target) {
                u32::MAX
            } else {
                *ids.entry(target).or_insert_with(|| {
                    order.push(target);
                    (order.len() - 1) as u32
                })
            });
        }
        if order.len() > limits.states {
            return Err(ConstraintError::TooLarge { what: "automaton states", limit: limits.states });
        }
        index += 1;
    }
    ByteDfa::from_table(&table, &accepting)
}

/// Rewrites an ECMA-262 expression for the `regex` crate where the two read the same text differently: `\d \w \s` are about ASCII in
/// one and about Unicode in the other, `.` excludes four line ends, a bracket inside a class is a bracket. Validators take either
/// reading of the classes, so the narrower one is written, and the wider one inside a negated class. What the crate cannot express stays
/// and fails.
fn from_ecma(pattern: &str) -> Result<String, ConstraintError> {
    /// White space in both readings, as it stands inside a class.
    const SPACE: &str = r"\t\n\x0B\x0C\r \u{A0}\u{1680}\u{2000}-\u{200A}\u{2028}\u{2029}\u{202F}\u{205F}\u{3000}";
    /// White space in one of them.
    const SPACE_PERHAPS: &str = r"\x85\u{FEFF}";
    let mut out = String::with_capacity(pattern.len() + 16);
    // Inside a class, and whether it is negated.
    let mut class: Option<bool> = None;
    let mut letters = pattern.chars().peekable();
    while let Some(letter) = letters.next() {
        let wide = class == Some(true);
        match letter {
            '\\' => match letters.next() {
                Some('d') if !wide => out.push_str("[0-9]"),
                Some('D') if wide => out.push_str("[^0-9]"),
                Some('w') if !wide => out.push_str("[A-Za-z0-9_]"),
                Some('W') if wide => out.push_str("[^A-Za-z0-9_]"),
                Some('s') if wide => out.extend(["[", SPACE, SPACE_PERHAPS, "]"]),
                Some('s') => out.extend(["[", SPACE, "]"]),
                Some('S') if wide => out.extend(["[^", SPACE, "]"]),
                Some('S') => out.extend(["[^", SPACE, SPACE_PERHAPS, "]"]),
                Some('b') if class.is_some() => out.push_str(r"\x08"),
                Some('b' | 'B') => {
                    let reason = "word boundaries: readers disagree about letters beyond ASCII".into();
                    return Err(ConstraintError::Regex { reason });
                }
                Some('0') => out.push_str(r"\x00"),
                Some(name) if name.is_ascii_alphanumeric() && !"nrtfvxupPdDwW".contains(name) => {
                    return Err(ConstraintError::Regex { reason: format!(r"escape \{name}") });
                }
                Some(escaped) => out.extend(['\\', escaped]),
                None => out.push('\\'),
            },
            '[' if class.is_some() => out.push_str(r"\["),
            // An empty class matches nothing, its negation everything; the crate would read the bracket as a member.
            '[' if letters.peek() == Some(&']') => {
                letters.next();
                out.push_str("[a&&b]");
            }
            '[' if letters.clone().take(2).eq("^]".chars()) => {
                letters.nth(1);
                out.push_str("(?s:.)");
            }
            '-' if class.is_some() && letters.peek() == Some(&'-') => {
                return Err(ConstraintError::Regex { reason: "two hyphens in a class; escape them".into() });
            }
            '[' => {
                class = Some(letters.peek() == Some(&'^'));
                out.push('[');
            }
            ']' => {
                class = None;
                out.push(']');
            }
            // Set operations of the regex crate; a single one is a plain character in both.
            '&' | '~' if class.is_some() => out.extend(['\\', letter]),
            '.' if class.is_none() => out.push_str(r"[^\n\r\u{2028}\u{2029}]"),
            _ => out.push(letter),
        }
    }
    Ok(out)
}
