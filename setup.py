"""Puts what lies beside the package in a checkout, and is needed to work, into a wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

#: The demo's files.
SHIPPED = ("data", "maps")


class BuildWithDemo(build_py):
    """Copies the folders into the package; an editable install finds them where they are."""

    def run(self) -> None:
        """Build as ever, then copy."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "pdutils" / "_shipped"
        # What an earlier build left must not travel.
        shutil.rmtree(target, ignore_errors=True)
        for folder in SHIPPED:
            leave = shutil.ignore_patterns(".*", "__pycache__")
            shutil.copytree(folder, target / folder, ignore=leave)


setup(cmdclass={"build_py": BuildWithDemo})
