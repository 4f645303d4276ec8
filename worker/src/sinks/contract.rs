//! The contract every sink keeps, as functions that tests of each implementation call.
