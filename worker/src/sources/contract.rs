//! The contract every source keeps, as functions that tests of each implementation call.
