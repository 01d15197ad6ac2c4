//! Records and map files of the mesh: no bytes make the readers panic, what is a record has one encoding.

use ginnel::internals::mesh;

/// Reads `data` as a record and as a map file.
pub(crate) fn run(data: &[u8]) {
    mesh::record(data);
}
