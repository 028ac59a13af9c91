//! Tersor's cpu-avx512 backend.
