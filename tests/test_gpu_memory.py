"""The memory of a GPU by nvidia-smi. No GPU is needed: a script of that name stands in for the tool, which answers what
it is told to and is otherwise refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nst_engine.gpu_memory import gpu_memory
from nst_engine.memory import Memory

UUID = "GPU-5ac1e1f2-7d6c-4b55-9a3e-0d7b0c8f1a11"
MIB = 1 << 20
A_GPU = Memory(free=70000 * MIB, most=81559 * MIB)
QUERY = "--query-gpu=memory.free,memory.total --format=csv,noheader,nounits -i"


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a tool named nvidia-smi is looked for first."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "nvidia-smi"


def install(tool: Path, *, answers: dict[str, str], status: int = 0) -> None:
    """A tool that gives these answers for these GPUs, and none for others."""
    cases = "".join(f"'{QUERY} {gpu}') printf '{answer}'; exit {status};;\n" for gpu, answer in answers.items())
    tool.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}esac\necho "No devices were found"\nexit 6\n')
    tool.chmod(0o755)


@pytest.mark.parametrize(
    ("visible", "index", "asked"),
    [
        pytest.param(None, 0, "0", id="all"),
        pytest.param(None, 3, "3", id="all, the fourth"),
        pytest.param("2", 0, "2", id="one"),
        pytest.param("5, 2", 1, "2", id="two"),
        pytest.param(f"1,{UUID}", 1, UUID, id="by UUID"),
    ],
)
def test_the_gpu_that_is_visible_is_asked_for(
    tool: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, index: int, asked: str
) -> None:
    install(tool, answers={asked: "70000, 81559\\n"})
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_memory(index) == A_GPU


@pytest.mark.parametrize("visible", ["", "-1", "1"], ids=["none", "none, as minus one", "fewer"])
def test_what_is_not_visible_is_not_known(tool: Path, monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    install(tool, answers=dict.fromkeys(("", "-1", "0", "1"), "70000, 81559\\n"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_memory(1 if visible == "1" else 0) is None


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        pytest.param("[N/A], [N/A]\\n", 0, id="not known to the driver"),
        pytest.param("70000, 81559\\n70000, 81559\\n", 0, id="two GPUs"),
        pytest.param("", 0, id="nothing"),
        pytest.param("70000, 81559\\n", 9, id="failed"),
    ],
)
def test_an_odd_answer_is_none(tool: Path, answer: str, status: int) -> None:
    install(tool, answers={"0": answer}, status=status)
    assert gpu_memory(0) is None


def test_without_the_tool_nothing_is_known(tool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tool.parent))
    assert gpu_memory(0) is None


def test_a_tool_that_is_no_program_tells_nothing(tool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tool.parent))
    tool.write_text("not a program")
    tool.chmod(0o755)
    assert gpu_memory(0) is None
