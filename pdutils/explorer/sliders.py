"""Controls for the notebooks: a knob is moved, and the figure below it follows.

What is shown is a `View`, a figure with its numbers in words. A function of the settings gives it,
by the very calls that the notebook makes by hand; `Sliders` puts controls before such a function. A
control acts when it is let go, and of what is moved while something is computed only the last is
asked for: ipywidgets keeps one message of a control on its way.
"""

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pdutils import plots
from pdutils._utils import extra
from pdutils.activation import HOT, Combine, robust_cam
from pdutils.attacks.gradient import igsm_path
from pdutils.classifiers import Classifier
from pdutils.deflection import pixel_deflection
from pdutils.demo.examples import Case
from pdutils.denoising import Mode, SigmaScale, denoise
from pdutils.metrics import correlation, linf, relative_l2

with extra("notebooks"):
    import anywidget
    import ipywidgets
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

Array = NDArray[np.float32]

#: The side of a close-up, in pixels.
_CLOSE = 40

_STATIC = Path(__file__).parent / "static"


class View(NamedTuple):
    """What settings give: one of the figures of `pdutils.plots`, and what was measured in words."""

    figure: Figure
    numbers: str


class Sliders:
    """Controls over a figure that follows them. Show it by naming it in the last line of a cell.

    Parameters
    ----------
    view : callable
        It takes the values of the controls by their names, and gives a `View`.
    **controls : ipywidgets selection widget
        One a setting, at its first value.

    Attributes
    ----------
    controls : dict
        Those widgets by name; to set a ``value`` is to move one.
    text : str
        The settings and the numbers that are shown; after an error, its sentence.
    box : ipywidgets.VBox
        The whole, as a widget.
    """

    def __init__(self, view: Callable[..., View], **controls: Any) -> None:
        self.controls = controls
        self.text = ""
        self._view = view
        self._picture = b""
        self._shown = ipywidgets.HTML()
        moved = ipywidgets.HBox(list(controls.values())).add_class("pdutils-controls")
        parts = [moved, self._shown, _Gone()]
        self.box = ipywidgets.VBox(parts).add_class("pdutils-sliders")
        for control in controls.values():
            control.observe(self._follow, "value")
        self._follow()

    def _follow(self, _: object = None) -> None:
        """Show what the controls say; whatever goes wrong becomes a sentence."""
        settings = {name: control.value for name, control in self.controls.items()}
        try:
            view = self._view(**settings)
            self._picture = _png(view.figure)
        except Exception as error:
            self._picture, self.text = b"", f"{type(error).__name__}: {error}"
            self._shown.value = f'<p role="alert">{escape(self.text)}</p>'
            return
        said = ", ".join(f"{c.description} {c.options[c.index][0]}" for c in self.controls.values())
        self.text = f"{said}: {view.numbers}"
        # The picture and the words arrive as one.
        self._shown.value = _html(self._picture, view.figure, self.text)

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
        adversary = path[steps]
        norm, greatest = relative_l2(case.clean, adversary), linf(case.clean, adversary)
        pictures = [adversary, 127.5 + factor * (adversary - case.clean)]
        titles = [f"after {steps} steps", f"change x {factor:.0f}"]
        strength = f"L2 {norm:.4f}, L-infinity {greatest:.0f} of 255"
        return _outcome(network, case, adversary, pictures, titles, strength)

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
        pictures = [dots, _middle(deflected)]
        return _outcome(network, case, deflected, pictures, [number, "close-up"], number)

    return Sliders(
        view,
        deflections=_deflections(deflections),
        window=_slider("window", (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100), window),
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
        pictures = [_middle(given), _middle(denoised)]
        return _outcome(network, case, denoised, pictures, ["before", "denoised"], change)

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
        clean, adversary = robust_cam(network, pair, k=k, combine=combine)
        means = [f"{name}, mean {found.mean():.2f}"
                 for name, found in (("clean", clean), ("adversary", adversary))]  # fmt: skip
        figure = plots.maps(list(pair), [clean, adversary], means)
        return View(figure, f"{'; '.join(means)}; correlation {correlation(clean, adversary):.2f}")

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
    hot = activation_map >= HOT

    def view(with_map: bool, deflections: int) -> View:
        used = activation_map if with_map else None
        deflected = pixel_deflection(
            case.adversary, deflections, window, activation_map=used, rng=seed
        )
        changed = (deflected != case.adversary).any(axis=-1)
        title = f"PD {deflections}{' + R-CAM' * with_map}"
        figure = plots.changed_pixels(
            case.adversary, [deflected], [title], activation_map=activation_map
        )
        within = (
            f"{changed.sum()} pixels changed, {(changed & hot).sum()} of them in the hot zone "
            f"(map at least {HOT:g}, {hot.mean():.0%} of the image)"
        )
        return View(figure, f"{within}; {_said(network, case, network.predict(deflected))}")

    return Sliders(
        view,
        with_map=_switch("map", {"R-CAM": True, "none": False}, True),
        deflections=_deflections(deflections),
    )


def _outcome(
    network: Classifier,
    case: Case,
    image: Array,
    pictures: Sequence[Array],
    titles: Sequence[str],
    measured: str,
) -> View:
    """Show pictures beside what the network makes of an image."""
    found = network.predict(image)
    classes = [case.label, case.attacked_label]
    names = [network.class_names[c] for c in classes]
    figure = plots.outcome(pictures, titles, names=names, probabilities=found[classes].tolist())
    return View(figure, f"{_said(network, case, found)}; {measured}")


def _said(network: Classifier, case: Case, found: Array) -> str:
    classes = dict.fromkeys((case.label, case.attacked_label))
    return ", ".join(f"{network.class_names[c]} {found[c]:.2f}" for c in classes)


def _middle(image: Array) -> Array:
    top, left = (max(size - _CLOSE, 0) // 2 for size in image.shape[:2])
    return image[top : top + _CLOSE, left : left + _CLOSE]


def _deflections(value: int) -> Any:
    offered = (0, 50, 100, 200, 300, 400, 600, 800, 1000, 1500, 2000, 3000, 5000)
    return _slider("deflections", offered, value)


def _slider(description: str, offered: Sequence[float], value: float) -> Any:
    """Make a slider over given values, among them the one that it begins with."""
    return ipywidgets.SelectionSlider(
        options=[(str(number), number) for number in sorted({*offered, value})],
        value=value,
        description=description,
        continuous_update=False,
    )


def _switch(description: str, options: dict[str, Any], value: Any) -> Any:
    buttons = ipywidgets.ToggleButtons(
        options=list(options.items()), value=value, description=description
    )
    buttons.style.button_width = "auto"
    return buttons


def _png(figure: Figure) -> bytes:
    # `savefig` would lay the figure out and draw it twice.
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    buffer = io.BytesIO()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    drawn.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _html(picture: bytes, figure: Figure, text: str) -> str:
    # Its size is known before it is decoded, so that nothing below it moves.
    width, height = figure.canvas.get_width_height()
    address = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return (
        f'<figure><img src="{address}" alt="{escape(str(figure.get_label()))}" '
        f'width="{width}" height="{height}">'
        f'<figcaption role="status">{escape(text)}</figcaption></figure>'
    )
