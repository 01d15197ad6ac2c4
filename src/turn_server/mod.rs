//! turn_server.
