"""Where in a Keras model's graph its logits, its last feature map and its head are.

The graph is followed backwards from the model's output, tensor by tensor, through the very call
that made each: names, the order of the layers and other calls of a shared layer play no part. What
is recognised is recognised by its type, a subclass is not; models inside the model are entered.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

#: A symbolic tensor of Keras.
Symbol = Any

#: What the logits follow from: themselves, what a dense layer makes them of, or the output alone.
Kind = Literal["logits", "dense", "output"]


class Tail(NamedTuple):
    """What the logits of a model follow from.

    Attributes
    ----------
    kind : {"logits", "dense", "output"}
        `tensor` holds the logits; it is what `dense` makes them of; it is the model's output, and
        nothing is known of its making.
    tensor : symbolic tensor
        Logits may have more axes of length 1 than (N, K).
    dense : keras.layers.Dense or None
        The layer that has the softmax for its activation.
    """

    kind: Kind
    tensor: Symbol
    dense: Any = None


class Graph(NamedTuple):
    """Tensors of one graph, all of which follow from its image.

    Attributes
    ----------
    image, output : symbolic tensor
        What goes in and what comes out.
    tail : Tail
        What the logits follow from.
    ending : str
        What gives the output, in words.
    ends_in_dense : bool
        Whether that is a dense layer without an activation, as logits have it.
    class_by_class : bool
        Whether it is known to give each class its number whatever the others have, as a sigmoid
        does: such numbers are no probabilities, even where they happen to add up to 1.
    features : symbolic tensor or None
        The last feature map (N, h, w, C), if there is one in reach.
    head : keras.layers.Layer or None
        The dense layer, or 1 x 1 convolution, from an average-pooled feature map to the logits.
    """

    image: Symbol
    output: Symbol
    tail: Tail
    ending: str
    ends_in_dense: bool
    class_by_class: bool
    features: Symbol | None
    head: Any | None


def take_apart(model: Any) -> Graph:
    """Find the parts of a model of one image and one output.

    Parameters
    ----------
    model : keras.Model
        Functional or Sequential.

    Returns
    -------
    Graph
    """
    image = model.inputs[0]
    graph = _taken_apart(image, model.outputs[0])
    return graph._replace(features=None) if graph.features is image else graph


def _taken_apart(image: Symbol, output: Symbol) -> Graph:
    operation, node = _producer(output)
    if _is_plain_model(operation, node):
        return _ending_in_a_model(image, operation, node.input_tensors[0])
    tail = _tail(output)
    head = _head(tail)
    last, _ = _producer(_behind(output))
    ends_in_dense = tail.kind == "output" and _is_linear_dense(last)
    if ends_in_dense:
        head = _head(Tail("logits", output))
    exposed, features = _exposed({"output": output, "tail": tail.tensor}, tail.tensor)
    return Graph(
        image,
        exposed["output"],
        tail._replace(tensor=exposed["tail"]),
        _in_words(last),
        ends_in_dense,
        _is_class_by_class(last),
        features,
        head,
    )


def _ending_in_a_model(image: Symbol, model: Any, fed: Symbol) -> Graph:
    """Take apart the model that gives the output, and call it with all its parts for outputs."""
    inner = _taken_apart(model.inputs[0], model.outputs[0])
    wanted = {"output": inner.output, "tail": inner.tail.tensor}
    if inner.features is not None and inner.features is not inner.image:
        wanted["features"] = inner.features
    found = _model(inner.image, wanted, f"{model.name}_in_parts")(fed)
    tail, features = found["tail"], found.get("features")
    exposed = {"output": found["output"], "tail": tail}
    if features is None:
        exposed, features = _exposed(exposed, fed)
    return inner._replace(
        image=image,
        output=exposed["output"],
        tail=inner.tail._replace(tensor=exposed["tail"]),
        features=features,
    )


def _exposed(outputs: dict[str, Symbol], start: Symbol) -> tuple[dict[str, Symbol], Symbol | None]:
    """Give outputs of a graph together with its last feature map, were it inside a model.

    A tensor inside a model is not one of the graph around it. So the model is called once more,
    with the map for a second output, and what follows it is made to follow from that call.
    """
    features, inside = _last_map(start)
    if features is None or inside is None:
        return outputs, features
    operation, node = _producer(inside)
    fed = node.input_tensors[0]
    if features is operation.inputs[0]:
        return outputs, fed
    inner, features = _exposed({"passed on": operation.outputs[0]}, operation.outputs[0])
    if features is None:
        return outputs, None
    wanted = {**inner, "features": features}
    front = _model(operation.inputs[0], wanted, f"{operation.name}_with_features")(fed)
    try:
        return _followed(inside, outputs, front["passed on"]), front["features"]
    except ValueError:
        # Another way leads around the model that holds the map.
        return outputs, None


def _followed(start: Symbol, outputs: dict[str, Symbol], other: Symbol) -> dict[str, Symbol]:
    """Let outputs that follow from one tensor follow from another."""
    # Keras cuts a graph in the middle only if its ends are different tensors.
    names = {id(tensor): name for name, tensor in outputs.items() if tensor is not start}
    ends = {name: outputs[name] for name in names.values()}
    found = _model(start, ends, "after")(other) if ends else {}
    return {
        name: other if tensor is start else found[names[id(tensor)]]
        for name, tensor in outputs.items()
    }


def _in_words(operation: Any) -> str:
    activation = getattr(getattr(operation, "activation", None), "__name__", None)
    return type(operation).__name__ + (f" with {activation}" if activation else "")


def _last_map(start: Symbol) -> tuple[Symbol | None, Symbol | None]:
    """Find the feature map that is the fewest steps before a tensor.

    The second that is given is the output of the model which holds the map, or None if the map is
    in the open.
    """
    for tensor in _upstream(start):
        if _is_map(tensor):
            return tensor, None
        operation, node = _producer(tensor)
        if _is_plain_model(operation, node):
            features, _ = _last_map(operation.outputs[0])
            if features is not None:
                return features, tensor
    return None, None


def _upstream(start: Symbol) -> Iterator[Symbol]:
    """Go through what a tensor follows from, the fewest steps away first."""
    seen: set[int] = set()
    front = [start]
    while front:
        yield from front
        seen.update(map(id, front))
        before = {id(tensor): tensor for after in front for tensor in _inputs(after)}
        front = [tensor for key, tensor in before.items() if key not in seen]


def _inputs(tensor: Symbol) -> list[Symbol]:
    _, node = _producer(tensor)
    return [] if node is None else list(node.input_tensors)


def _is_map(tensor: Symbol) -> bool:
    shape = tuple(tensor.shape)
    return len(shape) == 4 and shape[1] != 1 and shape[2] != 1


def _tail(output: Symbol) -> Tail:
    """Find what the logits follow from, before the softmax that gives the output."""
    import keras

    tensor = _behind(output)
    operation, node = _producer(tensor)
    if _is_softmax_layer(operation, tensor):
        return Tail("logits", node.input_tensors[0])
    if type(operation) is keras.layers.Dense and _is_softmax(operation.activation):
        return Tail("dense", node.input_tensors[0], operation)
    return Tail("output", output)


def _head(tail: Tail) -> Any | None:
    """Find the one layer between an average-pooled feature map and the logits."""
    layer, tensor = tail.dense, tail.tensor
    if tail.kind == "logits":
        layer, node = _producer(_behind(tensor))
        if not (_is_linear_dense(layer) or _is_linear_convolution(layer)):
            return None
        tensor = node.input_tensors[0]
    return layer if layer is not None and _is_average_of_a_map(tensor) else None


def _is_average_of_a_map(tensor: Symbol) -> bool:
    import keras

    operation, node = _producer(_behind(tensor))
    if _is_plain_model(operation, node):
        return _is_average_of_a_map(operation.outputs[0])
    if type(operation) is not keras.layers.GlobalAveragePooling2D:
        return False
    return bool(operation.data_format == "channels_last") and _is_map(node.input_tensors[0])


def _behind(tensor: Symbol) -> Symbol:
    """Go back past what passes a row of values on as it is."""
    operation, node = _producer(tensor)
    while _passes_on(operation, node):
        tensor = node.input_tensors[0]
        operation, node = _producer(tensor)
    return tensor


def _passes_on(operation: Any, node: Any) -> bool:
    import keras

    layers = keras.layers
    if type(operation) is layers.Activation:
        return _is_linear(operation.activation)
    if type(operation) is layers.Dropout:
        return not _draws(node)
    if type(operation) in (layers.Flatten, layers.Reshape):
        return _is_row(node.input_tensors[0]) and _is_row(node.outputs[0])
    return type(operation) is layers.Identity


def _is_row(tensor: Symbol) -> bool:
    """Tell whether a tensor has one row of values an image, (N, K) or (N, 1, 1, K)."""
    return all(length == 1 for length in tensor.shape[1:-1])


def _is_plain_model(operation: Any, node: Any) -> bool:
    """Tell whether an operation is a model that does what its graph says, no more."""
    import keras

    if not isinstance(operation, keras.Model) or _draws(node):
        return False
    return does_as_its_graph(operation) and len(node.input_tensors) == 1


def does_as_its_graph(model: Any) -> bool:
    """Tell whether a model is a graph from one tensor to one, and its call is Keras's own.

    Parameters
    ----------
    model : keras.Model
        Any.

    Returns
    -------
    bool
        False for a model that is not built, and for a subclass that has a `call` of its own.
    """
    import keras
    from keras.src.models.functional import Functional

    if not isinstance(model, (Functional, keras.Sequential)) or not model.built:
        return False
    own_call = type(model).call not in (Functional.call, keras.Sequential.call)
    return not own_call and len(model.inputs or ()) == 1 and len(model.outputs or ()) == 1


def ending(model: Any) -> str:
    """Spell the operations between a model's last weights and its output that are no layers.

    Parameters
    ----------
    model : keras.Model
        Any.

    Returns
    -------
    str
        Empty for most models; names that Keras makes up play no part.
    """
    import keras

    words, front = [], list(model.outputs) if does_as_its_graph(model) else []
    while front:
        tensor = front.pop()
        operation, node = _producer(tensor)
        if isinstance(operation, keras.Layer):
            if operation.weights:
                continue
        else:
            constants = [_spelled(value) for value in node.arguments.args]
            words.append(f"{type(operation).__name__}({', '.join(constants)})")
        front.extend(node.input_tensors)
    return " ".join(words)


def _spelled(value: Any) -> str:
    """Spell an argument of an operation: tensors of the graph alike, others by their values."""
    import keras

    leaves = keras.tree.flatten(value)
    symbolic = [isinstance(leaf, keras.KerasTensor) for leaf in leaves]
    pairs = zip(leaves, symbolic, strict=True)
    return str(["tensor" if is_tensor else np.asarray(leaf).tolist() for leaf, is_tensor in pairs])


def _draws(node: Any) -> bool:
    """Tell whether a layer was called as in training, come what may."""
    return bool(node.arguments.kwargs.get("training"))


def _is_linear_dense(operation: Any) -> bool:
    import keras

    return type(operation) is keras.layers.Dense and _is_linear(operation.activation)


def _is_linear_convolution(operation: Any) -> bool:
    import keras

    if type(operation) is not keras.layers.Conv2D or not _is_linear(operation.activation):
        return False
    plain = operation.data_format == "channels_last" and operation.groups == 1
    return plain and tuple(operation.kernel_size) == (1, 1)


def _is_softmax_layer(operation: Any, output: Symbol) -> bool:
    import keras
    from keras.src.ops.nn import Softmax

    if type(operation) is keras.layers.Activation:
        return _is_softmax(operation.activation)
    if type(operation) not in (keras.layers.Softmax, Softmax):
        return False
    return operation.axis in (-1, len(output.shape) - 1)


def _is_softmax(function: Callable[..., Any] | None) -> bool:
    import keras
    import tensorflow as tf

    known = (keras.activations.softmax, keras.ops.softmax, tf.nn.softmax)
    return any(function is softmax for softmax in known)


def _is_class_by_class(operation: Any) -> bool:
    import keras
    import tensorflow as tf
    from keras.src.ops.nn import Sigmoid

    if type(operation) is Sigmoid:
        return True
    if type(operation) not in (keras.layers.Dense, keras.layers.Activation):
        return False
    activations = keras.activations
    known = [activations.sigmoid, activations.hard_sigmoid, activations.tanh, activations.relu]
    known += [keras.ops.sigmoid, tf.nn.sigmoid]
    return any(operation.activation is function for function in known)


def _is_linear(function: Callable[..., Any] | None) -> bool:
    import keras

    return function is None or function is keras.activations.linear


def _producer(tensor: Symbol) -> tuple[Any, Any]:
    """Give the operation that made a tensor and the call that it was, or None twice."""
    operation, node_index, _ = tensor._keras_history
    return (None, None) if operation is None else (operation, operation._inbound_nodes[node_index])


def _model(image: Symbol, outputs: dict[str, Symbol], name: str) -> Any:
    import keras

    return keras.Model(image, outputs, name=name)
