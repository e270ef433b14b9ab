/* The controls of the explorer, and what they show. */
"use strict";

(async () => {
  const root = document.getElementById("explorer");
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const about = await explore.load("about");
  const { grid, keeps, layers, heads } = about;
  const patches = grid.rows * grid.columns;
  const policies = Object.keys(about.policies);
  const percent = (share) => `${Math.round(share * 100)}%`;
  const state = { picture: "grid-2", question: 1, policy: "h2o", stop: keeps.indexOf(0.4), token: -1 };
  let panels = [];
  let fates = [];
  let shown = ""; // the picture and question that the panels were made for

  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const hidden = (text) => element("span", { className: "unseen" }, text);
  const prompt = () => about.pictures[state.picture].questions[state.question];
  const set = (change) => {
    Object.assign(state, change);
    show();
  };

  /** A choice of one of several, as radio buttons: the browser's own keys and names. */
  const choices = (name, entries, chosen, choose) => {
    part(name).replaceChildren(
      ...entries.map(([value, label, ...look]) => {
        const input = element("input", { type: "radio", name, value, checked: value === chosen });
        input.addEventListener("change", () => choose(value));
        return element("label", { title: label }, input, ...look);
      }),
    );
  };

  const pictures = () =>
    choices(
      "picture",
      Object.entries(about.pictures).map(([name, { title }]) => {
        const src = new URL(`${name}.webp`, explore.folder).href;
        return [name, title, element("img", { src, alt: title, width: 128, height: 128 })];
      }),
      state.picture,
      (picture) => set({ picture }),
    );
  const questions = () =>
    choices(
      "question",
      about.pictures[state.picture].questions.map(({ text }, number) => {
        return [String(number), text, element("span", {}, text)];
      }),
      String(state.question),
      (number) => set({ question: Number(number) }),
    );

  const frames = () => {
    const picture = new URL(`${state.picture}.webp`, explore.folder).href;
    panels = Array.from({ length: layers }, () => new explore.Panel(picture, grid, prompt().words));
    part("layers").replaceChildren(
      ...panels.map(({ svg }, layer) => {
        const kept = element("span", { className: "kept" });
        return element("figure", {}, element("figcaption", {}, `layer ${layer + 1}`, kept), svg);
      }),
    );
  };

  /** A mark that is read out as a word. */
  const verdict = (right) => {
    const className = right ? "right" : "wrong";
    return element("span", { className }, hidden(`${className}: `), right ? "✓" : "✗");
  };

  const answer = (name, who, said, cost) => {
    const right = said === prompt().right;
    part(name).dataset.right = right;
    part(name).replaceChildren(
      element("p", { className: "who" }, who),
      element("p", { className: "said" }, verdict(right), " ", said || "(nothing)"),
      element("p", { className: "cost" }, cost),
    );
  };

  const layer = (fate, number) => {
    const kept = explore.count(explore.rows(fate, grid.first, grid.first + patches));
    const many = (test) => fate.slice(grid.first, grid.first + patches).filter(test).length;
    panels[number].draw(
      fate,
      `Layer ${number + 1}: of ${patches} patches ${many((one) => one.kept > 0.999)} kept, ` +
        `${many((one) => one.kept > 0 && one.kept < 0.999)} kept by one head, ` +
        `${many((one) => !one.kept && one.merged > 0)} merged, ${many((one) => !one.kept && !one.merged)} dropped.`,
    );
    panels[number].svg.parentElement.querySelector(".kept").textContent = `${kept} of ${patches} patches`;
  };

  /** Every policy at every budget: the same question, right or not. */
  const map = (cells) => {
    const head = element("tr", {}, element("th", { scope: "col" }, "policy"));
    head.append(...keeps.map((keep) => element("th", { scope: "col" }, percent(keep))));
    const lines = policies.map((policy) => {
      const name = element("th", { scope: "row" }, policy);
      name.addEventListener("click", () => set({ policy }));
      const line = element("tr", { className: policy === state.policy ? "chosen" : "" }, name);
      cells[policy][state.question].forEach(([said], stop) => {
        const cell = element("td", { title: `${policy} at ${percent(keeps[stop])}: ${said}` });
        cell.append(verdict(said === prompt().right));
        if (policy === state.policy && stop === state.stop) cell.ariaCurrent = "true";
        cell.addEventListener("click", () => set({ policy, stop }));
        line.append(cell);
      });
      return line;
    });
    part("map").replaceChildren(element("thead", {}, head), element("tbody", {}, ...lines));
  };

  const show = async () => {
    const cells = await explore.load(state.picture);
    const { tokens, full, right, text } = prompt();
    const cell = cells[state.policy][state.question][state.stop];
    if (shown !== `${state.picture} ${state.question}`) {
      shown = `${state.picture} ${state.question}`;
      state.token = -1;
      questions();
      frames();
    }
    fates = explore.fates(cell, { layers, heads, tokens });
    fates.forEach(layer);
    const budget = percent(keeps[state.stop]);
    const held = fates.reduce((sum, fate) => sum + explore.rows(fate), 0) / layers;
    part("policy").value = state.policy;
    const href = `policies/${state.policy.split("(")[0]}.html`;
    const more = element("a", { href }, `More on ${state.policy}`);
    part("summary").replaceChildren(`${about.policies[state.policy]} `, more);
    part("keep").value = state.stop;
    part("keep").ariaValueText = budget;
    part("budget").textContent = budget;
    answer("full", "the full cache", full, `${tokens} of ${tokens} rows`);
    const cost = `${explore.count(held)} of ${tokens} rows, ${percent(cell[1] / cell[2])} of the bytes`;
    answer("answer", `${state.policy}, keep ${budget}`, cell[0], cost);
    part("asked").textContent = `“${text}”: the right answer is “${right}”. Choose a cell to see it above.`;
    part("stops").replaceChildren(
      ...cells[state.policy][state.question].map(([said], stop) => {
        const mark = verdict(said === right);
        mark.classList.toggle("here", stop === state.stop);
        return mark;
      }),
    );
    map(cells);
    follow();
  };

  /** The token that is pointed at, in every layer, and what became of it. */
  const follow = () => {
    panels.forEach((panel) => panel.mark(state.token));
    if (state.token < 0) {
      part("token").textContent =
        "Point at a patch to follow it through the layers. " +
        "Patch 4/7 is the fourth from the top, the seventh from the left.";
      return;
    }
    const name = (token) => explore.named(token, grid, prompt().words);
    const told = fates.map((fate, number) => `layer ${number + 1} ${explore.told(fate[state.token], name)}`);
    part("token").textContent = `${name(state.token)}: ${told.join("; ")}`;
  };

  pictures();
  part("policy").replaceChildren(...policies.map((name) => element("option", { value: name }, name)));
  part("policy").addEventListener("change", (event) => set({ policy: event.target.value }));
  Object.assign(part("keep"), { min: 0, max: keeps.length - 1, step: 1 });
  part("keep").addEventListener("input", (event) => set({ stop: Number(event.target.value) }));
  part("layers").addEventListener("pointerover", (event) => {
    const found = event.target.closest("[data-token]");
    if (!found) return;
    state.token = Number(found.dataset.token);
    follow();
  });
  await show();
  root.hidden = false;
})();
