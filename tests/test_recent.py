"""The cache of the engine: what it keeps, and what it makes again."""

import pytest

from nst_engine.recent import Recent


def made_for(cache: Recent[str, str], keys: str) -> str:
    """Ask for each letter of `keys`; the letters that had to be made."""
    made = []

    def make(key: str) -> str:
        made.append(key)
        return key * 2

    for key in keys:
        assert cache.get(key, lambda key=key: make(key)) == key * 2  # type: ignore[misc]
    return "".join(made)


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        pytest.param("aaba", "ab", id="what is there is not made again"),
        pytest.param("abcda", "abcda", id="the oldest goes"),
        pytest.param("abcadab", "abcdb", id="what was asked for is young again"),
    ],
)
def test_at_most_so_many(asked: str, made: str) -> None:
    assert made_for(Recent(3), asked) == made


SIZES = {"aa": 4, "bb": 5, "cc": 1, "dd": 11}


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        pytest.param("abcabc", "abc", id="just full"),
        pytest.param("badab", "badab", id="one that is too large is kept alone"),
        pytest.param("dd", "d", id="and found again"),
        pytest.param("cdcc", "cdc", id="until the next is made"),
    ],
)
def test_no_more_than_so_large(asked: str, made: str) -> None:
    assert made_for(Recent(9, limit=10, size=SIZES.__getitem__), asked) == made


def test_what_cannot_be_made_leaves_no_trace() -> None:
    cache = Recent[str, str](3)
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: str(1 // 0))
    assert made_for(cache, "a") == "a"
