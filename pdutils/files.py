"""A user's files: the pictures of a folder, texts in several encodings, names that are no UTF-8."""

import codecs
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pdutils.images import IMAGE_SUFFIXES, label_from_name

# The longer mark first: that of UTF-32 begins as that of UTF-16 does.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


@dataclass
class Pictures:
    """The pictures in a folder and the folders below it, and how much of what else there is.

    `folders` names those directly in it, with pictures or without; hidden files do not count.
    """

    files: list[Path] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        total = sum(self.passed_over.values())
        if not total:
            return ""
        kinds = ", ".join(f"{n} {displayed(k)}" for k, n in sorted(self.passed_over.items()))
        return f"passed over {total} {'entry' if total == 1 else 'entries'}: {kinds}"


def find_pictures(folder: str | os.PathLike[str]) -> Pictures:
    """Find the pictures in a folder and below it; symbolic links are followed, loops are not.

    A folder that a link leads to is looked through once, unless it stands directly in `folder`, as
    the folder of a class. Hidden files and folders are passed over.
    """
    walk = _Walk(Path(folder))
    walk.found.files.sort()
    walk.found.folders.sort()
    return walk.found


class _Walk:
    """Looks through the real folders first and then, level by level, where links lead."""

    def __init__(self, root: Path) -> None:
        self.found = Pictures()
        self.root = root
        # Where walking began: the root and the targets of links, as real paths.
        self.starts = [Path(os.path.realpath(root))]
        self.seen: set[str] = set()
        self.links: list[Path] = []
        self.look_through(root, str(self.starts[0]))
        while self.links:
            # The folders of classes first: what they hold is theirs.
            links, self.links = sorted(self.links, key=lambda link: (len(link.parts), link)), []
            for link in links:
                self.follow(link)

    def look_through(self, folder: Path, real: str) -> None:
        self.seen.add(real)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = folder / entry.name
                if entry.is_dir(follow_symlinks=False):
                    self.note_folder(path)
                    self.look_through(path, os.path.join(real, entry.name))
                elif entry.is_symlink() and _leads_to_folder(entry):
                    self.links.append(path)
                else:
                    self.take(entry, path)

    def follow(self, link: Path) -> None:
        target = Path(os.path.realpath(link))
        # A class folder may be known under two names.
        within = self.starts[:1] if link.parent == self.root else self.starts
        known = str(target) in self.seen and link.parent != self.root
        if known or any(target == start or target in start.parents for start in within):
            self.found.passed_over["links to folders that are looked through anyway"] += 1
            return
        self.note_folder(link)
        self.starts.append(target)
        self.look_through(link, str(target))

    def note_folder(self, path: Path) -> None:
        if path.parent == self.root:
            self.found.folders.append(path.name)

    def take(self, entry: os.DirEntry[str], path: Path) -> None:
        if entry.is_symlink() and not path.exists():
            self.found.passed_over["links that lead nowhere"] += 1
        elif path.suffix.lower() in IMAGE_SUFFIXES and entry.is_file():
            self.found.files.append(path)
        else:
            self.found.passed_over[path.suffix.lower() or "without an ending"] += 1


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link that leads to itself.
        return False


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a text in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark.

    Any other encoding is refused: nothing in the file tells which one it is.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path}: expected a text file, got a folder")
    raw = Path(path).read_bytes()
    mark = next((mark for mark in _MARKS if raw.startswith(mark)), b"")
    try:
        text = raw.removeprefix(mark).decode(_MARKS.get(mark, "utf-8"))
    except UnicodeDecodeError as error:
        line = raw[: len(mark) + error.start].count(b"\n") + 1
        raise _no_text(path, f"{error.reason} in line {line}") from None
    if "\0" in text:
        raise _no_text(path, "zero bytes without a mark")
    return re.sub(r"\r\n?", "\n", text)


def _no_text(path: str | os.PathLike[str], got: str) -> ValueError:
    return ValueError(
        f"{path}: expected a text in UTF-8, or in UTF-16 with a byte-order mark, got {got}; "
        "save it as UTF-8"
    )


def read_class_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read the names of classes, in the order of their numbers.

    Parameters
    ----------
    path : str or path
        A text, see `read_text`: one name a line, where empty lines do not count, or a list of
        names in JSON.

    Returns
    -------
    tuple of str
    """
    text = read_text(path).strip()
    if text.startswith(("[", "{")) or Path(path).suffix.lower() == ".json":
        names = _json_names(path, text)
    else:
        names = [line.strip() for line in text.split("\n") if line.strip()]
    if not names:
        raise ValueError(f"{path}: expected the names of classes, found none")
    return tuple(names)


def _json_names(path: str | os.PathLike[str], text: str) -> list[str]:
    try:
        names = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: expected a list of class names in JSON: {error}") from None
    if not isinstance(names, list):
        raise ValueError(f"{path}: expected a JSON list of class names, got {text[:40]!r}")
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise ValueError(f"{path}: expected class names as JSON strings, got {wrong[0]!r}")
    return names


def displayed(text: str) -> str:
    r"""Write a file name that is not UTF-8 as a text: each byte that is none becomes `\xNN`."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def labelled_files(folder: str | os.PathLike[str]) -> list[tuple[Path, str]]:
    """List the pictures of a folder with their labels, sorted by path.

    Parameters
    ----------
    folder : str or path
        Pictures named `<label>_<anything>.png|jpg|...`, or one sub-folder a class, as ImageNet's,
        whose name is the label of every picture in it. Symbolic links are followed, loops of them
        are not. Hidden files are passed over, and so are files whose ending is not in
        `pdutils.images.IMAGE_SUFFIXES`.

    Returns
    -------
    list of (Path, str)
    """
    return labelled(folder, look_through(folder))


def look_through(folder: str | os.PathLike[str]) -> Pictures:
    """Find the pictures of a folder, and count what else is there."""
    root = Path(folder)
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such folder")
    if not root.is_dir():
        raise ValueError(f"{root}: expected a folder of pictures, got a file")
    found = find_pictures(root)
    if not found.files:
        others = f"; {found}" if found.passed_over else ""
        raise ValueError(f"{root}: expected pictures (.png, .jpg, ...), found none{others}")
    return found


def labelled(folder: str | os.PathLike[str], found: Pictures) -> list[tuple[Path, str]]:
    """Label the pictures that were found in a folder."""
    root = Path(folder)
    return [
        (path, label_from_name(path) if path.parent == root else path.relative_to(root).parts[0])
        for path in found.files
    ]
