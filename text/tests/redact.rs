//! Redaction takes secrets out and leaves everything else as it was.
//!
//! The secrets are put together at run time, so that scanners of source code do not mistake this file for a leak.

use std::borrow::Cow;

use mneme_text::redact::{SecretKind, find, redact};
use proptest::prelude::*;

/// A generated-looking string of letters and digits.
fn random(length: usize) -> String {
    let alphabet: Vec<char> = ('a'..='z').chain('A'..='Z').chain('0'..='9').collect();
    (0..length).map(|index| alphabet[(index * 37 + index * index * 11 + 5) % alphabet.len()]).collect()
}

fn hex(length: usize) -> String {
    (0..length)
        .map(|index| char::from_digit(((index * 7 + index * index * 3 + 9) % 16) as u32, 16).unwrap_or('0'))
        .collect()
}

/// `{}` in the context stands for the secret; all of it and nothing else must be taken out.
fn check(context: &str, secret: &str, kind: SecretKind) {
    let text = context.replace("{}", secret);
    let redacted = redact(&text);
    assert_eq!(redacted.text, context.replace("{}", &format!("[redacted:{kind}]")), "in {text:?}");
    assert_eq!(redacted.findings.len(), 1, "in {text:?}");
    assert_eq!(&text[redacted.findings[0].range.clone()], secret);
}

fn untouched(text: &str) {
    assert_eq!(redact(text).text, text);
    assert!(matches!(redact(text).text, Cow::Borrowed(_)));
}

#[test]
fn keys_of_known_providers_are_taken_out_wherever_they_stand() {
    let upper = random(60).to_uppercase().replace(['0', '1', '8', '9'], "A");
    let keys = [
        format!("AKIA{}", &upper[..16]),
        format!("ghp_{}", random(36)),
        format!("github_pat_{}", random(82)),
        format!("glpat-{}", random(20)),
        format!("xoxb-{}-{}", "123456789012", random(24)),
        format!("sk-ant-api03-{}", random(90)),
        format!("sk-proj-{}", random(48)),
        format!("sk-{}", random(48)),
        format!("AIza{}", random(35)),
        format!("sk_live_{}", random(24)),
        format!("hf_{}", random(34)),
        format!("npm_{}", random(36)),
        format!("pypi-{}", random(120)),
        format!("SG.{}.{}", random(22), random(43)),
        format!("dop_v1_{}", hex(64)),
        format!("hvs.{}", random(24)),
        format!("123456789:AA{}", random(33)),
        format!("key-{}", hex(32)),
    ];
    for key in keys {
        for context in ["{}", "use {} for the build", "see (\"{}\")", "über {}\nnext line", "curl -H x: {}; exit"] {
            check(context, &key, SecretKind::ApiKey);
        }
    }
}

#[test]
fn web_tokens_bearers_and_basic_credentials_are_taken_out() {
    let jwt = format!("eyJ{}.eyJ{}.{}", random(20), random(40), random(43));
    check("cookie {}", &jwt, SecretKind::Jwt);
    check("Authorization: Bearer {}", &jwt, SecretKind::Jwt);
    check("curl -H 'Authorization: Bearer {}'", &random(32), SecretKind::Bearer);
    check("authorization: Basic {}", "YWRtaW46cGFzcw==", SecretKind::Bearer);
    check("send bearer {} along", &random(24), SecretKind::Bearer);
}

#[test]
fn private_keys_are_taken_out_whole_even_when_cut_short() {
    let begin = |label: &str| format!("-----BEGIN {label}-----");
    let end = |label: &str| format!("-----END {label}-----");
    let body = format!("{}\n{}\n{}=", random(64), random(64), random(20));
    for label in ["RSA PRIVATE KEY", "PRIVATE KEY", "OPENSSH PRIVATE KEY", "EC PRIVATE KEY", "PGP PRIVATE KEY BLOCK"] {
        check("before {} after", &format!("{}\n{body}\n{}", begin(label), end(label)), SecretKind::PrivateKey);
    }
    check("before {}\n\nand then prose", &format!("{}\n{body}", begin("RSA PRIVATE KEY")), SecretKind::PrivateKey);
    let escaped = format!("{}\\n{}\\n{}\\n", begin("PRIVATE KEY"), random(64), end("PRIVATE KEY"));
    let text = format!("{{\"key\": \"{escaped}\"}}");
    assert!(!redact(&text).text.contains(&random(64)));
    untouched(&format!("{}\n{body}\n{}", begin("CERTIFICATE"), end("CERTIFICATE")));
    untouched(&format!("{}\n{body}\n{}", begin("PUBLIC KEY"), end("PUBLIC KEY")));
}

#[test]
fn passwords_are_taken_out_of_urls_assignments_and_sentences() {
    check("postgres://app:{}@db.local:5432/prod", "hunter2", SecretKind::Password);
    check("https://user:{}@host/path?x=1", "p@ss:word", SecretKind::Password);
    check("redis://:{}@cache", "s3cr3t", SecretKind::Password);
    check("DB_PASSWORD={}", "hunter2!", SecretKind::Password);
    check("password = \"{}\"", "letmein", SecretKind::Password);
    check("\"password\": \"{}\",", "correct-horse-7", SecretKind::Password);
    check("  password: {}", "Tr0ub4dor&3", SecretKind::Password);
    check("my password is {}, do not tell", "hunter2", SecretKind::Password);
    check("PGPASSWORD='{}' psql", "open sesame 1", SecretKind::Password);
}

#[test]
fn tokens_are_known_by_the_word_beside_them() {
    check("API_KEY={}", &random(24), SecretKind::Token);
    check("api key: {}", &random(20), SecretKind::Token);
    check("\"client_secret\": \"{}\"", &random(30), SecretKind::Token);
    check("aws_secret_access_key = {}", &random(40), SecretKind::Token);
    check("SECRET_KEY='{}'", &hex(64), SecretKind::Token);
    check("a secret key, a token: {}", &random(24), SecretKind::Token);
    check("use this token for the build {} please", &random(32), SecretKind::Token);
}

#[test]
fn card_numbers_must_pass_the_luhn_check() {
    for number in
        ["4111 1111 1111 1111", "5555-5555-5555-4444", "378282246310005", "4242424242424242", "30569309025904"]
    {
        check("pay with {} today", number, SecretKind::CreditCard);
        check("card: {}.", number, SecretKind::CreditCard);
    }
    untouched("pay with 4111 1111 1111 1112 today");
    untouched("order 1234567890123456 of 2024");
    untouched("id 41111111111111111111 is longer");
    untouched("0.4111111111111111 is a fraction");
    untouched("sha 4111111111111111abcdef");
    untouched("at 1700000000000 ms, phone +49 151 2345 6789");
}

#[test]
fn prose_code_hashes_and_placeholders_stay() {
    for text in [
        "The token budget is 4096 and the key idea is attention; the password is required.",
        "A bearer of responsibilities, the bearer certificates-of-deposit-holder.",
        "commit 3f786850e387550fdab836ed7e6dc881de23001b fixes the key handling",
        "sha256 key e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "token 550e8400-e29b-41d4-a716-446655440000 is a UUID",
        "let token = tokenizer.next_token(&mut cursor)?;",
        "pub password: Option<String>,",
        "password: string;",
        "if password == expected_password { return Ok(()) }",
        "const key = Object.keys(map2)[0];",
        "token: CancellationToken, secret: SecretString",
        "let api_key = std::env::var(\"API_KEY\")?;",
        "API_KEY=${API_KEY}",
        "password = \"<your password here>\"",
        "PASSWORD=$(pass show mail2)",
        "token = \"your-api-token-2024\"",
        "password=********",
        ".sk-fading-circle-container-x2 { color: red }",
        "https://example.com:8080/path@2",
        "http://localhost:3000/a@b",
        "ssh://git@github.com:22/a/b",
        "mailto:someone@example.com",
        "primary_key = \"user_id\"",
        "the authorization server issues tokens to the client",
        "key=value2, monkey: banana12",
        "author: J.R.R. Tolkien1937",
        "git@example_author:org1/project1.git",
        "use std::collections::HashMap; // token4",
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk",
        "integrity sha512-z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg==",
    ] {
        untouched(text);
    }
}

#[test]
fn every_secret_in_a_text_is_found_in_order() {
    let (first, second) = (format!("ghp_{}", random(36)), format!("glpat-{}", random(20)));
    let text = format!("{first} and {second} and mysql://u:pw@h and {first}");
    let findings = find(&text);
    let found: Vec<&str> = findings.iter().map(|finding| &text[finding.range.clone()]).collect();
    assert_eq!(found, [first.as_str(), second.as_str(), "pw", first.as_str()]);
}

#[test]
fn a_hostile_text_takes_linear_time() {
    // Each of these is quadratic for a rule that searches to the end for every opening; at this size that is hours.
    for unit in
        ["-----BEGIN PRIVATE KEY-----", "eyJ", "a://b:", "password=\"", "key ", "4 4-", "sk-", "token: '", "bearer "]
    {
        let text = unit.repeat(400_000 / unit.len());
        let _ = redact(&text);
    }
}

#[test]
fn a_secret_that_comes_near_its_word_when_another_is_taken_out_goes_too() {
    let text = "password=aa=0=AAAa+/0AAAA-aA=+/a_==4111 1111 1111 11112b_c+A3+password= and so on";
    let once = redact(text);
    assert_eq!(once.findings.len(), 2, "{once:?}");
    assert!(once.text.ends_with("[redacted:token] and so on"), "{once:?}");
    assert_eq!(redact(&once.text).text, once.text);
}

proptest! {
    #[test]
    fn redacting_twice_changes_nothing_more(
        text in "(password=|token: |://|a:b@|sk-|eyJ|[.]|[a-zA-Z0-9+/=_-]{1,30}|[ \n\"'é]|4111 1111 1111 1111){0,20}"
    ) {
        let once = redact(&text).text.into_owned();
        let twice = redact(&once).text.into_owned();
        prop_assert_eq!(twice, once);
    }

    #[test]
    fn what_is_not_a_finding_is_kept(text in "(password=|bearer |AKIA|\\PC{0,10}|[A-Z2-7]{16}|[ \n:@/]){0,20}") {
        let redacted = redact(&text);
        let mut rebuilt = String::new();
        let mut at = 0;
        for finding in &redacted.findings {
            prop_assert!(finding.range.start >= at && finding.range.start < finding.range.end);
            rebuilt.push_str(&text[at..finding.range.start]);
            rebuilt.extend(["[redacted:", finding.kind.as_str(), "]"]);
            at = finding.range.end;
        }
        rebuilt.push_str(&text[at..]);
        prop_assert_eq!(rebuilt, redacted.text);
    }
}
