//! Conformance suite, file trees, fixtures and faults for tests.
