"""How are experiment trackers kept quiet in a trial?

A trial must not write to the outside, and nobody wants two windows of one minute among their runs. These variables are
set over the user's own; the probe sets the same ones again inside the process.
"""

from collections.abc import Mapping

TRACKERS_OFF: Mapping[str, str] = {
    "WANDB_MODE": "disabled",
    "WANDB_DISABLED": "true",
    "COMET_MODE": "disabled",
    "COMET_DISABLE_AUTO_LOGGING": "1",
    "MLFLOW_TRACKING_URI": "file:///tmp/amdahl-trial-mlruns",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
    "DISABLE_MLFLOW_INTEGRATION": "TRUE",
    "NEPTUNE_MODE": "debug",
    "CLEARML_OFFLINE_MODE": "1",
    "TRACKIO_MODE": "disabled",
    "SWANLAB_MODE": "disabled",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
