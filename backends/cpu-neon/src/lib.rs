//! Tersor's cpu-neon backend.
