"""DeiT, data-efficient image transformers, in JAX and Flax."""
