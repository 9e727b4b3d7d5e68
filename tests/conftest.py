"""Every test sees eight simulated devices, so that what works on one also works on many."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
