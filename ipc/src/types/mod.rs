//! Parameters and results of every method. Parameters refuse unknown fields; results tolerate them in clients.

pub mod admin;
pub mod evolve;
pub mod generate;
pub mod hello;
pub mod memory;
pub mod task;

pub use admin::*;
pub use evolve::*;
pub use generate::*;
pub use hello::*;
pub use memory::*;
pub use task::*;

macro_rules! params {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
    };
}

macro_rules! result {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
    };
}

pub(crate) use {params, result};
