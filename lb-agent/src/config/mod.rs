//! The configuration file: parsed, validated, every error at once.
