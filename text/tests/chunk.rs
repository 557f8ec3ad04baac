//! Chunking loses nothing, keeps its bounds and cuts where a reader would.

use mneme_text::chunk::{Chunk, ChunkOptions, TextFormat, TokenCounter, approximate_tokens, chunk};
use proptest::prelude::*;

fn options(tokens_max: usize, overlap_tokens: usize, format: TextFormat) -> ChunkOptions<'static> {
    ChunkOptions { tokens_max, tokens_min: tokens_max / 4, overlap_tokens, format, counter: TokenCounter::Approximate }
}

fn texts<'a>(chunks: &[Chunk<'a>]) -> Vec<&'a str> {
    chunks.iter().map(|chunk| chunk.text).collect()
}

/// One token for each started word; makes expectations easy to count.
fn words(text: &str) -> usize {
    text.split_whitespace().count()
}

fn by_words(tokens_max: usize, overlap_tokens: usize) -> ChunkOptions<'static> {
    ChunkOptions { counter: TokenCounter::Exact(&words), ..options(tokens_max, overlap_tokens, TextFormat::Plain) }
}

#[test]
fn a_short_document_is_one_chunk_without_the_white_space_around_it() {
    let chunks = chunk("\n\n  one\ntwo \n\n", &ChunkOptions::default());
    assert_eq!(texts(&chunks), ["one\ntwo"]);
    assert_eq!((chunks[0].line_first, chunks[0].line_last), (3, 4));
    assert_eq!(chunks[0].byte_range, 4..11);
    assert!(chunk("", &ChunkOptions::default()).is_empty());
    assert!(chunk(" \n\t\n", &ChunkOptions::default()).is_empty());
}

#[test]
fn paragraphs_are_better_cuts_than_sentences_and_sentences_than_words() {
    let text = "One two three. Four five six.\n\nSeven eight. Nine ten.\n\nEleven twelve.";
    assert_eq!(
        texts(&chunk(text, &by_words(8, 0))),
        ["One two three. Four five six.", "Seven eight. Nine ten.\n\nEleven twelve."]
    );
    assert_eq!(
        texts(&chunk(text, &by_words(5, 0))),
        ["One two three.", "Four five six.", "Seven eight. Nine ten.", "Eleven twelve."]
    );
    assert_eq!(texts(&chunk("a b c d e f g", &by_words(3, 0))), ["a b c", "d e f", "g"]);
}

#[test]
fn chunks_overlap_by_whole_sentences() {
    let text = "One two. Three four. Five six. Seven eight.";
    assert_eq!(texts(&chunk(text, &by_words(6, 2))), ["One two. Three four. Five six.", "Five six. Seven eight."]);
    assert_eq!(texts(&chunk(text, &by_words(6, 1))), ["One two. Three four. Five six.", "Seven eight."]);
}

#[test]
fn markdown_chunks_know_their_headings_and_lines_and_do_not_cross_sections() {
    let text = "intro words here\n\n# Travel\n\nAll the trips.\n\n## Rome ##\n\nIn May we saw Rome.\n\n## Oslo\n\nIn June it rained.\n\n# Food\n\nPasta daily.\n";
    assert!(chunk(text, &by_words(20, 4)).iter().all(|chunk| chunk.heading.is_empty()), "plain text has no headings");
    let markdown = ChunkOptions { tokens_min: 2, format: TextFormat::Markdown, ..by_words(20, 4) };
    let chunks = chunk(text, &markdown);
    let paths: Vec<String> = chunks.iter().map(Chunk::heading_path).collect();
    assert_eq!(paths, ["", "Travel", "Travel > Rome", "Travel > Oslo", "Food"]);
    assert_eq!(chunks[2].text, "## Rome ##\n\nIn May we saw Rome.");
    let lines: Vec<_> = chunks.iter().map(|chunk| (chunk.line_first, chunk.line_last)).collect();
    assert_eq!(lines, [(1, 1), (3, 5), (7, 9), (11, 13), (15, 17)]);
}

#[test]
fn short_sections_share_a_chunk_under_the_heading_of_the_longest() {
    let text = "# A\n\none\n\n## B\n\ntwo three four five six\n";
    let chunks = chunk(text, &ChunkOptions { tokens_min: 10, format: TextFormat::Markdown, ..by_words(40, 0) });
    assert_eq!(chunks.len(), 1);
    assert_eq!(chunks[0].heading, ["A", "B"]);
}

#[test]
fn a_hash_inside_a_code_fence_is_not_a_heading_and_fences_stay_whole() {
    let text = "# Real\n\ntext before\n\n```sh\n# not a heading\n\nrun this\n```\n\n~~~~\n```\n# nor this\n~~~~\n\nafter\n\n#hashtag\n";
    let markdown = ChunkOptions { tokens_min: 1, format: TextFormat::Markdown, ..by_words(12, 0) };
    let chunks = chunk(text, &markdown);
    assert!(chunks.iter().all(|chunk| chunk.heading == ["Real"]), "{chunks:#?}");
    assert!(chunks.iter().any(|chunk| chunk.text.contains("```sh\n# not a heading\n\nrun this\n```")), "{chunks:#?}");
}

#[test]
fn code_is_cut_at_blank_lines_before_other_lines() {
    let text = "fn a() {\n    one();\n}\n\nfn b() {\n    two();\n}\n";
    let chunks = chunk(text, &ChunkOptions { format: TextFormat::Code, ..by_words(5, 0) });
    assert_eq!(texts(&chunks), ["fn a() {\n    one();\n}", "fn b() {\n    two();\n}"]);
}

#[test]
fn a_word_longer_than_a_chunk_is_cut_between_characters() {
    let text = "é".repeat(100);
    let length = |text: &str| text.chars().count();
    let chunks =
        chunk(&text, &ChunkOptions { counter: TokenCounter::Exact(&length), ..options(30, 0, TextFormat::Plain) });
    assert!(chunks.len() >= 4);
    assert_eq!(texts(&chunks).concat(), text);
    assert!(chunks.iter().all(|chunk| chunk.text.chars().count() <= 30));
}

#[test]
fn a_counter_that_gives_up_does_not_stop_the_chunker() {
    let gives_up = |_: &str| usize::MAX;
    let chunks =
        chunk("ab c", &ChunkOptions { counter: TokenCounter::Exact(&gives_up), ..options(5, 2, TextFormat::Plain) });
    assert_eq!(texts(&chunks), ["a", "b", "c"]);
}

#[test]
fn a_large_document_of_any_shape_takes_linear_time() {
    for unit in ["a", "a ", "a. ", "\n", "# \n", "```\n", "e\u{301}", "\u{301}", "```\n# x\n"] {
        let text = unit.repeat(300_000 / unit.len());
        let _ = chunk(&text, &options(256, 32, TextFormat::Markdown));
    }
}

#[test]
fn approximate_counts_are_near_those_of_a_subword_vocabulary() {
    assert_eq!(approximate_tokens(""), 0);
    assert_eq!(approximate_tokens("The cat sat on the mat."), 7);
    assert_eq!(approximate_tokens("internationalisation"), 4);
    assert_eq!(approximate_tokens("2026"), 2);
    assert_eq!(approximate_tokens("日本語"), 3);
    assert_eq!(approximate_tokens("😀"), 2);
}

fn documents() -> impl Strategy<Value = String> {
    "(# [a-z]{0,5}\n|## [a-z]{1,5}\n|```\n|\n\n|[A-Z][a-z]{1,8}[.?!] |[a-z]{1,12} |[a-z0-9]{30}|\t|é|日本|\\PC{0,5}|    x = 1\n){0,60}"
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn nothing_but_white_space_is_lost_and_bounds_hold(
        text in documents(),
        tokens_max in 1_usize..40,
        overlap in 0_usize..50,
        format in prop::sample::select(vec![TextFormat::Plain, TextFormat::Markdown, TextFormat::Code]),
    ) {
        let chunks = chunk(&text, &options(tokens_max, overlap, format));
        let mut covered = 0;
        let mut previous_start = None;
        for piece in &chunks {
            prop_assert_eq!(piece.text, &text[piece.byte_range.clone()]);
            prop_assert_eq!(piece.text.trim(), piece.text);
            prop_assert!(!piece.text.is_empty());
            prop_assert!(previous_start < Some(piece.byte_range.start));
            prop_assert!(piece.byte_range.end > covered, "a chunk adds nothing new");
            if piece.byte_range.start > covered {
                prop_assert!(text[covered..piece.byte_range.start].trim().is_empty());
            }
            prop_assert!(piece.tokens <= tokens_max || piece.text.chars().count() == 1, "{:?}", piece);
            let line = |byte: usize| text[..byte].matches('\n').count() + 1;
            prop_assert_eq!(piece.line_first, line(piece.byte_range.start));
            prop_assert_eq!(piece.line_last, line(piece.byte_range.end));
            previous_start = Some(piece.byte_range.start);
            covered = piece.byte_range.end;
        }
        prop_assert!(text[covered..].trim().is_empty());
    }
}
