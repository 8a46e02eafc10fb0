//! The cases, by what they are about.

mod apply;
mod behaviour;
mod claims;
mod complete;
mod content;
mod copies;
mod depth;
mod kinds;
mod lifecycle;
mod names;
mod nested;

use super::Case;

/// Every case of every module.
pub(super) const ALL: &[&[Case]] = &[
    lifecycle::CASES,
    content::CASES,
    kinds::CASES,
    names::CASES,
    nested::CASES,
    apply::CASES,
    behaviour::CASES,
    copies::CASES,
    depth::CASES,
    claims::CASES,
    complete::CASES,
];

/// A case: the function of this name, and what it is about.
macro_rules! case {
    ($name:ident, $about:expr) => {
        $crate::conformance::Case { name: stringify!($name), about: $about, run: $name }
    };
}
use case;
