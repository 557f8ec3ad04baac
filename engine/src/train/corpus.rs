//! Text to adapt a base model on: JSON lines `{"source", "text"}`, plain or compressed by zstd.
//!
//! All text is held in memory and windows are drawn by number, so that a resumed run sees what it would have seen: there is no
//! place in a stream to remember.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use mneme_base::ContentHash;
use mneme_diffusion::random::{below, uniform};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use crate::error::{ModelError, Result};
use crate::generator::Generator;

/// A corpus may hold this much text (bytes): all of it is in memory.
const TEXT_BYTES_MAX: usize = 2 << 30;
/// What a zstd file starts with (RFC 8878, section 3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Bytes of text that are tokenized for each token of a window: enough for nearly any text of this tokenizer.
const BYTES_PER_TOKEN: usize = 8;
/// A window has at least this many tokens; shorter documents are passed over.
const WINDOW_TOKENS_MIN: usize = 24;
/// Draws of a window before the corpus is said to have none.
const TRIES: usize = 1_000;

#[derive(Deserialize)]
struct Line {
    source: String,
    text: String,
}

/// Documents with the source of each.
#[derive(Debug)]
pub struct Corpus {
    texts: Vec<String>,
    /// Bytes of text up to and with each document: long documents are drawn more often.
    ends: Vec<usize>,
    /// Bytes of each source.
    pub sources: BTreeMap<String, usize>,
    /// Of the file, and of what was left out.
    pub hash: ContentHash,
}

impl Corpus {
    /// Reads a corpus without the sources in `left_out`.
    pub fn open(path: &Path, left_out: &[String]) -> Result<Self> {
        let bytes = fs_err::read(path)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes);
        left_out.iter().for_each(|source| {
            hasher.update(source.as_bytes());
        });
        let reader: Box<dyn Read + '_> = if bytes.starts_with(&ZSTD_MAGIC) {
            Box::new(zstd::Decoder::new(bytes.as_slice())?)
        } else {
            Box::new(bytes.as_slice())
        };
        let what = || path.display().to_string();
        let (mut texts, mut ends, mut sources, mut sum) = (Vec::new(), Vec::new(), BTreeMap::new(), 0);
        // A file may decompress into more than it says: reading stops where the bound is passed.
        for (number, line) in BufReader::new(reader.take(TEXT_BYTES_MAX as u64 + 1)).lines().enumerate() {
            let line = line?;
            if line.trim().is_empty() {
                continue;
            }
            let line: Line = serde_json::from_str(&line)
                .map_err(|error| ModelError::load(what(), format!("line {}: {error}", number + 1)))?;
            if left_out.contains(&line.source) || line.text.is_empty() {
                continue;
            }
            sum += line.text.len();
            if sum >= TEXT_BYTES_MAX {
                return Err(ModelError::load(what(), format!("it has more than {TEXT_BYTES_MAX} bytes of text")));
            }
            *sources.entry(line.source).or_insert(0) += line.text.len();
            texts.push(line.text);
            ends.push(sum);
        }
        if texts.is_empty() {
            return Err(ModelError::load(what(), "it has no text"));
        }
        Ok(Self { texts, ends, sources, hash: ContentHash::from_bytes(*hasher.finalize().as_bytes()) })
    }

    /// Draws a window of up to `tokens` tokens, the document token first, from somewhere in the text.
    pub fn window(&self, generator: &Generator, tokens: usize, rng: &mut ChaCha8Rng) -> Result<Vec<i64>> {
        let span = tokens * BYTES_PER_TOKEN;
        for _ in 0..TRIES {
            let total = self.ends.last().copied().unwrap_or(0);
            let place = below(rng, total);
            let document = self.ends.partition_point(|end| *end <= place);
            let text = &self.texts[document];
            let start = if text.len() <= span { 0 } else { below(rng, text.len() - span / 2) };
            let piece = excerpt(text, start, span);
            let mut window = vec![i64::from(generator.special.document)];
            window.extend(generator.encode(piece)?.into_iter().take(tokens.saturating_sub(1)).map(i64::from));
            if window.len() >= WINDOW_TOKENS_MIN.min(tokens) {
                return Ok(window);
            }
        }
        Err(ModelError::load("corpus", format!("no text of {WINDOW_TOKENS_MIN} tokens was found in {TRIES} draws")))
    }

    /// A number in `[0, 1)` for tests of the draw.
    #[cfg(test)]
    fn share(&self, source: &str) -> f64 {
        self.sources.get(source).copied().unwrap_or(0) as f64 / self.ends.last().copied().unwrap_or(1) as f64
    }
}

/// Up to `bytes` bytes of a text from the start of a word at or after `start`.
fn excerpt(text: &str, start: usize, bytes: usize) -> &str {
    let mut start = text.ceil_char_boundary(start);
    if start > 0 {
        let word = text[start..].find(char::is_whitespace).unwrap_or(0);
        start += word;
    }
    let rest = &text[start..];
    let rest = if start > 0 { rest.trim_start_matches(char::is_whitespace) } else { rest };
    &rest[..rest.floor_char_boundary(bytes)]
}

/// Draws one of several values by weight; `weights` sum to anything positive.
pub(crate) fn weighted(weights: &[f64], rng: &mut ChaCha8Rng) -> usize {
    let mut place = uniform(rng) * weights.iter().sum::<f64>();
    for (index, weight) in weights.iter().enumerate() {
        place -= weight;
        if place < 0.0 {
            return index;
        }
    }
    weights.len().saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "{\"source\":\"a\",\"text\":\"one two\"}\n\n{\"source\":\"b\",\"text\":\"three\"}\n";

    fn written(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn a_compressed_corpus_reads_as_a_plain_one_and_leaves_sources_out() {
        let plain = Corpus::open(written(LINES.as_bytes()).path(), &[]).unwrap();
        let packed = written(&zstd::encode_all(LINES.as_bytes(), 1).unwrap());
        assert_eq!(Corpus::open(packed.path(), &[]).unwrap().texts, plain.texts);
        assert!((plain.share("a") - 7.0 / 12.0).abs() < 1e-9);
        let less = Corpus::open(packed.path(), &["a".to_owned()]).unwrap();
        assert_eq!(less.texts, ["three"]);
        assert!(Corpus::open(packed.path(), &["a".to_owned(), "b".to_owned()]).is_err());
    }

    #[test]
    fn a_damaged_line_is_named() {
        let error =
            Corpus::open(written(b"{\"source\":\"a\",\"text\":\"x\"}\n{\"text\":1}\n").path(), &[]).unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }

    #[test]
    fn an_excerpt_starts_at_a_word_and_ends_inside_the_text() {
        assert_eq!(excerpt("über alles hinaus", 1, 5), "alles");
        assert_eq!(excerpt("über", 0, 1), "");
        assert_eq!(excerpt("one two", 0, 100), "one two");
        assert_eq!(excerpt("one", 2, 9), "e");
    }

    #[test]
    fn a_weighted_draw_follows_its_weights() {
        let mut rng = mneme_diffusion::random::seeded(3);
        let mut counts = [0; 3];
        (0..3_000).for_each(|_| counts[weighted(&[1.0, 0.0, 2.0], &mut rng)] += 1);
        assert!(counts[1] == 0 && counts[0] > 850 && counts[0] < 1_150, "{counts:?}");
    }
}
