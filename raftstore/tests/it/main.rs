//! Stores with their threads and files, in one process.

mod many_regions;
mod threads;
