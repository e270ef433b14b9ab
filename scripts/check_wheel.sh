#!/usr/bin/env bash
# Install the wheel into a clean environment, and use it from outside the checkout.
#
#     scripts/check_wheel.sh                   (built with .venv, from the sdist)
#     PYTHON=python3 scripts/check_wheel.sh
#     scripts/check_wheel.sh dist/kvpolicy-0.1.0-py3-none-any.whl
set -euo pipefail
wheel=${1:+$(realpath "$1")}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

root=$PWD
python=${PYTHON:-$root/.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'echo "check_wheel: failed at line $LINENO" >&2' ERR
say() { echo "check_wheel: $*"; }

if [ -z "$wheel" ]; then
    say "building"
    isolation=()
    if "$python" -c "import hatchling" 2>/dev/null; then isolation=(--no-isolation); fi
    "$python" -m build "${isolation[@]}" --outdir "$work/dist" "$root" >"$work/build.log" 2>&1 || {
        cat "$work/build.log" >&2
        exit 1
    }
    wheel=$(echo "$work"/dist/kvpolicy-*.whl)
fi

say "installing $(basename "$wheel")[hf] into a clean environment"
"$python" -m venv "$work/venv"
bin=$work/venv/bin
pip() { "$bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
pip install -c "$root/constraints.txt" "torch==2.13.0"
pip install -c "$root/constraints.txt" "kvpolicy[hf] @ file://$wheel"
pip check

mkdir "$work/elsewhere"
cd "$work/elsewhere"
unset PYTHONPATH
export HF_HUB_OFFLINE=1 # the demo needs nothing but the wheel

say "imports and type markers"
"$bin/python" - "$root" <<'PYTHON'
import sys
from importlib.resources import files
from pathlib import Path

import kvpolicy

assert "torch" not in sys.modules, "importing kvpolicy imported torch"

import kvpolicy_hf

checkout = Path(sys.argv[1]).resolve()
for package in (kvpolicy, kvpolicy_hf):
    assert checkout not in Path(package.__file__).resolve().parents, f"{package.__file__} is the checkout's"
    assert (files(package) / "py.typed").is_file(), f"{package.__name__} has no py.typed"
    for name in package.__all__:
        getattr(package, name)
assert (files(kvpolicy_hf) / "demo" / "assets" / "NOTICE").is_file(), "the demo's NOTICE is missing"
PYTHON

say "kvpolicy --version, as a module too, and kvpolicy policies"
version=$(basename "$wheel" | cut -d- -f2)
for command in "$bin/kvpolicy" "$bin/python -m kvpolicy"; do
    [ "$($command --version)" = "kvpolicy $version" ]
done
"$bin/kvpolicy" policies >/dev/null

say "kvpolicy demo"
"$bin/kvpolicy" demo --out tmp.png >demo.log 2>&1 || {
    cat demo.log >&2
    exit 1
}
"$bin/python" -c "from PIL import Image; Image.open('tmp.png').verify()"

say "kvpolicy check without the conformance kit's libraries says what to install"
if "$bin/kvpolicy" check h2o >check.log 2>&1 || ! tr -s ' \n' ' ' <check.log | grep -qF 'kvpolicy[testing]'; then
    cat check.log >&2
    exit 1
fi

say "a third party's project, with kvpolicy[eval,testing]"
cp -R "$root/examples/own_policies" "$work/own_policies"
pip install -c "$root/constraints.txt" "kvpolicy[eval,testing] @ file://$wheel" "$work/own_policies[test]"
pip check
"$bin/pytest" --help >help.txt
grep -q -- --kvpolicy-backend help.txt

say "its tests: its policies conform"
(cd "$work/own_policies" && "$bin/pytest" -q --kvpolicy-profile quick)

say "kvpolicy check: a scorer keeps every law, and a merger that adds breaks one"
"$bin/kvpolicy" check own_policies:LoudValues >check.log || {
    cat check.log >&2
    exit 1
}
status=0
"$bin/kvpolicy" check own_policies:AddValues --backend numpy >check.log || status=$?
if [ "$status" != 1 ] || ! grep -qx 'broken: merge_convex' check.log; then
    cat check.log >&2
    exit 1
fi

say "kvpolicy eval: its scorer beside a recipe"
"$bin/kvpolicy" eval demo --policy own_policies:LoudValues --policy h2o --task photo-at --samples 2 --records 0 \
    >eval.log 2>&1 || {
    cat eval.log >&2
    exit 1
}
grep -q LoudValues kvpolicy-eval/report.html

say "ok"
