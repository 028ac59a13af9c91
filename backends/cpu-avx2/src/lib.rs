//! Tersor's cpu-avx2 backend.
