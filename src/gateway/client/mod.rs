//! The library for both sides of the gateway's wire: [`super`] says what it is.
