//! The connection that writes, with the statements of the most frequent call.

use super::append::AppendStatements;
use rusqlite::{Connection, Result as SqlResult};
use std::ops::Deref;

/// The connection of the writer's thread.
pub(super) struct WriterConnection<'c> {
    connection: &'c Connection,
    append: Option<AppendStatements<'c>>,
}

impl<'c> WriterConnection<'c> {
    pub(super) fn new(connection: &'c Connection) -> Self {
        Self { connection, append: None }
    }

    /// Returns the statements of an append, which are compiled at the first call.
    pub(super) fn append_statements(&mut self) -> SqlResult<(&'c Connection, &mut AppendStatements<'c>)> {
        let statements = match self.append.take() {
            Some(statements) => statements,
            None => AppendStatements::prepare(self.connection)?,
        };
        Ok((self.connection, self.append.insert(statements)))
    }
}

impl Deref for WriterConnection<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection
    }
}
