//! A backend with planted faults that Tersor's conformance kit must catch; never registered.
