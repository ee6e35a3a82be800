//! Tests that need real processes, and the rules of the house.
