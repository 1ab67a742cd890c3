"""Reads and writes the batch norm layers of other libraries, as dictionaries of arrays.

    from jbn import convert
    layer = convert.read("torch", model.state_dict(), prefix="bn1.", momentum=0.1, eps=1e-5)
    y = jbn.batch_norm(axis=1, **layer.options).infer(layer.params, layer.state, x)
    arrays, arguments = convert.write("flax", layer)

Whole models, where `rename` is yours, from "layer1.0.bn1." to "layer1_0/bn1":

    layers = convert.read_all("torch", model.state_dict())
    layers = {rename(prefix): layer for prefix, layer in layers.items()}
    variables = jbn.linen.load_norms(variables, layers)  # or jbn.nnx.load_norms(model, layers)

and back:

    for path, layer in convert.read_all("flax", variables).items():
        arrays |= convert.write("torch", layer, prefix=path.replace("/", ".")).arrays

No other library is imported. These are the dictionaries; keys of nested ones are joined by "/":

    torch           model.state_dict()
    flax            Linen: variables, or those of one layer from both collections
                    NNX: nnx.state(model), or nnx.to_pure_dict of it
    haiku           params | state
    keras           {weight.path: weight for weight in model.weights}
    equinox_batch   {"weight": bn.weight, "bias": bn.bias,
                    "batch_state_index": state.get(bn.batch_state_index),
                    "batch_counter": state.get(bn.batch_counter)}
                    and back by state.set, the counter as an int
    equinox_ema     the same with "ema_state_index" and "ema_first_time_index"

Inference gives the same, unless the layer has seen no batch: Haiku's and Equinox's "ema" statistics
are then placeholders, which are read as jbn's initial statistics. Training continues as in the
other library, within these limits:

- The values of a running variance do not change. Only PyTorch continues to average the unbiased
  variance.
- Haiku and Equinox's "batch" always correct the bias of their averages, as `corrected_decay` does.
  For them, a constant decay is written with so many updates that nothing is left to correct. For
  the others, a corrected decay is written as its limit.
- Flax, Keras and Equinox's "ema" do not count updates: their count is read as 0, unless it is a
  `jbn.linen.Norm` or `jbn.nnx.Norm` that counts. So is that of PyTorch's layers that lack it.
- Equinox's "ema" normalizes training batches by its running statistics, jbn by the batch's.
- Axes, axis names and output dtypes belong to the model and are not converted.
"""

from jbn.convert._layers import Foreign as Foreign
from jbn.convert._layers import Layer as Layer
from jbn.convert._layers import prefixes as prefixes
from jbn.convert._layers import read as read
from jbn.convert._layers import read_all as read_all
from jbn.convert._layers import write as write
from jbn.convert._layouts import LayoutName as LayoutName
