"""All families that are tried."""

from __future__ import annotations

import encoder_decoder
import text
import vision

GROUPS = {
    "Language models": text.FAMILIES,
    "Models that see and hear": vision.FAMILIES,
    "Encoder-decoders": encoder_decoder.FAMILIES,
}
FAMILIES = [family for group in GROUPS.values() for family in group]
SERVED = [family for family in FAMILIES if not family.refused]
REFUSED = [family for family in FAMILIES if family.refused]
