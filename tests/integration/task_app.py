"""A task queue over the file system: no broker to install, and the worker is a real one.

The folder is in QUEUE_FOLDER.
"""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery

from azure_imds_credential import ImdsCredential

folder = Path(os.environ["QUEUE_FOLDER"])
app = Celery("tasks")
app.conf.update(
    broker_url="filesystem://",
    broker_transport_options={
        "data_folder_in": str(folder / "queue"),
        "data_folder_out": str(folder / "queue"),
        "control_folder": str(folder / "control"),
    },
    result_backend=f"file://{folder / 'results'}",
)
credential = ImdsCredential(timeout=60)


@app.task(name="token")
def token() -> str:
    return credential.get_token("https://vault.azure.net/.default").token[-12:]


@app.task(name="ping")
def ping() -> str:
    return "pong"
