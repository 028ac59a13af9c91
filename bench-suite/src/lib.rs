//! Benchmarks of Tersor's backends: Criterion cases and the cross-backend report.
