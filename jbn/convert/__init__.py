"""Reads and writes the batch norm layers of other libraries, as dictionaries of arrays.

`read` returns the parameters, the state and the options of a layer for `jbn.batch_norm`, and
`write` does the reverse. No other library is imported.

>>> import jax.numpy as jnp, numpy as np
>>> weights = {
...     "bn1.weight": np.ones(3, np.float32),
...     "bn1.bias": np.zeros(3, np.float32),
...     "bn1.running_mean": np.full(3, 5.0, np.float32),
...     "bn1.running_var": np.ones(3, np.float32),
... }
>>> layer = jbn.convert.read("torch", weights, prefix="bn1.", momentum=0.1, eps=1e-5)
>>> norm = jbn.batch_norm(axis=1, **layer.options)
>>> y = norm.infer(layer.params, layer.state, jnp.ones((8, 3, 4, 4)))
>>> arrays, arguments = jbn.convert.write("flax", layer)
>>> sorted(arrays)
['bias', 'mean', 'scale', 'var']

For a whole model, read all layers, rename them to the paths in your model, and write them with
`jbn.linen.load_norms` or `jbn.nnx.load_norms`:

>>> import flax.linen as nn, jax
>>> model = nn.Sequential([nn.BatchNorm(use_running_average=True)])
>>> variables = model.init(jax.random.key(0), jnp.ones((8, 3)))
>>> paths = {"bn1.": "layers_0"}
>>> layers = jbn.convert.read_all("torch", weights)
>>> layers = {paths[prefix]: layer for prefix, layer in layers.items()}
>>> variables = jbn.linen.load_norms(variables, layers)
>>> print(variables["batch_stats"]["layers_0"]["mean"])
[5. 5. 5.]

And back:

>>> arrays = {}
>>> for path, layer in jbn.convert.read_all("flax", variables).items():
...     prefix = path.replace("/", ".")
...     arrays |= jbn.convert.write("torch", layer, prefix=prefix).arrays
>>> sorted(arrays)[-2:]
['layers_0.running_var', 'layers_0.weight']

Each library has its own dictionary of arrays. The keys of nested dictionaries are joined by "/".

- ``"torch"``: ``model.state_dict()``
- ``"flax"`` for Linen: the variables of a model, or a dictionary with the scale, bias, mean and var
  of one layer
- ``"flax"`` for NNX: ``nnx.state(model)`` or ``nnx.to_pure_dict(nnx.state(model))``
- ``"haiku"``: ``params | state``
- ``"keras"``: ``{weight.path: weight for weight in model.weights}``
- ``"equinox_batch"``, for a layer ``bn`` in the mode "batch"::

      {
          "weight": bn.weight,
          "bias": bn.bias,
          "batch_state_index": state.get(bn.batch_state_index),
          "batch_counter": state.get(bn.batch_counter),
      }

  For the way back, use ``state.set``, with the counter as an int.
- ``"equinox_ema"``, for a layer in the mode "ema": the same with "ema_state_index" and
  "ema_first_time_index"

Inference gives the same results as in the other library, unless a layer has seen no batch. The
statistics of such a layer are placeholders in Haiku and in Equinox's mode "ema", and are read as
jbn's initial statistics. Training continues as in the other library, within these limits:

- The values of running variances are not converted. jbn continues to average the unbiased variance
  for layers of PyTorch, and the biased variance for all other layers.
- Haiku and Equinox's mode "batch" always correct the bias of their averages, as
  `jbn.corrected_decay` does. For them, a layer with a constant decay is written with a number of
  updates that is so large that nothing is left to correct. For the other libraries, a corrected
  decay is written as its limit.
- Flax, Keras and Equinox's mode "ema" do not count updates. The count is read as 0, unless the
  layer is a `jbn.linen.Norm` or `jbn.nnx.Norm` that counts. It is also read as 0 for a layer of
  PyTorch that has no count.
- Equinox's mode "ema" normalizes training batches by the running statistics. jbn normalizes them
  by the statistics of the batch.
- Axes, axis names and output dtypes belong to the model and are not converted.
"""

from jbn.convert._layers import Foreign as Foreign
from jbn.convert._layers import Layer as Layer
from jbn.convert._layers import prefixes as prefixes
from jbn.convert._layers import read as read
from jbn.convert._layers import read_all as read_all
from jbn.convert._layers import write as write
from jbn.convert._layouts import LayoutName as LayoutName
