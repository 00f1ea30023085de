"""A Keras model taken apart: what feeds its logits, its last feature map, its gradients.

The graph is followed backwards from the model's output, tensor by tensor, through the very call
that made each: names, the order of the layers and other calls of a shared layer play no part. What
is recognised is recognised by its type, a subclass is not; models inside the model are entered.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pdutils._utils import load_tensorflow

load_tensorflow()
import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from keras import ops  # noqa: E402
from keras.src.models.functional import Functional  # noqa: E402
from keras.src.ops.nn import Sigmoid, Softmax  # noqa: E402

#: From raw images (and labels) to a tuple of tensors, compiled once.
Step = Callable[..., Any]

#: How far apart two probabilities may lie that should be the same: in full precision, and where
#: a network computes in 16 bits.
_TOLERANCE, _HALF_TOLERANCE = 1e-4, 0.05

#: How far from 1 the probabilities of an image may add up to.
_SUM_TOLERANCE, _HALF_SUM_TOLERANCE = 1e-3, 0.05

_HALF = ("float16", "bfloat16")

#: The least probability that has a logarithm, in a model that never shows its logits.
LEAST = 1e-12

#: A symbolic tensor of Keras.
Symbol = Any

#: What the logits follow from: themselves, what a dense layer makes them of, or the output alone.
Kind = Literal["logits", "dense", "output"]


class Tail(NamedTuple):
    """What the logits of a model follow from.

    `tensor` holds the logits, perhaps with more axes of length 1 than (N, K); or it is what
    `dense`, whose activation is the softmax, makes them of; or the output, of unknown making.
    """

    kind: Kind
    tensor: Symbol
    dense: Any = None


class Graph(NamedTuple):
    """Tensors of one graph, all of which follow from its image."""

    image: Symbol
    output: Symbol
    tail: Tail
    #: What gives the output, in words, and whether it is dense without an activation, as of logits.
    ending: str
    ends_in_dense: bool
    #: Whether it is known to give each class its number whatever the others have, as a sigmoid
    #: does: such numbers are no probabilities, even where they happen to add up to 1.
    class_by_class: bool
    #: The last feature map (N, h, w, C), if there is one in reach.
    features: Symbol | None
    #: The dense layer, or 1 x 1 convolution, from an average-pooled feature map to the logits.
    head: Any | None


class Network:
    """A Keras classifier taken apart, without a copy of its weights.

    What it predicts is the model's own output, its softmax where the model gives logits. Gradients
    need the logits, since that of a softmax dies where a probability rounds to 1, and maps need the
    last feature map: both are looked for in the model's graph. On two images
    of noise it is then compared, to 1e-4 (0.05 in 16 bits), that the graph gives what the model
    gives when it is called, and that the softmax of the logits is the output. A model that fails,
    or whose call or end is not understood, is a black box: its probabilities are its output, its
    logits are their logarithms, cut off at 1e-12, and its feature map is out of reach if its call
    is not its graph's.

    `preprocess` goes from images in [0, 255] of `size` to what `model` takes. By default a model
    gives logits if it ends in a dense layer without an activation and its outputs for the noise are
    no probabilities.
    """

    def __init__(
        self,
        model: Any,
        preprocess: Callable[[Any], Any],
        size: tuple[int, int],
        *,
        logits: bool | None = None,
    ) -> None:
        self.model = model
        self.preprocess = preprocess
        self.size = size
        self.classes = int(model.output_shape[-1])
        self._compiled: dict[str, Step] = {}
        #: A `Graph`, or None for a model whose call is not its graph's.
        self.graph: Any = take_apart(model) if does_as_its_graph(model) else None
        given = self._given()
        self.gives_logits = self._decided(given, logits)
        self._compare(given)

    def step(self, name: str) -> Step:
        """Give a function of raw images (and labels, for the gradients), compiled at its first use.

        The names: "predict", "features", "gradient", "feature_gradient".
        """
        if name not in self._compiled:
            make = self._gradient if "gradient" in name else self._values
            self._compiled[name] = make(with_features=name.startswith("feature"))
        return self._compiled[name]

    @property
    def tail(self) -> Tail:
        """What the logits follow from in `graph`, which is to be had."""
        return Tail("logits", self.graph.output) if self.gives_logits else self.graph.tail

    def head_weights(self) -> NDArray[np.float32] | None:
        """Give the weights (C, K) of a head of average pooling and one dense layer, else None."""
        if self._head is None:
            return None
        kernel = np.asarray(self._head.kernel, dtype=np.float32)
        return kernel.reshape(kernel.shape[-2:])

    def feature_map(self) -> Any:
        """Give the model's last feature map, a symbolic tensor (N, h, w, C) of `graph`."""
        if self.graph is None or self.graph.features is None:
            raise ValueError(
                f"{self.model.name} has no feature map (N, h, w, C) in reach that its output "
                "follows from, so it has no activation map"
            )
        return self.graph.features

    def parts(self, **outputs: Any) -> Any:
        """Make a model from preprocessed images to a dictionary of tensors of `graph`."""
        return keras.Model(self.graph.image, outputs, name="network")

    def probabilities(self, outputs: Any) -> Any:
        """Give the float32 probabilities that outputs of the model stand for."""
        outputs = ops.cast(outputs, "float32")
        return ops.softmax(outputs) if self.gives_logits else outputs

    @cached_property
    def _noise(self) -> Any:
        """Two images of noise, a harsh one and a soft one, as the model takes them."""
        rng = np.random.default_rng(0)
        harsh = rng.uniform(0, 255, (*self.size, 3))
        soft = np.clip(rng.normal(128, 20, (*self.size, 3)), 0, 255)
        return self.preprocess(tf.constant(np.stack([harsh, soft]), dtype=tf.float32))

    @cached_property
    def _half(self) -> bool:
        """Whether some of the network computes in 16 bits."""
        model = self.model
        dtypes = [variable.dtype for variable in model.variables]
        dtypes += [layer.compute_dtype for layer in (model, *model.layers)]
        return any(str(dtype) in _HALF for dtype in dtypes)

    def _given(self) -> NDArray[np.float64]:
        """Give what the model gives for the noise when it is called."""
        given = _array(only(self.model(self._noise, training=False)))
        if _predicts_otherwise(self.model):
            predicted = _array(only(self.model.predict(self._noise, verbose=0)))
            if not self._near(predicted, given):
                raise ValueError(
                    f"{self.model.name}: its predict gives something else than calling it, on two "
                    "images of noise; expected a model whose call is its prediction"
                )
        return given

    def _decided(self, given: NDArray[np.float64], logits: bool | None) -> bool:
        """Decide whether the model gives logits, and refuse it if it gives neither."""
        if self.graph is not None and self.graph.tail.kind != "output" and not logits:
            return False
        total = _HALF_SUM_TOLERANCE if self._half else _SUM_TOLERANCE
        class_by_class = self.graph is not None and self.graph.class_by_class
        # A sigmoid that is sure of one class adds up to 1 for the noise, and not for a picture.
        rows_are_probabilities = not class_by_class and are_probabilities(given, total)
        if rows_are_probabilities and logits:
            raise ValueError(
                f"{self.model.name}: logits=True, but its outputs for noise are probabilities"
            )
        if not rows_are_probabilities and logits is None:
            logits = self.graph is not None and self.graph.ends_in_dense
        if not rows_are_probabilities and not logits:
            ending = type(self.model).__name__ if self.graph is None else self.graph.ending
            sums = f"they add up to {given.sum(axis=1)[0]:.3g}, the least is {given.min():.3g}"
            reason = "each class has its own" if class_by_class else f"for noise {sums}"
            raise ValueError(
                "expected a model that ends in a softmax or in logits, got one that ends in "
                f"{ending} and whose outputs are no probabilities: {reason}; "
                "if they are logits, say Classifier(model, logits=True)"
            )
        return bool(logits)

    def _compare(self, given: NDArray[np.float64]) -> None:
        """Compare the parts with the model, and let go of those that do not agree with it."""
        if self.graph is None:
            return
        found = self.parts(output=self.graph.output, tail=self.tail.tensor)(
            self._noise, training=False
        )
        output = _array(found["output"])
        # A model that draws, such as a defended one, does not even agree with itself.
        if not self._near(output, given) and self._near(self._given(), given):
            self.graph = None
            return
        softmax = _array(tf.nn.softmax(self._logits(found["tail"])))
        if not self._near(softmax, _array(self.probabilities(found["output"]))):
            self.graph = self.graph._replace(tail=Tail("output", self.graph.output), head=None)

    @cached_property
    def _head(self) -> Any | None:
        """The layer that makes logits of an average-pooled map, if that is seen to hold on noise.

        A quantised layer, say, does not multiply by the kernel that it shows.
        """
        graph = self.graph
        if graph is None or graph.head is None or graph.features is None:
            return None
        tail = self.tail
        found = self.parts(features=graph.features, tail=tail.tensor)(self._noise, training=False)
        logits = _array(self._logits(found["tail"]))
        kernel = np.asarray(graph.head.kernel, dtype=np.float64)
        bias = 0.0 if graph.head.bias is None else np.asarray(graph.head.bias, dtype=np.float64)
        pooled = _array(found["features"]).mean(axis=(1, 2))
        made = pooled @ kernel.reshape(kernel.shape[-2:]) + bias
        share = _HALF_TOLERANCE if self._half else 1e-3
        return graph.head if np.abs(made - logits).max() <= share * np.abs(made).max() else None

    def _near(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
        tolerance = _HALF_TOLERANCE if self._half else _TOLERANCE
        return np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)

    def _run(self, *, with_features: bool) -> Callable[[Any], dict[str, Any]]:
        """Make the function from raw images to `logits`, `probabilities` and maybe `features`."""
        tensors = {"features": self.feature_map()} if with_features else {}
        if self.graph is None:
            return self._run_black_box
        inner = self.parts(output=self.graph.output, tail=self.tail.tensor, **tensors)

        def run(images: Any) -> dict[str, Any]:
            found = inner(self.preprocess(images), training=False)
            logits = self._logits(found.pop("tail"))
            return {
                "logits": logits,
                "probabilities": self.probabilities(found.pop("output")),
                **found,
            }

        return run

    def _run_black_box(self, images: Any) -> dict[str, Any]:
        output = only(self.model(self.preprocess(images), training=False))
        logits = output if self.gives_logits else _log(output)
        return {"logits": logits, "probabilities": self.probabilities(output)}

    def _logits(self, tail: Any) -> Any:
        # The gradient of log(softmax) dies where a probability rounds to 1; that of logits lives.
        kind, dense = self.tail.kind, self.tail.dense
        if kind == "output":
            return _log(tail)
        tail = tf.cast(tail, tf.float32)
        if kind == "logits":
            return tf.reshape(tail, [-1, self.classes])
        product = tf.matmul(tail, tf.cast(dense.kernel, tf.float32))
        return product if dense.bias is None else product + tf.cast(dense.bias, tf.float32)

    def _values(self, *, with_features: bool) -> Step:
        run = self._run(with_features=with_features)

        def values(images: Any) -> Any:
            found = run(images)
            probabilities = found["probabilities"]
            return (found["features"], probabilities) if with_features else (probabilities,)

        return self._compile(values)

    def _gradient(self, *, with_features: bool) -> Step:
        """Make the gradient of a class's logit by the feature map, or of its loss by the pixels."""
        run = self._run(with_features=with_features)

        def gradient(images: Any, labels: Any) -> Any:
            with tf.GradientTape() as tape:
                # Watching the pixels puts what follows from them, the feature map too, on the tape.
                tape.watch(images)
                found = run(images)
                logits = found["logits"]
                chosen = tf.gather(logits, labels, batch_dims=1)
                loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            if with_features:
                slope = self._defined(tape.gradient(chosen, found["features"]), "its feature map")
                return found["features"], slope
            return self._defined(tape.gradient(loss, images), "its pixels"), found["probabilities"]

        return self._compile(gradient, with_labels=True)

    def _defined(self, gradient: Any, by: str) -> Any:
        if gradient is None:
            raise ValueError(
                f"{self.model.name}: its output has no gradient by {by}: something between them, "
                "such as rounding to whole numbers, has none"
            )
        return gradient

    def _compile(self, function: Step, *, with_labels: bool = False) -> Step:
        images = tf.TensorSpec([None, *self.size, 3], tf.float32)
        labels = [tf.TensorSpec([None], tf.int64)] if with_labels else []
        compiled: Step = tf.function(function, input_signature=[images, *labels], autograph=False)
        return compiled


def are_probabilities(rows: NDArray[Any], tolerance: float) -> bool:
    """Tell whether rows (N, K) are probabilities: none below 0, their sums near 1."""
    sums = np.asarray(rows, dtype=np.float64).sum(axis=1)
    return bool(np.min(rows) >= 0 and np.abs(sums - 1).max() <= tolerance)


def only(outputs: Any) -> Any:
    """Give what a model of one output gives, taken out of a list or a dictionary of one."""
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    return outputs[0] if isinstance(outputs, (list, tuple)) else outputs


def _array(tensor: Any) -> NDArray[np.float64]:
    return np.asarray(ops.convert_to_numpy(ops.cast(tensor, "float32")), dtype=np.float64)


def _log(probabilities: Any) -> Any:
    """Give the nearest substitute for logits, where there are only probabilities."""
    # Half precision would turn the floor into 0.
    return tf.math.log(tf.maximum(tf.cast(probabilities, tf.float32), LEAST))


def _predicts_otherwise(model: Any) -> bool:
    """Tell whether a model predicts in a way of its own, besides its call."""
    ways = ("predict", "predict_step", "make_predict_function", "predict_on_batch")
    return any(getattr(type(model), way) is not getattr(keras.Model, way) for way in ways)


# --- where in the graph the parts are


def take_apart(model: Any) -> Graph:
    """Find the parts of a functional or Sequential model of one image and one output."""
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
    found = keras.Model(inner.image, wanted, name=f"{model.name}_in_parts")(fed)
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
    front = keras.Model(operation.inputs[0], wanted, name=f"{operation.name}_with_features")(fed)
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
    found = keras.Model(start, ends, name="after")(other) if ends else {}
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
        nodes = [node for _, node in map(_producer, front) if node is not None]
        before = {id(tensor): tensor for node in nodes for tensor in node.input_tensors}
        front = [tensor for key, tensor in before.items() if key not in seen]


def _is_map(tensor: Symbol) -> bool:
    return len(tensor.shape) == 4 and 1 not in tensor.shape[1:3]


def _tail(output: Symbol) -> Tail:
    """Find what the logits follow from, before the softmax that gives the output."""
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
    if not isinstance(operation, keras.Model) or _draws(node):
        return False
    return does_as_its_graph(operation) and len(node.input_tensors) == 1


def does_as_its_graph(model: Any) -> bool:
    """Tell whether a model is a graph from one tensor to one, and its call is Keras's own.

    It is not if it is not built, or is of a subclass that has a `call` of its own.
    """
    if not isinstance(model, (Functional, keras.Sequential)) or not model.built:
        return False
    own_call = type(model).call not in (Functional.call, keras.Sequential.call)
    return not own_call and len(model.inputs or ()) == 1 and len(model.outputs or ()) == 1


def ending(model: Any) -> str:
    """Spell the operations between a model's last weights and its output that are no layers.

    Empty for most models; names that Keras makes up play no part.
    """
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
    leaves = keras.tree.flatten(value)
    symbolic = [isinstance(leaf, keras.KerasTensor) for leaf in leaves]
    pairs = zip(leaves, symbolic, strict=True)
    return str(["tensor" if is_tensor else np.asarray(leaf).tolist() for leaf, is_tensor in pairs])


def _draws(node: Any) -> bool:
    """Tell whether a layer was called as in training, come what may."""
    return bool(node.arguments.kwargs.get("training"))


def _is_linear_dense(operation: Any) -> bool:
    return type(operation) is keras.layers.Dense and _is_linear(operation.activation)


def _is_linear_convolution(operation: Any) -> bool:
    if type(operation) is not keras.layers.Conv2D or not _is_linear(operation.activation):
        return False
    plain = operation.data_format == "channels_last" and operation.groups == 1
    return plain and tuple(operation.kernel_size) == (1, 1)


def _is_softmax_layer(operation: Any, output: Symbol) -> bool:
    if type(operation) is keras.layers.Activation:
        return _is_softmax(operation.activation)
    if type(operation) not in (keras.layers.Softmax, Softmax):
        return False
    return operation.axis in (-1, len(output.shape) - 1)


def _is_softmax(function: Callable[..., Any] | None) -> bool:
    known = (keras.activations.softmax, keras.ops.softmax, tf.nn.softmax)
    return any(function is softmax for softmax in known)


def _is_class_by_class(operation: Any) -> bool:
    if type(operation) is Sigmoid:
        return True
    if type(operation) not in (keras.layers.Dense, keras.layers.Activation):
        return False
    activations = keras.activations
    known = [activations.sigmoid, activations.hard_sigmoid, activations.tanh, activations.relu]
    known += [keras.ops.sigmoid, tf.nn.sigmoid]
    return any(operation.activation is function for function in known)


def _is_linear(function: Callable[..., Any] | None) -> bool:
    return function is None or function is keras.activations.linear


def _producer(tensor: Symbol) -> tuple[Any, Any]:
    """Give the operation that made a tensor and the call that it was, or None twice."""
    operation, node_index, _ = tensor._keras_history
    return (None, None) if operation is None else (operation, operation._inbound_nodes[node_index])
