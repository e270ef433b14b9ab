"""`parametrize_with_checks`: every law about every component, as the parameters of one pytest function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, final

import pytest

from .._check import closest
from .._errors import PolicyError
from ._check import checks_of
from ._law import ConformanceError
from ._order import in_order
from ._places import known_backends

__all__ = ["Components", "parametrize_with_checks"]

Function = TypeVar("Function", bound=Callable[..., Any])
_ATTRIBUTE = "_kvpolicy_checks"
_HINTS = {"expected_failures": "{'merge_convex': 'adds values'}", "sizes": "{'heads': 2}"}


def parametrize_with_checks(
    components: Iterable[Any] | Mapping[str, Any],
    *,
    backends: Iterable[str] | None = None,
    expected_failures: Mapping[str, Mapping[str, str]] | None = None,
    sizes: Mapping[str, Mapping[str, int]] | None = None,
) -> Callable[[Function], Function]:
    """Run a test with each component and each law that speaks of it, as ``test(component, check)``.

    ``check(component)`` in the test's body tries the law. A law is not tried once a structural law has failed that it
    rests on: one fault prints one failure. The options ``--kvpolicy-backend`` and ``--kvpolicy-profile`` of pytest
    decide where and how long.

    Args:
        components: policies, pipelines, stages or backends; a mapping gives them names, else each is named after its
            class.
        backends: ``"numpy"``, ``"torch"`` or ``"torch:cuda"``; None: every backend that is installed.
        expected_failures: by the name or class of a component, or by its repr: laws that it breaks on purpose, and why.
            They must fail: a law that holds after all is reported.
        sizes: likewise: what examples must look like for it, such as ``{"MyHeads": {"layers": 2, "heads": 4}}``.

    Raises:
        PolicyError: if a component is given twice, or ``backends`` is a name and not several; when tests are collected,
            if a name is unknown: a law, or a component that is not among them.
    """
    __tracebackhide__ = True  # pytest then shows the user's line alone
    if isinstance(backends, str):
        raise PolicyError(
            f"parametrize_with_checks(backends={backends!r}): backends is a list of names. Hint: [{backends!r}]."
        )
    wanted = Components(
        components=_named(components),
        backends=None if backends is None else tuple(backends),
        expected=dict(expected_failures or {}),
        sizes=dict(sizes or {}),
    )

    def decorate(function: Function) -> Function:
        setattr(function, _ATTRIBUTE, wanted)
        return function

    return decorate


@final
@dataclass(frozen=True)
class Components:
    """What a test function is to be run with."""

    components: Mapping[str, Any]
    backends: tuple[str, ...] | None
    expected: Mapping[str, Mapping[str, str]]
    sizes: Mapping[str, Mapping[str, int]]

    def params(self, backends: Iterable[str] | None = None, profile: str | None = None) -> list[Any]:
        """``pytest.param(component, check)`` for each, structural laws first.

        Raises:
            PolicyError: see `parametrize_with_checks`.
        """
        self._check_names()
        where = tuple(backends or self.backends or known_backends())
        return [param for name in self.components for backend in where for param in self._of(name, backend, profile)]

    def _of(self, name: str, backend: str, profile: str | None) -> Iterator[Any]:
        component = self.components[name]
        expected = {law: why for known in self._keys(name) for law, why in self.expected.get(known, {}).items()}
        sizes = {size: n for known in self._keys(name) for size, n in self.sizes.get(known, {}).items()}
        about = checks_of(component, backend=backend, profile=profile, sizes=sizes, expected=expected)
        for law, check in in_order(about).items():
            if isinstance(check, str):
                continue
            why = check.check.expected
            marks = [] if why is None else [pytest.mark.xfail(reason=why, strict=True, raises=ConformanceError)]
            yield pytest.param(component, check, id=f"{name}-{law}-{backend}", marks=marks)

    def _keys(self, name: str) -> tuple[str, ...]:
        component = self.components[name]
        return (type(component).__name__, repr(component), name)

    def _check_names(self) -> None:
        known = {key for name in self.components for key in self._keys(name)}
        for argument, given in (("expected_failures", self.expected), ("sizes", self.sizes)):
            for name, about in given.items():
                if name not in known:
                    raise PolicyError(f"{argument}[{name!r}]: no such component here.{closest(name, self.components)}")
                if not isinstance(about, Mapping):
                    raise PolicyError(f"{argument}[{name!r}]={about!r}: it is a mapping. Hint: {_HINTS[argument]}.")


def _named(components: Iterable[Any] | Mapping[str, Any]) -> Mapping[str, Any]:
    __tracebackhide__ = True
    if isinstance(components, Mapping):
        return dict(components)
    if not isinstance(components, Iterable):
        raise PolicyError(
            f"parametrize_with_checks({components!r}): it takes a list of components, or a mapping of names to them. "
            f"Hint: [{components!r}]."
        )
    listed = list(components)
    classes = [type(component).__name__ for component in listed]
    named: dict[str, Any] = {}
    for component, name in zip(listed, classes, strict=True):
        unique = name if classes.count(name) == 1 else repr(component)
        if unique in named:
            raise PolicyError(f"parametrize_with_checks: {unique} is given twice. Hint: a mapping gives them names.")
        named[unique] = component
    return named
