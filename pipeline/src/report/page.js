"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const colour = (model) => `var(--c${model % 8})`;
const dashes = ["none", "8 4", "2 3", "10 3 2 3"];
const percent = (v) => (100 * v).toFixed(1);
const hidden = new Set(data.models.length > 8 ? data.models.map((_, i) => i).slice(8) : []);

function element(name, attributes, parent, text) {
  const svg = ["svg", "g", "line", "path", "rect", "text", "circle"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

/** Round numbers that divide [low, high] into about `count` steps. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high * (1 + 1e-9); i++) found.push(i * step);
  return found;
}

/** 1, 2, 5, 10, 20 … as far as they fit. */
function logTicks(low, high, most) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const m of [1, 2, 5]) if (m * 10 ** power >= low * 0.999 && m * 10 ** power <= high * 1.001) found.push(m * 10 ** power);
  const tens = found.filter((v) => Math.abs(Math.log10(v) - Math.round(Math.log10(v))) < 1e-6);
  return found.length > most && tens.length > 1 ? tens.filter((_, i) => i % Math.ceil(tens.length / most) === 0) : found;
}

/** A number as short as its size allows. */
const short = (v) => (v !== 0 && (Math.abs(v) < 0.001 || Math.abs(v) >= 1e6) ? v.toExponential(0) : String(+v.toPrecision(3)));

/**
 * Draws lines into `holder`. A line: {model, x: [], y: [], low?: [], high?: [], label?: i => text}. Axes: xLog, yLog,
 * xTitle, format of y; `trained` is shaded, `chance` dashed.
 */
function draw(holder, lines, axes) {
  holder.replaceChildren();
  lines = lines.filter((line) => line.x.length > 0);
  if (lines.length === 0) {
    element("p", { class: "note" }, holder, "There is nothing to draw here yet.");
    return;
  }
  const width = Math.max(holder.clientWidth, 240);
  const height = Math.round(Math.min(460, Math.max(260, width * 0.5)));
  const box = { left: 58, right: width - 12, top: 24, bottom: height - 46 };
  const xs = lines.flatMap((line) => line.x);
  const ys = lines.flatMap((line) => line.y);
  const least = axes.xLog ? Math.max(Math.min(...extent(xs)), 1) : 0;
  const most = Math.max(axes.longest ?? 0, ...extent(xs), least + 1);
  let [floor, ceiling] = axes.yLog ? extent(ys.map((y) => Math.max(y, 1e-9))) : [-0.02, 1.04];
  if (axes.yLog) [floor, ceiling] = [Math.log10(floor) - 0.08, Math.log10(Math.max(ceiling, floor * 1.2)) + 0.08];
  const forward = axes.xLog ? Math.log : (v) => v;
  const across = (x) => box.left + ((forward(Math.max(x, least)) - forward(least)) / (forward(most) - forward(least))) * (box.right - box.left);
  const up = (y) => {
    const value = axes.yLog ? Math.log10(Math.max(y, 1e-9)) : y;
    return box.bottom - ((value - floor) / (ceiling - floor)) * (box.bottom - box.top);
  };

  const label = `${axes.title}, ${lines.length} models`;
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", tabindex: 0, "aria-label": label }, holder);
  if (axes.trained) {
    const edge = Math.min(across(axes.trained), box.right);
    element("rect", { class: "trained", x: box.left, y: box.top, width: Math.max(edge - box.left, 0), height: box.bottom - box.top }, svg);
    element("text", { x: box.left + 4, y: box.top - 8 }, svg, `trained on 1–${axes.trained}`);
  }
  const fewer = axes.yLog ? logTicks(10 ** floor, 10 ** ceiling, 8) : [0, 0.2, 0.4, 0.6, 0.8, 1];
  const rows = fewer.length < 3 ? ticks(10 ** floor, 10 ** ceiling, 5) : fewer;
  for (const y of rows) {
    element("line", { class: "axis", x1: box.left, x2: box.right, y1: up(y), y2: up(y) }, svg);
    element("text", { x: box.left - 8, y: up(y) + 4, "text-anchor": "end" }, svg, axes.yLog ? short(y) : `${Math.round(100 * y)} %`);
  }
  const room = Math.floor((box.right - box.left) / 64);
  for (const x of axes.xLog ? logTicks(least, most, room) : ticks(0, most, room)) {
    element("line", { class: "axis", x1: across(x), x2: across(x), y1: box.bottom, y2: box.bottom + 5 }, svg);
    const anchor = across(x) > box.right - 16 ? "end" : "middle";
    element("text", { x: across(x), y: box.bottom + 20, "text-anchor": anchor }, svg, short(x));
  }
  element("text", { x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" }, svg, axes.xTitle);
  if (axes.chance) element("line", { class: "chance", x1: box.left, x2: box.right, y1: up(axes.chance), y2: up(axes.chance) }, svg);

  const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${across(x).toFixed(1)} ${up(y).toFixed(1)}`).join("");
  const shown = lines.length;
  for (const line of lines) {
    if (!line.low) continue;
    const there = line.x.map((x, i) => [x, line.low[i]]);
    const back = line.x.map((x, i) => [x, line.high[i]]).reverse();
    element("path", { class: "band", d: `${path([...there, ...back])}Z`, style: `fill:${colour(line.model)};fill-opacity:${shown > 4 ? 0.07 : 0.14}` }, svg);
  }
  for (const line of lines) {
    const style = `stroke:${colour(line.model)};stroke-dasharray:${dashes[Math.floor(line.model / 8) % 4]}`;
    element("path", { class: "line", d: path(line.x.map((x, i) => [x, line.y[i]])), style }, svg);
    if (line.x.length === 1) element("circle", { cx: across(line.x[0]), cy: up(line.y[0]), r: 3, style: `fill:${colour(line.model)}` }, svg);
  }
  readout(holder, svg, lines, { box, across, width, axes });
}

/** Smallest and largest, of arrays too long for Math.min(...). */
function extent(values) {
  return values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
}

/** The values under the pointer, or under the cursor that the arrow keys move. */
function readout(holder, svg, lines, { box, across, width, axes }) {
  const cursor = element("line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" }, svg);
  const tip = element("div", { class: "tip", role: "status", hidden: "" }, holder);
  const longest = lines.reduce((a, b) => (b.x.length > a.x.length ? b : a));
  let at = -1;
  const nearest = (line, x) => line.x.reduce((best, v, i) => (Math.abs(v - x) < Math.abs(line.x[best] - x) ? i : best), 0);
  const show = (index) => {
    at = Math.max(0, Math.min(longest.x.length - 1, index));
    const x = longest.x[at];
    cursor.setAttribute("x1", across(x));
    cursor.setAttribute("x2", across(x));
    cursor.setAttribute("visibility", "visible");
    tip.replaceChildren();
    tip.hidden = false;
    element("b", {}, tip, longest.label(at));
    const found = lines.map((line) => ({ line, i: nearest(line, x) })).sort((a, b) => b.line.y[b.i] - a.line.y[a.i]);
    for (const { line, i } of found.slice(0, 12)) {
      const row = element("div", {}, tip);
      element("i", { style: `background:${colour(line.model)}` }, row);
      const interval = line.low ? ` [${percent(line.low[i])}, ${percent(line.high[i])}]` : "";
      row.append(`${data.models[line.model]}: ${axes.format(line.y[i])}${interval}`);
    }
    if (found.length > 12) element("div", {}, tip, `and ${found.length - 12} more`);
    tip.style.top = `${box.top + 8}px`;
    const left = across(x) + 12;
    tip.style.left = `${left + tip.offsetWidth > width ? Math.max(0, across(x) - tip.offsetWidth - 12) : left}px`;
  };
  const hide = () => {
    cursor.setAttribute("visibility", "hidden");
    tip.hidden = true;
  };
  svg.addEventListener("pointermove", (event) => {
    const x = event.clientX - svg.getBoundingClientRect().left;
    show(longest.x.reduce((best, v, i) => (Math.abs(across(v) - x) < Math.abs(across(longest.x[best]) - x) ? i : best), 0));
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") hide();
    if (step === undefined) return;
    event.preventDefault();
    show(at + step);
  });
}

function lengthLines(task) {
  return task.curves
    .filter((curve) => !hidden.has(curve.model))
    .map((curve) => {
      const bins = task.grids[curve.grid];
      const values = (all) => all.map((v) => v / 10000);
      const label = (i) => (bins[i][0] === bins[i][1] ? `length ${bins[i][0]}` : `lengths ${bins[i][0]}–${bins[i][1]}`);
      const x = bins.map(([first, last]) => (first + last) / 2);
      return { model: curve.model, x, y: values(curve.mean), low: values(curve.low), high: values(curve.high), label };
    });
}

function stepLines(task, kind) {
  return task.training
    .filter((curve) => curve.kind === kind && !hidden.has(curve.model))
    .map((curve) => ({ model: curve.model, x: curve.x, y: curve.y, label: (i) => `step ${Math.round(curve.x[i])}` }));
}

function render() {
  const task = data.tasks[byId("task").value];
  if (!task) return;
  const kind = Number(byId("kind").value);
  const logarithmic = data.kinds[kind].log;
  draw(byId("lengths"), lengthLines(task), {
    title: `Accuracy against length on ${task.name}`, longest: Math.max(...task.grids.map((bins) => bins.at(-1)[1])), xTitle: "test length", xLog: byId("log").checked,
    trained: task.trained, chance: task.chance, format: (v) => `${percent(v)} %`,
  });
  draw(byId("steps"), stepLines(task, kind), {
    title: `${data.kinds[kind].title} on ${task.name}`, xTitle: "optimisation step", yLog: logarithmic,
    format: (v) => (logarithmic ? short(v) : `${percent(v)} %`),
  });
  const legend = byId("models");
  legend.replaceChildren();
  const models = [...new Set([...task.curves, ...task.training].map((curve) => curve.model))].sort((a, b) => a - b);
  for (const model of models) {
    const button = element("button", { type: "button", "aria-pressed": !hidden.has(model) }, legend);
    element("i", { style: `background:${colour(model)}` }, button);
    button.append(data.models[model]);
    button.addEventListener("click", () => {
      if (!hidden.delete(model)) hidden.add(model);
      render();
      legend.children[models.indexOf(model)].focus();
    });
  }
}

data.tasks.forEach((task, i) => element("option", { value: i }, byId("task"), task.name));
data.kinds.forEach((kind, i) => element("option", { value: i }, byId("kind"), kind.title));
for (const id of ["task", "kind", "log"]) byId(id).addEventListener("change", render);
let drawn = 0;
new ResizeObserver(() => {
  const width = byId("lengths").clientWidth;
  if (width !== drawn) render();
  drawn = width;
}).observe(byId("lengths"));
render();
