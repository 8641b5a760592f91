//! The binaries, end to end, on the embedded default.
