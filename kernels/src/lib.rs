//! Algorithm bodies of Tersor's CPU backends, written once over ISA tokens.
