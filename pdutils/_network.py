"""A Keras model taken apart: what feeds its logits, its last feature map, its gradients.

The graph is followed backwards from the model's output, tensor by tensor, through the very call
that made each: names, the order of the layers and other calls of a shared layer play no part. What
is recognised is recognised by its type, a subclass is not; models inside the model are entered.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Before Keras is: it says what is amiss with Keras's settings.
from pdutils import _passes  # isort: split

import keras
from keras import layers, ops
from keras.src.models.functional import Functional
from keras.src.ops.nn import Sigmoid, Softmax

#: From raw images (and labels) to a tuple of tensors or arrays, compiled once.
Step = _passes.Step

#: A symbolic tensor of Keras.
Symbol = Any

#: The least probability that has a logarithm, in a model that never shows its logits.
LEAST = 1e-12

_LINEAR = (None, keras.activations.linear)
_SOFTMAX = (keras.activations.softmax, ops.softmax, _passes.nn().softmax)
#: These give each class its number whatever the others have: such numbers are no probabilities,
#: even where they happen to add up to 1.
_CLASS_BY_CLASS = (
    *(getattr(keras.activations, name) for name in ("sigmoid", "hard_sigmoid", "tanh", "relu")),
    ops.sigmoid,
    _passes.nn().sigmoid,
)


class Tail(NamedTuple):
    """What the logits of a model follow from.

    `tensor` holds the logits, perhaps with more axes of length 1 than (N, K); or it is what
    `dense`, whose activation is the softmax, makes them of; or the output, of unknown making.
    """

    kind: Literal["logits", "dense", "output"]
    tensor: Symbol
    dense: Any = None


class Graph(NamedTuple):
    """Tensors of one graph, all of which follow from its image.

    `last` is the operation that gives the output, `features` the last feature map (N, h, w, C) in
    reach, `head` the dense layer, or 1 x 1 convolution, from the map's averages to the logits.
    """

    image: Symbol
    output: Symbol
    tail: Tail
    last: Any
    features: Symbol | None
    head: Any | None


class Network:
    """A Keras classifier taken apart, without a copy of its weights.

    What it predicts is the model's own output, its softmax where the model gives logits. Gradients
    need the logits, since that of a softmax dies where a probability rounds to 1, and maps need the
    last feature map: both are looked for in the model's graph. On two images of noise it is then
    compared, to 1e-4 (0.05 in 16 bits), that the graph gives what the model gives when it is
    called, and that the softmax of the logits is the output. A model that fails, or whose call or
    end is not understood, is a black box: its logits are the logarithms of its output, cut off at
    1e-12, and its feature map is out of reach if its call is not its graph's. By default a model
    gives logits if it ends in a dense layer without an activation and its outputs for the noise are
    no probabilities.
    """

    def __init__(
        self, model: Any, preprocess: Step, size: tuple[int, int], *, logits: bool | None = None
    ) -> None:
        self.model = model
        self.preprocess = preprocess
        self.size = size
        self._compiled: dict[str, Step] = {}
        #: A `Graph`, or None for a model whose call is not its graph's.
        self.graph: Any = _taken_apart(model) if _does_as_its_graph(model) else None
        dtypes = [variable.dtype for variable in model.variables]
        dtypes += [layer.compute_dtype for layer in (model, *model.layers)]
        #: Whether some of the network computes in 16 bits.
        self._half = any(str(dtype) in ("float16", "bfloat16") for dtype in dtypes)
        given = self._given()
        self.gives_logits = self._decided(given, logits)
        self._compare(given)

    def step(self, name: str) -> Step:
        """Compile "predict", "features", "gradient" or "feature_gradient" of raw images once."""
        if name not in self._compiled:
            self._compiled[name] = self._compile(name)
        return self._compiled[name]

    @property
    def tail(self) -> Tail:
        """What the logits follow from in `graph`, which is to be had."""
        return Tail("logits", self.graph.output) if self.gives_logits else self.graph.tail

    @cached_property
    def head_weights(self) -> NDArray[np.float32] | None:
        """Weights (C, K) of a head of average pooling and one dense layer, seen to hold on noise.

        None for another head, and where a layer does not multiply by the kernel that it shows, as
        a quantised one.
        """
        graph = self.graph
        if graph is None or graph.head is None or graph.features is None:
            return None
        found = self._on_noise
        kernel = np.asarray(graph.head.kernel, dtype=np.float32)
        kernel = kernel.reshape(kernel.shape[-2:])
        bias = 0.0 if graph.head.bias is None else np.asarray(graph.head.bias, dtype=np.float64)
        made = _array(found["features"]).mean(axis=(1, 2)) @ kernel.astype(np.float64) + bias
        apart = np.abs(made - _array(self._logits(found["tail"]))).max()
        return kernel if apart <= (0.05 if self._half else 1e-3) * np.abs(made).max() else None

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

    @staticmethod
    def are_probabilities(rows: NDArray[Any], tolerance: float) -> bool:
        """Tell whether rows (N, K) are probabilities: none below 0, their sums near 1."""
        sums = np.asarray(rows, dtype=np.float64).sum(axis=1)
        return bool(np.min(rows) >= 0 and np.abs(sums - 1).max() <= tolerance)

    def ending(self) -> str:
        """Spell the operations between the model's last weights and its output that are no layers.

        Empty for most models; names that Keras makes up play no part.
        """
        words, front = [], list(self.model.outputs) if _does_as_its_graph(self.model) else []
        while front:
            operation, node = _producer(front.pop())
            if isinstance(operation, keras.Layer) and operation.weights:
                continue
            if not isinstance(operation, keras.Layer):
                constants = ", ".join(map(_spelled, node.arguments.args))
                words.append(f"{type(operation).__name__}({constants})")
            front.extend(node.input_tensors)
        return " ".join(words)

    @property
    def _raw_noise(self) -> NDArray[np.float32]:
        # A harsh image and a soft one.
        rng = np.random.default_rng(0)
        harsh = rng.uniform(0, 255, (*self.size, 3))
        soft = np.clip(rng.normal(128, 20, (*self.size, 3)), 0, 255)
        return np.stack([harsh, soft]).astype(np.float32)

    @cached_property
    def _noise(self) -> Any:
        return self.preprocess(ops.convert_to_tensor(self._raw_noise))

    def _given(self) -> NDArray[np.float64]:
        given = _array(only(_passes.once(self.model, self._noise)))
        ways = ("predict", "predict_step", "make_predict_function", "predict_on_batch")
        if any(getattr(type(self.model), way) is not getattr(keras.Model, way) for way in ways):
            predicted = _array(only(self.model.predict(self._noise, verbose=0)))
            if not self._near(predicted, given):
                raise ValueError(
                    f"{self.model.name}: its predict gives something else than calling it, on two "
                    "images of noise; expected a model whose call is its prediction"
                )
        return given

    def _decided(self, given: NDArray[np.float64], logits: bool | None) -> bool:
        graph: Graph | None = self.graph
        if graph and graph.tail.kind != "output" and not logits:
            return False
        class_by_class = graph is not None and (
            type(graph.last) is Sigmoid
            or _applies(graph.last, _CLASS_BY_CLASS, layers.Dense, layers.Activation)
        )
        # A sigmoid that is sure of one class adds up to 1 for the noise, and not for a picture.
        if not class_by_class and self.are_probabilities(given, 0.05 if self._half else 1e-3):
            if logits:
                raise ValueError(
                    f"{self.model.name}: logits=True, but its outputs for noise are probabilities"
                )
            return False
        if logits is None:
            logits = graph is not None and _applies(graph.last, _LINEAR, layers.Dense)
        if not logits:
            last = graph.last if graph else self.model
            activation = getattr(getattr(last, "activation", None), "__name__", None)
            sums = f"they add up to {given.sum(axis=1)[0]:.3g}, the least is {given.min():.3g}"
            raise ValueError(
                "expected a model that ends in a softmax or in logits, got one that ends in "
                f"{type(last).__name__}{f' with {activation}' if activation else ''} and whose "
                "outputs are no probabilities: "
                f"{'each class has its own' if class_by_class else f'for noise {sums}'}; "
                "if they are logits, say Classifier(model, logits=True)"
            )
        return True

    def _compare(self, given: NDArray[np.float64]) -> None:
        if self.graph is None:
            return
        found = self._on_noise
        # A model that draws, such as a defended one, does not even agree with itself.
        if not self._near(_array(found["output"]), given) and self._near(self._given(), given):
            self.graph = None
            return
        softmax = _array(ops.softmax(self._logits(found["tail"])))
        if not self._near(softmax, _array(self.probabilities(found["output"]))):
            self.graph = self.graph._replace(tail=Tail("output", self.graph.output), head=None)

    @cached_property
    def _on_noise(self) -> Any:
        # All that is compared, in one pass: to compile it takes long.
        features = {} if self.graph.features is None else {"features": self.graph.features}
        parts = self.parts(output=self.graph.output, tail=self.tail.tensor, **features)
        return _passes.once(parts, self._noise)

    def _near(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
        tolerance = 0.05 if self._half else 1e-4
        return np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)

    def _run(self) -> Step:
        """Make the function from raw images to logits and probabilities."""
        graph = self.graph
        inner = graph and self.parts(output=graph.output, tail=self.tail.tensor)

        def run(images: Any) -> tuple[Any, Any]:
            scaled = self.preprocess(images)
            if inner is None:
                output = only(self.model(scaled, training=False))
                return output if self.gives_logits else _log(output), self.probabilities(output)
            found = inner(scaled, training=False)
            return self._logits(found["tail"]), self.probabilities(found["output"])

        return run

    def _logits(self, tail: Any) -> Any:
        kind, dense = self.tail.kind, self.tail.dense
        if kind == "output":
            return _log(tail)
        tail = ops.cast(tail, "float32")
        if kind == "logits":
            return ops.reshape(tail, [-1, int(self.model.output_shape[-1])])
        product = ops.matmul(tail, ops.cast(dense.kernel, "float32"))
        return product if dense.bias is None else product + ops.cast(dense.bias, "float32")

    def _compile(self, name: str) -> Step:
        made, labelled = getattr(self, f"_{name}")(), "gradient" in name
        step = _passes.compiled(made, self.size, labelled=labelled)
        return self._not_flat(step) if labelled and _passes.BACKEND == "jax" else step

    def _not_flat(self, step: Step) -> Step:
        """Refuse a gradient where there is none: JAX gives zeros, TensorFlow None."""

        def checked(images: Any, labels: Any) -> Any:
            found = step(images, labels)
            if all(part.any() for part in found):
                return found
            # A network that is very sure has zeros too, though not on noise.
            if not all(part.any() for part in step(self._raw_noise, np.zeros(2, dtype=np.int64))):
                self._there(None, "pixels, or the feature map")
            return found

        return checked

    def _predict(self) -> Step:
        run = self._run()
        return lambda images: run(images)[1:]

    def _features(self) -> Step:
        inner = self.parts(features=self.feature_map(), output=self.graph.output)

        def features(images: Any) -> tuple[Any, Any]:
            found = inner(self.preprocess(images), training=False)
            return found["features"], self.probabilities(found["output"])

        return features

    def _gradient(self) -> Step:
        """Make the function to the gradients of the losses by the pixels, and probabilities."""
        run = self._run()

        def gradient(images: Any, labels: Any) -> tuple[Any, Any]:
            def losses(images: Any) -> tuple[Any, Any]:
                logits, probabilities = run(images)
                return _passes.cross_entropy(labels, logits), probabilities

            slope, probabilities = _passes.gradient(losses, images)
            return self._there(slope, "pixels"), probabilities

        return gradient

    def _feature_gradient(self) -> Step:
        """Make the function to feature maps, and the gradients of classes' logits by them."""
        parts = {"features": self.feature_map(), "tail": self.tail.tensor}
        whole = front = self.parts(**parts)
        back = None
        if _passes.BACKEND == "jax":
            front, back = self.parts(features=parts["features"]), self._back()

        def feature_gradient(images: Any, labels: Any) -> tuple[Any, Any]:
            scaled = self.preprocess(images)

            def chosen(tail: Any) -> Any:
                return ops.take_along_axis(self._logits(tail), labels[:, None], axis=1)

            def through(scaled: Any) -> tuple[Any, Any]:
                found = whole(scaled, training=False)
                return chosen(found["tail"]), found["features"]

            if back is None:
                slope, features = _passes.gradient_within(through, scaled)
            else:
                features = front(scaled, training=False)["features"]
                slope, _ = _passes.gradient(
                    lambda x: (chosen(back(x, training=False)), None), features
                )
            return features, self._there(slope, "feature map")

        return feature_gradient

    def _back(self) -> Any:
        """Make the model from the feature map to the tail, which JAX needs and TensorFlow not."""
        try:
            return keras.Model(self.graph.features, self.tail.tensor)
        except ValueError as error:
            raise ValueError(
                f"{self.model.name}: its feature map lies inside of a model that it calls, whose "
                "gradient is to be had on TensorFlow alone; Keras works on JAX"
            ) from error

    def _there(self, slope: Any, by: str) -> Any:
        if slope is None:
            raise ValueError(
                f"{self.model.name}: its output has no gradient by its {by}: something between "
                "them, such as rounding to whole numbers, has none"
            )
        return slope


def only(outputs: Any) -> Any:
    """Give what a model of one output gives, taken out of a list or a dictionary of one."""
    return keras.tree.flatten(outputs)[0]


def _array(tensor: Any) -> NDArray[np.float64]:
    return np.asarray(ops.convert_to_numpy(ops.cast(tensor, "float32")), dtype=np.float64)


def _log(probabilities: Any) -> Any:
    # The nearest to logits, of probabilities; half precision would turn the floor into 0.
    return ops.log(ops.maximum(ops.cast(probabilities, "float32"), LEAST))


# --- where in the graph the parts are


def _taken_apart(model: Any) -> Graph:
    image, output = model.inputs[0], model.outputs[0]
    operation, node = _producer(output)
    if _is_plain_model(operation, node):
        graph = _ending_in_a_model(image, operation, node.input_tensors[0])
    else:
        tail = _tail(output)
        last, _ = _producer(_behind(output))
        exposed, features = _exposed({"output": output, "tail": tail.tensor}, tail.tensor)
        # Of a dense layer without an activation it is not known yet whether it gives logits.
        is_linear = tail.kind == "output" and _applies(last, _LINEAR, layers.Dense)
        head = _head(Tail("logits", output) if is_linear else tail)
        tail = tail._replace(tensor=exposed["tail"])
        graph = Graph(image, exposed["output"], tail, last, features, head)
    return graph._replace(features=None) if graph.features is image else graph


def _ending_in_a_model(image: Symbol, model: Any, fed: Symbol) -> Graph:
    # The model is called with all its parts for outputs.
    inner = _taken_apart(model)
    wanted = {"output": inner.output, "tail": inner.tail.tensor}
    if inner.features is not None:
        wanted["features"] = inner.features
    exposed = keras.Model(inner.image, wanted, name=f"{model.name}_in_parts")(fed)
    features = exposed.pop("features", None)
    if features is None:
        exposed, features = _exposed(exposed, fed)
    tail = inner.tail._replace(tensor=exposed["tail"])
    return inner._replace(image=image, output=exposed["output"], tail=tail, features=features)


def _exposed(outputs: dict[str, Symbol], start: Symbol) -> tuple[dict[str, Symbol], Symbol | None]:
    # A tensor inside a model is not one of the graph around it. So the model is called once more,
    # with the map for a second output, and what follows it is made to follow from that call.
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
    # Keras cuts a graph in the middle only if its ends are different tensors.
    passed_on = front["passed on"]
    names = {id(tensor): name for name, tensor in outputs.items() if tensor is not inside}
    ends = {name: outputs[name] for name in names.values()}
    try:
        found = keras.Model(inside, ends, name="after")(passed_on) if ends else {}
    except ValueError:
        # Another way leads around the model that holds the map.
        return outputs, None
    return {
        name: passed_on if tensor is inside else found[names[id(tensor)]]
        for name, tensor in outputs.items()
    }, front["features"]


def _last_map(start: Symbol) -> tuple[Symbol | None, Symbol | None]:
    # With the map the output of the model which holds it, or None if it is in the open.
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
    # The fewest steps away first.
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
    tensor = _behind(output)
    operation, node = _producer(tensor)
    is_layer = type(operation) in (layers.Softmax, Softmax)
    along_classes = is_layer and operation.axis in (-1, len(tensor.shape) - 1)
    if along_classes or _applies(operation, _SOFTMAX, layers.Activation):
        return Tail("logits", node.input_tensors[0])
    if _applies(operation, _SOFTMAX, layers.Dense):
        return Tail("dense", node.input_tensors[0], operation)
    return Tail("output", output)


def _head(tail: Tail) -> Any | None:
    layer, tensor = tail.dense, tail.tensor
    if tail.kind == "logits":
        layer, node = _producer(_behind(tensor))
        if _applies(layer, _LINEAR, layers.Conv2D):
            plain = layer.data_format == "channels_last" and layer.groups == 1
            if not plain or tuple(layer.kernel_size) != (1, 1):
                return None
        elif not _applies(layer, _LINEAR, layers.Dense):
            return None
        tensor = node.input_tensors[0]
    return layer if layer is not None and _is_average_of_a_map(tensor) else None


def _is_average_of_a_map(tensor: Symbol) -> bool:
    operation, node = _producer(_behind(tensor))
    if _is_plain_model(operation, node):
        return _is_average_of_a_map(operation.outputs[0])
    if type(operation) is not layers.GlobalAveragePooling2D:
        return False
    return bool(operation.data_format == "channels_last") and _is_map(node.input_tensors[0])


def _behind(tensor: Symbol) -> Symbol:
    # Past what passes a row of values on as it is.
    operation, node = _producer(tensor)
    if type(operation) is layers.Dropout:
        passes_on = not _draws(node)
    elif type(operation) in (layers.Flatten, layers.Reshape):
        # A row of values an image is (N, K) or (N, 1, 1, K).
        ends = (node.input_tensors[0], node.outputs[0])
        passes_on = all(set(end.shape[1:-1]) <= {1} for end in ends)
    else:
        passes_on = _applies(operation, _LINEAR, layers.Activation)
        passes_on |= type(operation) is layers.Identity
    return _behind(node.input_tensors[0]) if passes_on else tensor


def _is_plain_model(operation: Any, node: Any) -> bool:
    if not isinstance(operation, keras.Model) or _draws(node):
        return False
    return _does_as_its_graph(operation) and len(node.input_tensors) == 1


def _does_as_its_graph(model: Any) -> bool:
    # From one tensor to one; not if it is not built, or is of a subclass with a `call` of its own.
    if not isinstance(model, (Functional, keras.Sequential)) or not model.built:
        return False
    own_call = type(model).call not in (Functional.call, keras.Sequential.call)
    return not own_call and len(model.inputs or ()) == 1 and len(model.outputs or ()) == 1


def _spelled(value: Any) -> str:
    # Tensors of the graph alike, others by their values.
    def spell(leaf: Any) -> Any:
        return "tensor" if isinstance(leaf, keras.KerasTensor) else np.asarray(leaf).tolist()

    return str([spell(leaf) for leaf in keras.tree.flatten(value)])


def _draws(node: Any) -> bool:
    # Called as in training, come what may.
    return bool(node.arguments.kwargs.get("training"))


def _applies(operation: Any, functions: Sequence[Any], *kinds: type) -> bool:
    # Of one of these very types, with one of these activations.
    return type(operation) in kinds and any(operation.activation is f for f in functions)


def _producer(tensor: Symbol) -> tuple[Any, Any]:
    # The operation that made the tensor and the call that it was, or None twice.
    operation, node_index, _ = tensor._keras_history
    return (None, None) if operation is None else (operation, operation._inbound_nodes[node_index])
