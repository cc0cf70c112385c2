"""What `backend` offers to the page, to scripts and to notebooks."""

import types

import backend


def test_everything_public_is_listed_and_nothing_else() -> None:
    own = {
        name
        for name, value in vars(backend).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }

    assert own | {"adjustments", "blends", "errors", "requests", "results"} == set(backend.__all__)


def test_every_listed_name_is_there() -> None:
    for name in backend.__all__:
        assert getattr(backend, name) is not None


def test_every_request_has_a_result_and_a_title() -> None:
    from backend.operations import OPERATIONS

    assert set(OPERATIONS) == set(backend.requests.BY_NAME.values())
    assert all(issubclass(entry.result, backend.results.Result) for entry in OPERATIONS.values())
