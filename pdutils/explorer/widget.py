"""The explorer as a widget, for JupyterLab; `explorer.visit` does what a visitor asks for."""

import io
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pdutils import plots
from pdutils._utils import extra
from pdutils.explorer import engine
from pdutils.explorer.engine import Classifier, Result, Settings
from pdutils.explorer.visit import FACE, MAGNIFIED, PICTURES, Visit
from pdutils.explorer.workshop import Workshop

with extra("notebooks"):
    import anywidget
    import traitlets

_STATIC = Path(__file__).parent / "static"


def explorer(
    settings: Settings | None = None, *, network: Classifier | None = None
) -> "ExplorerWidget":
    """Make the explorer, which is shown by naming it in the last line of a cell.

    Parameters
    ----------
    settings : Settings, optional
        Where it begins; its image, network and file of weights can be chosen again later on.
    network : Classifier, optional
        The network of these settings, if it is loaded already. Otherwise it is loaded while the
        widget is on the screen.
    """
    start = settings or Settings()
    if network is None and start.classifier == "auto":
        named = ("resnet50", "efficientnet_lite0", "demo")
        start = replace(start, classifier=next(filter(engine.is_at_hand, named)))
    return ExplorerWidget(start, network)


class ExplorerWidget(anywidget.AnyWidget):
    """The explorer; `explorer` makes it.

    Attributes
    ----------
    settings : dict
        Those of the result that is shown.
    shown : dict
        That result in words and numbers.
    error : dict
        What went wrong last, as a sentence under `text`; empty if nothing did.
    history : list of dict
        The last results, the newest last.
    """

    _esm = "".join((_STATIC / name).read_text("utf-8") for name in FACE)
    _css = _STATIC / "explorer.css"

    offer = traitlets.Dict().tag(sync=True)
    classes: Any = traitlets.List().tag(sync=True)
    images: Any = traitlets.List().tag(sync=True)
    settings = traitlets.Dict().tag(sync=True)
    shown = traitlets.Dict().tag(sync=True)
    history: Any = traitlets.List().tag(sync=True)
    busy = traitlets.Dict().tag(sync=True)
    error = traitlets.Dict().tag(sync=True)
    picture_whole = traitlets.Bytes().tag(sync=True)
    picture_clean = traitlets.Bytes().tag(sync=True)
    picture_adversary = traitlets.Bytes().tag(sync=True)
    picture_defended = traitlets.Bytes().tag(sync=True)
    picture_deflected = traitlets.Bytes().tag(sync=True)
    picture_attack = traitlets.Bytes().tag(sync=True)
    picture_left = traitlets.Bytes().tag(sync=True)

    def __init__(self, start: Settings, network: Classifier | None = None) -> None:
        super().__init__()
        if network is not None:
            start = replace(start, classifier=network.name)
        loaded = {(start.classifier, start.weights): network} if network is not None else {}
        # What is behind it does not keep it alive.
        itself = weakref.ref(self)

        def take(changes: Mapping[str, Any]) -> None:
            if (widget := itself()) is not None:
                with widget.hold_sync():
                    for name, value in changes.items():
                        setattr(widget, name, value)

        self._visit = Visit(start, take, Workshop(loaded))
        weakref.finalize(self, self._visit.close)
        self.on_msg(self._on_message)
        self._visit.open(at_once=network is not None)

    @property
    def result(self) -> Result | None:
        """The result that is shown; None before the first."""
        return self._visit.result

    def move(self, **changes: Any) -> None:
        """Change fields of `Settings`, as a visitor does; what cannot be leaves an `error`."""
        self._visit.move(changes)

    def settle(self, timeout: float = 600.0) -> None:
        """Wait until all that was asked for is shown, or raise a TimeoutError after so many s."""
        self._visit.settle(timeout)

    def _on_message(self, _: Any, content: Mapping[str, Any], buffers: Sequence[Any]) -> None:
        self._visit.receive(content, [bytes(buffer) for buffer in buffers])

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Give the widget, and a still picture where no widget can be shown."""
        bundle, result = super()._repr_mimebundle_(**kwargs), self.result
        if bundle is None or result is None:
            return bundle
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        alt = f"The explorer, a still picture. {result.sentence}. {result.verdict}"
        still = {"image/png": _still(result), "text/plain": alt}
        return {**data, **still}, {**metadata, "image/png": {"alt": alt}}


def _still(result: Result) -> bytes:
    """Draw the six pictures of a result as one."""
    names = result.network.class_names
    seen = (*result.steps[:2], ("defended", result.probabilities))
    titles = [f"{name}: {names[row.argmax()]} {row.max():.2f}" for name, row in seen]
    titles += ["deflected pixels", f"attack x {MAGNIFIED}", f"left x {MAGNIFIED}"]
    drawn = [draw(result).astype(np.float32) for draw, *_ in PICTURES.values()]
    figure = plots.pictures(drawn, titles, columns=3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()
