"""The tests. What the environment must say before torch, gradio or the Hub are imported, which tests/browsing.py does before conftest.py is read."""

import os

# `make test` runs one process per core, so each gets one thread, and none spins at a barrier.
os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", TOKENIZERS_PARALLELISM="false")
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", GRADIO_ANALYTICS_ENABLED="False")
