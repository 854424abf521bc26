"""Where the metrics of a run go: JSON lines always, MLflow where it is installed and MLFLOW_TRACKING_URI is set."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from dataclasses import dataclass
from typing import Any

from retrieval.folder import Folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tracker:
    """Writes the history of a run to ``folder/file``; with the extra ``mlflow`` and MLFLOW_TRACKING_URI, there as well.

    A run that is resumed writes to the same file and the same MLflow run.
    """

    folder: str
    file: str
    run_name: str
    settings: dict[str, Any]

    def write(self, history: list[dict[str, Any]]) -> None:
        """Write all lines up to now: each time whole, so that lines after a checkpoint never stay behind."""
        lines = "".join(json.dumps(line) + "\n" for line in history)
        Folder(self.folder).write_bytes(self.file, lines.encode())
        if os.environ.get("MLFLOW_TRACKING_URI") and importlib.util.find_spec("mlflow"):
            try:
                self._mlflow(history[-1])
            except Exception as error:  # whatever a tracking server does must not cost the run
                log.warning("MLflow rejected the metrics, which are in %s/%s: %s", self.folder, self.file, error)

    def _mlflow(self, line: dict[str, Any]) -> None:
        import mlflow

        mlflow.set_experiment("mindseye")
        earlier = mlflow.search_runs(filter_string=f"tags.run = '{self.run_name}'", output_format="list")
        with mlflow.start_run(
            run_id=earlier[0].info.run_id if earlier else None, run_name=self.run_name, tags={"run": self.run_name}
        ):
            if not earlier:
                mlflow.log_params(self.settings)
            figures = {name: value for name, value in line.items() if name != "step" and value is not None}
            mlflow.log_metrics(figures, step=line["step"])
