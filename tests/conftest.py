"""Every test sees eight simulated devices, so that what works on one also works on many; what is compiled is kept."""

import tempfile

import jax

jax.config.update("jax_num_cpu_devices", 8)
# many tests train the same small models: compile each once a session
cache = tempfile.TemporaryDirectory(prefix="deit_jax_compiled_")
jax.config.update("jax_compilation_cache_dir", cache.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
