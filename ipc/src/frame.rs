//! Frames: bytes become lines, and no more bytes are held than one line may have.

/// Frames larger than this are refused before allocation (bytes): room for one memory of the largest size, escaped.
pub const FRAME_BYTES_MAX_DEFAULT: usize = 4 << 20;

/// A stream that cannot be cut into lines; the connection has to be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A line has no end within the limit.
    #[error("frame is longer than {bytes_max} bytes")]
    TooLong {
        /// The limit.
        bytes_max: usize,
    },
}

/// Cuts a byte stream into lines. Holds at most one limit of bytes plus what one `push` brought.
#[derive(Debug)]
pub struct LineDecoder {
    buffer: Vec<u8>,
    /// Where the search for the next line end goes on, so that a slow sender costs linear time.
    searched: usize,
    /// Where the next line starts.
    start: usize,
    bytes_max: usize,
}

impl LineDecoder {
    /// A decoder for lines of at most `bytes_max` bytes, the line end not counted.
    pub const fn new(bytes_max: usize) -> Self {
        Self { buffer: Vec::new(), searched: 0, start: 0, bytes_max }
    }

    /// Takes bytes that were read. Fails as soon as the unfinished line is over the limit.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        // What is refused is never copied: an unfinished line that would grow past the limit fails here.
        let pending = self.buffer.len() - self.start;
        let first_end = bytes.iter().position(|byte| *byte == b'\n');
        if !self.has_line() && pending + first_end.unwrap_or(bytes.len()) > self.bytes_max {
            return Err(FrameError::TooLong { bytes_max: self.bytes_max });
        }
        self.compact();
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Takes the next whole line, without its end; empty lines (keep-alives) are skipped.
    pub fn next_line(&mut self) -> Option<Vec<u8>> {
        loop {
            let found = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
            let Some(offset) = found else {
                self.searched = self.buffer.len();
                return None;
            };
            let end = self.searched + offset;
            let mut line = &self.buffer[self.start..end];
            line = line.strip_suffix(b"\r").unwrap_or(line);
            let line = line.to_vec();
            self.start = end + 1;
            self.searched = self.start;
            if !line.is_empty() {
                return Some(line);
            }
        }
    }

    /// Fails when a line that is already complete is over the limit; call it once per line taken.
    pub fn check(&self, line: &[u8]) -> Result<(), FrameError> {
        if line.len() > self.bytes_max { Err(FrameError::TooLong { bytes_max: self.bytes_max }) } else { Ok(()) }
    }

    /// Whether an unfinished line is waiting for its end: the state a slow-loris client keeps a server in.
    pub fn is_partial(&self) -> bool {
        self.buffer.len() > self.start && !self.has_line()
    }

    fn has_line(&self) -> bool {
        self.buffer[self.searched..].contains(&b'\n')
    }

    fn compact(&mut self) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
        }
        // A connection that once sent a large frame does not keep its buffer for ever.
        if self.buffer.is_empty() && self.buffer.capacity() > (64 << 10) {
            self.buffer = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_a_frame_larger_than_the_limit_before_it_is_held() {
        let mut decoder = LineDecoder::new(10);
        assert_eq!(decoder.push(&[b'x'; 11]), Err(FrameError::TooLong { bytes_max: 10 }));
        assert_eq!(decoder.buffer.capacity(), 0);
    }

    #[test]
    fn refuses_a_frame_that_grows_past_the_limit_piece_by_piece() {
        let mut decoder = LineDecoder::new(10);
        decoder.push(&[b'x'; 6]).unwrap();
        assert!(decoder.is_partial());
        assert!(decoder.push(&[b'x'; 6]).is_err());
    }

    #[test]
    fn a_second_line_over_the_limit_is_found_by_check() {
        let mut decoder = LineDecoder::new(4);
        decoder.push(b"ab\ntoolong\n").unwrap();
        let first = decoder.next_line().unwrap();
        assert!(decoder.check(&first).is_ok());
        let second = decoder.next_line().unwrap();
        assert!(decoder.check(&second).is_err());
    }

    #[test]
    fn empty_lines_and_carriage_returns_are_dropped() {
        let mut decoder = LineDecoder::new(100);
        decoder.push(b"\n\r\n{}\r\n").unwrap();
        assert_eq!(decoder.next_line().unwrap(), b"{}");
        assert_eq!(decoder.next_line(), None);
        assert!(!decoder.is_partial());
    }

    proptest! {
        #[test]
        fn any_cutting_of_the_stream_gives_the_same_lines(
            lines in proptest::collection::vec("[a-z]{1,20}", 0..20),
            cuts in proptest::collection::vec(1_usize..7, 1..50),
        ) {
            let stream: Vec<u8> = lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect();
            let mut decoder = LineDecoder::new(64);
            let mut got = Vec::new();
            let mut rest = &stream[..];
            let mut cut = cuts.iter().cycle();
            while !rest.is_empty() {
                let take = (*cut.next().unwrap()).min(rest.len());
                decoder.push(&rest[..take]).unwrap();
                rest = &rest[take..];
                while let Some(line) = decoder.next_line() {
                    got.push(String::from_utf8(line).unwrap());
                }
            }
            prop_assert_eq!(got, lines);
        }
    }
}
