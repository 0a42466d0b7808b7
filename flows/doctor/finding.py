"""What a check of `nst doctor` says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from flows.settings import Settings


@dataclass(frozen=True)
class Finding:
    """What a check found; `remedy` is empty where nothing is wrong."""

    check: str
    finding: str
    remedy: str = ""

    @property
    def healthy(self) -> bool:
        """Whether there is nothing to mend."""
        return not self.remedy

    def document(self) -> dict[str, str | bool]:
        """For JSON."""
        return {**asdict(self), "healthy": self.healthy}


def of_sentence(check: str, sentence: str) -> Finding:
    """What one of our errors says, which names what is wrong and, after a semicolon or a colon, what to do."""
    finding, mark, remedy = sentence.rstrip(".").partition("; ")
    if not mark:
        finding, _, remedy = sentence.rstrip(".").rpartition(": ")
    return Finding(check, finding, remedy)


Check = Callable[[Settings], Sequence[Finding]]
"""Looks at one thing and changes nothing: one finding where all is well, else one for each fault."""
