"""A task for `kvpolicy eval`: text of the Jargon File, as Debian's package ``jargon-text`` has it (public domain)."""

from __future__ import annotations

from kvpolicy_hf.evaluate.tasks import Continuation

jargon = Continuation("/usr/share/doc/jargon-text/jargon.txt.gz")
