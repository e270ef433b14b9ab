#!/usr/bin/env bash
# Print the path of the browser that tests/site drives: $KVPOLICY_BROWSER, or the first one found.
#
#     scripts/browser.sh            install Debian's chromium if there is none, which takes root and apt-get
#     scripts/browser.sh --find     only look
set -euo pipefail

if [[ -n ${KVPOLICY_BROWSER:-} ]]; then
    names=("$KVPOLICY_BROWSER")
else
    names=(chromium google-chrome google-chrome-stable chromium-browser) # the last may only say that snap has it
fi
find_browser() {
    for name in "${names[@]}"; do command -v "$name" && return; done
    return 1
}

find_browser && exit
if [[ ${1:-} != --find && -z ${KVPOLICY_BROWSER:-} && $EUID == 0 ]] && command -v apt-get >/dev/null; then
    echo "browser: installing Debian's chromium" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2 || true # an index may be out of reach, and chromium in another
    apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core >&2 || true
    find_browser && exit
fi
echo "error: the tests of the documentation need Chromium or Google Chrome; there is no ${names[*]}." >&2
echo "Hint: install chromium, or set KVPOLICY_BROWSER=/path/to/chrome." >&2
exit 1
