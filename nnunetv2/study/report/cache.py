"""The metrics of a fold's predictions, kept beside its checkpoints until a prediction changes."""

import json
import logging
from pathlib import Path
from typing import Any

from dinov3.files import replace_when_complete
from nnunetv2.study.report.data import Data
from nnunetv2.study.report.one_case import Measured, probability_file

FILE_NAME = "case_metrics.json"
VERSION = 1  # to be raised when a metric changes
logger = logging.getLogger(__name__)


class FoldCache:
    """What was measured of a fold's predictions.

    Args:
        folder: of the fold.
        data: of the comparison; what was measured with other classes, tubular labels or tolerance counts for nothing.
    """

    def __init__(self, folder: Path, data: Data) -> None:
        self.path = folder / FILE_NAME
        self.data = data
        self.settings = {
            "version": VERSION,
            "classes": [[one.name, list(one.labels), one.tubular] for one in data.classes],
            "ignore_label": data.ignore_label,
            "nsd_tolerance": data.nsd_tolerance,
        }
        self.cases: dict[str, Any] = self._read()
        self.changed = False

    def _read(self) -> dict[str, Any]:
        try:
            stored = json.loads(self.path.read_text())
            return dict(stored["cases"]) if stored["settings"] == self.settings else {}
        except (OSError, ValueError, KeyError, TypeError):  # none, or not whole: measured again
            return {}

    def get(self, case: str, prediction: Path) -> Measured | None:
        """Return what was measured of a case, unless one of its files is another one now."""
        stored = self.cases.get(case)
        fits = stored is not None and stored["files"] == self._files(case, prediction)
        return stored["classes"] if fits else None

    def put(self, case: str, prediction: Path, classes: Measured) -> None:
        """Take over what was measured."""
        self.cases[case] = {"files": self._files(case, prediction), "classes": classes}
        self.changed = True

    def save(self) -> None:
        """Write the file; where the folder cannot be written, the next report measures again."""
        if not self.changed:
            return
        try:
            with replace_when_complete(self.path) as temporary:
                temporary.write_text(json.dumps({"settings": self.settings, "cases": self.cases}))
        except OSError as error:
            logger.warning("the metrics are not cached: %s cannot be written: %s", self.path, error.strerror)

    def _files(self, case: str, prediction: Path) -> list[list[int] | None]:
        paths = (prediction, self.data.truth_file(case), probability_file(prediction, self.data.file_ending))
        return [_stamp(path) for path in paths]


def _stamp(path: Path) -> list[int] | None:
    if not path.is_file():
        return None
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
