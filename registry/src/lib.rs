//! Finds, explains and selects Tersor's backends; configuration.

pub mod config;
