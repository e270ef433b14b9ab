"""Documents that were mutated: each is a policy, or an error that names the place; nothing is ever imported or run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import tomli_w
from documents import ALLOW, BOTH, GOOD, MINE, Mine, policies, scored, words, written
from hypothesis import example, given
from hypothesis import strategies as st

from kvpolicy import Policy, PolicyError, Recency, from_json, from_toml, to_json
from kvpolicy._serial_names import STOCK

TWICE = "\0twice"  # ends a key that becomes a second one of its name
PLACED = re.compile(r"^(policy|document|format|version)\b[\w.\[\]]*: |^this is no (JSON|TOML): .*(line \d+|end of doc)")

names = st.sampled_from([*STOCK, MINE, "os:system", "builtins:eval", "Policy", "", "TopK\0", "__main__:Mine"])
keys = st.sampled_from("stage base64 prefill decode score rows keep format version policy __class__ of".split()) | words
junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, 2**63, -1, 0])
    | st.floats()
    | st.text(max_size=8)
    | names,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=3)
        | st.builds(lambda name, rest: {"stage": name, **rest}, names, st.dictionaries(keys, inner, max_size=2))
    ),
    max_leaves=5,
)


def places(tree: Any, *before: Any) -> Iterator[tuple[Any, ...]]:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield (*before, key)
        yield from places(value, *before, key)


@st.composite
def mutated(draw: Callable[..., Any]) -> Any:
    tree = json.loads(to_json(draw(policies)))
    for _ in range(draw(st.integers(1, 3))):
        known = list(places(tree))
        if not known:
            break
        *above, last = draw(st.sampled_from(known))
        inside = tree
        for key in above:
            inside = inside[key]
        act = draw(st.sampled_from(["delete", "replace", "insert", "rename", "twice", "move"]))
        if act == "delete":
            del inside[last]
        elif act == "replace" or isinstance(inside, list):
            inside[last] = draw(junk)
        elif act == "insert":
            inside[draw(keys)] = draw(junk)
        elif act == "rename":
            inside[draw(keys)] = inside.pop(last)
        elif act == "twice":
            inside[f"{last}{TWICE}"] = draw(junk)
        else:
            inside[last] = json.loads(json.dumps(tree.get("policy", tree)))
    return tree


def read_safely(read: Any, text: str) -> Policy | None:
    """A policy, or an error that names a place; nothing is imported on the way."""
    before, said = set(sys.modules), None
    try:
        policy = read(text, allow=ALLOW)
    except PolicyError as error:
        policy, said = None, str(error)
    assert set(sys.modules) == before
    assert said is None or PLACED.match(said), said
    assert (type(policy) is Policy) == (said is None)
    return policy


class TestMutations:
    @given(mutated())
    def test_of_the_tree(self, tree: Any) -> None:
        text = json.dumps(tree).replace(json.dumps(TWICE)[1:-1], "")
        policy = read_safely(from_json, text)
        if policy is not None:  # what can be read can be written
            assert from_json(to_json(policy), allow=ALLOW) == policy

    @given(mutated())
    def test_of_the_tree_in_toml(self, tree: Any) -> None:
        read_safely(from_toml, tomli_w.dumps(without_none(tree)))

    @given(policies, st.data())
    def test_of_the_text(self, policy: Policy, data: st.DataObject) -> None:
        for (write, read), made in zip(BOTH, (policy, scored(Mine((1.5, "a"), Recency()))), strict=True):
            text = write(made)
            start = data.draw(st.integers(0, len(text)))
            stop = data.draw(st.integers(start, min(len(text), start + 12)))
            put = data.draw(
                st.text(max_size=5) | st.sampled_from(['"', "{", "}", "[", "]", ",", "\\", "=", "#", "\n", "1e"])
            )
            read_safely(read, text[:start] + put + text[stop:])

    @given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
    @example("\ud800")
    @example('"\ud800" = 1')
    @example("[" * 990)
    @example("a" + ".a" * 4000 + " = 1")
    def test_of_nothing(self, text: str) -> None:
        assert read_safely(from_json, text) is None
        assert read_safely(from_toml, text) is None


def without_none(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: without_none(value) for key, value in tree.items() if value is not None}
    return [without_none(value) for value in tree if value is not None] if isinstance(tree, list) else tree


NAMES = "os:system subprocess:Popen builtins:eval this:Zen antigravity:x kvpolicy:Session os.path:x".split()
NASTY = [written(score={"stage": name, "args": "touch x", "of": "__import__('os')"}) for name in NAMES]
SCRIPT = f"""
import sys
from kvpolicy import PolicyError, from_json, h2o, to_json

from_json(to_json(h2o(keep=0.2)))
seen, out = [], []
sys.addaudithook(lambda event, args: seen.append(event.split(".")[0]))
for text in {[GOOD, *NASTY]!r}:
    try:
        out.append(type(from_json(text)).__name__)
    except PolicyError:
        out.append("refused")
print(out, sorted(set(seen) & set("import exec compile open os subprocess socket ctypes".split())))
"""


def test_a_document_runs_nothing() -> None:
    """Under an audit hook: reading imports, compiles, opens and starts nothing, whatever the document names."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{['Policy', *['refused'] * len(NASTY)]} []"
