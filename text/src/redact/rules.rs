//! The shapes of secrets: for each rule the literals that must be present, the pattern, and the check.

use std::sync::LazyLock;

use aho_corasick::AhoCorasick;
use regex::Regex;

use super::checks::{generated, letters_and_digits, password, placeholder, quoted_password, standing_alone, token};
use super::{Finding, SecretKind};

/// One way in which secrets look.
struct Rule {
    kind: SecretKind,
    /// The rule is tried only when the text contains one of these (case is ignored).
    literals: &'static [&'static str],
    /// The capture group `secret`, or else the whole match, is what is taken out.
    pattern: &'static str,
    check: fn(&str) -> bool,
}

const fn always(_: &str) -> bool {
    true
}

fn not_placeholder(text: &str) -> bool {
    !placeholder(text)
}

/// Keys whose published prefix is proof enough.
const PREFIXED: &str = concat!(
    r"(?-u:\b)(?:",
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}",
    r"|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,}",
    r"|gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|soat)-[A-Za-z0-9_-]{20,}",
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-[0-9]-[A-Za-z0-9-]{10,}",
    r"|sk-ant-[A-Za-z0-9_-]{20,}",
    r"|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,}|GOCSPX-[A-Za-z0-9_-]{20,64}",
    r"|[rs]k_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9+/=]{24,}",
    r"|hf_[A-Za-z0-9]{30,64}|r8_[A-Za-z0-9]{37,64}|gsk_[A-Za-z0-9]{40,80}|xai-[A-Za-z0-9]{40,}|pplx-[A-Za-z0-9]{40,64}",
    r"|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}|dckr_pat_[A-Za-z0-9_-]{20,64}",
    r"|SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}|do[opr]_v1_[a-f0-9]{64}|shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}",
    r"|dapi[a-f0-9]{32}|hv[bsr]\.[A-Za-z0-9_-]{20,}|AGE-SECRET-KEY-1[0-9A-Z]{58}|glsa_[A-Za-z0-9_]{32,64}",
    r"|lin_api_[A-Za-z0-9]{32,64}|ntn_[A-Za-z0-9]{40,64}|secret_[A-Za-z0-9]{43}|NRAK-[A-Z0-9]{27}|PMAK-[a-f0-9-]{40,80}",
    r"|sbp_[a-f0-9]{40}|ATATT3[A-Za-z0-9_=-]{60,}|sntrys_[A-Za-z0-9+/=_-]{40,}|fo1_[A-Za-z0-9_-]{40,64}",
    r"|[0-9]{8,10}:AA[A-Za-z0-9_-]{33}",
    r")(?-u:\b|$)",
);

const RULES: [Rule; 12] = [
    Rule {
        kind: SecretKind::ApiKey,
        literals: &[
            "AKIA",
            "ASIA",
            "ABIA",
            "ACCA",
            "ghp_",
            "gho_",
            "ghu_",
            "ghs_",
            "ghr_",
            "github_pat_",
            "glpat-",
            "gldt-",
            "glrt-",
            "glcbt-",
            "glptt-",
            "glft-",
            "glimt-",
            "glagent-",
            "glsoat-",
            "xox",
            "xapp-",
            "sk-ant-",
            "AIza",
            "ya29.",
            "GOCSPX-",
            "k_live_",
            "k_test_",
            "whsec_",
            "hf_",
            "r8_",
            "gsk_",
            "xai-",
            "pplx-",
            "npm_",
            "pypi-",
            "dckr_pat_",
            "SG.",
            "_v1_",
            "shpat_",
            "shpca_",
            "shppa_",
            "shpss_",
            "dapi",
            "hvb.",
            "hvs.",
            "hvr.",
            "AGE-SECRET",
            "glsa_",
            "lin_api_",
            "ntn_",
            "secret_",
            "NRAK-",
            "PMAK-",
            "sbp_",
            "ATATT3",
            "sntrys_",
            "fo1_",
            ":AA",
        ],
        pattern: PREFIXED,
        check: always,
    },
    // The prefix is short and occurs in style sheets, so the rest must look generated.
    Rule {
        kind: SecretKind::ApiKey,
        literals: &["sk-", "key-"],
        pattern: r"(?-u:\b)(?:sk-[A-Za-z0-9_-]{20,}|key-[0-9a-f]{32})(?-u:\b)",
        check: generated,
    },
    Rule {
        kind: SecretKind::ApiKey,
        literals: &["hooks.slack.com", "/api/webhooks/"],
        pattern: r"https://(?:hooks\.slack\.com/(?:services|workflows|triggers)|[a-z.]{0,10}discord(?:app)?\.com/api/webhooks)/(?P<secret>[A-Za-z0-9_/-]{20,})",
        check: always,
    },
    Rule {
        kind: SecretKind::ApiKey,
        literals: &["AccountKey=", "SharedAccessKey=", "sig="],
        pattern: r"(?:AccountKey=|SharedAccessKey=|[?&]sig=)(?P<secret>[A-Za-z0-9+/%]{32,}={0,2})",
        check: always,
    },
    Rule {
        kind: SecretKind::Jwt,
        literals: &["eyJ"],
        pattern: r"(?-u:\b)eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{0,}(?:\.[A-Za-z0-9_-]{1,}){0,2}",
        check: always,
    },
    Rule {
        kind: SecretKind::Password,
        literals: &["://"],
        pattern: r#"(?-u:\b)[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s/:@'"<>]{0,128}:(?P<secret>[^\s/'"<>]{1,128})@"#,
        check: not_placeholder,
    },
    Rule {
        kind: SecretKind::Bearer,
        literals: &["authorization"],
        pattern: r#"(?i)authorization["']?[ \t]{0,4}[:=,][ \t]{0,4}["']?(?:basic|bearer|token|apikey)[ \t]{1,4}(?P<secret>[A-Za-z0-9._~+/=:-]{6,})"#,
        check: not_placeholder,
    },
    Rule {
        kind: SecretKind::Bearer,
        literals: &["bearer"],
        pattern: r"(?i)(?-u:\b)bearer[ \t]{1,4}(?P<secret>[A-Za-z0-9._~+/-]{16,}={0,2})",
        check: letters_and_digits,
    },
    // Quoted value: `password = "letmein"`, `PASSWORD: 'letme1n'`.
    Rule {
        kind: SecretKind::Password,
        literals: &["passw", "passphrase", "passcode", "pwd"],
        pattern: r#"(?i)(?:password|passwd|passphrase|passcode|pwd)[A-Za-z0-9_]{0,16}[ \t]{0,4}:?=[ \t]{0,4}(?:"(?P<secret>[^"\r\n]{4,200})"|'(?P<single>[^'\r\n]{4,200})')"#,
        check: quoted_password,
    },
    // Bare value, JSON, YAML, sentence: `PASSWORD=letme1n`, `"password": "letme1n"`, `password is letme1n`.
    Rule {
        kind: SecretKind::Password,
        literals: &["passw", "passphrase", "passcode", "pwd"],
        pattern: r#"(?i)(?:password|passwd|passphrase|passcode|pwd)[A-Za-z0-9_]{0,16}["']?(?:[ \t]{0,4}(?:=>|:=|=|:)[ \t]{0,4}|[ \t]{1,4}(?:is|was)[:]?[ \t]{1,4})(?:"(?P<secret>[^"\r\n]{4,200})"|'(?P<single>[^'\r\n]{4,200})'|(?P<bare>[^\s"',;)\]}]{4,200}))"#,
        check: password,
    },
    Rule {
        kind: SecretKind::Token,
        literals: &["secret", "token", "key", "credential", "auth"],
        pattern: r#"(?i)(?:secret|token|api[_. -]?key|access[_-]?key|private[_-]?key|auth[_-]?key|encryption[_-]?key|signing[_-]?key|master[_-]?key|credentials?|_auth(?-u:\b))[A-Za-z0-9_]{0,16}["']?[ \t]{0,4}(?:=>|:=|=|:)[ \t]{0,4}["'`]?(?P<secret>[A-Za-z0-9+/_=.~-]{8,})"#,
        check: token,
    },
    // Nothing but a word nearby: `use this token for the build: aZ3...`.
    Rule {
        kind: SecretKind::Token,
        literals: &["secret", "token", "key", "credential", "passw"],
        pattern: r#"(?i)(?-u:\b)(?:secret|token|key|credentials?|password)s?(?-u:\b)[^\r\n]{0,40}?(?-u:[ \t"'`=:(])(?P<secret>[A-Za-z0-9+/_-]{20,}={0,2})"#,
        check: standing_alone,
    },
];

struct Rules {
    literals: AhoCorasick,
    /// Which rule each literal wakes.
    rule_of_literal: Vec<usize>,
    patterns: Vec<Regex>,
}

static COMPILED: LazyLock<Rules> = LazyLock::new(|| {
    let literals: Vec<(usize, &str)> = RULES
        .iter()
        .enumerate()
        .flat_map(|(index, rule)| rule.literals.iter().map(move |text| (index, *text)))
        .collect();
    Rules {
        literals: AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .build(literals.iter().map(|(_, text)| text))
            .expect("the literals are few and fixed"),
        rule_of_literal: literals.iter().map(|&(rule, _)| rule).collect(),
        patterns: RULES
            .iter()
            .map(|rule| Regex::new(rule.pattern).expect("the patterns are fixed and compiled by a test"))
            .collect(),
    }
});

pub(super) fn find(text: &str, findings: &mut Vec<Finding>) {
    let mut awake = [false; RULES.len()];
    for found in COMPILED.literals.find_overlapping_iter(text) {
        awake[COMPILED.rule_of_literal[found.pattern().as_usize()]] = true;
        if awake == [true; RULES.len()] {
            break;
        }
    }
    for ((rule, pattern), _) in RULES.iter().zip(&COMPILED.patterns).zip(awake).filter(|(_, awake)| *awake) {
        apply(rule, pattern, text, findings);
    }
}

fn apply(rule: &Rule, pattern: &Regex, text: &str, findings: &mut Vec<Finding>) {
    /// A refused match longer than this is skipped whole, which keeps the time linear (bytes).
    const RETRIED_BYTES_MAX: usize = 1024;
    let mut from = 0;
    while let Some(captures) = pattern.captures_at(text, from) {
        let whole = captures.get(0).expect("group 0 is the match").range();
        let secret =
            ["secret", "single", "bare"].iter().find_map(|name| captures.name(name)).or_else(|| captures.get(0));
        // The word of an earlier replacement, `[redacted:token]`, says nothing about what follows it.
        let own_word = text[..whole.start].ends_with("redacted:");
        match secret.filter(|secret| !own_word && (rule.check)(secret.as_str())) {
            Some(secret) => {
                findings.push(Finding { kind: rule.kind, range: secret.range() });
                from = whole.end;
            }
            // Within a refused match another word may start a better one. Every pattern starts with an ASCII character.
            None if whole.len() <= RETRIED_BYTES_MAX => from = whole.start + 1,
            None => from = whole.end,
        }
    }
}
