//! System calls of Vellum: the only crate with unsafe code.
