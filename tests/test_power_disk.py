"""The simulated disk that the tests of power losses rest on: what it leaves of careless and of careful programs."""

from __future__ import annotations

import pytest

from tests.power_loss import ROOT, Mark, Names, Node, Operation, Sync, Write, states_of

OLD, NEW, FOLDER = Node(1, is_folder=False), Node(2, is_folder=False), Node(3, is_folder=True)
BEFORE = [Names({(ROOT, "file"): OLD}), Write(OLD, 0, b"old!"), Sync(OLD), Sync(ROOT)]
WRITTEN = [Names({(ROOT, "part"): NEW}), Write(NEW, 0, b"new!")]
RENAMED = Names({(ROOT, "part"): None, (ROOT, "file"): NEW})
MADE = [Names({(ROOT, "folder"): FOLDER})]
LINKED, UNLINKED = Names({(FOLDER, "file"): OLD}), Names({(ROOT, "file"): None})


@pytest.mark.parametrize(
    ("operations", "left"),
    [
        pytest.param([], [{"file": b"old!"}], id="nothing is done"),
        pytest.param(
            [Write(OLD, 4, b"more")],
            [{"file": b"old!"}, {"file": b"old!more"}, {"file": b"old!mo"}, {"file": b"old!\0\0\0\0"}],
            id="an append",
        ),
        pytest.param(
            [*WRITTEN, Sync(NEW), RENAMED, Sync(ROOT)],
            [
                {"file": b"old!"},
                {"file": b"new!"},
                *({"file": b"old!", "part": part} for part in (b"", b"ne", b"new!", b"\0\0\0\0")),
            ],
            id="a careful replacement",
        ),
        pytest.param(
            [*WRITTEN, RENAMED, Sync(ROOT)],
            [
                {"file": b"old!"},
                *({"file": content} for content in (b"", b"ne", b"new!", b"\0\0\0\0")),
                *({"file": b"old!", "part": part} for part in (b"", b"ne", b"new!", b"\0\0\0\0")),
            ],
            id="a replacement whose bytes are not synced",
        ),
        pytest.param(
            [*MADE, Sync(ROOT), LINKED, Sync(FOLDER), UNLINKED, Sync(ROOT)],
            [
                {"file": b"old!"},
                {"file": b"old!", "folder/file": b"old!"},
                {"folder/file": b"old!"},
            ],
            id="a careful move",
        ),
        pytest.param(
            [*MADE, Sync(ROOT), LINKED, UNLINKED, Sync(ROOT), Sync(FOLDER)],
            [
                {},
                {"file": b"old!"},
                {"file": b"old!", "folder/file": b"old!"},
                {"folder/file": b"old!"},
            ],
            id="a move that may lose the file",
        ),
        pytest.param(
            [*MADE, LINKED, Sync(FOLDER), UNLINKED, Sync(ROOT)],
            [
                {},
                {"file": b"old!"},
                {"file": b"old!", "folder/file": b"old!"},
                {"folder/file": b"old!"},
            ],
            id="a move into a folder that may be lost",
        ),
    ],
)
def test_what_a_loss_may_leave(operations: list[Operation], left: list[dict[str, bytes]]) -> None:
    recorded = [*BEFORE, Mark("begin"), *operations, Mark("end")]
    states = states_of(recorded, begin="begin", end="end", seed=1, mixed=20)
    found = [
        {path: state.contents[node] for path, node in state.paths.items() if not node.is_folder} for state in states
    ]
    assert sorted({tuple(sorted(files.items())) for files in found}) == sorted(
        tuple(sorted(files.items())) for files in left
    )
