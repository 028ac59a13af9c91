//! Tersor's C ABI for backends that live outside its repository.
