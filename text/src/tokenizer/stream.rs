//! Turns tokens back into text, one at a time, never showing half a character.

use super::{ControlText, FastTokenizer, TokenizerError};

/// Decodes a stream of token ids. What it emits, joined, is the decoding of all ids at once.
///
/// Bytes that cannot become UTF-8 turn into U+FFFD, one per maximal invalid sequence.
#[derive(Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a FastTokenizer,
    control: ControlText,
    /// An incomplete character: at most three bytes between pushes.
    pending: Vec<u8>,
    at_start: bool,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a FastTokenizer, control: ControlText) -> Self {
        Self { tokenizer, control, pending: Vec::new(), at_start: true }
    }

    /// Takes the next token and returns the text that it completes, perhaps none.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        let mut out = String::new();
        self.push_into(id, &mut out)?;
        Ok(out)
    }

    /// As [`push`](Self::push), appending to `out`.
    pub fn push_into(&mut self, id: u32, out: &mut String) -> Result<(), TokenizerError> {
        let mut bytes = self
            .tokenizer
            .token_bytes(id)
            .ok_or(TokenizerError::UnknownToken { id, size: self.tokenizer.vocabulary_size() })?;
        if self.control == ControlText::Hide && self.tokenizer.is_control(id) {
            return Ok(());
        }
        if std::mem::take(&mut self.at_start) && self.tokenizer.family().first_space_is_artificial() {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.pending.extend_from_slice(bytes);
        self.drain(out, false);
        Ok(())
    }

    /// Ends the stream; a character that never became complete turns into U+FFFD.
    pub fn finish(mut self) -> String {
        let mut out = String::new();
        self.drain(&mut out, true);
        out
    }

    fn drain(&mut self, out: &mut String, end: bool) {
        let mut consumed = 0;
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            out.push_str(chunk.valid());
            consumed += chunk.valid().len();
            let invalid = chunk.invalid();
            // Only the last sequence can still be completed, and only when it is cut short rather than wrong.
            let unfinished =
                chunks.peek().is_none() && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if invalid.is_empty() || (unfinished && !end) {
                break;
            }
            out.push(char::REPLACEMENT_CHARACTER);
            consumed += invalid.len();
        }
        self.pending.drain(..consumed);
    }
}
