"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const PALETTE = ["#0f6b66", "#c07a1e", "#6a6fb0", "#b0506a", "#6d8b3c", "#8a6d5a", "#4f88a8", "#7d7d7d"];
const said = key => typeof data.provenance[key] === "string" ? data.provenance[key] : null;
const corrected = (said("dft_correction") ?? "none").startsWith("none") ? "" : ", corrected to DFT";
const NAMES = {oracle: `H relaxed with ${said("potential") ?? "the potential"}${corrected}`, dimenet: "DimeNet++", second: said("second_potential") ?? "second potential"};
const state = window.report = {ready: false, selected: null, yaw: 0, pitch: 0, zoom: 1, atoms: 0, hydrogen: null, frames: 0, thumbnails: 0, sorted: null};
const scenes = new Map(data.scenes), rows = new Map(data.rows.map(row => [row.material_id, row]));
const sets = data.sets.map((set, k) => ({...set, title: set.name.replaceAll("_", " "), colour: PALETTE[k % PALETTE.length], own: k === 0}));
const own = sets[0];
const redraws = [];

/* --- small helpers: text never becomes markup -------------------------------------------------------------------------------- */

function make(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "style") node.style.cssText = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined));
  return node;
}
const el = (tag, attributes = {}, ...children) => make(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => make(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

/** Text with ΔG_H and E_hull set with real subscripts, as nodes for HTML or for SVG. */
function rich(text, inSvg = false) {
  return String(text ?? "").replaceAll("|Δ", "|\u2060Δ").split(/(_(?:H|hull)\b)/).map((part, k) => {
    if (!(k % 2)) return part;
    return inSvg ? svg("tspan", {class: "sub", "baseline-shift": "sub"}, part.slice(1)) : el("sub", {}, part.slice(1));
  });
}
const formula = text => String(text ?? "").replace(/(?<=[A-Za-z)])\d+/g, digits => [...digits].map(d => "₀₁₂₃₄₅₆₇₈₉"[d]).join(""));
const fixed = (value, digits = 2) => value.toFixed(digits).replace(/^-(0(\.0*)?)$/, "$1").replace("-", "−");
const signed = (value, digits = 2) => (fixed(value, digits).startsWith("−") ? "" : "+") + fixed(value, digits);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const setName = set => el("span", {class: "set", style: `--colour:${set.colour}`}, set.title);
const isNumber = value => value !== null && value !== undefined && value !== "" && typeof value !== "boolean" && Number.isFinite(Number(value));

function shown(value, key = "") {
  if (value === null || value === undefined || value === "") return "–";
  if (value === true || value === "True") return "yes";
  if (value === false || value === "False") return "no";
  if (Array.isArray(value)) return value.map(item => shown(item)).join(", ");
  if (typeof value === "object") return Object.entries(value).map(([k, v]) => `${k}: ${shown(v)}`).join(", ");
  if (key === "formula") return formula(value);
  if (key === "layer_group") return String(value).replace(/-(\d)/g, "$1\u0305").replace(/_(\d)/g, (_, digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]);
  if (key === "material_id" || !isNumber(value)) return String(value);
  return Number.isInteger(Number(value)) && !/_eV|_A$|^p_/.test(key) ? String(Number(value)) : fixed(Number(value), 2);
}

const tip = document.getElementById("tip");
function hint(node, text) {
  node.addEventListener("pointerenter", event => {
    tip.textContent = text;
    tip.style.display = "block";
    tip.style.left = clamp(event.clientX + 14, 4, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = clamp(event.clientY + 16, 4, innerHeight - tip.offsetHeight - 8) + "px";
  });
  node.addEventListener("pointerleave", () => { tip.style.display = "none"; });
  return node;
}

function choice(options, chosen, pick) {
  const buttons = options.map(([key, label]) => el("button", {type: "button", "aria-pressed": key === chosen, onclick: () => {
    buttons.forEach((button, k) => button.setAttribute("aria-pressed", options[k][0] === key));
    pick(key);
  }}, rich(label)));
  return el("div", {class: "choice"}, buttons);
}

function section(title, lead, ...content) {
  return el("section", {}, el("h2", {}, rich(title)), lead ? el("p", {}, rich(lead)) : null, content);
}

/* --- headline ------------------------------------------------------------------------------------------------------------------ */

const words = new Map(data.groups.flatMap(group => group.metrics.map(metric => [metric.name, metric])));
const metric = (set, name) => (data.metrics[set.name] ?? {})[name] ?? null;
const ofAll = m => `${Math.round(m.value * m.n)} of ${m.n}`;

function range(m, unit) {
  const [low, high] = m.ci95 ?? [null, null];
  if (low === null || high === null) return "no interval";
  return unit === "%" ? `${Math.round(100 * low)}–${Math.round(100 * high)} %` : `${fixed(low)} to ${fixed(high)}`;
}

function span(name, unit) {
  if (unit === "%") return [0, 1];
  const all = sets.flatMap(set => { const m = metric(set, name); return m && m.value !== null ? [m.value, ...(m.ci95 ?? [])] : []; }).filter(isNumber);
  return [Math.min(0, ...all), Math.max(1e-9, ...all)];
}

function strip(m, colour, [low, high]) {
  const place = value => 100 * clamp((value - low) / (high - low), 0, 1);
  const [first, last] = (m.ci95 ?? []).map(bound => place(bound ?? m.value));
  return el("div", {class: "strip", style: `--colour:${colour}`, "aria-hidden": "true"},
    first === undefined ? null : el("i", {style: `left:${first}%;width:${last - first}%`}), el("b", {style: `left:${place(m.value)}%`}));
}

function headlineCard(name) {
  const word = words.get(name), m = metric(own, name);
  const beside = sets.slice(1).map(set => [set, metric(set, name)]).filter(([, other]) => other && other.value !== null);
  return el("div", {class: "card"}, el("h3", {}, rich(word.label)),
    m.value === null ? el("div", {class: "big"}, "–") : el("div", {class: "big"}, String(Math.round(m.value * m.n)), el("small", {}, ` of ${m.n}`)),
    m.value === null ? null : strip(m, own.colour, [0, 1]),
    el("div", {class: "note"}, m.value === null ? "nothing was submitted" : `${Math.round(100 * m.value)} %, 95 % interval ${range(m, "%")}`),
    beside.length ? el("div", {class: "beside"}, beside.map(([set, other]) => el("div", {}, setName(set), el("span", {}, ofAll(other))))) : null);
}

function metricCell(set, word) {
  const m = metric(set, word.name), attributes = {"data-set": set.title, class: set.own ? "own" : ""};
  if (!m || m.value === null) return el("td", attributes, el("div", {class: "note"}, "–"));
  const percent = word.unit === "%", digits = word.unit ? 2 : 3;
  const value = percent ? `${Math.round(100 * m.value)} %` : `${fixed(m.value, digits)} ${word.unit ?? ""}`;
  const scale = bound => percent ? signed(100 * bound, 0) : signed(bound);
  const interval = m.difference_ci95 && m.difference_ci95.every(isNumber) ? ` [${m.difference_ci95.map(scale).join(", ")}]` : "";
  const test = isNumber(m.difference) ? `ours minus this: ${scale(m.difference)}${percent ? " points" : ""}${interval}` : "";
  const chance = isNumber(m.p_value) ? (m.p_value < .001 ? "p < 0.001" : `p = ${fixed(m.p_value, m.p_value < .1 ? 3 : 2)}`) : "";
  return el("td", attributes, el("div", {}, el("span", {class: "value"}, value),
    strip(m, set.colour, span(word.name, word.unit)),
    el("span", {class: "ci"}, el("span", {}, range(m, word.unit)), " · ", el("span", {}, percent ? ofAll(m) : "n = " + m.n)),
    test || chance ? el("span", {class: "ci"}, el("span", {}, test), test && chance ? " · " : "", el("span", {}, chance)) : null));
}

function headline() {
  const head = el("tr", {}, el("th"), sets.map(set => el("th", {}, setName(set))));
  const notes = sets.filter(set => set.note).map(set => el("div", {}, setName(set), ": " + set.note));
  const body = data.groups.flatMap(group => [
    el("tr", {class: group.metrics.some(word => word.main) ? "group" : "group minor"}, el("th", {colspan: sets.length + 1}, group.title)),
    ...group.metrics.map(word => el("tr", {class: word.main ? "" : "minor"}, el("th", {}, rich(word.label), el("span", {class: "note"}, rich(word.note))), sets.map(set => metricCell(set, word))))]);
  const table = el("table", {class: sets.length > 4 ? "metrics many" : "metrics"}, el("thead", {}, head), el("tbody", {}, body)), labels = ["Show every quantity", "Show the main quantities"];
  const more = el("button", {type: "button", class: "more", onclick: () => { more.textContent = labels[Number(table.classList.toggle("all"))]; }}, labels[0]);
  const alone = sets.length > 1 ? null : el("p", {class: "warning"}, "No other set stands beside these numbers. Without a model-free baseline they do not say what the model is worth.");
  return section("What came out",
    "Rates count every submitted structure, failures included; means count the structures where the quantity exists, n of them. The bar under a value is its 95 % interval, on one scale for all sets of a row.",
    alone, el("div", {class: "cards"}, data.headline.map(headlineCard)), notes.length ? el("div", {class: "legend"}, notes) : null, table, more);
}

/* --- the funnel ---------------------------------------------------------------------------------------------------------------- */

function funnelRow(gate, k) {
  const bars = sets.map(set => {
    const {proven, possible} = set.funnel[k], n = Math.max(1, set.points.length), width = count => `width:${100 * count / n}%`;
    const open = possible > proven ? ` (${possible})` : "";
    return el("div", {class: "gate-bar", style: `--colour:${set.colour}`}, el("div", {class: "gate-track"}, el("i", {style: width(possible)}), el("b", {style: width(proven)})),
      el("span", {}, `${proven}${open}`));
  });
  return el("div", {class: "gate"}, el("div", {}, el("strong", {}, gate.gate), el("span", {class: "note"}, rich(gate.meaning))), el("div", {}, bars));
}

function funnel() {
  if (!data.rows.length) return null;
  const last = own.funnel.at(-1), open = last.possible > last.proven;
  return section("Which structures are left",
    "A candidate passes every gate from the top down. Dark: structures that pass the gate and all above it. Pale, in brackets: those that have failed none so far, where a gate was not computed for all of them.",
    el("div", {class: "card"}, own.funnel.map(funnelRow)),
    el("div", {class: "legend"}, sets.map(set => el("span", {}, setName(set), ` ${set.points.length} submitted`))),
    open ? el("p", {}, `A hit is shown to be active and stable, and has failed no later gate that was computed for it.`) : null);
}

/* --- plots --------------------------------------------------------------------------------------------------------------------- */

function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find(factor => power * factor >= raw * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
  return {at: found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9))};
}

/** Axes in a new SVG of the holder's width; x and y are [low, high]. */
function frame(holder, {height, x, y, xLabel, yLabel, below = 0}) {
  const width = Math.max(holder.clientWidth, 240), left = yLabel ? 54 : 8, right = width - 12, top = 12, bottom = height - 46 - below;
  const X = value => left + (value - x[0]) / (x[1] - x[0]) * (right - left), Y = value => bottom - (value - y[0]) / (y[1] - y[0]) * (bottom - top);
  const canvas = svg("svg", {viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `${yLabel ?? ""} against ${xLabel}`});
  const across = ticks(...x, width < 460 ? 5 : 8);
  for (const value of across.at) canvas.append(
    svg("line", {class: "grid", x1: X(value), x2: X(value), y1: top, y2: bottom + below}),
    svg("text", {x: X(value), y: bottom + below + 17, "text-anchor": "middle"}, fixed(value, across.digits)));
  if (yLabel) {
    const up = ticks(...y, 5);
    for (const value of up.at) canvas.append(svg("line", {class: "grid", x1: left, x2: right, y1: Y(value), y2: Y(value)}),
      svg("text", {x: left - 8, y: Y(value) + 4, "text-anchor": "end"}, fixed(value, up.digits)));
    canvas.append(svg("text", {transform: `translate(13 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle"}, rich(yLabel, true)));
  }
  canvas.append(svg("line", {class: "axis", x1: left, x2: right, y1: bottom + below, y2: bottom + below}),
    svg("text", {x: (left + right) / 2, y: height - 8, "text-anchor": "middle"}, rich(xLabel, true)));
  return {canvas, X, Y, left, right, top, bottom, width};
}

function dot(set, point, cx, cy, text) {
  const picked = set.own && point.id === state.selected;
  const circle = svg("circle", {cx, cy, r: picked ? 7 : 4.5, class: set.own ? "point own" : "point", "fill-opacity": point.stable ? .75 : 0, fill: set.colour,
    stroke: picked ? "#d6336c" : set.colour, "stroke-width": picked ? 3 : 1.4, "pointer-events": "all",
    onclick: () => { if (set.own) select(point.id); }});
  return hint(circle, `${formula(point.formula)}  ${point.id}\n${set.title}\n${text}` + (point.hull === null ? "" : `\n${fixed(point.hull)} eV/atom above the hull`));
}

/** A plot in a holder, drawn again when the width or the selection changes. */
function chart(draw) {
  const holder = el("div", {class: "chart"});
  redraws.push(() => { if (holder.clientWidth) holder.replaceChildren(...draw(holder)); });
  return holder;
}

const has = (set, key) => set.points.filter(point => point[key] !== null);
const measured = Object.keys(NAMES).filter(key => sets.some(set => has(set, key).length));
const band = (axes, low, high, y1, y2) => svg("rect", {x: axes.X(low), width: axes.X(high) - axes.X(low), y: y1, height: y2 - y1, fill: "#2f9e6e", opacity: .11});

function drawVolcano(holder, key) {
  const lane = 17, {curve, metals} = data.volcano;
  const axes = frame(holder, {height: 400 + lane * sets.length, x: [-1, 1], y: [-19, -1], xLabel: "ΔG_H (eV)", yLabel: "log₁₀ j₀ (A/cm²), model", below: lane * sets.length + 8});
  const {canvas, X, Y} = axes, active = data.thresholds.active;
  canvas.append(band(axes, -active, active, axes.top, axes.bottom + lane * sets.length + 8),
    svg("path", {class: "curve", d: "M" + curve.map(([x, y]) => `${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join("L")}));
  for (const [metal, value, height] of metals) canvas.append(
    svg("path", {d: `M${X(value)} ${Y(height) - 5}l5 5l-5 5l-5 -5z`, fill: "#fff", stroke: "#5b6772", "stroke-width": 1.3}),
    svg("text", {x: X(value) + (value < 0 ? -10 : 10), y: Y(height) - 3, "text-anchor": value < 0 ? "end" : "start"}, metal));
  sets.forEach((set, k) => {
    const y = axes.bottom + 8 + lane * (k + .5);
    canvas.append(svg("line", {class: "grid", x1: axes.left, x2: axes.right, y1: y, y2: y}));
    for (const point of has(set, key)) {
      if (Math.abs(point[key]) > 1) continue;
      const tick = svg("line", {x1: X(point[key]), x2: X(point[key]), y1: y - 6, y2: y + 6, stroke: set.colour, "stroke-width": 2, opacity: .7});
      canvas.append(hint(tick, `${formula(point.formula)}  ${point.id}\n${set.title}\nΔG_H ${signed(point[key])} eV`));
      if (set.own) canvas.append(dot(set, point, X(point[key]), Y(point[key + "_j0"]), `ΔG_H ${signed(point[key])} eV, log₁₀ j₀ ${fixed(point[key + "_j0"], 1)}`));
    }
  });
  const legend = sets.map(set => {
    const values = has(set, key), beyond = values.filter(point => Math.abs(point[key]) > 1).length;
    return el("span", {}, setName(set), ` ${values.length} of ${set.points.length}` + (beyond ? `, ${beyond} of them beyond ±1 eV` : ""));
  });
  return [canvas, el("div", {class: "legend"}, legend)];
}

function volcano() {
  if (!measured.length) return section("Volcano plot", "No structure has a ΔG_H: there is nothing to place on the curve.");
  let key = measured[0];
  const plot = chart(holder => drawVolcano(holder, key)), {k0, sites} = data.volcano;
  return section("Volcano plot",
    `The line is a model, not a measurement: the exchange current that a surface of this ΔG_H would have by the kinetics of Nørskov et al., J. Electrochem. Soc. 152, J23 (2005), with their k₀ = ${k0} s⁻¹ and ${sites / 1e15} × 10¹⁵ sites per cm² for every structure. Points are the structures of this set, placed on the line by their ΔG_H; filled ones are stable. Diamonds are (111) metal surfaces, DFT of that paper. Below the line each set has a row with a tick a structure; green: |ΔG_H| ≤ ${data.thresholds.active} eV.`,
    el("div", {class: "card"}, measured.length > 1 ? choice(measured.map(name => [name, NAMES[name]]), key, name => { key = name; redraw(); }) : null, plot));
}

function drawHistogram(holder, {key, low, high, bins, label, ideal}) {
  const row = 78, shares = sets.map(set => {
    const counts = Array(bins).fill(0);
    for (const point of has(set, key)) if (point[key] >= low && point[key] <= high) counts[Math.min(bins - 1, Math.floor((point[key] - low) / (high - low) * bins))]++;
    return counts.map(count => count / Math.max(1, set.points.length));
  });
  const peak = Math.max(.01, ...shares.flat());
  const axes = frame(holder, {height: row * sets.length + 58, x: [low, high], y: [0, 1], xLabel: label});
  const {canvas, X} = axes;
  canvas.append(band(axes, ...ideal, axes.top, axes.bottom));
  sets.forEach((set, k) => {
    const base = axes.top + row * (k + 1), found = has(set, key), outside = found.filter(point => point[key] < low || point[key] > high).length;
    const step = (high - low) / bins, room = row - 26;
    canvas.append(svg("line", {class: "axis", x1: axes.left, x2: axes.right, y1: base, y2: base}));
    shares[k].forEach((share, b) => {
      if (!share) return;
      const bar = svg("rect", {x: X(low + b * step) + .5, width: Math.max(1, X(low + step) - X(low) - 1), y: base - share / peak * room, height: share / peak * room, fill: set.colour, opacity: .72});
      canvas.append(hint(bar, `${set.title}\n${fixed(low + b * step)} to ${fixed(low + (b + 1) * step)}: ${fixed(100 * share, 1)} % of all submitted`));
    });
    canvas.append(svg("text", {x: axes.left + 2, y: base - row + 18, style: `fill:${set.colour};font-weight:600`}, set.title,
      svg("tspan", {style: "fill:#5b6772;font-weight:400"}, `   ${found.length} of ${set.points.length}` + (outside ? `, ${outside} beyond` : ""))));
  });
  return [canvas, el("div", {class: "note"}, `Height: share of all submitted, highest bar ${fixed(100 * peak, 0)} %.`)];
}

function distributions() {
  const holder = (title, options) => el("div", {class: "card"}, el("h3", {}, rich(title)),
    sets.some(set => has(set, options.key).length) ? chart(node => drawHistogram(node, options)) : el("p", {}, "No structure has it."));
  return section("How the sets are distributed", "Green: where a good catalyst lies. What is off the scale is counted beside the name.", el("div", {class: "two"},
    holder("ΔG_H, hydrogen relaxed with the potential", {key: "oracle", low: -2, high: 3, bins: 40, label: "ΔG_H (eV)", ideal: [-data.thresholds.active, data.thresholds.active]}),
    holder("Energy above the hull", {key: "hull", low: -.4, high: 1.6, bins: 40, label: "E_hull (eV/atom)", ideal: [-.4, data.thresholds.stable]})));
}

function drawParity(holder, key) {
  const pairs = sets.flatMap(set => set.points.filter(point => point.oracle !== null && point[key] !== null).map(point => [set, point]));
  const values = pairs.flatMap(([, point]) => [point.oracle, point[key]]).map(value => clamp(value, -4, 4));
  const pad = .08 * (Math.max(...values) - Math.min(...values)) + .1, limits = [Math.min(...values) - pad, Math.max(...values) + pad];
  const axes = frame(holder, {height: Math.min(440, Math.max(300, holder.clientWidth * .82)), x: limits, y: limits, xLabel: "ΔG_H, hydrogen relaxed (eV)", yLabel: `ΔG_H, ${key === "second" ? "second potential" : NAMES[key]} (eV)`});
  const {canvas, X, Y} = axes;
  canvas.append(svg("line", {class: "curve", x1: X(limits[0]), y1: Y(limits[0]), x2: X(limits[1]), y2: Y(limits[1])}));
  for (const [set, point] of [...pairs].reverse()) {
    if (Math.max(Math.abs(point.oracle), Math.abs(point[key])) > 4) continue;
    const x = X(point.oracle), spread = key === "dimenet" ? point.std : null;
    if (spread !== null) canvas.append(svg("line", {x1: x, x2: x, y1: Y(Math.max(limits[0], point[key] - spread)), y2: Y(Math.min(limits[1], point[key] + spread)), stroke: set.colour, opacity: .4}));
    canvas.append(dot(set, point, x, Y(point[key]), `relaxed ${signed(point.oracle)} eV, ${NAMES[key]} ${signed(point[key])} eV`));
  }
  const lines = sets.filter(set => set.parity[key]).map(set => {
    const {n, mae, bias, null: nothing, r} = set.parity[key];
    return el("div", {}, setName(set), ` n = ${n}: off by ${fixed(mae)} eV on average (always saying the set's mean: ${fixed(nothing)} eV), ${signed(bias)} eV on balance` + (r === null ? "" : `, r = ${fixed(r)}`));
  });
  return [canvas, el("div", {class: "note", style: "margin-top:8px"}, lines)];
}

function parity() {
  const keys = ["dimenet", "second"].filter(key => sets.some(set => set.points.some(point => point.oracle !== null && point[key] !== null)));
  const titles = {dimenet: "DimeNet++ against relaxed hydrogen", second: `A second potential against the first${said("second_potential") ? ": " + said("second_potential") : ""}`};
  if (!keys.length) return section("How far the methods agree", "No structure has ΔG_H by two methods.");
  return section("How far the methods agree", "On the line both say the same. A model that is no better than its set's mean predicts nothing; one that says a smaller |ΔG_H| than relaxed hydrogen has flatters. Filled: stable; bars: spread of the ensemble.",
    el("div", {class: keys.length > 1 ? "two" : ""}, keys.map(key => el("div", {class: "card"}, el("h3", {}, rich(titles[key])), chart(node => drawParity(node, key))))));
}

/* --- structures in 3D ---------------------------------------------------------------------------------------------------------- */

const PAPER = [250, 249, 245], VIEWS = {Tilted: [8, -64, 1], Top: [0, 0, .78], Side: [0, -90, 1]};
const rgb = hex => [1, 3, 5].map(k => parseInt(hex.slice(k, k + 2), 16));
const mix = (a, b, share) => a.map((value, k) => value + (b[k] - value) * share);
const css = colour => `rgb(${colour.map(Math.round).join()})`;
const colours = Object.fromEntries(Object.entries(data.elements).map(([symbol, entry]) => [symbol, rgb(entry.colour)]));
const ballRadius = symbol => Math.max(.36, .5 * data.elements[symbol].radius);

/** Degrees about its normal that lay the longer side of a drawn piece across the page. */
function across(scene) {
  const sum = product => scene.positions.reduce((total, p) => total + product(p), 0);
  return -90 / Math.PI * Math.atan2(2 * sum(p => p[0] * p[1]), sum(p => p[0] * p[0] - p[1] * p[1]));
}

/** A projection of Å to pixels: the layer turned by yaw about its normal, then tilted by pitch; slight perspective. */
function camera(scene, width, height, {yaw, pitch, zoom}) {
  const reach = scene.reach ??= Math.max(...[...scene.positions, ...scene.cell].map(p => Math.hypot(...p))) + .6;
  const [cy, sy, cp, sp] = [yaw + (scene.across ??= across(scene)), pitch].flatMap(angle => [Math.cos(angle * Math.PI / 180), Math.sin(angle * Math.PI / 180)]);
  const scale = Math.min(width / (2.05 * reach), height / (1.5 * reach)) * zoom, eye = 5 * reach;
  const project = ([x, y, z]) => {
    const u = x * cy - y * sy, v = x * sy + y * cy, depth = v * sp + z * cp, size = scale * eye / (eye - depth);
    return {x: width / 2 + u * size, y: height / 2 - (v * cp - z * sp) * size, depth, size, fog: clamp(.5 - depth / (1.6 * reach), 0, 1) * .55};
  };
  return project;
}

function stroke(ctx, a, b, width, colour) {
  ctx.strokeStyle = colour;
  ctx.lineWidth = width;
  ctx.beginPath();
  ctx.moveTo(a.x, a.y);
  ctx.lineTo(b.x, b.y);
  ctx.stroke();
}

function ball(ctx, at, radius, colour) {
  const shade = ctx.createRadialGradient(at.x - .35 * radius, at.y - .4 * radius, radius * .05, at.x, at.y, radius);
  shade.addColorStop(0, css(mix(colour, [255, 255, 255], .8)));
  shade.addColorStop(.4, css(colour));
  shade.addColorStop(1, css(mix(colour, [20, 24, 40], .45)));
  ctx.fillStyle = shade;
  ctx.beginPath();
  ctx.arc(at.x, at.y, radius, 0, 7);
  ctx.fill();
}

function label(ctx, text, x, y, colour) {
  ctx.lineWidth = 4;
  ctx.strokeStyle = "#fffffff0";
  ctx.strokeText(text, x, y);
  ctx.fillStyle = colour;
  ctx.fillText(text, x, y);
}

/** What is drawn, with its depth: balls, the two halves of each stick from the surface of its ball, contacts and the cell. */
function parts(scene, project, ctx, large) {
  const {symbols, positions, hydrogen} = scene, at = positions.map(project), found = [];
  const between = (p, q, share) => p.map((value, k) => value + (q[k] - value) * share);
  positions.forEach((_, k) => found.push([at[k].depth, () => ball(ctx, at[k], ballRadius(symbols[k]) * at[k].size, mix(colours[symbols[k]], PAPER, at[k].fog))]));
  for (const [i, j] of scene.bonds) for (const [a, b] of [[i, j], [j, i]]) {
    const length = Math.hypot(...positions[a].map((value, k) => value - positions[b][k]));
    const start = project(between(positions[a], positions[b], .9 * ballRadius(symbols[a]) / length)), end = project(between(positions[a], positions[b], .5));
    const colour = a === hydrogen || b === hydrogen ? rgb("#d6336c") : mix(colours[symbols[a]], PAPER, at[a].fog), width = .26 * start.size;
    found.push([(start.depth + end.depth) / 2, () => {
      stroke(ctx, start, end, width, css(mix(colour, [20, 24, 40], .4)));
      stroke(ctx, start, end, width * .66, css(colour));
      stroke(ctx, start, end, width * .2, css(mix(colour, [255, 255, 255], .55)));
    }]);
  }
  for (const [i, j] of scene.contacts) found.push([(at[i].depth + at[j].depth) / 2, () => stroke(ctx, at[i], at[j], 1, "#9aa3ab")]);
  if (large) for (let corner = 0; corner < 8; corner++) for (const bit of [1, 2, 4]) if (!(corner & bit)) for (let k = 0; k < 24; k += 2) {
    const [a, b] = [k, k + 1].map(step => project(between(scene.cell[corner], scene.cell[corner | bit], step / 23)));
    found.push([(a.depth + b.depth) / 2, () => stroke(ctx, a, b, 1.2, "#3d4a57")]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}

/** Draws a scene; returns where its H is on the canvas, in CSS pixels, or null. */
function paint(canvas, scene, angles) {
  const width = canvas.clientWidth, height = canvas.clientHeight, density = Math.min(window.devicePixelRatio || 1, 2), ctx = canvas.getContext("2d");
  canvas.width = width * density;
  canvas.height = height * density;
  ctx.scale(density, density);
  ctx.lineCap = "round";
  if (!scene || !width) return null;
  const project = camera(scene, width, height, angles), large = width > 150;
  for (const [, draw] of parts(scene, project, ctx, large)) draw();
  if (large) for (const [name, corner] of [["a", 1], ["b", 2]]) {
    const [o, p] = [scene.cell[0], scene.cell[corner]].map(project), length = Math.hypot(p.x - o.x, p.y - o.y) || 1;
    ctx.font = "italic 15px Georgia, 'DejaVu Serif', serif";
    if (length > 12) label(ctx, name, p.x + (p.x - o.x) / length * 12 - 4, p.y + (p.y - o.y) / length * 12 + 4, "#3d4a57");
  }
  if (scene.hydrogen === null) return null;
  const at = project(scene.positions[scene.hydrogen]), radius = ballRadius("H") * at.size;
  ctx.strokeStyle = "#d6336c";
  ctx.lineWidth = large ? 2.5 : 1.5;
  ctx.beginPath();
  ctx.arc(at.x, at.y, radius * 1.25, 0, 7);
  ctx.stroke();
  if (large) {
    ctx.font = "600 15px 'Segoe UI', Arial, 'DejaVu Sans', sans-serif";
    label(ctx, "H", at.x + radius * 1.25 + 5, at.y - radius * .6, "#d6336c");
  }
  return [at.x, at.y];
}

const view = el("canvas", {id: "view", tabindex: 0, role: "img"});
const facts = el("div", {class: "facts", "aria-live": "polite"});
let pending = false;

function repaint() {
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => {
    pending = false;
    const scene = scenes.get(state.selected);
    state.hydrogen = paint(view, scene, state);
    state.atoms = scene ? scene.symbols.length : 0;
    state.frames++;
  });
}

function turn(yaw, pitch, zoom = state.zoom) {
  Object.assign(state, {yaw, pitch: clamp(pitch, -180, 180), zoom: clamp(zoom, .4, 6)});
  repaint();
}

function handleView() {
  const fingers = new Map();
  view.addEventListener("pointerdown", event => { fingers.set(event.pointerId, event); view.setPointerCapture(event.pointerId); });
  view.addEventListener("pointermove", event => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    if (fingers.size === 1) turn(state.yaw + .45 * (event.clientX - before.clientX), state.pitch + .45 * (event.clientY - before.clientY));
    else {
      const other = [...fingers.values()].find(finger => finger.pointerId !== event.pointerId);
      const gap = finger => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY) || 1;
      turn(state.yaw, state.pitch, state.zoom * gap(event) / gap(before));
    }
    fingers.set(event.pointerId, event);
  });
  for (const name of ["pointerup", "pointercancel"]) view.addEventListener(name, event => fingers.delete(event.pointerId));
  view.addEventListener("wheel", event => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    turn(state.yaw, state.pitch, state.zoom * Math.exp(-event.deltaY / 200));
  }, {passive: false});
  view.addEventListener("dblclick", () => turn(...VIEWS.Tilted));
  view.addEventListener("keydown", event => {
    const step = {ArrowLeft: [-8, 0], ArrowRight: [8, 0], ArrowUp: [0, -8], ArrowDown: [0, 8]}[event.key];
    if (!step) return;
    event.preventDefault();
    turn(state.yaw + step[0], state.pitch + step[1]);
  });
}

function showFacts() {
  const scene = scenes.get(state.selected), row = rows.get(state.selected);
  const listed = data.shortlist.find(item => item.material_id === state.selected) ?? {}, merged = {...row, ...listed};
  if (!row && !listed.material_id) return facts.replaceChildren(el("p", {}, "Choose a structure in the list."));
  const keys = ["layer_group", "e_hull_eV_per_atom", "e_hull_std_eV_per_atom", "delta_g_h_oracle_eV", "delta_g_h_oracle_std_eV", "delta_g_h_dimenet_eV", "delta_g_h_second_eV", "delta_g_h_dft_eV", "p_active", "e_pourbaix_eV_per_atom", "avoid_elements", "price_usd_per_kg", "p_synth", "h_site", "thickness_A", "novel", "known_as", "hit", "stopped_by"];
  const pairs = keys.filter(key => merged[key] !== null && merged[key] !== undefined).map(key => [data.labels[key], shown(merged[key], key)]);
  let remark = scene ? "Dashed: the unit cell, 1 Å of its vacuum drawn." : scenes.size < data.rows.length && data.undrawn ? "The page holds 3D views of the first structures only, and not of this one." : "No relaxed layer: nothing to draw.";
  if (scene && scene.hydrogen !== null) {
    const {positions, hydrogen, symbols} = scene, near = scene.bonds.filter(bond => bond.includes(hydrogen)).map(bond => bond[0] === hydrogen ? bond[1] : bond[0]);
    const length = k => Math.hypot(...positions[k].map((value, axis) => value - positions[hydrogen][axis]));
    if (near.length) pairs.push(["Bonds of H", near.sort((a, b) => length(a) - length(b)).map(k => `${symbols[k]} ${fixed(length(k))}`).join(", ") + "\u00a0Å"]);
    if (scene.turned) remark = "Shown upside down: H sits on the bottom face. " + remark;
  } else if (scene) remark = "No site adsorbs H: the bare layer. " + remark;
  const kinds = scene ? [...new Set(scene.symbols)] : [];
  facts.replaceChildren(el("div", {}, el("h3", {}, formula(merged.formula)), el("div", {class: "note", style: "overflow-wrap:anywhere"}, String(state.selected)),
    el("dl", {}, pairs.map(([label, text]) => [el("dt", {}, rich(label)), el("dd", {}, text)])),
    el("div", {}, kinds.map(kind => el("span", {class: "atom"}, el("i", {style: `background:${data.elements[kind].colour}`}), data.elements[kind].name))),
    el("div", {class: "note", style: "margin-top:10px"}, remark), row && row.error ? el("div", {class: "note warning", style: "margin-top:8px;overflow-wrap:anywhere"}, rich(row.error)) : null));
  view.setAttribute("aria-label", `${merged.formula} in 3D; drag or press the arrow keys to turn it`);
}

function select(id) {
  state.selected = id;
  document.querySelectorAll("tr.pick").forEach(row => row.setAttribute("aria-selected", row.dataset.id === String(id)));
  showFacts();
  repaint();
  redraw();
}

function listHead(columns, list, refill) {
  return el("tr", {}, columns.map(key => el("th", {class: isText(list, key) ? "text" : ""}, el("button", {type: "button", title: "sort", onclick: () => {
    const up = state.sorted !== key, order = value => isNumber(value) ? Number(value) : value === null || value === undefined ? Infinity : String(value);
    state.sorted = up ? key : null;
    refill([...list].sort((a, b) => { const [x, y] = [order(a[key]), order(b[key])]; return (x < y ? -1 : x > y ? 1 : 0) * (up || y === Infinity || x === Infinity ? 1 : -1); }));
  }}, rich(data.labels[key] ?? key.replaceAll("_", " "))))));
}
const isText = (list, key) => key === "material_id" || list.some(item => item[key] !== null && item[key] !== undefined && !isNumber(item[key]));

function structureList(list, columns, pictures) {
  const body = el("tbody");
  const fill = items => {
    body.replaceChildren(...items.map(item => {
      const id = item.material_id, pick = () => { select(id); if (innerWidth <= 820) view.scrollIntoView({block: "start"}); };
      const picture = pictures ? el("td", {}, el("canvas", {class: "thumbnail", "aria-hidden": "true"})) : null;
      return el("tr", {class: "pick", tabindex: 0, "data-id": String(id), "aria-selected": id === state.selected, onclick: pick,
        onkeydown: event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pick(); } }},
        picture, columns.map(key => el("td", {class: isText(list, key) ? "text" : ""}, shown(item[key], key))));
    }));
    if (pictures) requestAnimationFrame(() => {
      state.thumbnails = 0;
      for (const row of body.rows) {
        const scene = scenes.get(row.dataset.id);
        paint(row.querySelector("canvas"), scene, {yaw: 8, pitch: -64, zoom: 1.1});
        if (scene) state.thumbnails++;
      }
    });
  };
  const head = listHead(columns, list, fill);
  if (pictures) head.prepend(el("th"));
  fill(list);
  return el("div", {class: "scroll"}, el("table", {class: "list"}, el("thead", {}, head), body));
}

function structures() {
  const filled = (list, keys) => keys.filter(key => key === "material_id" || list.some(item => item[key] !== null && item[key] !== undefined));
  const short = filled(data.shortlist, [...new Set(["material_id", ...data.shortlist.flatMap(Object.keys)])]);
  const long = filled(data.rows, Object.keys(data.labels));
  const place = el("div"), show = key => place.replaceChildren(key === "short" ? structureList(data.shortlist, short, true) : structureList(data.rows, long, false));
  const options = [data.shortlist.length ? ["short", `Shortlist (${data.shortlist.length})`] : null, ["all", `All structures (${data.rows.length})`]].filter(Boolean);
  const buttons = Object.entries(VIEWS).map(([name, angles]) => el("button", {type: "button", onclick: () => turn(...angles)}, name));
  const zooms = [["+", 1.25], ["−", .8]].map(([name, factor]) => el("button", {type: "button", "aria-label": name === "+" ? "closer" : "farther", onclick: () => turn(state.yaw, state.pitch, state.zoom * factor)}, name));
  if (!data.rows.length) return section("Structures", "Nothing was submitted.");
  const lead = (data.shortlist.length ? "The most promising first. " : "No structure is promising enough for a shortlist. ") + "Choose a row, or a point in a plot, to see the relaxed layer with hydrogen on its best site; drag to turn it.";
  const viewer = el("div", {class: "card viewer"}, el("div", {class: "stage"}, view, el("div", {class: "choice"}, buttons, zooms)), facts);
  const result = section("Structures", scenes.size ? lead : "No structure became a relaxed layer: there is nothing to draw.", scenes.size ? viewer : null,
    el("div", {style: "margin-top:16px"}, choice(options, options[0][0], show)), place);
  handleView();
  show(options[0][0]);
  return result;
}

/* --- failures, provenance, figures --------------------------------------------------------------------------------------------- */

function failures() {
  if (!data.failures.length) return section("What went wrong", data.rows.length ? "Nothing: every structure went through every step." : "Nothing was submitted.");
  const most = data.causes[0][1];
  const table = el("table", {class: "list wraps"}, el("thead", {}, el("tr", {}, ["Structure", "Formula", "What happened"].map(text => el("th", {class: "text"}, text)))),
    el("tbody", {}, data.failures.map(([id, name, why]) => el("tr", {}, [shown(id, "material_id"), shown(name, "formula"), why].map(text => el("td", {class: "text", style: "max-width:620px"}, text))))));
  return section("What went wrong", `${data.failures.length} of ${data.rows.length} structures carry a remark. They stay in every rate above. A structure can have several causes.`,
    el("div", {class: "card"}, data.causes.slice(0, 12).map(([cause, count]) => el("div", {class: "bar"}, el("span", {}, rich(cause)), el("i", {style: `width:${100 * count / most}%`}), el("span", {}, String(count)))),
      data.causes.length > 12 ? el("div", {class: "note"}, `and ${data.causes.length - 12} rarer causes`) : null),
    el("details", {open: data.failures.length <= 12 ? "" : null}, el("summary", {}, "One by one"), el("div", {class: "scroll"}, table)));
}

function listing(value, nested = false) {
  const isTable = value !== null && typeof value === "object" && !Array.isArray(value);
  if (isTable && nested) return Object.entries(value).map(([key, item]) => el("div", {}, el("span", {class: "note"}, key + "  "), el("code", {}, shown(item, "material_id"))));
  if (isTable) return el("dl", {}, Object.entries(value).map(([key, item]) => [el("dt", {}, key.replaceAll("_", " ")), el("dd", {}, listing(item, true))]));
  return el("code", {}, Array.isArray(value) ? value.map(item => shown(item)).join(", ") : value === null ? "–" : String(value));
}

function provenance() {
  return section("Where the numbers come from", "Energies are those of a machine-learned potential, not of density functional theory.", el("div", {class: "card"}, listing(data.provenance)));
}

function figures() {
  if (!data.figures.length && !data.figures_left_out.length) return null;
  return el("details", {}, el("summary", {}, `The same as figures for a paper (${data.figures.length})`),
    data.figures.map(figure => el("figure", {}, el("img", {src: figure.uri, alt: figure.name, loading: "lazy"}))),
    data.figures_left_out.length ? el("p", {}, "Too large for this page, beside it on disk: " + data.figures_left_out.join(", ")) : null);
}

function redraw() { redraws.forEach(draw => draw()); }

function lead() {
  const potential = said("potential"), n = data.rows.length;
  const count = n ? `${n} crystal structure${n > 1 ? "s" : ""}` : "No structures";
  return `${count}${sets.length > 1 && n ? `, and ${sets.length - 1} other set${sets.length > 2 ? "s" : ""} beside ${n > 1 ? "them" : "it"}` : ""}, through one and the same evaluation` + (potential ? `: energies by ${potential}.` : ".");
}

document.title = `${own.title}: 2D crystals for hydrogen evolution`;
document.getElementById("page").append(...[
  el("header", {}, el("h1", {}, "Two-dimensional crystals for hydrogen evolution: ", own.title), el("p", {}, lead())),
  headline(), funnel(), volcano(), structures(), distributions(), parity(), failures(), provenance(), figures()].filter(Boolean));
const first = [...data.shortlist, ...data.rows].find(item => scenes.has(item.material_id)) ?? data.rows[0];
[state.yaw, state.pitch, state.zoom] = VIEWS.Tilted;
if (first) select(first.material_id);
redraw();
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; redraw(); } repaint(); });
requestAnimationFrame(() => requestAnimationFrame(() => { state.ready = true; }));
