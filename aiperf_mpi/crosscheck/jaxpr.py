# SPDX-License-Identifier: Apache-2.0
"""Count the operations of a traced program by class: traverse its jaxpr and classify each equation.

The class follows from the inputs on which an equation depends. It does not follow from names or from the
order of dimensions, which change with versions of JAX and with optimisations. The inputs of a step have marks
(:data:`PARAMETERS`, :data:`IMAGES`, ...), and each value has the marks of its inputs. The forward pass does
not depend on the labels, so a matrix product that depends on them is backward. An input gradient multiplies
by a function of the parameters alone; a weight gradient does not. Values that depend on the momenta or the
learning rate belong to the update of the parameters.

The traversal descends into inner jaxprs. Those of `jit`, `shard_map` (and so `pmap`), `remat`, `custom_jvp`
and `custom_vjp` count once, those of `scan` count `length` times. A `while` counts as often as its counter
with known bounds runs; other loops raise. The branches of `cond` must have the same matrix products, and the
most expensive branch counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from aiperf_mpi.crosscheck.primitives import COLLECTIVES, RULES, CountError, Rule, unknown, where
from aiperf_mpi.opcount.analytical import FORWARD, INPUT_GRADIENT, MATRIX_KINDS, WEIGHT_GRADIENT
from aiperf_mpi.opcount.tally import (
    ALL_REDUCE,
    AUGMENTATION,
    BACKWARD,
    MADE_IMAGES,
    OTHER,
    STEP,
    UPDATE,
    Class,
    Tally,
)

#: Marks of a program's inputs; a value has the marks of all inputs on which it depends.
PARAMETERS, IMAGES, LABELS, MOMENTA, RATE = 1, 2, 4, 8, 16

#: Primitives that are matrix products -> the kind of layer that they compute.
MATRIX = {"conv_general_dilated": "conv", "dot_general": "dense"}

#: Primitives whose n-th result depends only on the n-th operand.
PARALLEL = COLLECTIVES | {"optimization_barrier", "copy", "device_put", "pvary", "pcast"}

#: Primitives that call one jaxpr with their own operands, and the parameters that may contain it.
CALLS = frozenset(
    (
        "jit",
        "pjit",
        "closed_call",
        "core_call",
        "xla_call",
        "xla_pmap",
        "shard_map",
        "checkpoint",
        "remat",
        "remat2",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
        "custom_lin",
    )
)
CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")

_NAME = re.compile(r"[\w.]+")

# Operations by class while they are collected.
_Classes = dict[Class, int]


def count(
    program: ClosedJaxpr,
    marks: Sequence[int] | None = None,
    scopes: Mapping[str, str] | None = None,
    *,
    rules: Mapping[str, Rule] = RULES,
    loops_once: bool = False,
) -> Tally:
    """Count the weighted operations of a program by class.

    Arguments:
        program: result of `jax.make_jaxpr`.
        marks: mark of each input, 0 for none (the default, with which all matrix products are forward).
        scopes: name of a scope (a Flax module or `jax.named_scope`) -> kind of layer, for all operations
            except matrix products.
        rules: primitive -> rule.
        loops_once: count the body of a loop once, as XLA does.

    Raises CountError for an unknown primitive, a loop of unknown length, and branches with different matrix
    products.
    """
    inputs = program.jaxpr.invars
    if marks is None:
        marks = [0] * len(inputs)
    if len(marks) != len(inputs):
        raise ValueError(f"operation count: {len(marks)} marks for a program of {len(inputs)} inputs")
    walk = _Walk(scopes or {}, rules, loops_once)
    return Tally(walk.closed(program, marks, [None] * len(inputs), "")[0])


class _Walk:
    """One traversal: it tracks the marks of each value, and the value itself if it is a known integer."""

    def __init__(self, scopes: Mapping[str, str], rules: Mapping[str, Rule], loops_once: bool) -> None:
        self._scopes, self._rules, self._loops_once = scopes, rules, loops_once
        self._places: dict[str, tuple[str, str]] = {}
        self._nested: dict[str, Callable[..., tuple[_Classes, list[int]]]] = {
            **dict.fromkeys(CALLS, self._call),
            "scan": self._scan,
            "while": self._while,
            "cond": self._cond,
        }

    def closed(
        self, program: Any, marks: Sequence[int], numbers: Sequence[int | None], scope: str
    ) -> tuple[_Classes, list[int]]:
        """Return the operations of a jaxpr (with or without its constants), and the marks of its results.

        Arguments:
            marks: marks of its inputs.
            numbers: values of the inputs that are known integers, else None.
            scope: the enclosing scopes.
        """
        jaxpr: Jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
        marked = dict.fromkeys(jaxpr.constvars, 0) | dict(zip(jaxpr.invars, marks, strict=True))
        known: dict[Any, int] = {v: n for v, n in zip(jaxpr.invars, numbers, strict=True) if n is not None}
        if isinstance(program, ClosedJaxpr):
            known |= {
                v: n
                for v, c in zip(jaxpr.constvars, program.consts, strict=True)
                if (n := _integer(c)) is not None
            }

        classes: _Classes = {}
        for eqn in jaxpr.eqns:
            name = eqn.primitive.name
            inputs = [0 if isinstance(v, Literal) else marked[v] for v in eqn.invars]
            if nested := self._nested.get(name):
                values = [_integer(v.val) if isinstance(v, Literal) else known.get(v) for v in eqn.invars]
                inner, results = nested(eqn, inputs, values, f"{scope}/{eqn.source_info.name_stack}")
                for key, operations in inner.items():
                    classes[key] = classes.get(key, 0) + operations
                marked.update(zip(eqn.outvars, results, strict=True))
                continue

            # One equation: its cost, its class, and the marks of its results.
            if (rule := self._rules.get(name)) is None:
                raise unknown(eqn)
            depends = 0
            for mark in inputs:
                depends |= mark
            if operations := rule(eqn):
                key = self._class(eqn, name, inputs, depends, scope)
                classes[key] = classes.get(key, 0) + operations
            if name in PARALLEL and len(inputs) == len(eqn.outvars):
                marked.update(zip(eqn.outvars, inputs, strict=True))
            else:
                marked.update(dict.fromkeys(eqn.outvars, depends))
                if name == "convert_element_type" and (number := _value(eqn.invars[0], known)) is not None:
                    known[eqn.outvars[0]] = number
        return classes, [0 if isinstance(v, Literal) else marked[v] for v in jaxpr.outvars]

    def _class(self, eqn: Any, name: str, marks: Sequence[int], depends: int, scope: str) -> Class:
        """Return the class of an equation, from the marks of its operands and of all of them (`depends`)."""
        if kind := MATRIX.get(name):
            if not depends & LABELS:
                return kind, FORWARD
            alone = any(mark & PARAMETERS and not mark & (LABELS | IMAGES) for mark in marks[:2])
            return kind, INPUT_GRADIENT if alone else WEIGHT_GRADIENT
        if name in COLLECTIVES:
            return ALL_REDUCE, STEP
        if depends & (MOMENTA | RATE):
            return UPDATE, STEP
        kind, role = self._place(f"{scope}/{eqn.source_info.name_stack}")

        # If the output of a layer has several consumers, the backward pass adds their gradients.
        if kind in MATRIX_KINDS:
            return ("add", BACKWARD) if name == "add_any" else (OTHER, STEP)
        return kind, role

    def _place(self, scope: str) -> tuple[str, str]:
        """Return the kind of layer and the part of the step of a scope.

        An example of a scope is `transpose(jvp(Network))/.../unit003_norm`.
        """
        if scope not in self._places:
            names = _NAME.findall(scope)
            kind = next((self._scopes[name] for name in reversed(names) if name in self._scopes), None)
            if kind is None:
                # Outside of layers only the loss is differentiated: log-softmax and cross entropy.
                kind = "softmax" if "jvp" in names and "softmax" in self._scopes.values() else OTHER
            role = BACKWARD if "transpose" in names else FORWARD
            self._places[scope] = kind, (STEP if kind in (AUGMENTATION, MADE_IMAGES, OTHER) else role)
        return self._places[scope]

    # -- equations with inner jaxprs

    def _call(
        self, eqn: Any, marks: list[int], numbers: list[int | None], scope: str
    ) -> tuple[_Classes, list[int]]:
        called = next((eqn.params[key] for key in CALLED if key in eqn.params), None)
        if called is None:
            raise unknown(eqn)
        return self.closed(called, marks, numbers, scope)

    def _scan(
        self, eqn: Any, marks: list[int], numbers: list[int | None], scope: str
    ) -> tuple[_Classes, list[int]]:
        constants, carried = _scan_inputs(eqn.params)
        kept = numbers[:constants] + [None] * (len(numbers) - constants)
        classes, results = self._loop(eqn.params["jaxpr"], marks, kept, scope, constants, carried)
        return _times(classes, 1 if self._loops_once else eqn.params["length"]), results

    def _while(
        self, eqn: Any, marks: list[int], numbers: list[int | None], scope: str
    ) -> tuple[_Classes, list[int]]:
        test, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
        n_test, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        trips = 1 if self._loops_once else _trips(eqn, numbers)

        # The body first: the marks of its carry are those of the condition.
        inner, start = marks[n_test:], numbers[n_test : n_test + n_body]
        kept = start + [None] * (len(inner) - n_body)
        classes, results = self._loop(body, inner, kept, scope, n_body, len(inner) - n_body)
        tests, _ = self.closed(test, marks[:n_test] + results, [None] * (n_test + len(results)), scope)
        classes = _times(classes, trips)
        for key, operations in _times(tests, 1 if self._loops_once else trips + 1).items():
            classes[key] = classes.get(key, 0) + operations
        return classes, results

    def _loop(
        self, body: Any, marks: list[int], numbers: list[int | None], scope: str, constants: int, carried: int
    ) -> tuple[_Classes, list[int]]:
        """Count the body of a loop once, after the marks of the carried values no longer change."""
        while True:
            classes, results = self.closed(body, marks, numbers, scope)
            before = marks[constants : constants + carried]
            after = [old | new for old, new in zip(before, results[:carried], strict=True)]
            if after == before:
                return classes, results
            marks = marks[:constants] + after + marks[constants + carried :]

    def _cond(
        self, eqn: Any, marks: list[int], numbers: list[int | None], scope: str
    ) -> tuple[_Classes, list[int]]:
        branches = [self.closed(branch, marks[1:], numbers[1:], scope) for branch in eqn.params["branches"]]
        matrices = [
            {key: n for key, n in classes.items() if key[0] in MATRIX_KINDS} for classes, _ in branches
        ]
        if any(matrix != matrices[0] for matrix in matrices):
            raise CountError(
                f"operation count: the branches of a cond have different matrix products, {matrices}, so "
                f"the count depends on which one runs ({where(eqn)})"
            )
        largest = max((classes for classes, _ in branches), key=lambda classes: sum(classes.values()))
        results = [marks[0]] * len(eqn.outvars)
        for _, outcome in branches:
            results = [old | new for old, new in zip(results, outcome, strict=True)]
        return largest, results


def _scan_inputs(parameters: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many of a scan's inputs are constants, and how many are carried.

    JAX 0.10 has both numbers as parameters; JAX 0.11 has a tree of the inputs.
    """
    if "num_consts" in parameters:
        return parameters["num_consts"], parameters["num_carry"]
    constants, carried, _ = parameters["ft_in"].unpack()
    return len(list(constants)), len(list(carried))


def _times(classes: _Classes, times: int) -> _Classes:
    return {key: operations * times for key, operations in classes.items()}


def _integer(value: Any) -> int | None:
    """Return `value` as a Python integer, or None if it is not a scalar of an integer type."""
    if getattr(value, "shape", ()) != () or isinstance(value, bool):
        return None
    kind = getattr(getattr(value, "dtype", None), "kind", "i" if isinstance(value, int) else "")
    return int(value) if kind in ("i", "u") else None


def _value(variable: Any, known: Mapping[Any, int]) -> int | None:
    return _integer(variable.val) if isinstance(variable, Literal) else known.get(variable)


def _trips(eqn: Any, numbers: Sequence[int | None]) -> int:
    """Return the number of trips of a `while`.

    Its test must be `counter < bound`, and its body must add a positive constant to the counter. The bound
    and the first value of the counter must be known. `fori_loop` makes such loops. Raises CountError for any
    other loop.
    """
    test, body = eqn.params["cond_jaxpr"].jaxpr, eqn.params["body_jaxpr"].jaxpr
    n_test, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carry = numbers[n_test + n_body :]
    error = CountError(f"operation count: a while loop whose number of trips is not known ({where(eqn)})")

    # The test: one comparison of two inputs of the loop, or of one and a literal.
    if len(test.eqns) != 1 or test.eqns[0].primitive.name != "lt" or test.eqns[0].outvars != test.outvars:
        raise error
    counter, bound = test.eqns[0].invars
    if isinstance(counter, Literal) or counter not in test.invars[n_test:]:
        raise error
    place = test.invars[n_test:].index(counter)

    # The bound: a literal, a constant of the test, or a value that the loop carries unchanged.
    if isinstance(bound, Literal):
        end = _integer(bound.val)
    else:
        position = test.invars.index(bound)
        end = numbers[position] if position < n_test else carry[position - n_test]
        if (
            position >= n_test
            and body.outvars[position - n_test] is not body.invars[n_body + position - n_test]
        ):
            raise error

    # The step: the counter plus a literal.
    steps = [e for e in body.eqns if e.outvars[0] is body.outvars[place] and e.primitive.name == "add"]
    if len(steps) != 1 or carry[place] is None or end is None:
        raise error
    first, second = steps[0].invars
    if isinstance(first, Literal):
        first, second = second, first
    step = _integer(second.val) if isinstance(second, Literal) else None
    if first is not body.invars[n_body + place] or step is None or step < 1:
        raise error
    return max(-(-(end - carry[place]) // step), 0)
