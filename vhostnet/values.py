"""Frozen values, as the standard library's dataclasses makes them. To import that takes longer than to make a NIC.

``dataclasses.replace()``, ``fields()`` and ``asdict()`` take them as their own, and ``pprint``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["dataclass", "field", "replace"]

if TYPE_CHECKING:  # what a type checker is to take them for
    from dataclasses import dataclass, field, replace
else:

    class field:  # noqa: N801
        """A default that is made anew for each value."""

        def __init__(self, *, default_factory):
            self.make = default_factory

    def dataclass(*, frozen, kw_only=False):  # noqa: ARG001
        """The class gets a field of each name that it annotates. There are no values here that are not frozen."""
        return lambda cls: _with_fields(cls, kw_only)

    def replace(value, /, **changes):
        """Another value, with these fields changed."""
        return value.__class__(**value.__dict__ | changes)

    def _with_fields(cls, kw_only):
        names = tuple(cls.__annotations__)
        given = {name: vars(cls)[name] for name in names if name in vars(cls)}
        cls._names = frozenset(names)
        cls._defaults = {name: default for name, default in given.items() if not isinstance(default, field)}
        cls._makers = {name: default.make for name, default in given.items() if isinstance(default, field)}
        cls.__match_args__ = () if kw_only else names
        cls.__dataclass_fields__ = _OfTwin("__dataclass_fields__", names, kw_only)
        cls.__dataclass_params__ = _OfTwin("__dataclass_params__", names, kw_only)
        cls.__signature__ = _OfTwin("__signature__", names, kw_only)  # for help(), and whoever else asks inspect
        cls.__replace__ = replace
        for name, method in vars(_Methods).items():
            if callable(method):
                setattr(cls, name, method)
        return cls

    class _Methods:
        """What every value can do."""

        def __init__(self, *placed, **named):
            cls = type(self)
            by_place = dict(zip(cls.__match_args__, placed))  # noqa: B905
            fields = {**cls._defaults, **by_place, **named}
            for name, make in cls._makers.items():
                if name not in fields:
                    fields[name] = make()
            if fields.keys() != cls._names or len(by_place) < len(placed) or not named.keys().isdisjoint(by_place):
                wrong = ", ".join(sorted(fields.keys() ^ cls._names)) or "too many, or one twice"
                raise TypeError(f"{cls.__name__}(): arguments that are missing, or that it does not take: {wrong}")
            self.__dict__.update(fields)
            check = getattr(cls, "__post_init__", None)
            if check:
                check(self)

        def __setattr__(self, name, value):
            from dataclasses import FrozenInstanceError

            raise FrozenInstanceError(f"cannot assign to field {name!r}")

        def __delattr__(self, name):
            from dataclasses import FrozenInstanceError

            raise FrozenInstanceError(f"cannot delete field {name!r}")

        def __eq__(self, other):
            return self.__dict__ == other.__dict__ if type(other) is type(self) else NotImplemented

        def __hash__(self):
            return hash(tuple(self.__dict__[name] for name in type(self).__annotations__))

        def __repr__(self):
            fields = (f"{name}={self.__dict__[name]!r}" for name in type(self).__annotations__)
            return f"{type(self).__qualname__}({', '.join(fields)})"

    class _OfTwin:
        """What the standard library looks for in a class; made when it does."""

        def __init__(self, attribute, names, kw_only):
            self.attribute = attribute
            self.names = names
            self.kw_only = kw_only

        def __get__(self, value, cls):
            from dataclasses import MISSING, field, make_dataclass
            from inspect import signature

            def described(name):
                if name in cls._makers:
                    return name, cls.__annotations__[name], field(default_factory=cls._makers[name])
                return name, cls.__annotations__[name], field(default=cls._defaults.get(name, MISSING))

            twin = make_dataclass(cls.__name__, map(described, self.names), frozen=True, kw_only=self.kw_only)
            twin.__signature__ = signature(twin)
            setattr(cls, self.attribute, getattr(twin, self.attribute))
            return getattr(cls, self.attribute)
