"""The Rust core as Python sees it (crates/nuage-python)."""

VERSION: str
