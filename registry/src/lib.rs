//! Finds, explains and selects Tersor's backends; configuration.
