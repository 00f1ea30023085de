"""The command line: run the notebooks, defend images, evaluate defences, serve the explorer."""

import argparse
import inspect
import io
import os
import select
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

# The rest of the package loads with the command that needs it: --help is quick.
if TYPE_CHECKING:
    from pdutils._utils import Array
    from pdutils.classifiers import Classifier, ClassifierSource
    from pdutils.defenses.pipeline import Defense
    from pdutils.evaluation.datasets import Source

MAPS = ("none", "cam", "rcam")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line, by default the process's own; give its exit status.

    0; 1 if a notebook or the work failed; 130 after Ctrl-C; 141 if whoever read what is printed
    went away. A SystemExit has status 2 if what is asked for does not exist, 0 after --help.
    """
    printed = [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
    for stream in printed:
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal's encoding lacks, and what is no Unicode, is written in some form.
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _carry_out(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            # Here, not when the interpreter ends, where nobody could catch what comes of it.
            for stream in printed:
                stream.flush()
    except OSError as error:
        for stream in printed:
            try:
                stream.flush()
            except OSError:
                # To nowhere, else the interpreter tries it again as it ends.
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if isinstance(error, BrokenPipeError):
            # Whoever read has had enough, as `head` has: 128 and the number of that signal.
            return 141
        print(f"error: what is printed cannot be written: {_sentence(error)}", file=sys.stderr)
        return 1


def _carry_out(arguments: list[str]) -> int:
    if "--preprocess" in arguments[:-1]:
        # Its value -1..1 looks like an option.
        i = arguments.index("--preprocess")
        arguments[i : i + 2] = ["=".join(arguments[i : i + 2])]
    options = _parser().parse_args(arguments)
    interrupts: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, note)
    try:
        return int(options.command(options))
    except KeyboardInterrupt:
        pass
    except Exception as error:
        # Some C code on its way makes another error of a KeyboardInterrupt.
        if not interrupts:
            # A module that an extra brings; any other that is missing is a fault of the program.
            is_extra = isinstance(error, ModuleNotFoundError) and "pdutils[" in str(error)
            is_unheard = isinstance(error, BrokenPipeError) and _is_unheard()
            is_told = is_extra or isinstance(error, (ValueError, OSError, MemoryError))
            if is_unheard or not is_told:
                raise
            print(f"error: {_sentence(error)}", file=sys.stderr)
            return 1
    finally:
        signal.signal(signal.SIGINT, before)
    print("interrupted", file=sys.stderr)
    return 130


def _is_unheard() -> bool:
    """Tell whether nobody reads any more what is printed; other pipes may break too."""
    # Not every stream is one of the system's, nor can every system tell.
    with suppress(AttributeError, OSError, ValueError):
        watch = select.poll()
        for stream in (sys.stdout, sys.stderr):
            watch.register(stream.fileno(), 0)
        return bool(watch.poll(0))
    return False


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one sentence, as every other error."""

    def format_help(self) -> str:
        if not self.prog.endswith(" evaluate"):
            return super().format_help()
        from pdutils.evaluation.registry import attacks_help, defenses_help

        listed = f"attacks:\n{attacks_help()}\n\ndefenses:\n{defenses_help()}"
        return f"{super().format_help()}\n{listed}\n"

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    """Make a command of each function, whose docstring is its help, and of its options."""
    parser = _Parser(prog="python -m pdutils", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for run, add_options in _COMMANDS.items():
        about, _, examples = (inspect.getdoc(run) or "").partition("For example:\n")
        command = commands.add_parser(
            run.__name__[1:],
            help=about.partition("\n")[0],
            formatter_class=argparse.RawDescriptionHelpFormatter,
            description=about,
            epilog=f"For example:\n{examples}",
        )
        command.set_defaults(command=run, parser=command)
        add_options(command.add_argument)
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)


def _run_options(add: Any) -> None:
    add("notebooks", nargs="*", metavar="NOTEBOOK", help="03, 03_wavelet_denoising, or a path")
    add("--classifier", metavar="NAME", help="the same as -p classifier NAME")
    own: dict[str, Any] = {"action": "append", "default": [], "dest": "parameters"}
    add("-p", nargs=2, metavar=("NAME", "VALUE"), help="a parameter; again for more", **own)
    add("--output", metavar="DIR", type=Path, help="where to write (results/)")
    add("--all", action="store_true", help="all notebooks, not only 01 to 09")
    add("--timeout", metavar="S", type=int, default=3600, help="seconds a notebook may take (3600)")
    jobs = min(2, os.cpu_count() or 1)
    add("--jobs", metavar="N", type=int, default=jobs, help=f"notebooks at once ({jobs})")


def _run(options: argparse.Namespace) -> int:
    """Execute notebooks, each in a kernel of its own, and leave them in the output folder.

    A notebook that fails does not stop the others; it is named at the end with its error, and the
    exit status is 1.

    VALUE takes the kind of the notebook's own value: a text is taken as it stands, a number is a
    number (400, 1e2, 0.04), a list or a dictionary is written as in Python ("[1, 2]"). Of several
    notebooks, each gets those parameters that it knows; one that none knows is an error.

    For example:
      python -m pdutils run                                the blog, notebooks 01 to 09
      python -m pdutils run 02 06 -p seed 7 -p window 20   two, with other values
      python -m pdutils run --classifier mobilenet_v2 -p weights FILE -p image PHOTO
    """
    from pdutils.cli import runner
    from pdutils.demo.examples import results_folder

    asked = {} if options.classifier is None else {"classifier": options.classifier}
    asked |= dict(options.parameters)
    if str(asked.get("classifier", "")).endswith(".keras"):
        options.parser.error(
            "--classifier takes a name; a model of your own goes into notebook 8: "
            "run 08 -p model_file model.keras"
        )
    try:
        notebooks = runner.choose_notebooks(options.notebooks, everything=options.all)
        output, limits = options.output or results_folder(), (options.timeout, options.jobs)
        outcomes = runner.run_notebooks(notebooks, output, asked, *limits)
    except runner.UsageError as error:
        options.parser.error(str(error))
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed:
        print(f"\n{outcome.name} failed: {outcome.error}", file=sys.stderr)
        print(textwrap.indent(outcome.source, "    "), file=sys.stderr)
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} notebooks ran to their end")
    return 1 if failed else 0


def _defend_options(add: Any) -> None:
    add("path", metavar="IMAGE|FOLDER", type=Path, help="a picture, or a folder of labelled ones")
    _classifier_options(add)
    add("--defense", metavar="TEXT", help="all of the defence, in place of the next seven options")
    add("--map", metavar="MAP", help="none, cam, rcam, or a file or folder of grey pictures (none)")
    add("--deflections", metavar="N", type=int, help="how many; 0 for none (200)")
    add("--window", metavar="N", type=int, help="how far a neighbour may be (10)")
    add("--reading", choices=("blog", "repo", "paper"), help="what one deflection is (blog)")
    known = ("wavelet", "tv", "bilateral", "nl_means", "wiener", "median", "jpeg", "dct", "none")
    add("--denoiser", metavar="NAME", choices=known, help=f"{', '.join(known)} (wavelet)")
    add("--sigma", metavar="S", type=float, help="of the wavelet and nl_means denoisers (0.04)")
    add("--sigma-scale", choices=("channel", "rgb"), help="what sigma is measured in (channel)")
    add("--runs", metavar="N", type=int, default=1, help="defend so often (1)")
    answers = {"choices": ("mean", "majority"), "default": "mean"}
    add("--aggregate", **answers, help="what runs amount to (mean)")
    add("--seed", metavar="N", type=_seed, default=0, help="of the random numbers (0)")
    add("--save", metavar="FILE", type=Path, help="write the defended image, of the first run")
    add("--batch-size", metavar="N", type=int, default=32, help="of a folder: images at once (32)")


def _classifier_options(add: Any) -> None:
    add("--classifier", metavar="NAME", help="demo, resnet50, ... or model.keras (auto)")
    add("--weights", metavar="FILE", type=Path, help="a file of weights for it")
    known = ("-1..1", "0..1", "0..255", "caffe", "torch", "tf")
    add("--preprocess", choices=known, help="how model.keras takes its images (-1..1)")
    add(
        "--class-names",
        metavar="FILE",
        type=Path,
        help="of model.keras, one a line or JSON; imagenet: those of its 1000 classes",
    )


def _defend(options: argparse.Namespace) -> int:
    """Show what pixel deflection and denoising do to a prediction.

    Of a picture, scaled to the classifier's size: the five most probable classes before and after.
    Of a folder of labelled pictures (<label>_<anything>.png, or a folder a class): how often the
    label is the most probable class, or among five, before and after, with the 95% interval.

    A folder of maps holds a grey picture for each picture, with its name or that of a PNG, and with
    that of its class folder before it where there is one. Each option's default stands in brackets.

    For example:
      python -m pdutils defend data/adversaries/badger_000.png --classifier demo
      python -m pdutils defend photo.png --map rcam --deflections 1500 --save defended.png
      python -m pdutils defend photo.png --defense pd+rcam+wd:deflections=600 --runs 10
      python -m pdutils defend photos/ --classifier mobilenet_v2 --weights FILE
      python -m pdutils defend photos/ --classifier model.keras --class-names names.txt --map maps/
    """
    files, maps = _inputs(options)
    defense = _defense(options)
    classifier = _named_classifier(options, "auto").load()
    if files:
        shown = _defend_folder(options, files, maps, defense, classifier)
    else:
        shown = _defend_image(options, maps, defense, classifier)
    print("\n\n".join([f"{options.path}, seen by {classifier.name}", *shown]))
    return 0


def _inputs(options: argparse.Namespace) -> tuple[list[tuple[Path, str]], list[Path]]:
    """Find labelled pictures and maps, and refuse what is wrong before a classifier is loaded."""
    from pdutils.evaluation.datasets import maps_by_name
    from pdutils.images import Pictures, check_target, find_pictures, load_image, load_map

    path, is_folder = options.path, options.path.is_dir()
    maps = None if options.map in (None, *MAPS) else Path(options.map)
    if is_folder and options.save:
        options.parser.error("--save takes the result of one image, not of a folder")
    if is_folder and maps and not maps.is_dir():
        known = f"one of {', '.join(MAPS)} with a folder of pictures, or a folder of maps"
        options.parser.error(f"--map takes {known}, got {maps}")
    if not is_folder:
        load_image(path)
    found = find_pictures(path) if is_folder else Pictures(path.parent, [path])
    own = [maps] if maps else []
    if maps and maps.is_dir():
        own = maps_by_name(found.root, found.files, maps)
    if is_folder:
        files = found.labelled()
        if passed_over := str(found):
            print(f"{path}: {passed_over}", file=sys.stderr)
        return files, own
    for file in own:
        load_map(file)
    if options.save:
        check_target(options.save)
    return [], own


def _defense(options: argparse.Namespace) -> "Defense":
    """Make the defence of the one text or of the options; what is left out is `Defense`'s own."""
    from pdutils.defenses.pipeline import Defense

    names = ("map", "deflections", "window", "reading", "denoiser", "sigma", "sigma_scale")
    given = {n: value for n in names if (value := getattr(options, n)) is not None}
    runs = {"runs": options.runs, "aggregate": options.aggregate}
    if options.defense is not None:
        for name in given:
            both = name.replace("_", "-")
            options.parser.error(f"--defense says all of the defence: give it or --{both}")
        return replace(Defense.parse(options.defense), **runs)
    own = {name: given.pop(name) for name in names[-2:] if name in given}
    kind = given.pop("map", "none")
    if given.get("denoiser") == "none":
        given["denoiser"] = None
        for name in own:
            options.parser.error(f"--{name.replace('_', '-')} goes with a denoiser")
    activation: Any = kind if kind in MAPS else "none"
    return Defense(**given, **runs, activation=activation, denoiser_options=own)


def _defend_image(
    options: argparse.Namespace, maps: list[Path], defense: "Defense", classifier: "Classifier"
) -> list[str]:
    import numpy as np

    from pdutils.evaluation.datasets import fitting_map
    from pdutils.images import load_image, save_image

    size = classifier.input_size
    image = load_image(options.path, size)
    chances = fitting_map(maps[0], size) if maps else defense.activation_map(classifier, image)
    drawn: dict[str, Any] = {"rng": options.seed, "activation_map": chances}
    before = classifier.top(classifier.predict(image))
    after = classifier.top(defense.predict(classifier, image, **drawn))
    first, last = before[0].class_name, after[0].class_name
    verdict = f"stays {last}" if first == last else f"was {first} and is now {last}"
    deflected = replace(defense, denoiser=None).transform(classifier, image, **drawn)
    changed = np.any(deflected != image, axis=-1)
    width = max(len(found.class_name) for found in [*before, *after])
    rows = [f"{'before':{width + 11}}after"]
    for pair in zip(before, after, strict=True):
        cells = [f"{found.class_name:{width}}  {found.probability:.3f}" for found in pair]
        rows.append("    ".join(cells))
    written = []
    if options.save:
        defended = defense.transform(classifier, image, **drawn)
        save_image(options.save, defended)
        written = _written(options.save, defended, classifier)
    words = f"{_in_words(defense, options.map)}. Deflection changed {changed.mean():.1%} of the "
    return ["\n".join(rows), f"{words}pixels. The most probable class {verdict}.", *written]


def _written(path: Path, defended: "Array", classifier: "Classifier") -> list[str]:
    """Say what a file holds that does not give back the picture that was saved in it."""
    from pdutils._utils import on_grid
    from pdutils.images import load_image

    back, wanted = load_image(path), on_grid(defended)
    apart = abs(back - wanted).max() if back.shape == wanted.shape else None
    if apart == 0:
        return []
    size = f"{back.shape[0]} x {back.shape[1]} pixels"
    how = size if apart is None else f"values differ by up to {apart:.0f} of 255"
    seen = classifier.top(classifier.predict(load_image(path, classifier.input_size)))
    listed = ", ".join(f"{found.class_name} {found.probability:.3f}" for found in seen)
    return [
        f"{path} holds another picture, since {path.suffix} does not keep every value ({how}); "
        f".png does. Seen in it: {listed}."
    ]


def _in_words(defense: "Defense", kind: str | None) -> str:
    guides = {"none": "without a map", "cam": "spared by CAM", "rcam": "spared by robust CAM"}
    guide = guides[defense.activation]
    if kind not in (None, *MAPS):
        guide = f"spared by the {'maps in' if Path(str(kind)).is_dir() else 'map'} {kind}"
    steps = []
    if defense.deflections:
        how = f"{defense.reading} reading, window {defense.window}"
        steps.append(f"{defense.deflections} deflections ({how}) {guide}")
    if defense.denoiser:
        sigma = defense.denoiser_options.get("sigma")
        steps.append(f"{defense.denoiser} denoising{'' if sigma is None else f', sigma {sigma}'}")
    runs = f"; {defense.aggregate} of {defense.runs} runs" if defense.runs > 1 else ""
    return f"Defence: {', then '.join(steps) or 'nothing'}{runs}"


def _defend_folder(
    options: argparse.Namespace,
    files: list[tuple[Path, str]],
    maps: list[Path],
    defense: "Defense",
    classifier: "Classifier",
) -> list[str]:
    from pdutils._utils import generator, progress_bar
    from pdutils.evaluation.datasets import FolderSource, compare

    source = FolderSource(files, classifier, root=options.path)
    # One generator for all batches: each image's numbers do not depend on the batch size.
    rng = generator(options.seed)
    with progress_bar(total=2 * len(files), unit="image") as bar:

        def plain(batch: "Array", *_: "Array") -> "Array":
            bar.update(len(batch))
            return classifier.predict(batch)

        def defended(batch: "Array", chances: "Array | None" = None) -> "Array":
            bar.update(len(batch))
            return defense.predict(classifier, batch, rng=rng, activation_map=chances)

        size = options.batch_size
        before, after = compare(classifier, source, (plain, defended), batch_size=size, maps=maps)
    lines = [
        f"{'':7}{'before':20}after",
        f"top1   {before.top1!s:20}{after.top1}",
        f"top5   {before.top5!s:20}{after.top5}",
        f"\nn = {after.top1.n} images; in brackets the 95% interval (Wilson)",
        *(f"skipped {options.path / name}: {reason}" for name, reason in after.skipped),
    ]
    return ["\n".join(lines), f"{_in_words(defense, options.map)}."]


def _evaluate_options(add: Any) -> None:
    add("images", metavar="IMAGES", help="a folder, or drawings:N")
    add("--images-list", metavar="FILE", type=Path, help="lines NAME LABEL, or Kaggle's CSV")
    add("--limit", metavar="N", type=int, help="only so many images, chosen by the seed")
    _classifier_options(add)
    add("--attacks", metavar="ATTACK", nargs="*", default=[], help="listed below")
    add("--defenses", metavar="DEFENSE", nargs="*", default=[], help="listed below")
    add("--runs", metavar="N", type=int, default=10, help="of what draws random numbers (10)")
    add("--seed", metavar="N", type=_seed, default=0, help="of all random numbers (0)")
    add("--batch-size", metavar="N", type=int, default=32, help="images at once (32)")
    add("--output", metavar="FILE", type=Path, help="where records are kept (a file in results/)")
    add("--scheduler", metavar="ADDRESS", help="of a Dask cluster, or local:N for N processes")
    add("--dry-run", action="store_true", help="tell what it would cost, and stop")


def _evaluate(options: argparse.Namespace) -> int:
    r"""Measure how defences hold against attacks, image by image.

    Every image meets every attack, with every defence, the random ones several times. IMAGES is a
    folder of labelled pictures (<label>_<anything>.png, or a folder a class), the folder of
    ImageNet's validation set with --images-list, or drawings:N for N fresh drawings of the demo.

    Records go into --output as they are made; the same command goes on where an earlier one ended,
    and more attacks and defences can be added; a file NAME.sqlite.xz is kept packed. The attack and
    the defence "none" are always evaluated. Printed are the shares that are right; `python -m
    pdutils table` prints more.

    An attack or a defence is a name, or a name and knobs: igsm:eps=4,iterations=10.

    For example:
      python -m pdutils evaluate drawings:100 --attacks igsm:eps=4 --defenses pd+wd pd+rcam+wd
      python -m pdutils evaluate photos/ --classifier mobilenet_v2 --weights FILE --attacks fgsm \
          --defenses pd pd+wd --output results/photos.sqlite --scheduler local:4
      python -m pdutils evaluate ILSVRC2012_img_val/ --images-list val.txt --limit 1000 \
          --classifier resnet50 --attacks igsm --defenses pd+rcam+wd --dry-run
    """
    drawings = _checked_drawings(options)
    from pdutils import classifiers
    from pdutils.evaluation.study import Study, estimate, run

    named = _named_classifier(options, "auto" if drawings is None else "demo")
    # Before the network's first operation: whoever goes on later must get the same numbers.
    classifiers.deterministic()
    source = _images(options, drawings, named.load())
    asked = {name: getattr(options, name) for name in ("attacks", "defenses", "runs", "seed")}
    if options.dry_run:
        print(estimate(named.load(), source, **asked))
        return 0
    output = options.output or _default_output(options)
    asked |= {"batch_size": options.batch_size, "scheduler": options.scheduler}
    run(named, source, **asked, store=output)
    # Whatever the file holds, not only what was asked for now.
    study = Study.open(output)
    report = study.report("majority")
    print(str(replace(report, tables={"accuracy": report.tables["accuracy"]})).rstrip())
    for name, reason in study.skipped:
        print(f"skipped {name}: {reason}")
    print(f"\nrecords: {output}; `python -m pdutils table {output}` prints more")
    return 0


def _checked_drawings(options: argparse.Namespace) -> int | None:
    """Count the drawings, if any, and refuse what is misspelled before a classifier is loaded."""
    from pdutils.evaluation.registry import parse_attack, parse_defense

    for text in options.attacks:
        parse_attack(text)
    for text in options.defenses:
        parse_defense(text)
    number = options.images.removeprefix("drawings:")
    if number == options.images:
        if not Path(number).is_dir():
            raise FileNotFoundError(f"{options.images}: no such folder; drawings:N makes drawings")
        return None
    if options.images_list:
        options.parser.error("--images-list goes with a folder, not with drawings")
    if not number.isdecimal() or int(number) < 1:
        raise ValueError(f"expected drawings:N with N at least 1, got {options.images}")
    return int(number)


def _default_output(options: argparse.Namespace) -> Path:
    """Name a file by what must not be mixed, so that the same command goes on where it ended."""
    import hashlib

    from pdutils.demo.examples import results_folder

    own = ("images", "images_list", "limit", "classifier", "weights", "runs", "seed", "batch_size")
    settings = repr([str(getattr(options, name)) for name in own]).encode()
    return results_folder() / f"evaluation-{hashlib.sha256(settings).hexdigest()[:8]}.sqlite"


def _named_classifier(options: argparse.Namespace, default: str) -> "ClassifierSource":
    from pdutils.classifiers import ClassifierSource, read_class_names

    name, listed = options.classifier or default, options.class_names
    names: Any = listed and read_class_names(listed) if str(listed) != "imagenet" else "imagenet"
    return ClassifierSource(
        # A worker may have another working directory.
        name=str(Path(name).absolute()) if name.endswith(".keras") else name,
        weights=str(options.weights.absolute()) if options.weights else None,
        preprocess=options.preprocess,
        class_names=names,
    )


def _images(
    options: argparse.Namespace, drawings: int | None, classifier: "Classifier"
) -> "Source":
    from pdutils.evaluation import datasets

    source: Source
    if drawings is not None:
        if classifier.class_names != datasets.CLASS_NAMES:
            raise ValueError(
                f"drawings are of the classes of the demo; {classifier.name} has others"
            )
        source = datasets.DrawingSource(drawings, options.seed)
    elif options.images_list:
        source = datasets.listed_source(options.images, options.images_list, classifier)
    else:
        source = datasets.folder_source(options.images, classifier)
        if source.passed_over:
            print(f"{options.images}: {source.passed_over}", file=sys.stderr)
        for label in source.empty_classes:
            print(f"{Path(options.images) / label}: no picture in this folder", file=sys.stderr)
    some = options.limit is not None
    return datasets.chosen(source, options.limit, options.seed) if some else source


def _table_options(add: Any) -> None:
    add("file", metavar="FILE", type=Path, help="what evaluate --output wrote")
    add("--protocol", choices=("paper", "plain"), default="paper", help="images that count (paper)")
    answers = {"choices": ("one", "majority", "mean", "worst"), "default": "majority"}
    add("--aggregate", **answers, help="what runs amount to (majority)")
    add("--baseline", metavar="DEFENSE", help="what the others are compared with (none)")
    add("--output", metavar="DIR", type=Path, help="write the tables into this folder too")


def _table(options: argparse.Namespace) -> int:
    """Print tables of the records that `evaluate` wrote, or is writing.

    What must be known to read them stands beside them; with --output, they are written as CSV,
    LaTeX and Markdown too.

    --protocol says which images count: paper, those that the undefended network gets right when
    clean; plain, all. --aggregate says what the runs of a defence on an image amount to: one, the
    first run alone; majority, the class that most runs see; mean, the class of the mean
    probability; worst, right only if every run is.

    For example:
      python -m pdutils table results/photos.sqlite
      python -m pdutils table results/photos.sqlite --aggregate worst --output results/tables
      python -m pdutils table results/photos.sqlite --baseline jpeg
    """
    from pdutils.evaluation.registry import parse_defense
    from pdutils.evaluation.study import Study

    baseline = None if options.baseline is None else parse_defense(options.baseline).text
    study = Study.open(options.file)
    report = study.report(options.aggregate, options.protocol, baseline)
    print(str(report).rstrip())
    begun, images = study.progress()
    if begun < images:
        print(f"\n{begun} of {images} images so far: the evaluation is not finished")
    for run in study.made:
        by = run["command"] or "a call from Python"
        print(f"\nmade {run['date'][:10]} by {by}")
        # Earlier files have no word of an accelerator.
        machine = filter(None, (run["processor"], f"{run['cores']} cores", run.get("accelerator")))
        print(f"on {', '.join(machine)}, Python {run['python']}")
    if options.output:
        for path in report.write(options.output, options.file.stem):
            print(f"written: {path}")
    return 0


def _app_options(add: Any) -> None:
    add("--classifier", metavar="NAME", default="efficientnet_lite0",
        help="the network that it begins with (%(default)s)")  # fmt: skip
    add("--weights", metavar="FILE", default="", help="a file of weights for it")
    add("--host", metavar="NAME", default="localhost",
        help="where to listen (%(default)s: this machine alone; 0.0.0.0: its network)")  # fmt: skip
    add("--port", metavar="N", type=int, help="(8866, or the next that is free)")
    add("--no-browser", action="store_true", help="do not open it")


def _app(options: argparse.Namespace) -> int:
    """Serve the explorer as a page, on localhost unless told otherwise, until Ctrl-C.

    For example:
      python -m pdutils app --port 9000 --no-browser
      python -m pdutils app --host 0.0.0.0
    """
    from pdutils.explorer.engine import Settings
    from pdutils.explorer.page import serve

    start = Settings(classifier=options.classifier, weights=options.weights)
    serve(start, host=options.host, port=options.port, browser=not options.no_browser)
    return 0


_COMMANDS: dict[Callable[[argparse.Namespace], int], Callable[[Any], None]] = {
    _run: _run_options,
    _defend: _defend_options,
    _evaluate: _evaluate_options,
    _table: _table_options,
    _app: _app_options,
}
