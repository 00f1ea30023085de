"""What an evaluation's passes take on an accelerator, and its NumPy part on that machine's cores.

`python -m benchmarks.passes`, with Keras on JAX (`pip install 'jax[cuda13]'`): speeds of the
hardware and of Keras's networks, without what pdutils does around them.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from statistics import median
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import numpy as np

NETWORKS = ("ResNet50", "MobileNetV2")
BATCHES = (1, 32, 128)
STEPS = ("PD 200", "PD 1500", "WD", "PD 200 + WD")
CALLS = 30


def network_passes(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Compile a network of random weights: probabilities, and the gradient of the loss by image."""
    import jax
    import jax.numpy as jnp
    import keras

    model = getattr(keras.applications, name)(weights=None)
    fixed = [[v.value for v in model.trainable_variables]]
    fixed += [[v.value for v in model.non_trainable_variables]]

    def forward(images: Any, fixed: Any) -> Any:
        return model.stateless_call(*fixed, images, training=False)[0]

    def loss(images: Any, fixed: Any) -> Any:
        return -jnp.log(forward(images, fixed)[:, 0] + 1e-9).sum()

    return partial(jax.jit(forward), fixed=fixed), partial(jax.jit(jax.grad(loss)), fixed=fixed)


def host_step(step: str) -> float:
    """Give the seconds that a step takes in this process for an image of 224 x 224."""
    from pdutils.deflection import pixel_deflection
    from pdutils.denoising import denoise

    noise = np.random.default_rng(0).uniform(100, 151, (16, 224, 224, 3)).astype(np.float32)
    count = int(step.split()[1]) if step.startswith("PD") else 0

    def run() -> None:
        deflected = pixel_deflection(noise, count, rng=0) if count else noise
        if step.endswith("WD"):
            denoise(deflected)

    return median(seconds_of(run)) / len(noise)


def seconds_of(function: Callable[..., Any], *arguments: Any) -> list[float]:
    """Time a function, after two calls that warm it up."""
    found = []
    for _ in range(2 + CALLS):
        start = time.perf_counter()
        function(*arguments)
        found.append(time.perf_counter() - start)
    return found[2:]


def main() -> None:
    """Print images a second, median and range over the calls, then milliseconds on the cores."""
    import jax

    print(jax.devices()[0].device_kind, f"jax {jax.__version__}, batches go there and back")
    noise = np.random.default_rng(0).uniform(-1, 1, (max(BATCHES), 224, 224, 3)).astype(np.float32)
    for name in NETWORKS:
        passes = dict(zip(("forward", "gradient"), network_passes(name), strict=True))
        for precision in ("default", "highest"):
            for batch in BATCHES if precision == "default" else (32,):
                for what, function in passes.items():
                    with jax.default_matmul_precision(precision):
                        taken = seconds_of(lambda f, n: np.asarray(f(noise[:n])), function, batch)
                    middle, low, high = (batch / t for t in (median(taken), max(taken), min(taken)))
                    print(
                        name, precision, batch, what, f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"
                    )
    cores = os.cpu_count() or 1
    for step in STEPS:
        alone = host_step(step)
        with get_context("spawn").Pool(cores) as pool:
            together = median(pool.map(host_step, [step] * cores, chunksize=1))
        print(f"{step}: {1e3 * alone:.2f} ms alone, {1e3 * together:.2f} ms each of {cores}")


if __name__ == "__main__":
    main()
