"""A soak for people: whether memory grew, and whether anything was left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expert_router.evaluation.report import markdown_document, markdown_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from expert_router.evaluation.soak import Soak

MIB = 1024**2
COUNTS = ("processes", "threads", "files", "sockets", "tasks", "slots")


def soak_as_markdown(
    about: Mapping[str, str], result: Soak, complaints: Sequence[str], pictures: Mapping[str, str]
) -> str:
    verdict = "Passed." if not complaints else f"**Not passed**: {'; '.join(complaints)}."
    memory = [sample.memory_bytes / MIB for sample in result.samples]
    line = (
        f"{verdict} {result.requests} requests; memory {result.growth.share:+.2%} over the time (Theil-Sen), "
        f"{min(memory):.0f} to {max(memory):.0f} MiB."
    )
    grew = [
        [each.name, f"{each.share:+.2%}", f"{each.first_half:+,.0f}", f"{each.second_half:+,.0f}", each.verdict]
        for each in result.growths()
    ]
    idle = [("before", result.before), ("after", result.after)]
    rows = [
        [name, f"{each.memory_bytes / MIB:.0f}", *(str(getattr(each, count)) for count in COUNTS)]
        for name, each in idle
        if each is not None
    ]
    ends = [
        [client, ", ".join(f"{end}: {count}" for end, count in sorted(ends.items()))]
        for client, ends in sorted(result.ends.items())
    ]
    parts = [
        line,
        markdown_table(["memory", "over the time", "bytes a request, first half", "second half", "verdict"], grew),
        markdown_table(["nobody asks", "MiB", *COUNTS], rows),
        markdown_table(["client", "how its requests ended"], ends),
    ]
    return markdown_document("Soak", about, parts, pictures)
