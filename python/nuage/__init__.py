"""Nuage: independent container-sized datacenters joined into one sovereign cloud."""

__version__ = "0.2.0"
