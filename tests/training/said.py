"""Random things to say about settings: for the tests of presets and of the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from training.fields import SettingField, setting_fields


def said_of(
    values: Callable[[SettingField], st.SearchStrategy[Any]],
) -> st.SearchStrategy[dict[str, Any]]:
    """Something about a few settings, whichever they are."""
    some = st.lists(st.sampled_from(setting_fields()), unique=True, max_size=8)
    return some.flatmap(
        lambda fields: st.fixed_dictionaries({field.name: values(field) for field in fields})
    )
