//! The node OS update of one compute node.

use super::NODE_OS;
use crate::engine::Definition;

pub(super) const VERSION: u32 = 1;

pub(super) fn definition() -> Definition {
    Definition { kind: NODE_OS, version: VERSION, steps: vec![] }
}
