//! signaling.
