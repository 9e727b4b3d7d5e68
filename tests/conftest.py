"""Every test sees eight simulated devices, so that what works on one also works on many; what is compiled is kept."""

import os
import tempfile

# many tests, and the commands they start, compile the same small models: once a session is enough
cache = tempfile.TemporaryDirectory(prefix="deit_jax_compiled_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax  # noqa: E402  reads the environment

jax.config.update("jax_num_cpu_devices", 8)
