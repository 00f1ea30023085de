"""The command line: run the notebooks, defend images, evaluate defences, serve the explorer."""

import argparse
import io
import os
import select
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

# The rest of the package loads with the command that needs it: --help is quick.
if TYPE_CHECKING:
    from pdutils._utils import Array
    from pdutils.classifiers import Classifier, ClassifierSource, Prediction
    from pdutils.defenses.pipeline import Defense
    from pdutils.evaluation.datasets import FolderResult, Source

DENOISERS = ("wavelet", "tv", "bilateral", "nl_means", "wiener", "median", "jpeg", "dct")
MAPS = ("none", "cam", "rcam")
READINGS = ("blog", "repo", "paper")
SIGMA_SCALES = ("channel", "rgb")
SCALINGS = ("-1..1", "0..1", "0..255", "caffe", "torch", "tf")
DEFENSE_AGGREGATES = ("mean", "majority")
PROTOCOLS = ("paper", "plain")
AGGREGATES = ("one", "majority", "mean", "worst")

# As a shell reports a program whose reader went away: 128 and the number of that signal.
_UNHEARD = 141

#: What `evaluate` takes for fresh drawings in place of a folder.
_DRAWINGS = "drawings:"

_RUN = """\
Execute notebooks through papermill, each in a kernel of its own, and leave them in the output
folder. A notebook that fails does not stop the others; it is named at the end with its error, and
the exit status is 1.

VALUE takes the kind of the notebook's own value: a text is taken as it stands, a number is a number
(400, 1e2, 0.04), a list or a dictionary is written as in Python ("[1, 2]"). Of several notebooks,
each gets those parameters that it knows; one that none of them knows is an error.

examples:
  python -m pdutils run                                the blog, notebooks 01 to 09
  python -m pdutils run 03                             one of them
  python -m pdutils run 02 06 -p seed 7 -p window 20   two, with other values
  python -m pdutils run --classifier mobilenet_v2 -p weights FILE -p image PHOTO
"""

_DEFEND = """\
Show what pixel deflection and denoising do to a prediction. Of a picture, scaled to the
classifier's size: the five most probable classes before and after. Of a folder of labelled
pictures (<label>_<anything>.png, or a folder a class): how often the label is the most probable
class, or among five, before and after, with the 95% interval.

A folder of maps holds a grey picture for each picture, with its name or that of a PNG, and with
that of its class folder before it where there is one.

Each option's default stands in brackets. The defence is said by options, or in one text as in
`evaluate`: --defense pd+rcam+wd:deflections=600.

examples:
  python -m pdutils defend data/adversaries/badger_000.png --classifier demo
  python -m pdutils defend photo.png --map rcam --deflections 1500 --save defended.png
  python -m pdutils defend photo.png --defense pd+rcam+wd:deflections=600 --runs 10
  python -m pdutils defend photo.png --map map.png --denoiser tv
  python -m pdutils defend photos/ --classifier mobilenet_v2 --weights FILE
  python -m pdutils defend photos/ --classifier model.keras --class-names names.txt --map maps/
"""

_EVALUATE = """\
Measure how defences hold against attacks: every image under every attack, with every defence, the
random ones several times. IMAGES is a folder of labelled pictures (<label>_<anything>.png, or a
folder a class), the folder of ImageNet's validation set with --images-list, or drawings:N for N
fresh drawings of the demo.

Records go into --output as they are made; the same command goes on where an earlier one ended, and
more attacks and defences can be added. The attack and the defence "none" are always evaluated.
Printed are the shares that are right; `python -m pdutils table` prints more of the records.

An attack or a defence is a name, or a name and knobs: igsm:eps=4,iterations=10.

examples:
  python -m pdutils evaluate drawings:100 --attacks igsm:eps=4 deepfool --defenses pd+wd pd+rcam+wd
  python -m pdutils evaluate photos/ --classifier mobilenet_v2 --weights FILE --attacks fgsm igsm \\
      --defenses pd pd+wd --output results/photos.sqlite --scheduler local:4
  python -m pdutils evaluate ILSVRC2012_img_val/ --images-list val.txt --limit 1000 \\
      --classifier resnet50 --attacks igsm --defenses pd+rcam+wd --dry-run
"""

_TABLE = """\
Print the tables of a file of records that `evaluate` wrote, or is writing, with what must be known
to read them; with --output, write them as CSV, LaTeX and Markdown too.

--protocol says which images count: paper, those that the undefended network gets right when clean;
plain, all. --aggregate says what the runs of a defence on an image amount to: one, the first run
alone; majority, the class that most runs see; mean, the class of the mean probability; worst, right
only if every run is.

examples:
  python -m pdutils table results/photos.sqlite
  python -m pdutils table results/photos.sqlite --aggregate worst --output results/tables
  python -m pdutils table results/photos.sqlite --baseline jpeg
"""

_APP = """\
Serve the explorer as a page on localhost, until Ctrl-C.

examples:
  python -m pdutils app
  python -m pdutils app --port 9000 --no-browser
  python -m pdutils app -- --Voila.ip=0.0.0.0
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line, by default the process's own; give its exit status.

    0; 1 if a notebook or the work failed; 130 after Ctrl-C; 141 if whoever read what is printed
    went away. A SystemExit has status 2 if what is asked for does not exist, 0 after --help.
    """
    _take_any_text()
    try:
        try:
            return _carry_out(sys.argv[1:] if arguments is None else arguments)
        finally:
            # Here, not when the interpreter ends, where nobody could catch what comes of it.
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
    except BrokenPipeError:
        # Whoever read has had enough, as `head` has.
        _silence()
        return _UNHEARD
    except OSError as error:
        _silence()
        print(f"error: what is printed cannot be written: {_sentence(error)}", file=sys.stderr)
        return 1


def _carry_out(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(_joined(arguments))
    with _noting_interrupts() as interrupts:
        try:
            return int(options.command(options))
        except KeyboardInterrupt:
            pass
        except Exception as error:
            # Some C code on its way makes another error of a KeyboardInterrupt.
            if not interrupts:
                if not _is_users(error) or _is_unheard(error):
                    raise
                print(f"error: {_sentence(error)}", file=sys.stderr)
                return 1
        print("interrupted", file=sys.stderr)
        return 130


def _take_any_text() -> None:
    """Let be written, in some form, what a terminal's encoding lacks and what is no Unicode."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_unheard(error: Exception) -> bool:
    """Tell whether nobody reads any more what is printed; other pipes may break too."""
    if not isinstance(error, BrokenPipeError):
        return False
    try:
        watch = select.poll()
        for stream in (sys.stdout, sys.stderr):
            watch.register(stream.fileno(), 0)
        return bool(watch.poll(0))
    except (AttributeError, OSError, ValueError):
        # No stream of the system's, or a system that cannot tell.
        return False


def _silence() -> None:
    """Send to nowhere what cannot be written, else the interpreter tries it again as it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


@contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """Note each Ctrl-C in a list, besides what it does by itself."""
    noted: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        if callable(before):
            before(number, frame)

    # Other threads cannot set handlers, and no Ctrl-C reaches them.
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield noted
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _joined(arguments: Sequence[str]) -> list[str]:
    """Join --preprocess to its value: -1..1 looks like an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--preprocess":
            argument = f"{joined.pop()}={argument}"
        joined.append(argument)
    return joined


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one sentence, as every other error."""

    #: Gives what stands at the end of the help, where that takes a while to find out.
    details: Callable[[], str] | None = None

    def format_help(self) -> str:
        if self.details is None:
            return super().format_help()
        return f"{super().format_help()}\n{self.details()}\n"

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def _is_users(error: Exception) -> bool:
    if isinstance(error, ModuleNotFoundError):
        # What an extra of the package brings; any other is a fault of the program.
        return "pdutils[" in str(error)
    return isinstance(error, (ValueError, OSError))


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m pdutils", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_run, _add_defend, _add_evaluate, _add_table, _add_app):
        add(commands)
    return parser


def _add(commands: Any, name: str, run: Any, summary: str, text: str) -> _Parser:
    """Add a command; its examples stand below its options."""
    about, _, examples = text.partition("examples:\n")
    parser: _Parser = commands.add_parser(
        name,
        help=summary,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=about,
        epilog=f"examples:\n{examples}",
    )
    parser.set_defaults(command=run, parser=parser)
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)


def _add_run(commands: Any) -> None:
    add = _add(commands, "run", _run, "execute notebooks", _RUN).add_argument
    add("notebooks", nargs="*", metavar="NOTEBOOK", help="03, 03_wavelet_denoising, or a path")
    add("--classifier", metavar="NAME", help="the same as -p classifier NAME")
    own: dict[str, Any] = {"action": "append", "default": [], "dest": "parameters"}
    text = "a parameter in place of the notebook's own; again for more"
    add("-p", nargs=2, metavar=("NAME", "VALUE"), help=text, **own)
    where = "where to write (results/ of the checkout, or here)"
    add("--output", metavar="DIR", type=Path, help=where)
    add("--all", action="store_true", help="all notebooks, not only 01 to 09")
    add("--timeout", metavar="S", type=int, default=3600, help="seconds a notebook may take (3600)")
    jobs = min(2, os.cpu_count() or 1)
    add("--jobs", metavar="N", type=int, default=jobs, help=f"notebooks at once ({jobs})")


def _run(options: argparse.Namespace) -> int:
    from pdutils.cli import runner
    from pdutils.demo.examples import results_folder

    asked = {} if options.classifier is None else {"classifier": options.classifier}
    asked |= dict(options.parameters)
    if str(asked.get("classifier", "")).endswith(".keras"):
        options.parser.error(
            "--classifier takes a name; a model of your own goes into notebook 8: "
            "run 08 -p model_file model.keras"
        )
    output = options.output or results_folder()
    try:
        notebooks = runner.choose_notebooks(options.notebooks, everything=options.all)
        outcomes = runner.run_notebooks(
            notebooks, output, asked, timeout=options.timeout, jobs=options.jobs
        )
    except runner.UsageError as error:
        options.parser.error(str(error))
    failures = {outcome.name: outcome.failure for outcome in outcomes if outcome.failure}
    for name, failure in failures.items():
        print(f"\n{name} failed: {failure.error}", file=sys.stderr)
        print(textwrap.indent(failure.source, "    "), file=sys.stderr)
    print(f"{len(outcomes) - len(failures)} of {len(outcomes)} notebooks ran to their end")
    return 1 if failures else 0


def _add_defend(commands: Any) -> None:
    summary = "classify an image or a folder, before and after the defence"
    add = _add(commands, "defend", _defend, summary, _DEFEND).add_argument
    add("path", metavar="IMAGE|FOLDER", type=Path, help="a picture, or a folder of labelled ones")
    _add_classifier(add)
    add("--defense", metavar="TEXT", help="all of the defence, in place of the next seven options")
    add("--map", metavar="MAP", help="none, cam, rcam, or a file or folder of grey pictures (none)")
    add("--deflections", metavar="N", type=int, help="how many; 0 for none (200)")
    add("--window", metavar="N", type=int, help="how far a neighbour may be (10)")
    add("--reading", choices=READINGS, help="what one deflection is (blog)")
    known = (*DENOISERS, "none")
    add("--denoiser", metavar="NAME", choices=known, help=f"{', '.join(known)} (wavelet)")
    add("--sigma", metavar="S", type=float, help="of the wavelet and nl_means denoisers (0.04)")
    add("--sigma-scale", choices=SIGMA_SCALES, help="what sigma is measured in (channel)")
    add("--runs", metavar="N", type=int, default=1, help="defend so often (1)")
    add(
        "--aggregate", choices=DEFENSE_AGGREGATES, default="mean", help="what runs amount to (mean)"
    )
    add("--seed", metavar="N", type=_seed, default=0, help="of the random numbers (0)")
    add("--save", metavar="FILE", type=Path, help="write the defended image, of the first run")
    add("--batch-size", metavar="N", type=int, default=32, help="of a folder: images at once (32)")


def _add_classifier(add: Callable[..., Any]) -> None:
    names = "efficientnet_lite0, demo, resnet50, ... or model.keras (auto)"
    add("--classifier", metavar="NAME", help=names)
    add("--weights", metavar="FILE", type=Path, help="a file of weights for it")
    scalings = f"how model.keras takes its images: {', '.join(SCALINGS)} (-1..1)"
    add("--preprocess", metavar="SCALING", choices=SCALINGS, help=scalings)
    names = "of model.keras, one a line or a JSON list"
    add("--class-names", metavar="FILE", type=Path, help=names)


def _defend(options: argparse.Namespace) -> int:
    maps = None if options.map in (None, *MAPS) else Path(options.map)
    files = _check_paths(options, maps)
    defense = _defense(options)
    classifier = _named_classifier(options, "auto").load()
    shown = _defend_image if files is None else partial(_defend_folder, files)
    print("\n\n".join(shown(options, defense, maps, classifier)))
    return 0


def _defense(options: argparse.Namespace) -> "Defense":
    """Make the defence of the one text or of the options; what is left out is `Defense`'s own."""
    from pdutils.defenses.pipeline import Defense

    names = ("map", "deflections", "window", "reading", "denoiser", "sigma", "sigma_scale")
    given: dict[str, Any] = {name: getattr(options, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    if options.defense is not None:
        if given:
            both = next(iter(given)).replace("_", "-")
            options.parser.error(f"--defense says all of the defence: give it or --{both}")
        defense = Defense.parse(options.defense)
    else:
        own = {name: given.pop(name) for name in names[-2:] if name in given}
        kind = given.pop("map", "none")
        if given.get("denoiser") == "none":
            given["denoiser"] = None
            if own:
                options.parser.error(f"--{next(iter(own)).replace('_', '-')} goes with a denoiser")
        given["activation"] = kind if kind in MAPS else "none"
        defense = Defense(**given, denoiser_options=own)
    return replace(defense, runs=options.runs, aggregate=options.aggregate)


def _check_paths(options: argparse.Namespace, maps: Path | None) -> "list[tuple[Path, str]] | None":
    """Refuse what cannot be read or written before a classifier is loaded, or even downloaded.

    Of a folder, give its labelled pictures.
    """
    from pdutils.images import check_target, load_image, load_map

    path = options.path
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_dir():
        return _check_folder(options, maps)
    load_image(path)
    if maps:
        load_map(_map_of(path, maps))
    if options.save:
        check_target(options.save)
    return None


def _check_folder(options: argparse.Namespace, maps: Path | None) -> "list[tuple[Path, str]]":
    from pdutils.evaluation.datasets import maps_by_name
    from pdutils.images import find_pictures

    if options.save:
        options.parser.error("--save takes the result of one image, not of a folder")
    if maps and not maps.is_dir():
        options.parser.error(
            f"--map takes one of {', '.join(MAPS)} with a folder of pictures, or a folder of maps, "
            f"got {maps}"
        )
    found = find_pictures(options.path)
    files = found.labelled()
    if maps:
        maps_by_name(options.path, found.files, maps)
    _print_passed_over(options.path, str(found))
    return files


def _print_passed_over(folder: Path, passed_over: str) -> None:
    if passed_over:
        print(f"{folder}: {passed_over}", file=sys.stderr)


def _map_of(picture: Path, maps: Path) -> Path:
    """Give the file of a picture's map: the one named, or that of its name in a folder."""
    from pdutils.evaluation.datasets import maps_by_name

    return maps_by_name(picture.parent, [picture], maps)[0] if maps.is_dir() else maps


def _defend_image(
    options: argparse.Namespace, defense: "Defense", maps: Path | None, classifier: "Classifier"
) -> list[str]:
    import numpy as np

    from pdutils.evaluation.datasets import fitting_map
    from pdutils.images import load_image, save_image

    image = load_image(options.path, classifier.input_size)
    if maps:
        chances: Array | None = fitting_map(_map_of(options.path, maps), classifier.input_size)
    else:
        chances = defense.activation_map(classifier, image)
    before = classifier.predict(image)
    after = defense.predict(classifier, image, rng=options.seed, activation_map=chances)

    def first_run(steps: "Defense") -> "Array":
        return steps.transform(classifier, image, rng=options.seed, activation_map=chances)

    written = []
    if options.save:
        save_image(options.save, first_run(defense))
        written = _written(options.save, first_run(defense), classifier)
    changed = np.any(first_run(replace(defense, denoiser=None)) != image, axis=-1)
    return [
        f"{options.path}, seen by {classifier.name}",
        _side_by_side(classifier.top(before), classifier.top(after)),
        f"{_in_words(defense, maps)}. Deflection changed {changed.mean():.1%} of the pixels. "
        f"{_verdict(classifier.top(before, 1)[0], classifier.top(after, 1)[0])}.",
        *written,
    ]


def _written(path: Path, defended: "Array", classifier: "Classifier") -> list[str]:
    """Say what a file holds that does not give back the picture that was saved in it."""
    import numpy as np

    from pdutils._utils import on_grid
    from pdutils.images import load_image

    back = load_image(path)
    if back.shape == defended.shape and np.array_equal(back, on_grid(defended)):
        return []
    if back.shape == defended.shape:
        how = f"values differ by up to {np.abs(back - on_grid(defended)).max():.0f} of 255"
    else:
        how = f"{back.shape[0]} x {back.shape[1]} pixels"
    seen = classifier.top(classifier.predict(load_image(path, classifier.input_size)))
    listed = ", ".join(f"{found.class_name} {found.probability:.3f}" for found in seen)
    return [
        f"{path} holds another picture, since {path.suffix} does not keep every value ({how}); "
        f".png does. Seen in it: {listed}."
    ]


def _in_words(defense: "Defense", maps: Path | None) -> str:
    steps = []
    if defense.deflections:
        guide = {"none": "without a map", "cam": "spared by CAM", "rcam": "spared by robust CAM"}
        own = maps and f"spared by the {'maps in' if maps.is_dir() else 'map'} {maps}"
        steps.append(
            f"{defense.deflections} deflections ({defense.reading} reading, window "
            f"{defense.window}) {own or guide[defense.activation]}"
        )
    if defense.denoiser:
        sigma = defense.denoiser_options.get("sigma")
        steps.append(f"{defense.denoiser} denoising{'' if sigma is None else f', sigma {sigma}'}")
    runs = f"; {defense.aggregate} of {defense.runs} runs" if defense.runs > 1 else ""
    return f"Defence: {', then '.join(steps) or 'nothing'}{runs}"


def _verdict(before: "Prediction", after: "Prediction") -> str:
    if before.number == after.number:
        return f"The most probable class stays {before.class_name}"
    return f"The most probable class was {before.class_name} and is now {after.class_name}"


def _side_by_side(before: "list[Prediction]", after: "list[Prediction]") -> str:
    width = max(len(prediction.class_name) for prediction in [*before, *after])
    lines = [f"{'before':{width + 11}}after"]
    for pair in zip(before, after, strict=True):
        cells = [f"{found.class_name:{width}}  {found.probability:.3f}" for found in pair]
        lines.append("    ".join(cells))
    return "\n".join(lines)


def _defend_folder(
    files: "list[tuple[Path, str]]",
    options: argparse.Namespace,
    defense: "Defense",
    maps: Path | None,
    classifier: "Classifier",
) -> list[str]:
    from pdutils._utils import generator, progress_bar
    from pdutils.evaluation.datasets import FolderSource, classify, maps_by_name

    source = FolderSource(files, classifier, root=options.path)
    own = maps_by_name(options.path, [path for path, _ in files], maps) if maps else []
    # One generator for all batches: each image's numbers do not depend on the batch size.
    rng = generator(options.seed)

    def defended(batch: "Array", chances: "Array | None" = None) -> "Array":
        return defense.predict(classifier, batch, rng=rng, activation_map=chances)

    results = []
    with progress_bar(total=2 * len(files), unit="image") as bar:
        for predict, maps_of in ((classifier.predict, []), (defended, own)):

            def counted(batch: "Array", *chances: "Array", predict: Any = predict) -> "Array":
                probabilities: Array = predict(batch, *chances)
                bar.update(len(batch))
                return probabilities

            size = options.batch_size
            results.append(classify(classifier, source, counted, batch_size=size, maps=maps_of))
    return [
        f"{options.path}, seen by {classifier.name}",
        _rates(options.path, *results),
        f"{_in_words(defense, maps)}.",
    ]


def _rates(folder: Path, before: "FolderResult", after: "FolderResult") -> str:
    lines = [f"{'':7}{'before':20}after"]
    for name in ("top1", "top5"):
        cells = [f"{getattr(result, name)!s:20}" for result in (before, after)]
        lines.append(f"{name:7}{''.join(cells)}".rstrip())
    lines.append(f"\nn = {after.top1.n} images; in brackets the 95% interval (Wilson)")
    lines += [f"skipped {folder / name}: {reason}" for name, reason in after.skipped]
    return "\n".join(lines)


def _add_evaluate(commands: Any) -> None:
    summary = "evaluate defences against attacks, image by image"
    parser = _add(commands, "evaluate", _evaluate, summary, _EVALUATE)
    parser.details = _names_with_knobs
    add = parser.add_argument
    add("images", metavar="IMAGES", help="a folder, or drawings:N")
    add("--images-list", metavar="FILE", type=Path, help="lines NAME LABEL, or Kaggle's CSV")
    add("--limit", metavar="N", type=int, help="only so many images, chosen by the seed")
    _add_classifier(add)
    add("--attacks", metavar="ATTACK", nargs="*", default=[], help="listed below")
    add("--defenses", metavar="DEFENSE", nargs="*", default=[], help="listed below")
    add("--runs", metavar="N", type=int, default=10, help="of what draws random numbers (10)")
    add("--seed", metavar="N", type=_seed, default=0, help="of all random numbers (0)")
    add("--batch-size", metavar="N", type=int, default=32, help="images at once (32)")
    add("--output", metavar="FILE", type=Path, help="where records are kept (a file in results/)")
    add("--scheduler", metavar="ADDRESS", help="of a Dask cluster, or local:N for N processes")
    add("--dry-run", action="store_true", help="tell what it would cost, and stop")


def _names_with_knobs() -> str:
    from pdutils.evaluation.registry import attacks_help, defenses_help

    return f"attacks:\n{attacks_help()}\n\ndefenses:\n{defenses_help()}"


def _evaluate(options: argparse.Namespace) -> int:
    _check_evaluation(options)
    from pdutils import classifiers
    from pdutils.evaluation.study import Study, estimate, run

    drawings = options.images.startswith(_DRAWINGS)
    named = _named_classifier(options, "demo" if drawings else "auto")
    # Before the network's first operation: whoever goes on later must get the same numbers.
    classifiers.deterministic()
    source = _images(options, named.load())
    asked = {
        "attacks": {"none": "none"} | {text: text for text in options.attacks},
        "defenses": {"none": "none"} | {text: text for text in options.defenses},
        "runs": options.runs,
        "seed": options.seed,
    }
    if options.dry_run:
        print(estimate(named.load(), source, **asked))
        return 0
    output = options.output or _default_output(options)
    run(
        named,
        source,
        **asked,
        batch_size=options.batch_size,
        store=output,
        scheduler=options.scheduler,
    )
    # Whatever the file holds, not only what was asked for now.
    study = Study.open(output)
    report = study.report("majority")
    print(str(replace(report, tables={"accuracy": report.tables["accuracy"]})).rstrip())
    for name, reason in study.skipped:
        print(f"skipped {name}: {reason}")
    print(f"\nrecords: {output}; `python -m pdutils table {output}` prints more")
    return 0


def _default_output(options: argparse.Namespace) -> Path:
    """Name a file by what must not be mixed, so that the same command goes on where it ended."""
    import hashlib

    from pdutils.demo.examples import results_folder

    own = ("images", "images_list", "limit", "classifier", "weights", "runs", "seed", "batch_size")
    settings = repr([str(getattr(options, name)) for name in own]).encode()
    folder = results_folder()
    folder.mkdir(exist_ok=True)
    return folder / f"evaluation-{hashlib.sha256(settings).hexdigest()[:8]}.sqlite"


def _check_evaluation(options: argparse.Namespace) -> None:
    """Refuse what is misspelled before a classifier is loaded, or even downloaded."""
    from pdutils.evaluation.registry import parse_attack, parse_defense

    for text in options.attacks:
        parse_attack(text)
    for text in options.defenses:
        parse_defense(text)
    drawings = options.images.startswith(_DRAWINGS)
    if drawings and options.images_list:
        options.parser.error("--images-list goes with a folder, not with drawings")
    if drawings:
        _number_of_drawings(options.images)
    elif not Path(options.images).is_dir():
        raise FileNotFoundError(f"{options.images}: no such folder; drawings:N makes drawings")


def _number_of_drawings(text: str) -> int:
    number = text.removeprefix(_DRAWINGS)
    if not number.isdecimal() or int(number) < 1:
        raise ValueError(f"expected drawings:N with N at least 1, got {text}")
    return int(number)


def _named_classifier(options: argparse.Namespace, default: str) -> "ClassifierSource":
    from pdutils.classifiers import ClassifierSource, read_class_names

    name = options.classifier or default
    names = read_class_names(options.class_names) if options.class_names else None
    return ClassifierSource(
        # A worker may have another working directory.
        name=str(Path(name).absolute()) if name.endswith(".keras") else name,
        weights=str(options.weights.absolute()) if options.weights else None,
        preprocess=options.preprocess,
        class_names=names,
    )


def _images(options: argparse.Namespace, classifier: "Classifier") -> "Source":
    from pdutils.demo.drawing import CLASS_NAMES
    from pdutils.evaluation import datasets

    source: Source
    if options.images.startswith(_DRAWINGS):
        if classifier.class_names != CLASS_NAMES:
            raise ValueError(
                f"drawings are of the classes of the demo; {classifier.name} has others"
            )
        source = datasets.DrawingSource(_number_of_drawings(options.images), options.seed)
    elif options.images_list:
        source = datasets.listed_source(options.images, options.images_list, classifier)
    else:
        source = datasets.folder_source(options.images, classifier)
        _print_passed_over(Path(options.images), source.passed_over)
        for label in source.empty_classes:
            print(f"{Path(options.images) / label}: no picture in this folder", file=sys.stderr)
    if options.limit is None:
        return source
    return datasets.chosen(source, options.limit, options.seed)


def _add_table(commands: Any) -> None:
    summary = "print tables of the records of an evaluation"
    add = _add(commands, "table", _table, summary, _TABLE).add_argument
    add("file", metavar="FILE", type=Path, help="what evaluate --output wrote")
    add("--protocol", choices=PROTOCOLS, default="paper", help="which images count (paper)")
    add(
        "--aggregate", choices=AGGREGATES, default="majority", help="what runs amount to (majority)"
    )
    baseline = "what the other defences are compared with, image by image (none)"
    add("--baseline", metavar="DEFENSE", help=baseline)
    add("--output", metavar="DIR", type=Path, help="write the tables into this folder too")


def _table(options: argparse.Namespace) -> int:
    from pdutils.evaluation.registry import parse_defense
    from pdutils.evaluation.study import Study

    baseline = None if options.baseline is None else parse_defense(options.baseline).text
    study = Study.open(options.file)
    report = study.report(options.aggregate, options.protocol, baseline)
    print(str(report).rstrip())
    begun, images = study.progress()
    if begun < images:
        print(f"\n{begun} of {images} images so far: the evaluation is not finished")
    if options.output:
        for path in report.write(options.output, options.file.stem):
            print(f"written: {path}")
    return 0


def _add_app(commands: Any) -> None:
    summary = "serve the explorer as a page on localhost"
    add = _add(commands, "app", _app, summary, _APP).add_argument
    add("--port", metavar="N", type=int, help="(8866, or the next that is free)")
    add("--no-browser", action="store_true", help="do not open it")
    add("voila", nargs="*", metavar="OPTION", help="of Voila, after --")


def _app(options: argparse.Namespace) -> NoReturn:
    from importlib.metadata import distribution

    from pdutils._utils import extra
    from pdutils.demo.examples import demo_root

    with extra("app"):
        # Loading it takes seconds, in a process that another one takes the place of.
        distribution("voila")
    app = demo_root() / "app"
    command = [sys.executable, "-m", "voila", str(app / "explorer.ipynb")]
    command += [f"--Voila.config_file_paths={app / 'jupyter'}", *options.voila]
    command += [f"--port={options.port}"] if options.port is not None else []
    command += ["--no-browser"] if options.no_browser else []
    os.execve(sys.executable, command, os.environ | {"JUPYTER_PATH": str(app / "jupyter")})
