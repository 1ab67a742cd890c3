"""Takes a training step on the global batch in one of two processes with 4 devices each.

Command: python -m tests.process INDEX PORT OUTPUT
"""

import functools
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jbn
from tests.helpers import DY, MASK, X, eight_shards, sharded_step, step


def main(index: int, port: str, output: str) -> None:
    """Takes the step with `jax.shard_map` and with sharded `jax.jit`; process 0 stores results."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4)
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=index)
    mesh = eight_shards()
    spread, everywhere = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())

    def place(array, sharding):
        return jax.make_array_from_callback(array.shape, sharding, lambda i: array[i])

    arrays = [place(array, spread) for array in (X, DY, MASK)]
    results = {}
    for name, axis_name in (("shard_map", "d"), ("jit", None)):
        norm = jbn.batch_norm(decay=0.5, axis_name=axis_name)
        run = sharded_step(norm, mesh) if axis_name else functools.partial(step, norm)
        params, state = jax.tree.map(lambda a: place(np.asarray(a), everywhere), norm.init(3))
        out = jax.jit(run, out_shardings=everywhere)(params, state, *arrays)
        results |= {f"{name}{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(out))}
    if index == 0:
        np.savez(output, **results)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
