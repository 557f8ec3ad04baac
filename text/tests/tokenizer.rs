//! FastTokenizer on small vocabularies of every family: safety, exact bytes, streaming, options.

#![cfg(feature = "tokenizers")]

use mneme_text::{ControlText, ControlTokens, EncodeOptions, Encoding, FastTokenizer, TokenizerError, Vocabulary};
use proptest::prelude::*;

/// A byte-level vocabulary with all 256 bytes, a few merges and control tokens.
fn byte_level(pre_tokenizer: &str) -> Result<FastTokenizer, TokenizerError> {
    let byte = |byte: u8| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
        0..=0x20 => char::from_u32(0x100 + u32::from(byte)).expect("a character"),
        0x7F..=0xA0 => char::from_u32(0x121 + u32::from(byte) - 0x7F).expect("a character"),
        0xAD => '\u{143}',
    };
    let mut tokens: Vec<String> = ["<|im_start|>", "<|im_end|>", "<tool_call>"].map(String::from).to_vec();
    tokens.extend((0..=255_u8).map(|value| byte(value).to_string()));
    tokens.extend(["he", "ll", "hell", "hello", "Ġhello", "Ġhe"].map(String::from));
    let merges = ["h e", "l l", "he ll", "hell o", "Ġ hello", "Ġ he"].map(String::from);
    let mut types = vec![1; tokens.len()];
    (types[0], types[1], types[2]) = (3, 3, 4);
    FastTokenizer::from_vocabulary(&Vocabulary {
        model: "gpt2",
        pre_tokenizer: Some(pre_tokenizer),
        tokens: &tokens,
        merges: &merges,
        token_types: &types,
        bos_id: Some(0),
        eos_id: Some(1),
        add_bos: true,
        add_eos: true,
        ..Vocabulary::default()
    })
}

const UNIGRAM: &str = r#"{"version":"1.0","truncation":null,"padding":null,
    "added_tokens":[{"id":0,"content":"<unk>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
                    {"id":1,"content":"</s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
    "normalizer":null,
    "pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},
    "post_processor":null,
    "decoder":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},
    "model":{"type":"Unigram","unk_id":0,"byte_fallback":false,"vocab":[["<unk>",0.0],["</s>",0.0],["▁",-2.0],["a",-3.0],
        ["b",-3.0],["ab",-3.5],["<",-9.0],["/",-9.0],["s",-9.0],[">",-9.0]]}}"#;

const WORD_PIECE: &str = r#"{"version":"1.0",
    "truncation":{"direction":"Right","max_length":4,"strategy":"LongestFirst","stride":0},
    "padding":{"strategy":{"Fixed":8},"direction":"Right","pad_to_multiple_of":null,"pad_id":0,"pad_type_id":0,"pad_token":"[PAD]"},
    "added_tokens":[
        {"id":0,"content":"[PAD]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
        {"id":1,"content":"[UNK]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
        {"id":2,"content":"[CLS]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
        {"id":3,"content":"[SEP]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
    "normalizer":{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true},
    "pre_tokenizer":{"type":"BertPreTokenizer"},
    "post_processor":{"type":"TemplateProcessing",
        "single":[{"SpecialToken":{"id":"[CLS]","type_id":0}},{"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"[SEP]","type_id":0}}],
        "pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],
        "special_tokens":{"[CLS]":{"id":"[CLS]","ids":[2],"tokens":["[CLS]"]},"[SEP]":{"id":"[SEP]","ids":[3],"tokens":["[SEP]"]}}},
    "decoder":{"type":"WordPiece","prefix":"\u0023\u0023","cleanup":true},
    "model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"\u0023\u0023","max_input_chars_per_word":100,
        "vocab":{"[PAD]":0,"[UNK]":1,"[CLS]":2,"[SEP]":3,"token":4,"\u0023\u0023izer":5,".":6,"[":7,"]":8,"sep":9,"a":10}}}"#;

fn word_piece() -> FastTokenizer {
    FastTokenizer::from_json(WORD_PIECE.as_bytes()).expect("the file is valid")
}

#[test]
fn bytes_merge_by_rank_and_spaces_bind_to_the_word_after_them() {
    let tokenizer = byte_level("smollm").unwrap();
    let text = |text: &str| -> Vec<String> {
        tokenizer.encode(text).unwrap().into_iter().map(|id| tokenizer.token_text(id).unwrap()).collect()
    };
    assert_eq!(text("hello hello hex"), ["hello", "Ġhello", "Ġhe", "x"]);
    assert_eq!(text("12"), ["1", "2"]);
    assert_eq!(text(""), [""; 0]);
}

#[test]
fn text_cannot_smuggle_in_control_tokens_unless_the_caller_asks() {
    let tokenizer = byte_level("smollm").unwrap();
    let text = "<|im_start|>hello<|im_end|><tool_call>";
    let ids = tokenizer.encode(text).unwrap();
    assert!(ids.iter().all(|&id| !tokenizer.is_control(id)), "{ids:?}");
    assert_eq!(tokenizer.decode(&ids, ControlText::Hide).unwrap(), text);

    let recognise = EncodeOptions { control: ControlTokens::Recognize, ..EncodeOptions::default() };
    let ids = tokenizer.encode_with(text, recognise).unwrap().ids;
    assert_eq!(ids, [0, tokenizer.token_id("hello").unwrap(), 1, 2]);
    assert_eq!(tokenizer.decode(&ids, ControlText::Show).unwrap(), text);
    assert_eq!(tokenizer.decode(&ids, ControlText::Hide).unwrap(), "hello");
    assert_eq!(tokenizer.control_ids(), [0, 1, 2]);
}

#[test]
fn a_unigram_model_that_lists_a_control_token_as_a_piece_still_spells_it_out() {
    let tokenizer = FastTokenizer::from_json(UNIGRAM.as_bytes()).unwrap();
    let text = |options| -> Vec<String> {
        let encoding = tokenizer.encode_with("a</s>b", options).unwrap();
        assert_eq!(encoding.ids.len(), encoding.offsets.len());
        encoding.ids.into_iter().map(|id| tokenizer.token_text(id).unwrap()).collect()
    };
    assert_eq!(text(EncodeOptions::default()), ["▁", "a", "<", "/", "s", ">", "b"]);
    let recognised = text(EncodeOptions { control: ControlTokens::Recognize, ..EncodeOptions::default() });
    assert!(recognised.contains(&"</s>".to_owned()), "{recognised:?}");
    assert_eq!(tokenizer.decode(&tokenizer.encode("ab a").unwrap(), ControlText::Hide).unwrap(), "ab a");
}

#[test]
fn word_pieces_carry_their_template_and_ignore_the_files_padding_and_truncation() {
    let tokenizer = word_piece();
    let options = EncodeOptions { template: true, ..EncodeOptions::default() };
    let text = "Tokenizer tokenizer a.";
    let encoding = tokenizer.encode_with(text, options).unwrap();
    assert_eq!(encoding.ids, [2, 4, 5, 4, 5, 10, 6, 3]);
    assert_eq!(encoding.offsets[..4], [(0, 0), (0, 5), (5, 9), (10, 15)]);
    assert_eq!(tokenizer.decode(&encoding.ids, ControlText::Hide).unwrap(), "tokenizer tokenizer a.");
    assert_eq!(tokenizer.decode(&encoding.ids, ControlText::Show).unwrap(), "[CLS] tokenizer tokenizer a. [SEP]");
    assert_eq!(tokenizer.encode("[SEP]").unwrap(), [7, 9, 8]);
    assert_eq!(tokenizer.encode("zebra").unwrap(), [1], "the unknown token may come from plain text");
    assert_eq!(tokenizer.token_bytes(5), Some(b"izer".as_slice()));
    assert_eq!(tokenizer.token_bytes(4), Some(b" token".as_slice()));
}

#[test]
fn tokens_max_cuts_the_text_and_keeps_the_template() {
    let tokenizer = word_piece();
    let options =
        |tokens_max| EncodeOptions { template: true, tokens_max: Some(tokens_max), ..EncodeOptions::default() };
    assert_eq!(tokenizer.encode_with("a a a a a", options(4)).unwrap().ids, [2, 10, 10, 3]);
    assert_eq!(tokenizer.encode_with("a a", options(4)).unwrap().ids, [2, 10, 10, 3]);
    assert_eq!(tokenizer.encode_with("a a", options(1)).unwrap().ids, [2, 3], "the template is never cut");
    let plain = EncodeOptions { tokens_max: Some(0), ..EncodeOptions::default() };
    assert_eq!(tokenizer.encode_with("a a", plain).unwrap(), Encoding::default());
}

#[test]
fn the_template_of_an_embedded_vocabulary_surrounds_the_text() {
    let tokenizer = byte_level("gpt-2").unwrap();
    let options = EncodeOptions { template: true, ..EncodeOptions::default() };
    let hello = tokenizer.token_id("hello").unwrap();
    assert_eq!(tokenizer.encode_with("hello", options).unwrap().ids, [0, hello, 1]);
    assert_eq!(tokenizer.encode("hello").unwrap(), [hello]);
}

#[test]
fn text_longer_than_the_limit_is_refused_whatever_the_path() {
    let tokenizer = byte_level("smollm").unwrap().with_input_bytes_max(10);
    assert!(tokenizer.encode("0123456789").is_ok());
    let long = "0123456789a";
    assert!(matches!(tokenizer.encode(long), Err(TokenizerError::TooLong { bytes: 11, bytes_max: 10 })));
    assert!(tokenizer.encode_batch(&["a", long], EncodeOptions::default()).is_err());
    assert!(tokenizer.encode_batch_ids(&["a", long], EncodeOptions::default()).is_err());
}

#[test]
fn batches_equal_single_calls() {
    let tokenizer = byte_level("qwen2").unwrap();
    let texts: Vec<String> =
        (0..200).map(|index| format!("hello {index} <|im_end|> né{}", "x".repeat(index))).collect();
    let options = EncodeOptions { template: true, ..EncodeOptions::default() };
    let batch = tokenizer.encode_batch(&texts, options).unwrap();
    let ids = tokenizer.encode_batch_ids(&texts, options).unwrap();
    for ((text, encoding), ids) in texts.iter().zip(&batch).zip(&ids) {
        assert_eq!(*encoding, tokenizer.encode_with(text, options).unwrap());
        assert_eq!(encoding.ids, *ids);
    }
}

#[test]
fn a_stream_never_shows_half_a_character() {
    let tokenizer = byte_level("smollm").unwrap();
    let id = |byte: u8| 3 + u32::from(byte);
    let mut stream = tokenizer.decode_stream(ControlText::Hide);
    let euro = "€".as_bytes();
    assert_eq!(stream.push(id(euro[0])).unwrap(), "");
    assert_eq!(stream.push(0).unwrap(), "", "a hidden control token does not break a character");
    assert_eq!(stream.push(id(euro[1])).unwrap(), "");
    assert_eq!(stream.push(id(euro[2])).unwrap(), "€");
    assert_eq!(stream.push(id(euro[0])).unwrap(), "");
    assert_eq!(stream.push(id(b'a')).unwrap(), "\u{FFFD}a");
    assert_eq!(stream.push(id(euro[0])).unwrap(), "");
    assert_eq!(stream.finish(), "\u{FFFD}");
    assert!(matches!(
        tokenizer.decode(&[9_999], ControlText::Hide),
        Err(TokenizerError::UnknownToken { id: 9_999, .. })
    ));
}

#[test]
fn vocabularies_that_make_no_sense_are_refused() {
    let tokens = ["a", "b"].map(String::from);
    let base = Vocabulary { model: "gpt2", pre_tokenizer: Some("gpt-2"), tokens: &tokens, ..Vocabulary::default() };
    let refused = |vocabulary: Vocabulary<'_>| FastTokenizer::from_vocabulary(&vocabulary).unwrap_err().to_string();
    assert!(FastTokenizer::from_vocabulary(&base).is_ok());
    assert!(refused(Vocabulary { model: "rwkv", ..base }).contains("rwkv"));
    assert!(refused(Vocabulary { pre_tokenizer: Some("new"), ..base }).contains("smollm"));
    assert!(refused(Vocabulary { pre_tokenizer: None, ..base }).contains("pre-tokenizer"));
    assert!(refused(Vocabulary { tokens: &[], ..base }).contains("no tokens"));
    assert!(refused(Vocabulary { merges: &["ab".to_owned()], ..base }).contains("not a pair"));
    assert!(refused(Vocabulary { merges: &["a c".to_owned()], ..base }).contains("byte-level vocabulary"));
    assert!(refused(Vocabulary { token_types: &[1], ..base }).contains("1 token types"));
    assert!(refused(Vocabulary { model: "llama", ..base }).contains("scores"));
    assert!(refused(Vocabulary { add_bos: true, bos_id: Some(2), ..base }).contains("id 2"));
    assert!(FastTokenizer::from_json(b"{}").is_err());
    assert!(FastTokenizer::from_json(b"").is_err());
}

#[test]
fn a_long_run_of_anything_is_encoded_in_full() {
    let tokenizer = byte_level("qwen2").unwrap();
    for unit in [" ", "\n", "a", "!", "1", "é", "'"] {
        let text = unit.repeat(100_000);
        let ids = tokenizer.encode(&text).unwrap();
        assert_eq!(tokenizer.decode(&ids, ControlText::Show).unwrap(), text, "{unit:?}");
    }
}

proptest! {
    #[test]
    fn byte_level_round_trips_every_text_and_streams_alike(text in "(\\PC|[ \\n\\té€😀<|>_a-z]){0,60}") {
        for pre_tokenizer in ["gpt-2", "smollm", "llama-bpe"] {
            let tokenizer = byte_level(pre_tokenizer).unwrap();
            let encoding = tokenizer.encode_with(&text, EncodeOptions::default()).unwrap();
            prop_assert_eq!(&tokenizer.decode(&encoding.ids, ControlText::Hide).unwrap(), &text);
            let bytes: Vec<u8> =
                encoding.ids.iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap().to_vec()).collect();
            prop_assert_eq!(bytes, text.as_bytes());
            let mut stream = tokenizer.decode_stream(ControlText::Hide);
            let mut streamed = String::new();
            for &id in &encoding.ids {
                streamed.push_str(&stream.push(id).unwrap());
            }
            streamed.push_str(&stream.finish());
            prop_assert_eq!(&streamed, &text);
            for (start, end) in encoding.offsets {
                prop_assert!(text.get(start..end).is_some());
            }
        }
    }

    #[test]
    fn any_ids_decode_and_no_text_yields_control_tokens(ids in prop::collection::vec(0_u32..265, 0..40)) {
        let tokenizer = byte_level("smollm").unwrap();
        let text = tokenizer.decode(&ids, ControlText::Show).unwrap();
        let again = tokenizer.encode(&text).unwrap();
        prop_assert!(again.iter().all(|&id| !tokenizer.is_control(id)));
    }

    #[test]
    fn damaged_tokenizer_files_never_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        unigram in any::<bool>(),
    ) {
        let mut json = if unigram { UNIGRAM } else { WORD_PIECE }.as_bytes().to_vec();
        for (index, value) in flips {
            let index = index.index(json.len());
            json[index] = value;
        }
        if let Ok(tokenizer) = FastTokenizer::from_json(&json) {
            let _ = tokenizer.encode_with("a token [SEP] </s>", EncodeOptions { template: true, ..EncodeOptions::default() });
        }
    }
}
