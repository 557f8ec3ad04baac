//! JSON Schema as an automaton of bounded depth.
//!
//! Every text of the automaton is a valid instance (draft 2020-12, and what earlier drafts share with it); not every valid instance is a
//! text of it: properties come in the order of the schema and no others are added, numbers and unbounded parts are bounded by the limits,
//! recursion is followed a few times. What cannot be kept to is refused by name, never ignored.

mod document;
mod number;
mod object;

use document::Json;

use super::nfa::{Nfa, Node};
use super::{ByteDfa, ConstraintError, Limits};

/// Nesting of schemas that is followed at most, references included: it bounds the stack.
const DEPTH_MAX: usize = 48;

/// Keywords that say nothing about which instances are valid. `format` is an annotation by default (2020-12 section 7.2.1).
const ANNOTATIONS: [&str; 17] = [
    "title",
    "description",
    "default",
    "examples",
    "example",
    "$schema",
    "$id",
    "id",
    "$comment",
    "$defs",
    "definitions",
    "format",
    "deprecated",
    "readOnly",
    "writeOnly",
    "contentMediaType",
    "contentEncoding",
];

/// A piece, or nothing when no instance can match.
type Piece = Result<Option<Node>, ConstraintError>;

/// Compiles a schema given as JSON text.
pub(super) fn compile(text: &str, limits: Limits) -> Result<ByteDfa, ConstraintError> {
    if text.len() > limits.source_bytes {
        return Err(ConstraintError::TooLarge { what: "bytes of schema", limit: limits.source_bytes });
    }
    let root: Json = serde_json::from_str(text)
        .map_err(|error| ConstraintError::Schema { place: "/".into(), reason: error.to_string() })?;
    let mut compiler = Compiler { root: &root, nfa: Nfa::new(limits), limits, references: Vec::new(), depth: 0 };
    let end = compiler.value(Nfa::START, &root, "")?.ok_or(ConstraintError::Empty)?;
    compiler.nfa.determinize(end)
}

struct Compiler<'a> {
    root: &'a Json,
    nfa: Nfa,
    limits: Limits,
    /// References that are being followed.
    references: Vec<String>,
    depth: usize,
}

/// The kinds of values that `type` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Null,
    Boolean,
    Integer,
    Number,
    String,
    Array,
    Object,
}

impl Kind {
    const ALL: [Self; 7] =
        [Self::Null, Self::Boolean, Self::Integer, Self::Number, Self::String, Self::Array, Self::Object];

    fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean => "boolean",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::String => "string",
            Self::Array => "array",
            Self::Object => "object",
        }
    }

    /// Keywords that constrain values of this kind and are supported.
    fn keywords(self) -> &'static [&'static str] {
        match self {
            Self::Null | Self::Boolean => &[],
            Self::Integer | Self::Number => &["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"],
            Self::String => &["minLength", "maxLength", "pattern"],
            Self::Array => &["items", "minItems", "maxItems"],
            Self::Object => &["properties", "required", "additionalProperties"],
        }
    }

    fn contains(self, value: &Json) -> bool {
        match (self, value) {
            (Self::Null, Json::Null)
            | (Self::Boolean, Json::Bool(_))
            | (Self::Number, Json::Number(_))
            | (Self::String, Json::String(_))
            | (Self::Array, Json::Array(_))
            | (Self::Object, Json::Object(_)) => true,
            // A whole number is an integer however it is written (2020-12 section 4.2.3).
            (Self::Integer, Json::Number(number)) => number.as_f64().is_some_and(|x| x.fract() == 0.0),
            _ => false,
        }
    }
}

impl<'a> Compiler<'a> {
    fn bad<T>(place: &str, reason: impl Into<String>) -> Result<T, ConstraintError> {
        let place = if place.is_empty() { "/".into() } else { place.into() };
        Err(ConstraintError::Schema { place, reason: reason.into() })
    }

    fn unsupported<T>(place: &str, keyword: &str, reason: impl Into<String>) -> Result<T, ConstraintError> {
        let place = if place.is_empty() { "/".into() } else { place.into() };
        Err(ConstraintError::Unsupported { place, keyword: keyword.into(), reason: reason.into() })
    }

    /// Any value that a schema accepts.
    fn value(&mut self, from: Node, schema: &'a Json, place: &str) -> Piece {
        if self.depth >= DEPTH_MAX {
            return Err(ConstraintError::TooLarge { what: "levels of schema", limit: DEPTH_MAX });
        }
        self.depth += 1;
        let piece = match schema {
            Json::Bool(true) => self.anything(from, self.limits.any_depth).map(Some),
            Json::Bool(false) => Ok(None),
            Json::Object(_) => self.described(from, schema, place),
            _ => Self::bad(place, "a schema is an object or a boolean"),
        };
        self.depth -= 1;
        piece
    }

    fn described(&mut self, from: Node, schema: &'a Json, place: &str) -> Piece {
        let members: Vec<(&str, &Json)> = schema
            .members()
            .iter()
            .map(|(name, value)| (name.as_str(), value))
            .filter(|(name, _)| !ANNOTATIONS.contains(name) && !name.starts_with("x-"))
            .collect();
        let find = |keyword: &str| members.iter().find(|(name, _)| *name == keyword).map(|(_, value)| *value);
        let alone = |keyword: &str, friends: &[&str]| match members
            .iter()
            .find(|(name, _)| *name != keyword && !friends.contains(name))
        {
            Some((other, _)) => Self::unsupported(place, other, format!("it stands beside {keyword}")),
            None => Ok(()),
        };
        if members.is_empty() {
            return self.anything(from, self.limits.any_depth).map(Some);
        }
        if let Some(reference) = find("$ref") {
            alone("$ref", &[])?;
            return self.reference(from, reference, place);
        }
        if let Some(branches) = find("allOf") {
            alone("allOf", &[])?;
            return match branches {
                Json::Array(branches) if branches.len() == 1 => {
                    self.value(from, &branches[0], &format!("{place}/allOf/0"))
                }
                Json::Array(_) => Self::unsupported(place, "allOf", "merge the schemas into one"),
                _ => Self::bad(place, "allOf is an array of schemas"),
            };
        }
        for keyword in ["anyOf", "oneOf"] {
            if let Some(branches) = find(keyword) {
                alone(keyword, &[])?;
                return self.branches(from, keyword, branches, place);
            }
        }
        let kinds = Self::kinds(find("type"), place)?;
        if let Some(values) = find("enum") {
            alone("enum", &["type"])?;
            let Json::Array(values) = values else { return Self::bad(place, "enum is an array") };
            return self.constants(from, values, kinds.as_deref());
        }
        if let Some(value) = find("const") {
            alone("const", &["type"])?;
            return self.constants(from, std::slice::from_ref(value), kinds.as_deref());
        }
        // Without a type the keywords say which kind is meant: the kinds that they do not speak of are left out, which is allowed.
        let kinds = kinds.unwrap_or_else(|| {
            let spoken = |kind: &Kind| kind.keywords().iter().any(|keyword| find(keyword).is_some());
            Kind::ALL.into_iter().filter(|kind| *kind != Kind::Integer && spoken(kind)).collect()
        });
        let known = |name: &str| name == "type" || Kind::ALL.iter().any(|kind| kind.keywords().contains(&name));
        if let Some((name, _)) = members.iter().find(|(name, _)| !known(name)) {
            return Self::unsupported(place, name, "constraints cannot be compiled from it");
        }
        let mut ends = Vec::new();
        for kind in kinds {
            ends.push(self.kind(from, kind, schema, place)?);
        }
        self.nfa.any_of(ends)
    }

    fn kinds(value: Option<&Json>, place: &str) -> Result<Option<Vec<Kind>>, ConstraintError> {
        let named = |value: &Json| match value {
            Json::String(name) => Kind::ALL.into_iter().find(|kind| kind.name() == name),
            _ => None,
        };
        let kinds = match value {
            None => return Ok(None),
            Some(Json::Array(values)) => values.iter().map(named).collect(),
            Some(value) => named(value).map(|kind| vec![kind]),
        };
        match kinds {
            Some(kinds) => Ok(Some(kinds)),
            None => {
                Self::bad(place, "type is null, boolean, integer, number, string, array, object, or a list of them")
            }
        }
    }

    fn kind(&mut self, from: Node, kind: Kind, schema: &'a Json, place: &str) -> Piece {
        // Each branch starts in a state of its own, because some pieces loop.
        let start = self.nfa.state()?;
        self.nfa.join(from, start);
        match kind {
            Kind::Null => self.nfa.literal(start, b"null").map(Some),
            Kind::Boolean => {
                let ends = [self.nfa.literal(start, b"true")?, self.nfa.literal(start, b"false")?];
                self.nfa.any_of(ends.map(Some))
            }
            Kind::Integer | Kind::Number => self.numeric(start, kind == Kind::Integer, schema, place),
            Kind::String => self.text(start, schema, place),
            Kind::Array => self.array(start, schema, place),
            Kind::Object => self.object(start, schema, place),
        }
    }

    fn reference(&mut self, from: Node, reference: &Json, place: &str) -> Piece {
        let Json::String(reference) = reference else { return Self::bad(place, "$ref is a string") };
        let Some(pointer) = reference.strip_prefix('#') else {
            return Self::unsupported(
                place,
                "$ref",
                "only references within the schema, such as #/$defs/item, are followed",
            );
        };
        let Some(target) = self.root.pointer(pointer) else {
            return Self::bad(place, format!("$ref {reference} leads nowhere"));
        };
        // The first visit is no recursion.
        if self.references.iter().filter(|open| *open == reference).count() > self.limits.recursion {
            return Ok(None);
        }
        self.references.push(reference.clone());
        let piece = self.value(from, target, reference);
        self.references.pop();
        piece
    }

    fn branches(&mut self, from: Node, keyword: &str, branches: &'a Json, place: &str) -> Piece {
        let Json::Array(branches) = branches else {
            return Self::bad(place, format!("{keyword} is an array of schemas"));
        };
        if keyword == "oneOf" {
            for (index, a) in branches.iter().enumerate() {
                if let Some(other) = branches[..index].iter().position(|b| !self.disjoint(a, b)) {
                    let reason =
                        format!("branches {other} and {index} may both match a value; use anyOf if that is harmless");
                    return Self::unsupported(place, keyword, reason);
                }
            }
        }
        let mut ends = Vec::new();
        for (index, branch) in branches.iter().enumerate() {
            let start = self.nfa.state()?;
            self.nfa.join(from, start);
            ends.push(self.value(start, branch, &format!("{place}/{keyword}/{index}"))?);
        }
        self.nfa.any_of(ends)
    }

    fn constants(&mut self, from: Node, values: &[Json], kinds: Option<&[Kind]>) -> Piece {
        let mut ends = Vec::new();
        for value in values {
            if kinds.is_none_or(|kinds| kinds.iter().any(|kind| kind.contains(value))) {
                ends.push(Some(self.constant(from, value)?));
            }
        }
        self.nfa.any_of(ends)
    }

    /// One fixed value.
    fn constant(&mut self, from: Node, value: &Json) -> Result<Node, ConstraintError> {
        match value {
            Json::Null => self.nfa.literal(from, b"null"),
            Json::Bool(value) => self.nfa.literal(from, value.to_string().as_bytes()),
            Json::Number(number) => self.nfa.literal(from, number.to_string().as_bytes()),
            Json::String(text) => self.quoted(from, text),
            Json::Array(items) => {
                let mut here = self.nfa.mark(from, b'[')?;
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        here = self.nfa.mark(here, b',')?;
                    }
                    here = self.constant(here, item)?;
                }
                self.nfa.literal(here, b"]")
            }
            Json::Object(members) => {
                let mut here = self.nfa.mark(from, b'{')?;
                for (index, (name, value)) in members.iter().enumerate() {
                    if index > 0 {
                        here = self.nfa.mark(here, b',')?;
                    }
                    here = self.quoted(here, name)?;
                    here = self.nfa.mark(here, b':')?;
                    here = self.constant(here, value)?;
                }
                self.nfa.literal(here, b"}")
            }
        }
    }

    fn quoted(&mut self, from: Node, text: &str) -> Result<Node, ConstraintError> {
        let quoted = serde_json::Value::from(text).to_string();
        self.nfa.literal(from, quoted.as_bytes())
    }

    fn text(&mut self, from: Node, schema: &'a Json, place: &str) -> Piece {
        let min = Self::count(schema, "minLength", place)?.unwrap_or(0);
        let max = Self::count(schema, "maxLength", place)?.map(|max| max.min(self.limits.string_chars.max(min)));
        if max.is_some_and(|max| max < min) {
            return Ok(None);
        }
        let Some(pattern) = schema.get("pattern") else { return self.nfa.string(from, min, max).map(Some) };
        let Json::String(pattern) = pattern else { return Self::bad(place, "pattern is a string") };
        let mut content = match super::pattern::contains(pattern, self.limits) {
            Err(ConstraintError::Empty) => return Ok(None),
            Err(ConstraintError::Regex { reason }) => return Self::unsupported(place, "pattern", reason),
            other => other?,
        };
        if min > 0 || max.is_some() {
            content = match content.intersect(&super::pattern::characters(min, max, self.limits)?, self.limits) {
                Err(ConstraintError::Empty) => return Ok(None),
                other => other?,
            };
        }
        self.nfa.string_of(from, &content).map(Some)
    }

    fn array(&mut self, from: Node, schema: &'a Json, place: &str) -> Piece {
        let min = Self::count(schema, "minItems", place)?.unwrap_or(0);
        let max = Self::count(schema, "maxItems", place)?.map(|max| max.min(self.limits.array_items.max(min)));
        if max.is_some_and(|max| max < min) {
            return Ok(None);
        }
        let items = schema.get("items").unwrap_or(&Json::Bool(true));
        if matches!(items, Json::Array(_)) {
            return Self::unsupported(place, "items", "a list of schemas by place");
        }
        let place = format!("{place}/items");
        self.sequence(from, min, max, (b'[', b']'), &mut |compiler, from| compiler.value(from, items, &place))
    }

    /// Items between brackets, separated by commas.
    fn sequence(
        &mut self,
        from: Node,
        min: usize,
        max: Option<usize>,
        brackets: (u8, u8),
        item: &mut dyn FnMut(&mut Self, Node) -> Piece,
    ) -> Piece {
        let open = self.nfa.mark(from, brackets.0)?;
        let end = self.nfa.state()?;
        if min == 0 {
            self.nfa.range(open, brackets.1, brackets.1, end);
        }
        let mut here = open;
        for index in 0..max.unwrap_or(min.max(1)) {
            if index > 0 {
                here = self.nfa.mark(here, b',')?;
            }
            let start = self.nfa.state()?;
            self.nfa.join(here, start);
            let Some(after) = item(self, start)? else {
                // No item can be made (anywhere: all are alike), so only the empty sequence is left.
                return Ok((min == 0).then_some(end));
            };
            let closing = self.nfa.state()?;
            self.nfa.join(after, closing);
            here = closing;
            if index + 1 >= min {
                self.nfa.range(here, brackets.1, brackets.1, end);
            }
        }
        if max.is_none() {
            // Any number more: the comma leads to one more copy of the item, whose end leads back.
            let again = self.nfa.mark(here, b',')?;
            if let Some(after) = item(self, again)? {
                self.nfa.join(after, here);
            }
        }
        Ok(Some(end))
    }

    /// A value that no schema describes.
    fn anything(&mut self, from: Node, depth: usize) -> Result<Node, ConstraintError> {
        let mut ends = vec![Some(self.nfa.number(from)?), Some(self.nfa.string(from, 0, None)?)];
        for word in ["null", "true", "false"] {
            ends.push(Some(self.nfa.literal(from, word.as_bytes())?));
        }
        if depth > 0 {
            ends.push(self.sequence(from, 0, None, (b'[', b']'), &mut |compiler, from| {
                compiler.anything(from, depth - 1).map(Some)
            })?);
            ends.push(self.sequence(from, 0, None, (b'{', b'}'), &mut |compiler, from| {
                let name = compiler.nfa.string(from, 0, None)?;
                let colon = compiler.nfa.mark(name, b':')?;
                compiler.anything(colon, depth - 1).map(Some)
            })?);
        }
        let end = self.nfa.any_of(ends)?;
        Ok(end.expect("a number is always possible"))
    }

    /// A keyword that counts something.
    fn count(schema: &Json, keyword: &str, place: &str) -> Result<Option<usize>, ConstraintError> {
        match schema.get(keyword) {
            None => Ok(None),
            Some(Json::Number(number)) => match number.as_f64() {
                // What is too large to matter is cut to what fits; limits follow.
                Some(count) if count >= 0.0 && count.fract() == 0.0 => Ok(Some(count.min(1e9) as usize)),
                _ => Self::bad(place, format!("{keyword} is a whole number of at least 0")),
            },
            Some(_) => Self::bad(place, format!("{keyword} is a whole number of at least 0")),
        }
    }
}
