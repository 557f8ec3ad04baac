//! The byte strings of all tokens, as a tree that is walked against an automaton.

use super::ConstraintError;

/// A vocabulary has at most this many tokens.
pub const VOCABULARY_TOKENS_MAX: usize = 1 << 20;
/// Tokens longer than this are never offered (bytes): it bounds the stack of the walk.
const TOKEN_BYTES_MAX: usize = 512;

/// One edge of the tree, in depth-first order.
#[derive(Debug, Clone, Copy)]
pub(super) struct TrieNode {
    pub(super) byte: u8,
    /// Bytes before this one.
    pub(super) depth: u16,
    /// Index of the first node that is not below this one.
    pub(super) end: u32,
    /// Tokens that end here: a range of [`Vocabulary::order`].
    pub(super) tokens: (u32, u32),
}

/// The byte strings of a tokenizer's tokens. Special tokens have none: no text contains them.
#[derive(Debug)]
pub struct Vocabulary {
    bytes: Vec<Option<Box<[u8]>>>,
    pub(super) nodes: Vec<TrieNode>,
    /// Token ids in order of their bytes.
    pub(super) order: Vec<u32>,
}

impl Vocabulary {
    /// Takes the bytes of token 0, 1, 2, ... exactly as they stand in a text (a leading space is a space); None, or no bytes at all, for
    /// special tokens.
    pub fn new(tokens: impl IntoIterator<Item = Option<Vec<u8>>>) -> Result<Self, ConstraintError> {
        let mut bytes: Vec<Option<Box<[u8]>>> = Vec::new();
        for token in tokens {
            if bytes.len() >= VOCABULARY_TOKENS_MAX {
                return Err(ConstraintError::Vocabulary { tokens: bytes.len() + 1, limit: VOCABULARY_TOKENS_MAX });
            }
            bytes.push(token.filter(|t| !t.is_empty() && t.len() <= TOKEN_BYTES_MAX).map(Vec::into_boxed_slice));
        }
        if bytes.is_empty() {
            return Err(ConstraintError::Vocabulary { tokens: 0, limit: VOCABULARY_TOKENS_MAX });
        }
        let text = |token: u32| bytes[token as usize].as_deref().unwrap_or_default();
        let mut order: Vec<u32> = (0..bytes.len() as u32).filter(|&token| bytes[token as usize].is_some()).collect();
        order.sort_by(|&a, &b| text(a).cmp(text(b)).then(a.cmp(&b)));

        let mut nodes: Vec<TrieNode> = Vec::new();
        let mut path: Vec<usize> = Vec::new();
        let mut before: &[u8] = &[];
        for (index, &token) in order.iter().enumerate() {
            let token = text(token);
            let shared = before.iter().zip(token).take_while(|(a, b)| a == b).count();
            for closed in path.drain(shared..) {
                nodes[closed].end = nodes.len() as u32;
            }
            for (depth, &byte) in token.iter().enumerate().skip(shared) {
                path.push(nodes.len());
                nodes.push(TrieNode { byte, depth: depth as u16, end: 0, tokens: (index as u32, index as u32) });
            }
            // Equal byte strings follow each other and end in one node.
            if let Some(&last) = path.last() {
                nodes[last].tokens.1 = index as u32 + 1;
            }
            before = token;
        }
        for closed in path {
            nodes[closed].end = nodes.len() as u32;
        }
        Ok(Self { bytes, nodes, order })
    }

    /// Number of tokens, special ones included.
    pub fn tokens(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes of a token; None for special tokens and ids outside.
    pub fn bytes(&self, token: u32) -> Option<&[u8]> {
        self.bytes.get(token as usize)?.as_deref()
    }

    /// The text of tokens; special tokens add nothing.
    pub fn text(&self, tokens: &[u32]) -> Vec<u8> {
        tokens.iter().filter_map(|&token| self.bytes(token)).flatten().copied().collect()
    }
}
