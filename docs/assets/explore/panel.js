/* One layer: the image with the prompt's words above and below, each token clear, tinted or dark. */
"use strict";

{
  const STRIP = 0.86; // height of a line of words, in patches
  const GAP = 0.22;
  const SVG = "http://www.w3.org/2000/svg";

  const make = (tag, attributes = {}) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };

  /** Colours that are easy to tell apart, neighbours most of all: steps of the golden angle. Bright, and as a tint. */
  const hue = (number) => {
    const angle = ((0.11 + 0.381966 * number) % 1) * 360;
    return { bright: `hsl(${angle} 90% 66%)`, tint: `hsl(${angle} 75% 27%)` };
  };

  /** Where each token lies, by its number: [left, top, width, height]. */
  const boxes = ({ rows, columns, first }, words) => {
    const made = new Map();
    for (let patch = 0; patch < rows * columns; patch++) {
      made.set(first + patch, [patch % columns, Math.floor(patch / columns), 1, 1]);
    }
    const lines = [
      [words.filter(([token]) => token < first), -STRIP - GAP],
      [words.filter(([token]) => token > first), rows + GAP],
    ];
    for (const [line, top] of lines) {
      const whole = line.reduce((sum, [, word]) => sum + word.length + 1.8, 0);
      let left = 0;
      for (const [token, word] of line) {
        const width = ((word.length + 1.8) / whole) * columns;
        made.set(token, [left + 0.04, top, width - 0.08, STRIP]);
        left += width;
      }
    }
    return made;
  };

  /** How a token reads: a word, or a patch's place. */
  explore.named = (token, { rows, columns, first }, words) => {
    const patch = token - first;
    if (patch >= 0 && patch < rows * columns) {
      return `patch ${Math.floor(patch / columns) + 1}/${(patch % columns) + 1}`;
    }
    return `“${new Map(words).get(token)}”`;
  };

  /** What became of a token, in words. */
  explore.told = ({ kept, merged, into }, name) => {
    if (kept > 0.999) return "kept";
    const rest = merged > 0 ? `merged into ${name(into)}` : "dropped";
    return kept > 0 ? `kept by one head, else ${rest}` : rest;
  };

  explore.Panel = class {
    /** An empty panel for a prompt: its picture and its words. */
    constructor(picture, grid, words) {
      this.grid = grid;
      this.boxes = boxes(grid, words);
      const { rows, columns } = grid;
      const top = -STRIP - GAP - 0.06;
      this.svg = make("svg", { viewBox: `-0.06 ${top} ${columns + 0.12} ${rows - 2 * top}`, role: "img" });
      this.svg.append(make("image", { href: picture, width: columns, height: rows, preserveAspectRatio: "none" }));
      this.tokens = new Map();
      const spelled = new Map(words);
      for (const [token, box] of [...this.boxes].sort(([one], [other]) => one - other)) {
        this.tokens.set(token, this.#token(token, box, spelled.get(token)));
      }
      this.lines = make("g", { class: "lines" });
      this.svg.append(...[...this.tokens.values()].map(({ group }) => group), this.lines);
    }

    #token(token, [x, y, width, height], word) {
      const group = make("g", { class: word === undefined ? "patch" : "word", "data-token": token });
      const veil = make("rect", { class: "veil", x, y, width, height });
      const edge = make("rect", {
        class: "edge", x: x + 0.03, y: y + 0.03, width: width - 0.06, height: height - 0.06,
      });
      if (word !== undefined) {
        const text = make("text", { x: x + width / 2, y: y + height / 2 });
        text.textContent = word;
        group.append(make("rect", { class: "face", x, y, width, height }), veil, text, edge);
      } else {
        group.append(veil, edge);
      }
      return { group, veil, edge };
    }

    /** Show what became of the tokens. */
    draw(fate, label) {
      const anchors = [...new Set(fate.map(({ into }) => into).filter((into) => into >= 0))].sort((a, b) => a - b);
      const colours = new Map(anchors.map((token, number) => [token, hue(number)]));
      const whole = fate.every(({ kept }) => kept > 0.999);
      fate.forEach(({ kept, merged, into }, token) => {
        const { group, veil, edge } = this.tokens.get(token);
        const state = kept > 0.999 ? "kept" : kept > 0 ? "some" : merged > 0 ? "merged" : "dropped";
        group.dataset.fate = state;
        veil.style.fill = colours.get(into)?.tint ?? "";
        veil.style.opacity = (1 - kept) * (into >= 0 ? 0.8 : 0.88);
        edge.style.opacity = whole ? 0 : kept;
        edge.style.stroke = colours.get(token)?.bright ?? "";
      });
      this.lines.replaceChildren(...this.#lines(fate, colours));
      this.svg.setAttribute("aria-label", label);
    }

    #lines(fate, colours) {
      const centre = (token) => {
        const [x, y, width, height] = this.boxes.get(token);
        return [x + width / 2, y + height / 2];
      };
      const made = [];
      const { first, rows, columns } = this.grid;
      for (let token = first; token < first + rows * columns; token++) {
        const { into } = fate[token];
        if (into < 0) continue;
        const [[x1, y1], [x2, y2]] = [centre(token), centre(into)];
        made.push(make("line", { x1, y1, x2, y2, stroke: colours.get(into).bright }));
      }
      for (const [token, { bright: fill }] of colours) {
        const [cx, cy] = centre(token);
        if (token >= first && token < first + rows * columns) made.push(make("circle", { cx, cy, r: 0.13, fill }));
      }
      return made;
    }

    /** Mark a token, or none. */
    mark(token) {
      this.svg.querySelector(".marked")?.classList.remove("marked");
      this.tokens.get(token)?.group.classList.add("marked");
    }
  };
}
