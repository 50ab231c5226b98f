//! The runtime: threads, limits, log sink.
