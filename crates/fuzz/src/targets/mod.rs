//! The targets.

pub(crate) mod apply;
pub(crate) mod catalog;
pub(crate) mod compressed;
pub(crate) mod documents;
pub(crate) mod header;
pub(crate) mod names;
mod objects;
pub(crate) mod records;
pub(crate) mod whiteout;
