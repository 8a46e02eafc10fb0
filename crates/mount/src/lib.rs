//! Performs, counts and undoes mount plans.
