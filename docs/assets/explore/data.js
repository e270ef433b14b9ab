/* What the explorer shows, made by `python -m scripts.explore`: loaded as scripts, since a page that is opened from a
 * file may load nothing else. */
"use strict";

const explore = { folder: new URL("runs/", document.currentScript.src), waiting: {} };

/** Each file of data calls this with its name. */
function explored(name, data) {
  explore.waiting[name].arrived(data);
}

/** The data of this name, once. */
explore.load = (name) => {
  explore.waiting[name] ??= (() => {
    const entry = {};
    entry.data = new Promise((resolve, reject) => {
      entry.arrived = resolve;
      const script = document.createElement("script");
      script.src = new URL(`${name}.js`, explore.folder);
      script.onerror = () => reject(new Error(`no ${script.src}`));
      document.head.append(script);
    });
    return entry;
  })();
  return explore.waiting[name].data;
};

/** The bytes behind base64. */
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

/**
 * What became of the prompt's tokens: for each layer and token the share of heads that keep and that merge it, and the
 * token that it was merged into, or -1. `coded` in scripts/explore.py is the other direction.
 */
explore.fates = ([, , , kept, into], { layers, heads: all, tokens }) => {
  const bits = bytes(kept);
  const others = bytes(into);
  const heads = bits.length * 8 >= layers * all * tokens ? all : 1;
  let place = 0;
  let other = 0;
  return Array.from({ length: layers }, () => {
    const fate = Array.from({ length: tokens }, () => ({ kept: 0, merged: 0, into: -1 }));
    for (let head = 0; head < heads; head++) {
      for (const token of fate) {
        const own = (bits[place >> 3] >> (7 - (place & 7))) & 1;
        place += 1;
        if (own) {
          token.kept += 1 / heads;
          continue;
        }
        const holder = (others[other++] ?? 0) - 1;
        if (holder < 0) continue;
        token.merged += 1 / heads;
        if (token.into < 0) token.into = holder; // heads may differ: the first that merged it says where
      }
    }
    return fate;
  });
};

/** Rows that a head keeps, on average over heads, of these tokens of a layer. */
explore.rows = (fate, first = 0, end = fate.length) =>
  fate.slice(first, end).reduce((sum, token) => sum + token.kept, 0);

/** A number of rows in words: without a fraction where it has none. */
explore.count = (rows) => String(Math.round(rows * 10) / 10);
