"""Text from a model.

OpenVINO reports each import of it to Google Analytics, without asking, where its telemetry package is found; none of
our processes finds it.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # what makes an import fail
