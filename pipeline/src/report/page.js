"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const percent = (v) => (100 * v).toFixed(1);

/** Curves that are drawn before anybody chooses: as many as there are colours. */
const SHOWN = 8;
/** With more curves than this, a band is shown only for the one that is pointed at. */
const BANDS = 3;
/** Lengths of dashes, in turn drawn and left out, for the 1st, 2nd … eight curves. */
const patterns = [[], [9, 4], [2, 3], [12, 3, 2, 3]];

/** What the reader has chosen: model -> whether it is drawn. */
const chosen = new Map();
/** The place of every drawn model among colours and patterns; it keeps it for as long as it is drawn. */
const slots = new Map();
const colour = (model) => (slots.has(model) ? `var(--c${slots.get(model) % 8})` : "var(--grid)");
const pattern = (model) => patterns[Math.floor((slots.get(model) ?? 0) / 8) % patterns.length];

function element(name, attributes, parent, text) {
  const svg = ["svg", "g", "line", "path", "rect", "text", "circle"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

/**
 * The models of a task that are drawn unless the reader says otherwise: all of them if there are colours enough, else the best,
 * the worst and some in between, by their mean accuracy beyond the trained lengths.
 */
function usual(task) {
  const models = [...new Set([...task.curves, ...task.training].map((curve) => curve.model))].sort((a, b) => a - b);
  if (models.length <= SHOWN) return new Set(models);
  const score = (model) => {
    const curve = task.curves.find((c) => c.model === model);
    if (!curve) return -1;
    const all = curve.mean.map((value, i) => [value, task.grids[curve.grid][i][0]]);
    const longer = all.filter(([, first]) => first > (task.trained ?? 0));
    const used = longer.length ? longer : all;
    return used.reduce((sum, [value]) => sum + value, 0) / used.length;
  };
  const ranked = models.map((model) => [score(model), model]).sort((a, b) => b[0] - a[0] || a[1] - b[1]);
  return new Set(Array.from({ length: SHOWN }, (_, i) => ranked[Math.round((i * (ranked.length - 1)) / (SHOWN - 1))][1]));
}

const isShown = (task, model) => chosen.get(model) ?? task.usual.has(model);

/** Gives every drawn model of the task the first place that is free. */
function assignSlots(task, models) {
  for (const model of slots.keys()) if (!models.includes(model) || !isShown(task, model)) slots.delete(model);
  for (const model of models) {
    if (slots.has(model) || !isShown(task, model)) continue;
    const taken = new Set(slots.values());
    slots.set(model, data.models.findIndex((_, slot) => !taken.has(slot)));
  }
}

/**
 * Curves that lie on each other share the line: each draws every n-th dash. `lines` have points [x, y] in pixels; returns for
 * each line the lengths of its dashes, in turn drawn and left out.
 */
function sharedDashes(lines) {
  const dash = 9;
  // Lines within a pixel of each other at an x belong together there.
  const places = new Map();
  lines.forEach((line, index) => line.points.forEach(([x, y]) => places.set(x, [...(places.get(x) ?? []), [y, index]])));
  const together = new Map();
  for (const [x, found] of places) {
    found.sort((a, b) => a[0] - b[0]);
    let group = 0;
    found.forEach(([y, index], i) => {
      if (i && y - found[i - 1][0] > 1) group++;
      together.set(`${x} ${index}`, group);
    });
  }
  const segments = new Map();
  const key = (points, i, index) => `${points[i - 1][0]} ${points[i][0]} ${together.get(`${points[i - 1][0]} ${index}`)} ${together.get(`${points[i][0]} ${index}`)}`;
  lines.forEach(({ points }, index) => {
    for (let i = 1; i < points.length; i++) segments.set(key(points, i, index), [...(segments.get(key(points, i, index)) ?? []), index]);
  });
  return lines.map(({ points, model }, index) => {
    const runs = [];
    for (let i = 1; i < points.length; i++) {
      const members = segments.get(key(points, i, index));
      const length = Math.hypot(points[i][0] - points[i - 1][0], points[i][1] - points[i - 1][1]);
      const last = runs.at(-1);
      if (last && last.members.join() === members.join()) last.length += length;
      else runs.push({ members, length });
    }
    if (runs.every((run) => run.members.length === 1) && pattern(model).length === 0) return null;
    const dashes = [0]; // drawn, left out, drawn …
    const put = (drawn, length) => {
      if (dashes.length % 2 === (drawn ? 1 : 0)) dashes[dashes.length - 1] += length;
      else dashes.push(length);
    };
    for (const { members, length } of runs) {
      const turn = members.indexOf(index);
      const steps = members.length > 1 ? members.map((_, i) => [i === turn, dash]) : pattern(model).map((step, i) => [i % 2 === 0, step]);
      if (steps.length === 0) steps.push([true, length]);
      for (let at = 0, i = 0; at < length; i++) {
        const [drawn, step] = steps[i % steps.length];
        put(drawn, Math.min(step, length - at));
        at += step;
      }
    }
    return dashes.map((length) => length.toFixed(2)).join(" ");
  });
}

/** Groups of at least two lines that are the same, or nearly so, all the way. */
function sameCurves(lines, near) {
  const groups = [];
  for (const line of lines) {
    const same = (other) => other.x.length === line.x.length && other.y.every((y, i) => other.x[i] === line.x[i] && near(y, line.y[i]));
    const group = groups.find(([first]) => same(first));
    if (group) group.push(line);
    else groups.push([line]);
  }
  return groups.filter((group) => group.length > 1);
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

  const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x} ${y}`).join("");
  const pixel = (x, y) => [+across(x).toFixed(1), +up(y).toFixed(1)];
  holder.classList.remove("focused");
  for (const line of lines) {
    if (!line.low) continue;
    const there = line.x.map((x, i) => pixel(x, line.low[i]));
    const back = line.x.map((x, i) => pixel(x, line.high[i])).reverse();
    const band = lines.length <= BANDS ? "band on" : "band";
    element("path", { class: band, d: `${path([...there, ...back])}Z`, style: `fill:${colour(line.model)}`, "data-model": line.model }, svg);
  }
  const drawn = lines.map((line) => ({ model: line.model, points: line.x.map((x, i) => pixel(x, line.y[i])) }));
  const dashed = sharedDashes(drawn);
  drawn.forEach(({ model, points }, i) => {
    const dashes = dashed[i] ? `;stroke-dasharray:${dashed[i]}` : "";
    element("path", { class: "line", d: path(points), style: `stroke:${colour(model)}${dashes}`, "data-model": model }, svg);
    // Few points are seen as such; a single one would not be seen at all.
    if (points.length > 12) return;
    for (const [cx, cy] of points) element("circle", { cx, cy, r: 2.6, style: `fill:${colour(model)}` }, svg);
  });
  readout(holder, svg, lines, { box, across, up, width, axes });
}

/** Brings out one model of a chart, with its band; null brings out none. */
function bringOut(holder, model) {
  holder.classList.toggle("focused", model !== null && holder.querySelectorAll(".line").length > 1);
  const few = holder.querySelectorAll(".line").length <= BANDS;
  for (const line of holder.querySelectorAll(".line")) line.classList.toggle("on", line.dataset.model === String(model));
  for (const band of holder.querySelectorAll(".band")) band.classList.toggle("on", few || band.dataset.model === String(model));
}

/** Smallest and largest, of arrays too long for Math.min(...). */
function extent(values) {
  return values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
}

/** The values under the pointer, or under the cursor that the arrow keys move. */
function readout(holder, svg, lines, { box, across, up, width, axes }) {
  const cursor = element("line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" }, svg);
  const tip = element("div", { class: "tip", role: "status", hidden: "" }, holder);
  const longest = lines.reduce((a, b) => (b.x.length > a.x.length ? b : a));
  let at = -1;
  const nearest = (line, x) => line.x.reduce((best, v, i) => (Math.abs(v - x) < Math.abs(line.x[best] - x) ? i : best), 0);
  const show = (index, height) => {
    at = Math.max(0, Math.min(longest.x.length - 1, index));
    const x = longest.x[at];
    cursor.setAttribute("x1", across(x));
    cursor.setAttribute("x2", across(x));
    cursor.setAttribute("visibility", "visible");
    tip.replaceChildren();
    tip.hidden = false;
    element("b", {}, tip, longest.label(at));
    const found = lines.map((line) => ({ line, i: nearest(line, x) })).sort((a, b) => b.line.y[b.i] - a.line.y[a.i]);
    if (height !== undefined && lines.length > 1) {
      // The line under the pointer, if there is one.
      const distance = ({ line, i }) => Math.abs(up(line.y[i]) - height);
      const closest = found.reduce((a, b) => (distance(b) < distance(a) ? b : a));
      bringOut(holder, distance(closest) < 24 ? closest.line.model : null);
    }
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
    bringOut(holder, null);
  };
  svg.addEventListener("pointermove", (event) => {
    const corner = svg.getBoundingClientRect();
    const x = event.clientX - corner.left;
    const index = longest.x.reduce((best, v, i) => (Math.abs(across(v) - x) < Math.abs(across(longest.x[best]) - x) ? i : best), 0);
    show(index, event.clientY - corner.top);
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
    .filter((curve) => isShown(task, curve.model))
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
    .filter((curve) => curve.kind === kind && isShown(task, curve.model))
    .map((curve) => ({ model: curve.model, x: curve.x, y: curve.y, label: (i) => `step ${Math.round(curve.x[i])}` }));
}

/** The names of `models` as buttons that show and hide their curves; hovering over one brings out its curve in `holder`. */
function legend(parent, holder, task, models) {
  const focused = parent.contains(document.activeElement) ? [...parent.children].indexOf(document.activeElement) : -1;
  parent.replaceChildren();
  const button = (attributes, text, press) => {
    const made = element("button", { type: "button", ...attributes }, parent);
    if (attributes["data-model"] !== undefined) {
      const model = attributes["data-model"];
      const dashes = pattern(model).length ? `repeating-linear-gradient(90deg,${colour(model)} 0 ${pattern(model)[0]}px,transparent 0 ${pattern(model)[0] + pattern(model)[1]}px)` : colour(model);
      element("i", { style: `background:${dashes}` }, made);
    }
    made.append(text);
    made.addEventListener("click", () => {
      press();
      render();
    });
    return made;
  };
  for (const model of models) {
    const shown = isShown(task, model);
    const made = button({ "aria-pressed": shown, "data-model": model }, data.models[model], () => chosen.set(model, !shown));
    made.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && bringOut(holder, shown ? model : null));
    made.addEventListener("focus", () => made.matches(":focus-visible") && bringOut(holder, shown ? model : null));
    for (const type of ["pointerleave", "blur"]) made.addEventListener(type, () => bringOut(holder, null));
  }
  if (models.length > 2) {
    button({ class: "all" }, "all", () => models.forEach((model) => chosen.set(model, true)));
    button({ class: "all" }, "none", () => models.forEach((model) => chosen.set(model, false)));
  }
  if (models.length > SHOWN || chosen.size > 0) button({ class: "all" }, "as at first", () => chosen.clear());
  if (focused >= 0) parent.children[focused]?.focus();
}

/** Says which of the drawn curves cannot be told apart. */
function saySame(parent, lines, near) {
  const groups = sameCurves(lines, near).map((group) => group.map((line) => data.models[line.model]).join(" = "));
  parent.textContent = groups.length ? `Drawn as alternating dashes, because their curves are the same: ${groups.join("; ")}.` : "";
}

function sayAveraged(task) {
  const widths = task.grids.flatMap((bins) => bins.map(([first, last]) => last - first + 1));
  const [fewest, most] = extent(widths);
  const count = fewest === most ? most : `${fewest} to ${most}`;
  const whole = task.period ? ", a multiple of the " + task.period + " after which labels repeat, so that guessing is a level line" : "";
  byId("averaged").textContent = most > 1 ? `Each point averages ${count} neighbouring lengths${whole}.` : "";
}

function render() {
  const task = data.tasks[byId("task").value];
  if (!task) return;
  const kind = Number(byId("kind").value);
  const logarithmic = data.kinds[kind].log;
  const models = [...new Set([...task.curves, ...task.training].map((curve) => curve.model))].sort((a, b) => a - b);
  assignSlots(task, models);
  const [accuracy, training] = [lengthLines(task), stepLines(task, kind)];
  draw(byId("lengths"), accuracy, {
    title: `Accuracy against length on ${task.name}`, longest: Math.max(...task.grids.map((bins) => bins.at(-1)[1])), xTitle: "test length", xLog: byId("log").checked,
    trained: task.trained, chance: task.chance, format: (v) => `${percent(v)} %`,
  });
  draw(byId("steps"), training, {
    title: `${data.kinds[kind].title} on ${task.name}`, xTitle: "optimisation step", yLog: logarithmic,
    format: (v) => (logarithmic ? short(v) : `${percent(v)} %`),
  });
  const of = (curves) => models.filter((model) => curves.some((curve) => curve.model === model));
  legend(byId("models"), byId("lengths"), task, models);
  legend(byId("trained"), byId("steps"), task, of(task.training.filter((curve) => curve.kind === kind)));
  saySame(byId("same"), accuracy, (a, b) => Math.abs(a - b) < 0.003);
  saySame(byId("same-steps"), training, (a, b) => (logarithmic ? Math.abs(Math.log(a / b)) < 0.003 : Math.abs(a - b) < 0.003));
  sayAveraged(task);
  const drawn = models.filter((model) => isShown(task, model)).length;
  byId("shown").textContent = models.length <= SHOWN ? "" : `${drawn} of ${models.length} models are drawn`
    + (chosen.size ? "." : ": the best, the worst and some in between, by accuracy beyond the trained lengths. Press the names of others to add them.");
}

/** Says of every table that is wider than the screen that it goes on, for as long as it does. */
function markCut() {
  for (const wide of document.querySelectorAll(".wide")) {
    const { scrollLeft, scrollWidth, clientWidth } = wide.querySelector(".scroll");
    wide.classList.toggle("cut", scrollWidth > clientWidth + 1);
    wide.classList.toggle("more", scrollLeft + clientWidth < scrollWidth - 1);
  }
}

for (const task of data.tasks) task.usual = usual(task);
data.tasks.forEach((task, i) => element("option", { value: i }, byId("task"), task.name));
data.kinds.forEach((kind, i) => element("option", { value: i }, byId("kind"), kind.title));
for (const id of ["task", "kind", "log"]) byId(id).addEventListener("change", render);
for (const scroll of document.querySelectorAll(".scroll")) {
  scroll.addEventListener("scroll", markCut, { passive: true });
  new ResizeObserver(markCut).observe(scroll);
}
let width = 0;
new ResizeObserver(() => {
  if (byId("lengths").clientWidth !== width) render();
  width = byId("lengths").clientWidth;
}).observe(byId("lengths"));
render();
