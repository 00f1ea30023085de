"""Controls for the notebooks: a knob is let go, and the figure below it follows.

A function of the settings gives the figure and its numbers, by the calls that the notebook makes by
hand. Of what is moved meanwhile only the last is computed: ipywidgets keeps one message on its way.
"""

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image

from pdutils import plots
from pdutils._utils import extra
from pdutils.activation import HOT, Combine, robust_cam
from pdutils.attacks.gradient import igsm_path
from pdutils.deflection import pixel_deflection
from pdutils.demo.examples import Case, Classifier
from pdutils.denoising import Mode, SigmaScale, denoise
from pdutils.metrics import Array, correlation, linf, relative_l2

with extra("notebooks"):
    import anywidget
    import ipywidgets
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

_STATIC = Path(__file__).parent / "static"

#: One of the figures of `pdutils.plots`, and what was measured in words.
View = tuple[Figure, str]


class Sliders:
    """Controls over a figure that follows them. Show it by naming it in the last line of a cell.

    `view` makes of their values, by name, a figure and what was measured in words. `controls` are
    ipywidgets' selection widgets: to set a ``value`` is to move one. `text` is the settings and the
    numbers that are shown, after an error its sentence; `box` is the whole.
    """

    def __init__(self, view: Callable[..., View], **controls: Any) -> None:
        self.controls = controls
        self.text = ""
        self._view = view
        self._picture = b""
        self._shown = ipywidgets.HTML()
        moved = ipywidgets.HBox(list(controls.values())).add_class("pdutils-controls")
        self.box = ipywidgets.VBox([moved, self._shown, _Gone()]).add_class("pdutils-sliders")
        for control in controls.values():
            control.observe(self._follow, "value")
        self._follow()

    def _follow(self, _: object = None) -> None:
        """Show what the controls say; whatever goes wrong becomes a sentence."""
        try:
            figure, numbers = self._view(**{n: c.value for n, c in self.controls.items()})
            # `savefig` would lay the figure out and draw it twice.
            canvas: Any = FigureCanvasAgg(figure)
            canvas.draw()
            buffer = io.BytesIO()
            drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
            drawn.save(buffer, "PNG", compress_level=1)
        except Exception as error:
            self._picture, self.text = b"", f"{type(error).__name__}: {error}"
            self._shown.value = f'<p role="alert">{escape(self.text)}</p>'
            return
        said = ", ".join(f"{c.description} {c.options[c.index][0]}" for c in self.controls.values())
        self.text = f"{said}: {numbers}"
        self._picture = buffer.getvalue()
        # Picture and words arrive as one; its size is known before, so that nothing below it moves.
        address = f"data:image/png;base64,{base64.b64encode(self._picture).decode()}"
        self._shown.value = (
            f'<figure><img src="{address}" alt="{escape(str(figure.get_label()))}" '
            f'width="{drawn.width}" height="{drawn.height}">'
            f'<figcaption role="status">{escape(self.text)}</figcaption></figure>'
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Give the widget, and a still picture where no widget can be shown."""
        data = self.box._repr_mimebundle_(**kwargs)
        alt = f"Controls, a still picture. {self.text}."
        if not self._picture:
            return {**data, "text/plain": alt}
        still = {"image/png": self._picture, "text/plain": alt}
        return {**data, **still}, {"image/png": {"alt": alt}}


class _Gone(anywidget.AnyWidget):
    """Nothing to see, until the kernel is gone: then a sentence, under a picture turned grey."""

    _esm = "".join((_STATIC / f"{name}.js").read_text("utf-8") for name in ("kernel", "sliders"))
    _css = _STATIC / "sliders.css"


def attack(
    network: Classifier, case: Case, *, eps: float = 16, step: float = 0.5, iterations: int = 12
) -> Sliders:
    """Move the number of steps of the attack, from 0 to `iterations`, and with it its strength."""
    path = igsm_path(network, case.clean, case.label, eps=eps, step=step, iterations=iterations)
    # One scale for all steps, so that they can be compared.
    factor = 127 / max(float(np.abs(path[-1] - case.clean).max()), 1.0)

    def view(steps: int) -> View:
        adversary, change = path[steps], 127.5 + factor * (path[steps] - case.clean)
        norm, greatest = relative_l2(case.clean, adversary), linf(case.clean, adversary)
        pictures = {f"after {steps} steps": adversary, f"change x {factor:.0f}": change}
        strength = f"L2 {norm:.4f}, L-infinity {greatest:.0f} of 255"
        return _outcome(network, case, adversary, pictures, strength)

    return Sliders(view, steps=_slider("steps", range(iterations + 1), min(4, iterations)))


def deflection(
    network: Classifier, case: Case, *, deflections: int = 200, window: int = 10, seed: int = 0
) -> Sliders:
    """Move the knobs of pixel deflection, and see which of the adversary's pixels one changes."""

    def view(deflections: int, window: int, seed: int) -> View:
        deflected = pixel_deflection(case.adversary, deflections, window, rng=seed)
        changed = (deflected != case.adversary).any(axis=-1)
        dots = np.where(changed[..., np.newaxis], np.float32(0), 0.35 * case.adversary + 150)
        number = f"{changed.sum()} pixels changed"
        pictures = {number: dots, "close-up": _middle(deflected)}
        return _outcome(network, case, deflected, pictures, number)

    windows = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100)
    return Sliders(
        view,
        deflections=_slider("deflections", _DEFLECTIONS, deflections),
        window=_slider("window", windows, window),
        seed=_slider("seed", range(20), seed),
    )


def denoising(
    network: Classifier,
    case: Case,
    *,
    deflections: int = 200,
    window: int = 10,
    sigma: float = 0.04,
    mode: Mode = "soft",
    sigma_scale: SigmaScale = "channel",
    seed: int = 0,
) -> Sliders:
    """Move the knobs of the wavelet denoiser, with deflection before it or without."""
    deflected = pixel_deflection(case.adversary, deflections, window, rng=seed)

    def view(sigma: float, mode: Mode, before: bool) -> View:
        given = deflected if before else case.adversary
        denoised = denoise(given, sigma=sigma, mode=mode, sigma_scale=sigma_scale)
        change = f"changes a value by {np.abs(denoised - given).mean():.2f} of 255 on average"
        pictures = {"before": _middle(given), "denoised": _middle(denoised)}
        return _outcome(network, case, denoised, pictures, change)

    sigmas = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2)
    return Sliders(
        view,
        sigma=_slider("sigma", sigmas, sigma),
        mode=_switch("shrinkage", {word: word for word in get_args(Mode)}, mode),
        before=_switch("before it", {f"PD {deflections}": True, "nothing": False}, True),
    )


def maps(network: Classifier, case: Case, *, k: int = 5, combine: Combine = "paper") -> Sliders:
    """Move the knobs of the robust map, over the clean image and over the adversary."""
    pair = np.stack([case.clean, case.adversary])

    def view(k: int, combine: Combine) -> View:
        made = robust_cam(network, pair, k=k, combine=combine)
        names = ("clean", "adversary")
        means = [f"{name}, mean {of.mean():.2f}" for name, of in zip(names, made, strict=True)]
        figure = plots.maps(list(pair), list(made), means)
        return figure, f"{'; '.join(means)}; correlation {correlation(*made):.2f}"

    most = min(10, len(network.class_names))
    return Sliders(
        view,
        k=_slider("k", range(1, most + 1), k),
        combine=_switch("definition", {word: word for word in get_args(Combine)}, combine),
    )


def placement(
    network: Classifier,
    case: Case,
    activation_map: Array,
    *,
    deflections: int = 1500,
    window: int = 10,
    seed: int = 0,
) -> Sliders:
    """Move the number of deflections, with the adversary's map that spares pixels or without."""
    image, hot = case.adversary, activation_map >= HOT

    def view(with_map: bool, deflections: int) -> View:
        used = activation_map if with_map else None
        deflected = pixel_deflection(image, deflections, window, activation_map=used, rng=seed)
        changed = (deflected != image).any(axis=-1)
        titles = [f"PD {deflections}{' + R-CAM' * with_map}"]
        figure = plots.changed_pixels(image, [deflected], titles, activation_map=activation_map)
        within = f"{changed.sum()} pixels changed, {(changed & hot).sum()} of them in the hot zone"
        zone = f"(map at least {HOT:g}, {hot.mean():.0%} of the image)"
        return figure, f"{within} {zone}; {_said(network, case, network.predict(deflected))}"

    return Sliders(
        view,
        with_map=_switch("map", {"R-CAM": True, "none": False}, True),
        deflections=_slider("deflections", _DEFLECTIONS, deflections),
    )


def _outcome(
    network: Classifier, case: Case, image: Array, pictures: dict[str, Array], measured: str
) -> View:
    """Show pictures by their titles beside what the network makes of an image."""
    found, classes = network.predict(image), [case.label, case.attacked_label]
    names, shown = [network.class_names[c] for c in classes], list(pictures.values())
    figure = plots.outcome(shown, [*pictures], names=names, probabilities=found[classes].tolist())
    return figure, f"{_said(network, case, found)}; {measured}"


def _said(network: Classifier, case: Case, found: Array) -> str:
    classes = dict.fromkeys((case.label, case.attacked_label))
    return ", ".join(f"{network.class_names[c]} {found[c]:.2f}" for c in classes)


def _middle(image: Array) -> Array:
    """Cut out a close-up of 40 x 40 pixels."""
    top, left = (max(size - 40, 0) // 2 for size in image.shape[:2])
    return image[top : top + 40, left : left + 40]


_DEFLECTIONS = (0, 50, 100, 200, 300, 400, 600, 800, 1000, 1500, 2000, 3000, 5000)


def _slider(description: str, offered: Sequence[float], value: float) -> Any:
    """Make a slider over given values, among them the one that it begins with."""
    options = [(str(number), number) for number in sorted({*offered, value})]
    own = {"value": value, "description": description, "continuous_update": False}
    return ipywidgets.SelectionSlider(options=options, **own)


def _switch(description: str, options: dict[str, Any], value: Any) -> Any:
    own = {"value": value, "description": description, "style": {"button_width": "auto"}}
    return ipywidgets.ToggleButtons(options=list(options.items()), **own)
