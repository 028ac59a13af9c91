//! The vocabulary of Tersor: formats, ops, the QuantBackend trait, backend entries and errors.
