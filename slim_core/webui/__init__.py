# SPDX-License-Identifier: Apache-2.0
"""The app in the browser: one prompt, three answers, and the routing of each token. Only this package imports
Gradio.
"""

import os


# Gradio reads it at import: no telemetry.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
