//! Objects, and when two branches of `oneOf` cannot match the same value.

use super::{Compiler, ConstraintError, Json, Kind, Node, Piece};

/// Properties of one object at most.
const PROPERTIES_MAX: usize = 512;

impl<'a> Compiler<'a> {
    /// Named properties in the order of the schema; those that are not required may be left out. No others are added, whatever
    /// `additionalProperties` allows, unless the schema names none at all.
    pub(super) fn object(&mut self, from: Node, schema: &'a Json, place: &str) -> Piece {
        let required = Self::required(schema, place)?;
        let extra = schema.get("additionalProperties");
        let properties = match schema.get("properties") {
            None => &[],
            Some(Json::Object(members)) => members.as_slice(),
            Some(_) => return Self::bad(place, "properties is an object"),
        };
        let mut members: Vec<(&str, &'a Json, bool)> = properties
            .iter()
            .map(|(name, schema)| (name.as_str(), schema, required.contains(&name.as_str())))
            .collect();
        // A property that is required but not named is described by additionalProperties.
        for name in &required {
            if !members.iter().any(|(known, ..)| known == name) {
                members.push((name, extra.unwrap_or(&Json::Bool(true)), true));
            }
        }
        if members.len() > PROPERTIES_MAX {
            return Err(ConstraintError::TooLarge { what: "properties", limit: PROPERTIES_MAX });
        }
        if members.is_empty() && schema.get("properties").is_none() {
            let values = extra.unwrap_or(&Json::Bool(true));
            let place = format!("{place}/additionalProperties");
            return self.sequence(from, 0, None, (b'{', b'}'), &mut |compiler, from| {
                let name = compiler.nfa.string(from, 0, None)?;
                let colon = compiler.nfa.mark(name, b':')?;
                compiler.value(colon, values, &place)
            });
        }
        self.members(from, &members, place)
    }

    fn members(&mut self, from: Node, members: &[(&str, &'a Json, bool)], place: &str) -> Piece {
        // Two tracks run along the properties: nothing written so far, and something written, where a comma comes first.
        let mut nothing = Some(self.nfa.mark(from, b'{')?);
        let mut something: Option<Node> = None;
        for &(name, schema, required) in members {
            let start = self.nfa.state()?;
            if let Some(nothing) = nothing {
                self.nfa.join(nothing, start);
            }
            if let Some(something) = something {
                let comma = self.nfa.mark(something, b',')?;
                self.nfa.join(comma, start);
            }
            let quoted = self.quoted(start, name)?;
            let colon = self.nfa.mark(quoted, b':')?;
            let written = self.value(
                colon,
                schema,
                &format!("{place}/properties/{}", name.replace('~', "~0").replace('/', "~1")),
            )?;
            if required && written.is_none() {
                return Ok(None);
            }
            let skipped = if required { None } else { something };
            something = self.nfa.any_of([written, skipped])?;
            if required {
                nothing = None;
            }
        }
        let end = self.nfa.state()?;
        for open in [nothing, something].into_iter().flatten() {
            self.nfa.range(open, b'}', b'}', end);
        }
        Ok(Some(end))
    }

    fn required<'s>(schema: &'s Json, place: &str) -> Result<Vec<&'s str>, ConstraintError> {
        let Some(required) = schema.get("required") else { return Ok(Vec::new()) };
        let Json::Array(names) = required else { return Self::bad(place, "required is an array of names") };
        let mut out: Vec<&str> = Vec::new();
        for name in names {
            let Json::String(name) = name else { return Self::bad(place, "required is an array of names") };
            if !out.contains(&name.as_str()) {
                out.push(name);
            }
        }
        Ok(out)
    }

    /// Whether no value can match both schemas, as far as can be told: different types, different constants, or objects that require a
    /// property whose constants differ.
    pub(super) fn disjoint(&self, a: &'a Json, b: &'a Json) -> bool {
        let (Some(a), Some(b)) = (self.resolved(a), self.resolved(b)) else { return false };
        if matches!(a, Json::Bool(false)) || matches!(b, Json::Bool(false)) {
            return true;
        }
        if let (Some(a), Some(b)) = (constants(a), constants(b)) {
            return a.iter().all(|a| b.iter().all(|b| !a.equals(b)));
        }
        let meets = |values: &[&Json], schema: &Json| {
            let kinds = Self::kinds(schema.get("type"), "").ok().flatten();
            kinds.is_none_or(|kinds| values.iter().any(|value| kinds.iter().any(|kind| kind.contains(value))))
        };
        match (constants(a), constants(b)) {
            (Some(values), None) => return !meets(&values, b),
            (None, Some(values)) => return !meets(&values, a),
            _ => {}
        }
        let kinds = |schema: &Json| Self::kinds(schema.get("type"), "").ok().flatten();
        let (Some(a_kinds), Some(b_kinds)) = (kinds(a), kinds(b)) else { return false };
        let numeric = |kind: Kind| matches!(kind, Kind::Integer | Kind::Number);
        let overlap = |x: &Kind, y: &Kind| x == y || (numeric(*x) && numeric(*y));
        if !a_kinds.iter().any(|x| b_kinds.iter().any(|y| overlap(x, y))) {
            return true;
        }
        let objects = a_kinds == [Kind::Object] && b_kinds == [Kind::Object];
        objects && self.told_apart(a, b)
    }

    /// Whether a property that both require has constants without a common one.
    fn told_apart(&self, a: &'a Json, b: &'a Json) -> bool {
        let (Ok(a_required), Ok(b_required)) = (Self::required(a, ""), Self::required(b, "")) else { return false };
        let property =
            |schema: &'a Json, name: &str| schema.get("properties")?.get(name).and_then(|p| self.resolved(p));
        a_required.iter().filter(|name| b_required.contains(name)).any(|name| {
            match (property(a, name).and_then(constants), property(b, name).and_then(constants)) {
                (Some(a), Some(b)) => a.iter().all(|a| b.iter().all(|b| !a.equals(b))),
                _ => false,
            }
        })
    }

    /// Follows references, a few steps at most.
    fn resolved(&self, schema: &'a Json) -> Option<&'a Json> {
        let mut schema = schema;
        for _ in 0..8 {
            match schema.get("$ref") {
                Some(Json::String(reference)) => schema = self.root.pointer(reference.strip_prefix('#')?)?,
                Some(_) => return None,
                None => return Some(schema),
            }
        }
        None
    }
}

/// The values that `const` or `enum` lists.
fn constants(schema: &Json) -> Option<Vec<&Json>> {
    match (schema.get("const"), schema.get("enum")) {
        (Some(value), _) => Some(vec![value]),
        (None, Some(Json::Array(values))) => Some(values.iter().collect()),
        _ => None,
    }
}
