//! Stores with their threads and files, in one process.

mod hostile;
mod many_regions;
mod threads;
