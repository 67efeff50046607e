//! Empty: this crate only has tests.
