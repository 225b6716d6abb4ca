

pub mod adapters;
