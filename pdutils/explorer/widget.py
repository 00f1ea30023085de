"""The explorer as a widget, for JupyterLab and for a page of Voila; `explorer.engine` computes.

What is asked for meanwhile waits in a place for one, so that only the newest wish is served.
"""

import io
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pdutils import plots
from pdutils._utils import Array, extra, on_grid
from pdutils.explorer import engine
from pdutils.explorer.engine import Choice, Classifier, Explorer, Result, Settings, adversary_key
from pdutils.images import load_image

with extra("notebooks"):
    import anywidget
    import matplotlib as mpl
    import traitlets

#: The largest picture that is taken from a visitor, in bytes.
UPLOAD_LIMIT = 8_000_000

#: Perturbations are shown at one scale, so that they can be compared.
MAGNIFIED = 8

_STATIC = Path(__file__).parent / "static"
_THUMBNAIL = 56

#: What a visitor may choose; files of weights and labels are the notebook's to name.
_FREE = asdict(Settings()).keys() - {"weights", "label"}

Pixels = NDArray[np.uint8]


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


class _Wish(NamedTuple):
    """What a visitor asked for: the move's number, the settings, and whether it is a release."""

    move: str
    settings: Settings
    final: bool


class _OutdatedError(Exception):
    """What is being computed is no longer wanted."""


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

    _esm = "".join((_STATIC / f"{name}.js").read_text("utf-8") for name in ("kernel", "explorer"))
    _css = _STATIC / "explorer.css"

    offer = traitlets.Dict().tag(sync=True)
    images: Any = traitlets.List().tag(sync=True)
    settings = traitlets.Dict().tag(sync=True)
    shown = traitlets.Dict().tag(sync=True)
    history: Any = traitlets.List().tag(sync=True)
    busy = traitlets.Dict().tag(sync=True)
    error = traitlets.Dict().tag(sync=True)
    picture_clean = traitlets.Bytes().tag(sync=True)
    picture_adversary = traitlets.Bytes().tag(sync=True)
    picture_defended = traitlets.Bytes().tag(sync=True)
    picture_deflected = traitlets.Bytes().tag(sync=True)
    picture_attack = traitlets.Bytes().tag(sync=True)
    picture_left = traitlets.Bytes().tag(sync=True)

    def __init__(self, start: Settings, network: Classifier | None = None) -> None:
        self._start = start if network is None else replace(start, classifier=network.name)
        self._asked = self._start
        self._own: dict[str, list[Choice]] = {}
        self._uploads: list[Choice] = []
        self._folder: Path | None = None
        loaded = {(self._start.classifier, start.weights): network} if network else {}
        self._explorer = Explorer(loaded)
        self._result: Result | None = None
        self._warmed: Classifier | None = None
        self._remembered_at = 0.0
        self._wish: _Wish | None = None
        self._working = False
        self._lock = threading.Condition()
        super().__init__(offer=_offer(self._start.classifier), settings=asdict(self._start))
        self.on_msg(self._on_message)
        first = _Wish("", self._start, final=True)
        if network:
            self._serve(first)
        else:
            self.busy = {"what": f"Loading {self._start.classifier}", "done": 0, "total": 0}
            self._take(first)

    @property
    def result(self) -> Result | None:
        """The result that is shown; None before the first."""
        return self._result

    def move(self, **changes: Any) -> None:
        """Change fields of `Settings`, as a visitor does; what cannot be leaves an `error`."""
        self._wish_for("", changes, final=True)

    def settle(self, timeout: float = 600.0) -> None:
        """Wait until all that was asked for is shown, or raise a TimeoutError after so many s."""
        with self._lock:
            if not self._lock.wait_for(lambda: not self._working, timeout):
                raise TimeoutError(f"the explorer was still computing after {timeout:g} s")

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Give the widget, and a still picture where no widget can be shown."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None or self._result is None:
            return bundle
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        alt = f"The explorer, a still picture. {self._result.sentence}. {self._result.verdict}"
        still = {"image/png": _still(self._result), "text/plain": alt}
        return {**data, **still}, {**metadata, "image/png": {"alt": alt}}

    def _on_message(self, _: Any, content: Mapping[str, Any], buffers: Sequence[Any]) -> None:
        move = str(content.get("id", ""))
        if content.get("type") == "upload":
            self._upload(move, str(content.get("name", "")), bytes(buffers[0]) if buffers else b"")
        elif content.get("type") == "move":
            self._wish_for(move, content.get("settings", {}), final=bool(content.get("final")))

    def _wish_for(self, move: str, changes: Mapping[str, Any], *, final: bool) -> None:
        try:
            self._take(_Wish(move, self._wanted(changes), final))
        except (ValueError, TypeError, OSError) as error:
            self.error = {"text": _words(error), "id": move}

    def _wanted(self, changes: Mapping[str, Any]) -> Settings:
        """Check what a visitor asks for, and add what is not the visitor's to choose."""
        for name in sorted(set(changes) - _FREE):
            raise ValueError(f"{name}: no setting of the explorer")
        wanted = {**asdict(self._asked), **changes}
        start, classifier = self._start, wanted["classifier"]
        if classifier not in (*engine.CLASSIFIERS, start.classifier):
            raise ValueError(f"no network {classifier!r} on offer")
        wanted["weights"] = start.weights if classifier == start.classifier else ""
        names = [choice.name for choice in self._choices(classifier)]
        if wanted["image"] not in ("", *names):
            if classifier == self._asked.classifier:
                raise ValueError(f"no picture {wanted['image']!r} on offer")
            # Another network knows other classes, so that it is shown other pictures.
            wanted["image"] = names[0]
        wanted["label"] = start.label if wanted["image"] == start.image else ""
        return Settings.from_dict(wanted)

    def _choices(self, classifier: str) -> list[Choice]:
        if classifier not in self._own:
            offered, begun = engine.choices(classifier), Path(self._start.image)
            is_own = begun.is_file() and str(begun) not in [choice.name for choice in offered]
            own = [Choice(str(begun), begun.stem, begun)]
            is_first = classifier == self._start.classifier
            self._own[classifier] = [*(own if is_own and is_first else []), *offered]
        return [*self._own[classifier], *self._uploads]

    def _upload(self, move: str, name: str, content: bytes) -> None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="pdutils-explorer-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        title = Path(name).name or "picture"
        # What stands before an underscore would be taken for the class.
        own = Path(title).stem.replace("_", "-") + Path(title).suffix
        path = Path(tempfile.mkdtemp(dir=self._folder)) / own
        try:
            if len(content) > UPLOAD_LIMIT:
                most, got = UPLOAD_LIMIT // 10**6, len(content) / 10**6
                raise ValueError(f"{title}: expected at most {most} MB, got {got:.1f} MB")
            path.write_bytes(content)
            load_image(path)
        except (ValueError, OSError) as error:
            self.error = {"text": str(error).replace(str(path), title), "id": move}
            return
        # So many of a visitor's pictures are kept.
        self._uploads = [*self._uploads, Choice(str(path), title, path)][-8:]
        self._wish_for(move, {"image": str(path)}, final=True)

    def _take(self, wish: _Wish) -> None:
        """Put a wish in the place for one; whoever is at work finds the newest there."""
        with self._lock:
            self._wish, self._asked = wish, wish.settings
            if self._working:
                return
            self._working = True
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                wish, self._wish = self._wish, None
                if wish is None:
                    self._working = False
                    self._lock.notify_all()
                    return
            self._serve(wish)

    def _serve(self, wish: _Wish) -> None:
        """Compute and show one wish; whatever goes wrong becomes a sentence."""
        try:
            result = self._explorer.result(wish.settings, progress=self._news(wish))
            self._show(result, wish)
            if self._warmed is not result.network:
                self._warmed = result.network
                # A network without a feature map can be explored without maps.
                with suppress(ValueError):
                    self._explorer.warm(result.settings)
        except _OutdatedError:
            return
        except Exception as error:
            if self._asked == wish.settings and self._result is not None:
                self._asked = self._result.settings
            text = _words(error)
            # A visitor's pictures are called what the visitor calls them.
            for upload in self._uploads:
                text = text.replace(str(upload.path), upload.title)
            with self.hold_sync():
                self.busy = {}
                self.error = {"text": text, "id": wish.move}

    def _news(self, wish: _Wish) -> engine.Progress:
        """Tell how far a computation is, and end one that nobody waits for."""
        told = 0.0

        def tell(what: str, done: int, total: int) -> None:
            nonlocal told
            # An adversary that the newer wish needs as well is made to its end.
            newer = self._wish
            if newer and adversary_key(newer.settings) != adversary_key(wish.settings):
                raise _OutdatedError
            if time.monotonic() - told >= 0.05:
                told = time.monotonic()
                self.busy = {"what": what, "done": done, "total": total}

        return tell

    def _show(self, result: Result, wish: _Wish) -> None:
        settings, pictures = result.settings, {}
        for name, (draw, *parts) in PICTURES.items():
            # What a stage gave is kept, so that what did not change is the very same array.
            if any(
                getattr(self._result, part, None) is not getattr(result, part) for part in parts
            ):
                pictures[f"picture_{name}"] = _packed(draw(result))
        drawn = {entry["name"]: entry for entry in self.images}
        offered = self._choices(settings.classifier)
        images = [drawn.get(choice.name) or _thumbnail(choice) for choice in offered]
        history = self._history(result, wish)
        own = {choice.name: choice.path.name for choice in self._uploads}
        code = engine.as_code(replace(settings, image=own.get(settings.image, settings.image)))
        self._result = result
        if self._asked == wish.settings:
            # Settings without an image have one now.
            self._asked = settings
        if not self._start.image:
            self._start = replace(self._start, image=settings.image)
        with self.hold_sync():
            for name, packed in pictures.items():
                setattr(self, name, packed)
            self.images, self.history = images, history
            self.settings = asdict(settings)
            told = {"code": code, "id": wish.move, "final": wish.final}
            self.shown = _in_words(result) | told
            self.busy, self.error = {}, {}

    def _history(self, result: Result, wish: _Wish) -> list[dict[str, Any]]:
        """Add a result to the last ones, unless it was only passed on the way."""
        chosen = {name: value for name, value in asdict(result.settings).items() if name in _FREE}
        if not wish.final or any(entry["settings"] == chosen for entry in self.history):
            return list(self.history)
        last = self.history[-1]["settings"] if self.history else chosen
        # A slider that is moved on within so many seconds leaves one result, not one a step.
        is_soon = time.monotonic() - self._remembered_at < 1.5
        is_step = is_soon and sum(last[name] != chosen[name] for name in chosen) == 1
        self._remembered_at = time.monotonic()
        entry = {
            "settings": chosen,
            "sentence": result.sentence.rpartition(", in ")[0],
            "summary": summary(result.settings),
            "picture": _packed(_small(_shown(result.defended))),
        }
        # The first result is what all others are compared with.
        before = self.history[:-1] if is_step and len(self.history) > 1 else self.history
        return [*before, entry][-12:]


def summary(settings: Settings) -> str:
    """Say in a few letters what was done: `strong IGSM 8 x 10; PD 200 + R-CAM + wavelet`."""
    attack = {
        "igsm": f"{'weak' if settings.stop else 'strong'} IGSM {settings.eps} x {settings.steps}; ",
        "fgsm": f"FGSM {settings.eps}; ",
        "none": "clean; ",
        "shipped": "",
    }[settings.attack]
    parts = [f"PD {settings.deflections}"] if settings.deflections else []
    if parts and settings.activation != "none":
        parts.append({"cam": "CAM", "rcam": "R-CAM"}[settings.activation])
    parts += [] if settings.denoiser == "none" else [settings.denoiser]
    return attack + (" + ".join(parts) or "no defence")


def _offer(begun: str) -> dict[str, Any]:
    """Give what the controls can be set to."""
    names = dict.fromkeys((begun, *engine.CLASSIFIERS))
    at_hand = {name: name == begun or engine.is_at_hand(name) for name in names}
    colors = {"true": plots.TRUE_COLOR, "attack": plots.ATTACK_COLOR, "other": plots.OTHER_COLOR}
    return {
        "classifiers": [{"name": name, "at_hand": found} for name, found in at_hand.items()],
        "ranges": {name: list(bounds) for name, bounds in engine.RANGES.items()},
        "words": {name: list(words) for name, words in engine.WORDS.items()},
        "with_sigma": list(engine.WITH_SIGMA),
        "upload_limit": UPLOAD_LIMIT,
        "magnified": MAGNIFIED,
        "colors": colors,
    }


def _in_words(result: Result) -> dict[str, Any]:
    """Give all of a result but its pictures, as JSON holds it."""
    names = [name.replace("_", " ") for name in result.network.class_names]
    true, attacked = result.label, result.attacked_label
    roles = {true: "true", attacked: "attack"}

    def top(probabilities: Array) -> list[dict[str, Any]]:
        return [
            {"name": names[p.number], "p": p.probability, "role": roles.get(p.number, "other")}
            for p in result.network.top(probabilities)
        ]

    def step(name: str, found: Array) -> dict[str, Any]:
        attack = 0.0 if attacked is None else float(found[attacked])
        return {"name": name, "true": float(found[true]), "attack": attack}

    runs, far, spared = result.settings.runs, result.strength, result.activation_map
    over = "" if spared is None else f", map mean {spared.mean():.2f}"
    rows = {step.name: step.probabilities for step in result.steps[:2]}
    best = {name: top(row) for name, row in (*rows.items(), ("defended", result.probabilities))}
    return {
        "name": result.name,
        "classes": len(names),
        "true": names[true],
        "attacked": None if attacked is None else names[attacked],
        "before": best["adversary"][0],
        "after": best["defended"][0],
        "milliseconds": 1000 * result.seconds,
        "sentence": result.sentence,
        "verdict": result.verdict.replace("_", " "),
        "steps": [step(*each) for each in result.steps],
        "top": best,
        "notes": {
            "clean": result.name,
            "adversary": result.origin,
            "defended": f"first of {runs} runs; bars: their mean" if runs > 1 else "one run",
            "deflected": f"{result.changed.sum()} pixels changed{over}",
            "attack": f"L2 {far['attack_l2']:.3f}, at most {far['attack_linf']:.0f} of 255",
            "left": f"L2 {far['remaining_l2']:.3f}",
        },
    }


def _words(error: Exception) -> str:
    """Turn an error into a sentence for a visitor."""
    text = str(error).strip()
    if isinstance(error, (ValueError, OSError)) and text:
        return text
    first = text.splitlines()[0] if text else "no more is known"
    return f"This could not be computed ({type(error).__name__}: {first})."


def _shown(image: Array) -> Pixels:
    return on_grid(image).astype(np.uint8)


def _dots(result: Result) -> Pixels:
    """Draw the changed pixels in black over the pale map, or over the pale picture without one."""
    if result.activation_map is None:
        pale = 0.35 * result.adversary + 150
    else:
        colors = mpl.colormaps["viridis"](result.activation_map)[..., :3]
        pale = (255 * (0.45 + 0.55 * colors)).astype(np.float32)
    return _shown(np.where(result.changed[..., np.newaxis], np.float32(0), pale))


#: The pictures of a result in the order in which they stand: how each is made, and of what.
PICTURES: dict[str, tuple[Callable[[Result], Pixels], *tuple[str, ...]]] = {
    "clean": (lambda r: _shown(r.clean), "clean"),
    "adversary": (lambda r: _shown(r.adversary), "adversary"),
    "defended": (lambda r: _shown(r.defended), "defended"),
    "deflected": (_dots, "adversary", "deflected", "activation_map"),
    "attack": (lambda r: _shown(127.5 + MAGNIFIED * (r.adversary - r.clean)), "clean", "adversary"),
    "left": (lambda r: _shown(127.5 + MAGNIFIED * (r.defended - r.clean)), "clean", "defended"),
}


def _packed(pixels: Pixels) -> bytes:
    """Encode a picture without loss: as small as a PNG, in a quarter of its time."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, quality=0, method=0)
    return buffer.getvalue()


def _small(pixels: Pixels) -> Pixels:
    picture = Image.fromarray(pixels)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return np.asarray(picture)


def _thumbnail(choice: Choice) -> dict[str, Any]:
    picture = _packed(_small(_shown(load_image(choice.path, 2 * _THUMBNAIL))))
    return {"name": choice.name, "title": choice.title.replace("_", " "), "picture": picture}


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
