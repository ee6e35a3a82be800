//! Stores with their threads and files, in one process.

mod threads;
