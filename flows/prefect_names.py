"""What the service's work pool and deployments are called in Prefect, for those too who do not import it."""

from __future__ import annotations

from typing import Final

WORK_POOL: Final = "nst"
STYLIZE: Final = "stylize/stylize"
BULK: Final = "bulk/bulk"
NIGHTLY: Final = "nightly/nightly"
