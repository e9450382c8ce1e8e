"""The product's decisions under a virtual clock, from one seed, at any scale."""
