//! The exact bytes of every token, by family: what constrained decoding, streaming and uncertainty spans are built on.

use tokenizers::decoders::DecoderWrapper;

/// How the texts in a vocabulary stand for bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Family {
    /// GPT-2's alphabet: each character stands for one byte.
    ByteLevel,
    /// SentencePiece: `▁` is a space, `<0x0A>` is a byte; the first space of a text may be artificial.
    SentencePiece { strip_first_space: bool },
    /// WordPiece: pieces that continue a word carry a prefix, others are preceded by a space.
    WordPiece { prefix: String, cleanup: bool },
    /// Anything else: the text itself.
    Plain,
}

impl Family {
    pub(super) fn of(decoder: Option<&DecoderWrapper>) -> Self {
        match decoder {
            Some(DecoderWrapper::ByteLevel(_)) => Self::ByteLevel,
            Some(DecoderWrapper::WordPiece(decoder)) => {
                Self::WordPiece { prefix: decoder.prefix.clone(), cleanup: decoder.cleanup }
            }
            Some(DecoderWrapper::Metaspace(decoder)) => {
                let never = tokenizers::pre_tokenizers::metaspace::PrependScheme::Never;
                Self::SentencePiece { strip_first_space: decoder.get_prepend_scheme() != never }
            }
            Some(DecoderWrapper::Sequence(sequence)) => {
                let members = sequence.get_decoders();
                if let Some(family) =
                    members.iter().map(|member| Self::of(Some(member))).find(|family| *family == Self::ByteLevel)
                {
                    return family;
                }
                let sentence_piece = members.iter().any(|member| {
                    matches!(
                        member,
                        DecoderWrapper::ByteFallback(_) | DecoderWrapper::Metaspace(_) | DecoderWrapper::Replace(_)
                    )
                });
                let strip_first_space = members.iter().any(|member| {
                    matches!(member, DecoderWrapper::Strip(strip) if strip.content == ' ' && strip.start > 0)
                        || matches!(Self::of(Some(member)), Self::SentencePiece { strip_first_space: true })
                });
                if sentence_piece { Self::SentencePiece { strip_first_space } } else { Self::Plain }
            }
            _ => Self::Plain,
        }
    }

    /// Whether a space at the very start of a text was put there by the tokenizer.
    pub(super) fn first_space_is_artificial(&self) -> bool {
        matches!(self, Self::SentencePiece { strip_first_space: true } | Self::WordPiece { .. })
    }

    /// The bytes that an ordinary token stands for inside a text.
    fn bytes_of(&self, text: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => {
                text.chars().map(byte_of_char).collect::<Option<Vec<u8>>>().unwrap_or_else(|| text.as_bytes().to_vec())
            }
            Self::SentencePiece { .. } => match byte_token(text) {
                Some(byte) => vec![byte],
                None => text.replace('▁', " ").into_bytes(),
            },
            Self::WordPiece { prefix, cleanup } => {
                let piece = match text.strip_prefix(prefix.as_str()) {
                    Some(rest) => rest.to_owned(),
                    None => format!(" {text}"),
                };
                if *cleanup {
                    tokenizers::decoders::wordpiece::cleanup(&piece).into_bytes()
                } else {
                    piece.into_bytes()
                }
            }
            Self::Plain => text.as_bytes().to_vec(),
        }
    }
}

/// The bytes of all tokens in one buffer.
#[derive(Debug, Clone)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Where each token's bytes end; `u32::MAX` entries never occur because vocabularies are far below 4 GiB.
    ends: Vec<u32>,
    present: Vec<bool>,
}

impl Pieces {
    /// Lays out `size` tokens. `text` gives a token's text and whether it is an added token, whose text is literal.
    pub(super) fn new(family: &Family, size: usize, text: impl Fn(u32) -> Option<(String, bool)>) -> Self {
        let mut pieces = Self { bytes: Vec::new(), ends: Vec::with_capacity(size), present: Vec::with_capacity(size) };
        for id in 0..size as u32 {
            let token = text(id);
            pieces.present.push(token.is_some());
            match token {
                // WordPiece puts spaces around its control tokens too.
                Some((text, true)) if !matches!(family, Family::WordPiece { .. }) => {
                    pieces.bytes.extend_from_slice(text.as_bytes());
                }
                Some((text, _)) => pieces.bytes.extend_from_slice(&family.bytes_of(&text)),
                None => {}
            }
            pieces.ends.push(pieces.bytes.len() as u32);
        }
        pieces
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn get(&self, id: u32) -> Option<&[u8]> {
        let index = id as usize;
        if !*self.present.get(index)? {
            return None;
        }
        let start = if index == 0 { 0 } else { *self.ends.get(index - 1)? };
        self.bytes.get(start as usize..*self.ends.get(index)? as usize)
    }
}

/// GPT-2's alphabet (Radford et al. 2019, `encoder.py`): printable Latin-1 stands for itself, the other 68 bytes for the
/// characters from U+0100 on, in order.
pub(super) fn char_of_byte(byte: u8) -> char {
    match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
        0..=0x20 => offset_char(u32::from(byte)),
        0x7F..=0xA0 => offset_char(u32::from(byte) - 0x7F + 33),
        0xAD => offset_char(67),
    }
}

fn offset_char(index: u32) -> char {
    char::from_u32(0x100 + index).expect("0x100..0x144 are characters")
}

fn byte_of_char(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// Reads `<0x0A>`.
fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let plain = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    if plain { u8::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_a_bijection() {
        let mut seen = std::collections::HashSet::new();
        for byte in 0..=255_u8 {
            let character = char_of_byte(byte);
            assert!(seen.insert(character));
            assert_eq!(byte_of_char(character), Some(byte));
        }
        assert_eq!(char_of_byte(b' '), 'Ġ');
        assert_eq!(char_of_byte(b'\n'), 'Ċ');
        assert_eq!(byte_of_char('▁'), None);
    }

    #[test]
    fn byte_tokens_are_read_and_look_alikes_are_not() {
        assert_eq!(byte_token("<0x0A>"), Some(10));
        for other in ["<0x0A", "<0xA>", "<0x+A>", "<0x00A>", "<0xé>", "0x0A"] {
            assert_eq!(byte_token(other), None, "{other}");
        }
    }
}
