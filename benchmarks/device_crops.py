"""What cutting a batch's crops costs GPUs that keep all images (`data.device_size`), by the compiled program.

    python benchmarks/device_crops.py [--topology=h100:8] [--side=160] [--batch=1024] [--images=1281167]

Nothing runs, and no GPU is needed: with the extra `plan-gpu` XLA compiles for it (docs/performance.md).
"""

import jax
import numpy as np
from common import parser

from deit_jax.data.device_crops import cut_crops
from deit_jax.runtime import hardware, sharding, traffic
from deit_jax.runtime.collectives import bytes_sent, collectives
from deit_jax.runtime.topologies import compiler_options, prepare_environment, topology_devices

SIZE = 224


def main() -> None:
    flags = parser(__doc__, topology="h100:8", side=160, batch=1024, images=1_281_167).parse_args()
    prepare_environment(flags.topology)
    devices = topology_devices(flags.topology)
    mesh = sharding.make_mesh(devices)
    shape = (-(-flags.images // len(devices)) * len(devices), flags.side, flags.side, 3)
    images = jax.ShapeDtypeStruct(shape, np.uint8, sharding=sharding.batch_sharding(mesh))
    whole = {"sharding": sharding.replicated(mesh)}
    index = jax.ShapeDtypeStruct((flags.batch,), np.int32, **whole)
    boxes = jax.ShapeDtypeStruct((flags.batch, 4), np.int32, **whole)
    lowered = cut_crops.lower(images, index, boxes, size=SIZE, mesh=mesh)
    compiled = lowered.compile(compiler_options(flags.topology))
    memory, found = compiled.memory_analysis(), collectives(compiled.as_text())
    known = hardware.accelerator(devices[0].device_kind)
    least = traffic.total(traffic.kernels(compiled.as_text()), known.peak, known.bandwidth)
    sent = bytes_sent(found, len(devices))
    print(f"{flags.batch} crops of {flags.side} px on {len(devices)} x {devices[0].device_kind}, per device")
    print(f"images {memory.argument_size_in_bytes / 1e9:.2f} GB, temporaries {memory.temp_size_in_bytes / 1e6:.1f} MB")
    print(f"{least.kernels} kernels, at least {1e3 * least.seconds:.2f} ms")
    print(f"{sent / 1e6:.1f} MB sent, {1e3 * sent / known.link:.2f} ms: {found}")


if __name__ == "__main__":
    main()
