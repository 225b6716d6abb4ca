//! Both stores, held to the same promises.

mod memory;
mod redis;
