"""One visitor of the explorer: what is wished for, and what is shown; `engine` computes.

What is asked for meanwhile waits in a place for one, so that only the newest wish is served.
"""

import io
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pdutils import plots
from pdutils._utils import Array, Pixels, extra, on_grid
from pdutils.explorer import engine
from pdutils.explorer.engine import Choice, Explorer, Result, Settings, adversary_key
from pdutils.explorer.workshop import Workshop
from pdutils.images import load_image, show_cut

with extra("app"):
    import matplotlib as mpl

#: The scripts of the face, which make one module in this order.
FACE = ("kernel.js", "controls.js", "explorer.js")

#: The largest picture that is taken from a visitor, in bytes, and how many of them are kept.
UPLOAD_LIMIT = 8_000_000
UPLOADS = 8

#: Perturbations are shown at one scale, so that they can be compared.
MAGNIFIED = 8

#: Begins the names that a visitor's own pictures have on the page, where no path is shown.
_OWN = "own/"

_THUMBNAIL = 56
_WHOLE = 168

#: Settings that are not a visitor's to choose; a label is that of a picture of one's own.
FREE = asdict(Settings()).keys() - {"weights"}

#: A network of so few classes says which they are.
_FEW = 20

#: Begins a piece of work, of which it is told whether it begins with the loading of a network.
Begin = Callable[[Callable[[], None], bool], Any]


class _Wish(NamedTuple):
    """What a visitor asked for: the move's number, the settings, and whether it is a release."""

    move: str
    settings: Settings
    final: bool


class _OutdatedError(Exception):
    """What is being computed is no longer wanted."""


def _in_a_thread(work: Callable[[], None], _: bool) -> None:
    threading.Thread(target=work, daemon=True).start()


class Visit:
    """A visitor's settings, pictures and last results, and the next wish.

    Parameters
    ----------
    start : Settings
        Where it begins.
    tell : callable
        Called with the parts of `state` that are new, from whatever thread.
    workshop : Workshop
        May be shared with other visits.
    begin : callable
        Begins a piece of work and does not wait for it; by default in a thread of its own.
    """

    def __init__(
        self,
        start: Settings,
        tell: Callable[[Mapping[str, Any]], None],
        workshop: Workshop,
        begin: Begin = _in_a_thread,
    ) -> None:
        self.state: dict[str, Any] = {}
        self.result: Result | None = None
        self._start = self._asked = start
        self._tell_host, self._begin, self._workshop = tell, begin, workshop
        self._explorer = Explorer(workshop=workshop)
        self._own: dict[str, list[Choice]] = {}
        self._uploads: list[tuple[str, Choice]] = []
        self._uploaded = 0
        self._folder: Path | None = None
        self._remembered_at = 0.0
        self._cut = ""
        self._wish: _Wish | None = None
        self._working = self._closed = False
        self._lock = threading.Condition()
        self.tell(offer=_offer(start), settings=asdict(start), classes=[], images=[],
                  history=[], shown={}, busy={}, error={})  # fmt: skip

    def open(self, changes: Mapping[str, Any] | None = None, *, at_once: bool = False) -> None:
        """Show the first result: of the start, or of what differs from it, as a link names it."""
        first = _Wish("", self._start, final=True)
        try:
            wish = first._replace(settings=self._wanted(changes or {}))
        except (ValueError, TypeError, OSError) as error:
            wish, text = first, f"This link cannot be followed. {_words(error)}"
            self.tell(error={"text": text, "id": ""})
        if at_once:
            self._serve(wish)
        else:
            self.tell(busy={"what": f"Loading {wish.settings.classifier}", "done": 0, "total": 0})
            self._take(wish)

    def receive(self, content: Mapping[str, Any], buffers: list[bytes]) -> None:
        """Take a message of the page."""
        move = str(content.get("id", ""))
        if content.get("type") == "upload":
            self._upload(move, str(content.get("name", "")), buffers[0] if buffers else b"")
        elif content.get("type") == "move":
            self.move(content.get("settings", {}), move, final=bool(content.get("final")))

    def move(self, changes: Mapping[str, Any], move: str = "", *, final: bool = True) -> None:
        """Change fields of `Settings`; what cannot be leaves an `error`."""
        try:
            wish = _Wish(move, self._wanted(changes), final)
        except (ValueError, TypeError, OSError) as error:
            self.tell(error={"text": self._plain(_words(error)), "id": move})
            return
        self.tell(error={})
        self._take(wish)

    def settle(self, timeout: float) -> None:
        """Wait until all that was asked for is shown."""
        with self._lock:
            if not self._lock.wait_for(lambda: not self._working, timeout):
                raise TimeoutError(f"the explorer was still computing after {timeout:g} s")

    def close(self) -> None:
        """End the visit: nothing more is computed or told, and the visitor's pictures are gone."""
        with self._lock:
            self._closed, self._wish = True, None
            if self._working:
                # Whoever is at work for it still may hold its pictures, and cleans up.
                return
        self._clean_up()

    def tell(self, **changes: Any) -> None:
        """Take over what is new in the state, and pass it on."""
        new = {n: v for n, v in changes.items() if n not in self.state or self.state[n] != v}
        self.state |= new
        if new and not self._closed:
            self._tell_host(new)

    def _clean_up(self) -> None:
        for _, choice in self._uploads:
            self._workshop.forget(choice.name)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._uploads, self.result, self.state = [], None, {}

    def _wanted(self, changes: Mapping[str, Any]) -> Settings:
        """Check what a visitor asks for, and add what is not the visitor's to choose."""
        for name in sorted(set(changes) - FREE):
            raise ValueError(f"{name}: no setting of the explorer")
        asked, start = self._asked, self._start
        wanted = asdict(Settings.from_dict({**asdict(asked), **changes}))
        wanted["image"] = dict(self._names()).get(wanted["image"], wanted["image"])
        classifier = wanted["classifier"]
        if classifier not in (*engine.CLASSIFIERS, start.classifier):
            raise ValueError(f"no network {classifier!r} on offer")
        wanted["weights"] = start.weights if classifier == start.classifier else ""
        names = [choice.name for choice in self._choices(classifier)]
        if wanted["image"] not in ("", *names):
            if "image" in changes or classifier == asked.classifier:
                if wanted["image"].startswith(_OWN):
                    own = wanted["image"].rpartition("/")[2]
                    raise ValueError(f"{own} was a visitor's own and went with the visit; bring it")
                raise ValueError(f"no picture {wanted['image']!r} on offer")
            # Another network knows other classes, so that it is shown other pictures.
            wanted["image"] = names[0]
        given = start.label if wanted["image"] == start.image else ""
        if (wanted["image"], classifier) != (asked.image, asked.classifier):
            wanted["label"] = changes.get("label", given)
        if wanted["label"] != given and not self._is_own(wanted["image"]):
            raise ValueError("label: expected none, since what this picture shows is known")
        return Settings.from_dict(wanted)

    def _is_own(self, image: str) -> bool:
        begun = image == self._start.image and Path(image).is_file()
        return begun or image in dict(self._names()).values()

    def _names(self) -> list[tuple[str, str]]:
        """Give the names that the visitor's own pictures have on the page, and in the engine."""
        return [(name, choice.name) for name, choice in self._uploads]

    def _public(self, settings: Settings) -> dict[str, Any]:
        names = {path: name for name, path in self._names()}
        return asdict(replace(settings, image=names.get(settings.image, settings.image)))

    def _plain(self, text: str) -> str:
        """Call a visitor's pictures what the visitor calls them."""
        for _, choice in self._uploads:
            text = text.replace(choice.name, choice.title)
        return text

    def _choices(self, classifier: str) -> list[Choice]:
        if classifier not in self._own:
            offered, begun = engine.choices(classifier), Path(self._start.image)
            is_own = begun.is_file() and str(begun) not in [choice.name for choice in offered]
            own = [Choice(str(begun), begun.stem, begun)]
            is_first = classifier == self._start.classifier
            self._own[classifier] = [*(own if is_own and is_first else []), *offered]
        return [*self._own[classifier], *(choice for _, choice in self._uploads)]

    def _upload(self, move: str, name: str, content: bytes) -> None:
        if self._closed:
            return
        title = Path(name).name or "picture"
        # What stands before an underscore would be taken for the class.
        own = Path(title).stem.replace("_", "-") + Path(title).suffix
        path = Path(own)
        try:
            if len(content) > UPLOAD_LIMIT:
                most, got = UPLOAD_LIMIT // 10**6, len(content) / 10**6
                raise ValueError(f"{title}: expected at most {most} MB, got {got:.1f} MB")
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="pdutils-explorer-"))
            path = Path(tempfile.mkdtemp(dir=self._folder)) / own
            path.write_bytes(content)
            load_image(path)
        except (ValueError, OSError) as error:
            if path.is_absolute():
                shutil.rmtree(path.parent, ignore_errors=True)
            self.tell(error={"text": str(error).replace(str(path), title), "id": move})
            return
        self._uploaded += 1
        shown = f"{_OWN}{self._uploaded}/{own}"
        self._uploads = [*self._uploads, (shown, Choice(str(path), title, path))]
        for _, old in self._uploads[:-UPLOADS]:
            shutil.rmtree(old.path.parent, ignore_errors=True)
            self._workshop.forget(old.name)
        self._uploads = self._uploads[-UPLOADS:]
        self.move({"image": shown}, move)

    def _take(self, wish: _Wish) -> None:
        """Put a wish in the place for one; whoever is at work finds the newest there."""
        with self._lock:
            if self._closed:
                return
            self._wish, self._asked = wish, wish.settings
            if self._working:
                return
            self._working = True
        self._stand_in_line()

    def _stand_in_line(self) -> None:
        if len(self._workshop.turns):
            self.tell(busy={"what": "Waiting for a turn", "done": 0, "total": 0})
        asked = self._asked
        self._begin(self._work, not self._workshop.has(asked.classifier, asked.weights))

    def _work(self) -> None:
        """Serve one wish; the next one, if there is one then, goes to the end of the line."""
        self._serve()
        with self._lock:
            self._working = self._wish is not None
            self._lock.notify_all()
        if self._working:
            self._stand_in_line()
        elif self._closed:
            self._clean_up()

    def _serve(self, wish: _Wish | None = None) -> None:
        """Compute and show a wish, or that which waits; whatever goes wrong becomes a sentence."""
        warm = self._workshop.warm
        try:
            with self._workshop.turns:
                # The newest when the turn has come, not when it was asked for.
                wish = wish or self._newest()
                if wish is None:
                    return
                result = self._explorer.result(wish.settings, progress=self._news(wish))
            # Pictures are drawn and packed while the next one has the turn.
            self._show(result, wish)
            if result.network not in warm:
                warm.add(result.network)
                # A network without a feature map can be explored without maps.
                with suppress(ValueError):
                    self._explorer.warm(result.settings)
        except _OutdatedError:
            return
        except BaseException as error:
            if wish and self._asked == wish.settings and self.result is not None:
                self._asked = self.result.settings
            if not isinstance(error, (ValueError, OSError)):
                logging.getLogger(__name__).exception("a wish of the explorer failed")
            self.tell(busy={})
            # What has gone wrong with an older wish would stand beside the newer one's picture.
            if self._wish is None:
                move = wish.move if wish else ""
                self.tell(error={"text": self._plain(_words(error)), "id": move})
            if isinstance(error, KeyboardInterrupt):
                raise

    def _newest(self) -> _Wish | None:
        """Take the wish out of its place."""
        with self._lock:
            wish, self._wish = self._wish, None
        return wish

    def _news(self, wish: _Wish) -> engine.Progress:
        """Tell how far a computation is, and end one that nobody waits for."""
        told = 0.0

        def tell(what: str, done: int, total: int) -> None:
            nonlocal told
            if self._closed or (self._wish and self._overtakes(wish, self._wish, what)):
                raise _OutdatedError
            if time.monotonic() - told >= 0.05:
                told = time.monotonic()
                self.tell(busy={"what": what, "done": done, "total": total})

        return tell

    @staticmethod
    def _overtakes(wish: _Wish, newer: _Wish, what: str) -> bool:
        """Tell whether a newer wish ends what is being computed for one."""
        # An adversary that both need is made to its end.
        if adversary_key(newer.settings) != adversary_key(wish.settings):
            return True
        # Nobody looks at a step of a slider that has been released; its runs are kept.
        return what == engine.DEFENDING and newer.final and not wish.final

    def _show(self, result: Result, wish: _Wish) -> None:
        settings, new = result.settings, dict[str, Any]()
        # What a stage gave is kept, so that what did not change is the very same array.
        for name, (draw, *parts) in PICTURES.items():
            if any(getattr(self.result, part, None) is not getattr(result, part) for part in parts):
                new[f"picture_{name}"] = _packed(draw(result))
        offered = self._choices(settings.classifier)
        size, images = result.network.input_size, self._thumbnails(offered)
        if getattr(self.result, "clean", None) is not result.clean:
            paths = {choice.name: choice.path for choice in offered}
            cut = show_cut(paths[settings.image], size, _WHOLE) if settings.image in paths else None
            self._cut, new["picture_whole"] = (cut[0], _packed(cut[1])) if cut else ("", b"")
        names = [name.replace("_", " ") for name in result.network.class_names]
        history = self._history(result, wish)
        own = {choice.name: choice.path.name for _, choice in self._uploads}
        code = engine.as_code(replace(settings, image=own.get(settings.image, settings.image)))
        self.result = result
        if self._asked == wish.settings:
            # Settings without an image have one now.
            self._asked = settings
        if not self._start.image and settings.classifier == self._start.classifier:
            self._start = replace(self._start, image=settings.image)
        said = {"code": code, "id": wish.move, "final": wish.final, "cut": self._cut}
        shown = _in_words(result) | said
        self.tell(**new, images=images, history=history, classes=names,
                  settings=self._public(settings), shown=shown, busy={})  # fmt: skip

    def _thumbnails(self, offered: list[Choice]) -> list[dict[str, Any]]:
        drawn = {entry["name"]: entry for entry in self.state["images"]}
        own = {path: name for name, path in self._names()}
        return [
            drawn.get(own.get(choice.name, choice.name)) or self._thumbnail(choice, own)
            for choice in offered
        ]

    def _thumbnail(self, choice: Choice, own: Mapping[str, str]) -> dict[str, Any]:
        small = _small(_shown(load_image(choice.path, 2 * _THUMBNAIL)))
        name, title = own.get(choice.name, choice.name), choice.title.replace("_", " ")
        is_own = self._is_own(choice.name)
        return {"name": name, "title": title, "own": is_own, "picture": _packed(small)}

    def _history(self, result: Result, wish: _Wish) -> list[dict[str, Any]]:
        """Add a result to the last ones, unless it was only passed on the way."""
        history = self.state["history"]
        chosen = {name: v for name, v in self._public(result.settings).items() if name in FREE}
        if not wish.final or any(entry["settings"] == chosen for entry in history):
            return list(history)
        last = history[-1]["settings"] if history else chosen
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
        before = history[:-1] if is_step and len(history) > 1 else history
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


def _offer(start: Settings) -> dict[str, Any]:
    """Give what the controls can be set to, and where a visit begins."""
    begun = start.classifier
    names = dict.fromkeys((begun, *engine.CLASSIFIERS))
    at_hand = {name: name == begun or engine.is_at_hand(name) for name in names}
    colors = {"true": plots.TRUE_COLOR, "attack": plots.ATTACK_COLOR, "other": plots.OTHER_COLOR}
    return {
        "classifiers": [{"name": name, "at_hand": found} for name, found in at_hand.items()],
        "defaults": {name: value for name, value in asdict(Settings()).items() if name in FREE},
        "start": {name: value for name, value in asdict(start).items() if name in FREE},
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
        "truth": result.truth,
        "knows": "" if len(names) > _FEW else _knows(names),
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


def _knows(names: list[str]) -> str:
    listed = ", ".join(names[:-1]) + f" and {names[-1]}"
    return f"This network knows {listed} alone, and answers with one of them to any picture."


def _words(error: BaseException) -> str:
    """Turn an error into a sentence for a visitor."""
    text = getattr(error, "brief", "") or str(error).strip()
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
