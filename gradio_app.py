"""The chat page alone: ``python gradio_app.py --backend http://127.0.0.1:8000`` (the specification's entry point)."""

import sys

from expert_router.commands import run

if __name__ == "__main__":
    sys.exit(run(["chat-page", *sys.argv[1:]]))
