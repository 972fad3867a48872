"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const form = document.querySelector(".filters");
const byId = (id) => document.getElementById(id);
const shortened = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const MOST = 40; // classes drawn as bars

function draw(tag, attributes, children = []) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  for (const child of [].concat(children)) node.append(child);
  return node;
}
const text = (x, y, words, more = {}) => draw("text", { x, y, ...more }, words);
const picture = (width, height, label, children) => draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, children);

// One model as chosen: counts and losses of one seed, or of all seeds together.
function model(side) {
  const found = data.models.find((m) => m.label === form.elements[side].value);
  const seed = form.elements.seed.value;
  const cells = Object.entries(found.seeds).filter(([name]) => !seed || name === seed).map(([, cell]) => cell);
  return {
    label: found.label,
    losses: (split) => cells.flatMap((cell) => cell.losses[split] || []),
    counts(split) {
      const table = new Map();
      for (const cell of cells) for (const [i, j, n] of cell.confusion[split] || []) {
        const row = table.get(i) || new Map();
        row.set(j, (row.get(j) || 0) + n);
        table.set(i, row);
      }
      return table;
    },
  };
}
const total = (row) => [...row.values()].reduce((sum, n) => sum + n, 0);

function bars(a, b) {
  const [left, right] = [a.counts("test"), b.counts("test")];
  const share = (table, i) => (table.has(i) ? (table.get(i).get(i) || 0) / total(table.get(i)) : null);
  let shown = data.classes.map((name, i) => ({ name, i, a: share(left, i), b: share(right, i) })).filter((c) => c.a !== null || c.b !== null);
  const all = shown.length;
  if (all > MOST) shown = shown.sort((x, y) => Math.abs(y.a - y.b) - Math.abs(x.a - x.b)).slice(0, MOST);
  byId("bars-note").textContent = all > MOST ? ` The ${MOST} of ${all} classes that differ most.` : "";
  const [start, width, height] = [112, Math.max(280, Math.min(736, byId("bars").clientWidth)), 26];
  const scale = width - start - 30; // pixels from 0 to 100 %
  const parts = shown.flatMap((c, at) => {
    const y = at * height + 4;
    const mark = data.forgotten.includes(c.i) ? "● " : "";
    return [
      text(start - 8, y + 14, mark + shortened(c.name, 16), { "text-anchor": "end" }),
      ...["a", "b"].flatMap((side, k) => c[side] === null ? [] : [
        draw("rect", { class: `fill-${side}`, x: start, y: y + 10 * k, width: Math.max(1, scale * c[side]), height: 9 }),
        text(start + Math.max(1, scale * c[side]) + 4, y + 10 * k + 8, (100 * c[side]).toFixed(0), { class: "soft", style: "font-size:9px" }),
      ]),
    ];
  });
  byId("bars").replaceChildren(picture(width, shown.length * height + 6, "Test accuracy per class", parts));
}

function matrix(side, one) {
  const split = byId("split").value;
  const table = one.counts(split);
  const lines = [...table.keys()].sort((x, y) => x - y);
  const count = data.classes.length;
  const columns = count <= MOST ? data.classes.map((_, i) => i) : [...new Set(lines.flatMap((i) => [...table.get(i).keys()]))].sort((x, y) => x - y);
  const start = 74;
  const field = Math.min(34, (400 - start) / Math.max(columns.length, 1));
  const tall = Math.max(field, Math.min(34, 330 / Math.max(lines.length, 1), field * 2));
  const named = columns.length <= 20;
  const parts = [draw("rect", { class: "frame", x: start, y: 2, width: field * columns.length, height: tall * lines.length })];
  lines.forEach((i, at) => {
    const row = table.get(i);
    const whole = total(row);
    if (lines.length <= 30) parts.push(text(start - 6, at * tall + tall / 2 + 5, shortened(data.classes[i], 11), { "text-anchor": "end" }));
    for (const [j, n] of row) {
      const rect = draw("rect", { class: `fill-${side}`, x: start + columns.indexOf(j) * field, y: 2 + at * tall, width: field, height: tall, opacity: 0.08 + (0.92 * n) / whole });
      const words = `${one.label}: ${n} of ${whole} samples of class ${data.classes[i]} are called ${data.classes[j]} (${percent(n / whole)}).`;
      rect.append(draw("title", {}, words));
      rect.addEventListener("pointerenter", () => { byId("matrix-told").textContent = words; });
      parts.push(rect);
    }
  });
  const bottom = lines.length * tall + 2;
  if (named) columns.forEach((j, at) => {
    const [x, y] = [start + (at + 0.5) * field + 3, bottom + 8];
    parts.push(text(x, y, shortened(data.classes[j], 11), { transform: `rotate(-60 ${x} ${y})`, "text-anchor": "end" }));
  });
  byId(`matrix-${side}`).replaceChildren(picture(404, bottom + (named ? 66 : 6), `Predictions of ${one.label}`, parts));
}

function attack(side, one, threshold) {
  const groups = [["forget", one.losses("forget"), side], ["test", one.losses("test"), "unseen"]];
  if (groups.some(([, values]) => !values.length)) {
    byId(`attack-${side}`).replaceChildren();
    byId(`told-${side}`).textContent = "No losses are stored for this model.";
    return;
  }
  const [width, band] = [400, 62];
  const place = (loss) => 8 + ((Math.min(2, Math.max(-5, Math.log10(Math.max(loss, 1e-5)))) + 5) / 7) * (width - 16);
  const parts = [];
  groups.forEach(([split, values, kind], at) => {
    const few = values.length <= 300 ? values : Array.from({ length: 300 }, (_, k) => values[Math.floor((k * values.length) / 300)]);
    few.forEach((loss, k) => {
      const y = at * (band + 22) + 20 + ((k * 37) % 100) * (band - 8) / 100;
      parts.push(draw("circle", { class: `dot ${kind}${loss < threshold ? " called" : ""}`, cx: place(loss), cy: y, r: 2.6 }, draw("title", {}, `loss ${loss}`)));
    });
    parts.push(text(8, at * (band + 22) + 12, split === "forget" ? "to forget" : "unseen", { class: "soft" }));
  });
  const end = 2 * (band + 22);
  parts.push(draw("line", { class: "line", x1: place(threshold), x2: place(threshold), y1: 4, y2: end }));
  for (const power of [-5, -3, -1, 1]) parts.push(text(place(10 ** power), end + 14, `1e${power}`, { class: "soft", "text-anchor": power === -5 ? "start" : "middle" }));
  parts.push(text(width - 8, end + 14, "loss", { class: "soft", "text-anchor": "end" }));
  byId(`attack-${side}`).replaceChildren(picture(width, end + 20, `Losses of ${one.label}`, parts));
  const called = groups.map(([, values]) => values.filter((loss) => loss < threshold).length / values.length);
  byId(`told-${side}`).textContent = `Called training samples: ${percent(called[0])} of those to forget, ${percent(called[1])} of the unseen. Balanced accuracy ${percent((1 + called[0] - called[1]) / 2)} (guessing: 50 %); AUC over all thresholds ${auc(groups[0][1], groups[1][1]).toFixed(2)}.`;
}

// Share of pairs in which the sample to forget has the lower loss; ties count half.
function auc(known, unseen) {
  const sorted = [...unseen].sort((x, y) => x - y);
  const below = (value, orEqual) => {
    let [low, high] = [0, sorted.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (orEqual ? sorted[middle] <= value : sorted[middle] < value) low = middle + 1; else high = middle;
    }
    return low;
  };
  return known.reduce((sum, loss) => sum + sorted.length - (below(loss, false) + below(loss, true)) / 2, 0) / (known.length * sorted.length);
}

function show() {
  const [a, b] = [model("a"), model("b")];
  for (const [side, one] of [["a", a], ["b", b]]) for (const node of document.querySelectorAll(`.name.${side}`)) node.textContent = one.label;
  bars(a, b);
  matrix("a", a);
  matrix("b", b);
  slide(a, b);
}
function slide(a = model("a"), b = model("b")) {
  const threshold = 10 ** Number(byId("threshold").value);
  byId("threshold-told").textContent = threshold.toPrecision(2);
  attack("a", a, threshold);
  attack("b", b, threshold);
}
function fill(name, values, chosen) {
  form.elements[name].replaceChildren(...values.map(([value, words]) => new Option(words, value, value === chosen, value === chosen)));
}
function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  const labels = data.models.map((m) => m.label);
  const known = (name) => (labels.includes(given.get(name)) ? given.get(name) : null);
  const first = (kind) => (data.models.find((m) => m.kind === kind) || {}).label;
  fill("a", labels.map((l) => [l, l]), known("a") || first("before") || labels[0]);
  fill("b", labels.map((l) => [l, l]), known("b") || first("") || labels.at(-1));
  fill("seed", [["", "all"], ...data.seeds.map((s) => [s, s])], given.get("seed") || "");
  if (given.get("threshold")) byId("threshold").value = Math.log10(Number(given.get("threshold")));
  show();
}
function write() {
  const state = { a: form.elements.a.value, b: form.elements.b.value, seed: form.elements.seed.value, threshold: byId("threshold-told").textContent };
  history.replaceState(null, "", `#${new URLSearchParams(state)}`);
}
if (data.models.length) {
  form.addEventListener("change", () => { show(); write(); });
  byId("split").addEventListener("change", show);
  byId("threshold").addEventListener("input", () => slide());
  byId("threshold").addEventListener("change", write);
  window.addEventListener("hashchange", read);
  window.addEventListener("resize", show);
  read();
} else {
  byId("empty").hidden = false;
  byId("drawn").hidden = form.hidden = true;
}
