//! Tersor's portable backend: every format and op, no ISA assumed.
