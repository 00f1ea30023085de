"""The pages of results, written from the records in `records/`, and the records of a network more.

`python -m tools.evidence` writes `docs/results.md`, the pages in `docs/results/` and the verdict in
README.md from the templates in `tools/pages/`. With photos and a network it first evaluates what
`tools/evidence.toml` lists on them; the network is then a column more of every table.
"""

import argparse
import io
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pdutils import plots, published
from pdutils._utils import whole_file
from pdutils.evaluation.registry import parse_attack, parse_defense, without_digest
from pdutils.evaluation.store import StoredRecords
from pdutils.evaluation.study import Study
from pdutils.stats import Rate

ROOT = Path(__file__).resolve().parents[1]
SUFFIX = ".sqlite.xz"

#: Where README holds what is written here.
_OPENING, _CLOSING = "<!-- written by tools.evidence -->\n", "<!-- until here -->\n"


@dataclass(frozen=True)
class Topic:
    """An evaluation: attacks and defences by the names that they have on the pages."""

    runs: int
    attacks: dict[str, str]
    defenses: dict[str, str]

    def study(self, path: Path) -> Study:
        """Open the records of a network."""
        attacks = {name: parse_attack(text).text for name, text in self.attacks.items()}
        defenses = {name: parse_defense(text).text for name, text in self.defenses.items()}
        return Study({"clean": "none"} | attacks, {"no defence": "none"} | defenses, path)

    def options(self) -> list[str]:
        """Give what `pdutils evaluate` is asked for besides images and network."""
        asked = ["--attacks", *self.attacks.values(), "--defenses", *self.defenses.values()]
        return ["--runs", str(self.runs), *asked]


class Evidence:
    """The records of a folder by topic and network, and what the templates say of them."""

    def __init__(self, folder: Path = ROOT / "records") -> None:
        told = tomllib.loads((ROOT / "tools" / "evidence.toml").read_text("utf-8"))
        self.folder, self.titles, self.rows = folder, told.pop("networks"), told.pop("beside")
        self.topics = {name: Topic(**topic) for name, topic in told.items()}
        self.study = cache(self._study)

    def networks(self, *topics: str) -> list[str]:
        """List the networks that have records of all of these topics, as the pages order them."""
        found = [
            {
                path.name[len(topic) + 1 : -len(SUFFIX)]
                for path in self.folder.glob(f"{topic}_*{SUFFIX}")
            }
            for topic in topics
        ]
        names = set.intersection(*found)
        known = [name for name in self.titles if name in names]
        return known + sorted(names - set(known))

    def title(self, network: str) -> str:
        """Give what the pages call a network."""
        return str(self.titles.get(network, network))

    def path(self, topic: str, network: str) -> Path:
        """Give the file of a topic's records for a network."""
        return self.folder / f"{topic}_{network}{SUFFIX}"

    def _study(self, topic: str, network: str) -> Study:
        return self.topics[topic].study(self.path(topic, network))

    def rate(self, topic: str, network: str, *cell: str, **how: str) -> Rate:
        """Give the share right, or with `measure` another, in a cell: a defence and an attack."""
        found = _rates(self.study(topic, network), **how)[cell[0]][cell[1]]
        if found is None:
            raise ValueError(f"{self.path(topic, network)} has no {' under '.join(cell)}")
        return found

    def n(self, topic: str, network: str) -> str:
        """Say how many images count, of how many."""
        clean = self.rate(topic, network, "no defence", "clean", protocol="plain")
        return f"n = {clean.successes} of {clean.n} photos"

    def hash_of(self, what: str, topic: str, network: str) -> str:
        """Give the first digits of the SHA-256 of the "weights", or of the photos ("source")."""
        with StoredRecords(self.path(topic, network)) as stored:
            return stored.settings()[what][:12]

    def added(self, topic: str, network: str, first: Sequence[str], second: Sequence[str]) -> Any:
        """Give the share right in one cell minus that in another, image by image."""
        return self.study(topic, network).compare(tuple(first), tuple(second))

    def size(self, topic: str, network: str, attack: str) -> str:
        """Give the mean relative L2 and L-infinity of an attack."""
        return _size(self.study(topic, network).strength()[attack])

    def shares(
        self,
        network: str,
        *topics: str,
        attacks: Sequence[str] = (),
        turned: bool = False,
        **how: str,
    ) -> str:
        """Make the table of the shares right, or of another `measure`, under all or some attacks.

        A row is a defence, a column an attack, or where it is `turned` the other way round. Before
        the defences come the sizes of the perturbations.
        """
        studies = [self.study(topic, network) for topic in topics]
        strengths = [study.strength(how.get("protocol", "paper")) for study in studies]
        columns = [
            (number, attack)
            for number, study in enumerate(studies)
            for attack in attacks or study.attacks
            if attack != "clean" or number == 0
        ]
        rows = [["", *(str(attack) for _, attack in columns)]]
        sizes = [strengths[number].get(attack) for number, attack in columns]
        if any(sizes):
            rows += [["mean L2, L-infinity", *(_size(s) if s else "" for s in sizes)]]
        rates = [_rates(study, **how) for study in studies]
        rows += [[str(d), *(_cell(rates[i][d].get(a)) for i, a in columns)] for d in rates[0]]
        return _markdown(list(zip(*rows, strict=True)) if turned else rows)

    def destruction(self, network: str, topic: str, columns: Mapping[str, str | None]) -> str:
        """Make the table of what is kept of clean images and turned back of adversaries.

        `columns` are attacks, each with the column of the paper's table that it stands for, whose
        figures it is held against, or None.
        """
        study = self.study(topic, network)
        kept, turned = study.accuracy(attacks=["clean"]), study.destruction()
        strength = [study.strength()[attack] for attack in columns]
        rows = [["", "clean kept", *columns]]
        rows += [["mean L2, L-infinity", "", *map(_size, strength)]]
        rows += [["fooled without a defence", "", *(_cell(size.success) for size in strength)]]
        for defense in self.topics[topic].defenses:
            figures = published.DESTRUCTION.get(defense, {})
            found = [
                _beside(turned[defense][attack], figures.get(column or ""))
                for attack, column in columns.items()
            ]
            rows += [[defense, _cell(kept[defense]["clean"]), *found]]
        return _markdown(rows)

    def recovery_sizes(self, topics: Sequence[str]) -> str:
        """Make the table of the paper's attacks: their size, and what is right undefended."""
        networks = self.networks(topics[0])
        rows = [["", "paper: L2; undefended", *map(self.title, networks)]]
        for attack, row in self._paper_rows():
            cells = []
            for network in networks:
                topic = self._topic_of(attack, network, topics)
                study = self.study(topic, network) if topic else None
                bare = study and study.accuracy()["no defence"][attack]
                size = study and study.strength()[attack].l2
                cells += [f"{size.value:.4f}; {bare}" if size else "-"]
            rows += [[attack, f"{row.l2:.2f}; {row.attacked:.2f}", *cells]]
        return _markdown(rows)

    def recovery(self, topics: Sequence[str], defense: str, aggregate: str) -> str:
        """Make the table of what is right with the defence, beside the paper's, with verdicts."""
        networks, field = self.networks(topics[0]), {"one": "single"}.get(aggregate, aggregate)
        rows = [["", "paper, ResNet-50", *map(self.title, networks)]]
        clean = published.ACCURACY["resnet50"]["clean"]
        for attack, row in chain([("clean", clean)], self._paper_rows()):
            cells, figure = [], getattr(row, field)
            for network in networks:
                topic = self._topic_of(attack, network, topics)
                rates = _rates(self.study(topic, network), aggregate=aggregate) if topic else {}
                cells += [_beside(rates.get(defense, {}).get(attack), figure, show=False)]
            rows += [[attack, f"{figure:.2f}", *cells]]
        return _markdown(rows)

    def _paper_rows(self) -> Iterator[tuple[str, published.Recovery]]:
        for attack, place in self.rows.items():
            table, _, name = place.partition(".")
            known = published.LARGER if table == "larger" else published.ACCURACY["resnet50"]
            # C&W has no row of larger perturbations.
            yield attack, known[name]

    def _topic_of(self, attack: str, network: str, topics: Sequence[str]) -> str | None:
        """Find the topic whose records have an attack, if there are such for this network."""
        for topic in topics:
            known = attack == "clean" or attack in self.topics[topic].attacks
            if known and self.path(topic, network).exists():
                found = self.study(topic, network).accuracy()["no defence"].get(attack)
                return topic if found else None
        return None

    def differences(
        self, topic: str, pairs: Mapping[str, Sequence[str]], attacks: Sequence[str], network: str
    ) -> str:
        """Make a table of paired differences: what the first of two defences adds, by attack."""
        study = self.study(topic, network)
        rows = [["", *attacks]]
        for title, (first, second) in pairs.items():
            cells = (str(study.compare((first, a), (second, a))) for a in attacks)
            rows += [[title, *cells]]
        return _markdown(rows)

    def against(self, topic: str, network: str, whole: str, attacks: Sequence[str]) -> str:
        """Make the table of each defence minus the whole one."""
        names = [d for d in self.topics[topic].defenses if d != whole]
        return self.differences(topic, {name: (name, whole) for name in names}, attacks, network)

    def others(self, network: str) -> str:
        """Make the table of the attackers of other makers, a row each; empty if there is none."""
        names = {text: name for name, text in self.topics["aware"].defenses.items()}
        rows = [["", "n", "no defence", *names.values()]]
        for topic in ("outside_autopgd", "outside_foolbox_pgd", "outside_square"):
            if not self.path(topic, network).exists():
                continue
            study = Study.open(self.path(topic, network))
            right = study.accuracy()
            for attack in sorted(study.attacks, key=str):
                if attack != "none":
                    cells = [_cell(right.get(text, {}).get(attack)) for text in ("none", *names)]
                    kept = right["none"][attack]
                    rows += [[without_digest(str(attack)), str(kept and kept.n), *cells]]
        return _markdown(rows) if rows[1:] else ""

    def other(self, topic: str, network: str) -> dict[tuple[int, str], Rate]:
        """Give the shares right under an attacker of other makers, by eps and defence."""
        if not self.path(topic, network).exists():
            return {}
        right, found = Study.open(self.path(topic, network)).accuracy(), {}
        for name, text in self.topics["aware"].defenses.items():
            for attack, rate in right.get(text, {}).items():
                eps = re.search(r"\beps=(\d+)", str(attack))
                if eps and rate:
                    found[int(eps[1]), name] = rate
        return found

    def gaps(self, topic: str, network: str, strengths: Sequence[int]) -> str:
        """List the strengths that these records lack, and the defences at the others."""
        found, defenses, lacking = self.other(topic, network), self.topics["aware"].defenses, []
        for eps in strengths:
            names = [name for name in defenses if (eps, name) not in found]
            if len(names) == len(defenses):
                lacking.append(f"eps {eps}")
            elif names:
                lacking.append(f"eps {eps} of {' and '.join(names)}")
        return ", ".join(lacking)

    def curves(self, network: str) -> str:
        """Draw how the share right falls with eps, as SVG."""
        eps = {attack: int(attack.split()[1]) for attack in self.topics["strength"].attacks}
        shown = ("no defence", "PD 200", "WD", "PD 200 + WD", "PD 1500 + R-CAM + WD")
        study = self.study("strength", network)
        rates: Any = study.accuracy(
            attacks={value: name for name, value in eps.items()}, defenses=shown
        )
        # Text stays text, and nothing in the file hangs on chance or on the day.
        settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "pdutils"}
        with matplotlib.rc_context(settings), io.StringIO() as file:
            figure = plots.rate_curves(rates, xlabel=f"eps in grey levels, {self.title(network)}")
            figure.savefig(file, format="svg", metadata={"Date": None})
            return file.getvalue()

    def made(self, *topics: str) -> str:
        """List what made the files of these topics."""
        lines = []
        for topic in topics:
            for network in self.networks(topic):
                path = self.path(topic, network)
                with StoredRecords(path) as stored:
                    runs, found = stored.made(), stored.versions()
                backend = [
                    f"{name} {found[name]}" for name in ("tensorflow", "jax") if name in found
                ]
                for run in runs:
                    where = [run["date"][:10], run["processor"], f"{run['cores']} cores"]
                    where += [*filter(None, [run.get("accelerator")]), *backend]
                    lines += [f"# {path.name}: {', '.join(where)}", run["command"]]
        return "\n".join(["```", *dict.fromkeys(lines), "```"])


def pages(evidence: Evidence, root: Path = ROOT) -> dict[Path, str]:
    """Make the text of every page, by its place below the root."""
    loader = FileSystemLoader(ROOT / "tools" / "pages")
    templates = Environment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    templates.globals |= {"e": evidence, "published": published}
    templates.filters["share"] = "{:.2f}".format
    texts = {}
    for name in templates.list_templates(["md"]):
        # A page about a topic is called after it, and is there once the topic has records.
        if name.startswith("results/") and not evidence.networks(Path(name).stem):
            continue
        text = templates.get_template(name).render()
        if name == "README.md":
            before, opening, rest = (root / name).read_text("utf-8").partition(_OPENING)
            _, closing, after = rest.partition(_CLOSING)
            if not opening or not closing:
                raise ValueError(f"{root / name}: expected {_OPENING!r} and then {_CLOSING!r}")
            texts[Path(name)] = before + opening + text + closing + after
        else:
            texts[Path("docs", name)] = text
    for network in evidence.networks("strength"):
        texts[Path("docs", "results", f"strength_{network}.svg")] = evidence.curves(network)
    return texts


def _rates(
    study: Study, measure: str = "accuracy", aggregate: str = "one", protocol: str = "paper"
) -> Mapping[Hashable, Mapping[Hashable, Rate | None]]:
    if measure == "destruction":
        return study.destruction(aggregate)
    count: Callable[..., Any] = getattr(study, measure)
    return count(aggregate, protocol)  # type: ignore[no-any-return]


def _size(strength: Any) -> str:
    return f"{strength.l2.value:.4f}, {strength.linf.value:.1f}"


def _cell(found: Any) -> str:
    return "-" if found is None else str(found)


def _beside(rate: Rate | None, figure: float | None, *, show: bool = True) -> str:
    """Write a rate with the verdict that it gives on a published figure, and the figure."""
    if rate is None or figure is None:
        return _cell(rate)
    low, high = rate.interval
    words = {"more": "above", "fewer": "below"}
    seen = published.direction(rate, figure)
    verdict = "within" if low <= figure <= high else words.get(seen, seen)
    return f"{rate} {verdict}" + f" {figure:.2f}" * show


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _evaluated(options: argparse.Namespace, evidence: Evidence) -> int:
    """Evaluate topics on a network, each by a command of its own, which is printed."""
    own = {"--weights": options.weights, "--preprocess": options.preprocess,
           "--class-names": options.class_names, "--limit": options.limit,
           "--scheduler": options.scheduler}  # fmt: skip
    given = [text for name, value in own.items() if value is not None for text in (name, value)]
    name = options.name or Path(options.classifier).stem
    for topic in options.topics or evidence.topics:
        command = ["pdutils", "evaluate", options.photos, "--classifier", options.classifier]
        command += [*given, "--output", str(evidence.path(topic, name))]
        command += evidence.topics[topic].options()
        print("python -m", *command, flush=True)
        if status := subprocess.run([sys.executable, "-m", *command], check=False).returncode:
            return status
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line."""
    evidence = Evidence()
    parser = argparse.ArgumentParser(prog="python -m tools.evidence", description=__doc__)
    add = parser.add_argument
    add("photos", nargs="?", metavar="PHOTOS", help="a folder of labelled ImageNet photos")
    add("--classifier", metavar="NAME", help="a network, as `pdutils evaluate` takes it")
    for option in ("--weights", "--preprocess", "--class-names", "--limit", "--scheduler"):
        add(option, metavar=option[2:].upper(), help="as `pdutils evaluate` takes it")
    add("--name", help="of the network in the names of its files (that of the classifier)")
    add("--topics", nargs="+", choices=[*evidence.topics], help="by default all")
    options = parser.parse_args(arguments)
    if (options.photos is None) != (options.classifier is None):
        parser.error("PHOTOS and --classifier go together")
    if options.photos and (status := _evaluated(options, evidence)):
        return status
    for path, text in pages(evidence).items():
        with whole_file(ROOT / path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
