import pytest

from benchmarks import fuzz


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_random_inputs_are_read_or_properly_refused(kind):
    results = [fuzz.attempt(kind, seed=1, number=number) for number in range(200)]
    assert [result for result in results if result.ends == "fault"] == []
    assert {result.ends for result in results} == {"read", "refused"}


@pytest.fixture
def planted(monkeypatch):
    """Kinds that hold each fault that the runner must notice; workers cannot be told of these."""

    def plant(kind):
        monkeypatch.setattr(fuzz, "kind_of", lambda name: kind)
        return fuzz.attempt("planted", seed=0, number=0)

    return plant


class Kind:
    REFUSALS = (ValueError,)

    def __init__(self, attempt):
        self.attempt = lambda random, folder: attempt()


def raises(error):
    raise error


def test_each_kind_of_fault_is_noticed(planted, monkeypatch):
    assert planted(Kind(lambda: None)).ends == "read"
    assert planted(Kind(lambda: raises(ValueError("row 3: no")))).ends == "refused"
    assert planted(Kind(lambda: raises(ValueError()))).ends == "fault"
    assert planted(Kind(lambda: raises(KeyError("x")))).what.startswith("KeyError in test_fuzz.py")
    monkeypatch.setattr(fuzz, "_largest", iter([100.0, 700.0]).__next__)
    assert planted(Kind(lambda: None)).what == "600 MB more memory"


def test_what_takes_too_long_is_ended(planted, monkeypatch):
    monkeypatch.setattr(fuzz, "HANGS", 1)
    assert "more than 1 s" in planted(Kind(lambda: [None for _ in iter(int, 1)])).what


def test_an_input_depends_on_kind_seed_and_number_alone(planted):
    drawn = []
    kind = Kind(lambda: None)
    kind.attempt = lambda random, folder: drawn.append(random.random())
    for _ in range(2):
        planted(kind)
    assert drawn[0] == drawn[1]
